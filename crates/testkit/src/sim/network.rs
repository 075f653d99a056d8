//! A network that loses, repeats, delays and reorders, and that can be cut between any two.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Rng;

/// How well messages travel at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Of a hundred messages, how many are lost.
    pub loss_percent: u64,
    /// Of a hundred messages, how many come twice.
    pub twice_percent: u64,
    /// The longest way; each message draws its own, so that they overtake each other.
    pub delay_max: Duration,
}

impl Weather {
    /// Nothing is lost, and all is quick.
    pub const FAIR: Self =
        Self { loss_percent: 0, twice_percent: 0, delay_max: Duration::from_millis(5) };
}

/// The ways between members.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    /// How it is now.
    pub weather: Weather,
    cut: BTreeSet<(u64, u64)>,
}

impl Network {
    /// A network in fair weather.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self { rng, weather: Weather::FAIR, cut: BTreeSet::new() }
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    /// Parts `some` from all others, in both directions.
    pub fn part(&mut self, some: &[u64], all: &[u64]) {
        for one in some {
            for other in all.iter().filter(|other| !some.contains(other)) {
                self.cut(*one, *other);
                self.cut(*other, *one);
            }
        }
    }

    /// Every way is open again, and the weather fair.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.weather = Weather::FAIR;
    }

    /// Whether a message that arrives now gets through: a cut also swallows what is under way.
    #[must_use]
    pub fn is_open(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// When the copies of a message arrive that is sent now; never, if it is lost.
    pub fn send(&mut self, from: u64, to: u64) -> Vec<Duration> {
        if !self.is_open(from, to) || self.rng.chance(self.weather.loss_percent) {
            return Vec::new();
        }
        let copies = if self.rng.chance(self.weather.twice_percent) { 2 } else { 1 };
        let most = u64::try_from(self.weather.delay_max.as_micros()).unwrap_or(u64::MAX);
        let mut delay = || Duration::from_micros(self.rng.within(100..most.max(101)));
        (0..copies).map(|_| delay()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parted_network_carries_only_inside_its_parts() {
        let mut network = Network::new(Rng::new(1));
        network.part(&[1, 2], &[1, 2, 3]);
        assert_eq!(network.send(1, 2).len(), 1);
        assert!(network.send(1, 3).is_empty() && network.send(3, 2).is_empty());
        network.heal();
        assert_eq!(network.send(1, 3).len(), 1);
    }

    #[test]
    fn bad_weather_loses_and_repeats() {
        let mut network = Network::new(Rng::new(1));
        network.weather = Weather { loss_percent: 30, twice_percent: 20, ..Weather::FAIR };
        let counts: Vec<usize> = (0..1000).map(|_| network.send(1, 2).len()).collect();
        let count = |n| counts.iter().filter(|c| **c == n).count();
        assert!((200..400).contains(&count(0)) && (80..220).contains(&count(2)));
    }
}
