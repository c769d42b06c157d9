//! docs/dns.md: its commands are run as they stand there, beside the two other nodes of
//! `cluster-examples/three-nodes`. Where there is no dig and none can be had, this is left out, and
//! said.

use std::path::Path;
use std::process::Command;

use crate::blocks::blocks;
use crate::built::installed;
use crate::operations::{says, script};
use crate::ports::Ports;
use crate::process::Running;
use crate::skipped::skipped;
use crate::story::copy_three_nodes;
use crate::text_of;

const PAGE: &str = "docs/dns.md";
/// The port that dig is told behind `-p`.
const DNS: u16 = 7_301;

#[test]
fn the_commands_of_the_page_on_dns_answer_as_it_says() {
    let home = match installed(".ci/install-debian", &["bind9-dnsutils"]) {
        Ok(home) => home,
        Err(reason) => return skipped(PAGE, reason),
    };
    let blocks = blocks(&text_of(PAGE));
    let [block] = &blocks[..] else { panic!("{PAGE}: {blocks:?}") };
    let lines: Vec<&str> = block.text.lines().collect();
    let [serve, addresses, services] = lines[..] else { panic!("{PAGE}: {lines:?}") };
    let libraries = format!("{home}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let commands = format!(
        "dig() {{ env PATH=\"{home}/usr/bin:$PATH\" LD_LIBRARY_PATH={libraries} dig \"$@\"; }}\n\
         {serve} > 1.log 2>&1 &\n\
         quorate serve --config node-2.toml > 2.log 2>&1 &\n\
         quorate serve --config node-3.toml > 3.log 2>&1 &\n\
         quorate cluster status --wait --timeout 60s\n\
         quorate register orders orders-1 --namespace prod --endpoint http=http://10.0.0.7:8080 --ttl 1h --once\n\
         until {addresses} | grep 10.0.0.7; do sleep 0.2; done\n\
         {services}\n"
    );
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let commands = commands.replace(&format!("-p {DNS} "), &format!("-p {} ", ports.of(DNS)));
    copy_three_nodes(directory.path(), ports);
    let place = directory.path().join("cluster-examples/three-nodes");
    std::fs::write(place.join("commands.sh"), script(&commands, ports)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg("commands.sh").current_dir(place).env("PATH", path);
    bash.env("QUORATE_NODES", ports.nodes()).env("QUORATE_CONTEXT", "");
    let said = Running::start(bash, directory.path(), "dns").succeed();
    let found: String = said.split_whitespace().flat_map(|word| [word, " "]).collect();
    let promises = [
        "orders.prod.svc.quorate. 5 IN A 10.0.0.7",
        "_http._tcp.orders.prod.svc.quorate. 5 IN SRV 0 100 8080 orders-1.orders.prod.svc.quorate.",
        "orders-1.orders.prod.svc.quorate. 5 IN A 10.0.0.7",
    ];
    says(&found, &promises);
    ports.are_free_again(&said);
}
