//! Which node is asked, in which order, and which cluster counts.

use quorate_proto::v1;

use super::cluster::MAY_RETURN;
use super::*;

fn endpoints(addresses: &[&str]) -> Endpoints {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    Endpoints::new(&addresses, Dial::default(), false, Duration::ZERO).unwrap()
}

fn picked(endpoints: &Endpoints, target: Target, tried: &[&str]) -> Option<String> {
    let tried: Vec<Address> = tried.iter().map(|address| (*address).into()).collect();
    let at = endpoints.lock().best(target, &tried)?;
    Some(endpoints.lock().nodes[at].address.to_string())
}

fn leader_is(address: &str) -> ResponseHeader {
    ResponseHeader { leader_address: address.to_owned(), ..ResponseHeader::default() }
}

#[test]
fn an_empty_list_is_an_error() {
    // S1.1
    let made = Endpoints::new(&[], Dial::default(), true, Duration::ZERO);
    assert!(matches!(made, Err(Error::NoAddresses)));
}

#[test]
fn a_failed_node_is_asked_last() {
    // S1.3
    let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("a:1"));
    endpoints.failed(&"a:1".into());
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("b:1"));
    assert_eq!(picked(&endpoints, Target::Any, &["b:1"]).as_deref(), Some("c:1"));
    assert_eq!(picked(&endpoints, Target::Any, &["b:1", "c:1"]).as_deref(), Some("a:1"));
    assert_eq!(picked(&endpoints, Target::Any, &["a:1", "b:1", "c:1"]), None);
}

#[test]
fn writes_prefer_a_healthy_leader() {
    let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
    endpoints.succeeded(&"a:1".into(), Target::Any, Some(&leader_is("c:1"))).unwrap();
    assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("c:1"));
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("a:1"));
    endpoints.failed(&"c:1".into());
    assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("a:1"));
    // A follower that has not noticed yet names the same leader again: it is still left alone.
    endpoints.succeeded(&"a:1".into(), Target::Any, Some(&leader_is("c:1"))).unwrap();
    assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("a:1"));
}

#[test]
fn members_replace_the_list_and_seeds_stay_behind_them() {
    // S1.2
    let endpoints = endpoints(&["seed:1", "a:1"]);
    endpoints.replace_members(["a:1", "b:1"].into_iter());
    assert_eq!(endpoints.addresses(), ["a:1", "b:1", "seed:1"]);
    assert_eq!(picked(&endpoints, Target::Any, &["a:1", "b:1"]).as_deref(), Some("seed:1"));
    endpoints.replace_members(["b:1", "c:1"].into_iter());
    assert_eq!(endpoints.addresses(), ["b:1", "c:1", "a:1", "seed:1"]);
}

#[test]
fn only_members_that_come_later_are_growth() {
    let endpoints = endpoints(&["seed:1", "a:1"]);
    let mut growth = endpoints.rebalance.growth.subscribe();
    let mut added = |members: &[&str]| {
        endpoints.replace_members(members.iter().copied());
        let told = growth.has_changed().unwrap();
        let growth = growth.borrow_and_update();
        let added: Vec<_> = growth.added.iter().map(|address| address.to_string()).collect();
        told.then(|| (added.join(" "), growth.members))
    };
    assert_eq!(added(&["a:1", "b:1"]), None, "the first list");
    assert_eq!(added(&["a:1", "seed:1", "b:1", "c:1"]), Some(("seed:1 c:1".to_owned(), 4)));
    assert_eq!(added(&["b:1", "c:1"]), None);
    assert_eq!(added(&[]), None);
    assert_eq!(added(&["b:1", "c:1", "a:1"]), Some(("a:1".to_owned(), 3)), "it was away");
}

#[test]
fn a_seed_that_serves_goes_on_until_members_are_learned_again() {
    let endpoints = endpoints(&["seed:1"]);
    endpoints.replace_members(["a:1", "b:1"].into_iter());
    endpoints.failed(&"a:1".into());
    endpoints.failed(&"b:1".into());
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("seed:1"));
    endpoints.refused(&"b:1".into(), &Status::not_found("no such lease")).unwrap();
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("seed:1"));
    endpoints.replace_members(["a:1", "b:1"].into_iter());
    assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("b:1"));
}

#[test]
fn an_empty_or_unusable_answer_changes_nothing() {
    // S1.2, S0.13
    let endpoints = endpoints(&["seed:1"]);
    endpoints.replace_members(["a:1", "b:1"].into_iter());
    endpoints.replace_members([].into_iter());
    endpoints.replace_members(["", "no port"].into_iter());
    assert_eq!(endpoints.addresses(), ["a:1", "b:1", "seed:1"]);
}

/// The members as a node of the cluster has them, with the log index of their last change.
fn list(cluster_id: u64, members_as_of: u64, members: &[&str]) -> ListMembersResponse {
    let member =
        |address: &&str| v1::Member { client_address: (*address).to_owned(), ..<_>::default() };
    let header = ResponseHeader { cluster_id, members_as_of, ..ResponseHeader::default() };
    ListMembersResponse { header: Some(header), members: members.iter().map(member).collect() }
}

#[test]
fn a_list_from_before_the_one_that_is_known_is_left_out() {
    // S1.2
    let endpoints = endpoints(&["a:1"]);
    let learns = |cluster_id, as_of, members: &[&str]| {
        let list = list(cluster_id, as_of, members);
        endpoints.succeeded(&"a:1".into(), Target::Any, list.header.as_ref()).unwrap();
        let was_behind = endpoints.is_behind();
        endpoints.learn_members(&list);
        (was_behind, endpoints.addresses().join(" "))
    };
    let known = |was_behind, addresses: &str| (was_behind, addresses.to_owned());
    assert_eq!(learns(7, 0, &["a:1", "b:1"]), known(false, "a:1 b:1"), "as they founded it");
    assert_eq!(learns(7, 9, &["a:1", "c:1"]), known(true, "a:1 c:1"));
    assert_eq!(learns(7, 5, &["a:1", "b:1"]), known(false, "a:1 c:1"), "a node that is behind");
    assert_eq!(learns(7, 0, &["a:1", "b:1"]), known(false, "a:1 c:1"), "one that cannot tell");
    assert_eq!(learns(7, 9, &["a:1", "c:1"]), known(false, "a:1 c:1"), "nothing new");
    endpoints.succeeded(&"c:1".into(), Target::Any, Some(&of(8))).unwrap_err();
    endpoints.learn_members(&list(8, 20, &["a:1", "e:1"]));
    assert_eq!(endpoints.addresses(), ["a:1", "c:1"], "of the client's own cluster alone");
    assert_eq!(learns(8, 2, &["a:1", "d:1"]), known(true, "a:1 d:1"), "another cluster");
}

fn of(cluster_id: u64) -> ResponseHeader {
    ResponseHeader { cluster_id, ..ResponseHeader::default() }
}

#[test]
fn a_cluster_founded_again_is_taken_when_the_last_node_says_so() {
    let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
    let answers = |address: &str, cluster_id| {
        let counts = endpoints.succeeded(&address.into(), Target::Any, Some(&of(cluster_id)));
        if counts.is_err() {
            endpoints.failed(&address.into());
        }
        (counts.is_ok(), ClusterId::to_wire(endpoints.cluster_id()))
    };
    assert_eq!(answers("a:1", 7), (true, 7), "the first answer decides");
    assert_eq!(answers("a:1", 8), (false, 7), "the others have not been asked");
    assert_eq!(answers("b:1", 8), (false, 7));
    assert_eq!(answers("c:1", 8), (true, 8), "no node is left");
    assert_eq!(answers("a:1", 8), (true, 8));
    // One that is left behind changes nothing any more.
    assert_eq!(answers("b:1", 7), (false, 8));
    assert_eq!(answers("c:1", 8), (true, 8));
}

#[test]
fn a_stranger_is_not_taken_while_a_node_of_the_cluster_may_return() {
    let endpoints = endpoints(&["a:1", "b:1"]);
    let answers = |address: &str, cluster_id| {
        endpoints.succeeded(&address.into(), Target::Any, Some(&of(cluster_id))).is_ok()
    };
    assert!(answers("a:1", 7));
    endpoints.failed(&"a:1".into());
    assert!(!answers("b:1", 8), "it failed a moment ago");
    assert!(answers("a:1", 7), "and is back");
    endpoints.failed(&"a:1".into());
    endpoints.lock().heard = Instant::now().checked_sub(MAY_RETURN);
    assert!(answers("b:1", 8));
    assert!(!answers("a:1", 7), "the client stays with the one that serves");
    assert_eq!(endpoints.cluster_id(), ClusterId::new(8));
}

/// The old one is well but for its leader: it answers local reads, and streams.
#[test]
fn one_old_node_without_a_leader_keeps_no_client_where_most_are_of_a_newer_cluster() {
    let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
    let answers = |address: &str, cluster_id, leader_id| {
        let header = ResponseHeader { leader_id, ..of(cluster_id) };
        let answer = endpoints.succeeded(&address.into(), Target::Any, Some(&header));
        (answer.is_ok(), ClusterId::to_wire(endpoints.cluster_id()))
    };
    let long_ago = || {
        let mut inner = endpoints.lock();
        inner.leaderless = inner.leaderless.map(|(since, last)| (since - MAY_RETURN, last));
    };
    assert_eq!(answers("a:1", 7, 1), (true, 7));
    assert_eq!(answers("a:1", 7, 0), (true, 7));
    assert_eq!(answers("b:1", 8, 2), (false, 7));
    assert_eq!(answers("c:1", 8, 2), (false, 7), "it may be an election");
    long_ago();
    assert_eq!(answers("a:1", 7, 1), (true, 7), "and was one");
    assert_eq!(answers("c:1", 8, 2), (false, 7));
    assert_eq!(answers("a:1", 7, 0), (true, 7));
    long_ago();
    assert_eq!(answers("a:1", 7, 0), (true, 7), "for long");
    assert_eq!(answers("c:1", 8, 0), (false, 7), "of two led by nobody, its own");
    assert_eq!(answers("b:1", 8, 2), (false, 7), "one of three may be a stranger");
    assert_eq!(answers("c:1", 8, 2), (true, 8));
    assert_eq!(answers("a:1", 7, 0), (false, 8));
}

/// What a node of a cluster says to callers that it does not know; 0: it is of an older release.
fn refusal(cluster_id: u64) -> Status {
    let mut refusal = Status::unauthenticated("the token is not known");
    if cluster_id != 0 {
        let told = format!("{cluster_id:016x}").parse().unwrap();
        refusal.metadata_mut().insert("quorate-cluster-id", told);
    }
    refusal
}

/// The cluster 7 was founded again as 17, and the last node only refuses.
#[test]
fn a_refusal_says_that_a_cluster_is_gone_and_brings_no_client_to_another() {
    for (told, is_left) in [(17, true), (7, false), (0, false)] {
        let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
        endpoints.succeeded(&"c:1".into(), Target::Any, Some(&of(7))).unwrap();
        for address in ["a:1", "b:1"] {
            endpoints.succeeded(&address.into(), Target::Any, Some(&of(17))).unwrap_err();
            endpoints.failed(&address.into());
        }
        endpoints.refused(&"c:1".into(), &refusal(told)).unwrap();
        assert_eq!(endpoints.cluster_id(), ClusterId::new(7), "it was only refused");
        let next = if is_left { "a:1" } else { "c:1" };
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some(next));
        let answer = endpoints.succeeded(&"a:1".into(), Target::Any, Some(&of(17)));
        assert_eq!(answer.is_ok(), is_left, "{told}");
        assert_eq!(endpoints.cluster_id() == ClusterId::new(17), is_left, "{told}");
    }
}

#[test]
fn a_strangers_refusal_counts_for_nothing_while_a_node_of_the_cluster_may_be_there() {
    let endpoints = endpoints(&["a:1", "b:1"]);
    endpoints.refused(&"b:1".into(), &refusal(8)).expect("the client is of no cluster yet");
    endpoints.succeeded(&"a:1".into(), Target::Any, Some(&of(7))).unwrap();
    endpoints.refused(&"b:1".into(), &refusal(8)).unwrap_err();
    endpoints.refused(&"a:1".into(), &refusal(7)).expect("one of its own");
}

/// Counts what is logged.
struct Logged(std::sync::atomic::AtomicUsize);

impl tracing::Subscriber for Logged {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn an_unusable_address_of_a_leader_is_logged_once() {
    let endpoints = endpoints(&["a:1", "b:1"]);
    let logged = Arc::new(Logged(0.into()));
    tracing::subscriber::with_default(logged.clone(), || {
        for _ in 0..10 {
            for leader in ["no port", "none either"] {
                let told = leader_is(leader);
                endpoints.succeeded(&"a:1".into(), Target::Any, Some(&told)).unwrap();
            }
        }
    });
    assert_eq!(logged.0.load(std::sync::atomic::Ordering::Relaxed), 2);
}
