//! Tokens as issuers make them, and as they must not be.

use base64::Engine as _;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::json;

use super::*;
use crate::access::rights::{Reach, Role};

const NOW: Seconds = 1_800_000_100;
const SHOP: Reach<'_> = Reach::Service { namespace: "shop", name: "web" };

/// Made once with `openssl genrsa 2048`; the private key is gone.
const RSA_N: &str = "ruHd29qOLelNs3HKgYJ-B2iRBEWLxxd9jEGMqe9VI6CcmJxeXmaZYdr3DzFP9NkYCp5R1GKliWMtgsVF2yG3\
    KNajNB6MJp62f8Vc3NLz8DTc7KEBJnRNRAXJAkgLMZR08Oy8OYfOwpCv4ku0NjC4ZGP_2UxRSXzEsVoA35VB\
    U5fl8ZrSGKcDt0ZL4XF8BHDnmE_pQw5SMoLRvLdvQc_Ufm6qTdIlBMErZF56zbP3z-jXOnVi9gg-xoD7l3ji\
    WPYJg2EyTtJNCqb-uSp7kV5qlOP53k5cT0uEUYoWmZGitp6q_pgKlu5Z8ihZeAJ2jw9GKwPf4H4DRE2qU0-h\
    12Hb9w";
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2lzc3VlciIsInN1YiI6InN5c3R\
    lbTpzZXJ2aWNlYWNjb3VudDpzaG9wOndlYiIsImF1ZCI6WyJwcm9kIl0sImV4cCI6MTgwMDAwMzYwMCwiaWF\
    0IjoxODAwMDAwMDAwfQ.Kmq1RkUy9HYM4GauDj5WSOV5LooFDUt0fkoiQbjU4zG-ERAsfLvh64TwrXoOr6cC\
    eON-12z-xujfy-LyTcxRHHtULejvw3lKOX4w84mNuxTKTqPwxDwfGuIBMS5ZBO6_AZ0EagMu-cVIpLIRFfzH\
    9iTNwoFgUCY31C8YrXecn9D_F2E9tVVLPGRl31HRr6jZdUYyD9bRNVQUPQx6GX5tOPx_4GRv3hYhYjPwP2Q4\
    oaKdE0wr8SoBdCLQfRyG5Wg4ydHhN60y0xMIfrtGHco5KK6jJRBpHHv6n5WoMAOpzPq8xHv5Wd6_My7srloH\
    YqMUQfBhVNYNJ4k900h8Dg5Yqg";

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Somebody who issues tokens.
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).unwrap())
    }

    fn public(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": "k1", "x": encoded(x), "y": encoded(y)})
    }

    fn signed(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", encoded(header), encoded(payload));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encoded(signature))
    }

    fn issue(&self, claims: &Value) -> String {
        self.signed(r#"{"alg":"ES256","kid":"k1"}"#, &claims.to_string())
    }
}

fn keys(keys: &[Value]) -> Arc<KeySet> {
    Arc::new(KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap())
}

fn rule(keys: &Arc<KeySet>, claims: &[(&str, &str)], namespace: &str) -> Rule {
    let claims = claims.iter().map(|(path, value)| ((*path).to_owned(), json!(value)));
    let namespace = Some(namespace.to_owned());
    let grant = Grant { role: Role::Register, namespace, prefix: String::new(), until: None };
    let (keys, claims) = (keys.clone(), claims.collect());
    Rule { issuer: "https://issuer".to_owned(), keys, claims, grant }
}

/// As the API server of Kubernetes makes them for a projected volume.
fn of_kubernetes() -> Value {
    json!({
        "aud": ["prod"],
        "exp": 1_800_003_607,
        "iat": 1_800_000_000,
        "iss": "https://issuer",
        "jti": "7a3c1a2e-9a3e-4f0e-b1f4-d2a1e9a2c7c1",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "n1", "uid": "5b2e4d05-0000-4d6f-a6a4-000000000001"},
            "pod": {"name": "web-5d", "uid": "5b2e4d05-0000-4d6f-a6a4-000000000002"},
            "serviceaccount": {"name": "web", "uid": "5b2e4d05-0000-4d6f-a6a4-000000000003"},
            "warnafter": 1_800_003_000
        },
        "nbf": 1_800_000_000,
        "sub": "system:serviceaccount:shop:web"
    })
}

#[test]
fn a_service_account_token_is_a_credential_by_its_nested_claims() {
    let issuer = Issuer::new();
    let keys = keys(&[issuer.public()]);
    let by = [("kubernetes.io.namespace", "shop"), ("kubernetes.io.serviceaccount.name", "web")];
    let rules = [rule(&keys, &by, "shop"), rule(&keys, &[by[0]], "shared")];
    let token = issuer.issue(&of_kubernetes());
    let principal = verify(&token, &rules, "prod", NOW).unwrap();
    assert_eq!(principal.name(), "jwt:https://issuer#system:serviceaccount:shop:web");
    assert!(principal.may(Role::Register, SHOP, NOW));
    let shared = Reach::Service { namespace: "shared", name: "web" };
    assert!(principal.may(Role::Register, shared, NOW), "the rules that match count together");
    assert!(!principal.may(Role::Operator, SHOP, NOW));
    assert!(principal.may(Role::Read, SHOP, 1_800_003_607 + LEEWAY - 1));
    assert!(!principal.may(Role::Read, SHOP, 1_800_003_607 + LEEWAY), "it ends with the token");

    let mut of_other = of_kubernetes();
    of_other["kubernetes.io"]["serviceaccount"]["name"] = json!("db");
    let principal = verify(&issuer.issue(&of_other), &rules, "prod", NOW).unwrap();
    assert!(!principal.may(Role::Register, SHOP, NOW));
    of_other["kubernetes.io"]["namespace"] = json!("evil");
    let refused = verify(&issuer.issue(&of_other), &rules, "prod", NOW);
    assert_eq!(refused, Err(Unidentified::NoRule));
}

/// Both have a caller of this name: in logs, and in what is remembered of writes, they are two.
#[test]
fn the_same_subject_of_two_issuers_is_two_principals() {
    let (one, two) = (Issuer::new(), Issuer::new());
    let by = [("kubernetes.io.namespace", "shop")];
    let rule_of = |issuer: &Issuer, name: &str| Rule {
        issuer: name.to_owned(),
        ..rule(&keys(&[issuer.public()]), &by, "shop")
    };
    let name = |issuer: &Issuer, iss: &str, sub: &str| {
        let rules = [rule_of(&one, "https://one"), rule_of(&two, "https://one#two")];
        let mut claims = of_kubernetes();
        (claims["iss"], claims["sub"]) = (json!(iss), json!(sub));
        verify(&issuer.issue(&claims), &rules, "prod", NOW).unwrap().name().to_owned()
    };
    assert_eq!(name(&one, "https://one", "web"), "jwt:https://one#web");
    assert_eq!(name(&two, "https://one#two", "web"), "jwt:https://one%23two#web");
    let of_one = name(&one, "https://one", "two#web");
    assert_ne!(of_one, name(&two, "https://one#two", "web"));
}

/// CVE-2026-25537 (jsonwebtoken): a time of another type counted as none. CVE-2020-13170 (Consul):
/// a token of one cluster was good in another.
#[test]
fn claims_are_of_their_type_and_of_this_cluster_and_time() {
    let issuer = Issuer::new();
    let rules =
        [rule(&keys(&[issuer.public()]), &[("sub", "system:serviceaccount:shop:web")], "a")];
    let with = |claim: &str, value: Value| {
        let mut claims = of_kubernetes();
        claims[claim] = value;
        verify(&issuer.issue(&claims), &rules, "prod", NOW).map(|_| ())
    };
    let without = |claim: &str| {
        let mut claims = of_kubernetes();
        claims.as_object_mut().unwrap().remove(claim);
        verify(&issuer.issue(&claims), &rules, "prod", NOW).map(|_| ())
    };
    let of_type = Err(Unidentified::Claims("iss sub aud exp iat"));
    for claim in ["exp", "nbf", "iat"] {
        for value in [json!("1800003607"), json!(-1), json!(1e300), json!(1.5), json!([1])] {
            assert_eq!(with(claim, value.clone()), of_type, "{claim} = {value}");
        }
        assert_eq!(with(claim, Value::Null), of_type, "{claim} = null");
    }
    for claim in ["exp", "iat", "iss", "sub", "aud"] {
        assert_eq!(without(claim), of_type, "{claim}");
    }
    assert_eq!(without("nbf"), Ok(()));
    assert_eq!(with("sub", json!("")), Err(Unidentified::Claims("sub")));
    assert_eq!(with("iss", json!("https://other")), Err(Unidentified::NoRule));
    for (aud, taken) in [
        (json!("prod"), Ok(())),
        (json!(["vault", "prod"]), Ok(())),
        (json!("test"), Err(Unidentified::Audience)),
        (json!([]), Err(Unidentified::Audience)),
        (json!(["Prod", "prod2"]), Err(Unidentified::Audience)),
        (json!({"prod": true}), of_type),
    ] {
        assert_eq!(with("aud", aud.clone()), taken, "{aud}");
    }
    for (claim, value, taken) in [
        ("exp", NOW - LEEWAY + 1, Ok(())),
        ("exp", NOW - LEEWAY, Err(Unidentified::Expired)),
        ("nbf", NOW + LEEWAY, Ok(())),
        ("nbf", NOW + LEEWAY + 1, Err(Unidentified::NotYet)),
        ("iat", NOW + LEEWAY + 1, Err(Unidentified::NotYet)),
        ("exp", 1_800_000_000 + LIFE_MAX, Ok(())),
        ("exp", 1_800_000_000 + LIFE_MAX + 1, Err(Unidentified::TooLong)),
        ("exp", u64::MAX, Err(Unidentified::TooLong)),
    ] {
        assert_eq!(with(claim, json!(value)), taken, "{claim} = {value}");
    }
    // The same claim twice is no claim.
    let twice = r#"{"exp":1,"exp":1800003607,"iat":1800000000,"iss":"https://issuer","sub":"a","aud":"prod"}"#;
    let token = issuer.signed(r#"{"alg":"ES256","kid":"k1"}"#, twice);
    assert_eq!(
        verify(&token, &rules, "prod", NOW),
        Err(Unidentified::Claims("iss sub aud exp iat"))
    );
}

#[test]
fn what_the_header_says_chooses_a_key_and_nothing_else() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let keys = keys(&[issuer.public()]);
    let rules = [rule(&keys, &[("sub", "system:serviceaccount:shop:web")], "shop")];
    let verify = |token: &str| verify(token, &rules, "prod", NOW).map(|_| ());
    let claims = of_kubernetes().to_string();
    assert_eq!(verify(&issuer.issue(&of_kubernetes())), Ok(()));
    let unknown = Err(Unidentified::Unknown);
    for header in [
        r#"{"alg":"none","kid":"k1"}"#,
        r#"{"alg":"HS256","kid":"k1"}"#,
        r#"{"alg":"RS256","kid":"k1"}"#,
        r#"{"alg":"es256","kid":"k1"}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","kid":null}"#,
        r#"{"alg":"ES256","kid":"k2"}"#,
        r#"{"alg":"ES256","kid":"../../etc/passwd"}"#,
        r#"{"alg":"ES256","kid":"k1","crit":["exp"]}"#,
        r#"{"alg":"ES256","kid":"k1","kid":"k1"}"#,
        "{}",
        "[]",
    ] {
        assert_eq!(verify(&issuer.signed(header, &claims)), unknown, "{header}");
    }
    // Keys and places of keys in the header are not looked at.
    let with_key = format!(r#"{{"alg":"ES256","kid":"k1","jwk":{},"jku":"x"}}"#, stranger.public());
    assert_eq!(verify(&stranger.signed(&with_key, &claims)), unknown);
    assert_eq!(verify(&issuer.signed(&with_key, &claims)), Ok(()));
    assert_eq!(verify(&stranger.issue(&of_kubernetes())), unknown);

    // With the public key as the secret of a MAC.
    let message = format!("{}.{}", encoded(r#"{"alg":"HS256","kid":"k1"}"#), encoded(&claims));
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, issuer.0.public_key().as_ref());
    let forged = ring::hmac::sign(&secret, message.as_bytes());
    assert_eq!(verify(&format!("{message}.{}", encoded(forged))), unknown);

    let token = issuer.issue(&of_kubernetes());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let longer = encoded(claims.replace("shop", "evil"));
    for token in [
        message.to_owned(),
        format!("{message}."),
        format!("{header}.{longer}.{signature}"),
        format!("{token}="),
        format!("{token}.{signature}"),
        format!(".{token}"),
        format!("{header}..{signature}"),
        format!(" {token}"),
        "..".to_owned(),
        ".".to_owned(),
    ] {
        assert_eq!(verify(&token), unknown, "{token}");
    }
    assert!(!payload.is_empty());
}

#[test]
fn each_kind_of_key_verifies_what_it_has_signed() {
    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "sig", "x": encoded(pair.public_key())});
    let rsa =
        json!({"kty": "RSA", "alg": "RS256", "kid": "rsa", "use": "sig", "n": RSA_N, "e": "AQAB"});
    let keys = keys(&[ed, rsa, json!({"kty": "oct", "kid": "mac", "k": "AAAA"})]);
    let rules = [rule(&keys, &[("sub", "system:serviceaccount:shop:web")], "shop")];
    assert!(verify(RSA_TOKEN, &rules, "prod", NOW).is_ok());
    let damaged = RSA_TOKEN.replace(".Kmq1", ".Kmq2");
    assert_eq!(verify(&damaged, &rules, "prod", NOW), Err(Unidentified::Unknown));

    let message = format!(
        "{}.{}",
        encoded(r#"{"alg":"EdDSA","kid":"ed"}"#),
        encoded(of_kubernetes().to_string())
    );
    let token = format!("{message}.{}", encoded(pair.sign(message.as_bytes())));
    assert!(verify(&token, &rules, "prod", NOW).is_ok());
}

#[test]
fn key_sets_are_read_strictly() {
    let key = Issuer::new().public();
    let with = |name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes())
    };
    assert!(with("alg", json!("ES256")).is_ok());
    for (name, value) in [
        ("alg", json!("RS256")),
        ("use", json!("enc")),
        ("kid", Value::Null),
        ("crv", json!("P-384")),
        ("x", json!("AAAA")),
        ("x", json!("not base64!")),
        ("kty", json!("oct")),
    ] {
        let refused = with(name, value.clone()).unwrap_err();
        assert!(refused.to_string().contains("no key"), "{name} = {value}: {refused}");
    }
    let twice = json!({ "keys": [key, key] }).to_string();
    assert!(KeySet::parse(twice.as_bytes()).unwrap_err().to_string().contains("k1"));
    for text in ["", "{", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":{}}"#] {
        assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// As a node does it: by the bearer of a call, with keys from a file that change while it runs.
#[tokio::test]
async fn a_service_account_token_is_the_bearer_as_long_as_its_key_is_there() {
    let now = crate::wall::now();
    let (issuer, next) = (Issuer::new(), Issuer::new());
    let dir = tempfile::tempdir().unwrap();
    let (path, jwks) = (dir.path().join("access.toml"), dir.path().join("jwks.json"));
    let text = format!("[[jwt]]\nissuer = 'https://issuer'\njwks = '{}'\n", jwks.display())
        + "claims = { \"kubernetes.io.namespace\" = 'shop' }\nrole = 'read'\nnamespace = 'shop'";
    let write =
        |keys: &[Value]| std::fs::write(&jwks, json!({ "keys": keys }).to_string()).unwrap();
    std::fs::write(&path, text).unwrap();
    write(&[issuer.public()]);
    let access = crate::access::Access::open("prod", Some(path)).await.unwrap();
    let mut claims = of_kubernetes();
    for (claim, value) in [("iat", now), ("nbf", now), ("exp", now + 3_607)] {
        claims[claim] = json!(value);
    }
    let bearer = |token: String| http::HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let (old, new) = (bearer(issuer.issue(&claims)), bearer(next.issue(&claims)));
    let of = |bearer| access.identify(None, Some(bearer));
    for _ in 0..2 {
        let principal = of(&old).unwrap();
        assert_eq!(principal.name(), "jwt:https://issuer#system:serviceaccount:shop:web");
        assert!(principal.may(Role::Read, SHOP, now));
        assert_eq!(of(&new).unwrap_err(), Unidentified::Unknown);
    }
    write(&[next.public()]);
    access.reload().await;
    assert!(of(&new).is_ok());
    assert_eq!(of(&old).unwrap_err(), Unidentified::Unknown, "what was verified is not kept");
    std::fs::write(&jwks, "{").unwrap();
    access.reload().await;
    assert!(of(&new).is_ok(), "the last good keys stay");
    claims["exp"] = json!(now - 61);
    claims["iat"] = json!(now - 600);
    assert_eq!(of(&bearer(next.issue(&claims))).unwrap_err(), Unidentified::Expired);
}

#[test]
fn a_claim_is_found_by_its_own_name_before_its_parts() {
    let claims = json!({"a.b": 1, "a": {"b": 2, "b.c": 3, "d": {"e": 4}}, "a.b.c": {"d": 5}});
    for (path, expected) in [
        ("a.b", Some(json!(1))),
        ("a.b.c.d", Some(json!(5))),
        ("a.d.e", Some(json!(4))),
        ("a.d", Some(json!({"e": 4}))),
        ("a.x", None),
        ("", None),
        (".", None),
        ("a.d.e.f", None),
    ] {
        assert_eq!(find(&claims, path), expected.as_ref(), "{path}");
    }
}
