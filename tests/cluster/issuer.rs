//! JWTs: who issues them, and the keys that a node verifies them with.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer";
pub(crate) const HOUR: i64 = 3_600;

/// Somebody who issues tokens.
pub(crate) struct Issuer(EcdsaKeyPair);

impl Issuer {
    pub(crate) fn new() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).unwrap())
    }

    pub(crate) fn key_set(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y }] })
    }

    /// A token for the cluster of this name, which ends in so many seconds.
    pub(crate) fn issue(&self, subject: &str, audience: &str, ends_in: i64) -> String {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
        let times = json!({ "iat": now - HOUR, "exp": now + ends_in });
        let mut claims = json!({ "iss": ISSUER, "sub": subject, "aud": [audience] });
        claims.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        let [header, claims] = [json!({ "alg": "ES256", "kid": "k1" }), claims]
            .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
