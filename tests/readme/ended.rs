//! "Certificates that have ended": those of all nodes and of the operator end at once, while
//! somebody keeps an instance and somebody watches it.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use super::{ENDED, commands, says, walk};
use crate::blocks::blocks;
use crate::ca_name::ca_name;
use crate::ports::Ports;
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
pub(super) const LIVED: &str = "quorate fetch orders-live\ncat watch.out\n";

/// The commands of docs/security.md that make a cluster: its certificates, and all else.
pub(super) fn secured() -> (String, String) {
    let security = text_of("docs/security.md");
    let shell = blocks(&security).into_iter().filter(|block| block.language == "sh");
    let mut shell = shell.map(|block| block.text);
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

#[test]
fn with_all_certificates_ended_new_ones_are_enough() {
    let (certs, rest) = secured();
    let ended = "for id in 1 2 3; do until grep -q 'has ended' node-$id.log; do sleep 0.2; done; done\n\
         while quorate cluster status --timeout 3s > /dev/null 2>&1; do sleep 0.2; done\necho ended\nsleep 16\n";
    let runbook = commands(|heading| heading == ENDED);
    let script = format!("{MEET}{certs}reached short\n{rest}{LIVING}{ended}{runbook}{LIVED}");
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut walking = walk(&with_ports(&script, ports), ports, directory.path());
    while !directory.path().join("short.reached").exists() {
        walking.is_running();
    }
    let until = UNIX_EPOCH.elapsed().unwrap() + LASTS;
    let dir = directory.path().join("certs");
    for id in 1..=3 {
        shorten(&dir, &format!("node-{id}"), &format!("node/{id}"), until);
    }
    shorten(&dir, "client-operator", "client/operator", until);
    std::fs::write(directory.path().join("short"), "").unwrap();
    walking.wait_for("ended");
    let said = walking.succeed();
    says(&said, &["spiffe://prod/node/3", "l-1"]);
    let after = &said[said.rfind("ended").unwrap()..];
    assert!(after.contains("orders-1"), "what was registered before is there: {said}");
    is_unbroken(&said);
    ports.are_free_again(&said);
}
