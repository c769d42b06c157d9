//! File descriptors: as many as the process may have, and some of them kept for the log, snapshots
//! and peers.

use quorate_node::Tunables;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept from clients: files of the log and of snapshots, connections of peers, probes (256 at a
/// time). Where there are few descriptors, half of them.
const RESERVE: usize = 512;

/// Raises the soft limit to the hard one, and lets the node of this process take no more
/// connections than fit; `has_http`: it listens for HTTP, too.
pub(crate) fn share(tunables: &mut Tunables, has_http: bool) {
    bound(tunables, has_http, raise());
    tracing::info!(
        connections_max = tunables.connections_max,
        connections_per_address_max = tunables.connections_per_address_max,
        peer_connections_max = tunables.peer_connections_max,
        http_connections_max = has_http.then_some(tunables.http_connections_max),
        "connections that a node takes"
    );
}

/// The limit then.
fn raise() -> usize {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of file descriptors");
            before.current
        }
    };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

fn bound(tunables: &mut Tunables, has_http: bool, descriptors: usize) {
    // No more than a quarter: a node is there for the clients first.
    let for_http = if has_http { tunables.http_connections_max.min(descriptors / 4) } else { 0 };
    let reserve = (RESERVE + for_http).min(descriptors / 2);
    if has_http {
        let all_fit = reserve == RESERVE + for_http;
        tunables.http_connections_max = if all_fit { for_http } else { for_http.min(reserve / 4) };
        tunables.http_connections_max = tunables.http_connections_max.max(4);
    }
    let for_clients = (descriptors - reserve).max(1);
    if tunables.connections_max > for_clients {
        tunables.connections_max = for_clients;
        let per_address = &mut tunables.connections_per_address_max;
        *per_address = (*per_address).min((for_clients / 2).max(1));
    }
    tunables.peer_connections_max = tunables.peer_connections_max.min((reserve / 2).max(8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_reserve_leaves() {
        for (descriptors, has_http, expected) in [
            (1_000_000, true, [10_000, 5_000, 256, 2_560]),
            (4_096, false, [3_584, 1_792, 256, 2_560]),
            (4_096, true, [2_560, 1_280, 256, 1_024]),
            (1_024, true, [512, 256, 256, 128]),
            (256, false, [128, 64, 64, 2_560]),
            (256, true, [128, 64, 64, 32]),
            (20, true, [10, 5, 8, 4]),
            (0, true, [1, 1, 8, 4]),
        ] {
            let mut bounded = Tunables::default();
            bound(&mut bounded, has_http, descriptors);
            let found = [
                bounded.connections_max,
                bounded.connections_per_address_max,
                bounded.peer_connections_max,
                bounded.http_connections_max,
            ];
            assert_eq!(found, expected, "{descriptors}, HTTP: {has_http}");
        }
    }
}
