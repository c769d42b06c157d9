//! Who may call what by a JWT: every method and route again, with tokens that an issuer signed.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::guarded::Guarded;
use super::{rights, rights_http};

const ISSUER: &str = "https://issuer";
const HOUR: i64 = 3_600;

/// The subjects, with what their rules give them: as the tokens of the other tests, in the order of
/// the columns.
const SUBJECTS: [(&str, &str, &str); 6] = [
    ("read", "read", "namespace = 'default'\nprefix = 'orders'"),
    ("register", "register", "namespace = 'default'\nprefix = 'orders'"),
    ("elsewhere", "operator", "namespace = 'elsewhere'\nprefix = ''"),
    ("other", "operator", "namespace = 'default'\nprefix = 'pay'"),
    ("operator", "operator", "namespace = 'default'\nprefix = 'orders'"),
    ("root", "admin", ""),
];

/// Somebody who issues tokens.
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).unwrap())
    }

    fn key_set(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y }] })
    }

    /// A token for the cluster of this name, which ends in so many seconds.
    fn issue(&self, subject: &str, audience: &str, ends_in: i64) -> String {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_gives_what_its_rule_says_by_each_method_and_route() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, issuer.key_set().to_string()).unwrap();
    let rule = |(subject, role, of)| {
        format!(
            "[[jwt]]\nissuer = '{ISSUER}'\njwks = '{}'\nclaims = {{ sub = '{subject}' }}\n\
             role = '{role}'\n{of}\n",
            keys.display()
        )
    };
    let guarded = Guarded::start(1, &SUBJECTS.map(rule).concat()).await;
    let name = quorate_node::CLUSTER_NAME;
    let tokens = SUBJECTS.map(|(subject, ..)| issuer.issue(subject, name, HOUR));
    let somebody = tokens.each_ref().map(String::as_str);
    let nobody = [
        issuer.issue("root", name, -2 * HOUR / 60),
        issuer.issue("root", "another-cluster", HOUR),
        issuer.issue("nobody", name, HOUR),
        stranger.issue("root", name, HOUR),
    ];
    let nobody = nobody.each_ref().map(|token| Some(token.as_str()));
    let wrong = rights::wrong_answers(&guarded, &nobody, &somebody).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let wrong = rights_http::wrong_answers(&guarded, &nobody, &somebody).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
