//! Why a command failed, and the exit code for scripts and supervisors: 1 refused or failed, 2
//! usage, 3 cluster unreachable, 4 a node that an operator has to look after.

use std::io;

use quorate_client::{AddressFault, Attempt, Code, Error, TlsMismatch};
use quorate_node::{RunError, StartError};

/// A failed command: what to print, and which code to exit with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
/// Starting the node again changes nothing.
const NEEDS_OPERATOR: u8 = 4;
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
            Error::InvalidCredential { option: "tls", .. } => (USAGE, TLS_FILES),
            Error::InvalidCredential { .. } => (USAGE, TOKEN_FILES),
            Error::NoAddresses | Error::InvalidAddress { .. } => {
                (USAGE, "name the cluster's nodes with --nodes or QUORATE_NODES")
            }
            Error::InvalidOption { .. } => (USAGE, ""),
            Error::TlsMismatch { mismatch, .. } => (UNREACHABLE, to_agree(*mismatch)),
            Error::Unreachable { tried, operation, .. } => {
                let mismatch = tried.last().and_then(|last: &Attempt| last.mismatch);
                let answered = tried.iter().any(|attempt| attempt.answered);
                let next = match *operation {
                    _ if !answered => NONE_ANSWERS,
                    "cluster backup" => NONE_CAN_BACK_UP,
                    _ => NONE_CAN,
                };
                (UNREACHABLE, mismatch.map_or(next, to_agree))
            }
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
            Error::Rejected { code: Code::Unauthenticated, .. } => (
                FAILED,
                "say who you are: --token-file or QUORATE_TOKEN, or --cert and --key; the credential has to be of this cluster, not to have ended, and to stand in the access file of its nodes",
            ),
            Error::Rejected { code: Code::Internal, .. } => (FAILED, "the node's log says more"),
            Error::Rejected { code: Code::Unimplemented, .. } => (
                FAILED,
                "name the nodes' addresses for clients (`quorate serve --listen`), not those for other nodes (--peer-listen)",
            ),
            Error::Superseded { .. } => (
                FAILED,
                "the instance runs elsewhere, or an operator removed it; register again to take it over",
            ),
            _ => (FAILED, ""),
        };
        let again = if is_lost_write(&error) { "; it is safe to repeat a write" } else { "" };
        let next = if next.is_empty() { String::new() } else { format!("\n  next: {next}{again}") };
        Self { code, message: format!("{error}{next}") }
    }
}

const TLS_FILES: &str = "look at --ca, --crl, --cert and --key, or QUORATE_CA, QUORATE_CRL, QUORATE_CERT and QUORATE_KEY, or the context";
const TOKEN_FILES: &str =
    "look at --token-file or QUORATE_TOKEN_FILE, QUORATE_TOKEN, or the context";
const NONE_ANSWERS: &str = "check that the nodes run and that --nodes or QUORATE_NODES names them, by their addresses for clients (`quorate serve --listen`)";
const NONE_CAN: &str = "`quorate cluster status` says how the cluster is";
const NONE_CAN_BACK_UP: &str = "`quorate cluster status` says how the cluster is; without a quorum, `quorate cluster backup --local` copies what one node has";

/// A write of which nobody knows whether it was done.
fn is_lost_write(error: &Error) -> bool {
    const WRITES: [&str; 4] = ["register", "deregister", "update", "override"];
    matches!(error, Error::Unreachable { operation, .. } if WRITES.contains(operation))
}

fn to_agree(mismatch: TlsMismatch) -> &'static str {
    match mismatch {
        TlsMismatch::NodeWantsTls => {
            "give the CA of the nodes' certificates with --ca or QUORATE_CA; nodes without certificates say this at their port for HTTP (--http-listen): name those for clients (`quorate serve --listen`)"
        }
        TlsMismatch::NodeHasNoTls => {
            "leave out --ca, QUORATE_CA and `ca` in the context, or have the nodes use TLS (`quorate serve --tls-cert`)"
        }
        _ => "",
    }
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
    let code = match &error {
        StartError::Config(_) | StartError::RaftConfig { .. } => USAGE,
        error if error.needs_operator() => NEEDS_OPERATOR,
        _ => FAILED,
    };
    let mut failure = Failure { code, message: format!("{:#}", chain(error)) };
    if let Some(who) = denied(&failure.message) {
        // It stays so until somebody changes it, as a wrong setting does.
        failure.code = failure.code.max(USAGE);
        failure.message += &format!("\n  {who}\n  next: {TO_PERMIT}");
    }
    failure
}

/// systemd's copy stays as it was at the start: what was revoked would go on being trusted.
const TO_PERMIT: &str = "let that user read it (and write the data directory), or run the node as its owner; with systemd, LoadCredential= in quorate@.service hands over a certificate and its key, but no CA, revocation list or access file, which are to be read again";

/// Of what failed for want of a permission of the file system: as whom this process asked. Some
/// errors show their source through, which so is none of the causes: the words are looked at.
pub(crate) fn denied(message: &str) -> Option<String> {
    let denied = format!("(os error {})", rustix::io::Errno::ACCESS.raw_os_error());
    let uid = rustix::process::geteuid().as_raw();
    message.contains(&denied).then(|| format!("this process runs as the user with uid {uid}"))
}

/// A node that ran, and ended by itself.
pub(crate) fn ended(error: RunError) -> Failure {
    let code = if error.needs_operator() { NEEDS_OPERATOR } else { FAILED };
    Failure { code, message: format!("{:#}", chain(error)) }
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
    fn what_this_user_may_not_use_is_a_wrong_setting() {
        let source = io::Error::from_raw_os_error;
        let failure = |error| {
            let dir = "/var/lib/quorate/node-1".into();
            not_started(StartError::DataDir { dir, source: source(error) })
        };
        let denied = failure(rustix::io::Errno::ACCESS.raw_os_error());
        let uid = format!("uid {}", rustix::process::geteuid().as_raw());
        assert_eq!(denied.code(), USAGE);
        let only = "a certificate and its key, but no CA";
        for words in ["/var/lib/quorate/node-1", &uid, "LoadCredential=", only] {
            assert!(denied.message().contains(words), "{denied:?}");
        }
        // Where the error that the system gave is shown through by another.
        let path = "/etc/quorate/node-1.key".into();
        let text = source(rustix::io::Errno::ACCESS.raw_os_error()).to_string();
        assert_eq!(not_started(StartError::Tls { path, source: text.into() }).code(), USAGE);
        assert_eq!(failure(rustix::io::Errno::IO.raw_os_error()).code(), FAILED, "it may pass");
    }

    #[test]
    fn no_local_backup_is_offered_where_no_node_answers() {
        let (operation, within, tried) = ("cluster backup", None, Vec::new());
        let failure = Failure::from(Error::Unreachable { operation, within, tried });
        assert!(!failure.message().contains("--local"), "nor would that one answer: {failure:?}");
    }

    #[test]
    fn each_kind_of_failure_has_its_code() {
        let unreachable = Error::Unreachable {
            operation: "fetch",
            within: Some(Duration::from_secs(5)),
            tried: vec![],
        };
        let refused = Error::Rejected {
            operation: "register",
            code: Code::InvalidArgument,
            message: "ttl_ms = 1: at least 1000".to_owned(),
        };
        let unauthenticated = Error::Rejected {
            operation: "fetch",
            code: Code::Unauthenticated,
            message: "no credential came with the call".to_owned(),
        };
        let mismatch = TlsMismatch::NodeWantsTls;
        let plain = Error::TlsMismatch { operation: "fetch", mismatch };
        for (error, next) in [(unauthenticated.clone(), "say who you are"), (plain, "give the CA")]
        {
            let failure = Failure::from(error);
            assert!(failure.message().contains(&format!("next: {next}")), "{failure:?}");
        }
        for (error, code) in [
            (unreachable, 3),
            (refused, 1),
            (unauthenticated, 1),
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
