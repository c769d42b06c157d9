//! The JSON API: what it answers, and how it refuses.

use std::net::SocketAddr;

use quorate_node::Start;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::calls::register;
use super::harness::{Cluster, SOON, eventually};
use super::targets::{self, Targets};

pub(crate) const WEB: &str = "/api/v1/namespaces/default/services/web";

/// An answer: its status, its headers in small letters, its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: String,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(of, _)| *of == name).map(|(_, value)| value).next()
    }

    /// # Panics
    /// It has another status, or names another field.
    pub(crate) fn refuses(&self, status: u16, code: &str, field: Option<&str>) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!((&self.body["status"], &self.body["code"]), (&json!(status), &json!(code)));
        assert_eq!(self.body["field"].as_str(), field, "{self:?}");
        assert_ne!(self.body["detail"], "", "{self:?}");
    }
}

/// Sends a request of these lines, and a body, and reads until the other end closes.
pub(crate) async fn send(to: SocketAddr, lines: &[&str], body: &[u8]) -> Answer {
    let head = format!("{}\r\nContent-Length: {}\r\n\r\n", lines.join("\r\n"), body.len());
    let exchanged = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // It may be refused before it is read.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = timeout(SOON, exchanged).await.expect("it answers or closes");
    let (headers, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    let body = match body {
        "" => Value::Null,
        body => serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")),
    };
    Answer { status, headers: headers.to_lowercase(), body }
}

pub(crate) async fn get(to: SocketAddr, path: &str) -> Answer {
    send(to, &[&format!("GET {path} HTTP/1.0"), "Host: localhost"], b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_is_read_as_json_on_every_node() {
    let cluster = Cluster::start(3).await;
    cluster.leader().await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    for id in cluster.ids() {
        let http = cluster.http_address(id);
        let listed = get(http, "/api/v1/namespaces/default/services?prefix=w&limit=5").await;
        assert_eq!((listed.status, &listed.body["next"]), (200, &json!("")), "{listed:?}");
        let service = &listed.body["services"][0];
        assert_eq!((&service["name"], &service["up"]), (&json!("web"), &json!(1)), "{listed:?}");

        let fetched = get(http, WEB).await;
        let instance = &fetched.body["service"]["instances"][0];
        assert_eq!(instance["id"], "a", "{fetched:?}");
        assert_eq!(instance["status"], "UP", "{fetched:?}");
        assert_eq!(instance["lease_id"], registered.lease_id.to_string(), "no number: {fetched:?}");
        let cluster_id = fetched.body["header"]["cluster_id"].as_str().unwrap();
        let revision = fetched.body["service"]["revision"].as_str().unwrap();
        let etag = fetched.header("etag").unwrap();
        assert!(etag.starts_with(&format!("\"{cluster_id}-{revision}-")), "{fetched:?}");
        assert_eq!(fetched.body["index"], format!("{cluster_id}-{revision}"), "{fetched:?}");
        let line = format!("If-None-Match: {etag}");
        let same = [&*format!("GET {WEB} HTTP/1.0"), "Host: 127.0.0.1:1", &line];
        assert_eq!(send(http, &same, b"").await.status, 304);
        // Of another part of it, that is no answer.
        let part = [&*format!("GET {WEB}?tag=none HTTP/1.0"), "Host: 127.0.0.1:1", &line];
        let part = send(http, &part, b"").await;
        assert_eq!(
            (part.status, &part.body["service"]["instances"]),
            (200, &json!([])),
            "{part:?}"
        );
        let any = |path: &str| format!("GET {path} HTTP/1.0");
        let nobody = WEB.replace("web", "nobody");
        for (path, status) in [(WEB, 304), (&nobody, 200)] {
            let any = [&*any(path), "Host: 127.0.0.1:1", "If-None-Match: *"];
            assert_eq!(send(http, &any, b"").await.status, status, "{path}");
        }

        let one = get(http, &format!("{WEB}/instances/a?consistency=local")).await;
        assert_eq!(&one.body["instance"], instance, "{one:?}");
        get(http, &format!("{WEB}/instances/b")).await.refuses(404, "NOT_FOUND", None);
        let none = get(http, &format!("{WEB}/dependents")).await;
        assert_eq!((none.status, &none.body["instances"]), (200, &json!([])));
        let members = get(http, "/api/v1/members").await;
        assert_eq!(members.body["members"][2]["id"], "3", "{members:?}");
        let status = get(http, "/api/v1/status?local_only=true").await;
        assert_eq!(status.body["members"][0]["member"]["id"], id.to_string(), "{status:?}");
        let me = get(http, "/api/v1/me").await;
        assert_eq!(
            (&me.body["checked"], &me.body["principal"]),
            (&json!(false), &json!("anonymous"))
        );
        assert_eq!(me.body["rights"][0]["role"], "admin");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_and_says_why() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let refused = async |path: &str, field: &str| {
        let answer = get(http, path).await;
        answer.refuses(400, "INVALID_ARGUMENT", Some(field));
    };
    let list = "/api/v1/namespaces/default/services";
    refused(&format!("{list}?prefixes=a"), "prefixes").await;
    refused(&format!("{list}?limit=-1"), "limit").await;
    refused(&format!("{list}?limit=1&limit=2"), "limit").await;
    refused(&format!("{list}?prefix=%FF"), "prefix").await;
    refused(&format!("{list}?consistency=eventual"), "consistency").await;
    refused(&format!("{WEB}?status=sideways"), "status").await;
    refused(&format!("{WEB}?min_revision=x-1"), "min_revision").await;
    refused("/api/v1/namespaces/..%2F/services", "namespace").await;
    refused(&format!("{list}/a%2Fb"), "services").await;
    refused(&format!("{list}/a%00b"), "services").await;
    refused(&format!("{list}/.."), "services").await;
    refused(&format!("{list}/%FF"), "path").await;
    get(http, "/api/v1/nothing").await.refuses(404, "NOT_FOUND", None);
    let ahead = get(http, &format!("{WEB}?min_revision=99999999999")).await;
    ahead.refuses(400, "OUT_OF_RANGE", None);

    let of = async |lines: &[&str]| send(http, lines, b"").await;
    let wrong = of(&["DELETE /api/v1/members HTTP/1.0", "Host: localhost"]).await;
    wrong.refuses(405, "UNIMPLEMENTED", None);
    assert_eq!(wrong.header("allow"), Some("get,head"), "{wrong:?}");
    // A name that somebody points to this machine.
    let rebound = of(&["GET /api/v1/members HTTP/1.0", "Host: evil.example"]).await;
    rebound.refuses(403, "PERMISSION_DENIED", Some("host"));
    let measured = of(&["GET /metrics HTTP/1.0", "Host: evil.example"]).await;
    measured.refuses(403, "PERMISSION_DENIED", Some("host"));
}

/// With a JSON body.
pub(crate) async fn write(to: SocketAddr, line: &str, body: &Value) -> Answer {
    let line = format!("{line} HTTP/1.0");
    let lines = [&*line, "Host: localhost", "Content-Type: application/json"];
    send(to, &lines, body.to_string().as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_lives_by_puts_and_goes_by_a_delete() {
    let cluster = Cluster::start(3).await;
    cluster.leader().await;
    let [first, second] = [1, 2].map(|id| cluster.http_address(id));
    let (one, a) = (cluster.http_address(3), format!("{WEB}/instances/a"));
    let spec = json!({
        "endpoints": { "http": "http://10.0.0.1:80" }, "ttl_ms": 60_000, "zone": "z", "tags": ["t"],
        "incarnation": "5",
        "metadata": { "k": "v" }, "checks": [{ "http": { "path": "/up" }, "interval_ms": 5_000 }],
    });
    let registered = write(first, &format!("PUT {a}"), &spec).await;
    assert_eq!((registered.status, &registered.body["ttl_ms"]), (200, &json!(60_000)));
    let lease = registered.body["lease_id"].as_str().unwrap();
    let incarnation = registered.body["incarnation"].as_str().unwrap();
    let revision = registered.body["revision"].as_str().unwrap();
    let read = get(second, &format!("{a}?consistency=local&min_revision={revision}")).await;
    let instance = &read.body["instance"];
    assert_eq!((&instance["zone"], &instance["tags"]), (&json!("z"), &json!(["t"])), "{read:?}");
    assert_eq!(instance["checks"][0]["http"]["path"], "/up", "{read:?}");
    assert_eq!(
        (&instance["health"], &instance["incarnation"]),
        (&json!("UNKNOWN"), &json!(incarnation))
    );

    let cluster_id = read.body["header"]["cluster_id"].as_str().unwrap();
    let bare = async |line: &str| {
        send(second, &[&format!("{line} HTTP/1.0"), "Host: [::1]:7202"], b"").await
    };
    let renewed = bare(&format!("PUT /api/v1/leases/{lease}?cluster_id={cluster_id}")).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    let foreign = bare(&format!("PUT /api/v1/leases/{lease}?cluster_id=00000000000000ff")).await;
    foreign.refuses(404, "NOT_FOUND", None);

    let drained =
        write(one, &format!("PATCH {a}"), &json!({ "status": "draining", "weight": 7 })).await;
    assert_eq!(drained.status, 200);
    let decided = json!({ "status": "OUT_OF_SERVICE", "reason": "a disk" });
    let decided = write(one, &format!("PUT {a}/override"), &decided).await;
    assert_eq!(decided.status, 200, "{decided:?}");
    let read = get(first, &a).await;
    assert_eq!(read.body["instance"]["status"], "OUT_OF_SERVICE", "{read:?}");
    assert_eq!(read.body["instance"]["override"]["reason"], "a disk", "{read:?}");
    let listed = get(first, "/api/v1/namespaces/default/overrides").await;
    assert_eq!(listed.body["overrides"][0]["id"], "a", "{listed:?}");
    assert_eq!(bare(&format!("DELETE {a}/override")).await.status, 200);
    bare(&format!("DELETE {a}/override")).await.refuses(404, "NOT_FOUND", None);
    let read = get(first, &a).await;
    assert_eq!(
        (&read.body["instance"]["status"], &read.body["instance"]["weight"]),
        (&json!("DRAINING"), &json!(7))
    );

    let older = bare(&format!("DELETE {a}?incarnation=1")).await;
    older.refuses(409, "FAILED_PRECONDITION", None);
    assert_eq!(older.body["incarnation"], incarnation, "{older:?}");
    let gone = bare(&format!("DELETE {a}?incarnation={incarnation}")).await;
    assert_eq!((gone.status, &gone.body["removed"]), (200, &json!(1)), "{gone:?}");
    get(first, &a).await.refuses(404, "NOT_FOUND", None);

    let leader = write(one, "POST /api/v1/transfer-leader", &json!({})).await;
    assert_eq!(leader.status, 200, "{leader:?}");
    let snapshot = write(one, "POST /api/v1/snapshot", &json!({})).await;
    assert!(snapshot.body["snapshot_index"].as_u64() > Some(0), "{snapshot:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_refused_and_says_why() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let put = format!("PUT {WEB}/instances/a");
    let endpoints = json!({ "http": "http://h:1" });
    let refused = async |body: Value, field: &str| {
        write(http, &put, &body).await.refuses(400, "INVALID_ARGUMENT", Some(field));
    };
    refused(json!({ "endpoints": endpoints, "tll": "5s" }), "tll").await;
    refused(json!({ "endpoints": endpoints, "ttl": 5 }), "ttl").await;
    refused(json!({ "endpoints": endpoints, "ttl": "5 s" }), "ttl").await;
    refused(json!({ "endpoints": endpoints, "ttl": "1m", "ttl_ms": 60_000 }), "ttl").await;
    refused(json!({ "endpoints": endpoints, "ttl": "5ms" }), "ttl_ms").await;
    let each = json!({ "tcp": {}, "interval": "99999h" });
    refused(json!({ "endpoints": endpoints, "checks": [each] }), "checks[0].interval").await;
    refused(json!({ "endpoints": endpoints, "ttl_ms": 5 }), "ttl_ms").await;
    refused(json!({ "endpoints": endpoints, "ttl_ms": "5" }), "ttl_ms").await;
    refused(json!({ "endpoints": endpoints, "incarnation": "-1" }), "incarnation").await;
    refused(json!({ "endpoints": endpoints, "status": "sideways" }), "status").await;
    refused(json!({ "endpoints": endpoints, "checks": [{}] }), "checks[0]").await;
    refused(json!([]), "body").await;
    refused(json!({}), "endpoints").await;

    let line = format!("{put} HTTP/1.0");
    let body = json!({ "endpoints": endpoints }).to_string();
    let of = async |lines: &[&str], body: &[u8]| {
        send(http, &[&[&*line, "Host: localhost"], lines].concat(), body).await
    };
    let json_type = "Content-Type: application/json; charset=utf-8";
    let untyped = of(&[], body.as_bytes()).await;
    untyped.refuses(415, "INVALID_ARGUMENT", Some("content-type"));
    let text = of(&["Content-Type: text/plain"], body.as_bytes()).await;
    text.refuses(415, "INVALID_ARGUMENT", Some("content-type"));
    for site in ["cross-site", "same-site", "nonsense"] {
        let page = of(&[json_type, &format!("Sec-Fetch-Site: {site}")], body.as_bytes()).await;
        page.refuses(403, "PERMISSION_DENIED", Some("sec-fetch-site"));
    }
    of(&[json_type], b"{\"endpoints\":").await.refuses(400, "INVALID_ARGUMENT", Some("body"));
    of(&[json_type], b"\xFF").await.refuses(400, "INVALID_ARGUMENT", Some("body"));
    let large = vec![b' '; 1024 * 1024 + 1];
    of(&[json_type], &large).await.refuses(413, "RESOURCE_EXHAUSTED", Some("body"));
    let same = of(&[json_type, "Sec-Fetch-Site: same-origin"], body.as_bytes()).await;
    assert_eq!(same.status, 200, "{same:?}");
    let bare = send(http, &["POST /api/v1/snapshot HTTP/1.0", "Host: localhost"], b"").await;
    bare.refuses(415, "INVALID_ARGUMENT", Some("content-type"));
    let none = send(http, &["PUT /api/v1/leases/0 HTTP/1.0", "Host: localhost"], b"").await;
    none.refuses(400, "INVALID_ARGUMENT", Some("lease_id"));
}

/// Who cannot renew lets the cluster look: what it is to look at stands in the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_came_by_http_with_a_check_is_probed() {
    let cluster = Cluster::start_probing(1, "127.0.0.0/8").await;
    cluster.leader().await;
    let (http, targets) = (cluster.http_address(1), Targets::open().await);
    let becomes = async |health: &str| {
        eventually(&format!("it is {health}"), async || {
            let read = get(http, &format!("{WEB}/instances/a")).await;
            (read.body["instance"]["health"] == health).then_some(read.body["instance"].clone())
        })
        .await
    };
    let spec = json!({
        "endpoints": { "http": format!("http://127.0.0.1:{}", targets.port) }, "ttl": "1h",
        "checks": [{
            "http": { "path": "/up" }, "interval": "1s", "timeout_ms": 900,
            "failures_before_critical": 1, "successes_before_passing": 1,
        }],
    });
    targets.answer("/up", targets::Answer::Status(500));
    assert_eq!(write(http, &format!("PUT {WEB}/instances/a"), &spec).await.status, 200);
    let critical = becomes("CRITICAL").await;
    assert!(critical["health_reason"].as_str().unwrap().contains("HTTP status 500"), "{critical}");
    targets.answer("/up", targets::Answer::Status(200));
    assert_eq!(becomes("PASSING").await["status"], "UP");
}

/// Before it is in a cluster, it has no members whose names it could know.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_answers_under_its_own_names_and_its_founders() {
    let mut cluster = Cluster::prepare_founders(1).await;
    let config = cluster.config_mut(1);
    config.advertise = Some("me.example:7001".to_owned());
    config.peer_advertise = Some("peer.example:7101".to_owned());
    let founders = [(1, "peer.example:7101"), (2, "two.example:7101"), (3, "three.example:7101")];
    let founders = founders.map(|(id, address)| (id, address.to_owned()));
    config.start = Start::Bootstrap(founders.into());
    cluster.restart(1).await;
    let http = cluster.http_address(1);
    let asked = async |host: &str| {
        let line = "GET /api/v1/status?local_only=true HTTP/1.0";
        send(http, &[line, &format!("Host: {host}")], b"").await
    };
    for host in ["me.example", "ME.example:7201", "peer.example", "two.example:1"] {
        let answer = eventually("it is known", || async {
            Some(asked(host).await).filter(|answer| answer.body["field"] != "host")
        });
        answer.await;
    }
    for host in ["example", "four.example", "me.example.org"] {
        asked(host).await.refuses(403, "PERMISSION_DENIED", Some("host"));
    }
}
