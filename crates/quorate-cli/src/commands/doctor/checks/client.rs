//! What is seen from here: the endpoints of the namespace, and the files of this client. With them
//! those that nodes say are open on their machines.

use super::super::facts::Facts;
use super::super::findings::{Found, RIGHTS, Severity};
use super::answering;
use crate::commands::cluster::verdict::id;

/// Permissions of a group or of others: to read, to write.
const READ: u32 = 0o044;
const WRITE: u32 = 0o022;

/// DNS answers and xDS endpoints hold addresses, not names. Nodes serve no xDS yet.
pub(super) fn endpoints(facts: &Facts, found: &mut Found) -> Result<(), String> {
    let endpoints = match &facts.endpoints {
        Some(endpoints) => endpoints.as_ref().map_err(Clone::clone)?,
        None => return Err("nobody has fetched them".to_owned()),
    };
    if endpoints.by_name > 0 {
        let of = match endpoints.looked_at == endpoints.instances {
            true => format!("{} instances", endpoints.instances),
            false => {
                format!("the first {} of {} instances", endpoints.looked_at, endpoints.instances)
            }
        };
        found.of_all(
            Severity::Note,
            format!(
                "{} endpoints of {of} in the namespace {} have a name for a host ({}): callers have to resolve it themselves, and DNS or xDS could not serve them",
                endpoints.by_name,
                endpoints.namespace,
                endpoints.examples.join(", ")
            ),
            "register them with addresses, where callers do not resolve names",
        );
    }
    Ok(())
}

pub(super) fn files(facts: &Facts, found: &mut Found) -> Result<(), String> {
    for file in &facts.files {
        let path = file.path.display();
        if file.is_secret && file.mode & READ != 0 {
            found.of_all(
                Severity::Warning,
                format!(
                    "{path} holds a secret, and other users of this machine can read it ({:03o})",
                    file.mode
                ),
                format!(
                    "`chmod 600 {path}`, and replace the secret if others have used the machine"
                ),
            );
        }
        if file.mode & WRITE != 0 {
            found.of_all(
                Severity::Warning,
                format!("{path} can be written by other users of this machine ({:03o})", file.mode),
                format!("`chmod go-w {path}`"),
            );
        }
    }
    if facts.view.status.partial {
        return Err(format!("those of the nodes: {RIGHTS}"));
    }
    files_of_nodes(facts, found);
    Ok(())
}

fn files_of_nodes(facts: &Facts, found: &mut Found) {
    for (member, condition) in answering(facts) {
        let node = id(member);
        for (setting, path) in &condition.open_files {
            let (may, next) = match setting.as_str() {
                "access" => {
                    ("change what grants rights", format!("`chmod o-w {path}` on its machine"))
                }
                "data_dir" => {
                    let next = format!("`chmod 700 {path}` on its machine");
                    ("read or change what is registered", next)
                }
                _ => (
                    "read its private key",
                    format!(
                        "`chmod 600 {path}` on its machine, by the user that the node runs as (where it is another's, `chown` it first); make a new key if others have used the machine"
                    ),
                ),
            };
            let meaning =
                format!("other users of the machine of node {node} can {may}: {setting}, {path}");
            found.of(node, Severity::Warning, meaning, next);
        }
    }
}
