//! The commands, a file each.

pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod debug;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod fetch;
pub(crate) mod recover;
pub(crate) mod reference;
pub(crate) mod register;
pub(crate) mod rescue;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod tokens;
pub(crate) mod view;
pub(crate) mod watch;

use quorate_client::Instance;

/// "name=uri", each.
pub(crate) fn endpoints(instance: &Instance) -> Vec<String> {
    instance.endpoints.iter().map(|(name, uri)| format!("{name}={uri}")).collect()
}
