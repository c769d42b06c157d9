//! Why another node cannot be talked to, in words for the operator who has to repair it. Knows what
//! the TLS and HTTP/2 libraries say, and nothing of nodes.

use std::error::Error;
use std::io;

use rustls::{CertificateError, InvalidMessage};
use tonic::Status;

/// What a TLS server's answer is for HTTP/2, which expects none.
const NOT_A_FRAME: &str = "frame with invalid size";

/// The words for what a library said; `None`: it has words, or was not asked.
pub(super) fn of(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // An I/O error shows what it holds, and does not return it as its source.
    let held = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let held = held.and_then(|held| held.downcast_ref::<rustls::Error>());
    match held.or_else(|| cause.downcast_ref()) {
        Some(of_tls) => Some(of_library(of_tls)),
        None => cause.to_string().contains(NOT_A_FRAME).then(|| {
            "what listens there speaks TLS (or HTTP/1), and this node has no certificate: all nodes of a cluster have some, or none"
                .to_owned()
        }),
    }
}

fn of_library(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what listens there does not speak TLS: start that node with --tls-cert, --tls-key and --tls-ca, as the others"
                .to_owned()
        }
        // It shows our own error as a debugger would.
        rustls::Error::InvalidCertificate(CertificateError::Other(ours)) => ours.0.to_string(),
        rustls::Error::InvalidCertificate(fault) => format!("its certificate is not taken: {fault}"),
        rustls::Error::AlertReceived(alert) => {
            format!("it does not take this node's certificate ({alert:?}): its log says why")
        }
        other => format!("TLS: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{AlertDescription, OtherError};

    use super::*;

    #[test]
    fn libraries_are_told_in_words() {
        let told = |error: rustls::Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            of(&Status::from_error(Box::new(error))).unwrap()
        };
        let invalid = rustls::Error::InvalidCertificate;
        let ours = Arc::new(io::Error::other("it is node 5, not node 4"));
        for (error, words) in [
            (InvalidMessage::InvalidContentType.into(), "does not speak TLS"),
            (invalid(CertificateError::Other(OtherError(ours))), "it is node 5, not node 4"),
            (invalid(CertificateError::UnknownIssuer), "its certificate is not taken: "),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "its log says why"),
        ] {
            let said = told(error);
            assert!(said.contains(words) && !said.contains("OtherError"), "{said}");
        }
        assert_eq!(of(&Status::unavailable("it says so")), None);
        assert_eq!(of(&Status::from_error(io::Error::other("refused").into())), None);
    }
}
