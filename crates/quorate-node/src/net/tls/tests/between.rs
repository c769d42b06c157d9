//! Lists that outlive what made them known, and authorities whose lists cannot be read yet.

use rustls::server::danger::ClientCertVerifier;

use super::*;

/// Whether a client below an authority below the one that is trusted gets in.
fn takes_below(tls: &Tls, between: &Authority, serial: u64) -> bool {
    let (client, rest) = (between.client(serial), [between.certificate()]);
    tls.loaded.load().of_clients.verify_client_cert(&client, &rest, wall_time()).is_ok()
}

/// Its certificates are good still: the authority above it is trusted. A node knows it by its own
/// certificate, or since it stands among the authorities, too.
#[tokio::test]
async fn what_an_authority_between_has_revoked_stays_so_when_it_is_not_known_any_more() {
    let root = Authority::new("root");
    let [first, second] = ["first", "second"].map(|name| Authority::below(Some(&root), name, 2060));
    let shown = |by: &Authority| {
        let (cert, key) = by.node(2060);
        (format!("{cert}{}", by.pem), key)
    };
    let both = format!("{}{}", root.pem, first.pem);
    for (what, authorities, by) in
        [("its own certificate", &root.pem, &first), ("an authority", &both, &second)]
    {
        let files = Files::new(&root, &shown(by));
        files.put("ca.crt", authorities);
        files.put("ca.crl", &first.list(1, &[2]));
        let tls = files.open().await;
        assert!(!takes_below(&tls, &first, 2) && takes_below(&tls, &first, 3), "{what}");

        let (before, (cert, key)) = (leaf(&tls), shown(&second));
        files.put("node.crt", &cert);
        files.put("node.key", &key);
        files.put("ca.crt", &root.pem);
        tls.reload().await;
        assert!(leaf(&tls) != before, "{what}: it waits for nothing");
        assert!(!takes_below(&tls, &first, 2) && takes_below(&tls, &first, 3), "{what}: both");
        let set = tls.loaded.load().set;
        tls.reload().await;
        assert!(tls.loaded.load().set == set && tls.is_refused(), "{what}: that is told");

        files.put("ca.crt", &both);
        tls.reload().await;
        assert!(!tls.is_refused() && !takes_below(&tls, &first, 2), "{what}: it is named");
    }
}

/// It may have revoked somebody there. Of nodes and of clients.
#[tokio::test]
async fn an_authority_that_is_added_waits_for_lists_that_are_bad() {
    let (ours, coming) = (Authority::new("ours"), Authority::new("coming"));
    let mut files = Files::new(&ours, &ours.issue("spiffe://prod/host", 1, 2060));
    files.of_nodes(&ours, &ours.node(2060));
    files.put("ca.crl", &ours.list(2, &[]));
    let tls = files.open().await;
    let takes = |of: &Authority, serial| {
        let (loaded, client) = (tls.loaded.load(), of.client(serial));
        let takes = |by: &Arc<dyn ClientCertVerifier>| {
            by.verify_client_cert(&client, &[], wall_time()).is_ok()
        };
        takes(&loaded.of_clients) || takes(&loaded.of_peers)
    };
    let lists = |number| format!("{}{}", ours.list(number, &[]), coming.list(number, &[2]));
    let both = format!("{}{}", ours.pem, coming.pem);
    for (what, bad) in [
        ("half", Some(lists(3)[..100].to_owned())),
        ("twice", Some(format!("{}{}", ours.list(3, &[]), lists(3)))),
        ("older", Some(lists(1))),
        ("none", None),
    ] {
        for name in ["ca.crt", "peer-ca.crt"] {
            match &bad {
                Some(bad) => files.put("ca.crl", bad),
                None => std::fs::remove_file(files.path("ca.crl")).unwrap(),
            }
            files.put(name, &both);
            tls.reload().await;
            assert!(!takes(&coming, 2) && !takes(&coming, 3), "{what}, {name}: it waits");
            assert!(takes(&ours, 2) && tls.is_refused(), "{what}, {name}: that is told");
            files.put("ca.crl", &lists(3));
            tls.reload().await;
            assert!(!takes(&coming, 2) && takes(&coming, 3), "{what}, {name}: with its list");

            files.put(name, &ours.pem);
            files.put("ca.crl", &ours.list(3, &[]));
            tls.reload().await;
            assert!(!tls.is_refused() && !takes(&coming, 3), "{what}, {name}: as at first");
        }
    }
    // Lists that are in use hold nobody back, though one of them is of nobody who is trusted.
    files.put("ca.crt", &both);
    files.put("ca.crl", &lists(3));
    tls.reload().await;
    files.put("ca.crt", &ours.pem);
    tls.reload().await;
    assert!(!takes(&coming, 3) && tls.is_refused());
    let third = Authority::new("third");
    files.put("ca.crt", &format!("{}{}", ours.pem, third.pem));
    tls.reload().await;
    assert!(takes(&third, 3) && !takes(&coming, 3));
}

/// One goes and another comes in one edit, while lists are bad: the first waits for nothing. Of
/// nodes and of clients.
#[tokio::test]
async fn an_authority_that_is_replaced_goes_at_once() {
    let [ours, leaving, coming] = ["ours", "leaving", "coming"].map(Authority::new);
    let mut files = Files::new(&ours, &ours.issue("spiffe://prod/host", 1, 2060));
    files.of_nodes(&ours, &ours.node(2060));
    let tls = files.open().await;
    let of = |all: &[&Authority]| all.iter().map(|one| one.pem.as_str()).collect::<String>();
    let (before, after) = (of(&[&leaving, &ours]), of(&[&coming, &ours]));
    let lists = |number| ours.list(number, &[]);
    for (name, number) in [("ca.crt", 1), ("peer-ca.crt", 3)] {
        let (first, next) = (lists(number), lists(number + 1));
        let trusted = || {
            let loaded = tls.loaded.load();
            let by = if name == "ca.crt" { &loaded.of_clients } else { &loaded.of_peers };
            [&ours, &leaving, &coming]
                .map(|of| by.verify_client_cert(&of.client(2), &[], wall_time()).is_ok())
        };
        for (what, good) in [("the lists of before", &first), ("good ones", &next)] {
            files.put(name, &before);
            files.put("ca.crl", &first);
            tls.reload().await;
            assert_eq!(trusted(), [true, true, false], "{name}, {what}");
            files.put("ca.crl", &next[..100]);
            files.put(name, &after);
            tls.reload().await;
            assert_eq!(trusted(), [true, false, false], "{name}, {what}, to come: half a list");
            let set = tls.loaded.load().set;
            tls.reload().await;
            assert!(tls.loaded.load().set == set && tls.is_refused(), "{name}, {what}: once");
            files.put(name, &before);
            tls.reload().await;
            assert_eq!(trusted(), [true, false, false], "{name}, {what}, to come: no way back");
            files.put(name, &coming.pem);
            tls.reload().await;
            assert_eq!(trusted(), [true, false, false], "{name}, {what}, to come: nobody left");
            files.put(name, &of(&[&coming])[..200]);
            tls.reload().await;
            assert_eq!(trusted(), [true, false, false], "{name}, {what}, to come: half of them");
            files.put(name, &after);
            files.put("ca.crl", good);
            tls.reload().await;
            assert!(!tls.is_refused() && trusted() == [true, false, true], "{name}, {what}");
        }
        files.put(name, &ours.pem);
        files.put("ca.crl", &next);
        tls.reload().await;
    }
}

/// Its lists begin with 1 again. Of one key, they go forward only.
#[tokio::test]
async fn an_authority_that_was_made_anew_under_its_name_is_taken() {
    let [old, new] = ["ours", "ours"].map(Authority::new);
    let files = Files::new(&old, &old.node(2060));
    files.put("ca.crl", &old.list(5, &[2]));
    let tls = files.open().await;
    files.put("ca.crl", &old.list(4, &[]));
    tls.reload().await;
    assert!(tls.is_refused() && !takes(&tls, &old.client(2)), "of the same key");
    let (cert, key) = new.node(2060);
    for (name, text) in [("node.crt", &cert), ("node.key", &key), ("ca.crt", &new.pem)] {
        files.put(name, text);
    }
    files.put("ca.crl", &new.list(1, &[3]));
    tls.reload().await;
    assert!(!tls.is_refused() && takes(&tls, &new.client(2)), "made anew");
    assert!(!takes(&tls, &new.client(3)) && !takes(&tls, &old.client(4)));
}
