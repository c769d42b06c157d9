//! What went wrong between two ends of an encrypted connection, in words for the operators who have
//! to repair it. Knows nothing of where certificates come from.

use std::error::Error;
use std::io;

use rustls::{CertificateError, InvalidMessage};

/// What the TLS library said, if it is that, or an I/O error that holds it.
fn of_library<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    // An I/O error shows what it holds, and does not return it as its source.
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let held = held.and_then(|held| held.downcast_ref::<rustls::Error>());
    held.or_else(|| error.downcast_ref())
}

/// Whether something else than TLS came.
pub(super) fn is_not_tls(error: &(dyn Error + 'static)) -> bool {
    let wrong = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
    of_library(error) == Some(&wrong)
}

/// In plain words, if this is what the TLS library said.
pub(super) fn in_words(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = of_library(error) {
        return Some(words(error));
    }
    // What the node says after the handshake (with TLS 1.3, all that it says of the client's
    // certificate) comes by HTTP/2, which leaves only the text.
    error.to_string().strip_prefix("received fatal alert: ").map(of_ours)
}

fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(fault) => of_node(fault),
        rustls::Error::AlertReceived(alert) => of_ours(&format!("{alert:?}")),
        rustls::Error::NoApplicationProtocol => {
            "the server does not speak HTTP/2; is it a Quorate node?".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

/// What is wrong with the node's certificate.
fn of_node(fault: &CertificateError) -> String {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the node's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the node's certificate is not valid yet; are the clocks right?".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the node's certificate is of a CA that this client does not trust".to_owned()
        }
        CertificateError::BadSignature => {
            "the node's certificate is not signed by the CA that it names".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let is_for = if presented.is_empty() {
                "no name at all".to_owned()
            } else {
                let names = presented.iter().map(|name| bare(name));
                names.collect::<Vec<_>>().join(", ")
            };
            format!("the node's certificate is for {is_for}, and not for \"{}\"", expected.to_str())
        }
        CertificateError::NotValidForName => {
            "the node's certificate is not for the name that it was called by".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the node's certificate is not one of a server".to_owned()
        }
        CertificateError::Revoked => "the node's certificate has been revoked".to_owned(),
        other => format!("the node's certificate cannot be used: {other}"),
    }
}

/// `DnsName("a.b")` and the like, without what is around the name.
fn bare(presented: &str) -> &str {
    let inside = presented.split_once('(').map_or(presented, |(_, inside)| inside);
    inside.trim_end_matches(')').trim_matches('"')
}

/// What the node says of this client's certificate, by the name of an alert.
fn of_ours(alert: &str) -> String {
    match alert {
        "CertificateRequired" => {
            "the node asks for a client certificate, and none was given".to_owned()
        }
        "CertificateExpired" => {
            "the node says that this client's certificate has expired".to_owned()
        }
        "CertificateRevoked" => {
            "the node says that this client's certificate has been revoked".to_owned()
        }
        "UnknownCA" => "the node does not trust the CA of this client's certificate".to_owned(),
        "BadCertificate"
        | "UnsupportedCertificate"
        | "CertificateUnknown"
        | "AccessDenied"
        | "DecryptError" => format!("the node refuses this client's certificate ({alert})"),
        "NoApplicationProtocol" => {
            "the server does not speak HTTP/2; is it a Quorate node?".to_owned()
        }
        _ => format!("the node ended the TLS connection ({alert})"),
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_words_however_it_is_wrapped() {
        let expected = ServerName::try_from("10.0.0.1").unwrap();
        let presented = vec!["DnsName(\"a.b\")".to_owned(), "IpAddress(::1)".to_owned()];
        let name = CertificateError::NotValidForNameContext { expected, presented };
        let alert = rustls::Error::AlertReceived;
        for (error, words) in [
            (name.into(), "is for a.b, ::1, and not for \"10.0.0.1\""),
            (CertificateError::Expired.into(), "the node's certificate has expired"),
            (CertificateError::UnknownIssuer.into(), "of a CA that this client does not trust"),
            (alert(AlertDescription::CertificateExpired), "this client's certificate has expired"),
            (alert(AlertDescription::UnknownCA), "does not trust the CA of this client's"),
            (alert(AlertDescription::CertificateRequired), "asks for a client certificate"),
        ] {
            let plain = in_words(&error).unwrap();
            assert!(plain.contains(words), "{plain}");
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
            let text = io::Error::other(wrapped.to_string());
            assert_eq!(in_words(&wrapped).as_ref(), Some(&plain));
            if text.to_string().contains("alert") {
                assert_eq!(in_words(&text).as_ref(), Some(&plain), "the text alone");
            }
        }
        assert_eq!(in_words(&io::Error::other("something else")), None);
    }
}
