//! What is read of certificates and revocation lists that are there (RFC 5280, sections 4.1 and
//! 5.1). Nobody's signature is looked at.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Labels of PEM.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const LIST: &str = "X509 CRL";

/// Tags of DER (X.690).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// The fields `[0]`, a certificate's version or a list's extensions, and `[3]`, a certificate's.
const FIELD_0: u8 = 0xa0;
const FIELD_3: u8 = 0xa3;
/// Of alternative names: `dNSName` and `iPAddress`.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// `id-ce-subjectAltName` (2.5.29.17), `id-ce-basicConstraints` (2.5.29.19) and `id-ce-cRLNumber`
/// (2.5.29.20).
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
const LIST_NUMBER: [u8; 3] = [0x55, 0x1d, 0x14];

/// The first block with this label in a PEM text.
pub(super) fn of_pem(pem: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (inside, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let digits: String = inside.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(digits).ok()
}

/// The serial number of a certificate: an integer, behind the version of what is signed.
pub(super) fn serial(mut certificate: &[u8]) -> Option<&[u8]> {
    let mut signed = take(&mut take(&mut certificate, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, FIELD_0);
    take(&mut signed, INTEGER)
}

/// Whether a certificate says that its holder may issue others.
pub(crate) fn is_authority(certificate: &[u8]) -> bool {
    let says = || {
        let mut constraints = extension(certificate, FIELD_3, BASIC_CONSTRAINTS)?;
        take(&mut take(&mut constraints, SEQUENCE)?, BOOLEAN)
    };
    says() == Some(&[0xff])
}

/// The DNS names and IP addresses that a certificate is for.
pub(super) fn hosts(certificate: &[u8]) -> Option<Vec<String>> {
    let mut value = extension(certificate, FIELD_3, ALTERNATIVE_NAMES)?;
    let mut names = take(&mut value, SEQUENCE)?;
    let mut hosts = Vec::new();
    while !names.is_empty() {
        match element(&mut names)? {
            (DNS_NAME, name) => hosts.push(str::from_utf8(name).ok()?.to_owned()),
            (IP_ADDRESS, address) => hosts.push(ip(address)?.to_string()),
            _ => {}
        }
    }
    Some(hosts)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The number of a revocation list, which grows from one to the next.
pub(super) fn list_number(list: &[u8]) -> Option<u64> {
    let mut value = extension(list, FIELD_0, LIST_NUMBER)?;
    let mut digits = take(&mut value, INTEGER)?.iter();
    digits.try_fold(0_u64, |number, digit| number.checked_mul(256)?.checked_add((*digit).into()))
}

/// The serial numbers on a revocation list.
pub(super) fn revoked(mut list: &[u8]) -> Option<Vec<&[u8]>> {
    let mut signed = take(&mut take(&mut list, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, INTEGER);
    let (_algorithm, _issuer) = (take(&mut signed, SEQUENCE)?, take(&mut signed, SEQUENCE)?);
    let (_this_update, _next_update) = (element(&mut signed)?, element(&mut signed)?);
    let (mut all, mut serials) = (take(&mut signed, SEQUENCE).unwrap_or_default(), Vec::new());
    while let Some(mut revoked) = take(&mut all, SEQUENCE) {
        serials.push(take(&mut revoked, INTEGER)?);
    }
    Some(serials)
}

/// The value of the extension with this id; `field`: where extensions stand in what is signed.
fn extension(mut whole: &[u8], field: u8, id: [u8; 3]) -> Option<&[u8]> {
    let mut signed = take(&mut take(&mut whole, SEQUENCE)?, SEQUENCE)?;
    let mut all = loop {
        match element(&mut signed)? {
            (tag, mut content) if tag == field => break take(&mut content, SEQUENCE)?,
            _ => {}
        }
    };
    loop {
        let mut extension = take(&mut all, SEQUENCE)?;
        let found = take(&mut extension, OID)?;
        // Whether it is critical may stand in between.
        let (tag, mut value) = element(&mut extension)?;
        if tag != OCTETS {
            value = take(&mut extension, OCTETS)?;
        }
        if found == id {
            return Some(value);
        }
    }
}

/// Takes the first element off if it has this tag.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let mut rest = *der;
    let (_, content) = element(&mut rest).filter(|(found, _)| *found == tag)?;
    *der = rest;
    Some(content)
}

/// Takes the first element off: its tag and its content.
fn element<'a>(der: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk::<2>()?;
    let length = match first {
        short @ ..=0x7f => usize::from(short),
        // The long form; no file is larger than three bytes say.
        0x81..=0x83 => {
            let (bytes, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = behind;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    *der = behind;
    Some((tag, content))
}
