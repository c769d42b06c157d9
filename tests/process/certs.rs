//! `quorate certs` and `quorate token`: what they make is what others take it for, only their owner
//! can read what is secret, and nothing that is there is lost.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::cli::{Ran, quorate};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn certs(dir: &TempDir, line: &str) -> Ran {
    let dir = dir.path().to_str().unwrap();
    let args: Vec<&str> = "certs".split(' ').chain(line.split(' ')).chain(["--dir", dir]).collect();
    quorate(&args).await
}

/// What openssl says, and whether it succeeded; `None` where there is no openssl.
#[allow(clippy::print_stdout, reason = "why less was tested")]
fn openssl(dir: &TempDir, line: &str) -> Option<(bool, String)> {
    match Command::new("openssl").args(line.split(' ')).current_dir(dir.path()).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) => {
            println!("not verified by openssl: {error}");
            None
        }
    }
}

#[tokio::test]
async fn what_is_issued_is_what_others_verify() {
    let dir = tempfile::tempdir().unwrap();
    let init = certs(&dir, "init --cluster-name prod").await.expect(0);
    assert!(
        init.out.contains("ca.crt") && init.out.contains("next: quorate certs node"),
        "{}",
        init.out
    );
    let node = certs(&dir, "node 1 --host a.example --host 10.0.0.1").await.expect(0);
    assert!(
        node.out.contains("spiffe://prod/node/1") && node.out.contains("--tls-cert"),
        "{}",
        node.out
    );
    certs(&dir, "node 2").await.expect(0);
    let client = certs(&dir, "client orders --valid-for 90d -o json").await.expect(0).json();
    assert_eq!(client["spiffe"], "spiffe://prod/client/orders");
    let file = |name: &str| dir.path().join(name);
    for name in ["ca", "node-1", "node-2", "client-orders"] {
        assert_eq!(mode(&file(&format!("{name}.key"))), 0o600, "{name}");
        assert_eq!(mode(&file(&format!("{name}.crt"))), 0o644, "{name}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 8, "and nothing half written");

    let verify = "verify -x509_strict -CAfile ca.crt";
    for (line, good) in [
        (format!("{verify} -purpose sslserver -verify_hostname a.example node-1.crt"), true),
        (format!("{verify} -purpose sslserver -verify_ip 10.0.0.1 node-1.crt"), true),
        (format!("{verify} -purpose sslclient node-1.crt"), true),
        (format!("{verify} -purpose sslserver -verify_hostname b.example node-1.crt"), false),
        (format!("{verify} -purpose sslserver -verify_hostname localhost node-2.crt"), true),
        (format!("{verify} -purpose sslserver -verify_ip ::1 node-2.crt"), true),
        (format!("{verify} -purpose sslclient client-orders.crt"), true),
        (format!("{verify} -purpose sslserver client-orders.crt"), false),
    ] {
        let Some((verified, said)) = openssl(&dir, &line) else { return };
        assert_eq!(verified, good, "{line}: {said}");
    }
    says_what_it_is_for(&dir);

    // Two CAs in one file, as while one takes the place of the other.
    let other = tempfile::tempdir().unwrap();
    certs(&other, "init --cluster-name prod").await.expect(0);
    certs(&other, "node 1").await.expect(0);
    let both = ["ca.crt", "other.crt"];
    std::fs::copy(other.path().join("ca.crt"), file(both[1])).unwrap();
    std::fs::copy(other.path().join("node-1.crt"), file("theirs.crt")).unwrap();
    let bundle = both.map(|name| std::fs::read_to_string(file(name)).unwrap()).concat();
    std::fs::write(file("both.crt"), bundle).unwrap();
    for (bundle, good) in [("both.crt", true), ("ca.crt", false)] {
        let (verified, said) =
            openssl(&dir, &format!("verify -CAfile {bundle} theirs.crt")).unwrap();
        assert_eq!(verified, good, "{bundle}: {said}");
    }
}

/// The texts of the certificates, and when they run out.
fn says_what_it_is_for(dir: &TempDir) {
    let shown = |name: &str| openssl(dir, &format!("x509 -noout -text -in {name}.crt")).unwrap().1;
    let node = shown("node-1");
    for part in [
        "URI:spiffe://prod/node/1, DNS:a.example, IP Address:10.0.0.1",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "NIST CURVE: P-256",
        "O = prod, CN = node-1",
        "Authority Key Identifier",
    ] {
        let has = node.replace('=', " = ").replace("  ", " ").contains(&part.replace("  ", " "));
        assert!(has || node.contains(part), "no \"{part}\" in {node}");
    }
    let client = shown("client-orders");
    assert!(client.contains("URI:spiffe://prod/client/orders"), "{client}");
    assert!(!client.contains("TLS Web Server"), "{client}");
    let ca = shown("ca");
    assert!(ca.contains("CA:TRUE, pathlen:0") && ca.contains("URI:spiffe://prod"), "{ca}");
    let days = |line: &str| openssl(dir, line).unwrap().0;
    assert!(days("x509 -noout -checkend 7000000 -in client-orders.crt"), "90 days");
    assert!(!days("x509 -noout -checkend 8000000 -in client-orders.crt"));
    assert!(days("x509 -noout -checkend 31000000 -in node-1.crt"), "a year");
    assert!(!days("x509 -noout -checkend 32000000 -in node-1.crt"));
    assert!(days("x509 -noout -checkend 315000000 -in ca.crt"), "ten");
}

/// The commands of docs/security.md for who has another tool than `quorate certs`.
#[tokio::test]
async fn a_nodes_certificate_is_made_by_openssl_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let Some((true, _)) = openssl(&dir, "version") else { return };
    let authority = dir.path().join("certs");
    let init = ["certs", "init", "--cluster-name", "prod", "--dir", authority.to_str().unwrap()];
    quorate(&init).await.expect(0);
    let document = include_str!("../../docs/security.md");
    let (_, commands) = document.split_once("```bash\n").expect("the commands");
    let (commands, _) = commands.split_once("```").expect("their end");
    let ran = Command::new("bash").args(["-euc", commands]).current_dir(dir.path()).output();
    let ran = ran.unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let (_, shown) = openssl(&dir, "x509 -noout -text -in node-5.crt").unwrap();
    for part in [
        "URI:spiffe://prod/node/5",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "NIST CURVE: P-256",
    ] {
        assert!(shown.contains(part), "no \"{part}\" in {shown}");
    }
    let (verified, said) =
        openssl(&dir, "verify -x509_strict -CAfile certs/ca.crt node-5.crt").unwrap();
    assert!(verified, "{said}");
}

#[tokio::test]
async fn what_is_revoked_is_on_the_list_with_what_was_before() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["init", "client a", "client b", "client c", "revoke"] {
        certs(&dir, line).await.expect(0);
    }
    let path = |name: &str| dir.path().join(format!("client-{name}.crt")).display().to_string();
    let taken = |name: &str| {
        let line = format!("verify -crl_check -CAfile ca.crt -CRLfile ca.crl client-{name}.crt");
        openssl(&dir, &line)
    };
    let Some((good, said)) = taken("a") else { return };
    assert!(good, "the first list is empty: {said}");
    for (revoked, all) in [("a", 1), ("b", 2), ("a", 2)] {
        let ran = certs(&dir, &format!("revoke {} -o json", path(revoked))).await.expect(0);
        assert_eq!(ran.json()["certificates"], all);
    }
    for (name, good) in [("a", false), ("b", false), ("c", true)] {
        let (verified, said) = taken(name).unwrap();
        assert_eq!(verified, good, "{name}: {said}");
        assert!(good || said.contains("certificate revoked"), "{said}");
    }
    let other = tempfile::tempdir().unwrap();
    certs(&other, "init").await.expect(0);
    let itself =
        certs(&dir, &format!("revoke {}", dir.path().join("ca.crt").display())).await.expect(1);
    itself.says(&["that is the CA itself", "make another CA"]);
    let stranger = format!("revoke {}", path("c"));
    certs(&other, &stranger).await.expect(1).says(&["not issued by this CA"]);
    certs(&other, "revoke /no/such/file").await.expect(1).says(&["/no/such/file: "]);
}

#[tokio::test]
async fn what_is_there_stays_unless_it_is_to_go() {
    let dir = tempfile::tempdir().unwrap();
    certs(&dir, "node 1").await.expect(1).says(&["ca.crt", "quorate certs init"]);
    certs(&dir, "init").await.expect(0);
    certs(&dir, "node 1").await.expect(0);
    let key = dir.path().join("node-1.key");
    let before = std::fs::read(&key).unwrap();
    for line in ["init", "node 1"] {
        certs(&dir, line).await.expect(1).says(&["is there already", "--force"]);
    }
    assert_eq!(std::fs::read(&key).unwrap(), before);
    certs(&dir, "node 1 --force").await.expect(0);
    let hosts = "called as a.example, 10.0.0.1";
    for line in ["node 1 --force --host a.example --host 10.0.0.1", "node 1 --force"] {
        let said = certs(&dir, line).await.expect(0).out;
        assert!(said.contains(hosts), "{said}");
    }
    if let Some((verified, said)) =
        openssl(&dir, "verify -CAfile ca.crt -verify_hostname a.example node-1.crt")
    {
        assert!(verified, "{said}");
    }
    assert_ne!(std::fs::read(&key).unwrap(), before);
    certs(&dir, "client a/b").await.expect(1).says(&["\"a/b\" is no name of a client"]);
    certs(&dir, "node 2 --host 10.0.0.1:7001").await.expect(1).says(&["a port is no part of it"]);
}

#[tokio::test]
async fn a_token_is_shown_once_and_its_entry_does_not_have_it() {
    let line = "token new --id ci --role register --namespace default --prefix orders";
    let args: Vec<&str> = line.split(' ').collect();
    let ran = quorate(&args).await.expect(0);
    let token = ran.out.lines().next().unwrap();
    assert!(token.starts_with("qrt_") && token.len() == 53, "{token}");
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let (_, entry) = ran.out.split_once("\n\n").unwrap();
    assert_eq!(
        entry,
        format!(
            "[[token]]\nid = \"ci\"\ndigest = \"sha256:{hex}\"\nnamespace = \"default\"\n\
             prefix = \"orders\"\nrole = \"register\"\n"
        )
    );
    assert!(!ran.err.contains("qrt_"), "{}", ran.err);

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("ci.token");
    let out = out.to_str().unwrap();
    let with = |more: &[&str]| {
        let args = ["token", "new", "--id", "ci", "--role", "admin", "--out", out];
        args.iter().chain(more).map(ToString::to_string).collect::<Vec<_>>()
    };
    let ran = quorate(&with(&["--not-after", "2027-01-01T00:00:00Z"])).await.expect(0);
    assert!(ran.out.starts_with("[[token]]\n") && !ran.out.contains("qrt_"), "{}", ran.out);
    assert!(ran.out.ends_with("not_after = \"2027-01-01T00:00:00Z\"\nrole = \"admin\"\n"));
    let written = std::fs::read_to_string(out).unwrap();
    assert!(written.starts_with("qrt_") && written.ends_with('\n'));
    assert_eq!(mode(Path::new(out)), 0o600);
    quorate(&with(&[])).await.expect(1).says(&["is there already"]);
    assert_eq!(std::fs::read_to_string(out).unwrap(), written);
    quorate(&with(&["--namespace", "default"])).await.expect(2).says(&["--namespace", "admin"]);
    for (id, namespace, prefix, named) in [
        ("a\"b", "*", "", "--id"),
        (&*"a".repeat(129), "*", "", "--id"),
        ("a", "de fault", "", "--namespace"),
        ("a", "default.", "", "--namespace"),
        ("a", "*", ".orders", "--prefix"),
        ("a", "*", "orders*", "--prefix"),
    ] {
        let args = ["token", "new", "--role", "read", "--id", id, "--namespace", namespace];
        let args = args.into_iter().chain(["--prefix", prefix]).collect::<Vec<_>>();
        quorate(&args).await.expect(2).says(&[named]);
    }
}

#[test]
fn a_token_in_the_environment_is_not_in_any_help() {
    for line in ["fetch --help", "cluster status --help", "--help", "fetch"] {
        let mut quorate = Command::new(env!("CARGO_BIN_EXE_quorate"));
        let said =
            quorate.args(line.split(' ')).env("QUORATE_TOKEN", "canary-5f1c").output().unwrap();
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.contains("Usage") && !said.contains("canary-5f1c"), "{line}: {said}");
    }
}
