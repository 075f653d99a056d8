//! The one table from refusals to gRPC codes. Clients compare both code and words.

use tonic::{Code, Status};

use crate::auth::AuthError;
use crate::members::MemberError;
use crate::mvcc::Error;
use crate::replica::Refusal;

/// The status of an error of the state.
#[must_use]
pub fn status(error: Error) -> Status {
    let code = match error {
        Error::Compacted | Error::FutureRevision | Error::LeaseTtlTooLarge => Code::OutOfRange,
        Error::LeaseNotFound => Code::NotFound,
        Error::LeaseExists => Code::FailedPrecondition,
        Error::KeyNotFound
        | Error::EmptyKey
        | Error::ValueProvided
        | Error::LeaseProvided
        | Error::DuplicateKey
        | Error::TooManyOps
        | Error::InvalidSort
        | Error::RequestTooLarge => Code::InvalidArgument,
        Error::NoSpace => Code::ResourceExhausted,
        Error::Corrupt => Code::DataLoss,
    };
    Status::new(code, error.to_string())
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::State(error) => status(error),
            Refusal::Members(error) => member_status(error),
            Refusal::Auth(error) => auth_status(error),
            Refusal::NotLeader => Self::failed_precondition(refusal.to_string()),
            Refusal::TooMany => Self::resource_exhausted(refusal.to_string()),
            Refusal::Timeout | Refusal::LeaderLost | Refusal::Stopped => {
                Self::unavailable(refusal.to_string())
            }
        }
    }
}

/// The status of an error of users and permissions.
#[must_use]
pub fn auth_status(error: AuthError) -> Status {
    let code = match error {
        AuthError::UserEmpty
        | AuthError::RoleEmpty
        | AuthError::Failed
        | AuthError::NotGiven
        | AuthError::InvalidManagement
        | AuthError::OldRevision => Code::InvalidArgument,
        AuthError::Denied => Code::PermissionDenied,
        AuthError::InvalidToken => Code::Unauthenticated,
        AuthError::NoPasswordUser => Code::Unknown,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

/// An error as clients compare it where it is a text: the way Go prints a status.
#[must_use]
pub fn as_text(status: &Status) -> String {
    // Go calls it by the code's name.
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// The status of an error of the members.
#[must_use]
pub fn member_status(error: MemberError) -> Status {
    let code = match error {
        MemberError::NotFound => Code::NotFound,
        MemberError::Unhealthy => Code::Unavailable,
        MemberError::Empty => Code::InvalidArgument,
        MemberError::Exists
        | MemberError::AddressExists
        | MemberError::NotLearner
        | MemberError::LearnerNotReady
        | MemberError::TooManyLearners
        | MemberError::NotEnoughStarted => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

/// Nobody leads.
#[must_use]
pub fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

/// Somebody else leads.
#[must_use]
pub fn not_leader() -> Status {
    Refusal::NotLeader.into()
}

/// A member that only listens was asked for what others do.
#[must_use]
pub fn learner() -> Status {
    Status::unavailable("etcdserver: rpc not supported for learner")
}

/// A reply of another kind than its operation: a mistake of ours.
#[must_use]
pub fn wrong_reply() -> Status {
    Status::internal("etcdserver: reply of another kind")
}
