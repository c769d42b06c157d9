//! What is under way by HTTP when its connection reaches its age.

use super::{Authority, start};

const WEB: &str = "/api/v1/namespaces/default/services/web";

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_and_who_follows_is_answered_when_the_connection_is_old() {
    let authority = Authority::new("ours");
    let (_cluster, files, _client) = start(&authority, 1_500).await;
    let ask = async |asks: &str, body: &str| {
        let answer = files[0].answer(&authority, asks, body).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 "), "{asks}: {answer:?}");
        answer
    };
    let spec = r#"{"endpoints": {"http": "http://h:1"}}"#;
    ask(&format!("PUT {WEB}/instances/a"), spec).await;
    let read = ask(&format!("GET {WEB}?index=0"), "").await;
    let index = read.split("\"index\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let (waiting, following) = (
        format!("GET {WEB}?index={index}&wait=10m"),
        "GET /api/v1/namespaces/default/watch?service=web",
    );
    let (waited, followed) = tokio::join!(ask(&waiting, ""), ask(following, ""));
    assert!(waited.contains(index), "nothing has changed: {waited:?}");
    let end = followed.split("event: end\n").nth(1).expect("the stream says that it ends");
    assert!(end.contains("reached its age"), "{end:?}");
}
