//! What users of other registries' DNS complain about, each as a test.

use super::*;

const ORDERS: &str = "orders.prod.svc.quorate.";
const UDP: (Room, Option<u16>) = (Room::Udp, None);

/// Complaint 1: an answer by UDP is cut, and TC does not say so (consul#854).
#[test]
fn complaint_1_tc_says_that_an_answer_is_missing() {
    let (cut, len) = ask_in(&orders(100), &settings(), ORDERS, RecordType::A, UDP);
    assert!(cut.metadata.truncation && cut.answers.len() < 100 && len <= 512);
    let (whole, _) = ask_in(&orders(5), &settings(), ORDERS, RecordType::A, UDP);
    assert!(!whole.metadata.truncation && whole.answers.len() == 5);
}

/// Complaint 2: SRV answers are trimmed to none while additionals stay (consul#1931).
#[test]
fn complaint_2_additionals_go_before_answers() {
    let registry = orders(8);
    let (cut, len) = ask_in(&registry, &settings(), ORDERS, RecordType::SRV, UDP);
    assert!(len <= 512 && !cut.answers.is_empty());
    assert!(cut.answers.len() == 8 || cut.additionals.is_empty());
    let (fits, _) = ask_in(&orders(4), &settings(), ORDERS, RecordType::SRV, UDP);
    assert_eq!(fits.answers.len(), 4);
    assert!(!fits.metadata.truncation, "additionals alone are no reason for TC");
}

/// Complaint 3: an answer over 64 KiB by TCP becomes none (consul#3850).
#[test]
fn complaint_3_an_answer_over_64_kib_is_a_random_part_of_it_by_tcp() {
    let registry = orders(6_000);
    let tcp = (Room::Tcp, Some(1232));
    let (part, len) = ask_in(&registry, &settings(), ORDERS, RecordType::A, tcp);
    assert!(part.answers.len() > 3_000 && len <= 65_535, "{} in {len}", part.answers.len());
    assert!(!part.metadata.truncation, "there is no other way to ask");
    let [(one, is_cut), (other, _)] =
        [1, 2].map(|seed| told_with(&registry, ORDERS, RecordType::A, seed));
    assert!(is_cut, "it is counted, though");
    assert_ne!(one, other, "each seed leaves out others");
    let whole = told_with(&orders(100), ORDERS, RecordType::A, 1);
    assert_eq!(whole, told_with(&orders(100), ORDERS, RecordType::A, 2), "of what fits, none");
}

/// Complaint 4: SRV and AAAA are cut by other rules (consul#17228).
#[test]
fn complaint_4_every_type_is_cut_alike() {
    let mut registry = Registry::new();
    for at in 0..100 {
        let uri = format!("http://[2001:db8::{at:x}]:80");
        put(&mut registry, &format!("prod/orders/o{at}"), &uri, |parts| parts.zone = "a".into());
    }
    for kind in [RecordType::AAAA, RecordType::SRV, RecordType::TXT] {
        for edns in [None, Some(1232), Some(65_535)] {
            let (cut, len) = ask_in(&registry, &settings(), ORDERS, kind, (Room::Udp, edns));
            assert!(cut.metadata.truncation && !cut.answers.is_empty(), "{kind}");
            assert!(len <= if edns.is_some() { 1_232 } else { 512 }, "{kind}: {len}");
        }
    }
}

/// Complaint 5: an answer holds records of another query (consul#21580). The function keeps
/// nothing; that its sockets mix nothing up is for tests/process/dns_at_once.rs.
#[test]
fn complaint_5_no_answer_has_a_record_of_another_name() {
    let mut registry = Registry::new();
    for at in 0..1_000_u32 {
        let uri = format!("http://10.1.{}.{}:80", at / 256, at % 256);
        put(&mut registry, &format!("prod/s{at}/one"), &uri, |_| {});
    }
    let registry = &registry;
    std::thread::scope(|scope| {
        for thread in 0..64_u32 {
            scope.spawn(move || {
                for at in (thread..1_000).step_by(16) {
                    let name = format!("s{at}.prod.svc.quorate.");
                    let answer = ask(registry, &name, RecordType::A);
                    assert_eq!(told(&answer), [format!("10.1.{}.{}", at / 256, at % 256)]);
                    assert_eq!(answer.answers[0].name.to_string(), name);
                }
            });
        }
    });
}

fn is_no_data(answer: &Message) -> bool {
    code(answer) == ResponseCode::NoError
        && answer.answers.is_empty()
        && answer.authorities.len() == 1
        && answer.authorities[0].record_type() == RecordType::SOA
}

/// Complaint 6: NXDOMAIN for AAAA where A exists breaks nginx and musl (coredns#779).
#[test]
fn complaint_6_no_aaaa_is_no_data() {
    assert!(is_no_data(&ask(&orders(1), ORDERS, RecordType::AAAA)));
}

/// Complaint 7: NXDOMAIN for other types, or for what only has names below it (coredns#2849).
#[test]
fn complaint_7_a_name_that_exists_is_never_nxdomain() {
    let registry = orders(1);
    for name in [
        "svc.quorate.",
        "prod.svc.quorate.",
        "_tcp.orders.prod.svc.quorate.",
        "_http._tcp.orders.prod.svc.quorate.",
        "orders-0.orders.prod.svc.quorate.",
        "z-eu.orders.prod.svc.quorate.",
        "ns.quorate.",
    ] {
        let answer = ask(&registry, name, RecordType::MX);
        assert!(is_no_data(&answer), "{name}: {answer:?}");
    }
}

/// Complaint 8: negative answers without SOA are not cached, or for 30 s (coredns PR#3755).
#[test]
fn complaint_8_each_negative_answer_has_a_soa_with_a_short_minimum() {
    let registry = orders(1);
    for (name, code_, ttl) in [
        ("nothing.prod.svc.quorate.", ResponseCode::NXDomain, 5),
        ("elsewhere.quorate.", ResponseCode::NXDomain, 5),
        ("v-9.orders.prod.svc.quorate.", ResponseCode::NoError, 1),
    ] {
        let answer = ask(&registry, name, RecordType::A);
        assert_eq!((code(&answer), answer.authorities[0].ttl), (code_, ttl), "{name}");
        let soa = answer.authorities[0].data.to_string();
        assert!(soa.ends_with(&format!(" {ttl}")), "{soa}");
    }
}

/// Complaint 9: the root as zone gives bad data and takes all of a processor (coredns#3316).
#[test]
fn complaint_9_the_root_is_refused_as_domain() {
    for bad in [".", "", "a..b", "ü.example", "a_b."] {
        assert!(Settings::new(bad).is_err(), "{bad:?}");
    }
    assert!(Settings::new("Svc.Example").is_ok());
}

/// Complaint 10: a recursor's TC became SERVFAIL (consul#2384).
#[test]
fn complaint_10_nothing_outside_the_domain_is_asked_of_others() {
    for name in ["example.org.", "quorate.org.", ".", "9.9.9.9.in-addr.arpa."] {
        for kind in [RecordType::A, RecordType::PTR, RecordType::AXFR, RecordType::ANY] {
            let answer = ask(&orders(1), name, kind);
            assert_eq!(code(&answer), ResponseCode::Refused, "{name} {kind}");
            assert!(!answer.metadata.recursion_available);
        }
    }
}
