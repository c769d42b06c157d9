//! How many queries of one network are answered: a datagram's sender can be anybody, and what is
//! sent in its name must not hurt it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use tokio::time::Instant;

/// Networks share places by chance, which nobody outside can know: the table has this size however
/// many there are.
const PLACES: usize = 16 * 1024;
/// What a network may ask at once after a pause: this many seconds' worth.
const BURST_S: f32 = 2.0;

/// An answer for which so many more instances are looked at counts as one more query.
const LOOKED_PER_QUERY: f32 = 1_000.0;

/// What a query gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Answer,
    /// The advice to ask by TCP, whose sender is who it says.
    Truncate,
    /// Nothing.
    Silence,
}

/// What is left to each network.
#[derive(Debug)]
pub(crate) struct Limits {
    per_second: f32,
    hasher: RandomState,
    began: Instant,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    left: f32,
    /// ms since `began`.
    at: u32,
    /// Of those over the limit, every other one is told to ask by TCP.
    told: bool,
}

impl Limits {
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = per_second as f32;
        let full = Place { left: per_second * BURST_S, at: 0, told: false };
        let places = vec![full; PLACES];
        Self { per_second, hasher: RandomState::new(), began: Instant::now(), places }
    }

    fn place(&mut self, of: IpAddr) -> &mut Place {
        let hash = self.hasher.hash_one(network(of));
        &mut self.places[hash as usize % PLACES]
    }

    /// Takes what an answer took beyond that, for which so many instances were looked at; of what a
    /// network may ask later no more than it may ask at once.
    pub(super) fn charge(&mut self, from: IpAddr, looked: usize) {
        let most = self.per_second * BURST_S;
        let place = self.place(from);
        place.left = (place.left - looked as f32 / LOOKED_PER_QUERY).max(-most);
    }

    /// Takes one of what is left to a network.
    pub(crate) fn take(&mut self, from: IpAddr, now: Instant) -> Verdict {
        let (began, per_second) = (self.began, self.per_second);
        let place = self.place(from);
        let at = now.saturating_duration_since(began).as_millis() as u32;
        let passed = at.wrapping_sub(place.at) as f32 / 1_000.0;
        place.at = at;
        place.left = (place.left + passed * per_second).min(per_second * BURST_S);
        if place.left >= 1.0 {
            place.left -= 1.0;
            return Verdict::Answer;
        }
        place.told = !place.told;
        if place.told { Verdict::Truncate } else { Verdict::Silence }
    }
}

/// The /24 of an IPv4 address, the /56 of an IPv6 one.
fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        IpAddr::V6(address) => (address.to_bits() >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_network_has_its_limit_and_others_have_theirs() {
        let (mut limits, now) = (Limits::new(10), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..20 {
            assert_eq!(limits.take(address("192.0.2.1"), now), Verdict::Answer);
        }
        let over =
            [limits.take(address("192.0.2.2"), now), limits.take(address("::ffff:192.0.2.3"), now)];
        assert_eq!(over, [Verdict::Truncate, Verdict::Silence], "the same /24");
        let others = ["192.0.3.1", "2001:db8::1", "198.51.100.1"].map(address);
        // Two of four networks share a place once in thousands of runs.
        let answered = others.into_iter().filter(|at| limits.take(*at, now) == Verdict::Answer);
        assert!(answered.count() >= 2);
        let later = now + Duration::from_millis(500);
        let answered =
            (0..20).filter(|_| limits.take(address("192.0.2.1"), later) == Verdict::Answer);
        assert_eq!(answered.count(), 5, "ten a second");
        assert_eq!(network(address("2001:db8:0:1::1")), network(address("2001:db8:0:ff::")));
        assert_ne!(network(address("2001:db8:0:1::1")), network(address("2001:db8:0:100::")));
    }

    /// A name that does not exist may take a look at each of many instances.
    #[test]
    fn an_answer_that_takes_a_long_look_counts_as_many() {
        let (mut limits, now) = (Limits::new(10), Instant::now());
        let from = "192.0.2.1".parse::<IpAddr>().unwrap();
        let answered = |limits: &mut Limits, looked: usize, now| {
            let answers = (0..100).take_while(|_| {
                let verdict = limits.take(from, now);
                limits.charge(from, looked);
                verdict == Verdict::Answer
            });
            answers.count()
        };
        assert_eq!(answered(&mut limits, 4_000, now), 4, "five each");
        let later = now + Duration::from_secs(10);
        assert_eq!(answered(&mut limits, 0, later), 20);
        // However long it took, the network is answered again after the time of its burst.
        assert_eq!(answered(&mut limits, 1_000_000_000, later + Duration::from_secs(1)), 1);
        let again = later + Duration::from_millis(3_150);
        assert_eq!(answered(&mut limits, 0, again), 1);
    }

    #[test]
    fn the_table_stays_as_large_as_it_is() {
        let (mut limits, now) = (Limits::new(10), Instant::now());
        for at in 0..100_000_u32 {
            limits.take(IpAddr::V4((at << 8).into()), now);
        }
        assert_eq!(limits.places.capacity(), PLACES);
    }
}
