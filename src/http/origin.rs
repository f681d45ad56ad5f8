//! Cross-origin access, for the configured origins only.

use std::{fmt, str::FromStr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority};

use super::{hosts::Hosts, problem::Problem};
use crate::{
    gateway::SOCKET_PATHS,
    limits::{Limits, Said},
    metrics::Refused,
};

/// Permitted methods and headers of other origins.
const ALLOWED_METHODS: &str = "GET, POST";
const ALLOWED_HEADERS: &str = "authorization, content-type";
const EXPOSED_HEADERS: &str = "retry-after";
/// Lifetime of a preflight response, in seconds.
const MAX_AGE_S: u32 = 600;

/// The origins of pages that come from a file. Electron and Cordova send one or the other.
const OF_FILES: [&str; 2] = ["null", "file://"];

/// The origin of a page, as browsers send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "an origin as browsers send it, such as https://app.example.org";
        if OF_FILES.contains(&text) {
            return Ok(Self(HeaderValue::from_str(text).expect("it is ASCII")));
        }
        let (scheme, place) = text.split_once("://").ok_or(EXPECTED)?;
        let of_scheme = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        let authority: Authority = place.parse().map_err(|_| EXPECTED)?;
        let is_plain = !scheme.is_empty()
            && scheme.bytes().all(of_scheme)
            && !place.contains(['@', '*'])
            && !place.bytes().any(|byte| byte.is_ascii_uppercase())
            && !place.ends_with(':')
            && authority.port_u16().is_none_or(|port| Some(port) != default_port(scheme));
        let value = HeaderValue::from_str(text).ok().filter(|_| is_plain);
        value.map(Self).ok_or(EXPECTED)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().expect("it was a text before"))
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// The origin of a request.
#[derive(Debug, PartialEq, Eq)]
enum Whence {
    /// A page of this service, or no page: apps send no origin.
    Here,
    /// A page of a configured origin.
    Named(HeaderValue),
    Elsewhere,
}

impl Whence {
    /// `is_forwarded` says whether a proxy that may be believed was asked for a host that its argument accepts.
    fn of(
        headers: &HeaderMap,
        named: &[Origin],
        is_forwarded: impl FnOnce(&dyn Fn(&str) -> bool) -> bool,
    ) -> Self {
        let Some(origin) = headers.get(header::ORIGIN) else { return Self::Here };
        if named.iter().any(|Origin(named)| named == origin) {
            return Self::Named(origin.clone());
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_same = |host: &str| is_same(origin, host);
        if host.is_some_and(is_same) || is_forwarded(&is_same) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

/// Whether a page of `origin` came from `host`. A server behind a load balancer does not know the scheme.
fn is_same(origin: &HeaderValue, host: &str) -> bool {
    let same = || {
        let (scheme, place) = origin.to_str().ok()?.split_once("://")?;
        let port = default_port(scheme);
        let read = |text: &str| -> Option<(String, Option<u16>)> {
            let authority: Authority = text.parse().ok()?;
            let host = authority.host().to_ascii_lowercase();
            (!text.contains('@')).then(|| (host, authority.port_u16().or(port)))
        };
        Some(read(place)? == read(host)?)
    };
    same().unwrap_or(false)
}

/// The origins that are allowed, and where refusals are noted.
#[derive(Clone)]
struct Guard {
    named: Arc<[Origin]>,
    /// The hosts that a proxy may have been asked for. None: any.
    hosts: Option<Hosts>,
    limits: Arc<Limits>,
}

/// Restricts these routes to pages of this service and of the `named` origins. Other pages can read nothing, change
/// nothing, and open no socket. A page is the service's own, too, if a trusted proxy was asked for the page's host;
/// where there is no authentication, only if that host is one of `hosts`: with DNS rebinding it could be anybody's.
pub fn guarded(
    routes: Router,
    named: Vec<Origin>,
    hosts: Option<Hosts>,
    limits: Arc<Limits>,
) -> Router {
    let guard_with = Guard { named: named.into(), hosts, limits };
    routes.layer(from_fn_with_state::<_, _, (State<Guard>, Request)>(guard_with, guard))
}

async fn guard(
    State(Guard { named, hosts, limits }): State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let is_known = |host: &str| hosts.as_ref().is_none_or(|hosts| hosts.know(host));
    let from = Whence::of(request.headers(), &named, |is_same| {
        limits.forwards_for(&request, |host| is_known(host) && is_same(host))
    });
    let mut response = match &from {
        Whence::Here => next.run(request).await,
        Whence::Named(_) if is_preflight(&request) => preflight(),
        Whence::Named(_) => next.run(request).await,
        Whence::Elsewhere if is_harmless(&request) => next.run(request).await,
        Whence::Elsewhere => {
            let (extensions, headers) = (request.extensions(), request.headers());
            let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
            let said = Said { text: text(header::ORIGIN), host: text(header::HOST) };
            limits.refuse(Refused::Origin, limits.source_of(extensions, headers), said);
            Problem::forbidden("Pages of this origin may not use this service").into_response()
        }
    };
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    if !named.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    if let Whence::Named(origin) = from {
        let yes = HeaderValue::from_static("true");
        let exposed = HeaderValue::from_static(EXPOSED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // For the load balancer's cookie.
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

/// A request that changes nothing, whose response the page cannot read. A socket does not qualify.
fn is_harmless(request: &Request) -> bool {
    let is_socket = SOCKET_PATHS.contains(&request.uri().path());
    !is_socket && matches!(*request.method(), Method::GET | Method::HEAD)
}

fn is_preflight(request: &Request) -> bool {
    let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks && request.method() == Method::OPTIONS
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS)),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS)),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S.into()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_do() {
        for good in [
            "https://app.example.org",
            "http://localhost:5173",
            "https://app.example.org:8443",
            "http://[::1]:8080",
            "capacitor://localhost",
            "file://",
            "null",
        ] {
            assert_eq!(good.parse::<Origin>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "*",
            "Null",
            "file:///",
            "app.example.org",
            "https://",
            "https://*.example.org",
            "https://app.example.org/",
            "https://app.example.org/x",
            "https://app.example.org:443",
            "http://app.example.org:80",
            "https://app.example.org:",
            "https://App.example.org",
            "HTTPS://app.example.org",
            "https://anna@app.example.org",
            "https://app.example.org,https://b",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_is_from_here_if_its_host_is_the_one_that_is_asked() {
        let from = |origin: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            headers.insert(header::HOST, host.parse().unwrap());
            Whence::of(&headers, &["https://app.example.org".parse().unwrap()], |_| false)
        };
        for (origin, host) in [
            ("http://127.0.0.1:3000", "127.0.0.1:3000"),
            ("https://calls.example.org", "calls.example.org"),
            ("https://calls.example.org", "Calls.example.org:443"),
            ("wss://calls.example.org", "calls.example.org"),
            ("http://[::1]:3000", "[::1]:3000"),
        ] {
            assert_eq!(from(origin, host), Whence::Here, "{origin} {host}");
        }
        for (origin, host) in [
            ("http://127.0.0.1:3001", "127.0.0.1:3000"),
            ("http://localhost:3000", "127.0.0.1:3000"),
            ("http://calls.example.org:8080", "calls.example.org"),
            ("https://calls.example.org.evil.org", "calls.example.org"),
            ("https://calls.example.org@evil.org", "evil.org"),
            ("null", "calls.example.org"),
            ("", ""),
            ("https://app.example.org.evil.org", "calls.example.org"),
            ("http://app.example.org", "calls.example.org"),
        ] {
            assert_eq!(from(origin, host), Whence::Elsewhere, "{origin} {host}");
        }
        let named = from("https://app.example.org", "calls.example.org");
        assert!(matches!(named, Whence::Named(_)));
        assert_eq!(Whence::of(&HeaderMap::new(), &[], |_| false), Whence::Here);
    }

    #[test]
    fn a_page_is_from_here_if_a_proxy_was_asked_for_its_host() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://calls.example.org"));
        headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:3000"));
        let from = |forwarded| Whence::of(&headers, &[], |is_same| is_same(forwarded));
        assert_eq!(from("calls.example.org:443"), Whence::Here);
        assert_eq!(from("calls.example.org:8443"), Whence::Elsewhere);
    }
}
