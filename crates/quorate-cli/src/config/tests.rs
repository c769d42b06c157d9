//! What the layers give together.

use super::*;
use crate::args::{Cli, Command};
use clap::{CommandFactory as _, Parser};

const FILE: &str = r#"
    id = 3
    data_dir = "/file"
    listen = "127.0.0.1:3"
    peer_listen = "127.0.0.1:103"
    advertise = "file:3"

    [bootstrap]
    1 = "a:101"
    3 = "c:103"

    [tunables]
    heartbeat_ms = 50
"#;

fn loaded(flags: &str, variables: &[(&str, &str)], file: &str) -> Result<Config, String> {
    let line = format!("quorate serve --config q.toml {flags}");
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    let Command::Serve(args) = cli.command else { panic!("is a serve") };
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let variable = |name: &str| match variables.get(name) {
        Some(&"no text") => Err(format!("the value of {name} is no UTF-8")),
        found => Ok(found.map(ToString::to_string)),
    };
    load(&args, variable, |_| Ok(file.to_owned())).map_err(|bad| bad.0)
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    // S2.1
    let variables = [
        ("QUORATE_ID", "2"),
        ("QUORATE_LISTEN", "127.0.0.1:2"),
        ("QUORATE_ADVERTISE", ""),
        ("QUORATE_BOOTSTRAP", "2=b:102"),
    ];
    let config = loaded("--id 1 --join x:7001", &variables, FILE).unwrap();
    assert_eq!(config.id, 1, "flag");
    assert_eq!(config.listen.port(), 2, "variable");
    assert_eq!(config.peer_listen.port(), 103, "file");
    assert_eq!(config.advertise.as_deref(), Some("file:3"), "an empty variable is not set");
    let join = Start::Join { nodes: vec!["x:7001".to_owned()], observer: false };
    assert_eq!(config.start, join, "a join above overrules a bootstrap below");
    assert_eq!(config.tunables.heartbeat_ms, 50);
    assert_eq!(config.tunables.bookmark_ms, Tunables::default().bookmark_ms);

    let config = loaded("", &[], FILE).unwrap();
    assert_eq!((config.id, config.data_dir), (3, PathBuf::from("/file")));
    assert_eq!(config.http_listen, None, "nobody listens for HTTP, unless that is set");
    let members = [(1, "a:101".to_owned()), (3, "c:103".to_owned())];
    assert_eq!(config.start, Start::Bootstrap(members.into()));
}

/// A node would start with other settings than it was given: without an access file, say.
#[test]
fn a_variable_that_is_no_text_is_refused() {
    for name in ["QUORATE_ACCESS", "QUORATE_ID", "QUORATE_TLS_CRL"] {
        let refused = loaded("", &[(name, "no text")], FILE).unwrap_err();
        assert_eq!(refused, format!("the value of {name} is no UTF-8"));
    }
    assert_eq!(loaded("", &[("QUORATE_CONFIG", "no text")], FILE).unwrap().id, 3, "a flag wins");
}

#[test]
fn dns_is_off_unless_it_is_asked_for() {
    assert_eq!(loaded("", &[], FILE).unwrap().dns_listen, None);
    let listening = loaded("--dns-listen 127.0.0.1:53", &[], FILE).unwrap().dns_listen;
    assert_eq!(listening, Some(([127, 0, 0, 1], 53).into()));
}

#[test]
fn a_node_without_a_start_waits() {
    let file = "id = 1\ndata_dir = \"d\"\nlisten = \"[::1]:1\"\npeer_listen = \"[::1]:2\"";
    assert_eq!(loaded("", &[], file).unwrap().start, Start::Wait);
    let observer = loaded("--join a:1,2 --observer", &[], file).unwrap().start;
    let nodes = vec!["a:1".to_owned(), "a:2".to_owned()];
    assert_eq!(observer, Start::Join { nodes, observer: true });
}

#[test]
fn networks_to_probe_come_from_the_highest_layer() {
    let file = format!("{FILE}\n[health_checks]\nallow = [\"10.0.0.0/8\", \"::1\"]");
    let allowed = |flags, variables: &[_]| {
        loaded(flags, variables, &file).unwrap().health_checks.allow.to_string()
    };
    assert_eq!(loaded("", &[], FILE).unwrap().health_checks, HealthChecks::default());
    assert_eq!(allowed("", &[]), "10.0.0.0/8,::1/128");
    let variable = ("QUORATE_HEALTH_CHECKS_ALLOW", "10.1.0.0/16,10.2.0.0/16");
    assert_eq!(allowed("", &[variable]), "10.1.0.0/16,10.2.0.0/16");
    assert_eq!(allowed("--health-checks-allow 10.3.0.0/16", &[variable]), "10.3.0.0/16");
}

#[test]
fn origins_come_from_the_highest_layer() {
    let file = format!("http_cors_origins = [\"https://a.example\"]\n{FILE}");
    let origins = |flags, variables: &[_], file: &str| {
        loaded(flags, variables, file).unwrap().http_cors_origins.join(" ")
    };
    assert_eq!(origins("", &[], FILE), "");
    assert_eq!(origins("", &[], &file), "https://a.example");
    let variable = ("QUORATE_HTTP_CORS_ORIGINS", "https://b.example, http://c:3000");
    assert_eq!(origins("", &[variable], &file), "https://b.example http://c:3000");
    let flag = "--http-cors-origins https://d.example";
    assert_eq!(origins(flag, &[variable], &file), "https://d.example");
    let bad = loaded("--http-cors-origins https://d.example/", &[], FILE).unwrap().validate();
    assert_eq!(bad.unwrap_err().field, "http_cors_origins");
}

#[test]
fn files_that_nodes_show_each_other_come_from_any_layer() {
    let peers = |flags: &str, variables: &[_], file: &str| {
        let given = "--tls-cert c --tls-key k --tls-ca a ".to_owned() + flags;
        let tls = loaded(&given, variables, &format!("{FILE}\n{file}")).unwrap().tls.unwrap();
        [tls.peer_ca, tls.peer_cert, tls.peer_key]
            .map(|path| path.map_or("-".to_owned(), |path| path.display().to_string()))
    };
    assert_eq!(peers("", &[], ""), ["-", "-", "-"]);
    let file = "[tls]\ncert = 'c'\nkey = 'k'\nca = 'a'\npeer_ca = 'fa'\npeer_cert = 'fc'";
    let variables = [("QUORATE_PEER_TLS_CERT", "vc"), ("QUORATE_PEER_TLS_KEY", "vk")];
    assert_eq!(peers("--peer-tls-key k2", &variables, file), ["fa", "vc", "k2"]);
}

#[test]
fn an_audit_log_that_is_required_is_so_from_any_layer() {
    let audit = |flags: &str, variables: &[_], file: &str| {
        let audit = loaded(flags, variables, &format!("{FILE}\n{file}")).unwrap().audit;
        audit.map(|audit| (audit.file.display().to_string(), audit.required))
    };
    let some = |file: &str, required| Some((file.to_owned(), required));
    assert_eq!(audit("", &[], ""), None);
    assert_eq!(audit("", &[], "[audit]\nfile = 'f'"), some("f", false));
    assert_eq!(audit("", &[], "[audit]\nfile = 'f'\nrequired = true"), some("f", true));
    assert_eq!(audit("--audit-required", &[], "[audit]\nfile = 'f'"), some("f", true));
    let variables = [("QUORATE_AUDIT", "v"), ("QUORATE_AUDIT_REQUIRED", "true")];
    assert_eq!(audit("", &variables, ""), some("v", true));
}

/// Each message names the setting and its value.
#[test]
fn bad_settings_are_named() {
    let variable = |name, value| loaded("", &[(name, value)], FILE);
    for (result, named) in [
        (loaded("", &[], "id = \"x\""), ["q.toml", "id"]),
        (loaded("", &[], "idd = 1"), ["q.toml", "idd"]),
        (loaded("", &[], "[tunables]\nheart = 1"), ["q.toml", "heart"]),
        (loaded("", &[], "[bootstrap]\none = \"a:1\""), ["bootstrap", "one"]),
        (loaded("", &[], "id = 1"), ["data_dir", "--data-dir"]),
        (loaded("--bootstrap 1", &[], FILE), ["--bootstrap", "\"1\""]),
        (loaded("--observer", &[], FILE), ["observer", "join"]),
        (loaded("--audit-required", &[], FILE), ["audit_required", "--audit"]),
        (variable("QUORATE_AUDIT_REQUIRED", "maybe"), ["QUORATE_AUDIT_REQUIRED", "maybe"]),
        (loaded("", &[], "bootstrap = {}\njoin = [\"a:1\"]"), ["bootstrap", "join"]),
        (variable("QUORATE_ID", "one"), ["QUORATE_ID", "one"]),
        (variable("QUORATE_LISTEN", "nowhere"), ["QUORATE_LISTEN", "nowhere"]),
        (variable("QUORATE_JOIN", "nowhere"), ["QUORATE_JOIN", "nowhere"]),
        (variable("QUORATE_OBSERVER", "maybe"), ["QUORATE_OBSERVER", "maybe"]),
        (
            variable("QUORATE_HEALTH_CHECKS_ALLOW", "10.0.0.0/33"),
            ["QUORATE_HEALTH_CHECKS_ALLOW", "10.0.0.0/33"],
        ),
        (loaded("", &[], "[health_checks]\nallow = [\"web\"]"), ["allow", "\"web\""]),
        (loaded("", &[], "[health_checks]\ndeny = []"), ["q.toml", "deny"]),
    ] {
        let error = result.expect_err(named[1]);
        assert!(named.iter().all(|name| error.contains(name)), "{named:?}: {error}");
    }
}

/// The lines of a help that begin with this, each with what goes on behind a `\`.
fn examples(command: &clap::Command, begin: &str) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let help = help.replace("\\\n", " ");
    let own = help.lines().map(str::trim).filter(|line| line.starts_with(begin));
    let own: Vec<_> = own.map(ToOwned::to_owned).collect();
    let below = command.get_subcommands().flat_map(|below| examples(below, begin));
    own.into_iter().chain(below).collect()
}

/// As they are typed, a node of them would start.
#[test]
fn each_example_of_a_node_is_one_that_can_be() {
    let lines = examples(&Cli::command(), "quorate serve ");
    let (mut with_flags, mut of_file) = (0, 0);
    for line in &lines {
        let cli = Cli::try_parse_from(line.split_whitespace());
        let cli = cli.unwrap_or_else(|error| panic!("{line}: {error}"));
        let Command::Serve(args) = cli.command else { panic!("{line}: no serve") };
        if args.config.is_some() {
            of_file += 1;
            continue;
        }
        let config = load(&args, |_| Ok(None), |_| unreachable!("it has no file"));
        let config = config.unwrap_or_else(|bad| panic!("{line}: {}", bad.0));
        config.validate().unwrap_or_else(|bad| panic!("{line}: {bad}"));
        with_flags += 1;
    }
    assert!(with_flags >= 4 && of_file >= 1, "of serve and of restore: {lines:#?}");
}
