//! The names under which this service is asked. A page elsewhere can have its own name lead here (DNS
//! rebinding): to the browser it is then a page of this service. Its `Host` says under which name it asks.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
    sync::Arc,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{Version, header, uri::Authority};

use super::problem::Problem;
use crate::{
    limits::{Refusals, Said, address::Peer},
    metrics::Refused,
};

/// A name that is asked for: `calls.example.org`, or `*.example.org` for all below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a name without a port, such as calls.example.org or *.example.org";
        let name = text.strip_prefix("*.").unwrap_or(text);
        let in_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let is_name = (1..=253).contains(&name.len())
            && name.bytes().all(in_name)
            && !name.starts_with('.')
            && !name.ends_with('.');
        is_name.then(|| Self(text.to_ascii_lowercase())).ok_or(EXPECTED)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Host {
    fn is(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(ending) => name.len() > ending.len() && name.ends_with(ending),
            None => name == self.0,
        }
    }
}

/// The permitted values of `Host` where there is no authentication. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<[Host]>);

impl From<Vec<Host>> for Hosts {
    fn from(named: Vec<Host>) -> Self {
        Self(named.into())
    }
}

impl Hosts {
    /// Whether a request for `host` cannot come from a page of a foreign site by DNS rebinding. An
    /// IP address is not resolved, and a name without a dot is resolved locally, so strangers
    /// cannot own one.
    pub fn know(&self, host: &str) -> bool {
        let authority = host.parse::<Authority>().ok();
        let Some(authority) = authority.filter(|one| !one.as_str().contains('@')) else {
            return false;
        };
        let name = authority.host().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        address.unwrap_or(name).parse::<IpAddr>().is_ok()
            || !name.is_empty() && !name.contains(['.', '[', ':'])
            || name.ends_with(".localhost")
            || self.0.iter().any(|known| known.is(name))
    }
}

/// The names that each request's `Host` is checked against, and where refusals are noted.
#[derive(Clone)]
struct Guard {
    /// None: any name will do.
    hosts: Option<Hosts>,
    refusals: Arc<Refusals>,
}

/// These routes for requests that say which host they are for: one of `hosts`, if there is a choice.
pub fn guarded(routes: Router, hosts: Option<Hosts>, refusals: Arc<Refusals>) -> Router {
    let guard_with = Guard { hosts, refusals };
    routes.layer(from_fn_with_state::<_, _, (State<Guard>, Request)>(guard_with, guard))
}

async fn guard(
    State(Guard { hosts, refusals }): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST);
    let text = host.and_then(|host| host.to_str().ok());
    let (reason, problem) = if !is_one(&request) {
        let refused =
            "HTTP/1.1 wants one Host header, which says the same as the request's address";
        (Refused::HostHeader, Problem::bad_request(refused))
    // Browsers always send it.
    } else if let (Some(hosts), Some(_)) = (hosts, host)
        && !text.is_some_and(|text| hosts.know(text))
    {
        let refused =
            "This service does not go by this name: SWITCHBOARD_HOSTS lists those it goes by";
        (Refused::Host, Problem::forbidden(refused))
    } else {
        return next.run(request).await;
    };
    let peer = request.extensions().get::<Peer>();
    let from = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(address)| *address);
    refusals.note(reason, from, Said { text, host: None });
    problem.into_response()
}

/// Whether it is plain which host a request is for (RFC 9112, 3.2): HTTP/1.1 has one `Host`, which a whole
/// address in the request's line must not contradict.
fn is_one<B>(request: &http::Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => false,
        (None, None) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let authority = request.uri().authority();
            authority
                .is_none_or(|asked| host.as_bytes().eq_ignore_ascii_case(asked.as_str().as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_anybodys_are_known_only_if_named() {
        let named: Vec<Host> =
            ["Calls.example.org", "*.svc"].iter().map(|name| name.parse().unwrap()).collect();
        let hosts = Hosts::from(named);
        for known in [
            "localhost",
            "LOCALHOST:3000",
            "app.localhost:3000",
            "127.0.0.1",
            "127.0.0.1:9300",
            "10.1.2.3:9300",
            "[::1]:3000",
            "[2001:db8::1]",
            "node1:9300",
            "calls.example.org",
            "CALLS.example.org:443",
            "calls.example.org.",
            "switchboard.calls.svc:80",
        ] {
            assert!(hosts.know(known), "{known}");
        }
        for unknown in [
            "",
            ":80",
            "evil.example",
            "evil.example:3000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost.example",
            "calls.example.org.evil.example",
            "a.calls.example.org",
            "svc.evil",
            ".svc",
            "localhost@evil.example",
            "evil.example@localhost",
            "[::1",
            "a b",
        ] {
            assert!(!hosts.know(unknown), "{unknown}");
        }
        for wrong in ["", "*", "*.", ".a", "a.", "a:80", "http://a", "a/b", "a b", "a,b", "[::1]"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_for_one_host() {
        let is_one = |version: Version, uri: &str, hosts: &[&str]| {
            let mut request = http::Request::builder().version(version).uri(uri);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            is_one(&request.body(()).unwrap())
        };
        assert!(is_one(Version::HTTP_11, "/", &["a"]) && is_one(Version::HTTP_10, "/", &[]));
        assert!(is_one(Version::HTTP_11, "http://A:80/", &["a:80"]));
        assert!(!is_one(Version::HTTP_11, "/", &[]) && !is_one(Version::HTTP_11, "/", &["a", "a"]));
        assert!(!is_one(Version::HTTP_10, "/", &["a", "b"]));
        assert!(!is_one(Version::HTTP_11, "http://b/", &["a"]));
    }
}
