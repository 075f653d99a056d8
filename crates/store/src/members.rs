//! Who belongs to the cluster. Pure: changes are replicated like operations and give the same members everywhere.
//!
//! Error texts are etcd's, since its clients compare them.

use std::collections::BTreeSet;

use prost::Message;
use wire::etcdserverpb::Member;

use crate::node::{Seat, Seats};

/// Learners that may wait for their promotion at a time, added one by one as with etcd, and added together.
const LEARNERS_MAX: usize = 1;
const LEARNERS_TOGETHER_MAX: usize = 7;
/// Steps of one change.
const STEPS_MAX: usize = 32;

/// The members, by id, and those that were.
#[derive(Clone, PartialEq, Message)]
pub struct Members {
    /// Those that are, in the order of their ids.
    #[prost(message, repeated, tag = "1")]
    pub all: Vec<Member>,
    /// Those that were removed: their ids never come back.
    #[prost(uint64, repeated, tag = "2")]
    pub removed: Vec<u64>,
    /// Those that voted before a joint change. As long as there are any, both majorities must agree.
    #[prost(uint64, repeated, tag = "3")]
    pub outgoing: Vec<u64>,
    /// Those that a joint change lets go. They listen until most of those that stay know it for good: should these forget
    /// it in a crash, they need the others once more.
    #[prost(uint64, repeated, tag = "4")]
    pub leaving: Vec<u64>,
}

/// A change of the members: all of its steps at once, or none.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// One after another.
    #[prost(message, repeated, tag = "1")]
    pub steps: Vec<Step>,
}

/// One step of a change.
#[derive(Clone, PartialEq, Message)]
pub struct Step {
    /// What to do.
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5")]
    pub what: Option<What>,
}

/// What a step does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// A new member, which may be a learner.
    #[prost(message, tag = "1")]
    Add(Member),
    /// A learner becomes a voter.
    #[prost(uint64, tag = "2")]
    Promote(u64),
    /// A member leaves.
    #[prost(uint64, tag = "3")]
    Remove(u64),
    /// A member's peer addresses are others.
    #[prost(message, tag = "4")]
    Move(Member),
    /// A member tells its name and its clients' addresses.
    #[prost(message, tag = "5")]
    Publish(Member),
}

/// Why the members cannot change so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Nobody has this id.
    #[error("etcdserver: member not found")]
    NotFound,
    /// Somebody has this id, or had it.
    #[error("etcdserver: member ID already exist")]
    Exists,
    /// Somebody has this address.
    #[error("etcdserver: Peer URLs already exists")]
    AddressExists,
    /// It votes already.
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    /// It has not caught up with the leader.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// Others have to be promoted first.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// The cluster could not decide any more.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Members that vote cannot be reached.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    /// The change says nothing.
    #[error("etcdserver: bad request")]
    Empty,
}

impl Change {
    /// A change of so many steps.
    #[must_use]
    pub fn of(steps: impl IntoIterator<Item = What>) -> Self {
        Self { steps: steps.into_iter().map(|what| Step { what: Some(what) }).collect() }
    }

    /// What it does, step by step.
    pub fn all(&self) -> impl Iterator<Item = &What> {
        self.steps.iter().filter_map(|step| step.what.as_ref())
    }

    /// How many seats it is about. A change of several is a joint one.
    fn seats(&self) -> usize {
        self.all().filter(|what| !matches!(what, What::Move(_) | What::Publish(_))).count()
    }
}

impl Members {
    /// These, in order.
    #[must_use]
    pub fn new(mut all: Vec<Member>) -> Self {
        all.sort_by_key(|member| member.id);
        Self { all, ..Self::default() }
    }

    /// The member of this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.all.iter().find(|member| member.id == id)
    }

    /// The ids of those that vote and stay.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        self.ids(|member| !member.is_learner && !self.leaving.contains(&member.id))
    }

    /// Who votes and who listens.
    #[must_use]
    pub fn seats(&self) -> Seats {
        // Who leaves votes as long as the change is joint.
        let (next, now): (Vec<u64>, Vec<u64>) =
            self.leaving.iter().partition(|id| self.outgoing.contains(*id));
        let learners = self.ids(|member| member.is_learner);
        Seats {
            voters: self.voters(),
            outgoing: self.outgoing.clone(),
            learners: [learners, now].concat(),
            learners_next: next,
        }
    }

    fn ids(&self, wanted: impl Fn(&&Member) -> bool) -> Vec<u64> {
        self.all.iter().filter(wanted).map(|member| member.id).collect()
    }

    /// Whether a joint change is not through.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a change may be proposed, as far as these members know.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, change: &Change) -> Result<(), MemberError> {
        self.clone().apply(change)
    }

    /// The seats that a change is about, as the core has to take them.
    #[must_use]
    pub fn changed_seats(&self, change: &Change) -> Vec<Seat> {
        let joint = change.seats() > 1;
        let votes = |id: &u64| self.voters().contains(id);
        let seat = |what: &What| match what {
            What::Add(new) if new.is_learner => Some(Seat::Learner(new.id)),
            What::Add(new) => Some(Seat::Voter(new.id)),
            What::Promote(id) => Some(Seat::Voter(*id)),
            What::Remove(id) if joint && votes(id) => Some(Seat::Learner(*id)),
            What::Remove(id) => Some(Seat::Gone(*id)),
            What::Move(_) | What::Publish(_) => None,
        };
        change.all().filter_map(seat).collect()
    }

    fn check_step(&self, what: &What, learners_max: usize) -> Result<(), MemberError> {
        let known = |id: u64| self.get(id).ok_or(MemberError::NotFound);
        match what {
            What::Add(new) => {
                if self.get(new.id).is_some() || self.removed.contains(&new.id) {
                    return Err(MemberError::Exists);
                }
                self.check_addresses(new)?;
                let learners = self.all.iter().filter(|member| member.is_learner).count();
                if new.is_learner && learners >= learners_max {
                    return Err(MemberError::TooManyLearners);
                }
                Ok(())
            }
            What::Promote(id) if !known(*id)?.is_learner => Err(MemberError::NotLearner),
            What::Promote(_) => Ok(()),
            What::Remove(id) => known(*id).map(drop),
            What::Move(member) => {
                known(member.id)?;
                self.check_addresses(member)
            }
            What::Publish(member) => known(member.id).map(drop),
        }
    }

    fn check_addresses(&self, new: &Member) -> Result<(), MemberError> {
        let others = self.all.iter().filter(|member| member.id != new.id);
        let taken: BTreeSet<&String> = others.flat_map(|member| &member.peer_ur_ls).collect();
        if new.peer_ur_ls.iter().any(|url| taken.contains(url)) {
            return Err(MemberError::AddressExists);
        }
        Ok(())
    }

    /// Applies a change. A joint one holds from here on, until [`Members::leave_joint`].
    ///
    /// # Errors
    /// Why the members cannot change so; nothing changes then.
    pub fn apply(&mut self, change: &Change) -> Result<(), MemberError> {
        if change.all().next().is_none() || change.steps.len() > STEPS_MAX {
            return Err(MemberError::Empty);
        }
        let mut new = self.clone();
        let learners_max =
            if change.steps.len() > 1 { LEARNERS_TOGETHER_MAX } else { LEARNERS_MAX };
        if change.seats() > 1 {
            new.outgoing = self.voters();
        }
        for what in change.all() {
            new.check_step(what, learners_max)?;
            new.step(what.clone());
        }
        *self = new;
        Ok(())
    }

    fn step(&mut self, what: What) {
        match what {
            What::Add(new) => {
                self.all.push(new);
                self.all.sort_by_key(|member| member.id);
            }
            What::Promote(id) => self.with(id, |member| member.is_learner = false),
            What::Remove(id) if self.outgoing.contains(&id) => self.leaving.push(id),
            What::Remove(id) => {
                self.all.retain(|member| member.id != id);
                self.leaving.retain(|leaving| *leaving != id);
                self.removed.push(id);
            }
            What::Move(new) => self.with(new.id, |member| member.peer_ur_ls = new.peer_ur_ls),
            What::Publish(new) => self.with(new.id, |member| {
                member.name = new.name;
                member.client_ur_ls = new.client_ur_ls;
            }),
        }
    }

    /// The majority of before is not asked any more.
    pub fn leave_joint(&mut self) {
        self.outgoing.clear();
    }

    fn with(&mut self, id: u64, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.all.iter_mut().find(|member| member.id == id) {
            change(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, url: &str, is_learner: bool) -> Member {
        Member { id, peer_ur_ls: vec![url.to_owned()], is_learner, ..Member::default() }
    }

    #[test]
    fn members_change_by_etcds_rules() {
        let mut members = Members::new(vec![member(2, "b", false), member(1, "a", false)]);
        assert_eq!(members.voters(), [1, 2]);
        for (what, expected) in [
            (What::Add(member(3, "a", false)), Err(MemberError::AddressExists)),
            (What::Add(member(1, "c", false)), Err(MemberError::Exists)),
            (What::Add(member(3, "c", true)), Ok(())),
            (What::Add(member(4, "d", true)), Err(MemberError::TooManyLearners)),
            (What::Promote(1), Err(MemberError::NotLearner)),
            (What::Promote(9), Err(MemberError::NotFound)),
            (What::Promote(3), Ok(())),
            (What::Remove(2), Ok(())),
            (What::Remove(2), Err(MemberError::NotFound)),
            (What::Add(member(2, "e", false)), Err(MemberError::Exists)),
            (What::Move(member(1, "c", false)), Err(MemberError::AddressExists)),
            (What::Move(member(1, "f", false)), Ok(())),
        ] {
            assert_eq!(members.apply(&Change::of([what.clone()])), expected, "{what:?}");
        }
        assert_eq!((members.voters(), members.removed.clone()), (vec![1, 3], vec![2]));
        let bytes = members.encode_to_vec();
        assert_eq!(Members::decode(bytes.as_slice()), Ok(members));
    }

    #[test]
    fn several_change_at_once_or_none() {
        let new = |id: u64| What::Add(member(id, &format!("new {id}"), true));
        let mut members =
            Members::new((1..=3).map(|id| member(id, &id.to_string(), false)).collect());
        let before = members.clone();
        for (steps, error) in [
            (vec![new(4), new(4)], MemberError::Exists),
            (vec![new(4), What::Add(member(5, "new 4", true))], MemberError::AddressExists),
            (vec![new(4), What::Promote(3)], MemberError::NotLearner),
            (vec![What::Remove(1), What::Remove(9)], MemberError::NotFound),
            (vec![], MemberError::Empty),
        ] {
            assert_eq!(members.apply(&Change::of(steps)), Err(error));
            assert_eq!(members, before);
        }
        members.apply(&Change::of([new(4), new(5), new(6)])).unwrap();
        members.leave_joint();
        let moved = (4..=6).map(What::Promote).chain((1..=3).map(What::Remove));
        let moved = Change::of(moved);
        let seats = members.changed_seats(&moved);
        assert_eq!(
            seats,
            [4, 5, 6]
                .map(Seat::Voter)
                .into_iter()
                .chain([1, 2, 3].map(Seat::Learner))
                .collect::<Vec<_>>()
        );
        members.apply(&moved).unwrap();
        let (voters, old) = (vec![4, 5, 6], vec![1, 2, 3]);
        let seats = Seats {
            voters: voters.clone(),
            outgoing: old.clone(),
            learners: vec![],
            learners_next: old.clone(),
        };
        assert_eq!(members.seats(), seats);
        members.leave_joint();
        let seats = Seats { voters, learners: old, ..Seats::default() };
        assert_eq!(members.seats(), seats);
        // Another joint change does not make those that leave voters again.
        let mut again = members.clone();
        again.apply(&Change::of([new(7), new(8)])).unwrap();
        assert_eq!(
            (again.seats().learners, again.seats().learners_next),
            (vec![7, 8, 1, 2, 3], vec![])
        );
        members.apply(&Change::of([What::Remove(2)])).unwrap();
        assert_eq!((members.leaving, members.removed), (vec![1, 3], vec![2]));
    }
}
