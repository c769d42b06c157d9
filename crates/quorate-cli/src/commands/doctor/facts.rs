//! What is asked and looked at before anything is judged: the nodes, the instances of the
//! namespace, and the files that this client uses.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use quorate_client::{Client, Consistency, FetchOptions, Selection};

use crate::args::ClientArgs;
use crate::authority;
use crate::commands::view::{View, look};
use crate::contexts;
use crate::failure::Failure;
use crate::parse;

/// No more instances are looked through: some megabytes.
const INSTANCES_MAX: u64 = 10_000;
/// Services in one fetch.
const SERVICES_MAX: usize = 100;
/// So many endpoints are named.
const NAMED_MAX: usize = 3;

/// All that a diagnosis is made of.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(in crate::commands) view: View,
    /// By the clock of this machine, ms since 1970.
    pub(in crate::commands) now_ms: u64,
    pub(crate) files: Vec<LocalFile>,
    /// An error: they could not be fetched.
    pub(crate) endpoints: Option<Result<Endpoints, String>>,
}

/// A file of this client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    pub(crate) path: PathBuf,
    /// Holds a key or a token.
    pub(in crate::commands) is_secret: bool,
    /// Its permissions.
    pub(crate) mode: u32,
}

/// The endpoints of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) namespace: String,
    pub(crate) instances: u64,
    /// Instances that were looked at.
    pub(in crate::commands) looked_at: u64,
    /// Endpoints whose host is a name, no address.
    pub(in crate::commands) by_name: u64,
    /// Some of them.
    pub(in crate::commands) examples: Vec<String>,
}

/// # Errors
/// No node answers, or one refuses.
pub(in crate::commands) async fn gather(
    client: &Client,
    args: &ClientArgs,
) -> Result<Facts, Failure> {
    let view = look(client, args, true).await?;
    let endpoints = endpoints(client, args.namespace()).await.map_err(|error| error.to_string());
    let now_ms = authority::now().as_millis() as u64;
    Ok(Facts { view, now_ms, files: files(args), endpoints: Some(endpoints) })
}

/// The files that hold what nobody else may have, or that say where the cluster is.
fn files(args: &ClientArgs) -> Vec<LocalFile> {
    let secret = [&args.key, &args.token_file].into_iter().flatten();
    let secret = secret.map(|path| (path.clone(), true));
    let all = secret.chain(contexts::file().map(|path| (path, false)));
    let look = |(path, is_secret): (PathBuf, bool)| {
        let mode = mode(&path)?;
        Some(LocalFile { path, is_secret, mode })
    };
    all.filter_map(look).collect()
}

/// `None`: it is not there.
fn mode(path: &Path) -> Option<u32> {
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

async fn endpoints(client: &Client, namespace: &str) -> Result<Endpoints, quorate_client::Error> {
    let services = client.list_services("", Consistency::Local).await?;
    let instances = services.iter().map(|service| u64::from(service.instances)).sum();
    let mut found = Endpoints { namespace: namespace.to_owned(), instances, ..<_>::default() };
    for part in services.chunks(SERVICES_MAX) {
        let size: u64 = part.iter().map(|service| u64::from(service.instances)).sum();
        if found.looked_at + size > INSTANCES_MAX {
            break;
        }
        let names = part.iter().map(|service| service.name.clone());
        let options = FetchOptions::new(Selection::services(names));
        let fetched = client.fetch_with(&options.consistency(Consistency::Local)).await?;
        let all = fetched.services.into_iter().flatten().flat_map(|service| service.instances);
        all.for_each(|instance| {
            found.looked_at += 1;
            for host in instance.endpoints.values().filter_map(|uri| name(uri)) {
                found.by_name += 1;
                if found.examples.len() < NAMED_MAX {
                    let example = format!("{host} of {}/{}", instance.service, instance.id);
                    found.examples.push(example);
                }
            }
        });
    }
    Ok(found)
}

/// The host of a URI, if it is a name and no address.
pub(crate) fn name(uri: &str) -> Option<&str> {
    let (host, _) = parse::authority(uri)?.rsplit_once(':')?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    (!bare.is_empty() && bare.parse::<IpAddr>().is_err()).then_some(bare)
}
