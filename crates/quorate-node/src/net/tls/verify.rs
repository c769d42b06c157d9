//! Which node or client a certificate is of, and whether that is a node of this cluster.

use std::sync::Arc;

use quorate_log::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use webpki::EndEntityCert;

use crate::net::tls::CertificateId;
use crate::net::tls::der::element;
use crate::net::tls::error::IdentityError;

/// `id-at-commonName` (2.5.4.3) in DER.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// Tags of DER (X.690): what a subject is made of.
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The identity in a certificate that was verified.
///
/// # Errors
/// It has several, or it cannot be read.
pub(super) fn identity(leaf: &CertificateDer<'_>) -> Result<CertificateId, IdentityError> {
    let certificate = EndEntityCert::try_from(leaf).map_err(IdentityError::Unreadable)?;
    let mut uris = certificate.valid_uri_names();
    let spiffe = uris.next().map(str::to_owned);
    if uris.next().is_some() {
        return Err(IdentityError::Several);
    }
    Ok(CertificateId { spiffe, common_name: common_name(certificate.subject()) })
}

/// The common name in a subject: sets of (type, value) pairs (RFC 5280, section 4.1.2.4). `None`:
/// there is none, or more than one, or the subject cannot be read.
pub(super) fn common_name(subject: &[u8]) -> Option<String> {
    let mut found = None;
    let mut sets = subject;
    while !sets.is_empty() {
        let (tag, mut pairs) = element(&mut sets)?;
        if tag != SET {
            return None;
        }
        while !pairs.is_empty() {
            let (tag, mut pair) = element(&mut pairs)?;
            let (kind, id) = element(&mut pair)?;
            let (text, value) = element(&mut pair)?;
            if tag != SEQUENCE || kind != OID {
                return None;
            }
            if id != COMMON_NAME {
                continue;
            }
            if found.is_some() || ![UTF8, PRINTABLE, IA5].contains(&text) {
                return None;
            }
            found = Some(String::from_utf8(value.to_vec()).ok()?);
        }
    }
    found
}

/// Verifies that a node of this cluster answers, and the one that was wanted, whatever host it is
/// on.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    pub(super) cluster: Arc<str>,
    pub(super) node: Option<NodeId>,
}

#[derive(Debug, thiserror::Error)]
enum NotTheNode {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("its certificate is of no node of the cluster {0:?}")]
    NoNode(Arc<str>),
    #[error("node {found} answers there, not node {wanted}")]
    Another { found: NodeId, wanted: NodeId },
}

impl NodeVerifier {
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), NotTheNode> {
        let found = identity(leaf)?.node(&self.cluster);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let head = match length {
            0..0x80 => vec![tag, length as u8],
            0x80..0x100 => vec![tag, 0x81, length as u8],
            _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        };
        [head, content.to_vec()].concat()
    }

    fn set(id: &[u8], value: &[u8]) -> Vec<u8> {
        der(SET, &der(SEQUENCE, &[der(OID, id), der(UTF8, value)].concat()))
    }

    #[test]
    fn a_common_name_is_one_that_stands_for_itself() {
        const ORGANISATION: [u8; 3] = [0x55, 0x04, 0x0a];
        let name = set(&COMMON_NAME, b"orders");
        // Another field, whose text looks like a common name.
        let forged =
            set(&ORGANISATION, &[&[OID, 3], &COMMON_NAME[..], &[UTF8, 5], b"admin"].concat());
        let long = set(&ORGANISATION, &[b'o'; 300]);
        for (what, subject, expected) in [
            ("it", name.clone(), Some("orders")),
            ("none", Vec::new(), None),
            ("another field", forged.clone(), None),
            ("it, behind others", [forged, long, name.clone()].concat(), Some("orders")),
            ("two", [name.clone(), name.clone()].concat(), None),
            ("cut off", name[..name.len() - 1].to_vec(), None),
        ] {
            assert_eq!(common_name(&subject).as_deref(), expected, "{what}");
        }
    }
}
