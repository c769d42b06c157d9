//! Tests of answers: a registry, a query in bytes, and the answer as hickory reads it.

mod complaints;
mod names;
mod properties;

use std::collections::BTreeMap;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use quorate_state::{
    Clock, Command, Incarnation, InstanceId, InstanceKey, InstanceSpec, Namespace, Op, Register,
    Registry, ServiceKey, ServiceName, SpecParts, Status,
};

use crate::{Query, Refused, Room, Settings, answer};

fn settings() -> Settings {
    Settings::new("quorate.").unwrap()
}

/// An instance at an address, by `namespace/service/id`.
fn put(registry: &mut Registry, name: &str, uri: &str, change: impl FnOnce(&mut SpecParts)) {
    let parts: Vec<&str> = name.split('/').collect();
    let service = ServiceKey {
        namespace: Namespace::new("namespace", parts[0]).unwrap(),
        name: ServiceName::new("service", parts[1]).unwrap(),
    };
    let key = InstanceKey { service, id: InstanceId::new("id", parts[2]).unwrap() };
    let mut parts = SpecParts {
        endpoints: BTreeMap::from([("http".to_owned(), uri.to_owned())]),
        ..SpecParts::default()
    };
    change(&mut parts);
    let instances = vec![(key, InstanceSpec::new("instance", parts).unwrap())];
    let incarnation = Some(Incarnation(1));
    let register = Register { lease: None, ttl: None, incarnation, instances, within: None };
    registry.apply(&Command::new(Clock(1), Op::Register(register)));
}

/// `orders` in `prod` with so many instances, at 10.0.x.y:8080.
fn orders(count: u32) -> Registry {
    let mut registry = Registry::new();
    for at in 0..count {
        let uri = format!("http://10.0.{}.{}:8080", at / 256, at % 256);
        put(&mut registry, &format!("prod/orders/orders-{at}"), &uri, |_| {});
    }
    registry
}

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn ask_in(
    registry: &Registry,
    settings: &Settings,
    name: &str,
    kind: RecordType,
    (room, edns): (Room, Option<u16>),
) -> (Message, usize) {
    let query = Query::read(&query(name, kind, edns)).unwrap();
    let answered = answer(query.question(), registry, settings, 1, query.room(room));
    let (bytes, _) = query.write(&answered, room);
    (Message::from_vec(&bytes).unwrap(), bytes.len())
}

/// What is told by TCP with this seed, and whether something is missing.
fn told_with(registry: &Registry, name: &str, kind: RecordType, seed: u64) -> (Vec<String>, bool) {
    let query = Query::read(&query(name, kind, None)).unwrap();
    let room = query.room(Room::Tcp);
    let answered = answer(query.question(), registry, &settings(), seed, room);
    let (bytes, is_cut) = query.write(&answered, Room::Tcp);
    (told(&Message::from_vec(&bytes).unwrap()), is_cut)
}

fn ask(registry: &Registry, name: &str, kind: RecordType) -> Message {
    ask_in(registry, &settings(), name, kind, (Room::Tcp, None)).0
}

/// The data of the answers, in order of their texts.
fn told(message: &Message) -> Vec<String> {
    let mut told: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    told.sort();
    told
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

#[test]
fn what_is_no_query_gets_little_or_nothing() {
    let whole = query("orders.prod.svc.quorate.", RecordType::A, Some(1232));
    for len in 0..whole.len() {
        match Query::read(&whole[..len]) {
            Err(Refused::Silently) => assert!(len < 12),
            Err(Refused::With(reply, _)) => assert!(reply.len() <= len),
            Ok(_) => panic!("{len} bytes are no query"),
        }
    }
    let mut response = whole.clone();
    response[2] |= 0x80;
    assert_eq!(Query::read(&response).unwrap_err(), Refused::Silently);
    let mut pointed = whole[..12].to_vec();
    pointed[11] = 0;
    pointed.extend([0xc0, 0x04, 0, 1, 0, 1]);
    assert!(Query::read(&pointed).is_err(), "a name that points into the header");
}
