//! What a certificate is worth once it should be worth nothing any more.

use std::time::{Duration, Instant};

use quorate_client::{Admin, Client, InstanceBuilder, Registration};
use quorate_proto::peer::v1::peer_client::PeerClient;
use quorate_proto::peer::v1::{AppendRequest, Ballot, LogId, VoteRequest};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{AddNodeRequest, Member, StatusRequest};
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::{
    Authority, Cluster, Files, Issued, PREFACE, SOON, channel, eventually, is_served, prepare,
    start,
};

/// An entry of the access file.
fn rule(spiffe: &str, role: &str) -> String {
    format!("[[certificate]]\nspiffe = '{spiffe}'\nrole = '{role}'\n")
}

/// Changes the configuration file of each node, by its id.
pub(super) fn configure(cluster: &Cluster, change: impl Fn(u64, String) -> String) {
    for id in 1..=3 {
        let config = cluster.dir().join(format!("node-{id}.toml"));
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(config, change(id, text)).unwrap();
    }
}

/// Three nodes that follow an access file.
async fn guarded(authority: &Authority, access: &str) -> (Cluster, Vec<Files>) {
    let (mut cluster, files) = prepare(authority, 3_600_000).await;
    let file = cluster.dir().join("access.toml");
    std::fs::write(&file, access).unwrap();
    configure(&cluster, |_, text| format!("access = '{}'\n{text}", file.display()));
    cluster.nodes.iter_mut().for_each(|node| node.start());
    (cluster, files)
}

/// An access file that cannot be used stands in a metric, until there is one that can.
async fn a_metric_tells_of_the_file(
    cluster: &mut Cluster,
    files: &Files,
    authority: &Authority,
    good: &str,
) {
    const REFUSED: &str = "quorate_access_file_refused";
    let file = cluster.dir().join("access.toml");
    assert_eq!(files.metric(authority, REFUSED).await.as_deref(), Ok("0"));
    for (text, expected) in [(good.replace("admin", "king"), "1"), (good.to_owned(), "0")] {
        std::fs::write(&file, text).unwrap();
        cluster.nodes[0].process().signal(Signal::HUP);
        eventually("the metric tells", SOON, async || {
            match files.metric(authority, REFUSED).await? {
                told if told == expected => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

impl Authority {
    pub(super) fn client_with(&self, serial: u64) -> Issued {
        let serial = SerialNumber::from(serial);
        self.issue(&["spiffe://quorate/client/orders"], |it| it.serial_number = Some(serial))
    }

    /// Its list of the revoked ones, PEM.
    pub(super) fn list(&self, number: u64, revoked: &[u64]) -> String {
        self.list_until(2060, number, revoked)
    }

    /// The same, which another one should have followed by this year.
    pub(super) fn list_until(&self, year: i32, number: u64, revoked: &[u64]) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// Asks a node for its own status.
async fn ask(channel: &Channel) -> Result<(), String> {
    let status = StatusRequest { local_only: true };
    let answer = AdminClient::new(channel.clone()).status(status).await;
    answer.map(drop).map_err(|status| status.to_string())
}

async fn eventually_refused(what: &str, channel: &Channel) {
    eventually(what, SOON, async || match ask(channel).await {
        Ok(()) => Err("it is answered".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
}

/// Three nodes that follow lists of what is revoked: none at first. Node 3 has this serial number.
async fn with_lists(authority: &Authority, node_3: u64) -> (Cluster, Vec<Files>, Issued) {
    let (mut cluster, files) = prepare(authority, 3_600_000).await;
    let of_node_3 = authority.issue(&["spiffe://quorate/node/3"], |params| {
        params.serial_number = Some(SerialNumber::from(node_3));
    });
    files[2].put_all(&of_node_3, &authority.pem);
    files.iter().for_each(|files| files.put("ca.crl", &authority.list(256, &[])));
    configure(&cluster, |id, text| {
        let list = files[id as usize - 1].dir.join("ca.crl");
        text.replace("[tls]", &format!("[tls]\ncrl = '{}'", list.display()))
    });
    cluster.nodes.iter_mut().for_each(|node| node.start());
    (cluster, files, of_node_3)
}

async fn eventually_reachable(admin: &Admin, expected: &[u64]) {
    eventually("these are reachable", SOON, async || {
        let status = admin.status(false).await.map_err(|error| error.to_string())?;
        let reachable = status.members.iter().filter(|status| status.reachable);
        let ids: Vec<u64> = reachable.filter_map(|it| Some(it.member.as_ref()?.id)).collect();
        if ids == expected { Ok(()) } else { Err(format!("{ids:?}")) }
    })
    .await;
}

/// What is open ends when its certificate is on the list, on both listeners and where a node has
/// dialled; all else goes on. A list that goes back changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_its_certificate_is_revoked() {
    const KEPT: u64 = 100;
    const LOST: u64 = 101;
    const NODE_3: u64 = 103;
    let authority = Authority::new("ours");
    let (mut cluster, files, of_node_3) = with_lists(&authority, NODE_3).await;
    let client = of_first(&cluster, &authority);
    let admin = client.admin();
    eventually_reachable(&admin, &[1, 2, 3]).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance)).await.unwrap();
    let at_first = |shown: &Issued| channel(&cluster.nodes[0].clients, &authority, shown);
    let kept = at_first(&authority.client_with(KEPT));
    let of_lost = authority.client_with(LOST);
    let lost = at_first(&of_lost);
    let peer = channel(&cluster.nodes[0].peers(), &authority, &of_node_3);
    let at_peer = async || {
        let id = quorate_proto::peer::v1::IdentifyRequest { id: 3 };
        let mut request = Request::new(id);
        request.metadata_mut().insert("quorate-node-id", "3".parse().unwrap());
        PeerClient::new(peer.clone()).identify(request).await.map_err(|error| error.to_string())
    };
    ask(&kept).await.unwrap();
    ask(&lost).await.unwrap();
    at_peer().await.unwrap();

    for (at, files) in files.iter().enumerate().take(2) {
        files.put("ca.crl", &authority.list(257, &[LOST, NODE_3]));
        cluster.nodes[at].process().signal(Signal::HUP);
    }
    eventually_refused("the client's connection ends", &lost).await;
    eventually("node 3's connection ends", SOON, async || match at_peer().await {
        Ok(_) => Err("it is answered".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    ask(&kept).await.expect("another's goes on");
    eventually_reachable(&admin, &[1, 2]).await;
    let dialled = "a connection to another node ends";
    let logs: String = cluster.nodes[..2].iter().map(|node| node.log_text()).collect();
    assert!(logs.lines().any(|line| line.contains(dialled) && line.contains("Revoked")), "{logs}");
    handle.set_weight(7).await.expect("writes go on");
    no_list_goes_back(&mut cluster, &files[0], &authority, &of_lost).await;
}

async fn no_list_goes_back(
    cluster: &mut Cluster,
    files: &Files,
    authority: &Authority,
    revoked: &Issued,
) {
    let stranger = Authority::new("stranger");
    for (what, list, words) in [
        ("an older one", authority.list(256, &[]), "older than the one in use"),
        ("a stranger's", stranger.list(999, &[]), "\"stranger\", which is no authority"),
    ] {
        files.put("ca.crl", &list);
        cluster.nodes[0].process().signal(Signal::HUP);
        eventually(what, SOON, async || {
            let log = cluster.nodes[0].log_text();
            match log.lines().rfind(|line| line.contains("cannot be used")) {
                Some(line) if line.contains(words) => Ok(()),
                last => Err(format!("{last:?}")),
            }
        })
        .await;
        let served = is_served(&cluster.nodes[0].clients, &authority.pem, Some(revoked)).await;
        assert!(served.is_err(), "{what}: the list before stays");
    }
}

/// The wall clock of this machine, seconds since 1970.
fn wall_clock() -> u64 {
    let said = std::process::Command::new("date").arg("+%s").output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate() {
    let authority = Authority::new("ours");
    let (cluster, _files, _client) = start(&authority, 3_600_000).await;
    let long = channel(&cluster.nodes[0].clients, &authority, &authority.client());
    ask(&long).await.unwrap();
    let ending_in = async |seconds| {
        let ends = Duration::from_secs(wall_clock() + seconds);
        let short = authority.issue(&["spiffe://quorate/client/orders"], |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + ends;
        });
        let short = channel(&cluster.nodes[0].clients, &authority, &short);
        ask(&short).await.map(|_| short)
    };
    // On a busy machine it may end before it is used.
    let short = match ending_in(5).await {
        Ok(short) => short,
        Err(_) => ending_in(15).await.expect("it is good still"),
    };
    eventually_refused("it ends", &short).await;
    ask(&long).await.expect("another goes on");
}

/// A client of node 1 alone: the others are asked nothing once they are out.
fn of_first(cluster: &Cluster, authority: &Authority) -> Client {
    let client = Client::builder([cluster.nodes[0].clients.clone()]).member_refresh(None);
    client.tls(authority.tls()).build().unwrap()
}

async fn members(admin: &Admin) -> Result<Vec<Member>, String> {
    let status = admin.status(false).await.map_err(|error| error.to_string())?;
    Ok(status.members.into_iter().filter_map(|status| status.member).collect())
}

/// A node that was taken out still has its certificate, by which a new node is taken in. And
/// CVE-2019-9764 (Consul), end to end: the node that is dialled has to be the one that is wanted
/// (in full in net/tls/verify.rs).
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_out_does_not_take_itself_in_again() {
    let authority = Authority::new("ours");
    let access = rule("spiffe://quorate/client/orders", "admin");
    let (mut cluster, files) = guarded(&authority, &access).await;
    let client = of_first(&cluster, &authority);
    let admin = client.admin();
    eventually("all are known", SOON, async || {
        let members = members(&admin).await?;
        match members.iter().filter(|member| !member.client_address.is_empty()).count() {
            3 => Ok(()),
            known => Err(format!("{known}")),
        }
    })
    .await;
    admin.remove_node(3).await.unwrap();
    let peer_address = cluster.nodes[2].peer_address();
    let add = |id| AddNodeRequest { id, peer_address: peer_address.clone(), learner_only: true };
    let by =
        |id| AdminClient::new(channel(&cluster.nodes[0].clients, &authority, &authority.node(id)));
    let refused = by(3).add_node(add(3)).await.expect_err("it is taken in");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("node 3 was taken out"), "{refused:?}");
    assert!(refused.message().contains("cluster add 3"), "{refused:?}");
    eventually("it stays out", SOON, async || match members(&admin).await?.len() {
        2 => Ok(()),
        // A node that has not seen it go yet.
        more => Err(format!("{more}")),
    })
    .await;
    // One that was never in is let in by the same right: here the address is another node's.
    let refused = by(4).add_node(add(4)).await.expect_err("it is node 3");
    assert!(refused.message().contains("node 3 answers there, not node 4"), "{refused:?}");
    // Whoever may change the members may take it in again.
    admin.add_node(3, &peer_address, false).await.unwrap();
    let refused = by(3).add_node(add(3)).await.err();
    assert!(refused.is_none(), "a member's own call changes nothing: {refused:?}");
    a_metric_tells_of_the_file(&mut cluster, &files[0], &authority, &access).await;
}

/// By its certificate, which nobody has revoked, a node that was taken out can still call the
/// others. It leads none of them, and none votes for it, whatever it says of its term and its log.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_out_leads_nobody() {
    let authority = Authority::new("ours");
    let (cluster, _files, client) = start(&authority, 3_600_000).await;
    let admin = client.admin();
    eventually_reachable(&admin, &[1, 2, 3]).await;
    admin.remove_node(3).await.unwrap();
    let status = |at: usize| {
        let channel = channel(&cluster.nodes[at].clients, &authority, &authority.client());
        async move { AdminClient::new(channel).status(StatusRequest { local_only: true }).await }
    };
    let [one, two] = [status(0).await.unwrap().into_inner(), status(1).await.unwrap().into_inner()];
    let last = one.members[0].last_log_index.max(two.members[0].last_log_index);
    let header = one.header.unwrap();
    for at in 0..2 {
        eventually("it is out everywhere", SOON, async || {
            match status(at).await.map_err(|error| error.to_string())?.into_inner() {
                own if own.members[0].applied_index >= last => Ok(()),
                own => Err(format!("{own:?}")),
            }
        })
        .await;
        let shown = authority.node(3);
        let mut peer = PeerClient::new(channel(&cluster.nodes[at].peers(), &authority, &shown));
        let term = header.term + 1;
        // A vote of its own, as a leader and as a candidate with the longest log of all.
        let vote = |committed| Some(Ballot { term, node_id: 3, committed });
        let leads = AppendRequest { vote: vote(true), ..AppendRequest::default() };
        let last = Some(LogId { term, index: 1 << 40 });
        let stands = VoteRequest { vote: vote(false), last, is_transfer: false };
        let named = |metadata: &mut MetadataMap| {
            for (name, value) in [
                ("quorate-cluster-id", format!("{:016x}", header.cluster_id)),
                ("quorate-node-id", "3".to_owned()),
                ("quorate-target-id", (at + 1).to_string()),
            ] {
                metadata.insert(name, value.parse().unwrap());
            }
        };
        let ballot = || {
            let mut ballot = Request::new(stands);
            named(ballot.metadata_mut());
            ballot
        };
        let mut append = Request::new(leads);
        named(append.metadata_mut());
        for answer in [
            peer.append(append).await.map(drop),
            peer.vote(ballot()).await.map(drop),
            peer.pre_vote(ballot()).await.map(drop),
        ] {
            let refused = answer.expect_err("it is taken").to_string();
            assert!(refused.contains("node 3 is refused: it was taken out"), "{refused}");
        }
        let after = status(at).await.unwrap().into_inner().header.unwrap();
        assert_eq!((after.term, after.leader_id), (header.term, header.leader_id));
    }
}

/// Waits for a line of a node's log with all of these words; that line.
async fn logged(cluster: &Cluster, at: usize, words: &[&str]) -> String {
    eventually(&words.join(" "), SOON, async || {
        let log = cluster.nodes[at].log_text();
        let mut lines = log.lines().rev();
        let found = lines.find(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned).ok_or_else(|| "no such line".to_owned())
    })
    .await
}

/// What an operator has to know stands in the log, and a flood of it does not fill the disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_who_was_refused_and_what_ends() {
    const DAY: u64 = 86_400;
    let authority = Authority::new("ours");
    let (mut cluster, files) = prepare(&authority, 3_600_000).await;
    let ending_in = |id: u64, seconds: u64| {
        let ends = Duration::from_secs(wall_clock() + seconds);
        authority.issue(&[&format!("spiffe://quorate/node/{id}")], |params| {
            params.not_after = date_time_ymd(1970, 1, 1) + ends;
        })
    };
    files[0].put_all(&ending_in(1, 5 * DAY + 9_000), &authority.pem);
    cluster.nodes.iter_mut().for_each(|node| node.start());
    logged(&cluster, 0, &["WARN", "certificate ends soon", "days=5", "hours=2"]).await;
    logged(&cluster, 1, &["node starts"]).await;
    assert!(!cluster.nodes[1].log_text().contains("ends soon"));

    let address = cluster.nodes[0].clients.clone();
    let begun = Instant::now();
    for _ in 0..30 {
        is_served(&address, &authority.pem, None).await.expect_err("it shows no certificate");
    }
    let words = ["WARN", "a TLS handshake was refused", "from=\"127.0.0.1\"", "no certificates"];
    logged(&cluster, 0, &words).await;
    let lines = cluster.nodes[0].log_text().matches("handshake was refused").count() as u64;
    assert!(lines <= begun.elapsed().as_secs() + 1, "{lines} lines in {:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(PREFACE).await.unwrap();
    let line = logged(&cluster, 0, &["handshake was refused", "does not speak TLS"]).await;
    assert!(!line.contains("left_out=0"), "{line}");
    // Others dial it, too, and are let in.
    let refused = files[0].metric(&authority, "quorate_tls_handshakes_refused_total").await;
    assert_eq!(refused.unwrap(), "31", "each counts, also where the log leaves it out");

    // Long enough to be told before it has ended.
    files[1].put_all(&ending_in(2, 10), &authority.pem);
    cluster.nodes[1].process().signal(Signal::HUP);
    logged(&cluster, 1, &["WARN", "certificate ends soon", "days=0"]).await;
    logged(&cluster, 1, &["ERROR", "certificate has ended"]).await;
}

/// One end speaks TLS, the other does not: each is told so, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_that_the_node_wants_tls_or_has_none() {
    let authority = Authority::new("ours");
    let (mut cluster, files) = prepare(&authority, 3_600_000).await;
    cluster.nodes[0].start();
    logged(&cluster, 0, &["node starts"]).await;
    let ask = async |address: &str, more: &[&str]| {
        let args = ["services", "--timeout", "2s", "--nodes", address];
        crate::cli::quorate(&[&args, more].concat()).await.expect(3)
    };
    // The node's answer may be lost with the connection, which it closes at once.
    let without =
        eventually("it is told", SOON, async || match ask(&cluster.nodes[0].clients, &[]).await {
            told if told.err.contains("TLS") => Ok(told),
            lost => Err(lost.err),
        })
        .await;
    without.says(&["the node wants TLS", "next: give the CA", "--ca"]);
    let plain = Cluster::start(1).await;
    let ca = files[0].dir.join("ca.crt").display().to_string();
    let with = ask(&plain.nodes[0].clients, &["--ca", &ca]).await;
    with.says(&["does not speak TLS", "next: leave out --ca"]);
}
