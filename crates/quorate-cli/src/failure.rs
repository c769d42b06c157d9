//! Why a command failed, and the exit code for scripts: 1 refused or failed, 2 usage, 3 cluster
//! unreachable.

use std::io;

use quorate_client::{AddressFault, Attempt, Code, Error};
use quorate_node::StartError;

/// A failed command: what to print, and which code to exit with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
/// As shells say it.
const NOT_STARTED: u8 = 127;

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: UNREACHABLE, message: message.into() }
    }

    /// The exit code of a program that was run; nothing more is to be said.
    pub(crate) fn of_program(code: u8) -> Self {
        Self { code, message: String::new() }
    }

    /// A program that could not be started.
    pub(crate) fn not_started(message: impl Into<String>) -> Self {
        Self { code: NOT_STARTED, message: message.into() }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

/// What was tried stands in the client's errors; here it is said what to do next.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, next) = match &error {
            Error::InvalidAddress { fault: AddressFault::PlaintextToken, .. } => (
                USAGE,
                "give the CA of its certificate with --ca, or --allow-plaintext-token if no one else can listen",
            ),
            Error::InvalidAddress { fault: AddressFault::Tls, .. } => {
                (USAGE, "give the CA of its certificate with --ca or QUORATE_CA")
            }
            Error::InvalidCredential { .. } => (USAGE, ""),
            Error::NoAddresses | Error::InvalidAddress { .. } => {
                (USAGE, "name the cluster's nodes with --nodes or QUORATE_NODES")
            }
            Error::InvalidOption { .. } => (USAGE, ""),
            Error::Unreachable { tried, .. } if says(tried, WANTS_TLS) => (UNREACHABLE, GIVE_CA),
            Error::Unreachable { tried, .. } if says(tried, "does not speak TLS") => (
                UNREACHABLE,
                "leave out --ca, QUORATE_CA and `ca` in the context, or have the nodes use TLS (`quorate serve --tls-cert`)",
            ),
            Error::Unreachable { .. } => (
                UNREACHABLE,
                "check that the nodes run and that --nodes or QUORATE_NODES names them; it is safe to repeat a write",
            ),
            Error::UnknownService { .. } => {
                (FAILED, "`quorate services` lists what there is; check --namespace too")
            }
            // The refusal itself says where members are listed.
            Error::Rejected { code: Code::NotFound, operation, .. }
                if operation.ends_with(" node") =>
            {
                (FAILED, "")
            }
            Error::Rejected { code: Code::NotFound, .. } => {
                (FAILED, "`quorate fetch SERVICE` shows what is registered; check --namespace too")
            }
            Error::Rejected { code: Code::Unauthenticated, message, .. }
                if message.contains("no credential") =>
            {
                (FAILED, "say who you are: --token-file or QUORATE_TOKEN, or --cert and --key")
            }
            Error::Rejected { code: Code::Unauthenticated, .. } => (
                FAILED,
                "check that the credential is of this cluster, has not ended, and stands in the access file of its nodes",
            ),
            Error::Rejected { code: Code::Internal, message, .. }
                if message.contains(WANTS_TLS) =>
            {
                (UNREACHABLE, GIVE_CA)
            }
            Error::Rejected { code: Code::Internal, .. } => (FAILED, "the node's log says more"),
            Error::Superseded { .. } => (
                FAILED,
                "the instance runs elsewhere, or an operator removed it; register again to take it over",
            ),
            _ => (FAILED, ""),
        };
        let next = if next.is_empty() { String::new() } else { format!("\n  next: {next}") };
        Self { code, message: format!("{error}{next}") }
    }
}

/// As the client says it of a node.
const WANTS_TLS: &str = "wants TLS";
const GIVE_CA: &str = "give the CA of the nodes' certificates with --ca or QUORATE_CA";

/// Whether the last attempt was told this.
fn says(tried: &[Attempt], words: &str) -> bool {
    tried.last().is_some_and(|attempt| attempt.reason.contains(words))
}

/// Only output is written outside the commands that name their files. A reader that has gone
/// (`| head`) is no failure to talk about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::failed(""),
            _ => Self::failed(format!("cannot write the output: {error}")),
        }
    }
}

/// A wrong setting is a usage error, everything else a failed start.
pub(crate) fn not_started(error: StartError) -> Failure {
    let usage = matches!(error, StartError::Config(_) | StartError::RaftConfig { .. });
    let message = format!("{:#}", chain(error));
    if usage { Failure::usage(message) } else { Failure::failed(message) }
}

/// An error with its causes.
pub(crate) fn chain(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow::Error::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_kind_of_failure_has_its_code() {
        let unreachable = Error::Unreachable {
            operation: "fetch",
            within: Duration::from_secs(5),
            tried: vec![],
        };
        let refused = Error::Rejected {
            operation: "register",
            code: Code::InvalidArgument,
            message: "ttl_ms = 1: at least 1000".to_owned(),
        };
        let unauthenticated = |message: &str| Error::Rejected {
            operation: "fetch",
            code: Code::Unauthenticated,
            message: message.to_owned(),
        };
        // Who has said so is not asked again.
        for (message, asked) in
            [("no credential came with the call", true), ("the credential has expired", false)]
        {
            let failure = Failure::from(unauthenticated(message));
            assert_eq!(failure.message().contains("say who you are"), asked, "{message}");
        }
        for (error, code) in [
            (unreachable, 3),
            (refused, 1),
            (unauthenticated("no credential came with the call"), 1),
            (Error::NoAddresses, 2),
            (Error::UnknownService { service: "s".to_owned() }, 1),
            (Error::Superseded { current: Some(1) }, 1),
        ] {
            let text = error.to_string();
            let failure = Failure::from(error);
            assert_eq!(failure.code(), code, "{text}");
            assert!(failure.message().starts_with(&text), "the message keeps what happened");
        }
    }
}
