//! STUN and TURN servers: a binding, and an allocation with the credentials that clients get.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket, lookup_host},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    Finding, STEP_TIMEOUT, bounded,
    stun::{ALLOCATE, BINDING, HEADER_BYTES, Login, REFRESH, Reply, Request, body_bytes},
};
use crate::{
    fetch,
    ice::{self, Ice},
    ids::UserId,
};

const PART: &str = "turn";
/// Pause before a datagram is sent again.
const RESEND: Duration = Duration::from_millis(500);
/// The largest reply.
const MAX_BYTES: usize = 2_048;

/// A server, as its URL says (RFC 7064, RFC 7065).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    host: String,
    port: u16,
    over: Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
    Tls,
    Dtls,
}

impl Server {
    /// Reads a URL that the settings have accepted.
    fn read(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once(':')?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let is_secure = scheme.ends_with('s');
        let over = match (is_secure, query) {
            (true, "transport=udp") => Over::Dtls,
            (true, _) => Over::Tls,
            (false, "transport=tcp") => Over::Tcp,
            (false, _) => Over::Udp,
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let default = if is_secure { 5349 } else { 3478 };
        Some(Self { host: host.to_owned(), port: port.map_or(Ok(default), str::parse).ok()?, over })
    }
}

/// Why there is no relay, and what to do.
struct Trouble {
    what: String,
    fix: &'static str,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        let fix = "see that the server runs, that its name and port are right, and that a firewall lets the clients' \
                   transport through";
        Self { what: error.to_string(), fix }
    }
}

/// All servers at the same time, each with a bound of its own.
pub async fn check(settings: &ice::Settings, ice: Ice) -> Vec<Finding> {
    // As for a user: the credential is the one that a client gets.
    let user: UserId = "switchboard-doctor".parse().expect("a user id");
    let servers = ice.servers_for(&user).ice_servers;
    let login = servers.iter().find_map(|server| {
        let (username, password) = (server.username.clone()?, server.credential.as_ref()?);
        let password = password.expose().to_owned();
        Some(Login { username, password, realm: String::new(), nonce: Vec::new() })
    });
    let relays = settings.turn.iter().flat_map(|turn| &turn.urls);
    let relays = relays.map(|url| bounded(PART, one(url, login.clone())));
    let mirrors = settings.stun_urls.iter().map(|url| bounded(PART, one(url, None)));
    let mut findings = join_all(mirrors).await.concat();
    findings.extend(join_all(relays).await.concat());
    if findings.is_empty() {
        let what = "no STUN or TURN servers: calls between networks will fail";
        findings.push(Finding::doubtful(
            PART,
            what,
            "set SWITCHBOARD_TURN_URLS, see docs/guides/turn.md",
        ));
    }
    findings
}

/// One server. With a login, a relay is allocated and given back.
async fn one(url: &str, login: Option<Login>) -> Vec<Finding> {
    let Some(server) = Server::read(url) else {
        return vec![Finding::wrong(
            PART,
            format!("{url} cannot be read"),
            "see docs/guides/turn.md",
        )];
    };
    if server.over == Over::Dtls {
        let fix = "browsers use turns: over TCP, which is checked";
        return vec![Finding::doubtful(PART, format!("{url} is DTLS, which is not checked"), fix)];
    }
    let asked = async {
        let mut link =
            timeout(STEP_TIMEOUT, Link::open(&server)).await.map_err(|_| silence())??;
        match login {
            None => bind(&mut link).await,
            Some(login) => allocate(&mut link, login).await,
        }
    };
    vec![match asked.await {
        Ok((what, None)) => Finding::fine(PART, format!("{url}: {what}")),
        Ok((what, Some(fix))) => Finding::doubtful(PART, format!("{url}: {what}"), fix),
        Err(Trouble { what, fix }) => Finding::wrong(PART, format!("{url}: {what}"), fix),
    }]
}

fn silence() -> io::Error {
    io::Error::other(format!("no answer within {STEP_TIMEOUT:?}"))
}

type Outcome = Result<(String, Option<&'static str>), Trouble>;

async fn bind(link: &mut Link) -> Outcome {
    match link.ask(BINDING, None, false).await? {
        Reply::Granted { mapped: Some(mapped), .. } => {
            Ok((format!("sees this machine as {mapped}"), None))
        }
        reply => Err(refusal(&reply)),
    }
}

async fn allocate(link: &mut Link, mut login: Login) -> Outcome {
    // The first request is refused with what has to be signed.
    match link.ask(ALLOCATE, None, false).await? {
        Reply::Refused { code: 401, realm: Some(realm), nonce: Some(nonce), .. } => {
            (login.realm, login.nonce) = (realm, nonce);
        }
        Reply::Granted { .. } => {
            return Ok((
                "gives relays to everybody".to_owned(),
                Some("let coturn ask for credentials: use-auth-secret, lt-cred-mech"),
            ));
        }
        reply @ Reply::Refused { .. } => return Err(refusal(&reply)),
    }
    match link.ask(ALLOCATE, Some(&login), false).await? {
        Reply::Granted { relayed: Some(relayed), .. } => {
            // It would expire by itself.
            let _ = link.ask(REFRESH, Some(&login), true).await;
            let is_hidden = is_private(relayed) && !is_private(link.peer);
            let fix = "no client elsewhere reaches that address: set coturn's external-ip";
            Ok((format!("gave a relay at {relayed}"), is_hidden.then_some(fix)))
        }
        reply => Err(refusal(&reply)),
    }
}

fn refusal(reply: &Reply) -> Trouble {
    let Reply::Refused { code, reason, .. } = reply else {
        return Trouble {
            what: "an incomplete reply".to_owned(),
            fix: "see that this is the address of a TURN server",
        };
    };
    let fix = match code {
        401 => {
            "compare SWITCHBOARD_TURN_SECRET with coturn's static-auth-secret, and the clocks: credentials expire"
        }
        403 => "see which addresses the server denies",
        486 => "raise coturn's user-quota or total-quota",
        508 => "give coturn more relay ports: min-port, max-port",
        _ => "see the server's log",
    };
    Trouble { what: format!("refused with {code} {reason}"), fix }
}

/// Whether an address is not for the whole internet.
fn is_private(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(address) => {
            let ip = address.ip();
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()
        }
        SocketAddr::V6(address) => {
            let ip = address.ip();
            ip.is_unique_local()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
        }
    }
}

/// A way to a server.
struct Link {
    peer: SocketAddr,
    socket: Socket,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    async fn open(server: &Server) -> io::Result<Self> {
        let found = lookup_host((server.host.as_str(), server.port)).await?.next();
        let peer = found.ok_or_else(|| io::Error::other("the name has no address"))?;
        let socket = match server.over {
            Over::Udp | Over::Dtls => {
                let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(peer).await?;
                Socket::Udp(socket)
            }
            Over::Tcp => Socket::Tcp(TcpStream::connect(peer).await?),
            Over::Tls => {
                let stream = TcpStream::connect(peer).await?;
                Socket::Tls(Box::new(fetch::secure(stream, &server.host).await?))
            }
        };
        Ok(Self { peer, socket })
    }

    /// The reply to a request.
    async fn ask(
        &mut self,
        method: u16,
        login: Option<&Login>,
        gives_back: bool,
    ) -> io::Result<Reply> {
        let random = uuid::Uuid::new_v4().into_bytes();
        let id = *random.first_chunk().expect("it has 16 bytes");
        let request = Request::new(method, id, login, gives_back);
        let reply = async {
            match &mut self.socket {
                Socket::Udp(socket) => over_datagrams(socket, &request).await,
                Socket::Tcp(stream) => over_stream(stream, &request).await,
                Socket::Tls(stream) => over_stream(stream, &request).await,
            }
        };
        timeout(STEP_TIMEOUT, reply).await.map_err(|_| silence())?
    }
}

/// Sends the request again and again until there is a reply.
async fn over_datagrams(socket: &UdpSocket, request: &Request) -> io::Result<Reply> {
    let mut bytes = [0; MAX_BYTES];
    loop {
        socket.send(&request.bytes).await?;
        // A port without a listener is reported here, as an error of the socket.
        let received = async {
            loop {
                let length = socket.recv(&mut bytes).await?;
                if let Some(reply) = request.reply(&bytes[..length]) {
                    return io::Result::Ok(reply);
                }
            }
        };
        if let Ok(reply) = timeout(RESEND, received).await {
            return reply;
        }
    }
}

async fn over_stream(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &Request,
) -> io::Result<Reply> {
    stream.write_all(&request.bytes).await?;
    let mut bytes = vec![0; HEADER_BYTES];
    stream.read_exact(&mut bytes).await?;
    let length = body_bytes(bytes.first_chunk().expect("it was just read"));
    if length > MAX_BYTES {
        return Err(io::Error::other("it does not speak STUN"));
    }
    bytes.resize(HEADER_BYTES + length, 0);
    stream.read_exact(&mut bytes[HEADER_BYTES..]).await?;
    request.reply(&bytes).ok_or_else(|| io::Error::other("it does not speak STUN"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_servers() {
        let server =
            |url: &str| Server::read(url).map(|Server { host, port, over }| (host, port, over));
        for (url, host, port, over) in [
            ("stun:stun.example.org", "stun.example.org", 3478, Over::Udp),
            ("turn:10.0.0.1:3479?transport=udp", "10.0.0.1", 3479, Over::Udp),
            ("turn:turn.example.org?transport=tcp", "turn.example.org", 3478, Over::Tcp),
            ("turns:turn.example.org", "turn.example.org", 5349, Over::Tls),
            ("turns:turn.example.org:443?transport=tcp", "turn.example.org", 443, Over::Tls),
            ("turns:a?transport=udp", "a", 5349, Over::Dtls),
            ("turn:[2001:db8::1]:3479", "2001:db8::1", 3479, Over::Udp),
            ("turn:[2001:db8::1]", "2001:db8::1", 3478, Over::Udp),
        ] {
            assert_eq!(server(url), Some((host.to_owned(), port, over)), "{url}");
        }
    }

    #[test]
    fn private_addresses_are_known() {
        for (address, is_hidden) in [
            ("10.0.0.1:1", true),
            ("127.0.0.1:1", true),
            ("0.0.0.0:1", true),
            ("[fd00::1]:1", true),
            ("203.0.113.7:1", false),
            ("[2001:db8::1]:1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), is_hidden, "{address}");
        }
    }
}
