//! File descriptors: as many as the process may have, and some of them kept for the log, snapshots
//! and peers.

use quorate_node::Tunables;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept from clients: files of the log and of snapshots, connections of peers, probes (256 at a
/// time). Where there are few descriptors, half of them.
const RESERVE: usize = 512;

/// What a node listens for beside clients and peers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listens {
    pub(crate) http: bool,
    pub(crate) dns: bool,
}

/// Raises the soft limit to the hard one, and lets the node of this process take no more
/// connections than fit.
pub(crate) fn share(tunables: &mut Tunables, listens: Listens) {
    bound(tunables, listens, raise());
    tracing::info!(
        connections_max = tunables.connections_max,
        connections_per_address_max = tunables.connections_per_address_max,
        peer_connections_max = tunables.peer_connections_max,
        http_connections_max = listens.http.then_some(tunables.http_connections_max),
        dns_connections_max = listens.dns.then_some(tunables.dns_connections_max),
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

fn bound(tunables: &mut Tunables, listens: Listens, descriptors: usize) {
    // No more than a quarter, and half of that: a node is there for the clients first.
    let for_http =
        if listens.http { tunables.http_connections_max.min(descriptors / 4) } else { 0 };
    let for_dns = if listens.dns { tunables.dns_connections_max.min(descriptors / 8) } else { 0 };
    let wanted = RESERVE + for_http + for_dns;
    let reserve = wanted.min(descriptors / 2);
    let fitting = |wanted_there: usize, share: usize| {
        let fits = if reserve == wanted { wanted_there } else { wanted_there.min(share) };
        fits.max(4)
    };
    if listens.http {
        tunables.http_connections_max = fitting(for_http, reserve / 4);
    }
    if listens.dns {
        tunables.dns_connections_max = fitting(for_dns, reserve / 8);
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
        for (descriptors, http, dns, expected) in [
            (1_000_000, true, true, [10_000, 5_000, 256, 2_560, 256]),
            (4_096, false, false, [3_584, 1_792, 256, 2_560, 256]),
            (4_096, true, false, [2_560, 1_280, 256, 1_024, 256]),
            (4_096, false, true, [3_328, 1_664, 256, 2_560, 256]),
            (4_096, true, true, [2_304, 1_152, 256, 1_024, 256]),
            (1_024, true, false, [512, 256, 256, 128, 256]),
            (1_024, true, true, [512, 256, 256, 128, 64]),
            (256, false, false, [128, 64, 64, 2_560, 256]),
            (256, true, true, [128, 64, 64, 32, 16]),
            (20, true, true, [10, 5, 8, 4, 4]),
            (0, true, true, [1, 1, 8, 4, 4]),
        ] {
            let mut bounded = Tunables::default();
            bound(&mut bounded, Listens { http, dns }, descriptors);
            let found = [
                bounded.connections_max,
                bounded.connections_per_address_max,
                bounded.peer_connections_max,
                bounded.http_connections_max,
                bounded.dns_connections_max,
            ];
            assert_eq!(found, expected, "{descriptors}, HTTP: {http}, DNS: {dns}");
        }
    }
}
