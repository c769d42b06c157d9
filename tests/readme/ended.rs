//! "Certificates that have ended": those of all nodes and of the operator end at once, while
//! somebody keeps an instance and somebody watches it.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use quorate_client::Tls;

use super::living::{HAUNT, Living};
use super::{END, ENDED, commands, goes_on, lives, nodes, says, until_reached, walk};
use crate::blocks::blocks;
use crate::ca_name::ca_name;
use crate::ports::Ports;
use crate::process::Running;
use crate::text_of;

const CLUSTER: &str = "prod";
/// Long enough for a cluster to be founded on a busy machine.
const LASTS: Duration = Duration::from_secs(60);

fn named(common_name: &str) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, CLUSTER);
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params
}

/// Replaces a certificate of `quorate certs` by one that ends soon: those last a day at least.
fn shorten(certs: &Path, file: &str, spiffe: &str, until: Duration) {
    let read = |name: &str| std::fs::read_to_string(certs.join(name)).unwrap();
    // What is issued names its issuer by its name and its key.
    let issuer =
        Issuer::new(named(&ca_name(&read("ca.crt"))), KeyPair::from_pem(&read("ca.key")).unwrap());
    let key = KeyPair::generate().unwrap();
    let mut params = named(file);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(1970, 1, 1) + until;
    params.subject_alt_names = vec![
        SanType::URI(format!("spiffe://{CLUSTER}/{spiffe}").try_into().unwrap()),
        SanType::IpAddress([127, 0, 0, 1].into()),
        SanType::DnsName("localhost".try_into().unwrap()),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(certs.join(format!("{file}.crt")), certificate.pem()).unwrap();
    std::fs::write(certs.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

/// A script that stops where `reached FILE` stands, until that file is there.
pub(super) const MEET: &str =
    "reached() { : > $1.reached; until [ -e $1 ]; do sleep 0.05; done; }\n";

/// Who lives through it: its lease is short.
pub(super) const LIVING: &str = "\
quorate register orders-live l-1 --endpoint http=http://h:1 --ttl 15s --context orders > living.out 2>&1 &
quorate watch orders-live > watch.out 2> watch.err &
until grep -q l-1 watch.out; do sleep 0.1; done
";
/// It is there, and what the watch shows is not old: another one comes.
pub(super) const LIVED: &str = "\
quorate register orders-live l-2 --endpoint http=http://h:2 --ttl 1h --once --context orders
until grep -q l-2 watch.out; do sleep 0.1; done
quorate fetch orders-live --exit-code > lived.out
grep -w l-1 lived.out
cat watch.out
";
/// Comes where the script stops at `living`, and stays until it stops at `lived`; so does somebody
/// who uses the client crate, as the operator.
pub(super) fn script(before: &str, after: &str) -> String {
    format!("{LIVING}reached living\n{HAUNT}{before}{after}{LIVED}reached lived\n")
}

/// That somebody.
pub(super) fn somebody_lives(walking: &mut Running, directory: &Path, ports: Ports) {
    lives(walking, directory, ["living", "lived"], || {
        let [cert, key] = ["crt", "key"].map(|end| format!("certs/client-operator.{end}"));
        let identity = (directory.join(cert), directory.join(key));
        let tls = Tls::new().ca_file(directory.join("certs/ca.crt"));
        let tls = tls.identity_files(identity.0, identity.1);
        Living::begin(nodes(ports, [7_001, 7_002, 7_003]), Some(tls))
    });
}

/// The commands of docs/security.md that make a cluster, in one section: its certificates, and all
/// else but those that replace a node.
pub(super) fn secured() -> (String, String) {
    let security = text_of("docs/security.md");
    let mut shell = blocks(&security);
    shell.retain(|block| block.language == "sh");
    let section = shell.first().expect("there are commands").section;
    let shell = shell.into_iter().filter(|block| block.section == section);
    let mut shell = shell.map(|block| block.text).filter(|text| !text.contains("node 4"));
    let certs = shell.next().expect("its first commands make the certificates");
    (certs, shell.collect())
}

/// With these ports in the loop over the nodes of docs/security.md.
pub(super) fn with_ports(script: &str, ports: Ports) -> String {
    let tens = |port: u16| format!("{}$id", ports.of(port) / 10);
    script.replace("700$id", &tens(7_000)).replace("710$id", &tens(7_100))
}

/// The watch that was shown last saw nothing go.
pub(super) fn is_unbroken(said: &str) {
    let watched = &said[said.rfind("to begin with").expect("the watch is shown")..];
    assert!(!watched.lines().any(|line| line.starts_with('-')), "it expired: {watched}");
}

/// The alert would say so.
const ENDS_SOON: &str = "\
quorate certs node 2 --valid-for 5d --force
kill -HUP %2
until quorate cluster status | grep -q 'certificate of node 2 ends in 4 d'; do sleep 0.5; done
";
const LOOK: &str = "quorate cluster status --exit-code || echo \"exit code $?\"\n";

#[test]
fn with_all_certificates_ended_new_ones_are_enough() {
    let (certs, rest) = secured();
    let ended = "for id in 1 2 3; do until grep -q 'has ended' node-$id.log; do sleep 0.2; done; done\n\
         while quorate cluster status --timeout 3s > /dev/null 2>&1; do sleep 0.2; done\necho ended\nsleep 16\n";
    let runbook = commands(|heading| heading == ENDED);
    let script = script(ended, &runbook);
    let script = format!("{MEET}{certs}reached short\n{rest}{script}{ENDS_SOON}");
    let ends = commands(|heading| heading == END);
    assert!(ends.starts_with(LOOK), "its first command: {ends}");
    let script = script + &ends;
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut walking = walk(&with_ports(&script, ports), ports, directory.path());
    until_reached(&mut walking, directory.path(), "short");
    let until = UNIX_EPOCH.elapsed().unwrap() + LASTS;
    let dir = directory.path().join("certs");
    for id in 1..=3 {
        shorten(&dir, &format!("node-{id}"), &format!("node/{id}"), until);
    }
    shorten(&dir, "client-operator", "client/operator", until);
    goes_on(directory.path(), "short");
    somebody_lives(&mut walking, directory.path(), ports);
    let said = walking.succeed();
    let soon = "DEGRADED: the certificate of node 2 ends in 4 d";
    says(&said, &["spiffe://prod/node/3", soon, "exit code 1", "OK: node"]);
    let after = &said[said.find("\nended").expect("they ended")..];
    assert!(after.contains("orders-1"), "what was registered before is there: {said}");
    is_unbroken(&said);
    ports.are_free_again(&said);
}
