//! Lists of revoked certificates, as they come into use. The rules are those of nodes: each is of a
//! CA that is trusted here, signed by it, and not older than the one before; handshakes would
//! refuse a list that is not, and with it everybody. One that is overdue is used nevertheless.

use std::collections::BTreeMap;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{BorrowedCertRevocationList, CertRevocationList, anchor_from_trusted_cert};

use crate::nodes::files::Source;
use crate::nodes::tls::der::{self, Age, Signed};

/// A list, with the source that it stands in and its number there.
pub(super) type Named<'a> = (&'a Source, usize, CertificateRevocationListDer<'static>);

/// How new the lists are that are in use, by their CAs' subjects.
pub(super) type Ages = BTreeMap<Vec<u8>, Age>;

/// The keys of the CAs whose lists are taken, by subject: while a CA is replaced, two may have the
/// same name.
type Authorities = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// The trusted CAs, and those between them and this client's own certificate.
pub(super) fn authorities<'a>(
    roots: &RootCertStore,
    between: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Authorities {
    let mut authorities = Authorities::new();
    let mut add = |anchor: &TrustAnchor<'_>| {
        let keys = authorities.entry(anchor.subject.to_vec()).or_default();
        keys.push(anchor.subject_public_key_info.to_vec());
    };
    roots.roots.iter().for_each(&mut add);
    between.filter_map(|of| anchor_from_trusted_cert(of).ok()).for_each(|anchor| add(&anchor));
    authorities
}

/// Leaves out the lists of CAs that are not trusted: with its CA, a list goes.
pub(super) fn leave(lists: &mut Vec<Named<'_>>, trusted: &Authorities) {
    lists.retain(|(_, _, der)| {
        BorrowedCertRevocationList::from_der(der)
            .is_ok_and(|list| trusted.contains_key(CertRevocationList::Borrowed(list).issuer()))
    });
}

/// `before`: those in use.
///
/// # Errors
/// One is of a CA that is not trusted here, or not signed by it; it goes back behind the one
/// before, by which something would be trusted again that was revoked; or it is missing, which does
/// the same; or there are two of one CA, of which handshakes would look at the first.
pub(super) fn check(
    lists: &[Named<'_>],
    trusted: &Authorities,
    before: Option<&Ages>,
    provider: &CryptoProvider,
) -> Result<Ages, String> {
    let mut ages = Ages::new();
    for (source, number, der) in lists {
        let fault = |what: &str| format!("{source}: list {number} in it {what}");
        let list = BorrowedCertRevocationList::from_der(der)
            .map_err(|error| fault(&format!("cannot be read: {error}")))?;
        let list = CertRevocationList::Borrowed(list);
        let keys = trusted.get(list.issuer()).ok_or_else(|| {
            fault("is of no CA that this client trusts: name the list and its CA together")
        })?;
        if !keys.iter().any(|key| is_signed(der, key, provider)) {
            return Err(fault("is not signed by the CA of which it says it is"));
        }
        let age = der::age(der).ok_or_else(|| fault("says no time"))?;
        let used = before.and_then(|before| before.get(list.issuer()));
        if used.is_some_and(|used| age.is_before(used)) {
            return Err(fault("is older than the one in use"));
        }
        if ages.insert(list.issuer().to_vec(), age).is_some() {
            return Err(fault(
                "is of the same CA as one before it, and only one is looked at: keep the newest",
            ));
        }
    }
    let mut of_now = before.into_iter().flatten().filter(|(of, _)| trusted.contains_key(*of));
    match of_now.find(|(of, _)| !ages.contains_key(*of)) {
        Some(_) => Err("a revocation list that is in use is not there any more".to_owned()),
        None => Ok(ages),
    }
}

/// Whether a list is signed with this key, by an algorithm that handshakes take, too.
fn is_signed(list: &[u8], key: &[u8], provider: &CryptoProvider) -> bool {
    let (Some(signed), Some((kind, key))) = (der::signed(list), der::public_key(key)) else {
        return false;
    };
    let Signed { message, algorithm, signature } = signed;
    let mut fitting = provider.signature_verification_algorithms.all.iter().filter(|it| {
        it.signature_alg_id().as_ref() == algorithm && it.public_key_alg_id().as_ref() == kind
    });
    fitting.any(|it| it.verify_signature(key, message, signature).is_ok())
}
