//! What may stand only in some places, or nowhere.

use crate::no_faults;
use crate::sources::{Source, file, rust};

/// Faults for every line of `files` that has one of `words`.
fn found(files: &[Source], words: &[&str], what: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files {
        for (line, text) in file.shipped_code() {
            if let Some(word) = words.iter().find(|word| text.contains(**word)) {
                faults.push(file.fault(line, &format!("{word} {what}")));
            }
        }
    }
    faults
}

fn of(folder: &str, except: &[&str]) -> Vec<Source> {
    let mut files = rust();
    files.retain(|file| file.path.starts_with(folder) && !except.contains(&file.path.as_str()));
    assert!(!files.is_empty(), "{folder} has files");
    files
}

/// A task for each connection by HTTP, as the transport of gRPC has them: where one is busy, the
/// others are answered. They end with their listener.
const SPAWNS_FOR_EACH: &str = "crates/quorate-node/src/net/http.rs";

#[test]
fn a_node_spawns_its_tasks_in_one_file() {
    let spawns = ["crates/quorate-node/src/server.rs", SPAWNS_FOR_EACH];
    let files = of("crates/quorate-node/src/", &spawns);
    let what = "outside server.rs; write a loop with `async fn run`, and let server.rs spawn it";
    no_faults(&found(&files, &["tokio::spawn", ".spawn("], what));
}

/// Where each program reads the wall clock: the node for all that is outside its cluster, the
/// client for the incarnations of its process, the command line for what it signs.
const WALL_CLOCKS: [&str; 3] = [
    "crates/quorate-node/src/wall.rs",
    "crates/quorate-client/src/registering/claims.rs",
    "crates/quorate-cli/src/authority.rs",
];
const READS_WALL_CLOCK: [&str; 3] = ["SystemTime::now", "UnixTime::now", "now_utc"];

#[test]
fn each_program_reads_the_wall_clock_in_one_place() {
    let mut faults = found(
        &of("crates/", &WALL_CLOCKS),
        &READS_WALL_CLOCK,
        "outside the files of WALL_CLOCKS in tests/tidy; wall clocks jump, use tokio's Instant or registry time",
    );
    for path in WALL_CLOCKS {
        let reads = found(&[file(path)], &READS_WALL_CLOCK, "a second time; call the first");
        assert!(!reads.is_empty(), "{path} reads no clock; take it off WALL_CLOCKS in tests/tidy");
        faults.extend(reads.into_iter().skip(1));
    }
    faults.extend(found(
        &of("crates/quorate-node/src/", &[]),
        &["Config::builder_with_provider", "Config::builder("],
        "has a clock of its own; use builder_with_details and WallTime of net/tls.rs",
    ));
    no_faults(&faults);
}

#[test]
fn clocks_are_read_where_they_may_be() {
    let mut faults = found(
        &of("crates/quorate-state/", &[]),
        &["Instant"],
        "in the state machine; time comes in with the command",
    );
    faults.extend(found(
        &of("crates/quorate-node/src/", &[]),
        &["std::time::Instant", "std::time::{Duration, Instant}"],
        "in the node; use tokio::time::Instant, which tests can turn",
    ));
    let log =
        ["crates/quorate-log/src/store/writer.rs", "crates/quorate-log/src/opening/recover.rs"];
    faults.extend(found(
        &of("crates/quorate-log/src/", &log),
        &["Instant::now"],
        "outside writer.rs (how long a sync took) and recover.rs (waiting for a lock); pass it in",
    ));
    no_faults(&faults);
}

/// The only file that says what a machine cannot test: past libtest, and as a failure of a release.
const SAYS_WHAT_IS_LEFT_OUT: &str = "tests/readme/skipped.rs";

#[test]
fn what_is_skipped_is_said_in_one_place() {
    let word = ["SKIP", "PED"].concat();
    let what = format!("{word} outside {SAYS_WHAT_IS_LEFT_OUT}; call skipped()");
    let says = |source: &Source| -> Vec<usize> {
        let lines = source.code().filter(|(_, text)| text.contains(&word));
        lines.map(|(line, _)| line).collect()
    };
    let others = rust().into_iter().filter(|source| source.path != SAYS_WHAT_IS_LEFT_OUT);
    let faults: Vec<String> = others
        .flat_map(|source| says(&source).into_iter().map(move |at| (source.path.clone(), at)))
        .map(|(path, at)| format!("{path}:{at}: {what}"))
        .collect();
    no_faults(&faults);
    assert!(!says(&file(SAYS_WHAT_IS_LEFT_OUT)).is_empty(), "see SAYS_WHAT_IS_LEFT_OUT");
}

/// Where a new file gets its name, and the directory with that is synced.
const NAMES_FILES: &str = "crates/quorate-cli/src/files.rs";

#[test]
fn files_get_their_names_in_one_place() {
    let what = "outside files.rs; call files::name, after which a power cut does not take it away";
    let calls = [".persist(", ".persist_noclobber("];
    no_faults(&found(&of("crates/quorate-cli/src/", &[NAMES_FILES]), &calls, what));
    assert!(!found(&[file(NAMES_FILES)], &calls, "").is_empty(), "see NAMES_FILES");
}

/// The only file of the node that makes commands, in one place.
const MAKES_COMMANDS: &str = "crates/quorate-node/src/node/propose.rs";
/// Both ways to write one down.
const COMMAND: [&str; 2] = ["Command {", "Command::new"];

#[test]
fn commands_are_stamped_in_one_place() {
    let what = "outside node/propose.rs; propose the operation, which is stamped there";
    let mut faults = found(&of("crates/quorate-node/src/", &[MAKES_COMMANDS]), &COMMAND, what);
    let propose = file(MAKES_COMMANDS);
    let stamped = propose.shipped_code().any(|(_, text)| text.contains("self.stamp()"));
    let made = found(&[propose], &COMMAND, "a second time; call propose_here");
    assert!(stamped && !made.is_empty(), "{MAKES_COMMANDS} no longer stamps: see MAKES_COMMANDS");
    faults.extend(made.into_iter().skip(1));
    no_faults(&faults);
}

/// A span of time or the room of a channel, as a number in the middle of the code.
fn has_bare_bound(line: &str) -> bool {
    ["Duration::from_", "channel(", "channel::<"].iter().any(|word| {
        let mut uses = line.split(word).skip(1);
        uses.any(|rest| {
            let bound =
                if word.ends_with('(') { rest } else { rest.split_once('(').unwrap_or_default().1 };
            bound.starts_with(|first: char| first.is_ascii_digit())
        })
    })
}

/// Lines of a source with such a number, but for constants, which may begin on the line before.
fn bare_bounds(source: &Source) -> Vec<usize> {
    let is_constant = |line: &str| {
        let line = line.trim_start();
        let seen_by = line.strip_prefix("pub(").and_then(|rest| rest.split_once(") "));
        let item = seen_by.map_or(line.trim_start_matches("pub "), |(_, item)| item);
        item.starts_with("const ") || item.starts_with("static ")
    };
    let mut found = Vec::new();
    let mut before = "";
    for (number, line) in source.shipped_code() {
        let goes_on = is_constant(before) && !before.trim_end().ends_with(';');
        if has_bare_bound(line) && !is_constant(line) && !goes_on {
            found.push(number);
        }
        before = line;
    }
    found
}

#[test]
fn bounds_have_names() {
    const NONE: [usize; 0] = [];
    let bare = |text: &str| {
        let path = "crates/quorate-node/src/some.rs".to_owned();
        bare_bounds(&Source { path, text: text.to_owned() })
    };
    assert_eq!(bare("const A: Duration = Duration::from_secs(1);"), NONE);
    assert_eq!(bare("pub(crate) const A: B =\n    B { a: Duration::from_secs(1) };"), NONE);
    assert_eq!(bare("pub(in crate::a) const A: Duration = Duration::from_secs(1);"), NONE);
    assert_eq!(bare("sleep(Duration::from_millis(wait_ms)); mpsc::channel(QUEUE_MAX);"), NONE);
    assert_eq!(bare("const A: u8 = 1;\nsleep(Duration::from_millis(5));"), [2]);
    assert_eq!(bare("let (a, b) = mpsc::channel(1);"), [1]);
    assert_eq!(bare("let (a, b) = broadcast::channel::<u8>(16);"), [1]);
    let mut faults = Vec::new();
    for folder in ["crates/quorate-node/src/", "crates/quorate-client/src/"] {
        for source in of(folder, &[]) {
            let what = "a bound without a name; make it a const, with the reason for its size";
            faults.extend(bare_bounds(&source).into_iter().map(|line| source.fault(line, what)));
        }
    }
    no_faults(&faults);
}

/// Locks of the standard library are found across an await by clippy; tokio's, which are made for
/// that, are not used. What is done one at a time, and takes long, has a semaphore with one permit.
#[test]
fn no_lock_is_held_across_an_await() {
    // S3.7
    let lints = file("Cargo.toml").text;
    assert!(lints.contains("await_holding_lock = \"warn\""), "and warnings are denied in CI");
    let mut faults = Vec::new();
    for source in of("crates/", &[]) {
        for (line, text) in source.shipped_code() {
            let tokios = text.contains("tokio::sync") || text.contains("futures_util::lock");
            if tokios && (text.contains("Mutex") || text.contains("RwLock")) {
                faults.push(
                    source.fault(line, "a lock to be held across an await; use a std one briefly"),
                );
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn nothing_is_left_unfinished() {
    // In two parts each, so that this file has none of them.
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ign", "ore")];
    let mut faults = Vec::new();
    for file in rust() {
        for (line, text) in (1..).zip(file.text.lines()) {
            let unfinished = words.iter().chain([&concat!("FIX", "ME"), &concat!("dbg", "!(")]);
            for word in unfinished.filter(|word| text.contains(**word)) {
                faults.push(file.fault(line, &format!("{word}; finish it, or remove it")));
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn modules_are_named_after_themselves() {
    let unnamed = rust().into_iter().filter(|file| file.path.ends_with("/mod.rs"));
    let what = "name it after the module, beside its folder";
    no_faults(&unnamed.map(|file| file.fault(1, what)).collect::<Vec<_>>());
}

/// Where Raft and gRPC meet by their nature: Raft messages over gRPC.
const RAFT_AND_GRPC: [&str; 2] = ["raft/network.rs", "api/grpc/peer.rs"];

#[test]
fn raft_and_grpc_meet_in_few_files() {
    let mut faults = Vec::new();
    for file in of("crates/quorate-node/src/", &[]) {
        let first = |word: &str| file.shipped_code().find(|(_, text)| text.contains(word));
        let name = file.path.trim_start_matches("crates/quorate-node/src/");
        let may = RAFT_AND_GRPC.contains(&name);
        match (first("openraft"), first("tonic::")) {
            (Some((line, _)), Some((other, _))) if !may => {
                let what = format!("openraft here and tonic in line {other}; reach Raft by Node");
                faults.push(file.fault(line, &what));
            }
            (None, _) | (_, None) if may => {
                let what = "does not mix the two; take it off RAFT_AND_GRPC in tests/tidy";
                faults.push(file.fault(1, what));
            }
            _ => {}
        }
    }
    no_faults(&faults);
}

/// Where statuses are made by hand: the table of what a node answers, and the calls that it makes
/// itself, whose errors are the transport's.
const MAKE_STATUSES: [&str; 4] = ["api/grpc/codes.rs", "peers.rs", "peers/", "raft/network.rs"];

#[test]
fn answers_have_their_codes_from_one_table() {
    let mut files = of("crates/quorate-node/src/", &[]);
    files.retain(|file| {
        let inside = file.path.trim_start_matches("crates/quorate-node/src/");
        !MAKE_STATUSES.iter().any(|place| inside.starts_with(place))
    });
    let makers = "new cancelled unknown invalid_argument deadline_exceeded not_found \
                  already_exists permission_denied resource_exhausted failed_precondition aborted \
                  out_of_range unimplemented internal unavailable data_loss unauthenticated";
    let makes = |text: &str| {
        text.match_indices("Status::").any(|(at, word)| {
            // Not an `InstanceStatus`.
            let whole = !text[..at].ends_with(char::is_alphanumeric);
            let made = text[at + word.len()..].split_once('(');
            whole && made.is_some_and(|(name, _)| makers.split_whitespace().any(|it| it == name))
        })
    };
    assert!(makes("Err(Status::internal(text))") && makes("Status::new(code, text)"));
    assert!(!makes("InstanceStatus::new(1)") && !makes("Status::from(error)"));
    let mut faults = Vec::new();
    for file in files {
        for (line, _) in file.shipped_code().filter(|(_, text)| makes(text)) {
            let what = "a status by hand; make it a variant of an error, with a row in codes.rs";
            faults.push(file.fault(line, what));
        }
    }
    no_faults(&faults);
}

#[test]
fn generated_types_are_left_as_they_are() {
    let builds = of("build.rs", &[]);
    let mut faults = Vec::new();
    for file in builds {
        for (line, text) in file.code() {
            if text.contains("type_attribute") || text.contains("field_attribute") {
                let what = "attributes on generated types; convert to a type of ours instead";
                faults.push(file.fault(line, what));
            }
        }
    }
    no_faults(&faults);
}

/// Where the contract's messages are made and read. Everything else has types of ours.
const OF_CONTRACT: [&str; 6] =
    ["api/grpc", "api/http/", "peers", "raft/network", "node/calls/", "server/listeners.rs"];

#[test]
fn the_contracts_types_stay_at_the_edge() {
    let mut files = of("crates/quorate-node/src/", &[]);
    files.retain(|file| {
        let inside = file.path.trim_start_matches("crates/quorate-node/src/");
        !OF_CONTRACT.iter().any(|place| inside.starts_with(place))
    });
    let generated =
        ["quorate_proto::v1", "quorate_proto::peer", "quorate_proto::encoded", "quorate_proto::{"];
    let what = "inside the node; convert it in api/grpc/convert.rs or peers/calls.rs";
    no_faults(&found(&files, &generated, what));
}
