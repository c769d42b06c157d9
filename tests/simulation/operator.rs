//! The simulated operator: moves the lead and changes the members, each change until it is done, as
//! `quorate cluster` does when it is called again. A ghost seeker keeps asking the nodes that were
//! taken out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{
    AddNodeRequest, Member, RemoveNodeRequest, ReplaceNodeRequest, TransferLeaderRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::history::{Shared, now};
use super::membership::{Act, Change, Members};
use super::net::{PEER_PORT, channel, host};
use super::nodes::Nodes;
use super::plan::{CALM, HEALED, Ms, Plan, pick};
use super::reader::fetch;
use super::steps::StepKind;

/// How long an attempt may take, one or the other: a short one is given up in the midst of the
/// change.
const PATIENCES: [Ms; 3] = [400, 1_500, 5_000];

/// A change that has begun is done by then.
const DONE_BY: Ms = CALM - 1_000;

/// Nodes that are out are asked this often.
const SEEK_EVERY: Duration = Duration::from_millis(120);

struct Operator {
    /// By node, from 1 on.
    admins: Vec<AdminClient<Channel>>,
    rng: StdRng,
    notes: Shared,
}

/// Starts all that the plan's steps need.
pub(crate) fn begin(plan: &Arc<Plan>, seed: u64, notes: &Shared) {
    if plan.steps.is_empty() {
        return;
    }
    let operator = |salt: u64| Operator {
        admins: plan.nodes().map(|node| AdminClient::new(channel(plan, node))).collect(),
        rng: StdRng::seed_from_u64(seed ^ salt),
        notes: notes.clone(),
    };
    tokio::task::spawn_local(operator(0x7a).transfers(plan.clone()));
    tokio::task::spawn_local(operator(0xc4).changes(plan.clone()));
    tokio::task::spawn_local(seek_ghosts(Nodes::new(plan, 0, notes), notes.clone()));
}

impl Operator {
    fn note(&self, line: String) {
        self.notes.borrow_mut().note(format!("operator: {line}"));
    }

    /// What the operator asked for was not done: somebody else's change was going on (ABORTED),
    /// it cannot be now, or nobody knows.
    fn failed(&self, node: u64, status: &Status) {
        let refuses = [Code::Aborted, Code::FailedPrecondition, Code::NotFound];
        if !refuses.contains(&status.code()) {
            self.notes.borrow_mut().failed(node, "the operator", status);
        }
    }

    /// Any of the members.
    fn somebody(&mut self) -> (u64, AdminClient<Channel>) {
        let members: Vec<u64> = self.notes.borrow().members.iter().copied().collect();
        let node = pick(&mut self.rng, &members);
        (node, self.admins[node as usize - 1].clone())
    }

    async fn transfers(mut self, plan: Arc<Plan>) {
        for step in &plan.steps {
            let StepKind::Transfer { to: to_id } = step.kind else { continue };
            sleep(Duration::from_millis(step.at.saturating_sub(now()))).await;
            let (node, mut admin) = self.somebody();
            let patience = pick(&mut self.rng, &PATIENCES);
            let request = within(patience, TransferLeaderRequest { to_id });
            let answer = timeout(Duration::from_millis(patience), admin.transfer_leader(request));
            let answer = match answer.await {
                Ok(Ok(told)) => format!("node {} leads", told.into_inner().leader_id),
                Ok(Err(status)) => {
                    self.failed(node, &status);
                    said(&status)
                }
                Err(late) => late.to_string(),
            };
            self.note(format!("lead to {to_id} at n{node}: {answer}"));
        }
    }

    /// One after the other. What could not begin while there were faults is left out.
    async fn changes(mut self, plan: Arc<Plan>) {
        for step in &plan.steps {
            let StepKind::Change(act) = step.kind else { continue };
            sleep(Duration::from_millis(step.at.saturating_sub(now()))).await;
            if now() >= HEALED || !self.change(act).await {
                return;
            }
        }
    }

    /// Makes a change, and tries again until it is done; false: it was not in time.
    async fn change(&mut self, act: Act) -> bool {
        let expected = {
            let mut notes = self.notes.borrow_mut();
            let expected = Members::accepted(&notes.changes).after(act);
            notes.members.extend(act.comes());
            notes.machines.extend(act.comes());
            notes.changes.push(Change { act, begun: now(), done: None });
            expected
        };
        self.note(format!("begins {act:?}"));
        let mut now_doing = act;
        while now() < DONE_BY {
            let (node, admin) = self.somebody();
            let answer = self.attempt(admin, now_doing).await;
            let line = answer.as_ref().map(|_| "done".to_owned()).unwrap_or_else(said);
            if let Err(status) = &answer {
                self.failed(node, status);
            }
            self.note(format!("{now_doing:?} at n{node}: {line}"));
            match (answer, act) {
                (Ok(members), _) => {
                    self.done(members, &expected, node);
                    return true;
                }
                // It joined by itself, and votes already: the answer says to take the old one out.
                (Err(status), Act::Replace { old, .. })
                    if status.message().contains("votes already") =>
                {
                    now_doing = Act::Remove { old };
                }
                // An attempt before this one took it out.
                (Err(status), _)
                    if status.code() == Code::NotFound
                        && matches!(now_doing, Act::Remove { .. }) =>
                {
                    self.done(None, &expected, node);
                    return true;
                }
                _ => sleep(Duration::from_millis(self.rng.random_range(50..400))).await,
            }
        }
        false
    }

    /// The members as the answer names them.
    async fn attempt(
        &mut self,
        mut admin: AdminClient<Channel>,
        act: Act,
    ) -> Result<Option<Members>, Status> {
        let patience = if now() < HEALED { pick(&mut self.rng, &PATIENCES) } else { 5_000 };
        let peer_address = |id| format!("{}:{PEER_PORT}", host(id));
        let answer = timeout(Duration::from_millis(patience), async {
            let members = match act {
                Act::Replace { old: old_id, new: new_id } => {
                    let peer_address = peer_address(new_id);
                    let request = ReplaceNodeRequest { old_id, new_id, peer_address };
                    admin.replace_node(within(patience, request)).await?.into_inner().members
                }
                Act::Add { new: id, voter } => {
                    let (peer_address, learner_only) = (peer_address(id), !voter);
                    let request = AddNodeRequest { id, peer_address, learner_only };
                    admin.add_node(within(patience, request)).await?.into_inner().members
                }
                Act::Remove { old: id } => {
                    let request = within(patience, RemoveNodeRequest { id });
                    admin.remove_node(request).await?.into_inner().members
                }
            };
            Ok::<Vec<Member>, Status>(members)
        });
        let members = answer.await.map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(Some(Members::told(&members)))
    }

    /// The cluster says that it is done; `told`: with these members.
    fn done(&self, told: Option<Members>, expected: &Members, node: u64) {
        let mut notes = self.notes.borrow_mut();
        if let Some(told) = told.filter(|told| told != expected) {
            let line = format!("n{node} has done {:?}: {told:?}", notes.changes.last());
            notes.violation(line);
        }
        notes.members = expected.all();
        notes.changes.last_mut().expect("it was begun").done = Some(now());
    }
}

/// Without the headers, which have the real time.
fn said(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn within<T>(patience: Ms, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(patience - 50));
    request
}

/// Asks nodes that were taken out, wherever they still run, for linearizable reads. A node that
/// answers one is found by `invariants/members.rs`.
async fn seek_ghosts(mut nodes: Nodes, notes: Shared) {
    while !notes.borrow().stop {
        let out: BTreeSet<u64> = {
            let notes = notes.borrow();
            let gone = notes.changes.iter().filter(|change| change.done.is_some());
            gone.filter_map(|change| change.act.goes()).collect()
        };
        for node in out {
            nodes.go_to(node);
            let _refused = fetch(&nodes, true, 0, &notes).await;
        }
        sleep(SEEK_EVERY).await;
    }
}
