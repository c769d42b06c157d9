//! That `follow` tells its story, and that each example says how it is run. The examples of the
//! reference systems are run by `tests/process/examples.rs`.

use std::process::Command;

use crate::blocks::blocks;
use crate::built::{example, root};
use crate::ports::Ports;
use crate::process::Running;
use crate::story::{quorate, shown_part};
use crate::text_of;

#[test]
fn the_follow_example_tells_its_story() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut dev = quorate(ports);
    dev.args(["dev", "--listen", &ports.substituted("127.0.0.1:7001")]);
    let mut dev = Running::start(dev, directory.path(), "dev");
    dev.wait_for("Quorate is ready.");
    let mut follow = Command::new(example("follow"));
    follow.env("QUORATE_NODES", ports.nodes());
    let story = Running::start(follow, directory.path(), "follow").succeed();
    let told: Vec<_> = story.lines().filter(|line| line.starts_with("  caller:")).collect();
    let expected = [
        "instance 1 is there; can be called: 1",
        "instance 2 is there; can be called: 1, 2",
        "instance 3 is there; can be called: 1, 2, 3",
        "instance 2 changed, Draining; can be called: 1, 3",
        "instance 2 is gone, Deregistered; can be called: 1, 3",
        "instance 1 changed, Up; can be called: 1, 3",
        "instance 3 is gone, Expired; can be called: 1",
        "instance 1 is gone, Deregistered; can be called: none",
    ];
    let expected = expected.map(|change| format!("  caller:  {change}"));
    assert_eq!(told, expected, "{story}");
    assert!(story.lines().all(|line| line.len() <= 100), "lines fit a terminal: {story}");
}

#[test]
fn the_service_is_there_while_it_runs() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut dev = quorate(ports);
    dev.args(["dev", "--nodes", "1", "--listen", &ports.substituted("127.0.0.1:7001")]);
    let mut dev = Running::start(dev, directory.path(), "dev");
    dev.wait_for("Quorate is ready.");
    let mut service = Command::new(example("service"));
    service.env("QUORATE_NODES", ports.substituted("127.0.0.1:7001"));
    let mut service = Running::start(service, directory.path(), "service");
    service.wait_for("serves at");
    let fetched = |arguments: &[&str]| {
        let mut fetch = quorate(ports);
        fetch.args(["fetch", "hello"]).args(arguments);
        let mut fetch = Running::start(fetch, directory.path(), "fetch");
        fetch.end();
        fetch.output()
    };
    let is_up = || fetched(&["--status", "up"]).contains("grpc=http://127.0.0.1:");
    let deadline = std::time::Instant::now() + crate::process::PATIENCE;
    while !is_up() {
        assert!(std::time::Instant::now() < deadline, "{}", service.output());
    }
    service.signal("TERM");
    let said = service.succeed();
    assert!(said.contains("stopped; all calls were finished"), "{said}");
    assert!(!fetched(&[]).contains("grpc=http"), "it is deregistered");
}

/// Each file says how it is run, in its first lines.
#[test]
fn each_example_opens_with_its_command() {
    let three_nodes = "cluster-examples/three-nodes";
    let rust =
        |name| (format!("cluster-examples/{name}.rs"), format!("cargo run --example {name}"));
    for (file, command) in [
        rust("readme"),
        rust("service"),
        rust("follow"),
        rust("rpc_framework"),
        rust("rpc_proxy"),
        rust("game_cluster"),
        rust("config_push"),
        rust("log_portal"),
        (format!("{three_nodes}/start.sh"), format!("{three_nodes}/start.sh")),
        (format!("{three_nodes}/node-1.toml"), "quorate serve --config node-1.toml".to_owned()),
        (format!("{three_nodes}/node-2.toml"), "quorate serve --config node-2.toml".to_owned()),
        (format!("{three_nodes}/node-3.toml"), "quorate serve --config node-3.toml".to_owned()),
        (
            format!("{three_nodes}/quorate@.service"),
            "systemctl enable --now --no-block quorate@1".to_owned(),
        ),
        (
            format!("{three_nodes}/compose.yaml"),
            format!("docker compose -f {three_nodes}/compose.yaml up"),
        ),
        (
            format!("{three_nodes}/kubernetes.yaml"),
            format!("kubectl apply -f {three_nodes}/kubernetes.yaml"),
        ),
        (format!("{three_nodes}/replace-pod.sh"), format!("{three_nodes}/replace-pod.sh OLD NEW")),
        (format!("{three_nodes}/add-pods.sh"), format!("{three_nodes}/add-pods.sh MEMBER NEW...")),
        (format!("{three_nodes}/Dockerfile"), format!("-f {three_nodes}/Dockerfile .")),
    ] {
        let text = text_of(&file);
        let opening: Vec<_> = text.lines().take(7).collect();
        let says = opening.iter().any(|line| line.contains(&command));
        assert!(says, "{file}: the first lines do not say `{command}`");
    }
}

/// `mdbook test` would not find the client crate. So those of some pages are documentation tests of
/// that crate, and all others are part of an example.
#[test]
fn each_snippet_of_rust_is_compiled() {
    let client = text_of("crates/quorate-client/src/lib.rs");
    let shown = shown_part(&text_of("cluster-examples/readme.rs"));
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|page| {
        let name = page.unwrap().file_name().into_string().unwrap();
        format!("docs/{name}")
    });
    let pages = docs.filter(|page| page.ends_with(".md")).chain(["README.md".to_owned()]);
    let mut snippets = 0;
    for page in pages {
        let is_tested = client.contains(&format!("#[doc = include_str!(\"../../../{page}\")]"));
        for block in blocks(&text_of(&page)) {
            let Some(how) = block.language.strip_prefix("rust") else { continue };
            snippets += 1;
            let compiled = is_tested && ["", ",no_run"].contains(&how);
            let line = block.line;
            assert!(compiled || block.text == shown, "{page}:{line}: no test compiles this");
        }
    }
    assert!(snippets >= 11, "they are found: {snippets}");
}
