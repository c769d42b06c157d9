//! Which node or client a certificate is of, and whether that is a node of this cluster.

use std::sync::Arc;

use quorate_log::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use webpki::EndEntityCert;
use x509_parser::asn1_rs::{FromDer as _, Tag};
use x509_parser::oid_registry::OID_X509_COMMON_NAME;
use x509_parser::x509::RelativeDistinguishedName;

use crate::net::tls::CertificateId;
use crate::net::tls::error::IdentityError;

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

/// The common name in a subject, of which these are the parts. `None`: there is none, or more than
/// one, or the subject cannot be read.
pub(super) fn common_name(mut subject: &[u8]) -> Option<String> {
    let mut found = None;
    while !subject.is_empty() {
        let (behind, part) = RelativeDistinguishedName::from_der(subject).ok()?;
        subject = behind;
        for pair in part.iter().filter(|pair| *pair.attr_type() == OID_X509_COMMON_NAME) {
            let text = pair.attr_value();
            let is_text =
                [Tag::Utf8String, Tag::PrintableString, Tag::Ia5String].contains(&text.tag());
            if found.is_some() || !is_text {
                return None;
            }
            found = Some(String::from_utf8(text.data.to_vec()).ok()?);
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
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, SanType,
        date_time_ymd,
    };
    use rustls::RootCertStore;

    use super::*;
    use crate::net::tls::{files, wall_time};

    /// `id-at-commonName` (2.5.4.3) in DER.
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    /// Tags of DER (X.690).
    const OID: u8 = 0x06;
    const UTF8: u8 = 0x0c;
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;

    struct Authority {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            Self::with(Vec::new())
        }

        fn with(extensions: Vec<CustomExtension>) -> Self {
            let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.custom_extensions = extensions;
            let certificate = params.self_signed(&key).unwrap().der().clone();
            Self { certificate, issuer: Issuer::new(params, key) }
        }

        fn issue(&self, uris: &[&str], last_year: i32) -> CertificateDer<'static> {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = date_time_ymd(last_year, 1, 1);
            let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
            params.subject_alt_names.extend(uris);
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }
    }

    /// CVE-2019-9764 (Consul): who answered was believed to be the one that was dialled, whatever
    /// its certificate said.
    #[test]
    fn a_node_that_is_dialled_has_to_be_the_one_that_was_wanted() {
        const NODE_2: &str = "spiffe://quorate/node/2";
        let (ours, strangers) = (Authority::new(), Authority::new());
        // RUSTSEC-2026-0098: limits on URIs were passed over. They cannot be judged, so nothing of
        // an authority that has some is taken, not even what is within them (RFC 5280, 4.2.1.10).
        let within = der(SEQUENCE, &der(0xa0, &der(SEQUENCE, &der(0x86, b"quorate"))));
        let within = CustomExtension::from_oid_content(&[2, 5, 29, 30], within);
        let limited = Authority::with(vec![within]);
        let mut roots = RootCertStore::empty();
        for authority in [&ours, &limited] {
            roots.add(authority.certificate.clone()).unwrap();
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), files::provider());
        let chain = chain.build().unwrap();
        for (what, authority, uris, last_year, [as_node_2, as_any]) in [
            ("the one", &ours, &[NODE_2][..], 2060, [true, true]),
            ("another node", &ours, &["spiffe://quorate/node/3"], 2060, [false, true]),
            ("another cluster's", &ours, &["spiffe://other/node/2"], 2060, [false, false]),
            ("a client", &ours, &["spiffe://quorate/client/2"], 2060, [false, false]),
            ("a host", &ours, &[], 2060, [false, false]),
            ("two at once", &ours, &[NODE_2, "spiffe://quorate/node/3"], 2060, [false, false]),
            ("a stranger's", &strangers, &[NODE_2], 2060, [false, false]),
            ("of an authority that is limited", &limited, &[NODE_2], 2060, [false, false]),
            ("one of the past", &ours, &[NODE_2], 2020, [false, false]),
        ] {
            let leaf = authority.issue(uris, last_year);
            for (node, taken) in [(NodeId::new(2), as_node_2), (None, as_any)] {
                let verifier =
                    NodeVerifier { chain: chain.clone(), cluster: "quorate".into(), node };
                let name = ServerName::try_from("node").unwrap();
                let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], wall_time());
                assert_eq!(verified.is_ok(), taken, "{what}, for {node:?}: {verified:?}");
            }
        }
    }

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
