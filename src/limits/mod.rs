//! Quotas of addresses, users and sockets. Each node counts for itself.
//!
//! [`bucket`], [`table`], [`budget`] and [`address`] are pure: the time is an argument.

pub mod address;
pub mod bucket;
pub mod budget;
pub mod buffers;
mod notice;
mod refusals;
mod settings;
pub mod table;

use std::{
    fmt,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Extensions, HeaderMap, Request};

use self::{
    address::{Proxies, Source},
    bucket::Bucket,
    budget::Kind,
    buffers::Buffers,
    notice::Notices,
    table::{Buckets, Counts, No, Place},
};
pub use refusals::{Refusals, Said};
pub use settings::Settings;

use crate::{
    auth::{Access, CheckError, Identity},
    ids::UserId,
    metrics::{Limit, Refused},
    time::Clock,
};

/// `Retry-After` where it depends on others.
const RETRY: Duration = Duration::from_secs(5);

/// `Retry-After` where a slot is free after the time of one query.
const RETRY_READING: Duration = Duration::from_secs(1);

/// The limits, and how much of them is used.
pub struct Limits {
    settings: Settings,
    proxies: Proxies,
    clock: Clock,
    notices: Notices,
    refusals: Arc<Refusals>,
    buffers: Buffers,
    handshakes: Buckets<Source>,
    failed_tokens: Buckets<Source>,
    floods: Buckets<Source>,
    call_attempts: Buckets<UserId>,
    requests: Buckets<UserId>,
    address_requests: Buckets<Source>,
    history_reads: Arc<Counts<Reader>>,
    presence_ids: Buckets<UserId>,
    address_presence_ids: Buckets<Source>,
    sockets: Arc<Counts<()>>,
    address_sockets: Arc<Counts<Source>>,
    user_sockets: Arc<Counts<UserId>>,
}

/// A refusal, and the time to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    pub what: What,
    pub retry_after: Duration,
}

/// The exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Sockets,
    AddressSockets,
    UserSockets,
    Handshakes,
    FailedTokens,
    Floods,
    CallAttempts,
    Requests,
    AddressRequests,
    HistoryReads,
    PresenceIds,
    AddressPresenceIds,
}

/// The key by which concurrent readings of history are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reader {
    User(UserId),
    /// For requests without a verified identity.
    Address(Source),
}

/// A refused token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The token is invalid.
    Token(CheckError),
    /// The token was not checked: its address has sent too many invalid ones.
    TooMany(TooMany),
}

/// A connection's slot in the counts of this node and of its address, released on drop.
#[derive(Debug, Clone)]
pub struct Seat(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    source: Source,
    /// Whether it has tried to join once.
    has_joined: AtomicBool,
    _places: (Place<()>, Place<Source>),
}

/// A socket's slot in the count of its user, released on drop.
pub type UserPlace = Place<UserId>;

/// A reading of history, until it is dropped.
pub type HistoryPlace = Place<Reader>;

impl Limits {
    pub fn new(
        settings: Settings,
        proxies: Proxies,
        clock: Clock,
        refusals: Arc<Refusals>,
    ) -> Self {
        Self {
            settings,
            proxies,
            clock,
            notices: Notices::default(),
            refusals,
            buffers: Buffers::new(settings.buffer_bytes),
            handshakes: Buckets::new(settings.handshakes),
            failed_tokens: Buckets::new(settings.failed_tokens),
            floods: Buckets::new(settings.floods),
            call_attempts: Buckets::new(settings.call_attempts),
            requests: Buckets::new(settings.requests),
            address_requests: Buckets::new(settings.address_requests),
            history_reads: Arc::default(),
            presence_ids: Buckets::new(settings.presence_ids),
            address_presence_ids: Buckets::new(settings.address_presence_ids),
            sockets: Arc::default(),
            address_sockets: Arc::default(),
            user_sockets: Arc::default(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Uses a byte budget that is shared with others.
    #[must_use]
    pub fn buffered_in(mut self, buffers: Buffers) -> Self {
        self.buffers = buffers;
        self
    }

    /// The node's byte budget.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// The address of a request.
    pub fn source_of(&self, extensions: &Extensions, headers: &HeaderMap) -> Source {
        let sender = self.proxies.sender_of(extensions, headers);
        if let Some(proxy) = sender.doubted {
            self.notices.doubted(proxy, self.proxies.header.as_str());
        }
        sender.source
    }

    /// Whether a peer is a trusted proxy.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.proxies.trusted.trust(peer, 0)
    }

    /// Whether a trusted proxy says that it was asked for a host that `is_meant` accepts.
    pub fn forwards_for<B>(&self, request: &Request<B>, is_meant: impl Fn(&str) -> bool) -> bool {
        self.proxies.forwards_for(request.extensions(), request.headers(), is_meant)
    }

    /// A slot for a new connection.
    pub fn open(&self, source: Source) -> Result<Seat, TooMany> {
        let no = |what| {
            self.reached(what, source);
            TooMany { what, retry_after: RETRY }
        };
        let settings = &self.settings;
        let place = self.sockets.enter(&(), settings.sockets);
        let place = place.ok_or_else(|| no(What::Sockets))?;
        self.takes_tokens(source)?;
        let floods = self.floods.check(&source, self.clock.now_us());
        self.answer(floods, What::Floods, source)?;
        self.handshake(source)?;
        let own = self.address_sockets.enter(&source, settings.address_sockets);
        let own = own.ok_or_else(|| no(What::AddressSockets))?;
        let has_joined = AtomicBool::new(false);
        Ok(Seat(Arc::new(Taken { source, has_joined, _places: (place, own) })))
    }

    /// Counts a request as expensive as opening a connection.
    pub fn handshake(&self, source: Source) -> Result<(), TooMany> {
        let taken = self.handshakes.take(&source, self.clock.now_us());
        self.answer(taken, What::Handshakes, source)
    }

    /// Counts an attempt to join; the first of a connection is part of its handshake.
    pub fn join(&self, seat: &Seat) -> Result<(), TooMany> {
        if seat.0.has_joined.swap(true, Ordering::Relaxed) {
            return self.handshake(seat.source());
        }
        Ok(())
    }

    /// A slot for a socket of `user`.
    pub fn enter(&self, user: &UserId) -> Result<UserPlace, TooMany> {
        let place = self.user_sockets.enter(user, self.settings.user_sockets);
        place.ok_or_else(|| {
            self.reached(What::UserSockets, user.logged());
            TooMany { what: What::UserSockets, retry_after: RETRY }
        })
    }

    /// Counts a call attempt.
    pub fn call(&self, user: &UserId) -> Result<(), TooMany> {
        let taken = self.call_attempts.take(user, self.clock.now_us());
        self.answer(taken, What::CallAttempts, user.logged())
    }

    /// Counts a request over HTTP of an address, and of a user if it is one's own.
    pub fn request(&self, user: Option<&UserId>, source: Source) -> Result<(), TooMany> {
        let now_us = self.clock.now_us();
        let taken = self.address_requests.take(&source, now_us);
        self.answer(taken, What::AddressRequests, source)?;
        let Some(user) = user else { return Ok(()) };
        self.answer(self.requests.take(user, now_us), What::Requests, user.logged())
    }

    /// Counts user ids whose presence a user asks for, on a socket or over HTTP.
    pub fn presence_of(&self, ids: usize, user: &UserId) -> Result<(), TooMany> {
        let taken = self.presence_ids.take_many(as_count(ids), user, self.clock.now_us());
        self.answer(taken, What::PresenceIds, user.logged())
    }

    /// Counts user ids whose presence an address asks for over HTTP.
    pub fn presence_from(&self, ids: usize, source: Source) -> Result<(), TooMany> {
        let now_us = self.clock.now_us();
        let taken = self.address_presence_ids.take_many(as_count(ids), &source, now_us);
        self.answer(taken, What::AddressPresenceIds, source)
    }

    /// A place among the readings of history of `reader`: the database has few readers for all.
    pub fn read_history(&self, reader: &Reader) -> Result<HistoryPlace, TooMany> {
        let place = self.history_reads.enter(reader, self.settings.history_reads);
        place.ok_or_else(|| {
            self.reached(What::HistoryReads, reader);
            TooMany { what: What::HistoryReads, retry_after: RETRY_READING }
        })
    }

    /// Whose token this is; None where nobody needs one.
    pub async fn admit(
        &self,
        access: &Access,
        token: Option<&str>,
        source: Source,
    ) -> Result<Option<Identity>, Denied> {
        self.takes_tokens(source)?;
        Ok(self.check_token(access, token, source).await?)
    }

    /// The same, even if that address has sent too many invalid tokens.
    pub async fn check_token(
        &self,
        access: &Access,
        token: Option<&str>,
        source: Source,
    ) -> Result<Option<Identity>, CheckError> {
        let admitted = access.admit(token).await;
        if let Err(error) = admitted {
            self.refuse(error.into(), source, Said::default());
        }
        if let Err(CheckError::Unauthenticated(why)) = admitted
            && why.is_guess()
        {
            // The bucket was checked above. Tokens checked meanwhile count too.
            let _ = self.failed_tokens.take(&source, self.clock.now_us());
        }
        admitted
    }

    /// Records a refused client; `said` is the text that was refused.
    pub fn refuse(&self, reason: Refused, source: Source, said: Said<'_>) {
        self.refusals.note(reason, source, said);
    }

    /// Whether tokens of this address are checked.
    pub fn takes_tokens(&self, source: Source) -> Result<(), TooMany> {
        let left = self.failed_tokens.check(&source, self.clock.now_us());
        self.answer(left, What::FailedTokens, source)
    }

    fn answer(
        &self,
        taken: Result<(), No>,
        what: What,
        who: impl fmt::Display,
    ) -> Result<(), TooMany> {
        match taken {
            Ok(()) => Ok(()),
            Err(No::NotCounted) => {
                self.notices.reached(Limit::Remembered, who, self.clock.now_us());
                Ok(())
            }
            Err(No::Wait(retry_after)) => {
                self.reached(what, who);
                Err(TooMany { what, retry_after })
            }
        }
    }

    fn reached(&self, what: What, who: impl fmt::Display) {
        let limit = match what {
            What::Sockets => Limit::Sockets,
            What::AddressSockets => Limit::AddressSockets,
            What::UserSockets => Limit::UserSockets,
            What::Handshakes => Limit::Handshakes,
            What::FailedTokens => Limit::FailedTokens,
            What::Floods => Limit::Floods,
            What::CallAttempts => Limit::CallAttempts,
            What::Requests => Limit::Requests,
            What::AddressRequests => Limit::AddressRequests,
            What::HistoryReads => Limit::HistoryReads,
            What::PresenceIds => Limit::PresenceIds,
            What::AddressPresenceIds => Limit::AddressPresenceIds,
        };
        self.notices.reached(limit, who, self.clock.now_us());
    }

    /// Counts packets of a connection, whose bucket this is. False if it has sent too many.
    pub fn frames(&self, bucket: &mut Bucket, count: u32) -> bool {
        let Some(quota) = self.settings.frames else { return true };
        count == 0 || bucket.take_many(count, quota, self.clock.now_us()).is_ok()
    }

    /// Counts bytes of a websocket, whose bucket this is. Returns false if it has sent too many.
    pub fn bytes(&self, bucket: &mut Bucket, bytes: usize) -> bool {
        let Some(quota) = self.settings.bytes() else { return true };
        bucket.take_many(as_count(bytes), quota, self.clock.now_us()).is_ok()
    }

    /// Counts packets, or bytes, of a session on polling. Returns false if it has sent too many.
    pub fn polled<K>(&self, buckets: &Buckets<K>, count: u32, session: K) -> bool
    where
        K: Eq + Hash + Clone,
    {
        let taken = buckets.take_many(count, &session, self.clock.now_us());
        !matches!(taken, Err(No::Wait(_)))
    }

    /// A socket sends too much.
    pub fn sends_too_much(&self, kind: Kind, who: impl fmt::Display) {
        let limit = match kind {
            Kind::Event => Limit::Events,
            Kind::Candidate => Limit::Candidates,
        };
        self.notices.reached(limit, who, self.clock.now_us());
    }

    /// Records a connection that is closed because it exceeds a limit. After too many of them, the address may not open
    /// connections for a while.
    pub fn flooded(&self, limit: Limit, source: Source) {
        self.closed(limit, source);
        let _ = self.floods.take(&source, self.clock.now_us());
    }

    /// Records a socket that is closed for one of these reasons.
    pub fn closed(&self, limit: Limit, who: impl fmt::Display) {
        self.notices.reached(limit, who, self.clock.now_us());
    }
}

fn as_count(ids: usize) -> u32 {
    ids.try_into().unwrap_or(u32::MAX)
}

impl Seat {
    pub fn source(&self) -> Source {
        self.0.source
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => user.logged().fmt(f),
            Self::Address(source) => source.fmt(f),
        }
    }
}

impl From<CheckError> for Denied {
    fn from(error: CheckError) -> Self {
        Self::Token(error)
    }
}

impl From<TooMany> for Denied {
    fn from(too_many: TooMany) -> Self {
        Self::TooMany(too_many)
    }
}

impl TooMany {
    /// For `Retry-After`.
    pub fn retry_after_s(&self) -> u64 {
        self.retry_after.as_nanos().div_ceil(1_000_000_000).try_into().unwrap_or(u64::MAX)
    }

    pub fn retry_after_ms(&self) -> u64 {
        self.retry_after.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(u64::MAX)
    }
}

/// In words, for the client.
impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            What::Sockets => "this node has as many connections as it takes",
            What::AddressSockets => "your address has as many connections as it may have",
            What::UserSockets => "this user has as many connections as a user may have",
            What::Handshakes => "your address opens connections too fast",
            What::FailedTokens => "too many tokens from your address were not good",
            What::Floods => {
                "too many connections of your address were closed because they sent too much"
            }
            What::CallAttempts => "you call too often",
            What::Requests => "this user asks too often",
            What::AddressRequests => "your address asks too often",
            What::PresenceIds => "this user asks for the presence of too many users",
            What::AddressPresenceIds => "your address asks for the presence of too many users",
            What::HistoryReads => "this user reads as much history at a time as a user may",
        })?;
        write!(f, ": try again in {} s", self.retry_after_s())
    }
}
