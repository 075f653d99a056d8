//! The one table from refusals to gRPC codes. Clients compare both code and words.

use tonic::{Code, Status};

use crate::engine::Refusal;
use crate::mvcc::Error;

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
            Refusal::NotLeader => Self::failed_precondition(refusal.to_string()),
            Refusal::LeaderChanged | Refusal::Stopped => Self::unavailable(refusal.to_string()),
        }
    }
}

/// A member id that the cluster does not have.
#[must_use]
pub fn member_not_found() -> Status {
    Status::not_found("etcdserver: member not found")
}

/// A reply of another kind than its operation: a mistake of ours.
#[must_use]
pub fn wrong_reply() -> Status {
    Status::internal("etcdserver: reply of another kind")
}
