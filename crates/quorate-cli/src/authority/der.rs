//! What is read of certificates and revocation lists that are there. Nobody's signature is looked
//! at.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::{parse_x509_certificate, parse_x509_crl};

/// Labels of PEM.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const LIST: &str = "X509 CRL";

/// The first block with this label in a PEM text.
pub(super) fn of_pem(pem: &str, label: &str) -> Option<Vec<u8>> {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes()).filter_map(Result::ok);
    blocks.find(|block| block.label == label).map(|block| block.contents)
}

fn parse(certificate: &[u8]) -> Option<X509Certificate<'_>> {
    parse_x509_certificate(certificate).ok().map(|(_, certificate)| certificate)
}

/// The serial number of a certificate.
pub(super) fn serial(certificate: &[u8]) -> Option<&[u8]> {
    parse(certificate).map(|certificate| certificate.raw_serial())
}

/// Whether a certificate says that its holder may issue others.
pub(crate) fn is_authority(certificate: &[u8]) -> bool {
    parse(certificate).is_some_and(|certificate| certificate.is_ca())
}

/// The DNS names and IP addresses that a certificate is for.
pub(super) fn hosts(certificate: &[u8]) -> Option<Vec<String>> {
    let certificate = parse(certificate)?;
    let mut hosts = Vec::new();
    for name in &certificate.subject_alternative_name().ok()??.value.general_names {
        match name {
            GeneralName::DNSName(name) => hosts.push((*name).to_owned()),
            GeneralName::IPAddress(address) => hosts.push(ip(address)?.to_string()),
            GeneralName::Invalid(..) => return None,
            _ => {}
        }
    }
    Some(hosts)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The first URI among the names of a certificate.
pub(super) fn uri(certificate: &[u8]) -> Option<String> {
    let certificate = parse(certificate)?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

/// The number of a revocation list, which grows from one to the next.
pub(super) fn list_number(list: &[u8]) -> Option<u64> {
    let (_, list) = parse_x509_crl(list).ok()?;
    list.crl_number()?.try_into().ok()
}

/// The serial numbers on a revocation list.
pub(super) fn revoked(list: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (_, list) = parse_x509_crl(list).ok()?;
    let serials = list.iter_revoked_certificates().map(|revoked| revoked.raw_serial().to_vec());
    Some(serials.collect())
}
