//! The settings of limits: names, defaults, syntax.

use std::{fmt, str::FromStr, time::Duration};

use super::{
    bucket::Quota,
    budget::{REFUSALS, UNIT_BYTES},
};
use crate::protocol::{MAX_MESSAGE_BYTES, MAX_WATCHED_USERS, Sizes};

/// The limits. None: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Events of one socket, except candidates and the events that end a call.
    pub events: Option<Quota>,
    /// `call:ice-candidate` of one socket.
    pub candidates: Option<Quota>,
    /// Packets of one connection of any kind: websocket frames, packets and requests on polling. By
    /// default, as many as a socket with all its events, candidates and refusals may send.
    pub frames: Option<Quota>,
    /// `call:initiate` of one user.
    pub call_attempts: Option<Quota>,
    /// Requests for history and presence over HTTP of one user.
    pub requests: Option<Quota>,
    /// The same of one address.
    pub address_requests: Option<Quota>,
    /// Concurrent readings of history over HTTP of one user; of one address where there is no
    /// authentication.
    pub history_reads: Option<u32>,
    /// User ids in `presence:subscribe` and in requests for presence of one user.
    pub presence_ids: Option<Quota>,
    /// User ids in requests for presence over HTTP of one address.
    pub address_presence_ids: Option<Quota>,
    /// Sockets of one user at a time.
    pub user_sockets: Option<u32>,
    /// Sockets of one address at a time.
    pub address_sockets: Option<u32>,
    /// Connections that one address opens.
    pub handshakes: Option<Quota>,
    /// Invalid tokens of one address.
    pub failed_tokens: Option<Quota>,
    /// Connections of one address that are closed because they exceed a limit.
    pub floods: Option<Quota>,
    /// Sockets of this node.
    pub sockets: Option<u32>,
    /// Time for a socket to identify its user.
    pub identify: Duration,
    /// Bound on a message of the transport, in bytes.
    pub message_bytes: usize,
    /// The node's byte budget.
    pub buffer_bytes: usize,
    pub sizes: Sizes,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            events: Some(Quota::new(200, Duration::from_secs(4))),
            candidates: Some(Quota::new(500, Duration::from_secs(2))),
            frames: Some(Quota::new(2_000, FRAMES_PERIOD)),
            call_attempts: Some(Quota::new(30, Duration::from_mins(1))),
            requests: Some(Quota::new(600, Duration::from_mins(1))),
            address_requests: Some(Quota::new(6_000, Duration::from_mins(1))),
            history_reads: Some(2),
            presence_ids: Some(Quota::new(5_000, Duration::from_mins(1))),
            address_presence_ids: Some(Quota::new(50_000, Duration::from_mins(1))),
            user_sockets: Some(50),
            address_sockets: Some(2_000),
            handshakes: Some(Quota::new(1_000, Duration::from_secs(10))),
            failed_tokens: Some(Quota::new(60, Duration::from_mins(1))),
            floods: Some(Quota::new(50, Duration::from_secs(10))),
            sockets: Some(20_000),
            identify: Duration::from_secs(10),
            message_bytes: MAX_MESSAGE_BYTES,
            buffer_bytes: 256 * MIB,
            sizes: Sizes::default(),
        }
    }
}

/// The time over which frames are counted.
const FRAMES_PERIOD: Duration = Duration::from_secs(5);
/// The bytes that a connection may send whatever the limit on events.
const BYTES: Quota = Quota::new(400 * UNIT_BYTES, Duration::from_secs(4));
/// The permitted values of `identify`.
const IDENTIFY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_mins(10);
/// Largest configurable message: the bounds of queues assume it.
const MAX_BYTES: usize = 1024 * 1024;
/// Largest configurable SDP: one must fit into the buffer for a disconnected device.
const MAX_SDP_BYTES: usize = 128 * 1024;
/// Largest configurable candidate and `callerInfo`.
const MAX_SMALL_BYTES: usize = 64 * 1024;
const MIB: usize = 1024 * 1024;
/// The least value of `buffers`. Below it, a few calls would be refused.
const MIN_BUFFER_BYTES: usize = 4 * MIB;
const MAX_BUFFER_BYTES: usize = 1024 * 1024 * MIB;
/// Overhead of a message around a description.
const FRAME_BYTES: usize = 4 * 1024;

impl Settings {
    /// The defaults with `changes` such as `events=200/4s`, in order. `off` alone removes all limits that can be removed:
    /// times and sizes stay.
    ///
    /// # Errors
    /// One sentence for an unknown limit or an invalid value.
    pub fn with(changes: &[String]) -> Result<Self, String> {
        let mut settings = Self::default();
        for change in changes {
            settings.change(change.trim())?;
        }
        if settings.frames.is_some() && !changes.iter().any(|one| one.trim().starts_with("frames="))
        {
            // A higher limit on events raises the default limit on frames.
            let parts = settings.events.zip(settings.candidates);
            settings.frames = parts.map(|(events, candidates)| {
                Quota::sum(&[events, candidates, REFUSALS], FRAMES_PERIOD)
            });
        }
        let least = settings.sizes.description_bytes() + FRAME_BYTES;
        if settings.message_bytes < least {
            return Err(format!("message: with this sdp, expected {least} or more"));
        }
        Ok(settings)
    }

    /// The bytes of a connection: twice the bytes that its events may have, so that a client learns of refused events
    /// before its connection is closed.
    pub fn bytes(&self) -> Option<Quota> {
        self.events.map(|events| BYTES.faster(events.times(2 * UNIT_BYTES)))
    }

    fn change(&mut self, change: &str) -> Result<(), String> {
        if change == "off" {
            *self = Self {
                events: None,
                candidates: None,
                frames: None,
                call_attempts: None,
                requests: None,
                address_requests: None,
                history_reads: None,
                presence_ids: None,
                address_presence_ids: None,
                user_sockets: None,
                address_sockets: None,
                handshakes: None,
                failed_tokens: None,
                floods: None,
                sockets: None,
                ..*self
            };
            return Ok(());
        }
        let (name, value) =
            change.split_once('=').ok_or_else(|| format!("expected NAME=VALUE, not {change:?}"))?;
        let refuse = |expected: String| format!("{name}: expected {expected}, not {value:?}");
        let quota = || unless_off::<Quota>(value, "200/4s").map_err(refuse);
        // One request must fit.
        let ids = || match quota()? {
            Some(ids) if (ids.count() as usize) < MAX_WATCHED_USERS => {
                Err(refuse(format!("{MAX_WATCHED_USERS} user ids or more")))
            }
            ids => Ok(ids),
        };
        let count = || unless_off::<u32>(value, "5000").map_err(refuse);
        let bytes = |most| bytes(value, most).map_err(refuse);
        match name {
            "events" => self.events = quota()?,
            "candidates" => self.candidates = quota()?,
            "frames" => self.frames = quota()?,
            "call-attempts" => self.call_attempts = quota()?,
            "requests" => self.requests = quota()?,
            "address-requests" => self.address_requests = quota()?,
            "history-reads" => self.history_reads = count()?,
            "presence-ids" => self.presence_ids = ids()?,
            "address-presence-ids" => self.address_presence_ids = ids()?,
            "user-sockets" => self.user_sockets = count()?,
            "address-sockets" => self.address_sockets = count()?,
            "handshakes" => self.handshakes = quota()?,
            "failed-tokens" => self.failed_tokens = quota()?,
            "floods" => self.floods = quota()?,
            "sockets" => self.sockets = count()?,
            "identify" => {
                let time = humantime::parse_duration(value).ok();
                let time = time.filter(|time| IDENTIFY.contains(time));
                self.identify = time.ok_or_else(|| refuse("1s to 10m".to_owned()))?;
            }
            "message" => self.message_bytes = bytes(MAX_BYTES)?,
            "buffers" => {
                let bytes = bytes(MAX_BUFFER_BYTES)?;
                if bytes < MIN_BUFFER_BYTES {
                    return Err(refuse("4MiB or more".to_owned()));
                }
                self.buffer_bytes = bytes;
            }
            "sdp" => self.sizes.sdp_bytes = bytes(MAX_SDP_BYTES)?,
            "candidate" => self.sizes.candidate_bytes = bytes(MAX_SMALL_BYTES)?,
            "caller-info" => self.sizes.caller_info_bytes = bytes(MAX_SMALL_BYTES)?,
            _ => {
                return Err(format!(
                    "there is no limit {name:?}; docs/reference/limits.md names all"
                ));
            }
        }
        Ok(())
    }

    /// All limits, in the syntax of [`Settings::with`].
    pub fn list(&self) -> Vec<String> {
        let Self {
            events,
            candidates,
            frames,
            call_attempts,
            requests,
            address_requests,
            history_reads,
            presence_ids,
            address_presence_ids,
            user_sockets,
            address_sockets,
            handshakes,
            failed_tokens,
            floods,
            sockets,
            identify,
            message_bytes,
            buffer_bytes,
            sizes: Sizes { sdp_bytes, candidate_bytes, caller_info_bytes },
        } = self;
        [
            ("events", or_off(events.as_ref())),
            ("candidates", or_off(candidates.as_ref())),
            ("frames", or_off(frames.as_ref())),
            ("call-attempts", or_off(call_attempts.as_ref())),
            ("requests", or_off(requests.as_ref())),
            ("address-requests", or_off(address_requests.as_ref())),
            ("history-reads", or_off(history_reads.as_ref())),
            ("presence-ids", or_off(presence_ids.as_ref())),
            ("address-presence-ids", or_off(address_presence_ids.as_ref())),
            ("user-sockets", or_off(user_sockets.as_ref())),
            ("address-sockets", or_off(address_sockets.as_ref())),
            ("handshakes", or_off(handshakes.as_ref())),
            ("failed-tokens", or_off(failed_tokens.as_ref())),
            ("floods", or_off(floods.as_ref())),
            ("sockets", or_off(sockets.as_ref())),
            ("identify", humantime::format_duration(*identify).to_string().replace(' ', "")),
            ("message", message_bytes.to_string()),
            ("buffers", buffer_bytes.to_string()),
            ("sdp", sdp_bytes.to_string()),
            ("candidate", candidate_bytes.to_string()),
            ("caller-info", caller_info_bytes.to_string()),
        ]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
    }
}

fn or_off(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "off".to_owned(), ToString::to_string)
}

fn unless_off<T: FromStr>(value: &str, example: &str) -> Result<Option<T>, String> {
    if matches!(value, "off" | "0") {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| format!("off or something such as {example}"))
}

/// `4096`, `4KiB` or `4MiB`.
fn bytes(value: &str, most: usize) -> Result<usize, String> {
    let units = [("KiB", 1024), ("MiB", MIB), ("", 1)];
    let strip = |(name, unit)| value.strip_suffix(name).map(|number| (number, unit));
    let (number, unit) = units.into_iter().find_map(strip).unwrap_or((value, 1));
    let bytes = number.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    let bytes = bytes.filter(|bytes| (1..=most).contains(bytes));
    bytes.ok_or_else(|| format!("a number of bytes, such as 4KiB, up to {}KiB", most / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Settings, String> {
        Settings::with(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn each_limit_can_be_set_and_what_is_listed_can_be_read_again() {
        let changed = "events=1/1s,candidates=2/2s,frames=9/9s,call-attempts=3/3s,requests=8/8s,\
                       address-requests=7/7s,history-reads=1,presence-ids=500/1s,address-presence-ids=600/1s,\
                       user-sockets=4,address-sockets=5,\
                       handshakes=6/1m,failed-tokens=off,floods=7/1s,sockets=0,identify=1m30s,message=300KiB,\
                       buffers=64MiB,sdp=70KiB,candidate=1000,caller-info=8KiB";
        let settings = with(changed).unwrap();
        let listed = settings.list();
        let (default, names) = (Settings::default().list(), changed.split(','));
        for ((line, default), name) in listed.iter().zip(&default).zip(names) {
            assert_ne!(line, default);
            assert_eq!(line.split('=').next(), name.split('=').next());
        }
        assert_eq!(Settings::with(&listed), Ok(settings));
        assert_eq!(Settings::with(&default), Ok(Settings::default()));
    }

    #[test]
    fn off_takes_away_what_can_be_taken_away() {
        let off = with("off").unwrap();
        assert_eq!(off.list().iter().filter(|line| line.ends_with("=off")).count(), 15);
        assert_eq!(off.sizes, Sizes::default());
        assert_eq!(with("off,sockets=5").unwrap().sockets, Some(5));
    }

    #[test]
    fn frames_follow_from_events_unless_they_are_said() {
        let frames = |text| with(text).unwrap().frames.map(|frames| frames.to_string());
        assert_eq!(frames("sockets=5"), Some("2000/5s".to_owned()));
        assert_eq!(frames("events=800/1s"), Some("5750/5s".to_owned()));
        assert_eq!(
            (frames("events=off"), frames("off,events=5/1s"), frames("frames=off")),
            (None, None, None)
        );
        assert_eq!(frames("events=off,frames=7/1s"), Some("7/1s".to_owned()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (wrong, mentions) in [
            ("event=1/1s", "event"),
            ("events", "NAME=VALUE"),
            ("events=5", "200/4s"),
            ("presence-ids=499/1s", "500"),
            ("sockets=-5", "sockets"),
            ("sockets=5/1s", "sockets"),
            ("identify=off", "1s"),
            ("identify=500ms", "1s"),
            ("sdp=0", "bytes"),
            ("sdp=200KiB", "128KiB"),
            ("message=2048KiB", "1024KiB"),
            ("message=64KiB", "sdp"),
            ("buffers=off", "bytes"),
            ("buffers=1MiB", "4MiB"),
            ("sdp=128KiB", "message"),
        ] {
            let error = with(wrong).unwrap_err();
            assert!(error.contains(mentions), "{wrong}: {error}");
        }
    }
}
