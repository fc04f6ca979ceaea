//! Failures of a transfer, in the words of a gateway's refusals.

use holdfast_files::{Failure, emit::Stopped};
use holdfast_wire::reason::{Reason, key};

use crate::{
    client::{self, Refusal},
    failure::Failed,
};

/// As the gateway would have told it: the failure came in the stream, or is this machine's own.
pub(super) fn of_failure(failure: &Failure) -> Failed {
    let reason = Reason::of_file(failure.kind);
    let code = match reason {
        Reason::FileNotFound | Reason::TransferGone => tonic::Code::NotFound,
        Reason::FileDenied => tonic::Code::PermissionDenied,
        Reason::NoSpace | Reason::LimitReached => tonic::Code::ResourceExhausted,
        Reason::FileExists => tonic::Code::AlreadyExists,
        Reason::DigestMismatch => tonic::Code::DataLoss,
        Reason::InvalidArgument | Reason::PathEscapes => tonic::Code::InvalidArgument,
        _ => tonic::Code::FailedPrecondition,
    };
    let mut metadata = std::collections::BTreeMap::new();
    if !failure.path.as_os_str().is_empty() {
        metadata.insert(key::PATH.to_owned(), failure.path.display().to_string());
    }
    if failure.errno != 0 {
        metadata.insert(key::ERRNO.to_owned(), failure.errno.to_string());
    }
    let refusal = Refusal {
        code,
        reason: Some(reason.as_str().to_owned()),
        message: failure.message.clone(),
        metadata,
    };
    client::Error::Refused { what: "copy".to_owned(), refusal: Box::new(refusal) }.into()
}

pub(super) fn of_stopped(stopped: &Stopped) -> Failed {
    match stopped {
        Stopped::Failed(failure) => of_failure(failure),
        Stopped::Closed(_) => Failed::local("copy", stopped),
    }
}
