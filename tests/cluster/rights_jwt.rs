//! Who may call what by a JWT: every method and route again, with tokens that an issuer signed.

use super::guarded::Guarded;
use super::issuer::{HOUR, ISSUER, Issuer};
use super::{rights, rights_http};

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
