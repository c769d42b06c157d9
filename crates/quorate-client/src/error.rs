//! Every way in which a call of this crate fails, as types to match on. Messages are for people and
//! say what was tried; nothing in the crate, and nothing that uses it, should have to look into a
//! text.

#[cfg(feature = "tls")]
mod handshake;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::trailers;
pub use tonic::Code;
use tonic::Status;

/// Why a call failed.
///
/// ```no_run
/// use quorate_client::{Client, Error};
/// # async fn example(client: Client) {
/// match client.fetch("payments").await {
///     Ok(payments) => println!("{} can be called", payments.instances.len()),
///     Err(Error::UnknownService { .. } | Error::NoInstances { .. }) => println!("none is there"),
///     Err(Error::Unreachable { tried, .. }) => println!("no node answers: {tried:?}"),
///     Err(error) => println!("a mistake of ours: {error}"),
/// }
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of node addresses is empty.
    #[error("no node address was given; name at least one, as host:port")]
    NoAddresses,
    /// An address that no node can have.
    #[error("\"{address}\" is no node address ({fault}); expected host:port")]
    InvalidAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        fault: AddressFault,
    },
    /// A variable of the environment that is not set, or says what cannot be.
    #[error("{variable}: {fault}")]
    InvalidVariable {
        /// Its name.
        variable: &'static str,
        /// What is wrong, and what it should be.
        fault: String,
    },
    /// Certificates or a token that cannot be used. Never shows a secret.
    #[error("{option}: {fault}")]
    InvalidCredential {
        /// The option's name: `tls` or `token`.
        option: &'static str,
        /// What is wrong, and in which file.
        fault: String,
    },
    /// An option that is out of its range or contradicts another.
    #[error("{option} = {value:?}: {must}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value it was given.
        value: Duration,
        /// What it must be.
        must: &'static str,
    },
    /// An endpoint is to have the address of its listener, which is bound to all addresses and so
    /// has none to be called at.
    #[error(
        "endpoint \"{endpoint}\": {{addr}} is {bound}, which cannot be called; write a host, and {{port}} for the port"
    )]
    NoAddress {
        /// The endpoint's name.
        endpoint: String,
        /// What the listener is bound to.
        bound: SocketAddr,
    },
    /// A name that nothing can have: 1 to 253 of `A-Z a-z 0-9 . _ -`, with a letter or digit at
    /// both ends.
    #[error(
        "\"{name}\" is no name of a {what}: 1 to 253 letters, digits, '.', '_' or '-', with a letter or digit at both ends"
    )]
    InvalidName {
        /// What it should name.
        what: &'static str,
        /// What was given.
        name: String,
    },
    /// No instance of this service was registered within the last hour.
    #[error("service \"{service}\" is not known to the registry")]
    UnknownService {
        /// The service asked for.
        service: String,
    },
    /// The service is known, and none of its instances can be called now.
    #[error("service \"{service}\" has no instance that is UP")]
    NoInstances {
        /// The service asked for.
        service: String,
    },
    /// No node gave an answer, or the one that did has no room now and an attempt before got none.
    /// A write may or may not have happened, and may happen yet: what is on its way to a node is
    /// done when it arrives.
    #[error("{operation}: {}{}; tried {}", none_did(tried), Within(*within), Tried(tried))]
    Unreachable {
        /// What was to be done.
        operation: &'static str,
        /// The time that was given, where it has passed; `None`: what was tried failed sooner.
        within: Option<Duration>,
        /// Each address that was tried, with what came of it last.
        tried: Vec<Attempt>,
    },
    /// The registry answered, and said no.
    #[error("{operation} was refused ({code:?}): {message}")]
    Rejected {
        /// What was to be done.
        operation: &'static str,
        /// The kind of refusal.
        code: Code,
        /// The registry's explanation, for people.
        message: String,
    },
    /// The nodes that answer and this client do not agree on encryption.
    #[error("{operation}: {mismatch}")]
    TlsMismatch {
        /// What was to be done.
        operation: &'static str,
        /// On what they do not agree.
        mismatch: TlsMismatch,
    },
    /// Another cluster answers than the one that granted a registration's lease, or sent the first
    /// part of an answer: it was founded again, or the addresses lead to another one.
    #[error("another cluster answers: {is} instead of {was}")]
    OtherCluster {
        /// The cluster before.
        was: ClusterId,
        /// The one that answers now.
        is: ClusterId,
    },
    /// A newer run of the process holds the instance (or another client deregistered it): this run
    /// has lost it.
    #[error("a newer run holds the instance, or it was deregistered{}", Current(*current))]
    Superseded {
        /// The incarnation that holds it, where the registry named it.
        current: Option<u64>,
    },
    /// This client already keeps this instance registered.
    #[error("this client already keeps {service}/{id} registered")]
    AlreadyRegistered {
        /// The instance's service.
        service: String,
        /// The instance's id.
        id: String,
    },
    /// The registration was deregistered before.
    #[error("the registration was already deregistered")]
    AlreadyDeregistered,
    /// The registration has no such instance.
    #[error("the registration has no instance {service}/{id}")]
    NoSuchInstance {
        /// The service asked for.
        service: String,
        /// The id asked for.
        id: String,
    },
    /// The answer lacks something that the wire contract promises: the node is of another version,
    /// or has a bug.
    #[error("{operation}: the answer has no {missing}")]
    BadAnswer {
        /// What was to be done.
        operation: &'static str,
        /// What the answer should have had.
        missing: &'static str,
    },
    /// A client was made outside of a tokio runtime, on which its background work would run.
    #[error("there is no tokio runtime; make the client within one")]
    NoRuntime,
    /// The background task is gone because its runtime was shut down.
    #[error("the background task has ended: its runtime was shut down")]
    Stopped,
}

/// Durations that an application sets are no shorter than this.
const SHORTEST: Duration = Duration::from_millis(10);
/// And no longer: some time after it, adding them to a time that is now would overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Refuses what no setting can be.
pub(crate) fn check_duration(option: &'static str, value: Duration) -> Result<(), Error> {
    if (SHORTEST..=LONGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidOption { option, value, must: "must be from 10 ms to 365 days" })
}

/// What is wrong with an address.
///
/// Stands in [`Error::InvalidAddress`]; an example is at [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressFault {
    /// There is no host.
    #[error("it has no host")]
    NoHost,
    /// There is no port, or none from 1 to 65535.
    #[error("it has no port from 1 to 65535")]
    NoPort,
    /// It asks for TLS, and the client was given no CA.
    #[error("https needs a CA to trust, and the client has none")]
    Tls,
    /// It asks for a connection without TLS, and the client is to use it.
    #[error("http is not encrypted, and the client is to use TLS")]
    Plaintext,
    /// It is on another machine, and the token would go there for all to read.
    #[error("the token would go there unencrypted")]
    PlaintextToken,
    /// Characters that no address has.
    #[error("it has characters that an address cannot have")]
    Characters,
}

/// One address that was tried in vain.
///
/// An example is at [`Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The node's address.
    pub address: String,
    /// The kind of failure.
    pub code: Code,
    /// The explanation, for people.
    pub reason: String,
    /// Whether that was because the two do not agree on encryption.
    pub mismatch: Option<TlsMismatch>,
    /// Whether the node itself said so: it runs, and could not do it now.
    pub answered: bool,
}

impl Attempt {
    pub(crate) fn of(address: impl Into<String>, status: &Status) -> Self {
        Self {
            address: address.into(),
            code: status.code(),
            reason: explain(status),
            mismatch: TlsMismatch::of(status),
            // What the transport says of itself has a cause; that nothing came is said here. That
            // another change is in the way (`Aborted`) is an answer, too.
            answered: matches!(
                status.code(),
                Code::Unavailable | Code::ResourceExhausted | Code::Aborted
            ) && innermost(status).is_none(),
        }
    }
}

/// On what a node and a client do not agree.
///
/// Stands in [`Attempt`] and [`Error::TlsMismatch`]; an example is at [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsMismatch {
    /// The node speaks TLS only.
    #[error("the node wants TLS, and this client does not use it: give the CA of its certificate")]
    NodeWantsTls,
    /// The node does not speak TLS.
    #[error("the node does not speak TLS on this port, and this client was given a CA")]
    NodeHasNoTls,
}

impl TlsMismatch {
    fn of(status: &Status) -> Option<Self> {
        let cause = innermost(status)?;
        #[cfg(feature = "tls")]
        if handshake::is_not_tls(cause) {
            return Some(Self::NodeHasNoTls);
        }
        let of_http2 = cause.downcast_ref::<h2::Error>()?;
        // So it reads the alert with which a TLS server answers a client that does not encrypt.
        let is_alert = of_http2.reason() == Some(h2::Reason::FRAME_SIZE_ERROR);
        (is_alert && of_http2.is_library()).then_some(Self::NodeWantsTls)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.reason)
    }
}

impl Error {
    pub(crate) fn rejected(operation: &'static str, status: &Status) -> Self {
        match TlsMismatch::of(status) {
            Some(mismatch) => Self::TlsMismatch { operation, mismatch },
            None => Self::Rejected { operation, code: status.code(), message: explain(status) },
        }
    }

    pub(crate) fn superseded(status: &Status) -> Self {
        Self::Superseded { current: current_incarnation(status) }
    }
}

/// The incarnation that holds the instance, as a FAILED_PRECONDITION names it.
pub(crate) fn current_incarnation(status: &Status) -> Option<u64> {
    status.metadata().get(trailers::INCARNATION)?.to_str().ok()?.parse().ok()
}

/// What a failure of the transport comes from.
pub(crate) fn innermost(status: &Status) -> Option<&(dyn std::error::Error + 'static)> {
    causes(status).last()
}

/// The same, and all between.
pub(crate) fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |cause| cause.source())
}

/// A status in words, with the innermost cause where the transport hides it ("transport error" says
/// nothing).
fn explain(status: &Status) -> String {
    if let Some(mismatch) = TlsMismatch::of(status) {
        return mismatch.to_string();
    }
    let innermost = innermost(status);
    #[cfg(feature = "tls")]
    if let Some(words) = innermost.and_then(handshake::in_words) {
        return words;
    }
    let cause = innermost.map(ToString::to_string).unwrap_or_default();
    match (status.message(), cause.as_str()) {
        ("", "") if status.code() == Code::Unimplemented => {
            "what answers there does not know this call".to_owned()
        }
        ("", "") => format!("{:?}", status.code()),
        (message, "") => message.to_owned(),
        ("", cause) => cause.to_owned(),
        (message, cause) if message.contains(cause) => message.to_owned(),
        (message, cause) => format!("{message}: {cause}"),
    }
}

/// What a call came to that no node did.
fn none_did(tried: &[Attempt]) -> &'static str {
    match tried.iter().any(|attempt| attempt.answered) {
        true => "no node could do it",
        false => "no answer from the registry",
    }
}

struct Within(Option<Duration>);

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(span) = self.0 else { return Ok(()) };
        // Fractions of a millisecond are of no use to a reader.
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        write!(f, " within {:?}", Duration::from_millis(ms))
    }
}

struct Tried<'a>(&'a [Attempt]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing: the deadline passed first");
        }
        for (at, attempt) in self.0.iter().enumerate() {
            write!(f, "{}{attempt}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Current(Option<u64>);

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(incarnation) => write!(f, " (current incarnation: {incarnation})"),
            None => Ok(()),
        }
    }
}
