//! Whether the simulation met what it is for.

/// How often the things happened that the simulation is for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub crashes: u64,
    pub partitions: u64,
    pub leaders: u64,
    pub writes: u64,
    pub expired: u64,
    pub compacted: u64,
    pub events: u64,
    pub snapshots: u64,
    pub members: u64,
    pub joint: u64,
    pub removed: u64,
    pub leavers: u64,
}

impl Counts {
    fn each(&mut self) -> [&mut u64; 12] {
        [
            &mut self.crashes,
            &mut self.partitions,
            &mut self.leaders,
            &mut self.writes,
            &mut self.expired,
            &mut self.compacted,
            &mut self.events,
            &mut self.snapshots,
            &mut self.members,
            &mut self.joint,
            &mut self.removed,
            &mut self.leavers,
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let mut other = *other;
        for (sum, more) in self.each().into_iter().zip(other.each()) {
            *sum += *more;
        }
    }

    /// How often what happened least happened.
    pub fn least(mut self) -> u64 {
        self.each().into_iter().map(|count| *count).min().unwrap_or(0)
    }
}
