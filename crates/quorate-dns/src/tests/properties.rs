//! What holds for every query.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn any_name() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "orders", "prod", "svc", "orders-1", "_http", "_tcp", "z-eu", "v-1", "t-x", "1", "x",
    ]);
    vec(label, 0..7).prop_map(|labels| {
        let mut name = labels.join(".");
        name.push_str(if name.is_empty() { "quorate." } else { ".quorate." });
        name
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_get_no_more_than_they_are(bytes in vec(any::<u8>(), 0..600)) {
        if let Err(Refused::With(reply, _)) = Query::read(&bytes) {
            prop_assert!(reply.len() <= bytes.len());
        }
    }

    #[test]
    fn an_answer_fits_and_says_what_it_is(
        name in any_name(),
        kind in prop::sample::select(vec![
            RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT, RecordType::ANY,
            RecordType::SOA, RecordType::NS, RecordType::PTR,
        ]),
        edns in prop::option::of(any::<u16>()),
        count in 0..60_u32,
    ) {
        let registry = orders(count);
        let asked = query(&name, kind, edns);
        let (udp, len) = ask_in(&registry, &settings(), &name, kind, (Room::Udp, edns));
        let (tcp, _) = ask_in(&registry, &settings(), &name, kind, (Room::Tcp, edns));
        let most = edns.map_or(512, |size| size.clamp(512, 1_232));
        prop_assert!(len <= usize::from(most));
        prop_assert_eq!(code(&udp), code(&tcp));
        prop_assert!(!tcp.metadata.truncation);
        prop_assert_eq!(udp.metadata.truncation, udp.answers.len() < tcp.answers.len());
        prop_assert_eq!(udp.answers.is_empty(), tcp.answers.is_empty());
        prop_assert_eq!(udp.edns.is_some(), edns.is_some());
        let owner = Name::from_ascii(&name).unwrap();
        prop_assert!(udp.answers.iter().all(|record| record.name == owner));
        match code(&udp) {
            ResponseCode::Refused => prop_assert!(len <= asked.len()),
            _ => prop_assert_eq!(udp.answers.is_empty(), udp.authorities.len() == 1),
        }
    }
}

/// One instance of `orders`, as it is registered.
#[derive(Debug, Clone)]
struct Given {
    zone: &'static str,
    version: &'static str,
    tags: Vec<&'static str>,
    is_v6: bool,
    status: Status,
    weight: Option<u32>,
    port: u16,
}

fn given() -> impl Strategy<Value = Given> {
    let statuses =
        [Status::Starting, Status::Up, Status::Up, Status::Draining, Status::OutOfService];
    let described = (
        prop::sample::select(vec!["", "eu", "us"]),
        prop::sample::select(vec!["", "1"]),
        prop::sample::subsequence(vec!["canary", "x"], 0..=2),
    );
    let rest = (
        any::<bool>(),
        prop::sample::select(statuses.to_vec()),
        prop::sample::select(vec![None, Some(0), Some(7), Some(65_535)]),
        80..82_u16,
    );
    (described, rest).prop_map(|((zone, version, tags), (is_v6, status, weight, port))| Given {
        zone,
        version,
        tags,
        is_v6,
        status,
        weight,
        port,
    })
}

impl Given {
    fn address(&self, at: usize) -> String {
        if self.is_v6 { format!("2001:db8::{:x}", at + 1) } else { format!("10.0.0.{at}") }
    }

    fn put(&self, at: usize, registry: &mut Registry) {
        let address = self.address(at);
        let host = if self.is_v6 { format!("[{address}]") } else { address };
        put(
            registry,
            &format!("prod/orders/o-{at}"),
            &format!("http://{host}:{}", self.port),
            |it| {
                (it.zone, it.version) = (self.zone.to_owned(), self.version.to_owned());
                it.tags = self.tags.iter().map(|&tag| tag.to_owned()).collect();
                (it.status, it.weight) = (self.status, self.weight);
            },
        );
    }

    /// Whether it is told of by a name with this label before the service's.
    fn is_told(&self, label: &str) -> bool {
        let passes = match label.split_once('-') {
            Some(("z", zone)) => self.zone == zone,
            Some(("v", version)) => self.version == version,
            Some(("t", tag)) => self.tags.contains(&tag),
            _ => true,
        };
        passes && self.status == Status::Up && self.weight != Some(0)
    }

    fn srv(&self, at: usize, own_zone: &str) -> String {
        let priority = u8::from(!own_zone.is_empty() && self.zone != own_zone);
        let weight = self.weight.unwrap_or(100);
        format!("{priority} {weight} {} o-{at}.orders.prod.svc.quorate.", self.port)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against a reference that looks at one instance after the other.
    #[test]
    fn those_that_fit_the_name_are_told_and_no_others(
        all in vec(given(), 1..25),
        label in prop::sample::select(vec!["", "z-eu", "z-us", "v-1", "t-canary", "t-x", "_http._tcp"]),
        own_zone in prop::sample::select(vec!["", "eu"]),
    ) {
        let mut registry = Registry::new();
        for (at, it) in all.iter().enumerate() {
            it.put(at, &mut registry);
        }
        let settings = Settings { own_zone: own_zone.to_owned(), ..settings() };
        let name = format!("{label}.orders.prod.svc.quorate.");
        let name = name.trim_start_matches('.');
        let asked = |kind| ask_in(&registry, &settings, name, kind, (Room::Tcp, None)).0;
        let fitting: Vec<_> = all.iter().enumerate().filter(|(_, it)| it.is_told(label)).collect();
        for (kind, is_v6) in [(RecordType::A, false), (RecordType::AAAA, true)] {
            let of_kind = fitting.iter().filter(|(_, it)| it.is_v6 == is_v6);
            let mut wanted: Vec<_> = of_kind.map(|(at, it)| it.address(*at)).collect();
            wanted.sort();
            prop_assert_eq!(told(&asked(kind)), wanted);
        }
        let srv = asked(RecordType::SRV);
        let mut wanted: Vec<_> = fitting.iter().map(|(at, it)| it.srv(*at, own_zone)).collect();
        wanted.sort();
        prop_assert_eq!(told(&srv), wanted);
        // The near ones come first: those are left out last.
        let order: Vec<_> = srv.answers.iter().map(|it| it.data.to_string()).collect();
        prop_assert!(order.is_sorted_by_key(|it| it.as_bytes()[0]), "{:?}", order);
    }
}

/// A namespace of one label or several.
fn namespace() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec!["prod", "eu", "test", "x"]);
    vec(label, 1..6).prop_map(|labels| labels.join("."))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Nor another name than with all namespaces allowed.
    #[test]
    fn what_is_below_an_allowed_namespace_is_never_refused(
        allowed in vec(namespace(), 1..4),
        which in any::<prop::sample::Index>(),
        registered in vec(namespace(), 0..4),
        before in prop::sample::select(vec![
            "", "orders", "nobody", "x9.orders", "eu", "prod.eu", "_http._tcp.orders",
            "z-eu.orders",
            "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z",
        ]),
        capitals in any::<u64>(),
    ) {
        let mut registry = Registry::new();
        for namespace in &registered {
            put(&mut registry, &format!("{namespace}/orders/o-1"), "http://10.0.0.1:80", |_| {});
        }
        let name = format!("{before}.{}.svc.quorate.", which.get(&allowed));
        let change = |(at, letter): (usize, char)| match capitals >> (at % 64) & 1 {
            1 => letter.to_ascii_uppercase(),
            _ => letter,
        };
        let name: String = name.trim_start_matches('.').chars().enumerate().map(change).collect();
        let settings = Settings { namespaces: allowed, ..settings() };
        let (answer, _) = ask_in(&registry, &settings, &name, RecordType::A, (Room::Tcp, None));
        prop_assert_ne!(code(&answer), ResponseCode::Refused, "{}", name);
        prop_assert_eq!(answer.answers.is_empty(), answer.authorities.len() == 1);
    }
}
