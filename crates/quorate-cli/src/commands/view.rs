//! How the cluster is, as a member of it sees it: a node that was removed, or waits to be taken in,
//! answers for itself only, and the others are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_client::{Client, Condition, Error, Member, Standing};
use quorate_proto::v1::StatusResponse;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::args::ClientArgs;
use crate::commands::cluster::verdict::{self, id, votes};
use crate::connect::{Stay, client_of};
use crate::failure::Failure;
use crate::json;

/// Another node has this long: it gives each of its members a second.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// One that is asked of itself alone has this long: a dead one holds nobody up, and `doctor`, which
/// is in no hurry, gives each more.
const NAMED_TIMEOUT: Duration = Duration::from_millis(500);

/// What a node says of when it started differs by no more than the time that its answers take.
const ONE_RUN: Duration = Duration::from_secs(3);

/// How a member answers a node that is none (`guard.rs` of the node).
const NO_MEMBER: &str = "it is no member of this cluster";

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// As the best of those sees it that were asked.
    pub(crate) status: StatusResponse,
    /// The nodes that were asked and are no members.
    pub(super) outsiders: Vec<Outsider>,
    /// Nodes that run twice, with two of the addresses at which they answer. Only found where all
    /// are asked.
    pub(super) twins: Vec<(u64, [String; 2])>,
    /// The clusters of the nodes that answered, each with one of their addresses.
    pub(super) clusters: BTreeMap<u64, String>,
}

/// A node that answers and is no member.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outsider {
    pub(crate) id: u64,
    pub(crate) condition: Condition,
}

impl View {
    /// One node answered, whichever.
    pub(crate) fn of(status: StatusResponse) -> Self {
        Self::best(vec![status])
    }

    /// Nobody that answered has a part in a cluster, or waits for one to be founded: nothing is
    /// known of the cluster.
    pub(super) fn is_of_strangers(&self) -> bool {
        self.speaker().is_some_and(|only| only.condition.standing() != Standing::Waiting)
    }

    /// Who answers, if that is no member.
    pub(super) fn speaker(&self) -> Option<&Outsider> {
        let answering = self.status.header.as_ref()?.node_id;
        self.outsiders.iter().find(|outsider| outsider.id == answering)
    }

    fn best(answers: Vec<StatusResponse>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().map(disowned).collect();
        answers.sort_by_key(rank);
        let outsiders = answers.iter().filter_map(outsider);
        let mut outsiders: BTreeMap<u64, _> = outsiders.map(|it| (it.id, it)).collect();
        let status = answers.pop().unwrap_or_default();
        // One that was taken in and has not caught up stands in the table.
        for member in status.members.iter().filter_map(|status| status.member.as_ref()) {
            outsiders.remove(&member.id);
        }
        Self { status, outsiders: outsiders.into_values().collect(), ..Self::default() }
    }
}

/// Asks the nodes that were named until one is a member with a leader in sight, and for their
/// cluster those that are not seen to be of that one's; `all`: each for all that it knows.
///
/// # Errors
/// None answers, or one refuses.
pub(crate) async fn look(client: &Client, args: &ClientArgs, all: bool) -> Result<View, Failure> {
    let first = disowned(client.admin().status(false).await?);
    if !all && is_member(&first) {
        let clusters = clusters_of(&first, args).await?;
        return Ok(View { clusters, ..View::of(first) });
    }
    let own = first.header.as_ref().map_or(0, |header| header.node_id);
    let is_other = |member: &&Member| member.id != own;
    let members = first.members.iter().filter_map(|status| status.member.as_ref());
    let members = members.filter(is_other).map(|member| member.client_address.clone());
    let known = members.filter(|address| !address.is_empty());
    // Where it answers under another name, it is asked twice.
    let addresses: BTreeSet<String> = args.nodes().into_iter().chain(known).collect();
    let mut asked = ask(addresses, args, false, ASK_TIMEOUT)?;
    let (mut runs, mut clusters) = (Vec::new(), BTreeMap::new());
    let mut answers = vec![first];
    while let Some(answer) = asked.join_next().await {
        let Ok((address, Ok(answer), at)) = answer else { continue };
        note(&mut clusters, &address, &answer);
        runs.extend(run(address, &answer, at));
        let answer = disowned(answer);
        let is_enough = !all && is_member(&answer);
        answers.push(answer);
        if is_enough {
            break;
        }
    }
    Ok(View { twins: twins(&runs), clusters, ..View::best(answers) })
}

type Asked = JoinSet<(String, Result<StatusResponse, Error>, Instant)>;

/// Each by itself; `local`: of itself alone.
fn ask(
    addresses: BTreeSet<String>,
    args: &ClientArgs,
    local: bool,
    within: Duration,
) -> Result<Asked, Failure> {
    let mut asked = JoinSet::new();
    for address in addresses {
        let mut args = args.clone();
        args.timeout = args.timeout.min(within);
        let admin = client_of(vec![address.clone()], &args, Stay::Once)?.admin();
        asked.spawn(async move {
            let answer = admin.status(local).await;
            (address, answer, Instant::now())
        });
    }
    Ok(asked)
}

/// Of the nodes that were named.
async fn clusters_of(
    first: &StatusResponse,
    args: &ClientArgs,
) -> Result<BTreeMap<u64, String>, Failure> {
    let mut clusters = BTreeMap::new();
    let known = first.members.iter().filter(|member| member.reachable);
    let known: BTreeSet<String> =
        known.filter_map(|it| Some(it.member.as_ref()?.client_address.clone())).collect();
    let mut named: BTreeSet<String> = args.nodes().into_iter().collect();
    if let Some(one) = named.intersection(&known).next() {
        note(&mut clusters, one, first);
    }
    named.retain(|address| !known.contains(address));
    // One that was named alone is the one that has answered.
    if named.len() + clusters.len() < 2 {
        return Ok(clusters);
    }
    let mut asked = ask(named, args, true, NAMED_TIMEOUT)?;
    while let Some(answer) = asked.join_next().await {
        if let Ok((address, Ok(answer), _)) = answer {
            note(&mut clusters, &address, &answer);
        }
    }
    Ok(clusters)
}

/// One that is in no cluster yet is of none.
fn note(clusters: &mut BTreeMap<u64, String>, address: &str, answer: &StatusResponse) {
    let id = answer.header.as_ref().map_or(0, |header| header.cluster_id);
    if id != 0 {
        clusters.entry(id).or_insert_with(|| address.to_owned());
    }
}

/// What it means that the nodes which answer are of several clusters, if they are, and what to do.
pub(super) fn several_clusters(view: &View) -> Option<(String, &'static str)> {
    let shown = |(id, address): (&u64, &String)| format!("{} ({address})", json::hex(*id));
    let all: Vec<_> = view.clusters.iter().map(shown).collect();
    (all.len() > 1).then(|| {
        let all = all.join(" and ");
        let meaning = format!(
            "the nodes that were asked are of different clusters: {all}: each has what the others lack"
        );
        let next = "if `recover` or `restore` was done twice, or beside nodes that run: decide which cluster goes on, and stop all nodes of the other (docs/operations.md#two-clusters-of-one); if both are wanted, name nodes of one alone: --nodes";
        (meaning, next)
    })
}

/// A process that answers at an address: the node that it says it is, and when it started.
struct Run {
    id: u64,
    address: String,
    started: Instant,
}

fn run(address: String, answer: &StatusResponse, at: Instant) -> Option<Run> {
    let id = answer.header.as_ref()?.node_id;
    let own = answer.members.iter().find(|it| verdict::id(it) == id && it.uptime_ms > 0)?;
    let started = at.checked_sub(Duration::from_millis(own.uptime_ms))?;
    Some(Run { id, address, started })
}

/// Two addresses at which the same node answers, and not the same process.
fn twins(runs: &[Run]) -> Vec<(u64, [String; 2])> {
    let mut found: Vec<(u64, [String; 2])> = Vec::new();
    for (at, a) in runs.iter().enumerate() {
        let apart = |b: &Run| a.started.max(b.started) - a.started.min(b.started);
        let twin = runs[at + 1..].iter().find(|b| b.id == a.id && apart(b) > ONE_RUN);
        if let Some(b) = twin.filter(|_| !found.iter().any(|(id, _)| *id == a.id)) {
            found.push((a.id, [a.address.clone(), b.address.clone()]));
        }
    }
    found
}

pub(crate) fn standing(condition: Option<&Condition>) -> Standing {
    condition.map_or(Standing::Unspecified, Condition::standing)
}

fn is_member(answer: &StatusResponse) -> bool {
    matches!(standing(answer.condition.as_ref()), Standing::Member | Standing::Unspecified)
}

/// A node that was taken out a moment ago does not know it yet: it takes itself for a member, and
/// the others, which refuse it, for silent. Where they leave it no majority, their word counts.
fn disowned(mut answer: StatusResponse) -> StatusResponse {
    // While it is being founded, its cluster is none to the others yet.
    if answer.header.as_ref().is_none_or(|header| header.cluster_id == 0) {
        return answer;
    }
    let voters = answer.members.iter().filter(|status| votes(status));
    let (up, down): (Vec<_>, Vec<_>) = voters.partition(|status| status.reachable);
    let refuses = down.iter().find(|status| status.error.contains(NO_MEMBER));
    let Some(told_by) = refuses.filter(|_| up.len() <= down.len()) else { return answer };
    let reason = format!("node {} says so, and this one does not know it yet", id(told_by));
    let mut condition = answer.condition.take().unwrap_or_default();
    condition.set_standing(Standing::Removed);
    condition.reason = format!("it was removed from its cluster: {reason}");
    answer.condition = Some(condition);
    let own = answer.header.as_ref().map_or(0, |header| header.node_id);
    answer.members.retain(|status| id(status) != own);
    answer
}

/// The larger, the more is to be had from it.
fn rank(answer: &StatusResponse) -> (u8, bool, usize, u64) {
    let place = match standing(answer.condition.as_ref()) {
        Standing::Member | Standing::Unspecified => 4,
        Standing::Stopping => 3,
        Standing::CutOff => 2,
        Standing::Joining => 1,
        Standing::Waiting | Standing::Removed => 0,
    };
    let header = answer.header.clone().unwrap_or_default();
    let answering = answer.members.iter().filter(|member| member.reachable).count();
    (place, header.leader_id == header.node_id, answering, header.term)
}

fn outsider(answer: &StatusResponse) -> Option<Outsider> {
    let condition = answer.condition.clone()?;
    let is_out =
        matches!(condition.standing(), Standing::Waiting | Standing::Joining | Standing::Removed);
    let id = answer.header.as_ref().map_or(0, |header| header.node_id);
    is_out.then_some(Outsider { id, condition })
}

#[cfg(test)]
mod tests {
    use quorate_client::{MemberRole, MemberStatus, ResponseHeader};

    use super::*;

    fn answer(node_id: u64, standing: Standing, reachable: usize) -> StatusResponse {
        let mut condition = Condition::default();
        condition.set_standing(standing);
        let member = MemberStatus { reachable: true, ..Default::default() };
        StatusResponse {
            header: Some(ResponseHeader { node_id, cluster_id: 7, ..Default::default() }),
            members: vec![member; reachable],
            condition: Some(condition),
            ..Default::default()
        }
    }

    /// Whoever answers first: a member's word counts, of those with a leader in sight, or of those
    /// that see the most.
    #[test]
    fn the_table_is_a_members() {
        for (answers, best, outsiders) in [
            (vec![answer(3, Standing::Removed, 0), answer(1, Standing::Member, 3)], 1, vec![3]),
            (vec![answer(1, Standing::Member, 3), answer(4, Standing::Waiting, 0)], 1, vec![4]),
            (vec![answer(2, Standing::CutOff, 1), answer(1, Standing::Member, 2)], 1, vec![]),
            (vec![answer(2, Standing::CutOff, 1), answer(1, Standing::CutOff, 2)], 1, vec![]),
            (vec![answer(2, Standing::CutOff, 1), answer(4, Standing::Joining, 2)], 2, vec![4]),
            (vec![answer(4, Standing::Joining, 0), answer(4, Standing::Joining, 0)], 4, vec![4]),
        ] {
            for turned in [false, true] {
                let mut answers = answers.clone();
                if turned {
                    answers.reverse();
                }
                let view = View::best(answers);
                assert_eq!(view.status.header.unwrap().node_id, best);
                let found: Vec<_> = view.outsiders.iter().map(|outsider| outsider.id).collect();
                assert_eq!(found, outsiders);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_in_two_processes_is_named() {
        tokio::time::advance(Duration::from_secs(1_000)).await;
        let of = |address: &str, id, uptime_ms| {
            let own = MemberStatus { uptime_ms, ..seen(id, "") };
            let answer = StatusResponse { members: vec![own], ..answer(id, Standing::Member, 0) };
            run(address.to_owned(), &answer, Instant::now()).unwrap()
        };
        let runs = [of("a:1", 1, 90_000), of("b:1", 2, 5_000), of("localhost:1", 1, 90_400)];
        assert_eq!(twins(&runs), [], "asked by two names");
        let runs = [of("a:1", 1, 90_000), of("b:1", 2, 5_000), of("c:1", 1, 20_000)];
        assert_eq!(twins(&runs), [(1, ["a:1".to_owned(), "c:1".to_owned()])]);
    }

    #[test]
    fn nodes_of_two_clusters_are_told_apart() {
        let mut clusters = BTreeMap::new();
        let of = |cluster_id| {
            let mut answer = answer(1, Standing::Member, 1);
            answer.header.as_mut().unwrap().cluster_id = cluster_id;
            answer
        };
        for (address, id) in [("a:1", 7), ("b:1", 7), ("c:1", 0)] {
            note(&mut clusters, address, &of(id));
        }
        let one = View { clusters: clusters.clone(), ..View::default() };
        assert_eq!(several_clusters(&one), None, "one is in none yet");
        note(&mut clusters, "d:1", &of(8));
        let (meaning, next) = several_clusters(&View { clusters, ..View::default() }).unwrap();
        let words = "different clusters: 0000000000000007 (a:1) and 0000000000000008 (d:1)";
        assert!(meaning.contains(words) && next.contains("#two-clusters-of-one"), "{meaning}");
    }

    /// A member as node 1, which was just taken out, has it in its table.
    fn seen(id: u64, error: &str) -> MemberStatus {
        let mut member = Member { id, ..Default::default() };
        member.set_role(MemberRole::Voter);
        let (reachable, error) = (error.is_empty(), error.to_owned());
        MemberStatus { member: Some(member), reachable, error, ..Default::default() }
    }

    #[test]
    fn a_node_that_the_others_refuse_is_no_member_though_it_does_not_know_yet() {
        const REFUSED: &str = "node 1 is refused: it is no member of this cluster";
        let of = |errors: [&str; 3]| StatusResponse {
            members: (1..).zip(errors).map(|(id, error)| seen(id, error)).collect(),
            ..answer(1, Standing::Member, 0)
        };
        for (errors, is_out) in [
            (["", REFUSED, REFUSED], true),
            (["", REFUSED, "connection refused"], true),
            (["", "connection refused", "connection refused"], false),
            // One that is behind does not know yet that it was taken in.
            (["", "", REFUSED], false),
        ] {
            let alone = View::of(of(errors));
            assert_eq!(alone.is_of_strangers(), is_out, "{errors:?}");
            let both = View::best(vec![of(errors), answer(2, Standing::Member, 0)]);
            let answering = both.status.header.unwrap().node_id;
            assert_eq!(answering == 2, is_out, "{errors:?}");
        }
        let mut founding = of(["", REFUSED, REFUSED]);
        founding.header.as_mut().unwrap().cluster_id = 0;
        assert!(!View::of(founding).is_of_strangers(), "the others do not know of it yet");
        let reason = &View::of(of(["", REFUSED, REFUSED])).outsiders[0].condition.reason;
        assert!(reason.contains("it was removed from its cluster: node 2 says so"), "{reason}");
    }
}
