//! Which node or client a certificate is of, and whether that is a node of this cluster.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use webpki::EndEntityCert;

use crate::net::tls::CertificateId;

/// The tag of a common name (2.5.4.3, `id-at-commonName`) in DER.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// The identity in a certificate that was verified.
///
/// # Errors
/// It has several, or it cannot be read.
pub(super) fn identity(leaf: &CertificateDer<'_>) -> Result<CertificateId, String> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let mut uris = certificate.valid_uri_names();
    let spiffe = uris.next().map(str::to_owned);
    if uris.next().is_some() {
        return Err(
            "has several URIs among its names, and one of them has to be its identity".to_owned()
        );
    }
    Ok(CertificateId { spiffe, common_name: common_name(certificate.subject()) })
}

/// The common name in a subject, a sequence of sets of (type, value) pairs (RFC 5280, section
/// 4.1.2.4); `None`: there is none, or more than one, or it is longer than 127 bytes.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut found = None;
    for (at, window) in subject.windows(COMMON_NAME.len()).enumerate() {
        if window != COMMON_NAME {
            continue;
        }
        let value = subject.get(at + COMMON_NAME.len()..)?;
        let (&[tag, length], text) = value.split_first_chunk::<2>()?;
        // UTF8String, PrintableString, IA5String; short form of the length.
        if ![0x0c, 0x13, 0x16].contains(&tag) || length > 127 || found.is_some() {
            return None;
        }
        found = Some(String::from_utf8(text.get(..usize::from(length))?.to_vec()).ok()?);
    }
    found
}

/// Verifies that a node of this cluster answers, and the one that was wanted, whatever host it is
/// on.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    pub(super) cluster: Arc<str>,
    pub(super) node: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
enum NotTheNode {
    #[error("its certificate {0}")]
    Unreadable(String),
    #[error("its certificate is of no node of the cluster {0:?}")]
    NoNode(Arc<str>),
    #[error("node {found} answers there, not node {wanted}")]
    Another { found: u64, wanted: u64 },
}

impl NodeVerifier {
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), NotTheNode> {
        let found = identity(leaf).map_err(NotTheNode::Unreadable)?.node(&self.cluster);
        match (found, self.node) {
            (None, _) => Err(NotTheNode::NoNode(self.cluster.clone())),
            (Some(found), Some(wanted)) if found != wanted => {
                Err(NotTheNode::Another { found, wanted })
            }
            (Some(_), _) => Ok(()),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The chain, times and revocation come first; the name is the last that this looks at.
        match self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        let other = |error| Error::InvalidCertificate(CertificateError::Other(OtherError(error)));
        self.check(leaf).map_err(|error| other(Arc::new(error)))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
