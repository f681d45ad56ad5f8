//! From settings to a running service and back, in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc::Receiver, time::timeout};
use tracing::{info, warn};

use crate::{
    auth::{Access, Checker, KeyError},
    authorize::{self, BackendAuthorizer},
    call::Call,
    calls::{Calls, as_gauge},
    cluster::{Cluster, ConnectError, Hub, Inbound, Redis},
    config::{Auth, Config, is_postgres},
    gateway::{Gateway, Leaving, Serving},
    health::{Health, Part, Phase},
    history::{
        self, Keeper, Measured, OpenError, Plan, Postgres, Recorder, Sqlite, Store, StoreError,
        Writer,
    },
    http::{self, Hosts, Server},
    ice::Ice,
    ids::NodeId,
    limits::{Limits, Refusals, buffers::Buffers},
    logs,
    metrics::{self, Exposition},
    secret::ServiceUrl,
    shutdown::{self, Tasks},
    telemetry::{self, Exporter, Traces},
    time::{Clock, SharedClock, Timestamp},
};

/// The parts that belong to the process and start before the service.
pub struct Process {
    pub node: NodeId,
    pub filter: logs::Filter,
    pub metrics: Exposition,
}

/// A failed start. Displays as one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: SWITCHBOARD_LISTEN sets where")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "cannot listen on {address} for health and metrics: SWITCHBOARD_ADMIN_LISTEN sets where"
    )]
    AdminListen { address: SocketAddr, source: io::Error },
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
    #[error("cannot export traces")]
    Traces(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// Time beyond the longest call duration after which a call without an end counts as dead.
const ORPHAN_MARGIN: Duration = Duration::from_hours(1);
/// Bound on relaying received messages while the node stops.
const LAST_NEWS: Duration = Duration::from_secs(2);

/// Serves until it is stopped. Calls `ready` with the bound address.
pub async fn serve(
    config: Config,
    process: Process,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), StartError> {
    log_start(&config);
    let health = Health::default();
    let tasks = AllTasks::default();
    // Before anything slow, so that operators see why the node is not ready.
    let admin = listen_for_admins(config.admin_listen).await?;
    let operators = http::ops::Operators::default();
    let (filter, exposition) = (process.filter, process.metrics.clone());
    let hosts = Hosts::from(config.hosts.clone());
    let admin_routes = http::ops::routes(health.clone(), filter, exposition, operators.clone());
    let refusals = Arc::new(Refusals::new(Clock::System));
    let admin_routes = http::for_hosts(admin_routes, Some(hosts.clone()), refusals.clone());
    tasks.operators.spawn(|stop| admin.run(admin_routes, stop));

    let checker = match config.auth {
        Auth::Open => None,
        Auth::Jwt(ref trust) => Some(Checker::new(trust.clone())?),
    };
    let (server, bound) = listen_for_clients(config.listen).await?;

    if config.migrate {
        info!("{}", migrate(&config).await?);
    }
    let (store, left_live) = open_store(&config).await?;
    let keeps_calls = left_live.is_some();

    let buffers = Buffers::new(config.limits.buffer_bytes);
    let (cluster, inbox, leaving, clock) =
        join(&config, process.node, keeps_calls, &health, &buffers).await?;
    tasks.operators.spawn_until(process.metrics.clone().keep_up());
    let (recorder, writer) = record(store.clone(), cluster.clone(), &clock, &health);
    let recorder = if keeps_calls { recorder.keeping_records() } else { recorder };
    let keeper = keeper(&config, store.clone(), clock.clone(), health.clone());
    let access = Arc::new(Access::new(checker, clock.clone()));
    access.prepare().await;
    let (settings, proxies) = (config.limits, config.proxies);
    let limits = Limits::new(settings, proxies, clock.clone(), refusals.clone());
    let limits = Arc::new(limits.buffered_in(buffers.clone()));
    operators.check_with(access.clone(), limits.clone());
    let gateway = Gateway::new(limits.clone());
    let (traces, exporter) = start_traces(config.traces, process.node, &clock)?;
    let outlet = gateway.outlet();
    let calls = Calls::new(cluster.clone(), outlet, recorder.clone(), config.rules, clock.clone());
    let calls = calls.traced_by(traces).buffered_in(buffers);
    let calls = Arc::new(guarded(calls, config.authorize)?);
    if let Some(left_live) = left_live {
        resume(&config.database_url, &*store, &calls, left_live).await?;
    }
    let ice = Arc::new(Ice::new(config.ice, clock));
    let (serving, socket_routes) = gateway.serve(calls.clone(), access.clone(), ice.clone());
    let serving = Arc::new(serving);
    process.metrics.sample_with(sampler(health.clone(), serving.clone(), calls.clone(), recorder));
    let routes = {
        let (access, limits) = (access.clone(), limits.clone());
        http::routes(store.clone(), cluster.clone(), calls.clone(), access, ice, limits)
    };
    // Where tokens are checked, a page that got here by another name has none to show.
    let hosts = matches!(config.auth, Auth::Open).then_some(hosts);
    let routes = routes.merge(socket_routes);
    let routes = http::for_origins(routes, config.cors_origins, hosts.clone(), limits);
    let routes = http::for_hosts(routes, hosts, refusals);

    let signalled = shutdown::signalled().map_err(StartError::Signals)?;
    let (receiver, sweeper) = (calls.clone(), calls.clone());
    tasks.inbox.spawn_until(async move { receiver.run_inbox(inbox).await });
    tasks.writes.spawn(|stop| writer.run(stop));
    tasks.writes.spawn(|stop| keeper.run(stop));
    tasks.writes.spawn_until(async move { access.keep_fresh().await });
    tasks.deadlines.spawn(|stop| async move { sweeper.run_sweeper(stop).await });
    tasks.connections.spawn_until(serving.run_leases());
    tasks.connections.spawn_until(serving.run_shedder(health.clone()));
    tasks.connections.spawn(|stop| server.run(routes, stop));
    health.enter(Phase::Serving);
    ready(bound);
    signalled.await;

    health.enter(Phase::Draining);
    tokio::spawn(shutdown::exit_at_second_signal(logs::flush));
    let node = Node { leaving, serving, calls, cluster, exporter, store, tasks };
    node.stop().await;
    Ok(())
}

/// The tasks of a node, by the step of its shutdown that stops them.
#[derive(Default)]
struct AllTasks {
    /// The listener for clients, and the upkeep of their connections.
    connections: Tasks,
    /// Messages of other nodes.
    inbox: Tasks,
    /// Periodic work on calls.
    deadlines: Tasks,
    /// The history with its maintenance, and the key set.
    writes: Tasks,
    /// The listener for operators, and the upkeep of metrics.
    operators: Tasks,
}

/// The parts of a serving node that its shutdown needs.
struct Node {
    leaving: Leaving,
    serving: Arc<Serving>,
    calls: Arc<Calls>,
    cluster: Arc<dyn Cluster>,
    exporter: Option<Exporter>,
    store: Arc<dyn Store>,
    tasks: AllTasks,
}

impl Node {
    /// Closes all connections, leaves the calls to other nodes, to the next process, or to nobody, and writes what is
    /// queued. Each step has a bound in its part.
    async fn stop(self) {
        let Self { leaving, serving, calls, cluster, exporter, store, tasks } = self;
        tasks.connections.stop();
        if let Leaving::Resumable = leaving {
            // The grace of a device that leaves now begins when the next process has started.
            tasks.deadlines.stop();
        }
        serving.close(leaving).await;
        match leaving {
            Leaving::ForGood => {}
            // Calls that were placed while connections were closed.
            Leaving::Resumable => calls.end_unresumable().await,
            Leaving::HandOver { window } => {
                calls.hand_over(window).await;
                cluster.stop_listening();
                if timeout(LAST_NEWS, tasks.inbox.ended()).await.is_err() {
                    warn!("not all messages of other nodes were relayed before the end");
                }
            }
        }
        tasks.deadlines.stop();
        cluster.leave().await;
        tasks.inbox.stop();
        tasks.writes.stop();
        if let Some(exporter) = exporter {
            exporter.finish().await;
        }
        for group in [&tasks.connections, &tasks.inbox, &tasks.deadlines, &tasks.writes] {
            group.ended().await;
        }
        store.close().await;
        tasks.operators.stop();
        tasks.operators.ended().await;
    }
}

fn log_start(config: &Config) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        auth = config.auth.as_str(),
        backend = config.redis_url.as_ref().map_or("embedded".to_owned(), ToString::to_string),
        database = %config.database_url,
        "switchboard starts"
    );
}

/// The recorder of calls, and the writer behind it.
fn record(
    store: Arc<dyn Store>,
    cluster: Arc<dyn Cluster>,
    clock: &Clock,
    health: &Health,
) -> (Recorder, Writer) {
    let node = cluster.node();
    let (recorder, writer) = history::recorder(store, cluster, health.clone());
    (recorder, writer.beating(node, clock.clone()))
}

fn keeper(config: &Config, store: Arc<dyn Store>, clock: Clock, health: Health) -> Keeper {
    // In a file with one node's part, an end is often missing because another node has it.
    let longest_call =
        (!is_partial(config)).then(|| config.rules.max_call_duration + ORPHAN_MARGIN);
    Keeper { store, clock, retention: config.history_retention, longest_call, health }
}

/// The cluster of the settings, its incoming messages, the way to leave it, and its clock.
async fn join(
    config: &Config,
    node: NodeId,
    keeps_calls: bool,
    health: &Health,
    buffers: &Buffers,
) -> Result<(Arc<dyn Cluster>, Receiver<Inbound>, Leaving, Clock), StartError> {
    let Some(url) = &config.redis_url else {
        let (memory, inbox) = Hub::default().node(node);
        let leaving = if keeps_calls { Leaving::Resumable } else { Leaving::ForGood };
        return Ok((memory, inbox, leaving, Clock::System));
    };
    let clock = SharedClock::starting_at(Clock::System.now());
    let namespace = &config.namespace;
    let (clock_, health) = (clock.clone(), health.clone());
    let joined = Redis::join(url.expose(), namespace, node, clock_, health, buffers).await;
    let (redis, inbox) = joined.map_err(StartError::Redis)?;
    let leaving = Leaving::HandOver { window: config.drain_window };
    Ok((redis, inbox, leaving, Clock::Shared(clock)))
}

/// Adds the authorization backend, if the settings name one.
fn guarded(calls: Calls, settings: Option<authorize::Settings>) -> Result<Calls, StartError> {
    let Some(settings) = settings else { return Ok(calls) };
    let authorizer = BackendAuthorizer::new(settings).map_err(StartError::Authorize)?;
    Ok(calls.authorized_by(Arc::new(authorizer)))
}

/// The recorder of spans and their exporter, if the settings name a collector.
fn start_traces(
    settings: Option<telemetry::Settings>,
    node: NodeId,
    clock: &Clock,
) -> Result<(Traces, Option<Exporter>), StartError> {
    let Some(settings) = settings else { return Ok((Traces::default(), None)) };
    let started = telemetry::start(settings, &node.to_string(), clock.clone());
    let (traces, exporter) = started.map_err(StartError::Traces)?;
    Ok((traces, Some(exporter)))
}

/// Sets the gauges that are sampled at each scrape.
fn sampler(
    health: Health,
    serving: Arc<Serving>,
    calls: Arc<Calls>,
    recorder: Recorder,
) -> impl Fn() + Send + Sync {
    move || {
        metrics::READY.set(f64::from(u8::from(health.is_ready())));
        for part in Part::ALL {
            metrics::TROUBLES.of(part).set(f64::from(u8::from(health.is_troubled(part))));
        }
        serving.sample();
        calls.sample();
        metrics::BACKLOG_ROWS.set(as_gauge(recorder.backlog().len()));
        metrics::BACKLOG_AGE.set(recorder.backlog().age());
    }
}

async fn listen_for_clients(address: SocketAddr) -> Result<(Server, SocketAddr), StartError> {
    let in_use = |source| StartError::Listen { address, source };
    let server = Server::bind(address).await.map_err(in_use)?;
    let bound = server.address().map_err(in_use)?;
    Ok((server, bound))
}

async fn listen_for_admins(address: SocketAddr) -> Result<Server, StartError> {
    let in_use = |source| StartError::AdminListen { address, source };
    let server = Server::bind(address).await.map_err(in_use)?;
    let bound = server.address().map_err(in_use)?;
    info!("health and metrics are at http://{bound}/");
    Ok(server)
}

/// Applies the missing migrations to the database of the history, and says which.
pub async fn migrate(config: &Config) -> Result<String, StartError> {
    let url = &config.database_url;
    let migrated = if is_postgres(url) {
        let refuse = |source| StartError::Postgres { url: url.to_string(), source };
        Postgres::migrate(url.expose()).await.map_err(refuse)?
    } else {
        let refuse = |source| StartError::Database { url: url.to_string(), source };
        let (store, migrated) = Sqlite::migrate(url.expose()).await.map_err(refuse)?;
        store.close().await;
        migrated
    };
    Ok(format!("{url}: {migrated}"))
}

/// What [`migrate`] would do to the database of the history, after its URL. Changes nothing.
pub async fn plan(config: &Config) -> Result<Plan, StartError> {
    let url = &config.database_url;
    if is_postgres(url) {
        let refuse = |source| StartError::Postgres { url: url.to_string(), source };
        let examined = Postgres::examine(url.expose(), Clock::System.now()).await;
        return Ok(examined.map_err(refuse)?.plan);
    }
    let refuse = |source| StartError::Database { url: url.to_string(), source };
    Sqlite::plan(url.expose()).await.map_err(refuse)
}

/// Whether the history has only this node's changes: one SQLite file per node, with calls that span nodes.
fn is_partial(config: &Config) -> bool {
    config.redis_url.is_some() && !is_postgres(&config.database_url)
}

/// The history, and the calls that the run before left live in it, each with when it was last known to live. None of
/// them if calls do not live in this process alone, or its history cannot keep them.
async fn open_store(
    config: &Config,
) -> Result<(Arc<dyn Store>, Option<Vec<(Call, Timestamp)>>), StartError> {
    let url = &config.database_url;
    if is_postgres(url) {
        let refuse = |source| StartError::Postgres { url: url.to_string(), source };
        let postgres = Postgres::open(url.expose()).await.map_err(refuse)?;
        let left_live = match config.redis_url {
            None => take_live(&postgres).await,
            Some(_) => None,
        };
        return Ok((Arc::new(Measured(Arc::new(postgres))), left_live));
    }
    let refuse = |source| StartError::Database { url: url.to_string(), source };
    let store = Sqlite::open(url.expose()).await.map_err(refuse)?;
    if is_partial(config) {
        warn!(
            "history is kept in SQLite, so each node has a part of it only, where calls may lack \
             their end: for one whole history of all nodes use Postgres"
        );
        return Ok((Arc::new(Measured(Arc::new(store))), None));
    }
    let left_live = store.left_live().await.map_err(refuse)?;
    Ok((Arc::new(Measured(Arc::new(store))), Some(left_live)))
}

/// The calls that the process before this one left in Postgres, if this one may keep its own there.
async fn take_live(postgres: &Postgres) -> Option<Vec<(Call, Timestamp)>> {
    match postgres.take_live().await {
        Ok(Some(left_live)) => Some(left_live),
        Ok(None) => {
            warn!(
                "another process without Redis keeps its live calls in this database: the calls of this one \
                 end with it"
            );
            None
        }
        Err(error) => {
            warn!(%error, "live calls cannot be kept in the database: they end with this process");
            None
        }
    }
}

/// Resumes the calls that the process before this one left, and ends the rows of those that cannot go on.
async fn resume(
    database_url: &ServiceUrl,
    store: &dyn Store,
    calls: &Calls,
    left: Vec<(Call, Timestamp)>,
) -> Result<(), StartError> {
    // The embedded cluster is always there.
    let resumed = calls.resume(&left).await.unwrap_or_default();
    if is_postgres(database_url) {
        let over: Vec<_> =
            left.into_iter().filter(|(call, _)| !resumed.contains(&call.id)).collect();
        if let Err(error) = history::close_left(store, &over).await {
            warn!(%error, calls = over.len(), "rows of calls of the last run stay without an end");
        }
        return Ok(());
    }
    // Nobody else can hold the calls that an earlier run left open: the file is ours alone.
    let made_before = Clock::System.now() + ORPHAN_MARGIN;
    let closed = history::close_orphans_but(store, made_before, &resumed).await;
    closed.map_err(|source| StartError::Database { url: database_url.to_string(), source })
}
