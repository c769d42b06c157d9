//! The reference systems of `cluster-examples/`: each tells its story to its end, although the
//! leader is killed (-9) in the middle of it. What they promise they check by themselves, and end
//! with an error if it does not hold; here is checked that they say so, and go on after the kill.

use std::time::Duration;

use crate::built::example;
use crate::cluster::{Cluster, Settings};
use crate::process::{Process, text_of};
use crate::wait::eventually;

/// A story takes ten seconds; this machine may have much else to do.
const STORY_WITHIN: Duration = Duration::from_secs(120);
/// What fits a terminal.
const WIDTH: usize = 100;

/// An example that was run to its good end, with the leader killed as soon as it said `kill_at`:
/// what it said before the kill, and after it.
async fn story(name: &str, kill_at: &str) -> (String, String) {
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let settings = Settings { health_checks, ..Settings::default() };
    let mut cluster = Cluster::start_with(3, settings).await;
    let (out, err) = (cluster.dir().join("story.out"), cluster.dir().join("story.err"));
    let mut process = Process::start_other(&example(name), &cluster.all(), &out, &err);
    let failed = |ended| format!("{ended}: {}\n{}", text_of(&out), text_of(&err));
    eventually(kill_at, STORY_WITHIN, async || {
        if text_of(&out).contains(kill_at) {
            return Ok(());
        }
        let ended = process.ended();
        assert!(ended.is_none(), "{}", failed(format!("{ended:?}")));
        Err(failed("it goes on".to_owned()))
    })
    .await;
    let leader = cluster.leader().await;
    cluster.nodes[leader].kill();
    let before = text_of(&out);
    assert!(process.ended().is_none(), "{name} ended before the kill: {before}");
    let code = process.exit_code(STORY_WITHIN).await;
    assert_eq!(code, 0, "{}", failed(format!("{name} ended with {code}")));
    let all = text_of(&out);
    assert!(all.lines().all(|line| line.chars().count() <= WIDTH), "lines fit a terminal: {all}");
    let after = all.strip_prefix(&before).expect("a story only grows").to_owned();
    (before, after)
}

/// That all of this was said, in this order.
#[track_caller]
fn says(story: &str, expected: &[&str]) {
    let mut rest = story;
    for text in expected {
        let at = rest.find(text);
        let at = at.unwrap_or_else(|| panic!("no \"{text}\", or not in this order: {story}"));
        rest = &rest[at + text.len()..];
    }
}

/// S0.2, S1.9, S1.10, S1.13 to S1.17
#[tokio::test(flavor = "multi_thread")]
async fn rpc_framework_restarts_its_providers_without_a_failed_call() {
    let (before, after) = story("rpc_framework", "The rolling restart begins").await;
    says(
        &before,
        &[
            "RoundRobin: [20, 20, 20]",
            "WeightedRoundRobin: [30, 20, 10]",
            "FailFast: 30 calls, 10 failed",
            "Failover(2): 30 calls, 0 failed",
            "Retry(1): calls refused once succeed",
            "greeter-2 starts again",
            "going away: of 30 calls, it gets 1",
        ],
    );
    let restarted = ["greeter-1 runs again", "greeter-2 runs again", "greeter-3 runs again"];
    says(&after, &restarted);
    says(&after, &["The rolling restart is over:", "calls, 0 failed", "no instance that is UP"]);
}

/// S0.1, S0.9, S0.10, S0.11, S0.15, S2.9
#[tokio::test(flavor = "multi_thread")]
async fn rpc_proxy_passes_each_call_on_or_says_that_there_is_nobody() {
    let (before, after) = story("rpc_proxy", "Constant calls").await;
    says(
        &before,
        &[
            "Unavailable: service \"worker\" is not known",
            "280 calls, 0 failed",
            "publishes that it has no room",
            "30 calls, 0 failed",
            "it stays registered",
            "30 calls, 0 failed",
        ],
    );
    says(
        &after,
        &[
            "worker 1 has stopped",
            "a second proxy has started",
            "the first one: stopped; all calls were finished",
            "calls, 0 failed",
            "Unavailable: service \"worker\" has no instance",
        ],
    );
}

/// S0.14, S0.15, S2.3, S2.12, S3.3
#[tokio::test(flavor = "multi_thread")]
async fn game_cluster_keeps_each_player_in_a_room_that_is_there() {
    let (before, after) = story("game_cluster", "room-2 is killed").await;
    says(&before, &["connector-1: room-1 is there", "room-4 joins", "connector-2: room-4"]);
    for frontend in ["connector-1", "connector-2"] {
        let gone = ["room-2", "room-3"].map(|room| format!("{frontend}: {room} is gone"));
        says(&after, &[&gone[0], "of other rooms played on", &gone[1], "with no failed call"]);
    }
    assert!(!(before + &after).contains("room-9"), "another realm's room is seen");
}

/// S2.9, S3.1, S3.3 to S3.5
#[tokio::test(flavor = "multi_thread")]
async fn config_push_reaches_each_agent_or_says_why_not() {
    let (before, after) = story("config_push", "A push meets an agent").await;
    says(&before, &["FailedPrecondition: no agent is online", "agent-6: has it now"]);
    says(
        &after,
        &[
            "agent-1: has it now",
            "agent-3: has it now, asked 2 times",
            "agent-4: InvalidArgument, unknown key",
            "agent-5: no answer within 3s",
            "the push is repeated",
            "agent-1: has it",
            "agent-4: has it now",
            "A controller stops",
            "agent-6=3 agent-7=3",
            "reports, 0 failed; no agent was taken for offline",
        ],
    );
}

/// S0.3, S1.11, S4.1 to S4.4, S4.9 to S4.11
#[tokio::test(flavor = "multi_thread")]
async fn log_portal_hears_of_what_it_requires_and_loses_no_line() {
    let (before, after) = story("log_portal", "Constant requests").await;
    says(
        &before,
        &[
            "Unavailable: service \"grading\" is not known",
            "+ grading-1: heard by portal-1",
            "ann has 5",
            "+ log-1: heard by portal-1, grading-1",
            "what depends on it: grading-1, portal-1",
        ],
    );
    says(
        &after,
        &[
            "+ log-2: heard by portal-1, grading-1",
            "- log-1: heard by portal-1, grading-1",
            "~ grading-1: heard by portal-1",
            "requests, 0 failed",
            "lines logged, none lost",
            "archive-1 passes",
            "it fails: callers leave it out, and it stays registered",
            "it passes again, by the same registration",
        ],
    );
}
