//! Users, roles and what they may do. Pure: changes are replicated like operations, and who
//! proposed an operation travels with it and is checked where it is applied.
//!
//! Error texts are etcd's, since its clients compare them. Knows passwords only as hashes.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use wire::authpb::Permission;
use wire::authpb::permission::Type;
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest,
};

use crate::mvcc::{Leases, Op, Span};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// Users, roles, and whether they count.
#[derive(Clone, PartialEq, Message)]
pub struct Auth {
    /// Whether callers are checked.
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    #[prost(uint64, tag = "2")]
    changes: u64,
    /// Users by name.
    #[prost(btree_map = "string, message", tag = "3")]
    pub users: BTreeMap<String, User>,
    /// Roles by name.
    #[prost(btree_map = "string, message", tag = "4")]
    pub roles: BTreeMap<String, Role>,
}

/// A user.
#[derive(Clone, PartialEq, Message)]
pub struct User {
    /// What [`crate::password`] made of the password; empty for a user who comes by certificate.
    #[prost(string, tag = "1")]
    pub password: String,
    /// Names of roles, sorted.
    #[prost(string, repeated, tag = "2")]
    pub roles: Vec<String>,
    /// The user comes by certificate only.
    #[prost(bool, tag = "3")]
    pub no_password: bool,
}

/// A role.
#[derive(Clone, PartialEq, Message)]
pub struct Role {
    /// What it may do, by key.
    #[prost(message, repeated, tag = "1")]
    pub permissions: Vec<Permission>,
}

/// Who proposes an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The store itself, such as the end of a lease.
    Store,
    /// A client.
    Client(Caller),
}

/// A client as it was identified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user; empty for a client that did not say.
    pub user: String,
    /// The revision of [`Auth`] at which it was identified; 0 for nobody.
    pub revision: u64,
}

/// A change of users and roles, or a session that begins.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// What to do.
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub what: Option<What>,
}

/// What a change does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// Callers count from here on.
    #[prost(message, tag = "1")]
    Enable(AuthEnableRequest),
    /// Callers do not count any more.
    #[prost(message, tag = "2")]
    Disable(AuthDisableRequest),
    /// A new user, whose password is hashed already.
    #[prost(message, tag = "3")]
    UserAdd(AuthUserAddRequest),
    /// A user goes.
    #[prost(message, tag = "4")]
    UserDelete(AuthUserDeleteRequest),
    /// A user's password is another.
    #[prost(message, tag = "5")]
    Password(AuthUserChangePasswordRequest),
    /// A user gets a role.
    #[prost(message, tag = "6")]
    UserGrant(AuthUserGrantRoleRequest),
    /// A user loses a role.
    #[prost(message, tag = "7")]
    UserRevoke(AuthUserRevokeRoleRequest),
    /// A new role.
    #[prost(message, tag = "8")]
    RoleAdd(AuthRoleAddRequest),
    /// A role goes.
    #[prost(message, tag = "9")]
    RoleDelete(AuthRoleDeleteRequest),
    /// A role may do something.
    #[prost(message, tag = "10")]
    RoleGrant(AuthRoleGrantPermissionRequest),
    /// A role may no longer do something.
    #[prost(message, tag = "11")]
    RoleRevoke(AuthRoleRevokePermissionRequest),
    /// A user's password was right.
    #[prost(message, tag = "12")]
    Begin(Session),
}

/// A session whose password was checked by the member that proposes it.
#[derive(Clone, PartialEq, Message)]
pub struct Session {
    /// The user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// The secret part of the token.
    #[prost(string, tag = "2")]
    pub secret: String,
    /// The revision of [`Auth`] at which the password was right.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
}

/// What a change means for sessions, which are not part of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sessions {
    /// Nothing.
    Stay,
    /// One begins: the user, the secret.
    Begin(String, String),
    /// Those of a user end.
    End(String),
    /// All end.
    EndAll,
}

/// Why a caller may not do something, or users cannot change so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each says it in etcd's words.
pub enum AuthError {
    #[error("etcdserver: root user does not exist")]
    NoRootUser,
    #[error("etcdserver: root user does not have root role")]
    NoRootRole,
    #[error("etcdserver: user name already exists")]
    UserExists,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: role name already exists")]
    RoleExists,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    Failed,
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    #[error("etcdserver: permission not given")]
    NotGiven,
    #[error("etcdserver: permission denied")]
    Denied,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: authentication is not enabled")]
    NotEnabled,
    #[error("etcdserver: invalid auth token")]
    InvalidToken,
    #[error("etcdserver: invalid auth management")]
    InvalidManagement,
    #[error("etcdserver: revision of auth store is old")]
    OldRevision,
}

impl By {
    /// A client that did not say who it is.
    #[must_use]
    pub fn nobody() -> Self {
        Self::Client(Caller::default())
    }
}

impl Auth {
    /// Counts the changes, from 1 on.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.changes + 1
    }

    /// Makes a change.
    ///
    /// # Errors
    /// When it cannot be made; nothing has changed then.
    pub fn apply(&mut self, change: &Change) -> Result<Sessions, AuthError> {
        let Some(what) = &change.what else { return Err(AuthError::InvalidManagement) };
        let mut sessions = Sessions::Stay;
        let changed = match what {
            What::Begin(session) => return self.begin(session),
            What::Enable(_) => return self.enable().map(|()| Sessions::Stay),
            What::Disable(_) => {
                sessions = Sessions::EndAll;
                std::mem::take(&mut self.enabled)
            }
            What::UserAdd(request) => self.add_user(request)?,
            What::UserDelete(request) => {
                if self.enabled && request.name == ROOT {
                    return Err(AuthError::InvalidManagement);
                }
                self.users.remove(&request.name).ok_or(AuthError::UserNotFound)?;
                sessions = Sessions::End(request.name.clone());
                true
            }
            What::Password(request) => {
                let user = self.user_mut(&request.name)?;
                if !user.no_password {
                    user.password.clone_from(&request.hashed_password);
                }
                sessions = Sessions::End(request.name.clone());
                true
            }
            What::UserGrant(request) => self.grant(&request.user, &request.role)?,
            What::UserRevoke(request) => self.revoke(&request.name, &request.role)?,
            What::RoleAdd(request) => self.add_role(&request.name)?,
            What::RoleDelete(request) => self.delete_role(&request.role)?,
            What::RoleGrant(request) => {
                let permission = request.perm.as_ref().ok_or(AuthError::NotGiven)?;
                self.permit(&request.name, permission)?
            }
            What::RoleRevoke(request) => {
                self.forbid(&request.role, &request.key, &request.range_end)?
            }
        };
        self.changes += u64::from(changed);
        Ok(sessions)
    }

    /// Checks an operation, where it is applied.
    ///
    /// # Errors
    /// When who proposed it may not do it.
    pub fn allow(&self, by: &By, op: &Op, leases: &Leases) -> Result<(), AuthError> {
        let By::Client(caller) = by else { return Ok(()) };
        if !self.enabled {
            return Ok(());
        }
        match op {
            Op::Put(put) => self.may_put(caller, put, leases),
            Op::Delete(delete) => self.may_delete(caller, delete),
            Op::Txn(txn) => self.may_txn(caller, txn, leases),
            Op::Grant(_) => self.known(by),
            Op::Revoke(request) => {
                self.known(by)?;
                self.may_put_leased(caller, request.id, leases)
            }
            Op::Auth(Change { what: Some(What::Begin(_)) }) => Ok(()),
            Op::Compact(_) | Op::Alarm(_) | Op::Auth(_) => self.admin(by),
        }
    }

    /// Checks a read.
    ///
    /// # Errors
    /// When the caller may not read all of it.
    pub fn read(&self, by: &By, key: &Bytes, range_end: &Bytes) -> Result<(), AuthError> {
        let By::Client(caller) = by else { return Ok(()) };
        self.may(caller, Type::Read, key, range_end)
    }

    /// Checks a transaction that only reads.
    ///
    /// # Errors
    /// When the caller may not read all that it names, in whichever branch.
    pub fn read_txn(&self, by: &By, txn: &TxnRequest) -> Result<(), AuthError> {
        let By::Client(caller) = by else { return Ok(()) };
        self.may_txn(caller, txn, &Leases::default())
    }

    /// Checks that the caller is a user.
    ///
    /// # Errors
    /// When it is not.
    pub fn known(&self, by: &By) -> Result<(), AuthError> {
        let By::Client(caller) = by else { return Ok(()) };
        match self.enabled {
            false => Ok(()),
            true if caller.user.is_empty() => Err(AuthError::UserEmpty),
            true if self.users.contains_key(&caller.user) => Ok(()),
            true => Err(AuthError::Denied),
        }
    }

    /// Checks that the caller may do everything.
    ///
    /// # Errors
    /// When it may not.
    pub fn admin(&self, by: &By) -> Result<(), AuthError> {
        let By::Client(caller) = by else { return Ok(()) };
        self.known(by)?;
        if !self.enabled || self.has_role(&caller.user, ROOT) {
            return Ok(());
        }
        Err(AuthError::Denied)
    }

    /// Whether a user has a role.
    #[must_use]
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.iter().any(|r| r == role))
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, AuthError> {
        self.users.get_mut(name).ok_or(AuthError::UserNotFound)
    }

    fn begin(&self, session: &Session) -> Result<Sessions, AuthError> {
        if !self.enabled {
            return Err(AuthError::NotEnabled);
        }
        // The password may have changed since it was checked.
        if session.revision != self.revision() {
            return Err(AuthError::OldRevision);
        }
        Ok(Sessions::Begin(session.user.clone(), session.secret.clone()))
    }

    /// Does not count as a change, as in etcd.
    fn enable(&mut self) -> Result<(), AuthError> {
        if !self.users.contains_key(ROOT) {
            return Err(AuthError::NoRootUser);
        }
        if !self.has_role(ROOT, ROOT) {
            return Err(AuthError::NoRootRole);
        }
        self.enabled = true;
        Ok(())
    }

    fn add_user(&mut self, request: &AuthUserAddRequest) -> Result<bool, AuthError> {
        if request.name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(AuthError::UserExists);
        }
        let no_password = request.options.is_some_and(|options| options.no_password);
        let password = if no_password { "" } else { &request.hashed_password };
        let user = User { password: password.to_owned(), roles: Vec::new(), no_password };
        self.users.insert(request.name.clone(), user);
        Ok(true)
    }

    fn grant(&mut self, user: &str, role: &str) -> Result<bool, AuthError> {
        let role_exists = role == ROOT || self.roles.contains_key(role);
        let user = self.user_mut(user)?;
        if !role_exists {
            return Err(AuthError::RoleNotFound);
        }
        match user.roles.binary_search_by(|known| known.as_str().cmp(role)) {
            Ok(_) => Ok(false),
            Err(place) => {
                user.roles.insert(place, role.to_owned());
                Ok(true)
            }
        }
    }

    fn revoke(&mut self, name: &str, role: &str) -> Result<bool, AuthError> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        let user = self.user_mut(name)?;
        let before = user.roles.len();
        user.roles.retain(|known| known != role);
        if user.roles.len() == before { Err(AuthError::RoleNotGranted) } else { Ok(true) }
    }

    fn add_role(&mut self, name: &str) -> Result<bool, AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(AuthError::RoleExists);
        }
        self.roles.insert(name.to_owned(), Role::default());
        Ok(true)
    }

    fn delete_role(&mut self, name: &str) -> Result<bool, AuthError> {
        if self.enabled && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        self.roles.remove(name).ok_or(AuthError::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.retain(|role| role != name);
        }
        Ok(true)
    }

    fn permit(&mut self, role: &str, new: &Permission) -> Result<bool, AuthError> {
        let span = Span::new(new.key.clone(), new.range_end.clone());
        if new.key.is_empty() || span.is_empty() {
            return Err(AuthError::InvalidManagement);
        }
        let role = self.roles.get_mut(role).ok_or(AuthError::RoleNotFound)?;
        let same =
            |known: &&mut Permission| (&known.key, &known.range_end) == (&new.key, &new.range_end);
        if let Some(known) = role.permissions.iter_mut().find(same) {
            known.perm_type = new.perm_type;
            return Ok(true);
        }
        let place = role.permissions.partition_point(|known| known.key <= new.key);
        role.permissions.insert(place, new.clone());
        Ok(true)
    }

    fn forbid(&mut self, role: &str, key: &Bytes, end: &Bytes) -> Result<bool, AuthError> {
        let role = self.roles.get_mut(role).ok_or(AuthError::RoleNotFound)?;
        let before = role.permissions.len();
        role.permissions.retain(|known| (&known.key, &known.range_end) != (key, end));
        if role.permissions.len() == before {
            return Err(AuthError::PermissionNotGranted);
        }
        Ok(true)
    }

    fn may_put(&self, caller: &Caller, put: &PutRequest, leases: &Leases) -> Result<(), AuthError> {
        let one = Bytes::new();
        self.may(caller, Type::Write, &put.key, &one)?;
        // Who may not end the lease may not make another key die with it either.
        self.may_put_leased(caller, put.lease, leases)?;
        if put.prev_kv {
            self.may(caller, Type::Read, &put.key, &one)?;
        }
        Ok(())
    }

    fn may_delete(&self, caller: &Caller, delete: &DeleteRangeRequest) -> Result<(), AuthError> {
        self.may(caller, Type::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            self.may(caller, Type::Read, &delete.key, &delete.range_end)?;
        }
        Ok(())
    }

    /// Both branches must be allowed, so that the answer tells nothing of the comparison.
    fn may_txn(&self, caller: &Caller, txn: &TxnRequest, leases: &Leases) -> Result<(), AuthError> {
        for compare in &txn.compare {
            self.may(caller, Type::Read, &compare.key, &compare.range_end)?;
        }
        let ops = txn.success.iter().chain(&txn.failure);
        ops.filter_map(|RequestOp { request }| request.as_ref()).try_for_each(|op| match op {
            Request::RequestRange(r) => self.may(caller, Type::Read, &r.key, &r.range_end),
            Request::RequestPut(r) => self.may_put(caller, r, leases),
            Request::RequestDeleteRange(r) => self.may_delete(caller, r),
            Request::RequestTxn(r) => self.may_txn(caller, r, leases),
        })
    }

    fn may_put_leased(
        &self,
        caller: &Caller,
        lease: i64,
        leases: &Leases,
    ) -> Result<(), AuthError> {
        let mut keys = leases.find(lease).into_iter().flat_map(|lease| &lease.keys);
        keys.try_for_each(|key| self.may(caller, Type::Write, key, &Bytes::new()))
    }

    fn may(&self, caller: &Caller, what: Type, key: &Bytes, end: &Bytes) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if caller.revision == 0 || caller.user.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if caller.revision < self.revision() {
            return Err(AuthError::OldRevision);
        }
        let user = self.users.get(&caller.user).ok_or(AuthError::Denied)?;
        if user.roles.iter().any(|role| role == ROOT) {
            return Ok(());
        }
        let granted = user.roles.iter().filter_map(|role| self.roles.get(role));
        let granted = granted.flat_map(|role| &role.permissions);
        let granted = granted.filter(|p| p.perm_type() == what || p.perm_type() == Type::Readwrite);
        let spans = granted.map(|p| Interval::new(&p.key, &p.range_end)).collect();
        if covers(spans, &Interval::new(key, end)) { Ok(()) } else { Err(AuthError::Denied) }
    }
}

/// Keys from the first up to and without the second, or to the end.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval(Bytes, Option<Bytes>);

impl Interval {
    fn new(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => Some(Bytes::from([key.as_ref(), &[0]].concat())),
            [0] => None,
            _ => Some(range_end.clone()),
        };
        Self(key.clone(), end)
    }
}

/// Whether neighbouring and overlapping intervals together hold all of the wanted one.
fn covers(mut granted: Vec<Interval>, wanted: &Interval) -> bool {
    granted.sort();
    let mut reached = wanted.0.clone();
    for Interval(from, to) in granted {
        if from > reached {
            break;
        }
        match to {
            None => return true,
            Some(to) => reached = reached.max(to),
        }
    }
    reached > wanted.0 && wanted.1.as_ref().is_some_and(|end| reached >= *end)
}

#[cfg(test)]
mod tests;
