//! Lists of revoked certificates, as they come into use: each is of an authority that is trusted
//! here, signed by it, and not older than the one before. Handshakes would refuse a list that is
//! not, and with it everybody. One that is in use stays so when its authority is trusted no more.

use std::collections::BTreeMap;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{BorrowedCertRevocationList, CertRevocationList, anchor_from_trusted_cert};
use x509_parser::asn1_rs::{Any, BitString, FromDer as _, Oid};
use x509_parser::parse_x509_crl;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::AlgorithmIdentifier;

use crate::net::tls::der::ListAge;
use crate::net::tls::error::ListError;
use crate::net::tls::files::{Lists, provider};
use crate::net::tls::verify;
use crate::wall::Seconds;

/// The keys of the authorities whose lists are taken, by subject. While an authority is replaced,
/// two may have the same name.
pub(super) type Authorities = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// The configured authorities, and those between them and this node's certificates.
pub(super) fn authorities<'a>(
    roots: &[&RootCertStore],
    between: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Authorities {
    let mut authorities = Authorities::new();
    let mut add = |anchor: &TrustAnchor<'_>| {
        let keys = authorities.entry(anchor.subject.to_vec()).or_default();
        keys.push(anchor.subject_public_key_info.to_vec());
    };
    roots.iter().flat_map(|roots| &roots.roots).for_each(&mut add);
    between.filter_map(|of| anchor_from_trusted_cert(of).ok()).for_each(|anchor| add(&anchor));
    authorities
}

/// Whose list should have been followed by another before now. It is used nevertheless: what was
/// revoked stays so, and that an authority is late shuts nobody out.
pub(super) fn overdue(lists: &BTreeMap<Vec<u8>, ListAge>, now: Seconds) -> Vec<String> {
    let late = lists.iter().filter(|(_, age)| age.next_update.is_some_and(|next| next < now));
    late.map(|(issuer, _)| name(issuer)).collect()
}

/// Of an authority, by its subject, for messages.
fn name(issuer: &[u8]) -> String {
    verify::common_name(issuer).unwrap_or_else(|| "an authority".to_owned())
}

/// How new the lists are, by authority.
///
/// # Errors
/// One is of an authority that is not trusted here, or not signed by it; it goes back behind the
/// one before, by which something would be taken again that was revoked; or it is missing, which
/// does the same; or there are two of one authority, of which handshakes would look at the first.
pub(super) fn check(
    crls: &[CertificateRevocationListDer<'static>],
    trusted: &Authorities,
    which: Lists,
    before: Option<&BTreeMap<Vec<u8>, ListAge>>,
) -> Result<BTreeMap<Vec<u8>, ListAge>, ListError> {
    let mut lists: BTreeMap<Vec<u8>, ListAge> = BTreeMap::new();
    for (at, der) in (1..).zip(crls) {
        let list = BorrowedCertRevocationList::from_der(der);
        let list = list.map_err(|source| ListError::Unreadable { at, source })?;
        let list = CertRevocationList::Borrowed(list);
        let issuer = list.issuer();
        let (_, parsed) =
            parse_x509_crl(der).map_err(|source| ListError::Unparsed { at, source })?;
        match trusted.get(issuer) {
            Some(keys) if keys.iter().any(|key| is_signed(&parsed, key)) => {}
            Some(_) => return Err(ListError::NotSigned { at, issuer: name(issuer) }),
            // That was looked at when it came into use.
            None if which == Lists::Kept => {}
            None => return Err(ListError::Foreign { at, issuer: name(issuer) }),
        }
        let age = ListAge::of(&parsed);
        if before.and_then(|before| before.get(issuer)).is_some_and(|before| age.is_before(before))
        {
            return Err(ListError::Older { at, issuer: name(issuer) });
        }
        // Handshakes look at the first of a name alone.
        if lists.insert(issuer.to_vec(), age).is_some() {
            return Err(ListError::Twice { at, issuer: name(issuer) });
        }
    }
    let missing = before.and_then(|before| {
        let mut of_now = before.keys().filter(|issuer| trusted.contains_key(*issuer));
        of_now.find(|issuer| !lists.contains_key(*issuer))
    });
    match missing {
        Some(issuer) => Err(ListError::Missing { issuer: name(issuer) }),
        None => Ok(lists),
    }
}

/// Whether a list is signed with this key, by an algorithm that handshakes take, too. `key`: its
/// algorithm, and the key itself.
fn is_signed(list: &CertificateRevocationList<'_>, key: &[u8]) -> bool {
    let Ok((key, kind)) = AlgorithmIdentifier::from_der(key) else { return false };
    let Ok((_, key)) = BitString::from_der(key) else { return false };
    let (message, signature) = (list.tbs_cert_list.as_ref(), &list.signature_value);
    let mut fitting = provider().signature_verification_algorithms.all.iter().filter(|it| {
        is_algorithm(it.signature_alg_id().as_ref(), &list.signature_algorithm)
            && is_algorithm(it.public_key_alg_id().as_ref(), &kind)
    });
    key.unused_bits == 0
        && signature.unused_bits == 0
        && fitting.any(|it| it.verify_signature(&key.data, message, &signature.data).is_ok())
}

/// `known`: what stands in the sequence that the other was read from.
fn is_algorithm(known: &[u8], found: &AlgorithmIdentifier<'_>) -> bool {
    let Ok((parameters, id)) = Oid::from_der(known) else { return false };
    let parameters = Any::from_der(parameters).ok().map(|(_, parameters)| parameters);
    *found == AlgorithmIdentifier::new(id, parameters)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519, SerialNumber, SignatureAlgorithm, date_time_ymd,
    };

    use super::*;

    fn authority(
        algorithm: &'static SignatureAlgorithm,
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        (params.self_signed(&key).unwrap().der().clone(), Issuer::new(params, key))
    }

    fn list(issuer: &Issuer<'static, KeyPair>) -> CertificateRevocationListDer<'static> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2027, 1, 1),
            next_update: date_time_ymd(2060, 3, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(issuer).unwrap().der().clone()
    }

    /// All of these have the same name.
    #[test]
    fn a_list_is_taken_with_the_signature_of_its_authority_alone() {
        let (_, stranger) = authority(&PKCS_ECDSA_P256_SHA256);
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let ((old, of_old), (new, of_new)) = (authority(algorithm), authority(algorithm));
            let trusted = authorities(&[], [&old, &new].into_iter());
            assert_eq!(trusted.len(), 1);
            for issuer in [&of_old, &of_new] {
                check(&[list(issuer)], &trusted, Lists::Newest, None).expect("its own");
            }
            let refused = check(&[list(&of_new), list(&stranger)], &trusted, Lists::Newest, None)
                .unwrap_err();
            assert!(matches!(refused, ListError::NotSigned { at: 2, .. }), "{refused}");
            // An operator who appends the new one to the file.
            let refused =
                check(&[list(&of_new), list(&of_new)], &trusted, Lists::Newest, None).unwrap_err();
            assert!(matches!(refused, ListError::Twice { at: 2, .. }), "{refused}");
            let mut changed = list(&of_new).to_vec();
            let last = changed.len() - 1;
            changed[last] ^= 1;
            let refused = check(&[changed.into()], &trusted, Lists::Newest, None).unwrap_err();
            assert!(matches!(refused, ListError::NotSigned { at: 1, .. }), "{refused}");
        }
    }
}
