//! README.md, run from top to bottom as its reader would: each command has to be recognised,
//! succeed, and say what the text around it promises. Commands that stay until Ctrl-C get one at
//! the end of their section; a cluster stays until the next one, as the text says.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::blocks::{Block, blocks, commands};
use crate::built::example;
use crate::ports::Ports;
use crate::process::Running;
use crate::{root, text_of};

#[test]
fn every_command_and_snippet_of_the_readme_works() {
    let readme = text_of("README.md");
    let mut story = Story::begin();
    let mut section = 0;
    for block in blocks(&readme) {
        if block.section != section {
            story.end_section();
            section = block.section;
        }
        match block.language.as_str() {
            "sh" => {
                for (line, words) in commands(&block) {
                    story.command(line, &words);
                }
            }
            "rust" => story.snippet(&block),
            other => panic!("README.md:{}: no test runs blocks of {other:?}", block.line),
        }
    }
    story.end_section();
    story.end_cluster();
    let expected =
        ["cargo run", "cargo test", "snippet", "start.sh", "serve", "watch", "register", "curl"];
    let operator = ["status", "backup", "transfer-leader", "override", "replace"];
    for command in expected.iter().chain(&operator) {
        assert!(story.ran.iter().any(|ran| ran.contains(command)), "README.md shows no {command}");
    }
}

/// What a command does besides succeeding: the first rule whose words are the command's first ones.
const PROMISES: [(&str, Promise); 9] = [
    ("dev", Promise::Stays("Quorate is ready.")),
    ("serve", Promise::Stays("node starts")),
    ("watch", Promise::Stays("to begin with")),
    ("register", Promise::Stays("registered orders/orders-1")),
    ("fetch orders", Promise::Says("http=http://10.0.0.1:8080")),
    ("cluster status", Promise::Says("follower")),
    ("cluster transfer-leader 2", Promise::Says("node 2 leads")),
    ("cluster override orders orders-1", Promise::Says("overrode orders/orders-1")),
    ("cluster replace 3 4", Promise::Says("node 4 is in, node 3 is out")),
];

#[derive(Debug, Clone, Copy)]
enum Promise {
    /// It says this and stays until Ctrl-C.
    Stays(&'static str),
    /// It says this and ends.
    Says(&'static str),
}

struct Story {
    // Stopped in this order, before the directory goes.
    staying: Vec<(String, Running)>,
    cluster: Option<Running>,
    ports: Ports,
    ran: Vec<String>,
    directory: TempDir,
}

impl Story {
    fn begin() -> Self {
        let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
        copy_three_nodes(directory.path(), ports);
        Self { staying: Vec::new(), cluster: None, ports, ran: Vec::new(), directory }
    }

    fn command(&mut self, line: usize, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let command = words.join(" ");
        self.ran.push(command.clone());
        match words.as_slice() {
            ["cargo", "run", "--release", "--", args @ ..] | ["quorate", args @ ..] => {
                self.quorate(line, args);
            }
            ["cargo", "test"] => {}
            ["curl", args @ ..] => self.curl(line, args),
            ["export", "PATH=$PWD/target/release:$PATH"] => {}
            ["cluster-examples/three-nodes/start.sh"] => self.start_script(),
            _ => panic!(
                "README.md:{line}: `{command}`: no test runs this; teach it to tests/readme/story.rs"
            ),
        }
    }

    fn quorate(&mut self, line: usize, args: &[&str]) {
        let joined = args.join(" ");
        let promise = PROMISES.iter().find(|(first, _)| joined.starts_with(first));
        let promise = promise.map(|(_, promise)| *promise);
        match promise {
            Some(Promise::Stays(text)) if args.first() == Some(&"dev") => {
                self.end_cluster();
                let mut dev = self.run(&[args, &["--listen", "127.0.0.1:7001"]].concat());
                dev.wait_for(text);
                self.cluster = Some(dev);
            }
            Some(Promise::Stays(text)) => {
                let mut running = self.run(args);
                running.wait_for(text);
                self.staying.push((joined, running));
            }
            promise => {
                let said = self.run(args).succeed();
                if let Some(Promise::Says(text)) = promise {
                    assert!(said.contains(text), "README.md:{line}: said no {text:?}: {said}");
                }
            }
        }
        if let ["cluster", "status"] = args {
            let said = self.run(args).succeed();
            assert!(!said.contains("DOWN"), "README.md:{line}: not all nodes run: {said}");
        }
        if let ["cluster", "backup", file] = args {
            let length = self.directory.path().join(file).metadata().unwrap().len();
            assert!(length > 0, "README.md:{line}: {file} is empty");
        }
    }

    fn curl(&self, line: usize, args: &[&str]) {
        let mut curl = Command::new("curl");
        curl.args(args.iter().map(|arg| self.ports.substituted(arg)));
        let said = Running::start(curl, self.directory.path(), "curl").succeed();
        let promised = "http://10.0.0.1:8080";
        assert!(said.contains(promised), "README.md:{line}: said no {promised:?}: {said}");
    }

    fn run(&self, args: &[&str]) -> Running {
        let mut command = quorate(self.ports);
        command.args(args.iter().map(|arg| self.ports.substituted(arg)));
        command.current_dir(self.directory.path());
        Running::start(command, self.directory.path(), &format!("command-{}", self.ran.len()))
    }

    fn start_script(&mut self) {
        self.end_cluster();
        let directory = self.directory.path();
        let mut command = Command::new(directory.join("cluster-examples/three-nodes/start.sh"));
        command.current_dir(directory).env("QUORATE", env!("CARGO_BIN_EXE_quorate"));
        let mut script = Running::start(command, directory, "start.sh");
        script.wait_for("ready; try: quorate cluster status --nodes");
        self.cluster = Some(script);
    }

    fn snippet(&mut self, block: &Block) {
        assert_eq!(
            block.text,
            shown_part(&text_of("cluster-examples/readme.rs")),
            "README.md:{}: the snippet is not what cluster-examples/readme.rs has between its marks",
            block.line
        );
        let mut command = Command::new(example("readme"));
        command.env("QUORATE_NODES", self.ports.nodes());
        let said = Running::start(command, self.directory.path(), "snippet").succeed();
        for promised in ["Added(Instance", "http://10.0.0.1:8080"] {
            assert!(said.contains(promised), "the snippet printed no {promised:?}: {said}");
        }
        let fetched = said.lines().last().unwrap();
        assert!(fetched.contains("orders-1"), "the snippet fetched no instance: {said}");
        self.ran.push("snippet".to_owned());
    }

    /// Ctrl-C for what stays, the last one first.
    fn end_section(&mut self) {
        while let Some((command, mut running)) = self.staying.pop() {
            running.signal("INT");
            let said = running.succeed();
            let promised = match command.split(' ').next() {
                Some("register") => "deregistered orders/orders-1",
                Some("watch") => "\n+ orders/orders-1",
                _ => "",
            };
            assert!(said.contains(promised), "`{command}` said no {promised:?}: {said}");
        }
    }

    fn end_cluster(&mut self) {
        let Some(mut cluster) = self.cluster.take() else { return };
        // Not SIGINT: a shell whose parent ignores that one (`cargo test &`) cannot catch it.
        cluster.signal("TERM");
        cluster.succeed();
        self.ports.are_free_again(&cluster.output());
    }
}

/// The binary, which finds the cluster at our ports.
pub(crate) fn quorate(ports: Ports) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.env("QUORATE_NODES", ports.nodes());
    command
}

/// The three configuration files with our ports, and the script.
pub(crate) fn copy_three_nodes(directory: &Path, ports: Ports) {
    let to = directory.join("cluster-examples/three-nodes");
    std::fs::create_dir_all(&to).unwrap();
    for name in ["start.sh", "node-1.toml", "node-2.toml", "node-3.toml"] {
        let from = root().join("cluster-examples/three-nodes").join(name);
        // With its permissions; then with its ports.
        std::fs::copy(&from, to.join(name)).unwrap();
        let text = std::fs::read_to_string(&from).unwrap();
        std::fs::write(to.join(name), ports.substituted(&text)).unwrap();
    }
}

/// What stands between the two marks, without the indentation.
pub(crate) fn shown_part(source: &str) -> String {
    let lines = source.lines().skip_while(|line| line.trim() != "// README.md: begin").skip(1);
    let lines = lines.take_while(|line| line.trim() != "// README.md: end");
    lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
}
