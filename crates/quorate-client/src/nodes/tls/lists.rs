//! Lists of revoked certificates, as they come into use. The rules are those of nodes: each is
//! signed by its CA, and not older than the one before; handshakes would refuse a list that is not,
//! and with it everybody. One that is overdue is used nevertheless.
//!
//! Nodes know CAs that a client does not: one for the nodes among themselves, one between their
//! certificates and the CA that is trusted. A list of such a CA waits: handshakes look for a list
//! by the CA that a node shows, and verify it then.

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

/// `before`: those in use.
///
/// # Errors
/// One is of a trusted CA and not signed by it; it goes back behind the one before, by which
/// something would be trusted again that was revoked; or it is missing, which does the same; or
/// there are two of one CA, of which handshakes would look at the first. Or, where there were none
/// before, none is of a trusted CA: whoever starts with the wrong file is not to believe that it
/// does something. Later, that would only keep a CA trusted whose list has gone with it.
pub(super) fn check(
    lists: &[Named<'_>],
    trusted: &Authorities,
    before: Option<&Ages>,
    provider: &CryptoProvider,
) -> Result<Ages, String> {
    let mut ages = Ages::new();
    let mut known = 0;
    for (source, number, der) in lists {
        let fault = |what: &str| format!("{source}: list {number} in it {what}");
        let list = BorrowedCertRevocationList::from_der(der)
            .map_err(|error| fault(&format!("cannot be read: {error}")))?;
        let list = CertRevocationList::Borrowed(list);
        match trusted.get(list.issuer()) {
            None => tracing::warn!(
                list = fault("is of no CA that this client trusts"),
                "it counts only for nodes that show its CA below a trusted one"
            ),
            Some(keys) if keys.iter().any(|key| is_signed(der, key, provider)) => known += 1,
            Some(_) => return Err(fault("is not signed by the CA of which it says it is")),
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
    if let (None, 0, Some((source, ..))) = (before, known, lists.first()) {
        return Err(format!(
            "{source}: no list in it is of a CA that this client trusts: name lists and their CAs \
             together, also a CA that is between them and the nodes' certificates"
        ));
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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
        IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
    };
    use rustls::CertificateError;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::ServerName;

    use crate::nodes::tls::Tls;

    struct Authority {
        certificate: Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        /// `of`: who has issued its certificate; itself, if nobody.
        fn new(name: &str, of: Option<&Self>) -> Self {
            let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = match of {
                Some(of) => params.signed_by(&key, &of.issuer).unwrap(),
                None => params.self_signed(&key).unwrap(),
            };
            Self { certificate, issuer: Issuer::new(params, key) }
        }

        fn revokes(&self, serial: u64) -> String {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1),
                next_update: date_time_ymd(2021, 1, 1),
                crl_number: SerialNumber::from(1_u64),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&self.issuer).unwrap().pem().unwrap()
        }

        /// The certificate of a node "a".
        fn node(&self, serial: u64) -> Certificate {
            let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap()
        }
    }

    /// The lists that nodes have, where those show each other certificates of a CA of their own.
    #[test]
    fn a_list_of_a_ca_that_only_nodes_know_keeps_no_client_away() {
        let (ours, peers) = (Authority::new("ours", None), Authority::new("peers", None));
        let ca = || Tls::new().ca_pem(ours.certificate.pem());
        for lists in [[&peers, &ours], [&ours, &peers]] {
            let lists: String = lists.iter().map(|of| of.revokes(7)).collect();
            let loaded = ca().crl_pem(lists).load().unwrap().kept.now();
            let now = loaded.config.time_provider.current_time().unwrap();
            let name = ServerName::try_from("a").unwrap();
            let verify = |serial| {
                let node = ours.node(serial);
                loaded.verifier.verify_server_cert(node.der(), &[], &name, &[], now).map(drop)
            };
            let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
            assert_eq!((verify(7), verify(8)), (Err(revoked), Ok(())));
        }
        let fault = ca().crl_pem(peers.revokes(7)).load().map(drop).unwrap_err();
        assert!(fault.contains("no list in it is of a CA that this client trusts"), "{fault}");
    }

    /// Which it learns when a node shows it.
    #[test]
    fn a_list_of_a_ca_between_counts_although_the_client_does_not_know_it() {
        let root = Authority::new("root", None);
        let between = Authority::new("between", Some(&root));
        let lists = format!("{}{}", root.revokes(1), between.revokes(7));
        let tls = Tls::new().ca_pem(root.certificate.pem()).crl_pem(lists);
        let loaded = tls.load().unwrap().kept.now();
        let now = loaded.config.time_provider.current_time().unwrap();
        let name = ServerName::try_from("a").unwrap();
        let verify = |serial| {
            let (node, chain) = (between.node(serial), [between.certificate.der().clone()]);
            loaded.verifier.verify_server_cert(node.der(), &chain, &name, &[], now).map(drop)
        };
        let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
        assert_eq!((verify(7), verify(8)), (Err(revoked), Ok(())));
    }

    /// While a CA is replaced, files come one by one. A list that stays behind keeps none in use.
    #[tokio::test]
    async fn a_ca_that_is_taken_away_goes_before_its_list() {
        let (old, new) = (Authority::new("old", None), Authority::new("new", None));
        let dir = tempfile::tempdir().unwrap();
        let (ca, lists) = (dir.path().join("ca"), dir.path().join("lists"));
        std::fs::write(&ca, old.certificate.pem()).unwrap();
        std::fs::write(&lists, old.revokes(7)).unwrap();
        let tls = Tls::new().ca_file(&ca).crl_file(&lists).load().unwrap();
        for (changes, file, text) in [(1, &ca, new.certificate.pem()), (2, &lists, new.revokes(7))]
        {
            std::fs::write(file, text).unwrap();
            tls.kept.reread().await;
            assert_eq!(tls.kept.changes(), changes, "{}", file.display());
        }
    }
}
