//! Which credential identifies which caller, and the file that says so, while it changes.

use http::HeaderValue;

use super::*;

const SERVICE: Reach<'_> = Reach::Service { namespace: "shop", name: "web" };

fn bearer(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}")).unwrap()
}

fn entry(id: &str, token: &str, rest: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[token]]\nid = '{id}'\ndigest = 'sha256:{hex}'\n{rest}\n")
}

#[tokio::test]
async fn without_a_file_everybody_may_do_everything() {
    let access = Access::open("prod", None).await.unwrap();
    let nobody = access.identify(None, None).unwrap();
    assert!(nobody.may_all(Role::Admin, 0) && nobody.name() == "anonymous");
    assert!(access.identify(None, Some(&bearer("anything"))).is_ok());
}

#[tokio::test]
async fn a_file_is_followed_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    let read = "role = 'read'\nnamespace = 'shop'";
    std::fs::write(&path, entry("a", "qrt_a", read)).unwrap();
    let access = Access::open("prod", Some(path.clone())).await.unwrap();
    let changes = access.changes();
    let of = |token: &str| access.identify(None, Some(&bearer(token)));
    assert!(of("qrt_a").unwrap().may(Role::Read, SERVICE, 0));
    assert!(!of("qrt_a").unwrap().may(Role::Register, SERVICE, 0));
    assert_eq!(of("qrt_b").unwrap_err(), Unidentified::Unknown);
    assert_eq!(access.identify(None, None).unwrap_err(), Unidentified::None);

    access.reload().await;
    assert!(!changes.has_changed().unwrap(), "nothing has");
    for bad in ["[[token]]", "[[token]]\nid = 'a'", "\0", &entry("a", "qrt_a", "role = 'x'")] {
        std::fs::write(&path, bad).unwrap();
        access.reload().await;
        assert!(of("qrt_a").is_ok() && !changes.has_changed().unwrap(), "{bad:?}");
    }
    std::fs::remove_file(&path).unwrap();
    access.reload().await;
    assert!(of("qrt_a").is_ok() && !changes.has_changed().unwrap(), "it is gone");

    let expired = format!("{read}\nnot_after = '2020-01-01T00:00:00Z'");
    std::fs::write(&path, entry("a", "qrt_a", &expired) + &entry("b", "qrt_b", read)).unwrap();
    access.reload().await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(of("qrt_a").unwrap_err(), Unidentified::Expired);
    assert!(of("qrt_b").is_ok());
}

/// A token that was taken out does not go on working because of keys that others sign with.
#[tokio::test]
async fn a_file_with_keys_that_is_bad_keeps_no_other_change_away() {
    let dir = tempfile::tempdir().unwrap();
    let (path, jwks) = (dir.path().join("access.toml"), dir.path().join("jwks.json"));
    let key = r#"{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    std::fs::write(&jwks, format!(r#"{{"keys":[{key}]}}"#)).unwrap();
    let of_keys = |jwks: &Path| {
        format!("[[jwt]]\nissuer = 'i'\njwks = '{}'\n", jwks.display())
            + "claims = { a = 'b' }\nrole = 'read'\nnamespace = 'shop'\n"
    };
    let read = "role = 'read'\nnamespace = 'shop'";
    let (a, b) = (entry("a", "qrt_a", read), entry("b", "qrt_b", read));
    std::fs::write(&path, of_keys(&jwks) + &a).unwrap();
    let access = Access::open("prod", Some(path.clone())).await.unwrap();
    let of = |token: &str| access.identify(None, Some(&bearer(token)));
    let keys = || access.rights.load().contents.jwts[0].keys.clone();
    for (what, bad) in [("half", Some("{\"keys\":")), ("not there", None)] {
        match bad {
            Some(bad) => std::fs::write(&jwks, bad).unwrap(),
            None => std::fs::remove_file(&jwks).unwrap(),
        }
        let (taken_out, put_in) = if bad.is_some() { ("qrt_a", &b) } else { ("qrt_b", &a) };
        assert!(of(taken_out).is_ok(), "{what}");
        std::fs::write(&path, of_keys(&jwks) + put_in).unwrap();
        access.reload().await;
        assert_eq!(of(taken_out).unwrap_err(), Unidentified::Unknown, "{what}");
        assert!(access.is_refused(), "{what}");
        assert!(keys().find("k1").is_some(), "{what}: the last good keys stay");
    }
    let changes = access.changes();
    access.reload().await;
    assert!(!changes.has_changed().unwrap(), "nothing has");

    // One that was never read has no keys, and the rest counts.
    std::fs::write(&path, of_keys(&dir.path().join("new.json")) + &b).unwrap();
    access.reload().await;
    assert!(of("qrt_b").is_ok() && of("qrt_a").is_err() && access.is_refused());
    assert!(keys().find("k1").is_none());
    assert!(Access::open("prod", Some(path)).await.is_err(), "nothing starts so");
}

/// Without its last lines, an entry can say more rights than it will.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_gives_no_rights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    let read = "role = 'read'\nnamespace = 'shop'";
    std::fs::write(&path, entry("a", "qrt_a", read)).unwrap();
    let access = Access::open("prod", Some(path.clone())).await.unwrap();
    let b = entry("b", "qrt_b", &format!("{read}\nprefix = 'orders'"));
    let half = b.split_once("prefix").unwrap().0;
    let of = |token: &str| access.identify(None, Some(&bearer(token)));

    std::fs::write(&path, half).unwrap();
    let written = async {
        sleep(SETTLES / 2).await;
        std::fs::write(&path, &b).unwrap();
    };
    tokio::join!(access.reload(), written);
    assert!(of("qrt_b").is_err() && of("qrt_a").is_ok() && access.is_refused());
    access.reload().await;
    assert!(of("qrt_a").is_err() && !access.is_refused());
    let b = of("qrt_b").unwrap();
    assert!(!b.may(Role::Read, SERVICE, 0), "{b:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    let error = with_causes(&Access::open("prod", Some(path.clone())).await.unwrap_err());
    assert!(error.contains("access.toml"), "{error}");
    std::fs::write(&path, "\n[[token]]\n").unwrap();
    let error = with_causes(&Access::open("prod", Some(path)).await.unwrap_err());
    assert!(error.contains("access.toml") && error.contains("line 2"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_known_by_its_id_and_a_token_goes_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    let admin = "role = 'admin'\n";
    let text = format!("[[certificate]]\nspiffe = 'spiffe://prod/client/a'\n{admin}\n")
        + &format!("[[certificate]]\ncommon_name = 'root'\n{admin}\n")
        + &entry("a", "qrt_a", "role = 'read'\nnamespace = 'shop'");
    std::fs::write(&path, text).unwrap();
    let access = Access::open("prod", Some(path)).await.unwrap();
    let certificate = |spiffe: Option<&str>, common_name: Option<&str>| CertificateId {
        spiffe: spiffe.map(str::to_owned),
        common_name: common_name.map(str::to_owned),
    };
    let of = |spiffe, name| access.identify(Some(&certificate(spiffe, name)), None);
    let name = |found: Result<Arc<Principal>, Unidentified>| found.unwrap().name().to_owned();
    assert_eq!(
        name(of(Some("spiffe://prod/client/a"), None)),
        "certificate:spiffe://prod/client/a"
    );
    assert_eq!(name(of(None, Some("root"))), "certificate:root");
    for (spiffe, common_name) in [
        (Some("spiffe://prod/client/b"), Some("root")),
        (Some("spiffe://prod/client/A"), None),
        (Some("spiffe://prod/client/a/"), None),
        (None, Some("Root")),
        (None, Some("spiffe://prod/client/a")),
        (None, None),
        (Some("spiffe://test/node/4"), None),
        (Some("spiffe://prod/node/x"), None),
    ] {
        let refused = of(spiffe, common_name).unwrap_err();
        assert_eq!(refused, Unidentified::NoRule, "{spiffe:?} {common_name:?}");
    }
    let node = of(Some("spiffe://prod/node/4"), None).unwrap();
    assert!(node.may(Role::Admin, Reach::Member(4), 0), "it may ask to be taken in");
    assert!(!node.may(Role::Admin, Reach::Member(5), 0) && !node.may_some(Role::Read, 0));

    let both = certificate(Some("spiffe://prod/client/a"), None);
    let by_token = access.identify(Some(&both), Some(&bearer("qrt_a"))).unwrap();
    assert_eq!(by_token.name(), "token:a");
    let refused = access.identify(Some(&both), Some(&bearer("qrt_wrong")));
    assert_eq!(refused.unwrap_err(), Unidentified::Unknown, "a certificate mends no wrong token");
}

#[tokio::test]
async fn nothing_shows_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.toml");
    std::fs::write(&path, entry("a", "qrt_CANARY", "role = 'admin'")).unwrap();
    let access = Access::open("prod", Some(path)).await.unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, b"qrt_CANARY");
    let hex = format!("{:02x}{:02x}", digest.as_ref()[0], digest.as_ref()[1]);
    let principal = access.identify(None, Some(&bearer("qrt_CANARY"))).unwrap();
    let shown = format!("{access:?} {principal:?}");
    assert!(!shown.contains("CANARY"), "{shown}");
    assert!(!shown.contains(&format!("\"{hex}")) && shown.contains("Digest(***)"), "{shown}");
}
