//! What the libraries of TLS do not tell of a certificate and of a revocation list: when the one
//! ends, whether it is an authority's, and how new the other is. Read after they were verified, but
//! for authorities, which nobody verifies.

use x509_parser::certificate::X509CertificateParser;
use x509_parser::extensions::X509Extension;
use x509_parser::nom::Parser as _;
use x509_parser::num_bigint::BigUint;
use x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
use x509_parser::parse_x509_certificate;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::wall::Seconds;

/// The first and the last moment at which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) not_before: Seconds,
    pub(super) not_after: Seconds,
}

pub(super) fn lifetime(certificate: &[u8]) -> Option<Lifetime> {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (_, certificate) = parser.parse(certificate).ok()?;
    let validity = certificate.validity();
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    Some(Lifetime { not_before, not_after })
}

/// Whether a certificate says that its holder may issue others. One of version 1 cannot.
pub(super) fn is_authority(certificate: &[u8]) -> bool {
    parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// How new a revocation list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListAge {
    /// 0: it has none.
    pub(super) number: BigUint,
    pub(super) this_update: Seconds,
    /// By when its authority makes the next one.
    pub(super) next_update: Option<Seconds>,
    /// Which key has signed it, as it says itself; empty, if it does not.
    pub(super) key: Vec<u8>,
}

impl ListAge {
    pub(super) fn of(list: &CertificateRevocationList<'_>) -> Self {
        let of_key = |part: &&X509Extension<'_>| part.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
        let key = list.extensions().iter().find(of_key);
        Self {
            number: list.crl_number().cloned().unwrap_or_default(),
            this_update: seconds(list.last_update()),
            next_update: list.next_update().map(seconds),
            key: key.map(|key| key.value.to_vec()).unwrap_or_default(),
        }
    }

    /// Whether a list that is to replace the other one was made before it. Numbers are of one key:
    /// an authority that was made anew, under its name, may begin with 1 again.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        let is_lower = self.key == other.key && self.number < other.number;
        is_lower || self.this_update < other.this_update
    }
}

/// Since 1970; 0, where it is before that.
fn seconds(time: ASN1Time) -> Seconds {
    time.timestamp().try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use x509_parser::parse_x509_crl;

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
        let key = KeyPair::generate().unwrap();
        let key_id = params.key_identifier(&key);
        let issuer = Issuer::new(params, key);
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
            let made = list(number, revoked);
            let age = ListAge::of(&parse_x509_crl(&made).unwrap().1);
            let (number, next_update) = (number.into(), Some(IN_2060));
            // A sequence, with the field `[0]`.
            let key = [&[0x30, 22, 0x80, 20][..], &key_id].concat();
            assert_eq!(age, ListAge { number, this_update: IN_2027, next_update, key });
        }
        let age = |number: u64, this_update, key: u8| {
            let next_update = None;
            ListAge { number: number.into(), this_update, next_update, key: vec![key] }
        };
        assert!(age(255, 9, 1).is_before(&age(256, 9, 1)));
        assert!(age(2, 8, 1).is_before(&age(1, 9, 1)));
        assert!(!age(1, 9, 1).is_before(&age(1, 9, 1)));
        // Of another key.
        assert!(!age(1, 9, 2).is_before(&age(2, 9, 1)));
        assert!(age(2, 8, 2).is_before(&age(1, 9, 1)));
    }
}
