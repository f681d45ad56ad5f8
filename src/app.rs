//! From settings to a running service and back, read from top to bottom.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::mpsc::Receiver;
use tracing::warn;

use crate::{
    auth::{Access, Checker, KeyError},
    authorize::Authorizer,
    calls::Calls,
    cluster::{Cluster, ConnectError, Hub, Inbound, Redis},
    config::{Auth, Config, is_postgres},
    gateway::{Gateway, Leaving},
    history::{self, Keeper, OpenError, Postgres, Sqlite, Store, StoreError},
    http::{self, Server},
    ice::Ice,
    ids::NodeId,
    shutdown::{self, Shutdown},
    time::{Clock, SharedClock},
};

/// Why the service could not start. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot use the database {url}")]
    Database { url: String, source: StoreError },
    #[error("cannot use the database {url}")]
    Postgres { url: String, source: OpenError },
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("cannot use Redis")]
    Redis(#[source] ConnectError),
    #[error("cannot ask authorize_url")]
    Authorize(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// How much longer than the longest call a call without an end is left alone in history.
const ORPHAN_MARGIN: Duration = Duration::from_hours(1);

/// Serves until it is told to stop. `ready` is called with the address in use.
pub async fn serve(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
    let checker = match config.auth {
        Auth::Open => None,
        Auth::Jwt(ref trust) => Some(Checker::new(trust.clone())?),
    };
    let address = config.listen;
    let in_use = |source| StartError::Listen { address, source };
    let server = Server::bind(address).await.map_err(in_use)?;
    let bound = server.address().map_err(in_use)?;

    if config.migrate {
        migrate(&config).await?;
    }
    let store = open_store(&config).await?;

    let node = NodeId::generate(Clock::System.now());
    let (cluster, inbox, leaving, clock): (Arc<dyn Cluster>, _, _, _) = match &config.redis_url {
        Some(url) => {
            let clock = SharedClock::starting_at(Clock::System.now());
            let joined = Redis::join(url.expose(), &config.namespace, node, clock.clone()).await;
            let (redis, inbox) = joined.map_err(StartError::Redis)?;
            let leaving = Leaving::HandOver { window: config.drain_window };
            (redis, inbox, leaving, Clock::Shared(clock))
        }
        None => {
            let (memory, inbox) = Hub::default().node(node);
            (Arc::new(memory), inbox, Leaving::ForGood, Clock::System)
        }
    };
    let (recorder, writer) = history::recorder(store.clone(), cluster.clone());
    // In a file that holds one node's part, the end of a call is often missing, and not because all
    // that knew of the call died.
    let longest_call =
        (!is_partial(&config)).then(|| config.rules.max_call_duration + ORPHAN_MARGIN);
    let keeper = Keeper {
        store: store.clone(),
        clock: clock.clone(),
        retention: config.history_retention,
        longest_call,
    };
    let access = Arc::new(Access::new(checker, clock.clone()));
    access.prepare().await;
    let gateway = Gateway::default();
    let calls =
        Calls::new(cluster.clone(), gateway.outlet(), recorder, config.rules, clock.clone());
    let calls = Arc::new(match config.authorize {
        Some(settings) => {
            calls.guarded_by(Arc::new(Authorizer::new(settings).map_err(StartError::Authorize)?))
        }
        None => calls,
    });
    let ice = Arc::new(Ice::new(config.ice, clock));
    let (serving, socket_routes) = gateway.serve(calls.clone(), access.clone(), ice.clone());
    let routes = http::routes(store.clone(), cluster.clone(), calls.clone(), access.clone(), ice);
    let routes = http::guarded(routes.merge(socket_routes), config.cors_origins);

    let (stop_listening, listening_stops) = shutdown::shutdown();
    let (stop_calls, calls_stop) = shutdown::shutdown();
    let (stop_writer, writer_stops) = shutdown::shutdown();
    let (stop_keeper, keeper_stops) = shutdown::shutdown();
    let (stop_keys, keys_stop) = shutdown::shutdown();
    let receiving = tokio::spawn(receive(calls.clone(), inbox));
    let writing = tokio::spawn(writer.run(writer_stops.wait()));
    let keeping = tokio::spawn(keeper.run(keeper_stops.wait()));
    let sweeping = tokio::spawn(sweep(calls.clone(), calls_stop));
    let leasing = tokio::spawn(serving.run_leases());
    let fetching = tokio::spawn(async move { access.keep_fresh(keys_stop.wait()).await });
    let listening = tokio::spawn(server.run(routes, listening_stops.wait()));
    let signalled = shutdown::signalled().map_err(StartError::Signals)?;
    ready(bound);
    signalled.await;

    tokio::spawn(shutdown::exit_at_second_signal());
    stop_listening.fire();
    leasing.abort();
    serving.close(leaving).await;
    if let Leaving::HandOver { window } = leaving {
        calls.hand_over(window).await;
    }
    stop_calls.fire();
    cluster.leave().await;
    receiving.abort();
    stop_keeper.fire();
    stop_keys.fire();
    stop_writer.fire();
    for task in [listening, sweeping, keeping, fetching, writing] {
        if let Err(error) = task.await {
            warn!(%error, "a part of the service had failed");
        }
    }
    store.close().await;
    Ok(())
}

/// Brings the schema of the history up to date.
pub async fn migrate(config: &Config) -> Result<(), StartError> {
    if is_postgres(&config.database_url) {
        let refuse = |source| StartError::Postgres { url: config.database_url.to_string(), source };
        Postgres::migrate(config.database_url.expose()).await.map_err(refuse)
    } else {
        open_store(config).await?.close().await;
        Ok(())
    }
}

/// Whether the history holds only what this node decides: each file is one node's, and a call's next
/// step may be another's.
fn is_partial(config: &Config) -> bool {
    config.redis_url.is_some() && !is_postgres(&config.database_url)
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let url = &config.database_url;
    if is_postgres(url) {
        let refuse = |source| StartError::Postgres { url: url.to_string(), source };
        return Ok(Arc::new(Postgres::open(url.expose()).await.map_err(refuse)?));
    }
    let refuse = |source| StartError::Database { url: url.to_string(), source };
    let store = Sqlite::open(url.expose()).await.map_err(refuse)?;
    if is_partial(config) {
        warn!(
            "history is kept in SQLite, so each node has a part of it only, where calls may lack \
             their end: for one whole history of all nodes use Postgres"
        );
    } else {
        // Nobody else can hold the calls that an earlier run left open: the file is ours alone.
        history::close_orphans(&store, Clock::System.now() + ORPHAN_MARGIN)
            .await
            .map_err(refuse)?;
    }
    Ok(Arc::new(store))
}

async fn receive(calls: Arc<Calls>, inbox: Receiver<Inbound>) {
    calls.run_inbox(inbox).await;
}

async fn sweep(calls: Arc<Calls>, stop: Shutdown) {
    calls.run_sweeper(stop.wait()).await;
}
