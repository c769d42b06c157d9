//! A simulated process: registers one instance, renews its lease, changes it, and at some time
//! deregisters, restarts (leaving a zombie of its former run behind), or dies. Talks to one node
//! until that fails, then to the next.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::requests::{OpenWrite, Origin};
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    DeregisterRequest, InstanceRef, InstanceSpec, LeaseRenewal, RegisterRequest, RenewRequest,
    RequestId, UpdateRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::history::{Answer, Ask, Call, Fate, Shared, now};
use super::net::{again, channel};
use super::plan::{CALM, HEALED, Ms, NODES, Plan};

/// How long a process waits for an answer, by its own clock and by the deadline that the node gets.
const PATIENCE: Duration = Duration::from_millis(1_200);

/// An update whose fate is not known is tried at most this often, under one name.
const UPDATE_ATTEMPTS: u32 = 4;

/// A write that is tried until its fate is known.
struct Write {
    open: OpenWrite,
    from: Ms,
}

/// Clients of all nodes, as one host has them; goes round the members of the moment.
#[derive(Clone)]
pub(crate) struct Nodes {
    clients: Vec<RegistryClient<Channel>>,
    at: u64,
    notes: Shared,
}

impl Nodes {
    pub(crate) fn new(plan: &Arc<Plan>, at: u64, notes: &Shared) -> Self {
        let clients = plan.nodes().map(|node| RegistryClient::new(channel(plan, node))).collect();
        Self { clients, at: at % NODES + 1, notes: notes.clone() }
    }

    pub(crate) fn node(&self) -> u64 {
        self.at
    }

    pub(crate) fn go_to(&mut self, node: u64) {
        self.at = node;
    }

    pub(crate) fn next(&mut self) {
        let notes = self.notes.borrow();
        let next = notes.members.range(self.at + 1..).next().or(notes.members.first());
        self.at = *next.expect("there are always members");
    }

    /// From a node that was taken out to one that was not.
    pub(crate) fn leave_removed(&mut self) {
        let is_member = self.notes.borrow().members.contains(&self.at);
        if !is_member {
            self.next();
        }
    }

    pub(crate) fn client(&self) -> RegistryClient<Channel> {
        self.clients[self.at as usize - 1].clone()
    }
}

/// One process and what follows it under the same name.
pub(crate) struct Process {
    service: String,
    id: String,
    ttl_ms: u64,
    incarnation: u64,
    /// Names its writes; zombies have one of their own.
    origin: Origin,
    rng: StdRng,
    nodes: Nodes,
    notes: Shared,
}

enum End {
    Deregister,
    Restart,
    Die { absent_ms: Ms },
}

impl Process {
    pub(crate) fn new(number: u64, seed: u64, nodes: Nodes, notes: Shared) -> Self {
        Self {
            service: format!("svc{}", number % 3),
            id: format!("p{number}"),
            ttl_ms: [1_500, 3_000, 5_000][(number % 3) as usize],
            incarnation: 0,
            origin: Origin::new(number + 1),
            rng: StdRng::seed_from_u64(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            nodes,
            notes,
        }
    }

    fn key(&self) -> String {
        format!("{}/{}", self.service, self.id)
    }

    pub(crate) async fn run(mut self) {
        sleep(Duration::from_millis(self.rng.random_range(2_000..3_500))).await;
        loop {
            self.incarnation += 1;
            let lease = self.register().await;
            let life = self.rng.random_range(1_000..9_000);
            let lease = self.live(lease, now() + life).await;
            if self.notes.borrow().stop {
                let fate = Fate::Alive { incarnation: self.incarnation, lease };
                return self.fate(fate);
            }
            match self.choose_end() {
                End::Deregister => {
                    self.deregister().await;
                    self.fate(Fate::Gone { incarnation: self.incarnation });
                    self.pause(0..2_000).await;
                }
                End::Restart => self.leave_zombie(lease),
                End::Die { absent_ms } => {
                    self.fate(Fate::Dead { incarnation: self.incarnation, at: now() });
                    self.pause(absent_ms..absent_ms + 500).await;
                }
            }
            if self.notes.borrow().stop {
                return;
            }
        }
    }

    fn choose_end(&mut self) -> End {
        match self.rng.random_range(0..10) {
            0..3 => End::Deregister,
            3..6 => End::Restart,
            6..8 => End::Die { absent_ms: self.rng.random_range(100..2 * self.ttl_ms) },
            _ => End::Die { absent_ms: 60_000 },
        }
    }

    fn fate(&self, fate: Fate) {
        let mut notes = self.notes.borrow_mut();
        notes.note(format!("{} is {fate:?}", self.key()));
        notes.fates.entry(self.key()).or_default().push(fate);
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let until = now() + self.rng.random_range(ms);
        while now() < until && !self.notes.borrow().stop {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Registers, again and again until it is done; the lease.
    async fn register(&mut self) -> u64 {
        let mut write = self.begin();
        loop {
            let ask = Ask::Register { incarnation: self.incarnation, ttl_ms: self.ttl_ms };
            match self.attempt(ask, &write).await {
                Answer::Done { lease, .. } => return lease,
                Answer::Refused(_) => {
                    let (key, incarnation) = (self.key(), self.incarnation);
                    let line = format!("{key}: registering incarnation {incarnation} was refused");
                    self.notes.borrow_mut().violation(line);
                    self.incarnation += 1;
                    write = self.begin();
                }
                Answer::Unknown(_) => {}
            }
            if self.notes.borrow().stop {
                return 0;
            }
        }
    }

    /// Keeps the lease, and changes the instance now and then, until the end of this life or of the
    /// run.
    async fn live(&mut self, mut lease: u64, until: Ms) -> u64 {
        let mut renew_at = now() + self.ttl_ms / 3;
        loop {
            let stop = self.notes.borrow().stop;
            // No process ends after the faults did: the end of the run compares what all have.
            if stop || (now() >= until && now() < HEALED) {
                return lease;
            }
            if now() >= renew_at {
                renew_at = now() + self.ttl_ms / 3;
                match self.call(Ask::Renew { lease }).await {
                    Answer::Refused(Code::NotFound) => lease = self.register().await,
                    Answer::Unknown(_) => renew_at = now() + 100,
                    _ => {}
                }
            } else if self.rng.random_bool(0.05) {
                self.update().await;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// To a weight that no other update has.
    async fn update(&mut self) {
        let weight = self.notes.borrow_mut().new_weight();
        let write = self.begin();
        for _ in 0..UPDATE_ATTEMPTS {
            let ask = Ask::Update { incarnation: self.incarnation, weight };
            let answer = self.attempt(ask, &write).await;
            if !matches!(answer, Answer::Unknown(_)) || self.notes.borrow().stop {
                return;
            }
        }
    }

    async fn deregister(&mut self) {
        let write = self.begin();
        loop {
            let ask = Ask::Deregister { incarnation: self.incarnation };
            let answer = self.attempt(ask, &write).await;
            if !matches!(answer, Answer::Unknown(_)) || self.notes.borrow().stop {
                return;
            }
        }
    }

    /// The former run goes on for a while and knows nothing of its successor.
    fn leave_zombie(&mut self, lease: u64) {
        let mut zombie = Self {
            service: self.service.clone(),
            id: self.id.clone(),
            ttl_ms: self.ttl_ms,
            incarnation: self.incarnation,
            origin: Origin::new(self.rng.random()),
            rng: StdRng::seed_from_u64(self.rng.random()),
            nodes: self.nodes.clone(),
            notes: self.notes.clone(),
        };
        tokio::task::spawn_local(async move {
            let until = now() + 4_000;
            while now() < until && !zombie.notes.borrow().stop {
                let incarnation = zombie.incarnation;
                let ask = match zombie.rng.random_range(0..4) {
                    0 => Ask::Renew { lease },
                    1 => Ask::Deregister { incarnation },
                    2 => {
                        let weight = zombie.notes.borrow_mut().new_weight();
                        Ask::Update { incarnation, weight }
                    }
                    _ => Ask::Register { incarnation, ttl_ms: zombie.ttl_ms },
                };
                zombie.call(ask).await;
                zombie.pause(100..800).await;
            }
        });
    }

    fn begin(&self) -> Write {
        Write { open: self.origin.begin(), from: now() }
    }

    /// A call that is made once.
    async fn call(&mut self, ask: Ask) -> Answer {
        let write = self.begin();
        self.attempt(ask, &write).await
    }

    /// One attempt at one node; the next one is turned to when it is not known what came of it.
    async fn attempt(&mut self, ask: Ask, write: &Write) -> Answer {
        let from = write.from;
        if now() >= HEALED {
            self.nodes.leave_removed();
        }
        let (node, sent) = (self.nodes.node(), now());
        let attempt = timeout(PATIENCE, again(async || self.send(&ask, write).await)).await;
        let answer = match attempt {
            Ok(Ok((revision, lease))) => Answer::Done { revision, lease },
            Ok(Err(status)) => match status.code() {
                code @ (Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition) => {
                    Answer::Refused(code)
                }
                code => Answer::Unknown(code),
            },
            Err(_elapsed) => Answer::Unknown(Code::DeadlineExceeded),
        };
        if let Answer::Unknown(code) = &answer {
            self.nodes.next();
            if from >= CALM {
                let line = format!("{from} ms: {} at node {node}: {ask:?}: {code:?}", self.key());
                self.notes.borrow_mut().late_failures.push(line);
            }
            sleep(Duration::from_millis(20)).await;
        }
        let (key, to) = (self.key(), now());
        let mut notes = self.notes.borrow_mut();
        notes.note(format!("{key} at n{node} since {from}: {ask:?} -> {answer:?}"));
        notes.calls.push(Call { key, node, from, sent, to, ask, answer: answer.clone() });
        answer
    }

    async fn send(&self, ask: &Ask, write: &Write) -> Result<(u64, u64), Status> {
        let (mut client, node) = (self.nodes.client(), self.nodes.node());
        let request_id = Some(RequestId {
            origin: write.open.origin(),
            number: write.open.number(),
            done_below: write.open.done_below(),
            age_ms: now() - write.from,
        });
        let target = |incarnation| InstanceRef {
            service: self.service.clone(),
            id: self.id.clone(),
            incarnation,
        };
        let (header, lease) = match *ask {
            Ask::Register { incarnation, ttl_ms } => {
                let spec = InstanceSpec {
                    service: self.service.clone(),
                    id: self.id.clone(),
                    endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
                    ..InstanceSpec::default()
                };
                let instances = vec![spec];
                let request = RegisterRequest {
                    instances,
                    ttl_ms,
                    incarnation,
                    request_id,
                    ..<_>::default()
                };
                let answer = client.register(timed(request)).await?.into_inner();
                (answer.header, answer.lease_id)
            }
            Ask::Renew { lease } => {
                let renewals = vec![LeaseRenewal { lease_id: lease }];
                (
                    client
                        .renew(timed(RenewRequest { renewals, ..RenewRequest::default() }))
                        .await?
                        .into_inner()
                        .header,
                    lease,
                )
            }
            Ask::Update { incarnation, weight } => {
                let (instance, weight) = (Some(target(incarnation)), Some(weight));
                let request = UpdateRequest { instance, weight, request_id, ..<_>::default() };
                (client.update(timed(request)).await?.into_inner().header, 0)
            }
            Ask::Deregister { incarnation } => {
                let instances = vec![target(incarnation)];
                let request = DeregisterRequest { instances, request_id, ..<_>::default() };
                (client.deregister(timed(request)).await?.into_inner().header, 0)
            }
        };
        let header = header.unwrap_or_default();
        self.notes.borrow_mut().cluster(header.cluster_id, node);
        Ok((header.revision, lease))
    }
}

/// With the deadline that the node gets: a little less than the process's own.
pub(crate) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE - Duration::from_millis(200));
    request
}
