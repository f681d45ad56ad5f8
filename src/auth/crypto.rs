//! The signature algorithms of the JWT library, implemented by ring, which TLS uses too. The library's own
//! backends are a second TLS implementation, or an RSA with a known timing weakness.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{Error, Signer, Verifier},
};
use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
        RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    },
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| signer(*algorithm, key),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    // Only needed to write keys as JWKs.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Must be called before any use of the library. Idempotent.
pub fn install() {
    // Fails if a provider is installed already.
    let _ = PROVIDER.install_default();
}

struct Hs256(hmac::Key);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

/// A public key in its own encoding: RSA as DER, the others as raw bytes.
struct Whole {
    algorithm: Algorithm,
    checks: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
}

impl Verifier<Vec<u8>> for Whole {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let key = UnparsedPublicKey::new(self.checks, &self.key);
        key.verify(message, signature).map_err(|_| Error::new())
    }
}

impl JwtVerifier for Whole {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// An RSA key as modulus and exponent, the form of a key set.
struct Numbers {
    algorithm: Algorithm,
    checks: &'static RsaParameters,
    key: RsaPublicKeyComponents<Vec<u8>>,
}

impl Verifier<Vec<u8>> for Numbers {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        self.key.verify(self.checks, message, signature).map_err(|_| Error::new())
    }
}

impl JwtVerifier for Numbers {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn signer(algorithm: Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if algorithm != Algorithm::HS256 || key.family() != algorithm.family() {
        return Err(ErrorKind::UnsupportedAlgorithm.into());
    }
    Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))))
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let whole = |checks| -> Result<Box<dyn JwtVerifier>> {
        let key = key.try_get_as_bytes()?.to_vec();
        Ok(Box::new(Whole { algorithm, checks, key }))
    };
    let rsa = |checks| match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            let key = RsaPublicKeyComponents { n: n.clone(), e: e.clone() };
            Ok(Box::new(Numbers { algorithm, checks, key }) as Box<dyn JwtVerifier>)
        }
        DecodingKeyKind::SecretOrDer(_) => whole(checks),
    };
    match algorithm {
        Algorithm::HS256 => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?);
            Ok(Box::new(Hs256(key)))
        }
        Algorithm::RS256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::PS256 => rsa(&RSA_PSS_2048_8192_SHA256),
        Algorithm::ES256 => whole(&ECDSA_P256_SHA256_FIXED),
        Algorithm::EdDSA => whole(&ED25519),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}
