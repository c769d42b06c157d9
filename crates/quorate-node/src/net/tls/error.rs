//! Why the files of TLS cannot be used: which of them, and what is wrong with it.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;
use rustls::server::VerifierBuilderError;
use x509_parser::error::X509Error;
use x509_parser::nom;

use crate::net::tls::files::{FILE_MAX, READ_WITHIN};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub(crate) struct TlsError {
    pub(crate) path: PathBuf,
    #[source]
    pub(crate) problem: Problem,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("no regular file")]
    NoFile,
    #[error("{bytes} bytes long, at most {FILE_MAX}")]
    TooLarge { bytes: u64 },
    #[error("not read within {READ_WITHIN:?}")]
    Slow,
    #[error("a part of it cannot be read")]
    Pem(#[source] pem::Error),
    #[error("it has {frames} lines that begin or end a {what}, and {whole} whole ones")]
    Frames { what: &'static str, frames: usize, whole: usize },
    #[error("no private key")]
    NoKey(#[source] pem::Error),
    #[error("not the certificate's")]
    OtherKey(#[source] rustls::Error),
    #[error("no certificate in it")]
    NoCertificate,
    #[error("its certificate says no time")]
    NoTime,
    #[error("its certificate is not valid yet")]
    NotYet,
    #[error("its certificate has expired")]
    Ended,
    #[error("certificate {at} in it")]
    Authority {
        at: usize,
        #[source]
        source: rustls::Error,
    },
    /// Its holder could issue certificates for everybody.
    #[error("certificate {at} in it is no authority's: it does not say CA:TRUE")]
    NoAuthority { at: usize },
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
    /// What the TLS library says of this node's own certificate, or of all of it.
    #[error(transparent)]
    Refused(#[from] rustls::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("names {found}, must name {wanted}: this node of this cluster")]
    OtherNode { found: String, wanted: String },
    #[error(transparent)]
    List(#[from] ListError),
}

impl Problem {
    /// Whether it is of a certificate that was good once, whatever stands in the other files: it
    /// has ended, or was revoked.
    pub(super) fn is_of_its_end(&self) -> bool {
        use rustls::CertificateError as Why;
        match self {
            Self::NotYet | Self::Ended => true,
            Self::Refused(rustls::Error::InvalidCertificate(why)) => matches!(
                why,
                Why::Expired
                    | Why::ExpiredContext { .. }
                    | Why::NotValidYet
                    | Why::NotValidYetContext { .. }
                    | Why::Revoked
            ),
            _ => false,
        }
    }
}

/// What is wrong with the revocation lists.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("no revocation list in it")]
    None,
    #[error("list {at} in it")]
    Unreadable {
        at: usize,
        #[source]
        source: webpki::Error,
    },
    #[error("list {at} in it is of {issuer:?}, which is no authority of this node's")]
    Foreign { at: usize, issuer: String },
    #[error("list {at} in it is not signed by {issuer:?}, of which it says it is")]
    NotSigned { at: usize, issuer: String },
    #[error(
        "list {at} in it is of {issuer:?}, as one before it: of an authority (and of two with one name) only one is looked at; keep the newest alone, and give authorities names of their own"
    )]
    Twice { at: usize, issuer: String },
    /// Which the TLS library could.
    #[error("list {at} in it")]
    Unparsed {
        at: usize,
        #[source]
        source: nom::Err<X509Error>,
    },
    #[error("list {at} in it, of {issuer:?}, is older than the one in use")]
    Older { at: usize, issuer: String },
    #[error("the list of {issuer:?}, which is in use, is not in it any more")]
    Missing { issuer: String },
}

/// Why a certificate that was verified identifies nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the certificate cannot be read")]
    Unreadable(#[source] webpki::Error),
    #[error(
        "the certificate has several URIs among its names, and one of them has to be its identity"
    )]
    Several,
}
