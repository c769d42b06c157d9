//! dig, kdig and dnspython ask three nodes, one of which dies. What takes longer, or needs ports of
//! its own (forwarders, proxies, gRPC, the C library), is in tests/dns/run.

use std::process::Command;
use std::time::Duration;

use quorate_client::{InstanceBuilder, Registration, RegistrationHandle};

use crate::built::installed;
use crate::cluster::{Cluster, Settings};
use crate::dns::{SOON, answering_with};
use crate::skipped::skipped;
use crate::wait::eventually;

const NAME: &str = "web.default.svc.quorate";
/// More addresses than 512 bytes hold, and fewer than 1,232 do.
const INSTANCES: usize = 60;

/// Programs of a Debian package, on this machine or unpacked below target/.
struct Tools(String);

impl Tools {
    fn of(packages: &[&str]) -> Result<Self, String> {
        installed(".ci/install-debian", packages).map(Self)
    }

    /// What a program prints.
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let Self(home) = self;
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("env")
            .arg(format!("PATH={home}/usr/bin:{home}/usr/sbin:{path}"))
            .arg(format!("LD_LIBRARY_PATH={home}/usr/lib/{}-linux-gnu", std::env::consts::ARCH))
            .arg(format!("PYTHONPATH={home}/usr/lib/python3/dist-packages"))
            .arg(program)
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if output.status.success() { Ok(said) } else { Err(format!("{program} {args:?}: {said}")) }
    }
}

/// Three nodes, the port of each, and what keeps the instances.
async fn filled() -> (Cluster, Vec<String>, Vec<RegistrationHandle>) {
    let (cluster, dns) = answering_with(&["", "", ""], Settings::default()).await;
    let client = cluster.client().build().unwrap();
    let mut kept = Vec::new();
    for number in 0..INSTANCES {
        let uri = format!("http://10.0.0.{}:8080", number + 1);
        let instance = InstanceBuilder::new("web", format!("i{number}")).endpoint("http", uri);
        let registration = Registration::new(instance).ttl(Duration::from_secs(600));
        kept.push(client.register(registration).await.unwrap());
    }
    let ports = dns.iter().map(|at| at.rsplit_once(':').unwrap().1.to_owned()).collect();
    (cluster, ports, kept)
}

/// Whether what dig or kdig prints has this in its head, and so many records in the answer.
fn says(said: &str, code: &str, answers: usize, flags: &[&str]) -> Result<(), String> {
    let counted = format!("ANSWER: {answers}");
    let mut words = said.split(|c: char| c.is_whitespace() || c == ';');
    let has_flag = |flag: &&str| words.any(|word| word == *flag);
    match said.contains(&format!("status: {code}")) && said.contains(&counted) {
        true if flags.iter().all(has_flag) => Ok(()),
        _ => Err(format!("not {code}, {counted}, {flags:?}: {said}")),
    }
}

fn with_dig(tools: &Tools, program: &str, port: &str) -> Result<(), String> {
    let dig = |args: &str| {
        let all = format!("@127.0.0.1 -p {port} +time=5 +retry=0 {args}");
        tools.run(program, &all.split(' ').collect::<Vec<_>>())
    };
    let whole = dig(&format!("+bufsize=1232 {NAME} A"))?;
    says(&whole, "NOERROR", INSTANCES, &["aa"])?;
    says(&dig(&format!("+noedns +ignore {NAME} A"))?, "NOERROR", 29, &["tc"])?;
    says(&dig(&format!("+noedns {NAME} A"))?, "NOERROR", INSTANCES, &["aa"])?;
    says(&dig(&format!("+tcp +nsid {NAME} SRV"))?, "NOERROR", INSTANCES, &["aa"])?;
    says(&dig(&format!("{NAME} AAAA"))?, "NOERROR", 0, &["SOA"])?;
    says(&dig("nobody.default.svc.quorate A")?, "NXDOMAIN", 0, &["SOA"])?;
    says(&dig("example.org A")?, "REFUSED", 0, &[])
}

const PYTHON: &str = "
import sys, dns.resolver
port, name, instances = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.port = ['127.0.0.9', '127.0.0.1'], port
assert len(resolver.resolve(name, 'A')) == instances, 'the first one is nobody, and asked for 2 s'
resolver.nameservers = ['127.0.0.1']
answers = list(resolver.resolve('_http._tcp.' + name, 'SRV', tcp=True))
assert len(answers) == instances
assert all(it.port == 8080 and str(it.target).endswith('.' + name + '.') for it in answers), answers
for kind, other, error in [('AAAA', name, dns.resolver.NoAnswer), ('A', 'no.' + name, dns.resolver.NXDOMAIN)]:
    try:
        sys.exit(f'{other}: {resolver.resolve(other, kind)}')
    except error:
        pass
";

#[tokio::test(flavor = "multi_thread")]
async fn foreign_programs_resolve_names_of_nodes_that_live() {
    let (mut cluster, ports, _kept) = filled().await;
    let asked = |package: &str, program: &'static str, port: &str| match Tools::of(&[package]) {
        Ok(tools) if program == "python3" => {
            tools.run(program, &["-c", PYTHON, port, NAME, &INSTANCES.to_string()]).map(drop)
        }
        Ok(tools) => with_dig(&tools, program, port),
        Err(reason) => {
            skipped(program, reason);
            Ok(())
        }
    };
    let programs =
        [("bind9-dnsutils", "dig"), ("knot-dnsutils", "kdig"), ("python3-dnspython", "python3")];
    for (package, program) in programs {
        eventually(program, SOON, async || asked(package, program, &ports[0])).await;
    }
    cluster.nodes[0].kill();
    for (package, program) in programs {
        eventually("the others", SOON, async || asked(package, program, &ports[2])).await;
    }
}
