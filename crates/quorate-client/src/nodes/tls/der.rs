//! What the TLS library does not tell of a certificate and of a revocation list (RFC 5280, sections
//! 4.2.1.9 and 5.1): whether its holder may stand for a CA, how new a list is, and what of it is
//! signed. Read by hand: a parser for all of X.509 (x509-parser 0.18) would bring 23 crates
//! to each service that uses this one.

/// Tags of DER (X.690).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// Where extensions stand: the field `[0]` of a list, `[3]` of a certificate.
const OF_LIST: u8 = 0xa0;
const OF_CERTIFICATE: u8 = 0xa3;

/// `id-at-commonName` (2.5.4.3), `id-ce-basicConstraints` (2.5.29.19), `id-ce-cRLNumber`
/// (2.5.29.20) and `id-ce-authorityKeyIdentifier` (2.5.29.35).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
const CRL_NUMBER: [u8; 3] = [0x55, 0x1d, 0x14];
const AUTHORITY_KEY: [u8; 3] = [0x55, 0x1d, 0x23];

/// Whether a certificate says that its holder may issue others. One of version 1 cannot.
pub(super) fn is_authority(mut certificate: &[u8]) -> bool {
    let mut says = || {
        let signed = take(&mut take(&mut certificate, SEQUENCE)?, SEQUENCE)?;
        let mut constraints = extension(signed, OF_CERTIFICATE, BASIC_CONSTRAINTS)?;
        take(&mut take(&mut constraints, SEQUENCE)?, BOOLEAN)
    };
    says() == Some(&[0xff])
}

/// The common name in a subject, of which these are the parts, for messages.
pub(super) fn common_name(mut subject: &[u8]) -> Option<String> {
    loop {
        let mut pair = take(&mut take(&mut subject, SET)?, SEQUENCE)?;
        if take(&mut pair, OID)? == COMMON_NAME {
            return String::from_utf8(element(&mut pair)?.1.to_vec()).ok();
        }
    }
}

/// Whose list it is: the parts of a CA's subject. Also of one that is not as it has to be further
/// on.
pub(super) fn issuer(mut list: &[u8]) -> Option<&[u8]> {
    let mut signed = take(&mut take(&mut list, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, INTEGER);
    let _algorithm = take(&mut signed, SEQUENCE)?;
    take(&mut signed, SEQUENCE)
}

/// How new a revocation list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Age {
    /// Big-endian, without zeros in front.
    number: Vec<u8>,
    /// Digits, from the year on.
    this_update: Vec<u8>,
    /// Which key has signed it, as it says itself; empty, if it does not.
    key: Vec<u8>,
}

impl Age {
    /// Whether a list that is to replace the other one was made before it. Numbers are of one key:
    /// a CA that was made anew, under its name, may begin with 1 again.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        let number = |age: &Self| (age.number.len(), age.number.clone());
        let is_lower = self.key == other.key && number(self) < number(other);
        is_lower || self.this_update < other.this_update
    }
}

/// `None`: it says no time.
pub(super) fn age(mut list: &[u8]) -> Option<Age> {
    let mut signed = take(&mut take(&mut list, SEQUENCE)?, SEQUENCE)?;
    take(&mut signed, INTEGER);
    let (_algorithm, _issuer) = (take(&mut signed, SEQUENCE)?, take(&mut signed, SEQUENCE)?);
    let this_update = time(element(&mut signed)?)?;
    let digits = match extension(signed, OF_LIST, CRL_NUMBER) {
        Some(mut value) => take(&mut value, INTEGER)?,
        None => &[],
    };
    let number = digits.iter().copied().skip_while(|digit| *digit == 0).collect();
    let key = extension(signed, OF_LIST, AUTHORITY_KEY).unwrap_or_default().to_vec();
    Some(Age { number, this_update, key })
}

/// `YYMMDDHHMMSSZ`, until 2049, or with four digits for the year: with four digits.
fn time((tag, text): (u8, &[u8])) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"Z")?;
    let (century, length) = match (tag, digits.first()?) {
        (UTC_TIME, b'0'..=b'4') => (&b"20"[..], 12),
        (UTC_TIME, _) => (&b"19"[..], 12),
        (TIME, _) => (&b""[..], 14),
        _ => return None,
    };
    let is_time = digits.len() == length && digits.iter().all(u8::is_ascii_digit);
    is_time.then(|| [century, digits].concat())
}

/// What is signed, how, and the signature.
pub(super) struct Signed<'a> {
    pub(super) message: &'a [u8],
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The parts of a revocation list.
pub(super) fn signed(mut list: &[u8]) -> Option<Signed<'_>> {
    let mut parts = take(&mut list, SEQUENCE)?;
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
