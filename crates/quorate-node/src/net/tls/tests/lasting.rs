//! How long a connection lasts on which more than one certificate was shown.

use tokio::time::timeout;

use super::*;

static NOW: AtomicU64 = AtomicU64::new(IN_2026);

/// Why a connection of a client ends within ten minutes; `None`: it does not.
async fn ends(tls: &Tls, shown: &Shown) -> Option<String> {
    let verify =
        |loaded: &Loaded, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime| {
            loaded.of_clients.verify_client_cert(leaf, rest, now).map(drop)
        };
    let outlived = timeout(Duration::from_secs(600), tls.outlived(shown, verify)).await;
    outlived.ok().map(|outlived| outlived.why)
}

/// On paused time. What is not needed to verify a certificate, as an old root, may have ended long
/// ago; what is needed may not, unless a clock is wrong for a while.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_what_its_certificate_needs() {
    wall::set_wall_clock_of_this_thread(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
    let (ours, old) = (Authority::new("ours"), Authority::below(None, "old", 2021));
    let between = Authority::below(Some(&ours), "between", 2027);
    let files = Files::new(&ours, &ours.node(2060));
    let tls = files.open().await;
    let shown = |by: &Authority, behind: &[&Authority]| {
        let behind = behind.iter().map(|authority| authority.certificate());
        let chain: Vec<_> = [by.client(2)].into_iter().chain(behind).collect();
        Shown::new(Some(&chain), tls.loaded.load().set).unwrap().unwrap()
    };
    let (beside, needed) = (shown(&ours, &[&old]), shown(&between, &[&between, &old]));
    for (now, is_kept) in [(IN_2026, true), (IN_2019, true), (IN_2028, false)] {
        NOW.store(now, Ordering::Relaxed);
        assert_eq!(ends(&tls, &beside).await, None, "at {now}");
        let why = ends(&tls, &needed).await;
        let is_expired = why.as_ref().is_some_and(|why| why.contains("expired"));
        assert!(if is_kept { why.is_none() } else { is_expired }, "at {now}: {why:?}");
    }
}

/// Whoever knows that its certificate will be revoked shows one that is good later, in the name of
/// its authority: of several ways that lead to none, the library tells that one.
#[tokio::test(start_paused = true)]
async fn what_is_revoked_ends_whatever_else_was_shown() {
    let ours = Authority::new("ours");
    let late = Authority::between(None, "ours", 2050, 2060);
    let files = Files::new(&ours, &ours.node(2060));
    let tls = files.open().await;
    let chains = [vec![ours.client(2)], vec![ours.client(2), late.certificate()]];
    let shown = chains.map(|chain| Shown::new(Some(&chain), tls.loaded.load().set));
    let shown = shown.map(|shown| shown.unwrap().unwrap());
    for shown in &shown {
        assert_eq!(ends(&tls, shown).await, None);
    }
    files.put("ca.crl", &ours.list(2, &[2]));
    tls.reload().await;
    for (shown, what) in shown.iter().zip(["alone", "with another"]) {
        assert!(ends(&tls, shown).await.is_some(), "{what}");
    }
}

#[test]
fn a_certificate_that_does_not_say_when_it_ends_is_refused() {
    let client = Authority::new("ours").client(2);
    let half = CertificateDer::from(client[..client.len() / 2].to_vec());
    assert!(Shown::new(Some(&[client, half.clone()]), 0).unwrap().is_some());
    let refused = Shown::new(Some(&[half]), 0).unwrap_err();
    assert_eq!(refused.to_string(), "its certificate says no end to read");
    assert!(Shown::new(None, 0).unwrap().is_none());
}
