//! What each name and type gets: records by section, and a code.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use quorate_state::{Instance, Registry, ServiceKey};

use crate::found::{Endpoint, Host, at_address, endpoints, shuffled, usable};
use crate::names::{Asked, Part, host_labels, look_up};
use crate::settings::{SVC, Settings};

/// How long a resolver may keep that a service has nothing to tell, and that a name does not
/// exist, s.
const EMPTY_TTL: u32 = 1;
const NO_NAME_TTL: u32 = 5;
/// The same in times of the zone's transfers, which there are none of, s.
const REFRESH: i32 = 3_600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;
/// The smallest record: its owner is a pointer, its data an address of four bytes.
const RECORD_MIN: usize = 16;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whose records.
    pub name: Name,
    /// Of which type.
    pub kind: RecordType,
    /// Of which class; there is only the Internet's.
    pub class: DNSClass,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// How it went.
    pub code: ResponseCode,
    /// Whether the name is one of the domain, or of an address that is known.
    pub authoritative: bool,
    /// The records of that name and type, those to be left out last first.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
    /// The addresses of hosts that the answers name.
    pub additionals: Vec<Record>,
    /// It is empty since no instance is there that could be told. Where the registry may be old,
    /// one may be there by now; that there are none of the other family's addresses says more.
    pub lacks_instances: bool,
    /// Instances that were looked at for it.
    pub looked: usize,
}

impl Answer {
    /// Nothing but a code.
    pub fn code(code: ResponseCode) -> Self {
        let [answers, authority, additionals] = [const { Vec::new() }; 3];
        let (lacks_instances, looked) = (false, 0);
        Self {
            code,
            authoritative: false,
            answers,
            authority,
            additionals,
            lacks_instances,
            looked,
        }
    }

    fn of(answers: Vec<Record>) -> Self {
        Self { authoritative: true, answers, ..Self::code(ResponseCode::NoError) }
    }
}

/// Answers a question from a registry. Of more records than `room` bytes can hold, some are left
/// out here already, but never so many that the rest would fit.
pub fn answer(
    question: &Question,
    registry: &Registry,
    settings: &Settings,
    seed: u64,
    room: usize,
) -> Answer {
    let (most, looked) = (room / RECORD_MIN + 1, Cell::new(0));
    let answering = Answering { question, registry, settings, seed, most, looked };
    let answer = answering.answer();
    Answer { looked: answering.looked.get(), ..answer }
}

struct Answering<'a> {
    question: &'a Question,
    registry: &'a Registry,
    settings: &'a Settings,
    seed: u64,
    /// Records that are worth making.
    most: usize,
    /// Instances that were looked at.
    looked: Cell<usize>,
}

impl<'a> Answering<'a> {
    fn answer(&self) -> Answer {
        let kind = self.question.kind;
        let is_transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
        if self.question.class != DNSClass::IN || is_transfer {
            return Answer::code(ResponseCode::Refused);
        }
        let (answer, negative_ttl) = match self.look_up(&self.question.name) {
            Asked::Outside | Asked::NotAllowed => return Answer::code(ResponseCode::Refused),
            Asked::Address(address) => return self.address(address),
            Asked::Nothing => {
                let code = ResponseCode::NXDomain;
                (Answer { code, ..Answer::of(Vec::new()) }, NO_NAME_TTL)
            }
            _ if kind == RecordType::ANY => (self.any(), EMPTY_TTL),
            Asked::Domain => (self.domain(), NO_NAME_TTL),
            Asked::NameServer => (self.name_server(), NO_NAME_TTL),
            Asked::Host(at) => (self.addresses([at].into_iter()), NO_NAME_TTL),
            Asked::Branch => (Answer::of(Vec::new()), EMPTY_TTL),
            Asked::Part(part) => (self.part(&part), EMPTY_TTL),
        };
        match answer.answers.is_empty() {
            true => Answer { authority: vec![self.soa(negative_ttl)], ..answer },
            false => answer,
        }
    }

    fn look_up(&self, name: &Name) -> Asked<'a> {
        look_up(name, self.registry, self.settings, &self.looked)
    }

    /// A record of the name that was asked for, in the letters in which it was.
    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.question.name.clone(), self.settings.ttl, data)
    }

    fn soa(&self, ttl: u32) -> Record {
        let Settings { domain, name_server, hostmaster, .. } = self.settings;
        let serial = self.registry.revision().0 as u32;
        let soa =
            SOA::new(name_server.clone(), hostmaster.clone(), serial, REFRESH, RETRY, EXPIRE, ttl);
        Record::from_rdata(domain.clone(), ttl, RData::SOA(soa))
    }

    /// RFC 8482: one small record says that not everything is told at once.
    fn any(&self) -> Answer {
        let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        Answer::of(vec![self.record(data)])
    }

    fn domain(&self) -> Answer {
        let name_server = &self.settings.name_server;
        match self.question.kind {
            RecordType::SOA => {
                let soa = self.soa(NO_NAME_TTL);
                let data = self.record(soa.data);
                Answer::of(vec![data])
            }
            RecordType::NS => {
                let mut answer = Answer::of(vec![self.record(RData::NS(NS(name_server.clone())))]);
                let glue = self.settings.addresses.iter();
                answer.additionals = glue.map(|at| self.address_of(name_server, *at)).collect();
                answer
            }
            _ => Answer::of(Vec::new()),
        }
    }

    fn name_server(&self) -> Answer {
        self.addresses(self.settings.addresses.iter().copied())
    }

    fn part(&self, part: &Part<'_>) -> Answer {
        let found = || usable(part, self.settings, &self.looked);
        match self.question.kind {
            RecordType::A | RecordType::AAAA => {
                let mut lacks_instances = true;
                let found = shuffled(found(), self.seed);
                let at = found.flat_map(|it| endpoints(it, part.endpoint.as_deref()));
                let at = at.inspect(|_| lacks_instances = false);
                let answer = self.addresses(at.filter_map(|at| match at.host {
                    Host::Address(address) => Some(address),
                    Host::Name(_) => None,
                }));
                Answer { lacks_instances, ..answer }
            }
            RecordType::SRV => self.srv(part, found()),
            RecordType::TXT => {
                let told = shuffled(found(), self.seed).take(self.most);
                let answer = Answer::of(told.map(|it| self.record(about(it))).collect());
                Answer { lacks_instances: answer.answers.is_empty(), ..answer }
            }
            _ => Answer::of(Vec::new()),
        }
    }

    /// Those of the type that is asked for, each once.
    fn addresses(&self, all: impl Iterator<Item = IpAddr>) -> Answer {
        let kind = self.question.kind;
        let mut told = BTreeSet::new();
        let of_kind = all.filter(|at| kind_of(*at) == kind);
        let once = of_kind.filter(|at| told.insert(*at)).take(self.most);
        Answer::of(once.map(|at| self.record(address_data(at))).collect())
    }

    fn srv(&self, part: &Part<'_>, found: Vec<&Instance>) -> Answer {
        let own = &self.settings.own_zone;
        let is_far = |it: &Instance| !own.is_empty() && !it.spec.zone().eq_ignore_ascii_case(own);
        let heaviest = found.iter().map(|it| it.weight()).max().unwrap_or(0);
        let (far, near): (Vec<&Instance>, Vec<&Instance>) =
            found.into_iter().partition(|it| is_far(it));
        let mut answer = Answer::of(Vec::new());
        let mut told = BTreeSet::new();
        for instance in shuffled(near, self.seed).chain(shuffled(far, !self.seed)) {
            let name = self.host_of(&part.key, instance);
            let weight = weight(instance.weight(), heaviest);
            for Endpoint { host, port } in endpoints(instance, part.endpoint.as_deref()) {
                let (target, at) = match host {
                    Host::Address(at) => (name.clone().or_else(|| self.address_name(at)), Some(at)),
                    Host::Name(host) => (host_name(host), None),
                };
                let Some(target) = target else { continue };
                if !told.insert((target.clone(), port)) {
                    continue;
                }
                let data = SRV::new(u16::from(is_far(instance)), weight, port, target.clone());
                answer.answers.push(self.record(RData::SRV(data)));
                if let Some(at) = at {
                    let glue = self.address_of(&target, at);
                    if answer.additionals.last() != Some(&glue) {
                        answer.additionals.push(glue);
                    }
                }
            }
            if answer.answers.len() >= self.most {
                break;
            }
        }
        answer.lacks_instances = answer.answers.is_empty();
        answer
    }

    /// The name of an instance whose endpoints all have one address: that name has it alone.
    /// `None`: they have several, or the instance no name of DNS that is its own. Who registers in
    /// a namespace `orders.prod` must not be where the instances of `orders` in `prod` are.
    fn host_of(&self, key: &ServiceKey, instance: &Instance) -> Option<Name> {
        let mut at = endpoints(instance, None).filter_map(|it| match it.host {
            Host::Address(at) => Some(at),
            Host::Name(_) => None,
        });
        let first = at.next()?;
        // One with capitals is found by a look at all others: too long for each of them.
        if instance.key.id.as_str().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let name =
            at.all(|at| at == first).then(|| instance_name(key, instance, self.settings))??;
        match self.look_up(&name) {
            Asked::Part(part) => {
                part.instance.is_some_and(|it| it.key == instance.key).then_some(name)
            }
            _ => None,
        }
    }

    fn address_name(&self, address: IpAddr) -> Option<Name> {
        let labels = host_labels(address);
        let name = Name::from_labels(labels.iter().map(String::as_bytes)).ok()?;
        name.append_domain(&self.settings.domain).ok()
    }

    fn address_of(&self, name: &Name, address: IpAddr) -> Record {
        Record::from_rdata(name.clone(), self.settings.ttl, address_data(address))
    }

    /// The names of the instances at an address. This is no name server of the addresses: where it
    /// knows none, others may. Other types are refused without a look, which is a long one.
    fn address(&self, address: IpAddr) -> Answer {
        let kind = self.question.kind;
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Answer::code(ResponseCode::Refused);
        }
        let found = at_address(address, self.registry, self.settings, &self.looked);
        let told = found.unwrap_or_default().into_iter().filter_map(|instance| {
            let name = instance_name(&instance.key.service, instance, self.settings)?;
            Some(self.record(RData::PTR(PTR(name))))
        });
        let told: Vec<Record> = told.take(self.most).collect();
        match kind {
            _ if told.is_empty() => Answer::code(ResponseCode::Refused),
            RecordType::ANY => self.any(),
            _ => Answer::of(told),
        }
    }
}

fn kind_of(address: IpAddr) -> RecordType {
    if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn about(instance: &Instance) -> RData {
    let spec = &instance.spec;
    let (zone, version) = (spec.zone(), spec.version());
    let parts = [("instance", instance.key.id.as_str()), ("zone", zone), ("version", version)];
    let parts = parts.into_iter().filter(|(_, value)| !value.is_empty());
    // A text has 255 bytes at most, and a name 253.
    let texts = parts.map(|(key, value)| {
        let mut text = format!("{key}={value}");
        text.truncate(255);
        text
    });
    RData::TXT(TXT::new(texts.collect()))
}

/// `orders-1.orders.prod.svc.quorate.`; `None`: that is no name of DNS.
fn instance_name(key: &ServiceKey, instance: &Instance, settings: &Settings) -> Option<Name> {
    let parts = [instance.key.id.as_str(), key.name.as_str(), key.namespace.as_str(), SVC];
    let labels = parts.iter().flat_map(|part| part.split('.')).map(str::as_bytes);
    Name::from_labels(labels).ok()?.append_domain(&settings.domain).ok()
}

/// The target of an SRV is a name from the root.
fn host_name(host: &str) -> Option<Name> {
    let labels = host.strip_suffix('.').unwrap_or(host).split('.').map(str::as_bytes);
    Name::from_labels(labels).ok()
}

/// Weights of SRV have 16 bits: where one is larger, all shrink alike, and none to nothing.
fn weight(weight: u32, heaviest: u32) -> u16 {
    let most = u32::from(u16::MAX);
    let fits = match heaviest > most {
        true => (u64::from(weight) * u64::from(most) / u64::from(heaviest)).max(1),
        false => u64::from(weight),
    };
    u16::try_from(fits).unwrap_or(u16::MAX)
}
