//! Who belongs to the cluster. Pure: changes are replicated like operations and give the same members everywhere.
//!
//! Error texts are etcd's, since its clients compare them.

use std::collections::BTreeSet;

use prost::Message;
use wire::etcdserverpb::Member;

/// Learners that may wait for their promotion at a time.
const LEARNERS_MAX: usize = 1;

/// The members, by id, and those that were.
#[derive(Clone, PartialEq, Message)]
pub struct Members {
    /// Those that are, in the order of their ids.
    #[prost(message, repeated, tag = "1")]
    pub all: Vec<Member>,
    /// Those that were removed: their ids never come back.
    #[prost(uint64, repeated, tag = "2")]
    pub removed: Vec<u64>,
}

/// A change of the members.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// What to do.
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5")]
    pub what: Option<What>,
}

/// What a change does.
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

impl Members {
    /// These, in order.
    #[must_use]
    pub fn new(mut all: Vec<Member>) -> Self {
        all.sort_by_key(|member| member.id);
        Self { all, removed: Vec::new() }
    }

    /// The member of this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.all.iter().find(|member| member.id == id)
    }

    /// The ids of those that vote.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        self.all.iter().filter(|member| !member.is_learner).map(|member| member.id).collect()
    }

    /// The ids of those that only listen.
    #[must_use]
    pub fn learners(&self) -> Vec<u64> {
        self.all.iter().filter(|member| member.is_learner).map(|member| member.id).collect()
    }

    /// Whether a change may be proposed, as far as these members know.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, change: &Change) -> Result<(), MemberError> {
        let known = |id: u64| self.get(id).ok_or(MemberError::NotFound);
        match change.what.as_ref().ok_or(MemberError::Empty)? {
            What::Add(new) => {
                if self.get(new.id).is_some() || self.removed.contains(&new.id) {
                    return Err(MemberError::Exists);
                }
                self.check_addresses(new)?;
                if new.is_learner && self.learners().len() >= LEARNERS_MAX {
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

    /// Applies a change.
    ///
    /// # Errors
    /// As [`Members::check`]; nothing changes then.
    pub fn apply(&mut self, change: &Change) -> Result<(), MemberError> {
        self.check(change)?;
        match change.what.clone().ok_or(MemberError::Empty)? {
            What::Add(new) => {
                self.all.push(new);
                self.all.sort_by_key(|member| member.id);
            }
            What::Promote(id) => self.with(id, |member| member.is_learner = false),
            What::Remove(id) => {
                self.all.retain(|member| member.id != id);
                self.removed.push(id);
            }
            What::Move(new) => self.with(new.id, |member| member.peer_ur_ls = new.peer_ur_ls),
            What::Publish(new) => self.with(new.id, |member| {
                member.name = new.name;
                member.client_ur_ls = new.client_ur_ls;
            }),
        }
        Ok(())
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

    fn change(what: What) -> Change {
        Change { what: Some(what) }
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
            assert_eq!(members.apply(&change(what.clone())), expected, "{what:?}");
        }
        assert_eq!((members.voters(), members.removed.clone()), (vec![1, 3], vec![2]));
        let bytes = members.encode_to_vec();
        assert_eq!(Members::decode(bytes.as_slice()), Ok(members));
    }
}
