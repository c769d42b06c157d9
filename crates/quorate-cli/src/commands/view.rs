//! How the cluster is, as a member of it sees it: a node that was removed, or waits to be taken in,
//! answers for itself only, and the others are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_client::{Client, Condition, Member, Standing};
use quorate_proto::v1::StatusResponse;
use tokio::task::JoinSet;

use crate::args::ClientArgs;
use crate::connect::{Stay, client_of};
use crate::failure::Failure;

/// Another node has this long: it gives each of its members a second.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// As the best of those sees it that were asked.
    pub(crate) status: StatusResponse,
    /// The nodes that were asked and are no members.
    pub(super) outsiders: Vec<Outsider>,
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

    fn best(mut answers: Vec<StatusResponse>) -> Self {
        answers.sort_by_key(rank);
        let outsiders = answers.iter().filter_map(outsider);
        let mut outsiders: BTreeMap<u64, _> = outsiders.map(|it| (it.id, it)).collect();
        let status = answers.pop().unwrap_or_default();
        // One that was taken in and has not caught up stands in the table.
        for member in status.members.iter().filter_map(|status| status.member.as_ref()) {
            outsiders.remove(&member.id);
        }
        Self { status, outsiders: outsiders.into_values().collect() }
    }
}

/// Asks the nodes that were named until one is a member with a leader in sight; `all`: each of
/// them.
///
/// # Errors
/// None answers, or one refuses.
pub(crate) async fn look(client: &Client, args: &ClientArgs, all: bool) -> Result<View, Failure> {
    let first = client.admin().status(false).await?;
    if !all && is_member(&first) {
        return Ok(View::of(first));
    }
    let own = first.header.as_ref().map_or(0, |header| header.node_id);
    let is_other = |member: &&Member| member.id != own;
    let members = first.members.iter().filter_map(|status| status.member.as_ref());
    let members = members.filter(is_other).map(|member| member.client_address.clone());
    let known = members.filter(|address| !address.is_empty());
    // Where it answers under another name, it is asked twice.
    let addresses: BTreeSet<String> = args.nodes().into_iter().chain(known).collect();
    let mut asked = JoinSet::new();
    for address in addresses {
        let mut args = args.clone();
        args.timeout = args.timeout.min(ASK_TIMEOUT);
        let admin = client_of(vec![address], &args, Stay::Once)?.admin();
        asked.spawn(async move { admin.status(false).await });
    }
    let mut answers = vec![first];
    while let Some(answer) = asked.join_next().await {
        let Ok(Ok(answer)) = answer else { continue };
        let is_enough = !all && is_member(&answer);
        answers.push(answer);
        if is_enough {
            break;
        }
    }
    Ok(View::best(answers))
}

pub(crate) fn standing(condition: Option<&Condition>) -> Standing {
    condition.map_or(Standing::Unspecified, Condition::standing)
}

fn is_member(answer: &StatusResponse) -> bool {
    matches!(standing(answer.condition.as_ref()), Standing::Member | Standing::Unspecified)
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
    use quorate_client::{MemberStatus, ResponseHeader};

    use super::*;

    fn answer(node_id: u64, standing: Standing, reachable: usize) -> StatusResponse {
        let mut condition = Condition::default();
        condition.set_standing(standing);
        let member = MemberStatus { reachable: true, ..Default::default() };
        StatusResponse {
            header: Some(ResponseHeader { node_id, ..Default::default() }),
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
}
