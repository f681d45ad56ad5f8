//! From settings to a running service and back, read from top to bottom.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::sync::mpsc::Receiver;
use tracing::warn;

use crate::{
    calls::Calls,
    cluster::{Cluster, ConnectError, Hub, Inbound, Redis},
    config::Config,
    gateway::{Gateway, Leaving},
    history::{self, Sqlite, StoreError},
    http::{self, Server},
    ids::NodeId,
    shutdown::{self, Shutdown},
    time::Clock,
};

/// Why the service could not start. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot use the database {url}")]
    Database { url: String, source: StoreError },
    #[error("cannot use Redis")]
    Redis(#[source] ConnectError),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// Serves until it is told to stop. `ready` is called with the address in use.
pub async fn serve(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
    let address = config.listen;
    let in_use = |source| StartError::Listen { address, source };
    let server = Server::bind(address).await.map_err(in_use)?;
    let bound = server.address().map_err(in_use)?;

    let unusable = |source| StartError::Database { url: config.database_url.clone(), source };
    let store = Sqlite::open(&config.database_url).await.map_err(unusable)?;

    let node = NodeId::generate(Clock::System.now());
    let (cluster, inbox, leaving): (Arc<dyn Cluster>, _, _) = match &config.redis_url {
        Some(url) => {
            let joined = Redis::join(url, &config.namespace, node, Clock::System).await;
            let (redis, inbox) = joined.map_err(StartError::Redis)?;
            (redis, inbox, Leaving::HandOver { window: config.drain_window })
        }
        None => {
            // Nobody else can hold the calls that an earlier run left open.
            history::close_orphans(&store).await.map_err(unusable)?;
            let (memory, inbox) = Hub::default().node(node);
            (Arc::new(memory), inbox, Leaving::ForGood)
        }
    };
    let (recorder, writer) = history::recorder(Arc::new(store.clone()), cluster.clone());
    let gateway = Gateway::default();
    let calls =
        Calls::new(cluster.clone(), gateway.outlet(), recorder, config.rules, Clock::System);
    let calls = Arc::new(calls);
    let (serving, socket_routes) = gateway.serve(calls.clone(), config.stun_urls);
    let routes = http::routes(Arc::new(store.clone())).merge(socket_routes);

    let (stop_listening, listening_stops) = shutdown::shutdown();
    let (stop_calls, calls_stop) = shutdown::shutdown();
    let (stop_writer, writer_stops) = shutdown::shutdown();
    let receiving = tokio::spawn(receive(calls.clone(), inbox));
    let writing = tokio::spawn(writer.run(writer_stops.wait()));
    let sweeping = tokio::spawn(sweep(calls.clone(), calls_stop));
    let listening = tokio::spawn(server.run(routes, listening_stops.wait()));
    let signalled = shutdown::signalled();
    ready(bound);
    signalled.await.map_err(StartError::Signals)?;

    tokio::spawn(shutdown::exit_at_second_signal());
    stop_listening.fire();
    serving.close(leaving).await;
    if let Leaving::HandOver { window } = leaving {
        calls.hand_over(window).await;
    }
    stop_calls.fire();
    cluster.leave().await;
    receiving.abort();
    stop_writer.fire();
    for task in [listening, sweeping, writing] {
        if let Err(error) = task.await {
            warn!(%error, "a part of the service had failed");
        }
    }
    store.close().await;
    Ok(())
}

async fn receive(calls: Arc<Calls>, inbox: Receiver<Inbound>) {
    calls.run_inbox(inbox).await;
}

async fn sweep(calls: Arc<Calls>, stop: Shutdown) {
    calls.run_sweeper(stop.wait()).await;
}
