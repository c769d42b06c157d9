//! What an access file may say, and what is said of one that cannot be used.

use super::*;
use crate::access::rights::Reach;
use crate::error::with_causes;

const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const OTHER: &str = "sha256:aa7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn read(text: &str) -> Result<Contents, String> {
    let read = parse(text, |path| match path.to_str() {
        Some("keys") => Ok((Digest::of(&[]), Arc::default())),
        _ => Err(AccessError { path: path.to_owned(), problem: Problem::NoFile }),
    });
    read.map_err(|error| with_causes(&error))
}

fn token(id: &str, digest: &str, rest: &str) -> String {
    format!("[[token]]\nid = {id:?}\ndigest = {digest:?}\n{rest}\n")
}

#[test]
fn entries_of_one_token_are_its_rights_together() {
    let text = token("web", DIGEST, "role = 'register'\nnamespace = 'shop'\nprefix = 'web.'")
        + &token("web", DIGEST, "role = 'read'\nnamespace = '*'")
        + &token("root", OTHER, "role = 'admin'\nnot_after = '2027-01-01T00:00:00Z'")
        + "[[certificate]]\nspiffe = 'spiffe://prod/client/a'\nrole = 'operator'\nnamespace = 'shop'\n"
        + "[[certificate]]\ncommon_name = 'a'\nrole = 'read'\nnamespace = 'shop'\n"
        + "[[jwt]]\nissuer = 'i'\njwks = 'keys'\nclaims = { \"a.b\" = 'c', n = 1, t = true }\n"
        + "role = 'read'\nnamespace = 'shop'\n";
    let contents = read(&text).unwrap();
    let digest = Digest::parse(DIGEST).unwrap();
    let web = &contents.tokens[&digest.shelf()][0].1;
    assert_eq!(web.name(), "token:web");
    let may = |role, namespace, name| web.may(role, Reach::Service { namespace, name }, 0);
    assert!(may(Role::Register, "shop", "web.1") && may(Role::Read, "other", "x"));
    assert!(!may(Role::Register, "shop", "web") && !may(Role::Register, "other", "web.1"));
    let root = &contents.tokens[&Digest::parse(OTHER).unwrap().shelf()][0].1;
    let ends = 1_798_761_600;
    assert!(root.may(Role::Admin, Reach::Cluster, ends - 1));
    assert!(!root.may(Role::Admin, Reach::Cluster, ends) && !root.is_live(ends));
    assert_eq!(
        contents.by_spiffe["spiffe://prod/client/a"].name(),
        "certificate:spiffe://prod/client/a"
    );
    assert_eq!(contents.by_common_name["a"].name(), "certificate:a");
    let claims = &contents.jwts[0].claims;
    assert!(
        claims.contains(&("n".to_owned(), 1.into()))
            && claims.contains(&("t".to_owned(), true.into()))
    );
}

#[test]
fn what_is_not_understood_is_named_with_its_line_and_without_its_value() {
    let of_token = |rest: &str| token("web", DIGEST, rest);
    let secret = "qrt_CANARYCANARYCANARYCANARYCANARYCANARYCANARY_12ab34";
    let scope = "namespace = 'shop'";
    for (text, names) in [
        (of_token("role = 'read'"), ["line 1", "namespace"]),
        (format!("\n\n{}", of_token("role = 'read'")), ["line 3", "namespace"]),
        (of_token("role = 'root'\nnamespace = 'shop'"), ["line 4", "root"]),
        (of_token("role = 'admin'\nnamespace = 'shop'"), ["line 1", "namespace, prefix"]),
        (of_token("role = 'admin'\nprefix = 'a'"), ["line 1", "namespace, prefix"]),
        (of_token("role = 'read'\nnamespace = 'a b'"), ["line 1", "namespace"]),
        (of_token("role = 'read'\nnamespace = ''"), ["line 1", "namespace"]),
        (of_token(&format!("role = 'read'\n{scope}\nprefix = '*'")), ["prefix", "*"]),
        (of_token(&format!("role = 'read'\n{scope}\nprefix = '.a'")), ["prefix", ".a"]),
        (of_token(&format!("role = 'read'\n{scope}\nscope = 'a'")), ["line 6", "scope"]),
        (of_token(&format!("role = 'read'\n{scope}\nnot_after = 'soon'")), ["not_after", "soon"]),
        (of_token(&format!("role = '{secret}'\n{scope}")), ["line 4", "qrt_***"]),
        (of_token(&format!("role = 'read'\n{scope}\n{secret} = 1")), ["line 6", "qrt_***"]),
        (token("a", secret, "role = 'read'\nnamespace = '*'"), ["line 1", "digest"]),
        // The example of the documentation, copied (Nacos #10060).
        (token("a", "sha256:...", "role = 'admin'"), ["line 1", "digest"]),
        (token("", DIGEST, "role = 'read'\nnamespace = '*'"), ["line 1", "id"]),
        (
            token("a", DIGEST, "role = 'admin'") + &token("a", OTHER, "role = 'admin'"),
            ["line 5", "another token"],
        ),
        (
            token("a", DIGEST, "role = 'admin'") + &token("b", DIGEST, "role = 'admin'"),
            ["line 5", "\"a\""],
        ),
        ("[[tokens]]\n".to_owned(), ["line 1", "tokens"]),
        ("[[certificate]]\nrole = 'admin'".to_owned(), ["line 1", "spiffe, common_name"]),
        ("[[certificate]]\nspiffe = 'a'\nrole = 'admin'".to_owned(), ["line 1", "spiffe://"]),
        (
            "[[jwt]]\nissuer = 'i'\njwks = 'gone'\nclaims = {a = 'b'}\nrole = 'admin'".to_owned(),
            ["line 1: jwks: gone", "is no regular file"],
        ),
        (
            "[[jwt]]\nissuer = 'i'\njwks = 'keys'\nclaims = {}\nrole = 'admin'".to_owned(),
            ["line 1", "claims"],
        ),
        (
            "[[jwt]]\nissuer = 'i'\njwks = 'keys'\nclaims = {a = ['b']}\nrole = 'admin'".to_owned(),
            ["line 1", "claims"],
        ),
        (
            "[[certificate]]\nspiffe = 'spiffe://prod/client/*'\nrole = 'admin'".to_owned(),
            ["spiffe://prod/client/*", "one entry for each"],
        ),
        (
            "[[certificate]]\nspiffe = 'spiffe://prod/cli ent'\nrole = 'admin'".to_owned(),
            ["line 1", "spiffe:"],
        ),
        (
            format!("[[certificate]]\ncommon_name = '{secret}*'\nrole = 'admin'"),
            ["line 1", "common_name = \"qrt_***"],
        ),
        (
            "[[jwt]]\nissuer = 'i'\njwks = 'keys'\nclaims = {sub = 'a:*'}\nrole = 'admin'"
                .to_owned(),
            ["claims.\"sub\"", "must be equal"],
        ),
        ("# nothing yet\n".to_owned(), ["no entry in it", "nobody could call"]),
        ("token = 1".to_owned(), ["line 1", "sequence"]),
    ] {
        let error = read(&text).expect_err(&text);
        assert!(names.iter().all(|name| error.contains(name)), "{text}\n{error}");
        assert!(!error.contains("CANARY") && !error.contains("ba7816"), "{error}");
    }
}
