//! The name of a CA that `quorate certs init` made, to issue what the command does not make.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

const BEGIN: &str = "Quorate CA ";
/// Of its key.
const DIGITS: usize = 8;

pub(crate) fn ca_name(pem: &str) -> String {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let at = der.windows(BEGIN.len()).position(|part| part == BEGIN.as_bytes()).unwrap();
    String::from_utf8(der[at..at + BEGIN.len() + DIGITS].to_vec()).unwrap()
}
