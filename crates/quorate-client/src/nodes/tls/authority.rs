//! Whether a certificate may stand for a CA (RFC 5280, section 4.2.1.9). The TLS library believes
//! whoever is given to it as one, whatever their certificate says.

/// Tags of DER (X.690).
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// The field `[3]` of a certificate: its extensions.
const EXTENSIONS: u8 = 0xa3;

/// `id-ce-basicConstraints` (2.5.29.19).
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

/// Whether a certificate says that its holder may issue others. One of version 1 cannot.
pub(super) fn is_authority(certificate: &[u8]) -> bool {
    let says = || {
        let mut constraints = basic_constraints(certificate)?;
        take(&mut take(&mut constraints, SEQUENCE)?, BOOLEAN)
    };
    says() == Some(&[0xff])
}

fn basic_constraints(mut certificate: &[u8]) -> Option<&[u8]> {
    let mut signed = take(&mut take(&mut certificate, SEQUENCE)?, SEQUENCE)?;
    let mut all = loop {
        if let (EXTENSIONS, mut content) = element(&mut signed)? {
            break take(&mut content, SEQUENCE)?;
        }
    };
    loop {
        let mut extension = take(&mut all, SEQUENCE)?;
        let id = take(&mut extension, OID)?;
        // Whether it is critical may stand in between.
        let (tag, mut value) = element(&mut extension)?;
        if tag != OCTETS {
            value = take(&mut extension, OCTETS)?;
        }
        if id == BASIC_CONSTRAINTS {
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
