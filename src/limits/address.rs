//! Addresses of clients, behind trusted proxies.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;
use http::{Extensions, HeaderMap, HeaderName};
use serde::Deserialize;

/// The peer of a connection. The listener adds it to each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The unit of counting: an IPv4 address, or an IPv6 /64, which belongs to one household.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    V4(Ipv4Addr),
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                Self::V6(*address.octets().first_chunk().expect("it has 16 bytes"))
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(prefix) => {
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(prefix);
                write!(f, "{}/64", Ipv6Addr::from(octets))
            }
        }
    }
}

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let shifted = |text: u128, width: u8| text.checked_shr(u32::from(width - self.bits));
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let bits = |address: Ipv4Addr| shifted(address.to_bits().into(), 32);
                bits(own) == bits(other)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let bits = |address: Ipv6Addr| shifted(address.to_bits(), 128);
                bits(own) == bits(other)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "an address or a network such as 10.0.0.0/8";
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| EXPECTED)?)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| EXPECTED)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.unwrap_or(width);
        if bits <= width { Ok(Self { address, bits }) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The header with the client's address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// The header X-Forwarded-For
    #[default]
    XForwardedFor,
    /// The header Forwarded of RFC 7239
    Forwarded,
}

impl ForwardedHeader {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }

    /// The hosts in one line of the header that names them.
    fn hosts(self, line: &str) -> Vec<&str> {
        match self {
            Self::XForwardedFor => line.split(',').map(str::trim).collect(),
            Self::Forwarded => {
                let elements = split_unquoted(line, ',').into_iter().flatten();
                elements.filter_map(|element| value_in(element, "host")).collect()
            }
        }
    }

    /// The header in which a proxy that sends this one names the host that it was asked for.
    fn name_of_hosts(self) -> HeaderName {
        match self {
            Self::XForwardedFor => HeaderName::from_static("x-forwarded-host"),
            Self::Forwarded => self.name(),
        }
    }

    fn name(self) -> HeaderName {
        HeaderName::from_static(self.as_str())
    }

    /// The hops in one line of the header, last first; None for an entry that is not an address.
    fn hops(self, line: &str) -> Vec<Option<IpAddr>> {
        match self {
            Self::XForwardedFor => line.rsplit(',').map(|hop| hop_in(hop.trim())).collect(),
            Self::Forwarded => {
                let elements = split_unquoted(line, ',');
                elements
                    .into_iter()
                    .rev()
                    .map(|element| hop_in(value_in(element?, "for")?))
                    .collect()
            }
        }
    }
}

/// Whose word about addresses counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted {
    /// Proxies in these networks, however many stand one behind the other.
    Networks(Vec<Network>),
    /// This many proxies in a row are trusted, whatever their addresses. Then nobody else may be
    /// able to connect.
    Hops(u8),
}

/// Most proxies one behind the other.
const MAX_HOPS: u8 = 8;
const HOPS: &str = "hops:";

impl Default for Trusted {
    fn default() -> Self {
        Self::Networks(Vec::new())
    }
}

impl Trusted {
    /// Reads a list of networks, or `hops:` and a number, alone.
    ///
    /// # Errors
    /// The expected form, and the text that was given.
    pub fn read(texts: &[String]) -> Result<Self, String> {
        let hops = |text: &String| Some(text.trim().strip_prefix(HOPS)?.to_owned());
        match (texts, texts.iter().find_map(hops)) {
            ([_], Some(count)) => {
                let known = count.parse().ok().filter(|count| (1..=MAX_HOPS).contains(count));
                let refused = || format!("expected {HOPS}1 to {HOPS}{MAX_HOPS}, not {HOPS}{count}");
                known.map(Self::Hops).ok_or_else(refused)
            }
            (_, Some(_)) => Err(format!("expected {HOPS}N alone, without networks beside it")),
            (_, None) => {
                let network = |text: &String| {
                    let refuse = |expected| format!("expected {expected}, not {text:?}");
                    text.parse().map_err(refuse)
                };
                texts.iter().map(network).collect::<Result<_, _>>().map(Self::Networks)
            }
        }
    }

    /// The texts that [`Trusted::read`] reads as the same.
    pub fn list(&self) -> Vec<String> {
        match self {
            Self::Networks(networks) => networks.iter().map(Network::to_string).collect(),
            Self::Hops(count) => vec![format!("{HOPS}{count}")],
        }
    }

    /// Whether `address`, after `passed` proxies, is a proxy whose header is trusted.
    pub fn trust(&self, address: IpAddr, passed: u8) -> bool {
        match self {
            Self::Networks(networks) => networks.iter().any(|network| network.contains(address)),
            Self::Hops(count) => passed < *count,
        }
    }
}

/// The trusted proxies, and their header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    pub trusted: Trusted,
    pub header: ForwardedHeader,
}

/// The sender of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub source: Source,
    /// Set if an untrusted peer sent the header.
    pub doubted: Option<IpAddr>,
}

impl Proxies {
    /// The sender of a request: from the end of the header, the first address that is not a trusted proxy. Entries
    /// before it were written by an untrusted peer.
    pub fn sender_of(&self, extensions: &Extensions, headers: &HeaderMap) -> Sender {
        let peer = extensions.get::<Peer>().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0);
        let says = headers.contains_key(self.header.name());
        let mut passed = 0;
        if !self.trusted.trust(peer, passed) {
            return Sender { source: peer.into(), doubted: Some(peer).filter(|_| says) };
        }
        let mut nearest = peer;
        let lines: Vec<_> = headers.get_all(self.header.name()).iter().collect();
        'hops: for line in lines.into_iter().rev() {
            // An unreadable entry may hide one that a proxy added.
            let Ok(line) = line.to_str() else { break };
            for hop in self.header.hops(line) {
                let Some(hop) = hop else { break 'hops };
                nearest = hop;
                passed = passed.saturating_add(1);
                if !self.trusted.trust(hop, passed) {
                    break 'hops;
                }
            }
        }
        Sender { source: nearest.into(), doubted: None }
    }

    /// Whether a trusted proxy says that one of the hosts that it, or a proxy before it, was asked for is one that
    /// `is_meant` accepts. A client of a trusted proxy may have written the header, but a page cannot: a browser adds no
    /// such header to a handshake or a form, and asks beforehand for any other request.
    pub fn forwards_for(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
        is_meant: impl Fn(&str) -> bool,
    ) -> bool {
        let peer = extensions.get::<Peer>();
        let lines = headers.get_all(self.header.name_of_hosts()).iter();
        let mut lines = lines.filter_map(|line| line.to_str().ok());
        peer.is_some_and(|Peer(peer)| self.trusted.trust(*peer, 0))
            && lines.any(|line| self.header.hosts(line).into_iter().any(&is_meant))
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn hop_in(text: &str) -> Option<IpAddr> {
    let bare = || text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(bracketed)
}

/// The last value of this name in one element of `Forwarded`.
fn value_in<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let mut found = None;
    for pair in split_unquoted(element, ';') {
        let (name, value) = pair?.split_once('=')?;
        if name.trim().eq_ignore_ascii_case(wanted) {
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            found = Some(unquoted.unwrap_or(value));
        }
    }
    found
}

/// The parts between `separator`s outside quotes. None for a part with an unterminated quote.
fn split_unquoted(text: &str, separator: char) -> Vec<Option<&str>> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (place, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            c if c == separator && !is_quoted => {
                parts.push(Some(&text[start..place]));
                start = place + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(Some(&text[start..]).filter(|_| !is_quoted));
    parts
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn proxies(networks: &[&str], header: ForwardedHeader) -> Proxies {
        let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
        Proxies { trusted: Trusted::read(&networks).unwrap(), header }
    }

    fn source(address: &str) -> Source {
        address.parse::<IpAddr>().unwrap().into()
    }

    fn asked(proxies: &Proxies, peer: &str, lines: &[&str]) -> Sender {
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().unwrap()));
        let mut headers = HeaderMap::new();
        for line in lines {
            let line = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            headers.append(proxies.header.name(), line);
        }
        proxies.sender_of(&extensions, &headers)
    }

    #[test]
    fn a_household_is_one_address() {
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::1"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(source("192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn a_network_is_its_first_bits() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(contains("127.0.0.1", "127.0.0.1") && !contains("127.0.0.1", "127.0.0.2"));
        assert!(contains("0.0.0.0/0", "192.0.2.1") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!contains("2001:db8::/33", "2001:db8:8000::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "192.0.2.1"));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "a/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_proxies_are_believed_and_of_what_they_say_the_end() {
        let proxies = proxies(&["10.0.0.0/8", "2001:db8::/32"], ForwardedHeader::XForwardedFor);
        for (peer, lines, from) in [
            ("192.0.2.9", &["198.51.100.1"][..], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.7, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.7", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.7, 198.51.100.1, 10.2.2.2"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.7, 198.51.100.1", "2001:db8::1,10.2.2.2"], "198.51.100.1"),
            ("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            ("10.0.0.1", &["198.51.100.1:1234"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:7f8::1]:1234"], "2001:7f8::1"),
            ("10.0.0.1", &["2001:7f8::1"], "2001:7f8::1"),
            ("10.0.0.1", &["203.0.113.7, nonsense, 10.2.2.2"], "10.2.2.2"),
            ("10.0.0.1", &["203.0.113.7,"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7", "é, 198.51.100.1"], "10.0.0.1"),
        ] {
            assert_eq!(asked(&proxies, peer, lines).source, source(from), "{peer} {lines:?}");
        }
        let doubted = asked(&proxies, "192.0.2.9", &["198.51.100.1"]).doubted;
        assert_eq!(doubted, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(asked(&proxies, "192.0.2.9", &[]).doubted, None);
    }

    #[test]
    fn of_so_many_hops_the_addresses_do_not_matter() {
        let one = proxies(&["hops:1"], ForwardedHeader::XForwardedFor);
        let two = proxies(&["hops:2"], ForwardedHeader::XForwardedFor);
        for (proxies, lines, from) in [
            (&one, &[][..], "10.0.0.1"),
            (&one, &["198.51.100.1"], "198.51.100.1"),
            // A client in the proxies' own network forges the header.
            (&one, &["203.0.113.7, 10.0.0.9"], "10.0.0.9"),
            (&one, &["203.0.113.7", "10.0.0.9"], "10.0.0.9"),
            (&one, &["203.0.113.7, nonsense"], "10.0.0.1"),
            (&two, &["203.0.113.7, 198.51.100.1, 192.0.2.9"], "198.51.100.1"),
            (&two, &["198.51.100.1"], "198.51.100.1"),
            (&two, &["203.0.113.7, nonsense, 192.0.2.9"], "192.0.2.9"),
        ] {
            let asked = asked(proxies, "10.0.0.1", lines);
            assert_eq!(asked, Sender { source: source(from), doubted: None }, "{lines:?}");
        }
        let said = |texts: &[&str]| {
            Trusted::read(&texts.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(said(&["hops:3"]).unwrap().list(), ["hops:3"]);
        for wrong in [
            &["hops:0"][..],
            &["hops:9"],
            &["hops:"],
            &["hops:-1"],
            &["hops"],
            &["hops:1", "10.0.0.0/8"],
            &["10.0.0.0/8", "hops:1"],
            &["hops:1", "hops:1"],
        ] {
            assert!(said(wrong).unwrap_err().contains("expected"), "{wrong:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_its_standard_says() {
        let proxies = proxies(&["10.0.0.0/8"], ForwardedHeader::Forwarded);
        for (line, from) in [
            ("for=198.51.100.1", "198.51.100.1"),
            ("For=\"198.51.100.1:1234\"; proto=https;by=10.0.0.1", "198.51.100.1"),
            ("for=203.0.113.7, for=198.51.100.1;host=\"a, for=203.0.113.8\"", "198.51.100.1"),
            ("for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=198.51.100.1, for=10.1.1.1;proto=http", "198.51.100.1"),
            ("for=203.0.113.7, for=unknown", "10.0.0.1"),
            ("for=203.0.113.7, for=_hidden, for=10.2.2.2", "10.2.2.2"),
            ("proto=https", "10.0.0.1"),
            // An open quote must not hide the address that the proxy adds.
            ("for=\", for=198.51.100.1", "10.0.0.1"),
            ("for=203.0.113.7;x=\", for=\"198.51.100.1\"", "10.0.0.1"),
            ("for=203.0.113.7;x=\"\\\", for=198.51.100.1;by=\"a\"", "10.0.0.1"),
        ] {
            assert_eq!(asked(&proxies, "10.0.0.1", &[line]).source, source(from), "{line}");
        }
    }

    #[test]
    fn the_host_that_a_trusted_proxy_was_asked_for() {
        use ForwardedHeader::{Forwarded, XForwardedFor};
        let meant = |header: ForwardedHeader, peer: &str, name: &str, line: &str| {
            let mut extensions = Extensions::new();
            extensions.insert(Peer(peer.parse().unwrap()));
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::try_from(name).unwrap(), line.parse().unwrap());
            let proxies = proxies(&["10.0.0.0/8"], header);
            proxies.forwards_for(&extensions, &headers, |host| host == "calls.example.org:8443")
        };
        for (header, name, line, is_meant) in [
            (XForwardedFor, "x-forwarded-host", "calls.example.org:8443", true),
            (XForwardedFor, "x-forwarded-host", "calls.example.org:8443, inner", true),
            (XForwardedFor, "x-forwarded-host", "calls.example.org", false),
            (XForwardedFor, "forwarded", "host=\"calls.example.org:8443\"", false),
            (Forwarded, "forwarded", "for=10.1.1.1;Host=\"calls.example.org:8443\"", true),
            (Forwarded, "forwarded", "for=\", host=\"calls.example.org:8443\"", false),
            (Forwarded, "x-forwarded-host", "calls.example.org:8443", false),
        ] {
            assert_eq!(meant(header, "10.0.0.1", name, line), is_meant, "{name}: {line}");
            assert!(!meant(header, "192.0.2.1", name, line), "its sender is not trusted");
        }
    }

    proptest! {
        /// For any header of a client, the address that the proxy adds counts, or none.
        #[test]
        fn a_client_cannot_choose_its_address(
            said in "[ -~é]{0,60}",
            own_line: bool,
            is_standard: bool,
            by_hops: bool,
        ) {
            let (header, added) = if is_standard {
                (ForwardedHeader::Forwarded, "for=\"[2001:7f8::1]:80\";by=\"10.0.0.1\"")
            } else {
                (ForwardedHeader::XForwardedFor, "2001:7f8::1")
            };
            let proxies = proxies(&[if by_hops { "hops:1" } else { "10.0.0.0/8" }], header);
            let joined = format!("{said}, {added}");
            let lines = if own_line { vec![said.as_str(), added] } else { vec![joined.as_str()] };
            let counted = asked(&proxies, "10.0.0.1", &lines).source;
            prop_assert!([source("2001:7f8::1"), source("10.0.0.1")].contains(&counted), "{counted}");
            if own_line || (!is_standard && said.is_ascii()) {
                prop_assert_eq!(counted, source("2001:7f8::1"));
            }
        }
    }
}
