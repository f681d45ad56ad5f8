//! Authentication and permissions of HTTP requests.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{Extensions, HeaderMap, HeaderValue, header};

use super::problem::Problem;
use crate::{
    auth::{Access, CheckError, Identity, Scopes, bearer},
    ids::UserId,
    limits::{Denied, Limits, Reader, address::Source},
    metrics,
};

/// The requester: an extension of every request that has passed [`know_who_asks`].
#[derive(Debug, Clone)]
pub enum Asker {
    /// `open` mode: any user.
    Anybody,
    Known(Identity),
}

impl Asker {
    /// # Errors
    /// For a request that has not passed [`know_who_asks`], so that none is admitted by mistake.
    pub fn of(extensions: &Extensions) -> Result<Self, Problem> {
        let asker = extensions.get::<Self>().cloned();
        asker.ok_or_else(|| Problem::forbidden("Nobody may ask this"))
    }

    /// The user of the request, where `named` is its `userId`. Another user is refused, whether or not that user exists.
    pub fn speaks_for(&self, named: Option<UserId>) -> Result<Option<UserId>, Problem> {
        let Self::Known(identity) = self else { return Ok(named) };
        match named {
            None => Ok(Some(identity.user.clone())),
            Some(named) if named == identity.user || identity.scopes.is_admin() => Ok(Some(named)),
            Some(_) => Err(Problem::forbidden("The token is another user's than userId")),
        }
    }

    /// Whether a token with the scope `admin` was shown. Where nobody has to show one, none was.
    pub fn is_known_admin(&self) -> bool {
        matches!(self, Self::Known(identity) if identity.scopes.is_admin())
    }

    /// The user whose own requests these are. An admin asks for others.
    fn own(&self) -> Option<&UserId> {
        match self {
            Self::Known(identity) if !identity.scopes.is_admin() => Some(&identity.user),
            Self::Anybody | Self::Known(_) => None,
        }
    }

    /// Whose readings of history are counted together.
    fn reader(&self, source: Source) -> Reader {
        match self {
            Self::Anybody => Reader::Address(source),
            Self::Known(identity) => Reader::User(identity.user.clone()),
        }
    }

    fn may(&self, allows: impl FnOnce(Scopes) -> bool) -> bool {
        match self {
            Self::Anybody => true,
            Self::Known(identity) => allows(identity.scopes),
        }
    }
}

/// Authenticates senders of requests. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    pub access: Arc<Access>,
    pub limits: Arc<Limits>,
}

impl Door {
    /// The sender of a request with this head, by the token in it.
    pub async fn asker(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
    ) -> Result<Asker, Problem> {
        let Self { access, limits } = self;
        let source = limits.source_of(extensions, headers);
        match limits.admit(access, bearer(headers), source).await {
            Ok(None) => Ok(Asker::Anybody),
            Ok(Some(identity)) => Ok(Asker::Known(identity)),
            Err(Denied::Token(CheckError::Unauthenticated(why))) => {
                Err(Problem::unauthenticated(why))
            }
            Err(Denied::Token(error @ CheckError::NoKeys)) => {
                Err(Problem::unavailable(error.to_string()))
            }
            Err(Denied::TooMany(too_many)) => Err(Problem::too_many(&too_many)),
        }
    }
}

/// The layer of every endpoint.
pub async fn know_who_asks(
    State(door): State<Door>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let asker = door.asker(request.extensions(), request.headers()).await?;
    request.extensions_mut().insert(asker);
    Ok(next.run(request).await)
}

/// Around every endpoint: answers are one user's, and true for a moment. Nobody on the way may keep one.
pub async fn not_kept(mut response: Response) -> Response {
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

/// Whom a request counts for, where it costs more the more it asks for. Part of every request that has come
/// through [`not_too_often`].
#[derive(Clone)]
pub struct Costs {
    limits: Arc<Limits>,
    user: Option<UserId>,
    source: Source,
}

impl Costs {
    /// Counts users whose presence is asked for.
    pub fn presence_of(&self, ids: usize) -> Result<(), Problem> {
        let refuse = |too_many| Problem::too_many(&too_many);
        self.limits.presence_from(ids, self.source).map_err(refuse)?;
        let Some(user) = &self.user else { return Ok(()) };
        self.limits.presence_of(ids, user).map_err(refuse)
    }

    /// The node asks for as much presence at a time as it does.
    pub fn note_presence_busy(&self) {
        self.limits.closed(metrics::Limit::PresenceTurns, self.source);
    }
}

/// Limits the requests of a user and of an address, in front of handlers that cause work elsewhere.
pub async fn not_too_often(
    State(Door { limits, .. }): State<Door>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let asker = Asker::of(request.extensions())?;
    let source = limits.source_of(request.extensions(), request.headers());
    limits.request(asker.own(), source).map_err(|too_many| Problem::too_many(&too_many))?;
    let user = asker.own().cloned();
    request.extensions_mut().insert(Costs { limits, user, source });
    Ok(next.run(request).await)
}

/// Limits the concurrent readings of history.
pub async fn few_at_a_time(
    State(Door { limits, .. }): State<Door>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let asker = Asker::of(request.extensions())?;
    let source = limits.source_of(request.extensions(), request.headers());
    let place = limits.read_history(&asker.reader(source));
    let _place = place.map_err(|too_many| Problem::too_many(&too_many))?;
    Ok(next.run(request).await)
}

/// In front of those for operators.
pub async fn admins_only(request: Request, next: Next) -> Result<Response, Problem> {
    if !Asker::of(request.extensions())?.may(Scopes::is_admin) {
        return Err(Problem::forbidden("The token must have the scope admin"));
    }
    Ok(next.run(request).await)
}

/// The layer of endpoints about all users.
pub async fn stats_only(request: Request, next: Next) -> Result<Response, Problem> {
    if !Asker::of(request.extensions())?.may(Scopes::sees_stats) {
        return Err(Problem::forbidden("The token must have the scope stats"));
    }
    Ok(next.run(request).await)
}
