//! What a status means, in one line, and what to do about it.

use quorate_client::{MemberRole, MemberStatus};
use quorate_proto::v1::StatusResponse;

/// How a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Ok,
    Degraded,
    NoQuorum,
}

impl Health {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::NoQuorum => "NO QUORUM",
        }
    }

    /// For `--exit-code`.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 1,
            Self::NoQuorum => 2,
        }
    }
}

/// How it is, what that means, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) health: Health,
    pub(super) meaning: String,
    /// Empty: nothing.
    pub(super) next: String,
}

/// The verdict on a status; `faults`: what is wrong with single members.
pub(super) fn verdict(status: &StatusResponse, faults: &[String]) -> Verdict {
    let is_voter = |status: &&MemberStatus| {
        status.member.as_ref().is_some_and(|member| member.role() == MemberRole::Voter)
    };
    let id = |status: &MemberStatus| status.member.as_ref().map_or(0, |member| member.id);
    let voters: Vec<_> = status.members.iter().filter(is_voter).collect();
    let silent: Vec<String> =
        voters.iter().filter(|it| !it.reachable).map(|it| id(it).to_string()).collect();
    let (all, answer) = (voters.len(), voters.len() - silent.len());
    let needed = all / 2 + 1;
    let leader = status.header.as_ref().map_or(0, |header| header.leader_id);
    let is_low = status.members.iter().find(|member| member.disk_low);
    let silent = silent.join(", ");
    if answer < needed {
        return Verdict {
            health: Health::NoQuorum,
            meaning: format!(
                "{answer} of {all} voters answer, {needed} are needed: no writes; local reads go on, and nothing expires"
            ),
            next: format!(
                "start node {silent} again; only if their disks are lost for good: `quorate recover` (docs/operations.md)"
            ),
        };
    }
    if leader == 0 {
        return Verdict {
            health: Health::NoQuorum,
            meaning: format!("no node leads, although {answer} of {all} voters answer: no writes"),
            next: "look again in a few seconds; if it stays, the logs of the nodes say why"
                .to_owned(),
        };
    }
    let (meaning, next) = match (faults, is_low) {
        ([], None) => {
            (format!("node {leader} leads, {answer} of {all} voters answer"), String::new())
        }
        (_, Some(low)) => (
            format!("the disk of node {} is nearly full: writes may be refused", id(low)),
            "make room there; it goes on by itself".to_owned(),
        ),
        _ if answer < all => (
            format!(
                "{answer} of {all} voters answer: all goes on, and so it does with {} more down",
                answer - needed
            ),
            format!(
                "start node {silent} again, or replace it: `quorate cluster replace {silent} NEW-ID ADDRESS`"
            ),
        ),
        (faults, None) => (faults.join("; "), "the log of that node says why".to_owned()),
    };
    let health = if next.is_empty() { Health::Ok } else { Health::Degraded };
    Verdict { health, meaning, next }
}

#[cfg(test)]
mod tests {
    use quorate_client::{Member, ResponseHeader};

    use super::*;

    fn status(leader_id: u64, reachable: &[bool]) -> StatusResponse {
        let header = Some(ResponseHeader { leader_id, ..Default::default() });
        let members = (1..).zip(reachable).map(|(id, reachable)| {
            let mut member = Member { id, ..Default::default() };
            member.set_role(MemberRole::Voter);
            MemberStatus { member: Some(member), reachable: *reachable, ..Default::default() }
        });
        StatusResponse { header, members: members.collect(), ..Default::default() }
    }

    #[test]
    fn one_line_says_how_it_is_and_what_to_do() {
        let down = |id| vec![format!("node {id} does not answer: refused")];
        let mut low = status(2, &[true, true, true]);
        low.members[0].disk_low = true;
        for (status, faults, health, meaning, next) in [
            (status(2, &[true; 3]), vec![], Health::Ok, "node 2 leads, 3 of 3", ""),
            (status(1, &[true]), vec![], Health::Ok, "1 of 1 voters", ""),
            (
                status(2, &[true, true, false]),
                down(3),
                Health::Degraded,
                "with 0 more down",
                "cluster replace 3 NEW",
            ),
            (
                status(2, &[true, true, true, true, false]),
                down(5),
                Health::Degraded,
                "with 1 more down",
                "start node 5 again",
            ),
            // Its leader has not noticed yet.
            (
                status(1, &[true, false, false]),
                down(2),
                Health::NoQuorum,
                "1 of 3 voters answer, 2 are needed",
                "start node 2, 3 again",
            ),
            (status(0, &[true, true]), vec![], Health::NoQuorum, "no node leads", "look again"),
            (low, vec![], Health::Degraded, "the disk of node 1", "make room"),
            (
                status(1, &[true; 3]),
                vec!["node 3 lags".to_owned()],
                Health::Degraded,
                "node 3 lags",
                "log of that node",
            ),
        ] {
            let found = verdict(&status, &faults);
            assert_eq!(found.health, health, "{found:?}");
            assert!(found.meaning.contains(meaning), "{found:?}");
            assert!(found.next.contains(next) && found.next.is_empty() == next.is_empty());
        }
    }
}
