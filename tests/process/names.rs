//! Peers that are known by names: each dial resolves a name anew, so that a machine can come back
//! under another address and nobody has to be told.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_proto::v1::StatusRequest;
use quorate_proto::v1::admin_client::AdminClient;
use rustix::process::Signal;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::ports::free_port;
use crate::process::{Process, THIS_RELEASE, text_of};
use crate::skipped::skipped;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// A shell that has a file of its own for /etc/hosts, and becomes the rest of its arguments.
const WITH_HOSTS: [&str; 4] =
    ["-m", "/bin/sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#];

/// Three nodes, of which each knows the others by name alone.
struct Named {
    dir: tempfile::TempDir,
    ports: Vec<(u16, u16)>,
}

impl Named {
    fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    fn log(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("log-{id}"))
    }

    /// Written in place: the nodes see the same file.
    fn lead_to(&self, addresses: [&str; 3]) {
        let lines = (1..).zip(addresses).map(|(id, address)| format!("{address} node-{id}.test\n"));
        std::fs::write(self.hosts(), lines.collect::<String>()).unwrap();
    }

    fn start(&self, id: usize, peer_address: &str) -> Process {
        let name = |(id, (_, peers)): (usize, &(u16, u16))| format!("{id}=node-{id}.test:{peers}");
        let list: Vec<String> = (1..).zip(&self.ports).map(name).collect();
        let (clients, peers) = self.ports[id - 1];
        let data = self.dir.path().join(format!("data-{id}"));
        let line = format!(
            "serve --id {id} --data-dir {} --listen 127.0.0.1:{clients} --peer-listen {peer_address}:{peers} \
             --peer-advertise node-{id}.test:{peers} --bootstrap {}",
            data.display(),
            list.join(",")
        );
        let hosts = self.hosts().display().to_string();
        let before =
            WITH_HOSTS.map(str::to_owned).into_iter().chain([hosts, THIS_RELEASE.to_owned()]);
        let args: Vec<String> = before.chain(line.split(' ').map(str::to_owned)).collect();
        Process::start_foreign(Path::new("/usr/bin/unshare"), &args, &self.log(id))
    }

    /// Each node reaches each other one: that others found it is not enough.
    async fn is_whole(&self, what: &str) {
        for (clients, _) in &self.ports {
            let place = format!("http://127.0.0.1:{clients}");
            let channel = Endpoint::from_shared(place.clone()).unwrap().connect_lazy();
            eventually(&format!("{what}, says {place}"), SOON, async || {
                let mut request = Request::new(StatusRequest { local_only: false });
                request.set_timeout(ANSWERS_WITHIN);
                let status = AdminClient::new(channel.clone()).status(request).await;
                let members = status.map_err(|status| status.to_string())?.into_inner().members;
                let reached = members.iter().filter(|member| member.reachable).count();
                if reached == 3 { Ok(()) } else { Err(format!("{members:#?}")) }
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_elsewhere_now_is_followed() {
    let ports = (0..3).map(|_| (free_port(), free_port())).collect();
    let named = Named { dir: tempfile::tempdir().unwrap(), ports };
    named.lead_to(["127.0.0.1"; 3]);
    let hosts = named.hosts();
    let probe = Command::new("/usr/bin/unshare").args(WITH_HOSTS).arg(&hosts).arg("true").output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        other => return skipped("an /etc/hosts of its own", format!("{other:?}")),
    }
    let mut nodes: Vec<Process> = (1..=3).map(|id| named.start(id, "127.0.0.1")).collect();
    named.is_whole("all are there").await;

    // Two of three, so that there is no quorum until one of them is found.
    for id in [2, 3] {
        nodes[id - 1].signal(Signal::TERM);
        assert_eq!(nodes[id - 1].exit_code(SOON).await, 0, "{}", text_of(&named.log(id)));
    }
    named.lead_to(["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    for (id, address) in [(2, "127.0.0.2"), (3, "127.0.0.3")] {
        nodes[id - 1] = named.start(id, address);
    }
    named.is_whole("they are found where their names lead now").await;
}
