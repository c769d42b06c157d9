//! What `cluster status` shows, and for what it waits.

use super::*;
use quorate_client::{Condition, ResponseHeader};

fn member(id: u64, reachable: bool, state_hash: u64) -> MemberStatus {
    let member = Member {
        id,
        client_address: format!("10.0.0.{id}:7001"),
        peer_address: format!("10.0.0.{id}:7101"),
        role: 1,
    };
    let (member, error) = (Some(member), "connection refused".to_owned());
    let (state, applied_index) = (NodeState::Follower.into(), 40);
    MemberStatus {
        member,
        reachable,
        error,
        state,
        state_hash,
        applied_index,
        ..Default::default()
    }
}

#[test]
fn a_cluster_is_whole_when_it_is_led_and_all_are_there() {
    let header = |leader_id| Some(ResponseHeader { leader_id, ..Default::default() });
    let whole = |leader_id, members| {
        let header = header(leader_id);
        let status = StatusResponse { header, members, ..Default::default() };
        lacking(&status, Some(40)).is_empty()
    };
    assert!(whole(2, vec![member(1, true, 5), member(2, true, 5)]));
    assert!(!whole(0, vec![member(1, true, 5), member(2, true, 5)]));
    assert!(!whole(2, vec![member(1, false, 5), member(2, true, 5)]));
    assert!(!whole(2, Vec::new()));
    let candidate = MemberStatus { state: NodeState::Candidate.into(), ..member(1, true, 5) };
    assert!(!whole(2, vec![candidate, member(2, true, 5)]));
    let mut cut_off = member(1, true, 5);
    cut_off.condition = Some(Condition::default());
    cut_off.condition.as_mut().unwrap().set_standing(Standing::CutOff);
    assert!(!whole(2, vec![cut_off, member(2, true, 5)]), "it has no leader in sight");
    let mut unannounced = member(1, true, 5);
    unannounced.member.as_mut().unwrap().client_address.clear();
    assert!(!whole(2, vec![unannounced, member(2, true, 5)]));
    let lagging = MemberStatus { applied_index: 39, ..member(1, true, 5) };
    assert!(!whole(2, vec![lagging, member(2, true, 5)]), "its log lags");
    let blank = MemberStatus { state: NodeState::Learner.into(), ..member(1, true, 5) };
    assert!(!whole(2, vec![blank.clone(), member(2, true, 5)]), "a voter without its disk");
    let mut observer = blank;
    observer.member.as_mut().unwrap().set_role(MemberRole::Learner);
    assert!(whole(2, vec![observer, member(2, true, 5)]));
}

#[test]
fn the_goal_is_set_when_a_leader_is_seen() {
    let status = |members| StatusResponse { members, ..Default::default() };
    assert_eq!(goal(&status(vec![member(1, true, 5)])), None);
    let leader =
        MemberStatus { state: NodeState::Leader.into(), applied_index: 44, ..member(2, true, 5) };
    assert_eq!(goal(&status(vec![member(1, true, 5), leader])), Some(44));
}

#[test]
fn voters_that_leave_no_room_for_failures_are_warned_of() {
    let warned = |voters, answer| voter_warnings(voters, answer).join("\n");
    assert_eq!([warned(3, 3), warned(5, 4)], [""; 2]);
    assert!(warned(1, 1).contains("one voter"));
    assert!(warned(2, 2).contains("no more failures than 1"));
    assert!(warned(4, 4).contains("no more failures than 3"));
    assert!(warned(3, 2).contains("2 of 3 voters answer: no failure to spare"));
    assert!(warned(5, 3).contains("no failure to spare"));
}

#[test]
fn an_operator_sees_what_is_wrong() {
    let header = Some(ResponseHeader { cluster_id: 0xab, node_id: 1, ..Default::default() });
    let members = vec![member(1, true, 5), member(2, true, 6), member(3, false, 0)];
    let status = StatusResponse { header, members, ..Default::default() };
    let text = summary(&View { status, ..View::default() }).join("\n");
    assert!(text.contains("NO LEADER"), "{text}");
    assert!(text.contains("node 3 does not answer: connection refused"), "{text}");
    assert!(text.contains("NODES DISAGREE"), "{text}");

    let members = vec![member(1, true, 5), member(2, true, 5), member(3, false, 0)];
    let header = Some(ResponseHeader { leader_id: 2, ..Default::default() });
    let cluster_name = "prod".to_owned();
    let predecessors = vec![Predecessor { cluster_id: 0xab, taken_over_ms: 86_400_000 }];
    let status =
        StatusResponse { header, members, cluster_name, predecessors, ..Default::default() };
    let text = summary(&View { status, ..View::default() }).join("\n");
    let made = "made from cluster 00000000000000ab by `recover` or `restore`, 1970-01-02T00:00";
    assert!(text.contains(made), "{text}");
    assert!(text.starts_with("cluster prod 0000000000000000, leader 2, "), "{text}");
    assert!(text.contains("leader 2") && !text.contains("DISAGREE"), "{text}");
}
#[test]
fn a_member_is_called_what_it_is() {
    let mut one = member(1, true, 5);
    let condition = |standing| {
        let mut condition = Condition::default();
        condition.set_standing(standing);
        Some(condition)
    };
    assert_eq!(state(&one), "follower");
    one.condition = condition(Standing::CutOff);
    one.state = NodeState::Leader.into();
    assert_eq!(state(&one), "NO LEADER", "it leads nobody");
    one.condition = condition(Standing::Member);
    assert_eq!(state(&one), "leader");
    one.state = NodeState::Learner.into();
    assert_eq!(state(&one), "learner", "it should vote");
    one.member.as_mut().unwrap().set_role(MemberRole::Learner);
    assert_eq!(state(&one), "observer");
    one.condition = condition(Standing::Joining);
    assert_eq!(state(&one), "joining");
    one.reachable = false;
    assert_eq!(state(&one), "DOWN");
}

#[test]
fn what_members_run_on_is_told_in_words() {
    let mut one = member(1, true, 5);
    (one.version, one.uptime_ms, one.disk_free_bytes) = ("0.1.0".to_owned(), 90_000_000, 20 << 30);
    one.state = NodeState::Leader.into();
    one.condition = Some(Condition {
        snapshot_written_ms: Some(1_000_000),
        backup_age_ms: Some(7_260_000),
        certificate_ends_in_s: Some(86_400 * 13),
        ..Default::default()
    });
    let mut two = MemberStatus { disk_low: true, ..member(2, true, 5) };
    let certificate_ends_in_s = Some(-1);
    let clock_held_ms = 61_000;
    two.condition = Some(Condition { certificate_ends_in_s, clock_held_ms, ..Default::default() });
    let members = vec![one, two, member(3, false, 5)];
    let status = StatusResponse { members, ..Default::default() };
    let text = machines(&status, 1_060_000).text();
    for (row, words) in text.lines().skip(1).zip([
        ["0.1.0", "1 d 1 h", "20 GiB", "1 min", "2 h 1 min", "13 d 0 h", "runs"],
        ["2", "0 s", "0 MiB LOW", "-", "-", "ENDED", "HELD 1 min"],
    ]) {
        assert!(words.iter().all(|word| row.contains(word)), "{row}: {words:?}");
    }
    assert_eq!(text.lines().count(), 3, "of a node that is down nothing is known: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
