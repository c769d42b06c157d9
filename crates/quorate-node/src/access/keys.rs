//! The keys that sign JWTs (RFC 7517): each of one algorithm, found by its id. Symmetric ones are
//! none: a node that checks with them could sign.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;

use crate::access::error::{KEYS_MAX, KeysError};

/// The keys of one file, by their ids.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySet(Vec<(String, Key)>);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Ed25519(Vec<u8>),
    /// An uncompressed point.
    P256(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl KeySet {
    /// The keys of a JWKS that can check signatures; others are passed over (RFC 7517, section 5).
    ///
    /// # Errors
    /// It is none, two keys have the same id, or none can be used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, KeysError> {
        let set: JwkSet = serde_json::from_slice(text)?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeysError::Many { found: set.keys.len() });
        }
        let mut keys: Vec<(String, Key)> = Vec::new();
        for jwk in set.keys {
            let Some((kid, key)) = jwk.key() else { continue };
            if keys.iter().any(|(other, _)| *other == kid) {
                return Err(KeysError::Twice { kid });
            }
            keys.push((kid, key));
        }
        match keys.is_empty() {
            true => Err(KeysError::None),
            false => Ok(Self(keys)),
        }
    }

    pub(crate) fn find(&self, kid: &str) -> Option<&Key> {
        self.0.iter().find(|(id, _)| id == kid).map(|(_, key)| key)
    }
}

impl Jwk {
    fn key(self) -> Option<(String, Key)> {
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let of = |part: Option<Vec<u8>>| part.filter(|part| part.len() == 32);
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Key::Ed25519(of(bytes(self.x))?),
            ("EC", Some("P-256")) => {
                Key::P256([vec![4], of(bytes(self.x))?, of(bytes(self.y))?].concat())
            }
            ("RSA", _) => Key::Rsa { n: bytes(self.n)?, e: bytes(self.e)? },
            _ => return None,
        };
        let is_named = self.alg.is_none_or(|alg| alg == key.algorithm());
        let signs = self.used_for.is_none_or(|used_for| used_for == "sig");
        (is_named && signs).then_some((self.kid?, key))
    }
}

impl Key {
    /// The only one that it is used with.
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::P256(_) => "ES256",
            Self::Rsa { .. } => "RS256",
        }
    }

    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            Self::P256(key) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            Self::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
        };
        verified.is_ok()
    }
}
