//! Who gets a place, and who gives way. A connection that has proved an identity or has made a call
//! of a known caller keeps its place. Silent ones cost nothing to make, so they keep nobody out:
//! where there is no place, the oldest silent one ends for the new one, of the address that has
//! most of them. So a flood from one address ends its own. A network of IPv6 (a /64) counts as one
//! address: whoever has one of it has all.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::net::Connection;
use crate::net::connections::{Admitted, Connections, Line, Live, OfAddress};

/// Refused and ended connections are logged at most this often, all in one line.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Gives the place back.
pub(super) struct Place {
    id: u64,
    of: Arc<Connections>,
}

impl Connections {
    /// `None`: all places are taken by connections that are not silent.
    pub(super) fn admit(
        self: &Arc<Self>,
        stream: Connection,
    ) -> Option<(Admitted, CancellationToken)> {
        let from = stream.from();
        let mut live = self.lock();
        let all_taken = live.lines.len() >= self.limits.in_all;
        let gave_way = self.make_room(&mut live, from);
        let of_address = live.connections_from(from);
        let is_full =
            live.lines.len() >= self.limits.in_all || of_address >= self.limits.per_address;
        if is_full || gave_way.is_some() {
            match (gave_way.is_some(), all_taken) {
                (true, _) => self.refusals.gave_way.inc(),
                (false, true) => self.refusals.in_all.inc(),
                (false, false) => self.refusals.of_address.inc(),
            };
            self.tell(&mut live, from);
        }
        let admitted = (!is_full).then(|| self.place(&mut live, from, stream));
        drop(live);
        if let Some(line) = gave_way {
            line.end();
        }
        admitted
    }

    fn place(
        self: &Arc<Self>,
        live: &mut Live,
        from: Option<IpAddr>,
        stream: Connection,
    ) -> (Admitted, CancellationToken) {
        let id = live.next;
        live.next += 1;
        let line = match from {
            Some(from) => {
                let of_address = live.by_address.entry(network(from)).or_default();
                of_address.connections += 1;
                let line = Arc::new(Line::new(Some(from), of_address.counts.clone()));
                of_address.silent.insert(id, line.clone());
                line
            }
            None => Arc::new(Line::new(None, Arc::default())),
        };
        live.lines.insert(id, line.clone());
        let leave = line.leave.clone();
        (Admitted::new(stream, line, Place { id, of: self.clone() }), leave)
    }

    /// The connection that gave its place for one from this address, if one had to. It is to be
    /// ended without the lock.
    fn make_room(&self, live: &mut Live, from: Option<IpAddr>) -> Option<Arc<Line>> {
        let own = from.and_then(|from| live.by_address.get_mut(&network(from)));
        if let Some(own) = own
            && (own.connections >= self.limits.per_address
                || own.silent_now() >= self.limits.silent_per_address)
        {
            let oldest = own.oldest_silent()?;
            return live.remove(oldest);
        }
        if live.lines.len() < self.limits.in_all {
            return None;
        }
        let silent = live.by_address.values_mut().filter_map(|of| {
            let oldest = of.oldest_silent()?;
            Some((of.silent_now(), Reverse(oldest)))
        });
        let (_, Reverse(oldest)) = silent.max()?;
        live.remove(oldest)
    }

    fn tell(&self, live: &mut Live, from: Option<IpAddr>) {
        let of_address = live.connections_from(from);
        if live.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        live.told = Some(Instant::now());
        tracing::warn!(
            of = self.whose,
            ended = self.refusals.gave_way.get(),
            refused = self.refusals.in_all.get() + self.refusals.of_address.get(),
            last_from = from.map(|from| from.to_string()),
            connections = live.lines.len(),
            of_that_address = of_address,
            max = self.limits.in_all,
            max_per_address = self.limits.per_address,
            max_silent_per_address = self.limits.silent_per_address,
            "too many connections: silent ones end for new ones, or new ones are refused"
        );
    }
}

impl Live {
    fn connections_from(&self, from: Option<IpAddr>) -> usize {
        let of_address = from.and_then(|from| self.by_address.get(&network(from)));
        of_address.map_or(0, |of_address| of_address.connections)
    }

    /// `None`: it had given way.
    fn remove(&mut self, id: u64) -> Option<Arc<Line>> {
        let line = self.lines.remove(&id)?;
        line.speak();
        if let Some(from) = line.from
            && let Some(of_address) = self.by_address.get_mut(&network(from))
        {
            of_address.silent.remove(&id);
            of_address.connections -= 1;
            if of_address.connections == 0 {
                self.by_address.remove(&network(from));
            }
        }
        Some(line)
    }
}

/// An IPv4 address as such, also where the listener is of IPv6; of an IPv6 address, its /64.
fn network(address: IpAddr) -> IpAddr {
    const LENGTH: u32 = 64;
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << (u128::BITS - LENGTH));
            Ipv6Addr::from_bits(bits).into()
        }
        address => address,
    }
}

impl OfAddress {
    fn silent_now(&self) -> usize {
        self.counts.silent.load(Ordering::Relaxed)
    }

    fn oldest_silent(&mut self) -> Option<u64> {
        // Those that spoke since are passed over, each once.
        while let Some(oldest) = self.silent.first_entry() {
            if oldest.get().is_silent() {
                return Some(*oldest.key());
            }
            oldest.remove();
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = self.of.lock().remove(self.id);
        if let Some(line) = line {
            line.leave.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::net::connections::{Lane, Limits, Refusals};

    const IN_ALL: usize = 8;
    const OF_ADDRESS: usize = 6;
    const SILENT: usize = 4;

    fn connections() -> Arc<Connections> {
        let limits = Limits {
            in_all: IN_ALL,
            per_address: OF_ADDRESS,
            silent_per_address: SILENT,
            idle: Duration::MAX,
        };
        Connections::new("test", limits, Refusals::default())
    }

    fn from(of: &Arc<Connections>, last: u8) -> Option<Admitted> {
        from_address(of, Ipv4Addr::new(127, 0, 0, last).into())
    }

    fn from_address(of: &Arc<Connections>, address: IpAddr) -> Option<Admitted> {
        let stream = Connection::new(tokio::io::duplex(1).0);
        let stream = Connection { from: Some(address), ..stream };
        of.admit(stream).map(|(admitted, _)| admitted)
    }

    fn has_ended(connection: &Admitted) -> bool {
        connection.line.check().is_err()
    }

    #[test]
    fn the_oldest_silent_one_of_an_address_gives_way_beyond_its_share() {
        let of = connections();
        let all: Vec<_> = (0..3 * SILENT).map(|_| from(&of, 1).expect("a place")).collect();
        let ended: Vec<bool> = all.iter().map(has_ended).collect();
        let expected: Vec<bool> = (0..3 * SILENT).map(|at| at < 2 * SILENT).collect();
        assert_eq!(ended, expected);
        assert_eq!(of.count(), SILENT);
        let Refusals { in_all, of_address, gave_way } = &of.refusals;
        let counted = (in_all.get(), of_address.get(), gave_way.get());
        assert_eq!(counted, (0, 0, 2 * SILENT as u64), "none was refused");
        drop(all);
        let live = of.lock();
        assert!(live.lines.is_empty() && live.by_address.is_empty(), "all places are given back");
    }

    #[test]
    fn one_that_spoke_keeps_its_place_and_others_are_let_in() {
        let of = connections();
        let spoke = from(&of, 1).unwrap();
        spoke.line.begin_call(Lane::Known);
        let floods: Vec<_> = (0..100).flat_map(|at| from(&of, 2 + at % 3)).collect();
        assert_eq!(floods.len(), 100, "silent ones never keep another silent one out");
        let new = from(&of, 9).expect("a place for one from elsewhere");
        let more: Vec<_> = (0..100).flat_map(|at| from(&of, 2 + at % 3)).collect();
        assert!(!has_ended(&new), "a flood ends its own, not the only one of another address");
        assert!(!has_ended(&spoke));
        assert_eq!(of.count(), IN_ALL);
        drop((floods, more));
        assert_eq!(of.count(), 2);
    }

    #[test]
    fn who_has_proved_an_identity_or_called_is_not_ended_for_a_new_one() {
        let of = connections();
        let spoke = |last| {
            let connection = from(&of, last).unwrap();
            connection.line.begin_call(Lane::Known);
            connection
        };
        let mut all: Vec<_> = (0..OF_ADDRESS).map(|_| spoke(1)).collect();
        assert!(from(&of, 1).is_none(), "the address has its share");
        all.extend((OF_ADDRESS..IN_ALL).map(|_| spoke(2)));
        assert!(from(&of, 3).is_none(), "all places are taken by callers");
        assert!(!all.iter().any(has_ended));
        assert_eq!((of.refusals.of_address.get(), of.refusals.in_all.get()), (1, 1));
    }

    #[test]
    fn a_call_that_anybody_may_make_keeps_no_place() {
        let of = connections();
        let strangers: Vec<_> = (0..IN_ALL).map(|at| from(&of, (at % 3) as u8).unwrap()).collect();
        for stranger in &strangers {
            stranger.line.begin_call(Lane::Strangers);
        }
        let call = |_| {
            let known = from(&of, 9).expect("a place");
            known.line.begin_call(Lane::Known);
            known
        };
        let known: Vec<_> = (0..OF_ADDRESS).map(call).collect();
        assert_eq!(strangers.iter().filter(|stranger| has_ended(stranger)).count(), OF_ADDRESS);
        assert!(!known.iter().any(has_ended));
    }

    #[test]
    fn who_has_a_network_has_no_more_places_than_who_has_an_address() {
        let of = connections();
        let call = |address: String| {
            let connection = from_address(&of, address.parse().unwrap())?;
            connection.line.begin_call(Lane::Known);
            Some(connection)
        };
        let of_one: Vec<_> = (0..OF_ADDRESS).map(|at| call(format!("2001:db8::{at}"))).collect();
        assert!(of_one.iter().all(Option::is_some));
        assert!(call("2001:db8::ffff:0:0:1".to_owned()).is_none(), "of the same network");
        assert!(call("2001:db8:0:1::1".to_owned()).is_some(), "of another one");
        let [v4, mapped] = ["127.0.0.1", "::ffff:127.0.0.1"].map(|text| text.parse().unwrap());
        assert_eq!((network(v4), network(mapped)), (v4, v4));
        let shown = of_one[1].as_ref().unwrap().line.address();
        assert_eq!(shown, Some("2001:db8::1".parse().unwrap()), "logs have all of it");
    }
}
