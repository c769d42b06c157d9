//! What is issued, and what is refused. That others can verify it: tests/process/certs.rs.

use super::*;

#[test]
fn what_is_there_is_not_overwritten_unless_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_, first) = Authority::init(dir, "prod", false).unwrap();
    let before = std::fs::read(&first.key).unwrap();
    let refused = Authority::init(dir, "prod", false).map(drop).unwrap_err();
    assert!(refused.contains("ca.crt") && refused.contains("--force"), "{refused}");
    assert_eq!(std::fs::read(&first.key).unwrap(), before);
    std::fs::remove_file(&first.certificate).unwrap();
    let refused = Authority::init(dir, "prod", false).map(drop).unwrap_err();
    assert!(refused.contains("ca.key"), "one of the two is enough: {refused}");
    Authority::init(dir, "prod", true).unwrap();
    assert_ne!(std::fs::read(&first.key).unwrap(), before);
}

#[test]
fn a_ca_is_found_again_with_the_cluster_that_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let missing = Authority::open(dir).map(drop).unwrap_err();
    assert!(missing.contains("ca.crt") && missing.contains("certs init"), "{missing}");
    Authority::init(dir, "prod.eu-1", false).unwrap();
    let authority = Authority::open(dir).unwrap();
    assert_eq!(authority.cluster_name(), "prod.eu-1");
    let issued = authority.node(dir, 7, &[], LIFETIME, false).unwrap();
    assert_eq!(
        (issued.spiffe.as_str(), &issued.hosts[..]),
        ("spiffe://prod.eu-1/node/7", &LOOPBACK.map(str::to_owned)[..])
    );
    let issued = authority.client(dir, "orders", LIFETIME, false).unwrap();
    assert_eq!(issued.spiffe, "spiffe://prod.eu-1/client/orders");
    assert_eq!(issued.certificate, dir.join("client-orders.crt"));

    // A leaf is no CA, nor is the key of another.
    std::fs::copy(&issued.key, dir.join("ca.key")).unwrap();
    let other = Authority::open(dir).map(drop).unwrap_err();
    assert!(other.contains("not the key of ca.crt"), "{other}");
    std::fs::copy(&issued.certificate, dir.join("ca.crt")).unwrap();
    let leaf = Authority::open(dir).map(drop).unwrap_err();
    assert!(leaf.contains("no CA that `quorate certs init` made"), "{leaf}");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["", "Prod", "a/b", "-a", "a.", &"a".repeat(64)] {
        let refused = Authority::init(dir, name, false).map(drop).unwrap_err();
        assert!(refused.contains(&format!("\"{name}\" is no name of a cluster")), "{refused}");
    }
    let (authority, _) = Authority::init(dir, "prod", false).unwrap();
    for name in ["", "a/b", "..", "a b", "\u{e9}"] {
        assert!(authority.client(dir, name, LIFETIME, false).is_err(), "{name}");
    }
    for host in ["", "10.0.0.1:7001", "a b", "a..b", "http://a", "\u{e9}"] {
        let refused = authority.node(dir, 1, &[host.to_owned()], LIFETIME, false).unwrap_err();
        assert!(refused.contains(&format!("\"{host}\" is no DNS name")), "{refused}");
    }
    assert!(authority.node(dir, 0, &[], LIFETIME, false).is_err());
    for lifetime in [DAY / 2, LIFETIME_MAX + DAY] {
        assert!(
            authority.client(dir, "a", lifetime, false).unwrap_err().contains("1 day to 5 years")
        );
    }
    let left = std::fs::read_dir(dir).unwrap().count();
    assert_eq!(left, 2, "the CA alone");
    let hosts = ["*.example.com".to_owned(), "node_1".to_owned(), "fd00::1".to_owned()];
    assert!(authority.node(dir, 1, &hosts, LIFETIME, false).is_ok());
}

/// It would be valid, and no client would take it.
#[test]
fn what_takes_the_place_of_a_certificate_is_for_the_same_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (authority, _) = Authority::init(dir, "prod", false).unwrap();
    let node = |hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        authority.node(dir, 1, &hosts, LIFETIME, true).map(|issued| (issued.hosts, issued.why))
    };
    let owned = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
    assert_eq!(node(&[]).unwrap(), (owned(&LOOPBACK), " (no --host: on its own machine)"));
    let many: Vec<_> = (0..40).map(|at| format!("{}-{at}.example", "h".repeat(50))).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for hosts in [&["*.a.example", "10.0.0.1", "fd00::1", "node_1"][..], &["b"], &many] {
        assert_eq!(node(hosts).unwrap(), (owned(hosts), ""));
        for _ in 0..2 {
            assert_eq!(node(&[]).unwrap(), (owned(hosts), " (as the one before)"));
        }
    }
    let file = dir.join("node-1.crt");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "half").unwrap();
    let refused = node(&[]).unwrap_err();
    assert!(refused.contains("node-1.crt") && refused.contains("next: name the hosts: --host"));
    node(&["b"]).unwrap();
    let der = der::of_pem(str::from_utf8(&whole).unwrap(), der::CERTIFICATE).unwrap();
    for cut in 0..der.len() {
        let _no_panic = der::hosts(&der[..cut]);
    }
}

/// Nodes would refuse the list, and the certificate that is on it would stay good.
#[test]
fn a_list_that_is_made_after_the_clock_went_back_is_newer_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (authority, _) = Authority::init(dir, "prod", false).unwrap();
    let mut last = (0, Vec::new());
    let (in_2026, day) = (1_796_000_000, 86_400);
    for (now, behind) in [
        (in_2026, None),
        (in_2026, None),
        (in_2026 - 2 * day, Some(2 * day + 1)),
        (in_2026 + day, None),
        (0, Some(in_2026 + day)),
    ] {
        let revoked = authority.revoke_at(dir, &[], Duration::from_secs(now)).unwrap();
        assert_eq!(revoked.clock_behind, behind.map(Duration::from_secs));
        let pem = std::fs::read_to_string(revoked.list).unwrap();
        let der = der::of_pem(&pem, der::LIST).unwrap();
        let number = der::list_number(&der).unwrap();
        // `thisUpdate` is the first time in it, in digits.
        let this_update = der.windows(15).find(|it| it[..2] == [0x17, 0x0d]).unwrap().to_vec();
        assert!(number > last.0 && this_update >= last.1, "{number}, {this_update:?}");
        last = (number, this_update);
    }
}

fn on_the_list(dir: &Path) -> Vec<Vec<u8>> {
    let pem = std::fs::read_to_string(dir.join("ca.crl")).unwrap();
    let der = der::of_pem(&pem, der::LIST).unwrap();
    for cut in 0..der.len() {
        let _no_panic = der::revoked(&der[..cut]);
    }
    der::revoked(&der).unwrap()
}

/// As where a CA is moved to another machine with the files that the nodes have.
#[test]
fn what_was_revoked_stays_so_without_the_record_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (authority, _) = Authority::init(dir, "prod", false).unwrap();
    let issue = |name: &str| authority.client(dir, name, LIFETIME, false).unwrap().certificate;
    authority.revoke(dir, &[issue("a"), issue("b")]).unwrap();
    let before = on_the_list(dir);
    assert_eq!(before.len(), 2);
    std::fs::remove_file(dir.join("ca.revoked")).unwrap();
    let revoked = authority.revoke(dir, &[issue("c")]).unwrap();
    let after = on_the_list(dir);
    assert_eq!((revoked.certificates, after.len()), (3, 3));
    assert!(before.iter().all(|serial| after.contains(serial)));

    std::fs::remove_file(dir.join("ca.revoked")).unwrap();
    std::fs::write(dir.join("ca.crl"), "half").unwrap();
    let refused = authority.revoke(dir, &[]).unwrap_err();
    assert!(refused.contains("ca.crl: it is no list"), "{refused}");
}

#[test]
fn two_that_revoke_at_once_lose_nothing() {
    const AT_ONCE: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (authority, _) = Authority::init(dir, "prod", false).unwrap();
    let issue = |at| authority.client(dir, &format!("c{at}"), LIFETIME, false).unwrap().certificate;
    let certificates: Vec<PathBuf> = (0..AT_ONCE).map(issue).collect();
    std::thread::scope(|scope| {
        for certificate in &certificates {
            let authority = Authority::open(dir).unwrap();
            scope.spawn(move || authority.revoke(dir, std::slice::from_ref(certificate)).unwrap());
        }
    });
    assert_eq!(on_the_list(dir).len(), AT_ONCE);
}

#[test]
fn moments() {
    let at = |seconds| rfc3339(Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01T00:00:00Z");
    assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
}
