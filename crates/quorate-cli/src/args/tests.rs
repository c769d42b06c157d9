//! The command line as scripts use it, and what is refused.

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
}

#[test]
fn the_definition_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

/// The same, of the cluster's level.
#[test]
fn every_documented_line_of_an_upgrade_parses() {
    for line in ["status -o json", "finalize", "hold --nodes a:1"] {
        let line = format!("quorate cluster upgrade {line}");
        parse(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

/// The interface that scripts rely on.
#[test]
fn every_documented_line_parses() {
    for line in [
        "quorate dev",
        "quorate dev --secure",
        "quorate dev --nodes 5 --data-dir d --listen 127.0.0.1:8001",
        "quorate serve --id 1 --data-dir d --listen 127.0.0.1:7001 --peer-listen 127.0.0.1:7101 --bootstrap \
         1=127.0.0.1:7101,2=127.0.0.1:7102,3=127.0.0.1:7103",
        "quorate serve --id 4 --data-dir d --join 127.0.0.1:7001 --observer",
        "quorate serve --config quorate.toml --log-format json",
        "quorate register s i --endpoint http=http://10.0.0.1:8080 --ttl 10s --zone z --meta k=v --once",
        "quorate register s i --endpoint a=http://h:1 --endpoint b=http://h:2 --weight 1 --status starting \
         --version-tag 1.2 --requires a --requires b --meta k=v --meta l=w",
        "quorate register s i --endpoint a=http://h:1 --tag canary --tag gpu",
        "quorate run --service s --endpoint a=http://h:1 --tag canary -- ./server",
        "quorate register s i --endpoint a=http://h:1 --check http=/healthz,every=5s --check tcp",
        "quorate run --service s --endpoint a=http://h:1 --check grpc=a.B -- ./server",
        "quorate dev --health-checks-allow 127.0.0.0/8",
        "quorate serve --config q.toml --health-checks-allow 10.0.0.0/8,fd00::/8",
        "quorate deregister s i --nodes a:1,b:1 --namespace n -o json",
        "quorate update s i --weight 0",
        "quorate fetch s --consistency local",
        "quorate fetch s --consistency linearizable --status up --min-revision 3",
        "quorate fetch s --tag canary --tag gpu",
        "quorate watch s -o json",
        "quorate watch --prefix p --tag canary",
        "quorate watch --prefix p",
        "quorate services",
        "quorate dependents s",
        "quorate cluster status",
        "quorate cluster status --exit-code -o json",
        "quorate cluster add 4 127.0.0.1:7104",
        "quorate cluster remove 4",
        "quorate cluster replace 3 4 127.0.0.1:7104",
        "quorate cluster transfer-leader",
        "quorate cluster transfer-leader 2",
        "quorate cluster snapshot",
        "quorate cluster backup file",
        "quorate cluster backup file --local",
        "quorate doctor",
        "quorate doctor -o json --nodes a:1,b:1",
        "quorate debug bundle f.tar",
        "quorate debug bundle f.tar --http a:1,2 --log l --log m --config c --data-dir d",
        "quorate backup inspect file",
        "quorate backup inspect file --instances -o json",
        "quorate restore file --data-dir d --id 1",
        "quorate recover --data-dir d --data-dir e",
        "quorate recover --data-dir d --accept-data-loss -o json",
        "quorate cluster override s i --status out-of-service --weight 0 --reason r",
        "quorate cluster override s i --clear",
        "quorate cluster overrides -o json",
        "quorate certs init",
        "quorate certs init --cluster-name prod --dir d --force",
        "quorate certs node 1",
        "quorate certs node 1 --host a.example --host 10.0.0.1 --valid-for 90d --dir d -o json",
        "quorate certs client orders --valid-for 12h",
        "quorate certs revoke",
        "quorate certs revoke a.crt b.crt --dir d -o json",
        "quorate token new --id ci --role register --namespace default --prefix orders",
        "quorate token new --id root --role admin --not-after 2027-01-01T00:00:00Z --out f",
        "quorate token new --id root --role read --namespace * --valid-for 90d -o json",
        "quorate fetch s --ca c --cert a --key b --token-file t --allow-plaintext-token",
        "quorate --context prod fetch s",
        "quorate fetch s --context prod",
        "quorate run --service s --endpoint a=http://h:{port} --if-deregistered stop -- ./server {port}",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_installers_run_parses() {
    for line in ["quorate completions bash", "quorate completions zsh", "quorate man ."] {
        parse(line).unwrap();
    }
}

#[test]
fn wrong_lines_are_usage_errors_that_name_what_is_wrong() {
    for (line, named) in [
        ("quorate", "Usage"),
        ("quorate dev --nodes 0", "0"),
        ("quorate register s i", "--endpoint"),
        ("quorate register s i --endpoint http://h:1", "http://h:1"),
        ("quorate register s i --endpoint a=http://h:1 --ttl 10", "10"),
        ("quorate register s --endpoint a=http://h:1", "ID"),
        ("quorate register s i --endpoint a=http://h:1 --check ping", "ping"),
        ("quorate dev --health-checks-allow 10.0.0.0/40", "10.0.0.0/40"),
        ("quorate register s i --endpoint a=10.0.0.1:80", "no scheme"),
        ("quorate register s i --endpoint a=http://h:1 --ttl 1ms", "1s to 24h"),
        ("quorate update s i --weight 1000001", "1000000"),
        ("quorate run --service s --endpoint a=http://h:0 -- x", "{port}"),
        ("quorate fetch", "SERVICES"),
        ("quorate fetch s --consistency strong", "strong"),
        ("quorate fetch s --nodes nowhere", "nowhere"),
        ("quorate watch", "SERVICES"),
        ("quorate watch s --prefix p", "--prefix"),
        ("quorate serve --bootstrap 1=a:1 --join a:1", "--join"),
        ("quorate cluster override s i --clear --weight 1", "--clear"),
        ("quorate cluster add four a:1", "four"),
        ("quorate certs node one", "one"),
        ("quorate certs client a --valid-for 90", "90"),
        ("quorate token new --id ci --role register", "--namespace"),
        ("quorate token new --id ci --role root", "root"),
        ("quorate token new --id ci --role admin --not-after soon", "soon"),
        (
            "quorate token new --id c --role admin --valid-for 1d --not-after 2027-01-01T00:00:00Z",
            "--not-after",
        ),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(named), "{line}: {error}");
    }
}

#[test]
fn nodes_have_their_default() {
    let Ok(Command::Fetch(args)) = parse("quorate fetch s") else { panic!("is a fetch") };
    assert_eq!(args.client.nodes(), ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]);
}
