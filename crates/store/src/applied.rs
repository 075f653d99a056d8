//! The state as far as entries were applied, and what a round of them changes. Pure.

use crate::auth::{Auth, Change, Sessions};
use crate::members::Members;
use crate::mvcc::{Archive, Changes, Error, Mvcc, Op, Reply, Revision};
use crate::replica::{Committed, Refusal, ReplicaError, Said};
use crate::snapshot::Mark;

/// Bytes of operations and number of changes of a large round.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_CHANGES: usize = 2048;

/// The whole state at one entry.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The keys and leases.
    pub mvcc: Mvcc,
    /// Who belongs to the cluster.
    pub members: Members,
    /// Who may do what.
    pub auth: Auth,
    /// The entry.
    pub mark: Mark,
}

/// What one round of applied entries changed.
#[derive(Debug, Default)]
pub struct Round {
    /// The last entry of the round.
    pub mark: Mark,
    /// Bytes of its operations.
    pub bytes: usize,
    /// The store's revision after it.
    pub revision: i64,
    /// The last compaction after it.
    pub compacted: i64,
    /// Changes to keep.
    pub changes: Vec<Changes>,
    /// Changes to forget.
    pub removed: Vec<Revision>,
    /// Leases granted (with their life in seconds) or ended.
    pub leases: Vec<(i64, Option<i64>)>,
    /// Alarms raised or cleared.
    pub alarms: Vec<((u64, i32), bool)>,
    /// The members, if they changed.
    pub members: Option<Members>,
    /// Users and roles, if they changed.
    pub auth: Option<Auth>,
    /// What became of sessions, with the tokens of those that begin.
    pub sessions: Vec<Sessions>,
}

impl Applied {
    /// Applies one entry and notes in `round` what it changed. Returns the answer, if the entry was a request.
    ///
    /// # Errors
    /// When the entry cannot be read: this member cannot go on.
    pub fn apply(
        &mut self,
        committed: &Committed,
        archive: &dyn Archive,
        round: &mut Round,
    ) -> Result<Option<Result<Reply, Refusal>>, ReplicaError> {
        assert!(committed.mark.index == self.mark.index + 1);
        self.mark = committed.mark;
        let reply = match &committed.what {
            Said::Nothing => None,
            Said::Members(Err(error)) => Some(Err(Refusal::Members(*error))),
            Said::Members(Ok(members)) => {
                self.members = members.clone();
                round.members = Some(members.clone());
                Some(Ok(Reply::Members))
            }
            Said::Operation(data) => {
                round.bytes += data.len();
                let op = Op::decode_by(data.clone());
                let (by, op) = op.map_err(|_| ReplicaError::Entry(committed.mark.index))?;
                let allowed = self.auth.allow(&by, &op, self.mvcc.leases());
                Some(match (allowed, &op) {
                    (Err(error), _) => Err(error.into()),
                    (Ok(()), Op::Auth(change)) => self.change_auth(change, round),
                    (Ok(()), op) => self.operate(op, archive, round),
                })
            }
        };
        if matches!(reply, Some(Err(Refusal::State(Error::Corrupt)))) {
            // The other members could read it: they and this one are no longer the same.
            return Err(ReplicaError::Archive(committed.mark.index));
        }
        round.mark = self.mark;
        round.revision = self.mvcc.revision();
        round.compacted = self.mvcc.compacted();
        Ok(reply)
    }

    fn change_auth(&mut self, change: &Change, round: &mut Round) -> Result<Reply, Refusal> {
        let sessions = self.auth.apply(change)?;
        if let Sessions::Begin(user, secret) = sessions {
            // The place lets another member know whether it has seen the session begin.
            let token = format!("{secret}.{}", self.mark.index);
            round.sessions.push(Sessions::Begin(user, token.clone()));
            return Ok(Reply::Token(token));
        }
        round.sessions.push(sessions);
        round.auth = Some(self.auth.clone());
        Ok(Reply::Auth)
    }

    fn operate(
        &mut self,
        op: &Op,
        archive: &dyn Archive,
        round: &mut Round,
    ) -> Result<Reply, Refusal> {
        let alarms = matches!(op, Op::Alarm(_)).then(|| self.mvcc.summary().alarms);
        let outcome = self.mvcc.apply(op, archive);
        round.changes.extend(outcome.changes);
        round.removed.extend(outcome.removed);
        match (op, &outcome.reply) {
            (Op::Grant(_), Ok(Reply::Grant(granted))) => {
                round.leases.push((granted.id, Some(granted.ttl)));
            }
            (Op::Revoke(request), Ok(_)) => round.leases.push((request.id, None)),
            (Op::Alarm(_), Ok(_)) => {
                let before = alarms.unwrap_or_default();
                let after = self.mvcc.summary().alarms;
                let gone = before.iter().filter(|a| !after.contains(a));
                round.alarms.extend(gone.map(|a| (*a, false)));
                round.alarms.extend(after.iter().map(|a| (*a, true)));
            }
            _ => {}
        }
        Ok(outcome.reply?)
    }
}

impl Round {
    /// Whether the archive should have it now.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.bytes >= LARGE_BYTES || self.changes.len() + self.removed.len() >= LARGE_CHANGES
    }

    /// Adds what a later round changed.
    pub fn merge(&mut self, next: Self) {
        // What is removed was written before; a batch keeps the order of its operations.
        self.mark = next.mark;
        self.bytes += next.bytes;
        self.revision = next.revision;
        self.compacted = next.compacted;
        self.changes.extend(next.changes);
        self.removed.extend(next.removed);
        self.leases.extend(next.leases);
        self.alarms.extend(next.alarms);
        self.members = next.members.or_else(|| self.members.take());
        self.auth = next.auth.or_else(|| self.auth.take());
        self.sessions.extend(next.sessions);
    }
}
