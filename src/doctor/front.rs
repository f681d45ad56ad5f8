//! The address in front of the nodes, asked as a client does: websockets, polling sessions that stay on one node, the
//! upgrade from one to the other, and the headers that arrive at a node.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use super::{Finding, STEP_TIMEOUT};
use crate::{
    auth::{Mint, mint},
    config::{Auth, Config, Front},
    fetch::{self, FetchError, Fetcher, Limits},
    time::Clock,
};

const PART: &str = "url";
const SOCKET: &str = "/socket.io/?EIO=4&transport=";
/// Requests of one polling session, each on a connection of its own. On three nodes without stickiness all of them
/// reach one node once in 729 times.
const POLLS: usize = 6;
const LIMITS: Limits = Limits { timeout: STEP_TIMEOUT, max_bytes: 64 * 1024, max_concurrent: 2 };
/// An address for examples (RFC 5737), which no client has.
const CLAIMED: &str = "192.0.2.123";
/// Lifetime of the token for one question.
const TOKEN_TTL: Duration = Duration::from_mins(1);
/// The longest session id that is believed.
const MAX_SID_BYTES: usize = 128;
/// Engine.IO's packet that answers a ping. It does nothing where none was sent.
const PONG: &str = "3";

/// The reply of `/v1/admin/request`: how a request has arrived at a node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arrival {
    peer: String,
    is_trusted: bool,
    address: String,
    forwarded: BTreeMap<String, String>,
}

pub async fn check(config: &Config, front: Option<Front>) -> Vec<Finding> {
    let Some(front) = front else { return Vec::new() };
    let client = match Client::new(config, &front) {
        Ok(client) => client,
        Err(error) => {
            let fix = "SSL_CERT_FILE can name a file with authorities to trust";
            return vec![Finding::wrong(PART, error.to_string(), fix)];
        }
    };
    let reached = match client.reach().await {
        Ok(reached) => reached,
        Err(finding) => return vec![finding],
    };
    let (websocket, polling, headers) =
        tokio::join!(client.websocket(), client.polling(), client.headers());
    [reached, websocket].into_iter().chain(polling).chain(headers).collect()
}

/// A client of the service, without a user.
struct Client {
    base: Uri,
    fetcher: Fetcher,
    /// A token with the scope `admin`. None in `open` mode, and if nobody gave one.
    token: Option<String>,
    needs_token: bool,
}

impl Client {
    fn new(config: &Config, front: &Front) -> io::Result<Self> {
        let token = match (&front.token, &config.auth) {
            (Some(token), _) => Some(token.expose().to_owned()),
            (None, Auth::Open) => None,
            (None, Auth::Jwt(trust)) => {
                let user = "switchboard-doctor".parse().expect("a user id");
                let wish = Mint { user, ttl: TOKEN_TTL, scopes: vec!["admin".to_owned()] };
                mint(trust, &wish, Clock::System.now()).ok()
            }
        };
        let fetcher = Fetcher::new(&front.uri, LIMITS)?;
        let needs_token = matches!(config.auth, Auth::Jwt(_));
        Ok(Self { base: front.uri.clone(), fetcher, token, needs_token })
    }

    fn origin(&self) -> String {
        self.base.to_string().trim_end_matches('/').to_owned()
    }

    /// A request on a connection of its own, so that a balancer chooses anew.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: &'static str,
    ) -> Result<Response<Bytes>, FetchError> {
        let url = format!("{}{path}", self.origin());
        let body = Full::new(Bytes::from_static(body.as_bytes()));
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().expect("a path at a known address");
        *request.headers_mut() = headers.clone();
        request
            .headers_mut()
            .insert(header::CONNECTION, "close".parse().expect("a header's value"));
        self.fetcher.fetch(request).await
    }

    /// Whether the service is there at all.
    async fn reach(&self) -> Result<Finding, Finding> {
        let (url, asked) = (self.origin(), Instant::now());
        let response = self.ask(Method::GET, "/openapi.json", &HeaderMap::new(), "").await;
        let took = asked.elapsed();
        match response {
            Ok(response) if response.status() == StatusCode::OK => {
                Ok(Finding::fine(PART, format!("{url} answers after {took:.1?}")))
            }
            Ok(response) => {
                let status = response.status();
                let fix = if status.is_redirection() {
                    "give the address that it redirects to"
                } else {
                    "see that the proxy forwards every path to the nodes, and that a node is ready"
                };
                Err(Finding::wrong(PART, format!("{url}/openapi.json: {status}"), fix))
            }
            Err(error) => {
                let what = format!("{url}: {:#}", anyhow::Error::from(error));
                let fix = "see that it runs, and that this machine resolves its name and trusts its certificate";
                Err(Finding::wrong(PART, what, fix))
            }
        }
    }

    /// Whether a page of this address gets a websocket, and frames pass.
    async fn websocket(&self) -> Finding {
        match self.open("", None).await {
            Ok(mut socket) => match next_text(&mut socket).await {
                Some(packet) if packet.starts_with('0') => {
                    Finding::fine(PART, "websockets pass, for pages of this address, too")
                }
                _ => Finding::wrong(
                    PART,
                    "a websocket is accepted, but no frame arrives",
                    "let the proxy pass on websockets without buffering",
                ),
            },
            Err(error) => refused_websocket(&error),
        }
    }

    /// Whether the requests of a polling session reach one node, and the session becomes a websocket.
    async fn polling(&self) -> Vec<Finding> {
        let path = format!("{SOCKET}polling");
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, self.origin().parse().expect("it was a URL"));
        let opened = match self.ask(Method::GET, &path, &headers, "").await {
            Ok(opened) if opened.status() == StatusCode::OK => opened,
            Ok(refused) => {
                let what = format!("a polling session is refused: {}", refused.status());
                let fix = "see the nodes' log: turned away";
                return vec![Finding::wrong(PART, what, fix)];
            }
            Err(error) => return vec![lost(&error)],
        };
        let text = String::from_utf8_lossy(opened.body()).into_owned();
        let Some(session) = session_in(&text) else {
            let fix = "see that the proxy forwards /socket.io/ to the nodes";
            return vec![Finding::wrong(PART, "the reply to a handshake is not Engine.IO's", fix)];
        };
        let cookies = cookies_of(opened.headers());
        if let Some(cookies) = &cookies {
            headers.insert(header::COOKIE, cookies.parse().expect("it came in a header"));
        }
        let path = format!("{path}&sid={session}");
        for number in 1..=POLLS {
            match self.ask(Method::POST, &path, &headers, PONG).await {
                Ok(response) if response.status() == StatusCode::OK => {}
                Ok(response) => {
                    let cookie = if cookies.is_some() {
                        "its cookie is not followed"
                    } else {
                        "no cookie was set"
                    };
                    let what = format!(
                        "request {number} of a polling session: {}; it reached another node, as {cookie}",
                        response.status()
                    );
                    let fix =
                        "make the balancer sticky by a cookie of its own: docs/guides/redis.md";
                    return vec![Finding::wrong(PART, what, fix)];
                }
                Err(error) => return vec![lost(&error)],
            }
        }
        let by = if cookies.is_some() { "by a cookie" } else { "without a cookie" };
        let stays = format!("{POLLS} requests of a polling session reached one node, {by}");
        vec![Finding::fine(PART, stays), self.upgrade(&session, cookies.as_deref()).await]
    }

    async fn upgrade(&self, session: &str, cookies: Option<&str>) -> Finding {
        let mut socket = match self.open(&format!("&sid={session}"), cookies).await {
            Ok(socket) => socket,
            Err(error) => return refused_websocket(&error),
        };
        let is_answered = socket.send(Message::Text("2probe".into())).await.is_ok()
            && next_text(&mut socket).await.is_some_and(|packet| packet == "3probe");
        if is_answered {
            Finding::fine(PART, "a polling session becomes a websocket")
        } else {
            let fix = "let the proxy pass on websockets, and send them to the node of the session's cookie";
            Finding::wrong(PART, "a polling session does not become a websocket", fix)
        }
    }

    /// Which address of the client, and which headers, arrive at a node.
    async fn headers(&self) -> Vec<Finding> {
        if self.needs_token && self.token.is_none() {
            let fix = "give --token with the scope admin";
            return vec![Finding::doubtful(PART, "forwarded headers were not checked", fix)];
        }
        let arrived = match self.arrival(&[]).await {
            Ok(arrived) => arrived,
            Err(finding) => return vec![finding],
        };
        let claims =
            [("x-forwarded-for", CLAIMED.to_owned()), ("forwarded", format!("for={CLAIMED}"))];
        let claimed = match self.arrival(&claims).await {
            Ok(claimed) => claimed,
            Err(finding) => return vec![finding],
        };
        let mut findings = vec![address(&arrived, &claimed)];
        let scheme = self.base.scheme_str().unwrap_or_default();
        match arrived.forwarded.get("x-forwarded-proto") {
            Some(proto) if proto == scheme => {
                findings.push(Finding::fine(PART, format!("X-Forwarded-Proto: {proto}")));
            }
            None if scheme == "http" => {}
            other => findings.push(Finding::doubtful(
                PART,
                format!(
                    "X-Forwarded-Proto is {}, not {scheme}",
                    other.map_or("missing", |proto| proto)
                ),
                "nodes do not need it; let the proxy send it right for whatever else reads it",
            )),
        }
        findings
    }

    async fn arrival(&self, claims: &[(&'static str, String)]) -> Result<Arrival, Finding> {
        let mut headers = HeaderMap::new();
        for (name, value) in claims {
            headers.insert(HeaderName::from_static(name), value.parse().expect("plain text"));
        }
        if let Some(token) = &self.token {
            if !is_confidential(&self.base) {
                let what = "the headers were not checked: a token is not sent unencrypted";
                return Err(Finding::doubtful(PART, what, "give the https:// address"));
            }
            let bearer = format!("Bearer {token}").parse().map_err(|_| {
                Finding::wrong(PART, "--token is not a token", "give a JWT with the scope admin")
            })?;
            headers.insert(header::AUTHORIZATION, bearer);
        }
        let response = self.ask(Method::GET, "/v1/admin/request", &headers, "").await;
        let response = response.map_err(|error| lost(&error))?;
        match serde_json::from_slice(response.body()) {
            Ok(arrival) if response.status() == StatusCode::OK => Ok(arrival),
            _ => {
                let what = format!("/v1/admin/request: {}", response.status());
                let fix = "the token needs the scope admin, and the nodes this version";
                Err(Finding::doubtful(PART, what, fix))
            }
        }
    }

    /// A websocket, as a page of this address opens one.
    async fn open(
        &self,
        session: &str,
        cookies: Option<&str>,
    ) -> Result<Socket, tungstenite::Error> {
        let (is_secure, host) = (self.base.scheme_str() == Some("https"), self.base.host());
        let host = host.unwrap_or_default().trim_matches(['[', ']']);
        let port = self.base.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let place = self.base.authority().map_or("", |authority| authority.as_str());
        let scheme = if is_secure { "wss" } else { "ws" };
        let url = format!("{scheme}://{place}{SOCKET}websocket{session}");
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(header::ORIGIN, self.origin().parse().expect("it was a URL"));
        if let Some(cookies) = cookies {
            headers.insert(header::COOKIE, cookies.parse().expect("it came in a header"));
        }
        let opened = async {
            let stream = TcpStream::connect((host, port)).await?;
            let stream: Box<dyn Stream> = if is_secure {
                Box::new(fetch::secure(stream, host).await?)
            } else {
                Box::new(stream)
            };
            Ok(client_async(request, stream).await?.0)
        };
        let late = |_| io::Error::other(format!("no answer within {STEP_TIMEOUT:?}"));
        timeout(STEP_TIMEOUT, opened).await.map_err(late)?
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

type Socket = WebSocketStream<Box<dyn Stream>>;

async fn next_text(socket: &mut Socket) -> Option<String> {
    match timeout(STEP_TIMEOUT, socket.next()).await {
        Ok(Some(Ok(Message::Text(text)))) => Some(text.to_string()),
        _ => None,
    }
}

fn refused_websocket(error: &tungstenite::Error) -> Finding {
    let fix = match error {
        tungstenite::Error::Http(response) if response.status() == StatusCode::FORBIDDEN => {
            "the proxy changes Host: have it send Host unchanged (nginx: proxy_set_header Host $http_host), or \
             X-Forwarded-Host from an address in SWITCHBOARD_TRUSTED_PROXIES"
        }
        _ => {
            "let the proxy pass on Upgrade and Connection (nginx: proxy_http_version 1.1, proxy_set_header Upgrade \
             $http_upgrade, proxy_set_header Connection \"upgrade\")"
        }
    };
    Finding::wrong(PART, format!("a websocket is refused: {error}"), fix)
}

fn lost(error: &FetchError) -> Finding {
    let fix = "see the proxy's log: it answered a moment ago";
    Finding::wrong(PART, format!("a request got no reply: {error}"), fix)
}

/// Whether the node knows the client's address, and only from its proxy.
fn address(arrived: &Arrival, claimed: &Arrival) -> Finding {
    let Arrival { peer, is_trusted, address, forwarded } = arrived;
    if claimed.address == CLAIMED {
        let what = "a client can choose the address that it counts as";
        let fix = "have the proxy delete the header of clients, and list only proxies in SWITCHBOARD_TRUSTED_PROXIES";
        return Finding::wrong(PART, what, fix);
    }
    let is_forwarded =
        ["x-forwarded-for", "forwarded"].iter().any(|name| forwarded.contains_key(*name));
    match (is_forwarded, is_trusted) {
        (true, true) => Finding::fine(
            PART,
            format!("a node sees this client as {address}, by its proxy {peer}"),
        ),
        (true, false) => Finding::wrong(
            PART,
            format!("all clients count as the proxy {peer}, which is not trusted"),
            "add it to SWITCHBOARD_TRUSTED_PROXIES",
        ),
        (false, _) => Finding::doubtful(
            PART,
            format!("a node sees this client as {address}, and no X-Forwarded-For"),
            "if a proxy stands in front, have it send X-Forwarded-For: all its clients count as one address",
        ),
    }
}

/// The id of the session in the reply to a handshake.
fn session_in(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Opened {
        sid: String,
    }
    let opened: Opened = serde_json::from_str(text.strip_prefix('0')?).ok()?;
    // Whatever answers at the address has chosen it.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    Some(opened.sid).filter(|sid| sid.len() <= MAX_SID_BYTES && sid.bytes().all(is_plain))
}

/// Whether a token can be sent there: nobody else reads what a process sends to its own machine.
fn is_confidential(base: &Uri) -> bool {
    let host = base.host().unwrap_or_default().trim_matches(['[', ']']);
    base.scheme_str() == Some("https") || fetch::is_here(host)
}

/// The cookies that a response sets, as a request sends them.
fn cookies_of(headers: &HeaderMap) -> Option<String> {
    let set = headers.get_all(header::SET_COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
    let pairs: Vec<_> = set.filter_map(|cookie| cookie.split(';').next()).collect();
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_session_id_that_fits_in_no_address_is_none() {
        assert_eq!(session_in(r#"0{"sid":"aB-_9"}"#).as_deref(), Some("aB-_9"));
        for sid in ["a b", "a&b", "\u{e9}", &"a".repeat(129)] {
            assert_eq!(session_in(&format!(r#"0{{"sid":"{sid}"}}"#)), None, "{sid}");
        }
    }

    #[test]
    fn a_token_is_sent_encrypted_or_to_this_machine() {
        for (base, is_fine) in [
            ("https://calls.example.org", true),
            ("http://127.0.0.1:3000", true),
            ("http://[::1]:3000", true),
            ("http://calls.example.org", false),
            ("http://10.0.0.5:3000", false),
        ] {
            assert_eq!(is_confidential(&Uri::from_static(base)), is_fine, "{base}");
        }
    }

    #[test]
    fn cookies_are_sent_as_they_were_set() {
        let mut headers = HeaderMap::new();
        assert_eq!(cookies_of(&headers), None);
        headers.append(header::SET_COOKIE, "SIO=n1; path=/; HttpOnly".parse().unwrap());
        headers.append(header::SET_COOKIE, "b=2".parse().unwrap());
        assert_eq!(cookies_of(&headers).as_deref(), Some("SIO=n1; b=2"));
    }

    #[test]
    fn the_address_of_a_client_is_known_from_its_proxy_alone() {
        let arrival = |is_trusted, address: &str, names: &[&str]| Arrival {
            peer: "10.0.0.1".to_owned(),
            is_trusted,
            address: address.to_owned(),
            forwarded: names.iter().map(|name| ((*name).to_owned(), String::new())).collect(),
        };
        let verdict = |arrived: Arrival, claimed: &str| {
            address(&arrived, &arrival(true, claimed, &[])).verdict
        };
        let named = &["x-forwarded-for"][..];
        assert_eq!(verdict(arrival(true, "198.51.100.1", named), "198.51.100.1"), Verdict::Fine);
        assert_eq!(verdict(arrival(true, "198.51.100.1", named), CLAIMED), Verdict::Wrong);
        assert_eq!(verdict(arrival(false, "10.0.0.1", named), "10.0.0.1"), Verdict::Wrong);
        assert_eq!(verdict(arrival(false, "10.0.0.1", &[]), "10.0.0.1"), Verdict::Doubtful);
    }
}
