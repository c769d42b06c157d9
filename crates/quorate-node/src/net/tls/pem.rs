//! What stands in a PEM file of a node's TLS: certificates, authorities and revocation lists, each
//! file whole, or not at all.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::anchor_from_trusted_cert;

use crate::net::tls::der;
use crate::net::tls::error::{ListError, Problem};

pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read: Vec<CertificateDer<'_>> = parts(pem, "CERTIFICATE--", "certificate")?;
    if read.is_empty() { Err(Problem::NoCertificate) } else { Ok(read) }
}

/// All parts of a kind in a PEM text; `frame`: what both lines have that one stands between. The
/// reader passes over what it does not know; one with a damaged frame is not to be lost that way.
fn parts<T: PemObject>(pem: &[u8], frame: &str, what: &'static str) -> Result<Vec<T>, Problem> {
    let read: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    let read = read.map_err(Problem::Pem)?;
    let frames = String::from_utf8_lossy(pem).matches(frame).count();
    match frames == 2 * read.len() {
        true => Ok(read),
        false => Err(Problem::Frames { what, frames, whole: read.len() }),
    }
}

pub(super) fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, Problem> {
    let mut roots = RootCertStore::empty();
    for (at, certificate) in (1..).zip(certificates(pem)?) {
        // Whoever stands there is believed without a look at what it may issue.
        let is_authority = der::is_authority(&certificate);
        roots.add(certificate).map_err(|source| Problem::Authority { at, source })?;
        if !is_authority {
            return Err(Problem::NoAuthority { at });
        }
    }
    Ok(Arc::new(roots))
}

pub(super) fn revoked(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    let read: Vec<CertificateRevocationListDer<'_>> = parts(pem, "X509 CRL--", "revocation list")?;
    if read.is_empty() { Err(ListError::None.into()) } else { Ok(read) }
}

/// The text of the one file of authorities, without those that the other has not. One that cannot
/// be used stays as it is: what it lacks was not taken out.
pub(super) fn in_both(new: &[u8], before: &[u8]) -> Vec<u8> {
    const END: &str = "-----END CERTIFICATE-----";
    let (Ok(_), Ok(all), Ok(known)) = (roots(new), certificates(new), certificates(before)) else {
        return new.to_vec();
    };
    // A new certificate of a CA's name and key is no other CA.
    let anchor = |of: &CertificateDer<'_>| Some(anchor_from_trusted_cert(of).ok()?.to_owned());
    let known: Vec<_> = known.iter().filter_map(anchor).collect();
    let are_known = |some: &[CertificateDer<'_>]| {
        some.iter().all(|one| anchor(one).is_some_and(|one| known.contains(&one)))
    };
    if are_known(&all) {
        return new.to_vec();
    }
    let text = String::from_utf8_lossy(new);
    let parts = text.split_inclusive(END);
    let kept = parts.filter(|part| certificates(part.as_bytes()).is_ok_and(|one| are_known(&one)));
    kept.collect::<String>().into_bytes()
}
