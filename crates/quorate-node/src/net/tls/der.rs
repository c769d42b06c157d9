//! What the libraries do not tell of a certificate and of a revocation list (RFC 5280, sections 4.1
//! and 5.1): when the one ends, how new the other is, and what of it is signed. Read after they
//! were verified, but for that.

use crate::wall::{Seconds, days};

/// Tags of DER (X.690).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The fields `[0]`, a certificate's version or a list's extensions, and `[3]`, a certificate's.
const FIELD_0: u8 = 0xa0;
const FIELD_3: u8 = 0xa3;

/// `id-ce-basicConstraints` (2.5.29.19) and `id-ce-cRLNumber` (2.5.29.20).
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
const CRL_NUMBER: [u8; 3] = [0x55, 0x1d, 0x14];

/// Takes the first element off: its tag and its content.
pub(super) fn element<'a>(der: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
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

/// Takes the first element off if it has this tag.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let mut rest = *der;
    let (_, content) = element(&mut rest).filter(|(found, _)| *found == tag)?;
    *der = rest;
    Some(content)
}

/// The first and the last moment at which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) not_before: Seconds,
    pub(super) not_after: Seconds,
}

pub(super) fn lifetime(mut certificate: &[u8]) -> Option<Lifetime> {
    let mut signed = take(&mut take(&mut certificate, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, FIELD_0);
    take(&mut signed, INTEGER)?;
    let (_algorithm, _issuer) = (take(&mut signed, SEQUENCE)?, take(&mut signed, SEQUENCE)?);
    let mut validity = take(&mut signed, SEQUENCE)?;
    Some(Lifetime { not_before: time(&mut validity)?, not_after: time(&mut validity)? })
}

/// Whether a certificate says that its holder may issue others. One of version 1 cannot.
pub(super) fn is_authority(mut certificate: &[u8]) -> bool {
    let mut says = || {
        let signed = take(&mut take(&mut certificate, SEQUENCE)?, SEQUENCE)?;
        let mut constraints = extension(signed, FIELD_3, BASIC_CONSTRAINTS)?;
        take(&mut take(&mut constraints, SEQUENCE)?, BOOLEAN)
    };
    says() == Some(&[0xff])
}

/// The value of the extension with this id; `field`: where extensions stand in what is signed.
fn extension(mut signed: &[u8], field: u8, id: [u8; 3]) -> Option<&[u8]> {
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

/// How new a revocation list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListAge {
    /// Big-endian, without zeros in front.
    pub(super) number: Vec<u8>,
    pub(super) this_update: Seconds,
    /// By when its authority makes the next one.
    pub(super) next_update: Option<Seconds>,
}

impl ListAge {
    /// Whether a list that is to replace the other one was made before it.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        let number = |age: &Self| (age.number.len(), age.number.clone());
        number(self) < number(other) || self.this_update < other.this_update
    }
}

pub(super) fn list_age(mut list: &[u8]) -> Option<ListAge> {
    let mut signed = take(&mut take(&mut list, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, INTEGER);
    let (_algorithm, _issuer) = (take(&mut signed, SEQUENCE)?, take(&mut signed, SEQUENCE)?);
    let this_update = time(&mut signed)?;
    // `nextUpdate` and what is revoked may not be there.
    let next_update = time(&mut signed);
    let digits = match extension(signed, FIELD_0, CRL_NUMBER) {
        Some(mut value) => take(&mut value, INTEGER)?,
        None => &[],
    };
    let number = digits.iter().copied().skip_while(|digit| *digit == 0).collect();
    Some(ListAge { number, this_update, next_update })
}

/// What is signed, how, and the signature.
pub(super) struct Signed<'a> {
    pub(super) message: &'a [u8],
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The parts of a revocation list or a certificate.
pub(super) fn signed(mut whole: &[u8]) -> Option<Signed<'_>> {
    let mut parts = take(&mut whole, SEQUENCE)?;
    let begin = parts;
    take(&mut parts, SEQUENCE)?;
    let message = begin.get(..begin.len() - parts.len())?;
    let algorithm = take(&mut parts, SEQUENCE)?;
    Some(Signed { message, algorithm, signature: bits(&mut parts)? })
}

/// The algorithm of a public key, and the key.
pub(super) fn public_key(mut info: &[u8]) -> Option<(&[u8], &[u8])> {
    let algorithm = take(&mut info, SEQUENCE)?;
    Some((algorithm, bits(&mut info)?))
}

/// A string of whole bytes.
fn bits<'a>(der: &mut &'a [u8]) -> Option<&'a [u8]> {
    match take(der, BITS)?.split_first()? {
        (0, bytes) => Some(bytes),
        _ => None,
    }
}

/// `YYMMDDHHMMSSZ`, until 2049, or with four digits for the year.
fn time(der: &mut &[u8]) -> Option<Seconds> {
    let mut rest = *der;
    let (tag, text) = element(&mut rest)?;
    let digits = text.strip_suffix(b"Z")?;
    let number = |at: usize, length: usize| -> Option<i64> {
        std::str::from_utf8(digits.get(at..at + length)?).ok()?.parse().ok()
    };
    let (year, at) = match tag {
        UTC_TIME => {
            (number(0, 2).map(|year| if year < 50 { 2_000 + year } else { 1_900 + year })?, 2)
        }
        TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let of = |place: usize| number(at + 2 * place, 2);
    let days = days(year, of(0)?, of(1)?);
    *der = rest;
    u64::try_from(days * 86_400 + of(2)? * 3_600 + of(3)? * 60 + of(4)?).ok().or(Some(0))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;

    /// 2027-01-01.
    const IN_2027: Seconds = 1_798_761_600;
    /// 2060-03-01.
    const IN_2060: Seconds = 2_845_324_800;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (year, month, expected) in [(2027, 1, IN_2027), (2060, 3, IN_2060)] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["h".repeat(60); 20]).unwrap();
            params.not_before = date_time_ymd(2026, 1, 1);
            params.not_after = date_time_ymd(year, month, 1);
            let made = params.self_signed(&key).unwrap();
            let not_before = IN_2027 - 365 * 86_400;
            let expected = Lifetime { not_before, not_after: expected };
            assert_eq!(lifetime(made.der()), Some(expected), "{year}");
            for cut in 0..200 {
                let _no_panic = lifetime(&made.der()[..cut]);
            }
        }
    }

    #[test]
    fn an_authority_says_that_it_is_one() {
        let key = KeyPair::generate().unwrap();
        let limited = IsCa::Ca(BasicConstraints::Constrained(0));
        for (is_ca, expected) in [
            (IsCa::Ca(BasicConstraints::Unconstrained), true),
            (limited, true),
            (IsCa::ExplicitNoCa, false),
            (IsCa::NoCa, false),
        ] {
            let mut params = CertificateParams::new(vec!["h".repeat(60); 20]).unwrap();
            params.is_ca = is_ca;
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let made = params.self_signed(&key).unwrap();
            assert_eq!(is_authority(made.der()), expected, "{is_ca:?}");
            for cut in 0..made.der().len() {
                assert!(!is_authority(&made.der()[..cut]), "{cut} bytes of it");
            }
        }
    }

    #[test]
    fn the_age_of_a_list_is_read() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(params, KeyPair::generate().unwrap());
        let list = |number: u64, revoked: usize| {
            let revoked = (0..revoked).map(|at| RevokedCertParams {
                serial_number: SerialNumber::from(at as u64),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2027, 1, 1),
                next_update: date_time_ymd(2060, 3, 1),
                crl_number: SerialNumber::from(number),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&issuer).unwrap().der().to_vec()
        };
        // The last is longer than two bytes say.
        for (number, revoked) in [(1, 0), (255, 1), (65_536, 5_000)] {
            let age = list_age(&list(number, revoked)).unwrap();
            let digits = number.to_be_bytes();
            let digits: Vec<u8> = digits.into_iter().skip_while(|digit| *digit == 0).collect();
            let next_update = Some(IN_2060);
            assert_eq!(age, ListAge { number: digits, this_update: IN_2027, next_update });
        }
        let age = |number: &[u8], this_update| {
            let next_update = None;
            ListAge { number: number.to_vec(), this_update, next_update }
        };
        assert!(age(&[255], 9).is_before(&age(&[1, 0], 9)));
        assert!(age(&[2], 8).is_before(&age(&[1], 9)));
        assert!(!age(&[1], 9).is_before(&age(&[1], 9)));
    }
}
