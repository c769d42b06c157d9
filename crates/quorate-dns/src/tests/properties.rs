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
