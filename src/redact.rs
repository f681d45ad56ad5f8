//! The form of user ids in the log: plain, or as short keyed hashes, which are the same in all lines of a user.

use std::{fmt, sync::OnceLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// Set if user ids are hashed.
static KEY: OnceLock<Hmac<Sha256>> = OnceLock::new();

/// Starts hashing user ids in the log, with this key or else with a random one of this process.
pub fn hash_users(key: Option<&str>) {
    let key = match key {
        Some(key) => with_key(key.as_bytes()),
        None => with_key(&[*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat()),
    };
    // Logging starts once per process.
    let _ = KEY.set(key);
}

fn with_key(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key of any length will do")
}

/// A user id for the log.
pub struct Logged<'a>(pub &'a str);

impl fmt::Display for Logged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KEY.get() {
            None => f.write_str(self.0),
            Some(key) => f.write_str(&hashed(key, self.0)),
        }
    }
}

impl fmt::Debug for Logged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KEY.get() {
            None => self.0.fmt(f),
            Some(key) => f.write_str(&hashed(key, self.0)),
        }
    }
}

/// 8 of the 32 bytes distinguish millions of users.
fn hashed(key: &Hmac<Sha256>, user: &str) -> String {
    let digest = key.clone().chain_update(user).finalize().into_bytes();
    let start = digest.first_chunk().expect("it has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_one_hash_with_one_key() {
        let (key, other) = (with_key(b"one"), with_key(b"other"));
        assert_eq!(hashed(&key, "anna").len(), 16);
        assert_eq!(hashed(&key, "anna"), hashed(&key, "anna"));
        assert_ne!(hashed(&key, "anna"), hashed(&key, "ben"));
        assert_ne!(hashed(&key, "anna"), hashed(&other, "anna"));
    }
}
