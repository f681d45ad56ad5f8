//! All metrics: name, help, unit, buckets, and label values. docs/reference/metrics.md lists them, which a test checks.

mod family;
mod process;

use std::{
    fmt::Write as _,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

pub use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::family::Label;
use self::family::{Family, Kind};
pub use self::process::open_files;
use crate::{
    call::{CallType, EndReason, Signal},
    health::Part,
    protocol::ErrorType,
    time::Clock,
};

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($variant:ident = $text:expr),+ $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    Transport { Websocket = "websocket", Polling = "polling" }
    /// The cause of a closed socket.
    Closed { Client = "client", Transport = "transport", Heartbeat = "heartbeat", Server = "server" }
    /// The reason for closing a slow client.
    Slow { Queue = "queue", Stalled = "stalled", Body = "body", Budget = "budget" }
    /// The buffers of the node.
    Buffer {
        Frames = "frames", Inboxes = "inboxes", Clients = "clients", Calls = "calls", Links = "links",
    }
    Live { Ringing = "ringing", Active = "active", Reconnecting = "reconnecting" }
    /// The outcome of a call attempt.
    Outcome {
        Ringing = "ringing", Busy = "busy", Offline = "offline", Repeated = "repeated",
        SelfCall = "self_call", InCall = "call_in_progress", Glare = "glare",
        Unavailable = "unavailable", Refused = "refused",
    }
    Ring { Answered = "answered", Unanswered = "unanswered" }
    /// Whether both devices are on one node.
    Path { Local = "local", Remote = "remote" }
    /// Client events; see `protocol/catalogue.rs`.
    Received {
        UserConnected = "user-connected", Initiate = "call:initiate", Offer = "call:offer",
        Answer = "call:answer", Candidate = "call:ice-candidate", Reject = "call:reject",
        Busy = "call:busy", End = "call:end", Sync = "call:sync", Stats = "call:stats",
        Subscribe = "presence:subscribe", Unsubscribe = "presence:unsubscribe",
        IceServers = "ice:servers", Refresh = "auth:refresh", Unknown = "unknown",
    }
    /// Server events; see `ServerEvent::name`.
    Sent {
        Incoming = "call:incoming", Ringing = "call:ringing", Offer = "call:offer",
        Answer = "call:answer", Candidate = "call:ice-candidate", Rejected = "call:rejected",
        Busy = "call:busy", Ended = "call:ended", Resumed = "call:resumed",
        PeerReconnecting = "call:peer-reconnecting", PeerReconnected = "call:peer-reconnected",
        Presence = "presence:update", Error = "call:error", Draining = "server:draining",
        Ack = "ack", Other = "other",
    }
    Limit {
        Inbox = "inbox", ClientQueue = "client_queue", Waiting = "waiting", Watched = "watched",
        Decisions = "decisions", Sweep = "sweep", NodeQueue = "node_queue",
        NodeInbox = "node_inbox", Backlog = "history_backlog", Events = "events",
        Candidates = "candidates", Flood = "flood", Bytes = "bytes", CallAttempts = "call_attempts",
        UserSockets = "user_sockets", AddressSockets = "address_sockets", Sockets = "sockets",
        Handshakes = "handshakes", FailedTokens = "failed_tokens", Floods = "floods", Identify = "identify",
        Remembered = "remembered", Connections = "connections", Posts = "posts",
        Buffers = "buffers", Acks = "acks", PendingWork = "pending_work",
        Frames = "frames", Unjoined = "unjoined", Requests = "requests",
        AddressRequests = "address_requests", HistoryReads = "history_reads",
        PresenceIds = "presence_ids", AddressPresenceIds = "address_presence_ids",
        PresenceTurns = "presence_turns",
    }
    /// The reason for a refused connection or request.
    Refused {
        TokenMissing = "token_missing", TokenTooLong = "token_too_long",
        TokenUnreadable = "token_unreadable", TokenAlgorithm = "token_algorithm",
        TokenUnknownKey = "token_unknown_key", TokenSignature = "token_signature",
        TokenExpired = "token_expired", TokenTooEarly = "token_too_early",
        TokenIssuer = "token_issuer", TokenAudience = "token_audience",
        TokenSubject = "token_subject", TokenNoTime = "token_no_time", TokenKeys = "token_keys",
        Origin = "origin", Host = "host", HostHeader = "host_header",
        Protocol = "handshake_protocol", Transport = "handshake_transport",
        Websocket = "handshake_websocket", Session = "handshake_session",
    }
    Found { Overdue = "overdue", Unstored = "unstored", Nothing = "nothing" }
    Invariant { EndChanged = "end_changed", NotAParty = "not_a_party" }
    Command {
        Look = "look", Mark = "mark", Commit = "commit", Load = "load", Live = "live", Due = "due",
        Unstored = "unstored", Settle = "settle", Bury = "bury", Unseen = "unseen", Beat = "beat", Publish = "publish",
        Other = "other",
    }
    Connection { Commands = "commands", Messages = "messages", Lease = "lease" }
    /// The kinds of messages on a node's channel.
    Publish { Messages = "messages", Progress = "progress", Ask = "ask", Receipt = "receipt", Canary = "canary" }
    /// Messages between nodes.
    Said {
        Call = "call", Rings = "rings", Kept = "kept", Relay = "relay", Flush = "flush",
        Flushing = "flushing", Flushed = "flushed", Presence = "presence", Disconnect = "disconnect",
        Void = "void", Dropped = "dropped",
    }
    /// The kinds of pending work; see `calls/pending.rs`.
    Work {
        SignOff = "sign_off", Welcome = "welcome", Presence = "presence", Commit = "commit",
        NewCall = "new_call", Flush = "flush", Recovery = "recovery",
    }
    /// The reason for a dropped span.
    LostSpan { Queue = "queue", Export = "export", Rejected = "rejected", Late = "late" }
    Operation {
        Save = "save", List = "list", Get = "get", Open = "open", Stats = "stats", Tidy = "tidy",
        Beat = "beat",
    }
    /// The media path: direct, or through a TURN server.
    Media { Direct = "direct", Relayed = "relayed", Unknown = "unknown" }
    Candidate { Host = "host", Srflx = "srflx", Prflx = "prflx", Relay = "relay", Unknown = "unknown" }
    Ice {
        New = "new", Checking = "checking", Connected = "connected", Completed = "completed",
        Disconnected = "disconnected", Failed = "failed", Closed = "closed", Unknown = "unknown",
    }
    Version { This = env!("CARGO_PKG_VERSION") }
}

/// The label with this text; `or` if there is none.
pub fn label<L: Label>(text: &str, or: L) -> L {
    L::ALL.iter().copied().find(|label| label.as_str() == text).unwrap_or(or)
}

macro_rules! label_of {
    ($($kind:ty: $all:expr, $text:expr;)*) => {$(
        impl Label for $kind {
            const ALL: &'static [Self] = &$all;

            fn as_str(self) -> &'static str {
                #[allow(clippy::redundant_closure_call)]
                ($text)(self)
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

label_of! {
    CallType: CallType::ALL, CallType::as_str;
    EndReason: EndReason::ALL, EndReason::as_str;
    ErrorType: ErrorType::ALL, ErrorType::as_str;
    Part: Part::ALL, Part::as_str;
    Signal: Signal::ALL, Signal::as_str;
}

/// A metric of the table below.
struct Definition {
    kind: &'static str,
    name: &'static str,
    buckets: &'static [f64],
    /// Creates all series, at 0.
    begin: fn(),
}

macro_rules! metrics {
    ($($kind:ident $metric:ident [$($label:literal: $of:ty),*] $name:literal $help:literal
        $(in $buckets:ident)?;)*) => {
        $(
            #[doc = $help]
            pub static $metric: LazyLock<Family<metrics!(@labels $($of),*), $kind>> =
                LazyLock::new(|| Family::new($name, &[$($label),*]));
        )*

        const DEFINITIONS: &[Definition] = &[$(Definition {
            kind: <$kind as Kind>::NAME,
            name: $name,
            buckets: metrics!(@buckets $($buckets)?),
            begin: || {
                <$kind as Kind>::describe($name, $help);
                LazyLock::force(&$metric);
            },
        }),*];
    };
    (@labels) => { () };
    (@labels $one:ty) => { $one };
    (@labels $one:ty, $other:ty) => { ($one, $other) };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

/// Seconds that a user waits.
const WAITS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0];
/// Seconds of a call.
const TALKS: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 180.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 43_200.0,
];
/// Seconds within this service.
const RELAYS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    5.0,
];
/// Seconds of a dependency.
const ANSWERS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];
/// Seconds between two devices.
const TRIPS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0];
/// Shares of packets.
const SHARES: &[f64] = &[0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5];

metrics! {
    Gauge BUILD["version": Version] "switchboard_build_info" "The running version; always 1.";
    Gauge READY[] "switchboard_ready" "1 while /readyz answers 200.";
    Gauge TROUBLES["part": Part] "switchboard_trouble" "1 while this part does not work, as in /readyz.";

    Gauge CLOCK_OFFSET[] "switchboard_clock_offset_seconds"
        "How far the cluster's time is ahead of Redis': not 0 after Redis' time of day was set anew.";
    Counter LOG_LINES_DROPPED[] "switchboard_log_lines_dropped_total"
        "Lines of the log that were dropped because nobody read those before them.";

    Gauge SOCKETS["transport": Transport] "switchboard_sockets" "Connected sockets of this node.";
    Gauge USERS[] "switchboard_users" "Users with a socket on this node.";
    Counter SOCKETS_JOINED[] "switchboard_sockets_joined_total" "Sockets that have identified their user.";
    Counter SOCKETS_CLOSED["cause": Closed] "switchboard_sockets_closed_total"
        "Closed sockets, by cause: a disconnect of the client, its transport, a missed heartbeat, this node.";
    Counter CONNECTIONS_REFUSED["type": ErrorType] "switchboard_connections_refused_total"
        "Refused sockets, by error.";
    Counter REFUSED["reason": Refused] "switchboard_refused_total"
        "Requests and sockets turned away for their token, origin, host or handshake, by reason.";
    Counter SLOW_CLIENTS["why": Slow] "switchboard_slow_clients_closed_total"
        "Clients cut off because they do not read: too much waited for them, they took nothing for 10 s, or they held the most when the node's byte budget was used up.";
    Counter RECEIVED["event": Received] "switchboard_client_messages_received_total" "Events from clients.";
    Counter RECEIVED_BYTES["event": Received] "switchboard_client_received_bytes_total"
        "Bytes of events from clients, as JSON.";
    Counter SENT["event": Sent] "switchboard_client_messages_sent_total" "Events and acks to clients.";
    Counter SENT_BYTES["event": Sent] "switchboard_client_sent_bytes_total"
        "Bytes of events to clients: the relayed payload, and 256 for the fields around it. Without acks.";
    Counter ERRORS["type": ErrorType] "switchboard_errors_total" "Refused events, by error.";
    Counter ACKS_UNDELIVERED[] "switchboard_acks_undelivered_total"
        "Messages whose senders were told to send them again: they were not known to be with their receiver's node in 5 s.";
    Counter LIMITS["limit": Limit] "switchboard_limits_hit_total" "Times that a bound was reached, by bound.";
    Gauge BUFFERED["buffer": Buffer] "switchboard_buffered_bytes"
        "Bytes that this node buffers: unfinished messages of clients, events that wait to be handled, what waits for clients, for devices of calls, and for or from other nodes.";
    Gauge BUFFER_BUDGET[] "switchboard_buffer_budget_bytes" "How many bytes this node may buffer in all.";

    Gauge CALLS["state": Live] "switchboard_calls"
        "Live calls, each on the node of the caller's device.";
    Counter ATTEMPTS["type": CallType, "outcome": Outcome] "switchboard_call_attempts_total"
        "Call attempts, by immediate outcome.";
    Counter ENDED["reason": EndReason, "type": CallType] "switchboard_calls_ended_total"
        "Ended calls, each on the node that ended it.";
    Histogram RING["outcome": Ring] "switchboard_call_ring_seconds"
        "From the attempt to the answer, or to the end without one." in WAITS;
    Histogram SETUP[] "switchboard_call_setup_seconds"
        "From the attempt until the first answer is sent to the caller." in WAITS;
    Histogram DURATION["type": CallType] "switchboard_call_duration_seconds"
        "From the answer to the end, of answered calls." in TALKS;
    Counter DEVICES_LOST[] "switchboard_call_devices_lost_total"
        "Devices that lost their connection during a call and may return.";
    Counter DEVICES_RETURNED[] "switchboard_call_devices_returned_total"
        "Devices that returned to their call.";
    Histogram RELAY["event": Signal, "path": Path] "switchboard_relay_seconds"
        "From one socket to the other, for messages relayed at once; remote has an error of 1 to 2 ms." in RELAYS;
    Gauge PENDING_WORK["kind": Work] "switchboard_pending_work"
        "Steps of this node that wait for Redis or for another node, by kind.";
    Counter CONFLICTS[] "switchboard_decisions_repeated_total"
        "Decisions repeated because the call was changed concurrently.";
    Counter SWEEPS[] "switchboard_sweeps_total" "Sweeps for calls whose deadline has passed.";
    Counter SWEEPS_FAILED[] "switchboard_sweeps_failed_total"
        "Failed sweeps, and failed look-ups of live calls.";
    Counter SWEPT["found": Found] "switchboard_sweep_calls_total"
        "Calls found by sweeps: overdue, not stored yet, or handled by others meanwhile.";
    Histogram LATENESS[] "switchboard_sweep_lateness_seconds"
        "Delay between the deadline of a call and its sweep." in WAITS;
    Counter INVARIANTS["invariant": Invariant] "switchboard_invariant_violations_total"
        "Violated invariants. Anything but 0 is a fault of this service, or of a Redis that lost writes.";

    Histogram MEDIA_ROUND_TRIP["media": Media] "switchboard_media_round_trip_seconds"
        "Round trip between two devices, as reported by clients." in TRIPS;
    Histogram MEDIA_LOSS["media": Media] "switchboard_media_loss_ratio"
        "Packet loss towards the reporting device, 0 to 1." in SHARES;
    Histogram MEDIA_JITTER["media": Media] "switchboard_media_jitter_seconds"
        "Audio jitter, as reported by clients." in TRIPS;
    Counter MEDIA_REPORTS["candidate": Candidate] "switchboard_media_reports_total"
        "Client reports, by type of their selected candidate; relay means through TURN.";
    Counter MEDIA_ICE["state": Ice] "switchboard_media_ice_states_total"
        "Client reports, by ICE state.";

    Histogram REDIS["command": Command] "switchboard_redis_command_seconds"
        "Latency of Redis, by script or command." in ANSWERS;
    Counter REDIS_ERRORS["command": Command] "switchboard_redis_errors_total"
        "Commands that failed or timed out.";
    Counter REDIS_RECONNECTS["connection": Connection] "switchboard_redis_reconnects_total"
        "Reconnections to Redis.";
    Counter PUBLISHES["content": Publish] "switchboard_node_publishes_total"
        "Publishes for other nodes, each a batch of messages.";
    Counter PUBLISHES_UNHEARD[] "switchboard_node_publishes_unheard_total"
        "Publishes without a receiver.";
    Counter NODE_SENT["message": Said] "switchboard_node_messages_sent_total"
        "Messages queued for other nodes.";
    Counter NODE_RECEIVED["message": Said] "switchboard_node_messages_received_total"
        "Messages from other nodes, without duplicates.";
    Counter NODE_RESENT[] "switchboard_node_messages_resent_total"
        "Retransmitted messages: without a receiver before, or requested again.";
    Counter NODE_DROPPED[] "switchboard_node_messages_dropped_total"
        "Messages for other nodes dropped at a full queue.";
    Counter NODE_LOST[] "switchboard_node_messages_lost_total"
        "Messages of other nodes that are lost for good.";
    Counter NODE_GAPS[] "switchboard_node_gaps_total"
        "Gaps in the messages of another node, which were requested again.";
    Gauge NODE_QUEUE[] "switchboard_node_queue_messages" "Messages queued for other nodes now.";
    Counter DEAD_NODES[] "switchboard_dead_nodes_total"
        "Dead nodes, each on the node that evicted its last users.";
    Counter RESTORED[] "switchboard_records_restored_total"
        "Records restored because Redis had lost them or had an older version.";
    Counter RESETS[] "switchboard_cluster_resets_total"
        "Times that this node announced its users again and re-read its calls.";

    Histogram STORE["operation": Operation] "switchboard_history_seconds"
        "Latency of the database, by operation." in ANSWERS;
    Counter STORE_ERRORS["operation": Operation] "switchboard_history_errors_total"
        "Operations that failed or timed out.";
    Counter STORE_CONNECTIONS[] "switchboard_history_connections_total"
        "Connections opened to Postgres, including replacements.";
    Counter ROWS_WRITTEN[] "switchboard_history_rows_written_total" "Written history rows.";
    Counter ROWS_REFUSED[] "switchboard_history_rows_refused_total"
        "Rows that the database refused for good.";
    Gauge UNSTORED_CALLS[] "switchboard_history_unstored_calls"
        "Ended calls of all nodes that wait in the cluster for history.";
    Counter UNSTORED_LOST[] "switchboard_history_unstored_lost_total"
        "Ended calls that are lost to history: too many waited, or for too long.";
    Gauge BACKLOG_ROWS[] "switchboard_history_backlog_rows" "Rows waiting to be written.";
    Gauge BACKLOG_AGE[] "switchboard_history_backlog_age_seconds"
        "Age of the oldest waiting row; 0 without one.";

    Counter SPANS_EXPORTED[] "switchboard_spans_exported_total" "Spans accepted by the collector.";
    Counter SPANS_DROPPED["why": LostSpan] "switchboard_spans_dropped_total"
        "Dropped spans: the queue was full, the export failed, the collector rejected them, or the node had stopped.";
}

/// Metrics of the process: kind, name, help.
const PROCESS: [(&str, &str, &str); 5] = [
    ("gauge", "process_resident_memory_bytes", "Resident memory."),
    ("gauge", "process_open_fds", "Open files and connections."),
    ("gauge", "process_max_fds", "Limit of open files."),
    ("counter", "process_cpu_seconds_total", "CPU time used, user and system."),
    ("gauge", "process_start_time_seconds", "Start of the process, in Unix time."),
];

/// All metrics, as kind and name.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = DEFINITIONS.iter().map(|definition| (definition.kind, definition.name));
    own.chain(PROCESS.iter().map(|(kind, name, _)| (*kind, *name)))
}

/// Counts a violated invariant.
pub fn violated(invariant: Invariant) {
    INVARIANTS.of(invariant).increment(1);
}

/// Renders all metrics. Cheap to clone.
#[derive(Clone)]
pub struct Exposition {
    handle: PrometheusHandle,
    started_ms: u64,
    sample: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>,
}

/// Installs the recorder for the whole process. Must be called before anything is counted.
pub fn install() -> Result<Exposition, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for Definition { name, buckets, .. } in DEFINITIONS {
        if !buckets.is_empty() {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    for definition in DEFINITIONS {
        (definition.begin)();
    }
    BUILD.of(Version::This).set(1.0);
    let started_ms = Clock::System.now().as_millis();
    Ok(Exposition { handle, started_ms, sample: Arc::default() })
}

impl Exposition {
    /// Registers the function that sets gauges at each scrape.
    pub fn sample_with(&self, sample: impl Fn() + Send + Sync + 'static) {
        // There is one service per process.
        let _ = self.sample.set(Box::new(sample));
    }

    /// Drains histogram samples, forever: they would accumulate without scrapes.
    pub async fn keep_up(self) {
        const PAUSE: Duration = Duration::from_secs(5);
        loop {
            tokio::time::sleep(PAUSE).await;
            self.handle.run_upkeep();
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        if let Some(sample) = self.sample.get() {
            sample();
        }
        let mut text = self.handle.render();
        let Some(process) = process::figures() else { return text };
        let seconds = |ms: u64| format!("{}.{:03}", ms / 1_000, ms % 1_000);
        let values = [
            Some(process.resident_bytes.to_string()),
            Some(process.open_fds.to_string()),
            process.max_fds.map(|fds| fds.to_string()),
            Some(seconds(u64::try_from(process.cpu.as_millis()).unwrap_or(u64::MAX))),
            Some(seconds(self.started_ms)),
        ];
        for ((kind, name, help), value) in PROCESS.iter().zip(values) {
            if let Some(value) = value {
                let lines = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
                text.write_str(&lines).expect("a string takes all");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::catalogue::CLIENT_MESSAGES;

    fn in_order<L: Label>() {
        for (place, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), place, "{}", label.as_str());
        }
    }

    #[test]
    fn labels_of_other_modules_are_counted_where_they_stand() {
        in_order::<CallType>();
        in_order::<EndReason>();
        in_order::<ErrorType>();
        in_order::<Part>();
        in_order::<Signal>();
    }

    #[test]
    fn every_event_of_clients_is_counted_by_its_name() {
        for message in &CLIENT_MESSAGES {
            let found = label(message.name, Received::Unknown);
            assert_ne!(found, Received::Unknown, "{}", message.name);
        }
        assert_eq!(CLIENT_MESSAGES.len() + 1, Received::ALL.len());
        assert_eq!(label("nonsense", Received::Unknown), Received::Unknown);
    }

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let mut names: Vec<_> = all().map(|(_, name)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DEFINITIONS.len() + PROCESS.len());
        for (kind, name) in all() {
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        }
        for Definition { name, buckets, kind, .. } in DEFINITIONS {
            assert_eq!(*kind == "histogram", !buckets.is_empty(), "{name}");
            assert!(buckets.is_sorted(), "{name}");
        }
    }
}
