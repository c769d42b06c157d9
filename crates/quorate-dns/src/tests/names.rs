//! Which name and type gets what.

use super::*;
use crate::{AllFailing, Answer};

#[test]
fn each_kind_of_name_is_answered() {
    let mut registry = Registry::new();
    put(&mut registry, "prod/orders/orders-1", "http://10.0.0.1:8080", |parts| {
        (parts.zone, parts.version) = ("eu-1a".into(), "2.1".into());
        parts.tags.insert("canary".into());
        parts.endpoints.insert("grpc".into(), "http://10.0.0.1:9090".into());
    });
    put(&mut registry, "prod/orders/orders-2", "http://db.example.org:80", |parts| {
        (parts.zone, parts.version) = ("eu-1b".into(), "2".into());
        parts.weight = Some(7);
    });
    put(&mut registry, "prod/orders/Gone", "http://10.0.0.3:80", |parts| {
        parts.status = Status::Draining;
    });
    put(&mut registry, "prod/com.acme.web/w.1", "http://10.0.0.4:80", |_| {});
    let target = |id: &str| format!("{id}.orders.prod.svc.quorate.");
    let one = target("orders-1");
    let (http, grpc) = (format!("0 100 8080 {one}"), format!("0 100 9090 {one}"));
    let named = "0 7 80 db.example.org.".to_owned();
    use RecordType::{A, PTR, SRV, TXT};
    for (name, kind, wanted) in [
        ("orders.prod.svc.quorate.", A, vec!["10.0.0.1".to_owned()]),
        ("ORDERS.prod.SVC.quorate.", A, vec!["10.0.0.1".to_owned()]),
        ("orders.prod.svc.quorate.", SRV, vec![http.clone(), grpc.clone(), named.clone()]),
        ("_http._tcp.orders.prod.svc.quorate.", SRV, vec![http.clone(), named.clone()]),
        ("_grpc._tcp.orders.prod.svc.quorate.", SRV, vec![grpc.clone()]),
        ("_http._tcp.orders-1.orders.prod.svc.quorate.", SRV, vec![http]),
        ("_none._tcp.orders.prod.svc.quorate.", SRV, vec![]),
        ("z-eu-1b.orders.prod.svc.quorate.", SRV, vec![named]),
        ("v-2.1.orders.prod.svc.quorate.", A, vec!["10.0.0.1".to_owned()]),
        ("t-canary.z-eu-1a.orders.prod.svc.quorate.", A, vec!["10.0.0.1".to_owned()]),
        ("t-canary.z-eu-1b.orders.prod.svc.quorate.", SRV, vec![]),
        ("orders-1.orders.prod.svc.quorate.", A, vec!["10.0.0.1".to_owned()]),
        ("gone.orders.prod.svc.quorate.", A, vec![]),
        ("1.orders.prod.svc.quorate.", A, vec![]),
        ("com.acme.web.prod.svc.quorate.", A, vec!["10.0.0.4".to_owned()]),
        ("acme.web.prod.svc.quorate.", A, vec![]),
        ("w.1.com.acme.web.prod.svc.quorate.", A, vec!["10.0.0.4".to_owned()]),
        ("1.0.0.10.in-addr.arpa.", PTR, vec![one.clone()]),
        ("quorate.", RecordType::NS, vec!["ns.quorate.".to_owned()]),
    ] {
        let answer = ask(&registry, name, kind);
        assert_eq!(told(&answer), wanted, "{name} {kind}");
        assert_eq!(code(&answer), ResponseCode::NoError, "{name} {kind}");
        assert!(answer.metadata.authoritative, "{name}");
        let soa = usize::from(wanted.is_empty());
        assert_eq!(answer.authorities.len(), soa, "{name}");
    }
    let txt = ask(&registry, &one, TXT);
    assert!(told(&txt)[0].contains("version=2.1"), "{txt:?}");
    assert_eq!(ask(&registry, "quorate.", RecordType::SOA).answers.len(), 1);
    let any = ask(&registry, &one, RecordType::ANY);
    assert!(told(&any)[0].contains("RFC8482"), "{any:?}");
    for nothing in ["x.orders.prod.svc.quorate.", "_http._udp.orders.prod.svc.quorate."] {
        assert_eq!(code(&ask(&registry, nothing, A)), ResponseCode::NXDomain, "{nothing}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_told_so_however_many_do() {
    let mut registry = Registry::new();
    for at in 0..10_010 {
        let key = format!("prod/s{at}.shop/a");
        put(&mut registry, &key, "http://10.0.0.1:80", |_| {});
    }
    put(&mut registry, "eu.test/secret/s", "http://10.0.0.2:80", |_| {});
    use ResponseCode::{NXDomain, NoError, Refused};
    for (name, wanted) in [
        ("s10009.shop.prod", NoError),
        ("shop.prod", NoError),
        ("prod", NoError),
        ("test", NoError),
        ("eu.test", NoError),
        ("none.shop.prod", NXDomain),
        ("none.prod", NXDomain),
        ("hop.prod", NXDomain),
        ("shop", NXDomain),
        ("none.test", NXDomain),
        ("none", NXDomain),
    ] {
        let answer = ask(&registry, &format!("{name}.svc.quorate."), RecordType::A);
        assert_eq!(code(&answer), wanted, "{name}");
    }
    let settings =
        Settings { namespaces: vec!["eu.test".into(), "empty.test".into()], ..settings() };
    for (name, wanted) in [("test", NoError), ("eu.test", NoError), ("shop.prod", Refused)] {
        let name = format!("{name}.svc.quorate.");
        let (answer, _) = ask_in(&registry, &settings, &name, RecordType::A, (Room::Tcp, None));
        assert_eq!(code(&answer), wanted, "{name}");
    }
    let settings = Settings { namespaces: vec!["empty.test".into()], ..settings };
    let (answer, _) =
        ask_in(&registry, &settings, "test.svc.quorate.", RecordType::A, (Room::Tcp, None));
    assert_eq!(code(&answer), Refused, "nothing of what it is answered for ends so");
}

/// An allowed namespace is a part of the name: what stands before it is none.
#[test]
fn nobody_in_a_namespace_that_is_answered_for_is_told_so() {
    let registry = orders(1);
    let settings = Settings { namespaces: vec!["prod".into(), "a.b.c.d.e".into()], ..settings() };
    use ResponseCode::{NXDomain, NoError, Refused};
    for (name, wanted) in [
        ("orders.prod", NoError),
        ("nobody.prod", NXDomain),
        ("NoBody.Prod", NXDomain),
        ("x9.orders.prod", NXDomain),
        ("_http._udp.orders.prod", NXDomain),
        ("nobody.a.b.c.d.e", NXDomain),
        ("prod.test", Refused),
        ("b.c.d.e", Refused),
        ("aprod", Refused),
    ] {
        let name = format!("{name}.svc.quorate.");
        let tcp = (Room::Tcp, None);
        let (answer, _) = ask_in(&registry, &settings, &name, RecordType::A, tcp);
        assert_eq!(code(&answer), wanted, "{name}");
        let soa = usize::from(wanted == NXDomain);
        assert_eq!(answer.authorities.len(), soa, "{name}");
    }
}

#[test]
fn own_zone_comes_first_and_namespaces_are_kept_apart() {
    let mut registry = orders(1);
    put(&mut registry, "prod/orders/near", "http://10.9.0.1:80", |parts| {
        (parts.zone, parts.weight) = ("eu".into(), Some(1_000_000));
    });
    put(&mut registry, "test/secret/s", "http://10.9.0.2:80", |_| {});
    let settings =
        Settings { own_zone: "eu".into(), namespaces: vec!["prod".into()], ..settings() };
    let tcp = (Room::Tcp, None);
    let (srv, _) = ask_in(&registry, &settings, "orders.prod.svc.quorate.", RecordType::SRV, tcp);
    let told: Vec<_> = srv.answers.iter().map(|it| it.data.to_string()).collect();
    assert_eq!(told[0], "0 65535 80 near.orders.prod.svc.quorate.");
    assert_eq!(told[1], "1 6 8080 orders-0.orders.prod.svc.quorate.");
    for name in ["secret.test.svc.quorate.", "test.svc.quorate.", "2.0.9.10.in-addr.arpa."] {
        let (answer, _) = ask_in(&registry, &settings, name, RecordType::A, tcp);
        assert_eq!(code(&answer), ResponseCode::Refused, "{name}");
    }
    assert_eq!(AllFailing::default(), AllFailing::Empty);
}

#[test]
fn a_namespace_answers_for_its_own_names_alone() {
    let mut registry = Registry::new();
    put(&mut registry, "eu.prod/orders/o-1", "http://10.0.0.1:80", |_| {});
    put(&mut registry, "prod/eu/e-1", "http://10.0.0.2:80", |_| {});
    put(&mut registry, "prod/orders.eu/x-1", "http://10.0.0.3:80", |_| {});
    for (name, wanted) in [
        ("orders.eu.prod", "10.0.0.1"),
        ("_http._tcp.orders.eu.prod", "0 100 80 o-1.orders.eu.prod.svc.quorate."),
        ("o-1.orders.eu.prod", "10.0.0.1"),
        ("eu.prod", "10.0.0.2"),
        ("e-1.eu.prod", "10.0.0.2"),
        ("x-1.orders.eu.prod", "10.0.0.3"),
    ] {
        let kind = if name.starts_with('_') { RecordType::SRV } else { RecordType::A };
        let answer = ask(&registry, &format!("{name}.svc.quorate."), kind);
        assert_eq!(told(&answer), [wanted], "{name}");
    }
    let answer = ask(&registry, "none.eu.prod.svc.quorate.", RecordType::A);
    assert_eq!(code(&answer), ResponseCode::NXDomain);
    // Nor does it get the calls that are for an instance of another one.
    put(&mut registry, "prod/pay/p-1", "http://10.0.0.4:80", |_| {});
    put(&mut registry, "pay.prod/p-1/thief", "http://10.0.0.5:80", |_| {});
    assert_eq!(followed(&registry, "pay.prod.svc.quorate."), ["10.0.0.4 80"]);
    let settings = settings();
    for (name, wanted) in [("svc", true), ("a.svc", true), ("", false), ("addr", false)] {
        let name = Name::from_ascii(format!("{name}.quorate.").trim_start_matches('.')).unwrap();
        assert_eq!(settings.is_below_svc(&name), wanted, "{name}");
    }
}

/// The addresses of each target of an SRV answer, asked for one by one.
fn followed(registry: &Registry, name: &str) -> Vec<String> {
    let srv = ask(registry, name, RecordType::SRV);
    let targets = srv.answers.iter().map(|record| record.data.to_string());
    let mut followed: Vec<_> = targets
        .map(|data| {
            let mut parts = data.split(' ').skip(2);
            let (port, target) = (parts.next().unwrap(), parts.next().unwrap());
            let of = |kind| told(&ask(registry, target, kind));
            let at = [of(RecordType::A), of(RecordType::AAAA)].concat().join(" ");
            format!("{at} {port}")
        })
        .collect();
    followed.sort();
    let mut glue: Vec<_> = srv.additionals.iter().map(|it| it.data.to_string()).collect();
    glue.sort();
    glue.dedup();
    let mut at: Vec<_> = followed.iter().map(|it| it.split(' ').next().unwrap()).collect();
    at.dedup();
    assert_eq!(glue, at, "what comes along is what is found");
    followed
}

#[test]
fn each_target_has_the_address_of_its_endpoint_alone() {
    let mut registry = Registry::new();
    put(&mut registry, "prod/orders/two", "http://10.0.0.7:8080", |parts| {
        parts.endpoints.insert("admin".into(), "http://127.0.0.1:9901".into());
        parts.endpoints.insert("six".into(), "http://[2001:db8::6]:80".into());
    });
    put(&mut registry, "prod/orders/no..name", "http://10.0.0.8:8080", |_| {});
    let long = format!("prod/orders/{}", "long.".repeat(50));
    put(&mut registry, long.strip_suffix('.').unwrap(), "http://10.0.0.9:8080", |_| {});
    let name = "_http._tcp.orders.prod.svc.quorate.";
    put(&mut registry, "prod/orders/Capital", "http://10.0.0.10:8080", |_| {});
    let wanted = ["10.0.0.10 8080", "10.0.0.7 8080", "10.0.0.8 8080", "10.0.0.9 8080"];
    assert_eq!(followed(&registry, name), wanted);
    let srv = ask(&registry, "capital.orders.prod.svc.quorate.", RecordType::SRV);
    assert_eq!(told(&srv), ["0 100 8080 0a00000a.addr.quorate."]);
    let all = followed(&registry, "two.orders.prod.svc.quorate.");
    assert_eq!(all, ["10.0.0.7 8080", "127.0.0.1 9901", "2001:db8::6 80"]);
    let answer = ask(&registry, "addr.quorate.", RecordType::A);
    assert_eq!(code(&answer), ResponseCode::NoError, "there are names below it");
    for name in ["0a00000.addr.quorate.", "0a00000g.addr.quorate.", "x.0a000007.addr.quorate."] {
        assert_eq!(code(&ask(&registry, name, RecordType::A)), ResponseCode::NXDomain, "{name}");
    }
}

/// The order of the answers to a question, by seed.
fn ordered(registry: &Registry, seed: u64) -> Vec<String> {
    let query = Query::read(&query("orders.prod.svc.quorate.", RecordType::A, None)).unwrap();
    let room = query.room(Room::Udp);
    let answer = answer(query.question(), registry, &settings(), seed, room);
    answer.answers.iter().map(|it| it.data.to_string()).collect()
}

#[test]
fn each_order_of_the_instances_is_told_as_often() {
    const ASKED: u64 = 6_000;
    let registry = orders(3);
    let mut orders = BTreeMap::new();
    for seed in 0..ASKED {
        *orders.entry(ordered(&registry, seed)).or_insert(0_u64) += 1;
    }
    assert_eq!(orders.len(), 6, "{orders:?}");
    assert!(orders.values().all(|told| (800..1_200).contains(told)), "{orders:?}");
    assert_eq!(ordered(&registry, 7), ordered(&registry, 7), "the same seed, the same order");
}

#[test]
fn answers_are_kept_for_the_ttl_of_the_settings() {
    let name = "orders.prod.svc.quorate.";
    for (settings, ttl) in [(settings(), 5), (Settings { ttl: 60, ..settings() }, 60)] {
        for kind in [RecordType::A, RecordType::SRV, RecordType::TXT, RecordType::ANY] {
            let (answer, _) = ask_in(&orders(2), &settings, name, kind, (Room::Tcp, None));
            assert!(!answer.answers.is_empty(), "{kind}");
            let mut all = answer.answers.iter().chain(&answer.additionals);
            assert!(all.all(|record| record.ttl == ttl), "{answer:?}");
        }
    }
}

#[test]
fn addresses_of_both_families_are_told_forwards_and_backwards() {
    let mut registry = Registry::new();
    put(&mut registry, "prod/orders/four", "http://10.0.0.4:80", |_| {});
    put(&mut registry, "prod/orders/six", "http://[2001:db8::6]:80", |_| {});
    let name = "orders.prod.svc.quorate.";
    assert_eq!(told(&ask(&registry, name, RecordType::A)), ["10.0.0.4"]);
    assert_eq!(told(&ask(&registry, name, RecordType::AAAA)), ["2001:db8::6"]);
    let srv = ask(&registry, name, RecordType::SRV);
    let mut glue: Vec<_> = srv.additionals.iter().map(|it| it.data.to_string()).collect();
    glue.sort();
    assert_eq!(glue, ["10.0.0.4", "2001:db8::6"]);
    let backwards = format!("6.{}8.b.d.0.1.0.0.2.ip6.arpa.", "0.".repeat(23));
    assert_eq!(
        told(&ask(&registry, &backwards, RecordType::PTR)),
        ["six.orders.prod.svc.quorate."]
    );
}

#[test]
fn transfers_other_classes_and_newer_versions_of_edns_are_refused() {
    let registry = orders(1);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for name in ["quorate.", "orders.prod.svc.quorate."] {
            let answer = ask(&registry, name, kind);
            assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::Refused, 0));
        }
    }
    let mut chaos = query("orders.prod.svc.quorate.", RecordType::TXT, None);
    *chaos.last_mut().unwrap() = 3;
    let chaos = Query::read(&chaos).unwrap();
    let answered = answer(chaos.question(), &registry, &settings(), 1, 512);
    assert_eq!(answered.code, ResponseCode::Refused);

    let mut newer = query("orders.prod.svc.quorate.", RecordType::A, Some(1232));
    let version = newer.len() - 5;
    newer[version] = 1;
    let newer = Query::read(&newer).unwrap();
    assert!(newer.is_newer());
    let (reply, _) = newer.write(&Answer::code(ResponseCode::BADVERS), Room::Udp);
    let reply = Message::from_vec(&reply).unwrap();
    let edns = reply.edns.as_ref().expect("it says which version there is");
    // 16 has two names.
    assert_eq!((edns.version(), u16::from(code(&reply))), (0, ResponseCode::BADVERS.into()));
}

fn answered(registry: &Registry, name: &str, kind: RecordType) -> Answer {
    let query = Query::read(&query(name, kind, None)).unwrap();
    answer(query.question(), registry, &settings(), 1, query.room(Room::Tcp))
}

/// What a node may not say whose state is old.
#[test]
fn an_answer_says_that_it_is_empty_for_want_of_an_instance() {
    use RecordType::{A, AAAA, MX, SRV, TXT};
    let mut registry = orders(1);
    put(&mut registry, "prod/named/n", "http://db.example.org:80", |_| {});
    put(&mut registry, "prod/gone/g", "http://10.0.0.1:80", |it| it.status = Status::Draining);
    for (name, kind, lacks) in [
        ("orders.prod", A, false),
        ("orders.prod", AAAA, false),
        ("orders.prod", MX, false),
        ("named.prod", A, false),
        ("gone.prod", A, true),
        ("gone.prod", AAAA, true),
        ("gone.prod", SRV, true),
        ("gone.prod", TXT, true),
        ("gone.prod", MX, false),
        ("g.gone.prod", A, true),
        ("v-9.orders.prod", A, true),
        ("_none._tcp.orders.prod", SRV, true),
        ("_none._tcp.orders.prod", A, true),
        ("_http._tcp.orders.prod", AAAA, false),
        ("prod", A, false),
    ] {
        let answer = answered(&registry, &format!("{name}.svc.quorate."), kind);
        assert_eq!(answer.lacks_instances, lacks, "{name} {kind}");
        assert_eq!(answer.code, ResponseCode::NoError, "{name} {kind}");
    }
}

#[test]
fn no_more_instances_are_looked_at_than_an_answer_takes() {
    use RecordType::{A, AAAA, ANY, MX, PTR};
    let mut registry = orders(100);
    put(&mut registry, "prod/pay/p-1", "http://10.9.0.1:80", |it| it.zone = "eu".into());
    let backwards = "1.0.0.10.in-addr.arpa.";
    for (name, kind, looked) in [
        ("orders.prod.svc.quorate.", A, 100),
        ("orders.prod.svc.quorate.", MX, 0),
        ("orders-7.orders.prod.svc.quorate.", A, 1),
        ("z-eu.orders.prod.svc.quorate.", A, 100),
        ("none.orders.prod.svc.quorate.", A, 200),
        ("none.prod.svc.quorate.", A, 0),
        (backwards, PTR, 101),
        (backwards, ANY, 101),
        (backwards, A, 0),
        (backwards, AAAA, 0),
    ] {
        assert_eq!(answered(&registry, name, kind).looked, looked, "{name} {kind}");
    }
    assert_eq!(answered(&registry, backwards, A).code, ResponseCode::Refused);
}
