//! Messages of any bytes: whatever they are, the answer fits, can be read and is not amplified.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use quorate_dns::{Query, Refused, Room, Settings, answer};
use quorate_state::{
    Clock, Command, Incarnation, InstanceId, InstanceKey, InstanceSpec, Namespace, Op, Register,
    Registry, ServiceKey, ServiceName, SpecParts,
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(registry);
static SETTINGS: LazyLock<Settings> = LazyLock::new(|| Settings::new("quorate.").unwrap());

/// A service of three instances, one of two thousand, and one whose name and ids have dots.
fn registry() -> Registry {
    let mut registry = Registry::new();
    for (service, instances) in [("orders", 3_u32), ("many", 2_000), ("com.acme.web", 2)] {
        let service = ServiceKey {
            namespace: Namespace::new("namespace", "prod").unwrap(),
            name: ServiceName::new("service", service).unwrap(),
        };
        let instances = (0..instances).map(|at| {
            let id = InstanceId::new("id", &format!("i.{at}")).unwrap();
            let (v4, v6) = (
                format!("http://10.0.{}.{}:80", at / 256, at % 256),
                format!("grpc://[2001:db8::{at:x}]:90"),
            );
            let parts = SpecParts {
                endpoints: BTreeMap::from([("http".to_owned(), v4), ("grpc".to_owned(), v6)]),
                zone: if at % 2 == 0 { "eu".into() } else { "us-1.a".into() },
                version: "2.1".into(),
                ..SpecParts::default()
            };
            (
                InstanceKey { service: service.clone(), id },
                InstanceSpec::new("instance", parts).unwrap(),
            )
        });
        let register = Register {
            lease: None,
            ttl: None,
            incarnation: Some(Incarnation(1)),
            instances: instances.collect(),
            within: None,
        };
        registry.apply(&Command::new(Clock(1), Op::Register(register)));
    }
    registry
}

fuzz_target!(|bytes: &[u8]| {
    let query = match Query::read(bytes) {
        Ok(query) => query,
        Err(Refused::Silently) => return,
        Err(Refused::With(reply, _)) => {
            assert!(reply.len() <= bytes.len(), "{} bytes became {}", bytes.len(), reply.len());
            return;
        }
    };
    assert!(query.write_truncated().len() <= bytes.len(), "advice to ask by TCP is not amplified");
    for room in [Room::Udp, Room::Tcp] {
        let answered = answer(query.question(), &REGISTRY, &SETTINGS, 7, query.room(room));
        let (reply, is_cut) = query.write(&answered, room);
        assert!(reply.len() <= query.room(room), "{} bytes for {}", reply.len(), query.room(room));
        let read = Message::from_vec(&reply).expect("an answer that can be read");
        assert_eq!(reply[..2], bytes[..2], "the number of the query");
        assert_eq!(read.metadata.truncation, is_cut && room == Room::Udp);
        assert!(!is_cut || !read.answers.is_empty(), "at least one answer");
        assert!(!read.metadata.recursion_available);
    }
});
