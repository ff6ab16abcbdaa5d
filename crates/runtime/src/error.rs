//! The runtime's errors, and the one place where they become gRPC statuses.

use std::io;

use coxswain_cri::NetworkError;
use tonic::{Code, Status};

use crate::image::{PullError, StoreError};
use crate::shim::client::ShimError;
use crate::spec::SpecError;

/// Why a CRI call failed. The texts reach users through the kubelet's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// No such sandbox, container or image.
    #[error("{kind} {id:?} not found")]
    NotFound { kind: &'static str, id: String },
    /// The request leaves something out or contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The object is not in the state the call needs.
    #[error("{0}")]
    Precondition(String),
    /// A deadline passed.
    #[error("{0}")]
    TimedOut(String),
    /// Work on the host failed.
    #[error("{step}: {source}")]
    Io { step: &'static str, source: io::Error },
    /// The shim failed.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The container cannot be described.
    #[error("failed to generate container spec: {0}")]
    Spec(#[from] SpecError),
    /// The pod network failed.
    #[error("failed to set up the network of sandbox {sandbox}: {source}")]
    Network { sandbox: String, source: NetworkError },
    /// The image store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pull failed.
    #[error(transparent)]
    Pull(#[from] PullError),
}

impl RuntimeError {
    pub fn not_found(kind: &'static str, id: &str) -> Self {
        Self::NotFound { kind, id: id.to_owned() }
    }
}

/// Names the step an I/O error belongs to.
pub(crate) fn during(step: &'static str) -> impl FnOnce(io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { step, source }
}

impl From<RuntimeError> for Status {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::NotFound { .. } | RuntimeError::Pull(PullError::NotFound { .. }) => Code::NotFound,
            RuntimeError::Invalid(_) => Code::InvalidArgument,
            RuntimeError::Precondition(_) => Code::FailedPrecondition,
            RuntimeError::TimedOut(_) => Code::DeadlineExceeded,
            RuntimeError::Pull(PullError::Denied { .. }) => Code::PermissionDenied,
            RuntimeError::Store(StoreError::Reference(_))
            | RuntimeError::Pull(PullError::Store(StoreError::Reference(_))) => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        Status::new(code, error.to_string())
    }
}
