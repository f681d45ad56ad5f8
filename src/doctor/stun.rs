//! As much of STUN (RFC 8489) and TURN (RFC 8656) as it takes to allocate a relay and give it back. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use md5::{Digest, Md5};
use ring::hmac;

pub const BINDING: u16 = 0x0001;
pub const ALLOCATE: u16 = 0x0003;
pub const REFRESH: u16 = 0x0004;
const SUCCESS: u16 = 0x0100;
const ERROR: u16 = 0x0110;

pub const HEADER_BYTES: usize = 20;
const MAGIC: u32 = 0x2112_A442;
const INTEGRITY_BYTES: usize = 24;

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const LIFETIME: u16 = 0x000D;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// UDP, between the server and the other party.
const RELAY_OVER_UDP: [u8; 4] = [17, 0, 0, 0];

/// The credentials of a client, and what the server has told it to sign them with.
#[derive(Debug, Clone)]
pub struct Login {
    pub username: String,
    pub password: String,
    pub realm: String,
    pub nonce: Vec<u8>,
}

impl Login {
    /// The key of long-term credentials (RFC 8489, 9.2.2).
    fn key(&self) -> hmac::Key {
        let text = format!("{}:{}:{}", self.username, self.realm, self.password);
        hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &Md5::digest(text))
    }
}

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    pub bytes: Vec<u8>,
    method: u16,
    id: [u8; 12],
}

impl Request {
    pub fn new(method: u16, id: [u8; 12], login: Option<&Login>, gives_back: bool) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(method.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend(id);
        if method == ALLOCATE {
            attribute(&mut bytes, REQUESTED_TRANSPORT, &RELAY_OVER_UDP);
        }
        if gives_back {
            attribute(&mut bytes, LIFETIME, &[0; 4]);
        }
        if let Some(login) = login {
            attribute(&mut bytes, USERNAME, login.username.as_bytes());
            attribute(&mut bytes, REALM, login.realm.as_bytes());
            attribute(&mut bytes, NONCE, &login.nonce);
            // The length that is signed includes the signature (RFC 8489, 14.5).
            set_length(&mut bytes, INTEGRITY_BYTES);
            let signature = hmac::sign(&login.key(), &bytes);
            attribute(&mut bytes, MESSAGE_INTEGRITY, signature.as_ref());
        }
        set_length(&mut bytes, 0);
        Self { bytes, method, id }
    }

    /// The reply in `bytes`. None if they are no reply to this request.
    pub fn reply(&self, bytes: &[u8]) -> Option<Reply> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        if header[4..8] != MAGIC.to_be_bytes() || header[8..] != self.id {
            return None;
        }
        let attributes = attributes(bytes.get(HEADER_BYTES..HEADER_BYTES + body_bytes(header))?);
        let find = |wanted: u16| {
            attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value)
        };
        let address = |wanted: u16| xor_address(find(wanted)?, &self.id);
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        if kind == self.method | SUCCESS {
            let (mapped, relayed) = (address(XOR_MAPPED_ADDRESS), address(XOR_RELAYED_ADDRESS));
            return Some(Reply::Granted { mapped, relayed });
        }
        if kind != self.method | ERROR {
            return None;
        }
        let (code, reason) = match find(ERROR_CODE) {
            Some([_, _, class, number, reason @ ..]) => {
                (u16::from(class & 7) * 100 + u16::from(*number), text(reason))
            }
            _ => (0, String::new()),
        };
        let realm = find(REALM).map(text);
        Some(Reply::Refused { code, reason, realm, nonce: find(NONCE).map(<[u8]>::to_vec) })
    }
}

/// A server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Granted {
        /// The client's address, as the server sees it.
        mapped: Option<SocketAddr>,
        /// The address of the relay.
        relayed: Option<SocketAddr>,
    },
    Refused {
        code: u16,
        reason: String,
        realm: Option<String>,
        nonce: Option<Vec<u8>>,
    },
}

/// The length of a message's body, by its header.
pub fn body_bytes(header: &[u8; HEADER_BYTES]) -> usize {
    usize::from(u16::from_be_bytes([header[2], header[3]]))
}

/// Sets the length of the body, with so many bytes that are not there yet.
fn set_length(bytes: &mut [u8], more: usize) {
    let length = u16::try_from(bytes.len() - HEADER_BYTES + more).expect("user ids are short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
}

/// Appends an attribute, padded to four bytes.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u16::try_from(value.len()).expect("values are short").to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of a body, up to one that is incomplete.
fn attributes(mut body: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((head, rest)) = body.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let Some(value) = rest.get(..length) else { break };
        found.push((kind, value));
        body = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An address that is combined with the magic number, and with the request's id if it is of IPv6 (RFC 8489, 14.2).
fn xor_address(value: &[u8], id: &[u8; 12]) -> Option<SocketAddr> {
    let (head, rest) = value.split_first_chunk::<4>()?;
    let magic = MAGIC.to_be_bytes();
    let port = u16::from_be_bytes([head[2] ^ magic[0], head[3] ^ magic[1]]);
    let mask = magic.iter().chain(id);
    let plain: Vec<u8> = rest.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let ip: IpAddr = match head[1] {
        1 => Ipv4Addr::from(*plain.first_chunk::<4>()?).into(),
        2 => Ipv6Addr::from(*plain.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The request and the replies are those of RFC 5769, 2.2 to 2.4.
    const ID: [u8; 12] = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";

    #[test]
    fn addresses_are_those_of_the_vectors() {
        let v4 = [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        assert_eq!(xor_address(&v4, &ID), "192.0.2.1:32853".parse().ok());
        let v6 =
            *b"\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
        let expected = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().ok();
        assert_eq!(xor_address(&v6, &ID), expected);
        assert_eq!(xor_address(&v4[..6], &ID), None);
    }

    /// The vector of RFC 5769, 2.4, without the attributes that a request of this client has not.
    #[test]
    fn a_login_signs_with_the_key_of_the_vector() {
        let login = Login {
            username: "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}".to_owned(),
            password: "TheMatrIX".to_owned(),
            realm: "example.org".to_owned(),
            nonce: b"f//499k954d6OL34oL9FSTvy64sA".to_vec(),
        };
        let mut bytes =
            b"\x00\x01\x00\x60\x21\x12\xa4\x42\x78\xad\x34\x33\xc6\xad\x72\xc0\x29\xda\x41\x2e"
                .to_vec();
        attribute(&mut bytes, USERNAME, login.username.as_bytes());
        attribute(&mut bytes, NONCE, &login.nonce);
        attribute(&mut bytes, REALM, login.realm.as_bytes());
        let signature = hmac::sign(&login.key(), &bytes);
        let expected =
            b"\xf6\x70\x24\x65\x6d\xd6\x4a\x3e\x02\xb8\xe0\x71\x2e\x85\xc9\xa2\x8c\xa8\x96\x66";
        assert_eq!(signature.as_ref(), expected);
    }

    #[test]
    fn replies_to_others_are_none() {
        let request = Request::new(BINDING, ID, None, false);
        let mut reply = request.bytes.clone();
        assert_eq!(request.reply(&reply), None, "it is a request");
        reply[0] = 0x01;
        assert_eq!(request.reply(&reply), Some(Reply::Granted { mapped: None, relayed: None }));
        reply[19] ^= 1;
        assert_eq!(request.reply(&reply), None, "of another request");
        let refused =
            [&[0x01, 0x11, 0, 12][..], &request.bytes[4..], &[0, 9, 0, 8, 0, 0, 4, 1], b"Who?"];
        let reply = request.reply(&refused.concat());
        assert!(
            matches!(reply, Some(Reply::Refused { code: 401, reason, .. }) if reason == "Who?")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes: Vec<u8>, body: Vec<u8>) {
            let request = Request::new(ALLOCATE, ID, None, false);
            request.reply(&bytes);
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            request.reply(&[&[0x01, 0x13], &length[..], &request.bytes[4..HEADER_BYTES], &body].concat());
        }
    }
}
