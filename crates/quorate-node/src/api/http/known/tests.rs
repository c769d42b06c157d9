//! Where callers stand that wait for a service.

use std::collections::BTreeSet;

use axum::http::HeaderValue;
use quorate_state::{
    Clock, Command, Deregister, InstanceId, InstanceKey, InstanceRef, InstanceSpec, Namespace, Op,
    Register, ServiceKey, ServiceName, SpecParts,
};

use super::*;
use crate::api::http::watching::{has_changed, is_other};

const TWO_HOURS: Clock = Clock(7_200_000);

fn at(registry: &mut Registry, clock: Clock, op: Op) -> u64 {
    registry.apply(&Command::new(clock, op)).revision.0
}

/// The first revision there is was once the place of a service that nobody knew.
#[test]
fn who_knows_of_no_service_has_no_place_of_one() {
    let registry = Registry::new();
    assert_eq!(stands(&registry, 0, None, 0), 0);
    assert!(is_other(&registry, 1, Revision(0)));
    assert!(!is_other(&registry, 0, Revision(0)));
    assert_eq!(stands(&registry, 0, Some(Revision(0)), 7), 0, "others' changes are none");
}

/// A cache that keeps what it has for one of them would answer another with it.
#[test]
fn each_part_of_a_service_has_a_form_of_its_own() {
    let whole = FetchRequest::default();
    let parts = [
        FetchRequest { statuses: vec![1], ..whole.clone() },
        FetchRequest { tags: vec!["a".to_owned()], ..whole.clone() },
        FetchRequest { zones: vec!["a".to_owned()], ..whole.clone() },
        FetchRequest { limit: 1, ..whole.clone() },
        FetchRequest { after: "a".to_owned(), ..whole.clone() },
    ];
    let forms: BTreeSet<u64> = parts.iter().chain([&whole]).map(form).collect();
    assert_eq!(forms.len(), parts.len() + 1);
    // How fresh it is changes nothing of how it looks.
    assert_eq!(
        form(&FetchRequest { consistency: 2, min_revision: 7, ..whole.clone() }),
        form(&whole)
    );
}

#[test]
fn whatever_is_there_is_known_only_if_something_is() {
    let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("*"))]);
    assert!(is_known(&headers, "\"a\"", true));
    assert!(!is_known(&headers, "\"a\"", false));
}

/// Who asks again after an hour has an old list of a service that is not known any more.
#[test]
fn a_service_that_was_forgotten_is_not_what_a_caller_has_of_it() {
    let service = ServiceKey {
        namespace: Namespace::default(),
        name: ServiceName::new("service", "web").unwrap(),
    };
    let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
    let parts = SpecParts {
        endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
        ..SpecParts::default()
    };
    let instances = vec![(key.clone(), InstanceSpec::new("", parts).unwrap())];
    let register = Register { lease: None, ttl: None, incarnation: None, instances, within: None };
    let mut registry = Registry::new();
    let had = Revision(at(&mut registry, Clock(0), Op::Register(register)));
    let gone = vec![InstanceRef { key: key.clone(), incarnation: None }];
    at(&mut registry, Clock(0), Op::Deregister(Deregister::Instances(gone)));
    let now = at(&mut registry, TWO_HOURS, Op::Tick);
    assert!(registry.service(&key.service).is_none(), "it was forgotten");

    // The tag is that of any such service: what it has to learn is where it stands now.
    let header = ResponseHeader { cluster_id: 7, revision: now, ..ResponseHeader::default() };
    let of = |since| place(&registry, Some(&header), 0, (since, 1));
    let tag = HeaderValue::from_str(&of(None).etag).unwrap();
    let has = HeaderMap::from_iter([(IF_NONE_MATCH, tag)]);
    assert!(of(None).is_known(&has), "who does not wait has it");
    assert!(!of(Some(had)).is_known(&has), "it would come again at once, and again");
    assert_ne!(of(Some(had)).index, shown::position(7, had.0));
    assert!(of(Some(Revision(now))).is_known(&has), "it waited, and nothing has changed");

    assert!(is_other(&registry, 0, had));
    assert!(has_changed(&registry, &key.service, had), "who waits is woken");
    let stands = stands(&registry, 0, Some(had), now);
    assert!(stands > had.0, "{stands}");
    assert!(!is_other(&registry, 0, Revision(stands)), "and from here on, nothing");
    assert!(!has_changed(&registry, &key.service, Revision(stands)));
}
