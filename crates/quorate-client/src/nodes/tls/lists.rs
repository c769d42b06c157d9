//! Lists of revoked certificates, as they come into use. The rules are those of nodes: each is
//! signed by its CA, and not older than the one before; handshakes would refuse a list that is not,
//! and with it everybody. One that is overdue is used nevertheless.
//!
//! Nodes know CAs that a client does not: one for the nodes among themselves, one between their
//! certificates and the CA that is trusted. A list of such a CA waits: handshakes look for a list
//! by the CA that a node shows, and verify it then. Once it is in use, only a newer one takes its
//! place: nobody here knows whether that CA is gone, or the file was read half written.

use std::collections::{BTreeMap, BTreeSet};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};

use crate::nodes::files::Source;
use crate::nodes::tls::der::{self, Age, Signed};

/// A list, with the source that it stands in and its number there.
pub(super) type Named<'a> = (&'a Source, usize, CertificateRevocationListDer<'static>);

/// The lists that are in use, by their CAs' subjects.
pub(super) type InUse = BTreeMap<Vec<u8>, List>;

#[derive(Debug, Clone)]
pub(super) struct List {
    age: Age,
    pub(super) der: CertificateRevocationListDer<'static>,
}

/// Their keys, by subject: while a CA is replaced, two may have the same name.
type Keys = BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>;

/// The CAs whose signatures are known here.
pub(super) struct Authorities {
    /// Those that are trusted: their lists have to be there, and good.
    trusted: Keys,
    /// Others, between those and this client's own certificate. Their lists keep no other
    /// certificate of its own away: by them, nobody is trusted.
    between: Keys,
}

impl Authorities {
    pub(super) fn new<'a>(
        roots: &RootCertStore,
        between: impl Iterator<Item = &'a CertificateDer<'static>>,
    ) -> Self {
        let mut of = Self { trusted: Keys::new(), between: Keys::new() };
        let add = |to: &mut Keys, anchor: &TrustAnchor<'_>| {
            let keys = to.entry(anchor.subject.to_vec()).or_default();
            keys.insert(anchor.subject_public_key_info.to_vec());
        };
        roots.roots.iter().for_each(|anchor| add(&mut of.trusted, anchor));
        let between = between.filter_map(|of| anchor_from_trusted_cert(of).ok());
        between.for_each(|anchor| add(&mut of.between, &anchor));
        of
    }

    fn trusts(&self, issuer: &[u8]) -> bool {
        self.trusted.contains_key(issuer)
    }

    fn keys(&self, issuer: &[u8]) -> Option<&BTreeSet<Vec<u8>>> {
        self.trusted.get(issuer).or_else(|| self.between.get(issuer))
    }
}

/// Those that are in use from now on. `before`: those in use until now; `adds`: whether a CA is
/// trusted from now on.
///
/// # Errors
/// One is of a trusted CA and not signed by it; it goes back behind the one before, by which
/// something would be trusted again that was revoked; or it is missing, which does the same; or
/// there are two of one CA, of which handshakes would look at the first; or it cannot be read. Of
/// a CA that is not trusted, the one in use stays instead, or the newest of two counts: that CA may
/// be gone, or made anew under its name, and the rest of the file is good. Not so where a CA is
/// added: the other one may be below it, and what that has revoked is not known.
///
/// Or, where there were none before, one has such a fault whoever its CA is, or none is of a
/// trusted CA: whoever starts with the wrong file is not to believe that it does something. Later,
/// that would only keep a CA trusted whose list has gone with it.
pub(super) fn check(
    lists: &[Named<'_>],
    authorities: &Authorities,
    before: Option<&InUse>,
    adds: bool,
    provider: &CryptoProvider,
) -> Result<InUse, String> {
    let mut in_use = InUse::new();
    let mut known = 0;
    for (source, number, der) in lists {
        let fault = |what: &str| format!("{source}: list {number} in it {what}");
        let is_foreign = der::issuer(der).is_some_and(|issuer| !authorities.trusts(issuer));
        match add(&mut in_use, der, authorities, before, provider) {
            Ok(true) => known += 1,
            Ok(false) => tracing::warn!(
                list = fault("is of no CA that this client trusts"),
                "it counts only for nodes that show its CA below a trusted one; whether that CA signed it is seen only then"
            ),
            Err(what) if is_foreign && before.is_some() && !adds => tracing::warn!(
                list = fault(&what),
                "it is of no CA that this client trusts, and is passed over; no CA is added meanwhile, and no client starts with it"
            ),
            Err(what) => return Err(fault(&what)),
        }
    }
    if let (None, 0, Some((source, ..))) = (before, known, lists.first()) {
        return Err(format!(
            "{source}: no list in it is of a CA that this client trusts: name lists and their CAs \
             together, also a CA that is between them and the nodes' certificates"
        ));
    }
    for (issuer, list) in before.into_iter().flatten() {
        if in_use.contains_key(issuer) {
            continue;
        }
        let of = name(issuer);
        if authorities.trusts(issuer) {
            return Err(format!("the revocation list of {of:?}, in use, is not there any more"));
        }
        tracing::warn!(
            of,
            "a revocation list of a CA that this client does not trust is not there any more, or none \
             that can be used: the one in use stays until the client starts again"
        );
        in_use.insert(issuer.clone(), list.clone());
    }
    Ok(in_use)
}

/// Of a CA, by its subject, for messages.
fn name(issuer: &[u8]) -> String {
    der::common_name(issuer).unwrap_or_else(|| "a CA".to_owned())
}

/// Puts a list into use. Returns whether it is of a CA that is known here.
///
/// # Errors
/// As of `check`, without the list's name.
fn add(
    in_use: &mut InUse,
    der: &CertificateRevocationListDer<'static>,
    authorities: &Authorities,
    before: Option<&InUse>,
    provider: &CryptoProvider,
) -> Result<bool, String> {
    // With its entries, as handshakes have it.
    let list = OwnedCertRevocationList::from_der(der);
    let list = CertRevocationList::Owned(list.map_err(|error| format!("cannot be read: {error}"))?);
    let issuer = list.issuer();
    let keys = authorities.keys(issuer);
    if keys.is_some_and(|keys| !keys.iter().any(|key| is_signed(der, key, provider))) {
        return Err("is not signed by the CA of which it says it is".to_owned());
    }
    let age = der::age(der).ok_or("says no time")?;
    let used = before.and_then(|before| before.get(issuer));
    if used.is_some_and(|used| age.is_before(&used.age)) {
        return Err("is older than the one in use".to_owned());
    }
    let is_newer = match in_use.get(issuer) {
        Some(_) if before.is_none() || authorities.trusts(issuer) => {
            return Err(
                "is of the same CA as one before it, and only one is looked at: keep the newest"
                    .to_owned(),
            );
        }
        Some(other) => {
            tracing::warn!(
                of = name(issuer),
                "there are two revocation lists of a CA that this client does not trust: the newest counts; no client starts with both"
            );
            other.age.is_before(&age)
        }
        None => true,
    };
    if is_newer {
        in_use.insert(issuer.to_vec(), List { age, der: der.clone() });
    }
    Ok(keys.is_some())
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

#[cfg(test)]
mod tests;
