//! `certs`: a CA, and certificates for nodes and clients, as files.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::{CertsCommand, Place};
use crate::authority::{Authority, Issued, Revoked, ca_file};
use crate::commands::rescue::ago;
use crate::failure::Failure;
use crate::output::{self, Format};

pub(crate) fn run(command: &CertsCommand) -> Result<(), Failure> {
    match command {
        CertsCommand::Init { cluster_name, place } => {
            let made = Authority::init(&place.dir, cluster_name, place.force);
            let (_, issued) = made.map_err(Failure::failed)?;
            let text = format!(
                "{} and {}: a CA for cluster {cluster_name}, until {}\n  \
                 next: quorate certs node 1, quorate certs client NAME",
                issued.certificate.display(),
                issued.key.display(),
                issued.not_after,
            );
            tell(place, &issued, &text)
        }
        CertsCommand::Node { id, hosts, lifetime, place } => {
            let authority = Authority::open(&place.dir).map_err(Failure::failed)?;
            let issued = authority.node(&place.dir, *id, hosts, lifetime.valid_for, place.force);
            let issued = issued.map_err(Failure::failed)?;
            let last = if *id < 100 { *id } else { 1 };
            let text = format!(
                "{} and {}: {}, called as {}{}, until {}\n  \
                 next: quorate serve --id {id} --data-dir node-{id} --listen 127.0.0.1:{} --peer-listen 127.0.0.1:{} \
                 --cluster-name {} --tls-ca {} --tls-cert {} --tls-key {}",
                issued.certificate.display(),
                issued.key.display(),
                issued.spiffe,
                issued.hosts.join(", "),
                issued.why,
                issued.not_after,
                7_000 + last,
                7_100 + last,
                authority.cluster_name(),
                ca_file(&place.dir).display(),
                issued.certificate.display(),
                issued.key.display(),
            );
            tell(place, &issued, &text)
        }
        CertsCommand::Client { name, lifetime, place } => {
            let authority = Authority::open(&place.dir).map_err(Failure::failed)?;
            let issued = authority.client(&place.dir, name, lifetime.valid_for, place.force);
            let issued = issued.map_err(Failure::failed)?;
            let text = format!(
                "{} and {}: {}, until {}\n  next: quorate cluster status --ca {} --cert {} --key {}",
                issued.certificate.display(),
                issued.key.display(),
                issued.spiffe,
                issued.not_after,
                ca_file(&place.dir).display(),
                issued.certificate.display(),
                issued.key.display(),
            );
            tell(place, &issued, &text)
        }
        CertsCommand::Revoke { certificates, dir, output } => revoke(certificates, dir, *output),
    }
}

fn revoke(certificates: &[PathBuf], dir: &Path, output: Format) -> Result<(), Failure> {
    let authority = Authority::open(dir).map_err(Failure::failed)?;
    let revoked = authority.revoke(dir, certificates).map_err(Failure::failed)?;
    let Revoked { list, certificates, clock_behind } = &revoked;
    if let Some(behind) = clock_behind {
        output::note(&format!(
            "warning: the clock of this machine is {} behind the list before; this one is numbered after that, since nodes take no older one. Set the clock right",
            ago(*behind),
        ));
    }
    match output {
        Format::Json => output::json(&json!({ "list": list, "certificates": certificates }))?,
        Format::Table => output::line(&format!(
            "{}: {certificates} revoked\n  next: give it to each node, whose --tls-crl names it",
            list.display()
        ))?,
    }
    Ok(())
}

fn tell(place: &Place, issued: &Issued, text: &str) -> Result<(), Failure> {
    match place.output {
        Format::Json => output::json(&json!({
            "ca": ca_file(&place.dir),
            "certificate": issued.certificate,
            "key": issued.key,
            "spiffe": issued.spiffe,
            "hosts": issued.hosts,
            "not_after": issued.not_after,
        }))?,
        Format::Table => output::line(text)?,
    }
    Ok(())
}
