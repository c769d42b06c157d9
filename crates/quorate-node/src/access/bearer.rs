//! The `authorization` of a call: `Bearer`, and a token that is kept from every log.

use std::fmt;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use crate::access::Unidentified;

/// A longer token is none: projected tokens of Kubernetes have about one and a half KiB, bytes.
const TOKEN_MAX: usize = 8 * 1024;

/// A token: the secret that a caller has to know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bearer<'a>(&'a str);

impl fmt::Debug for Bearer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(***)")
    }
}

/// What a call says to prove its caller's identity, if anything.
///
/// # Errors
/// It says so more than once: readers of the first and readers of the last would differ.
pub(crate) fn authorization(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Unidentified> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let first = all.next();
    match all.next() {
        None => Ok(first),
        Some(_) => Err(Unidentified::Several),
    }
}

impl<'a> Bearer<'a> {
    /// # Errors
    /// It is something else.
    pub(crate) fn read(value: &'a HeaderValue) -> Result<Self, Unidentified> {
        // The scheme is taken in any case (RFC 9110, section 11.1); one or more spaces follow.
        let (scheme, token) = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .ok_or(Unidentified::NoBearer)?;
        let token = token.trim_start_matches(' ');
        // What a token may consist of (RFC 6750, section 2.1).
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        if !is_bearer || token.is_empty() || !token.chars().all(allowed) {
            return Err(Unidentified::NoBearer);
        }
        match token.len() <= TOKEN_MAX {
            true => Ok(Self(token)),
            false => Err(Unidentified::Unknown),
        }
    }

    pub(crate) fn digest(self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Itself, if it is a JWT by its looks.
    pub(super) fn jwt(self) -> Option<&'a str> {
        self.0.contains('.').then_some(self.0)
    }
}

/// SHA-256. What is looked up has 256 random bits, so nothing slower is needed; it cannot be found
/// from this.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(***)")
    }
}

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut of = [0; 32];
        of.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(of)
    }

    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64)?;
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            let digits = hex.get(2 * at..2 * at + 2)?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(digest))
    }

    /// What it is filed under: some of its bits.
    pub(super) fn shelf(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Takes as long for what is nearly the same as for what is not.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[&[u8]]) -> Result<Option<String>, Unidentified> {
        let mut headers = HeaderMap::new();
        for value in values {
            // What the transport would not let through cannot come.
            let Ok(value) = HeaderValue::from_bytes(value) else {
                return Err(Unidentified::NoBearer);
            };
            headers.append(AUTHORIZATION, value);
        }
        let value = authorization(&headers)?;
        value.map(|value| Bearer::read(value).map(|bearer| bearer.0.to_owned())).transpose()
    }

    /// CVE-2024-10005, CVE-2024-10006 (Consul): what one side reads in a header and the other does
    /// not.
    #[test]
    fn one_bearer_is_taken_and_nothing_that_could_be_read_in_two_ways() {
        let taken = |token: &str| Ok(Some(token.to_owned()));
        let (long, longest) = (vec![b'a'; TOKEN_MAX + 1], vec![b'a'; TOKEN_MAX]);
        let bearer = |token: &[u8]| [b"Bearer ", token].concat();
        assert_eq!(of(&[]), Ok(None));
        for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
            assert_eq!(of(&[format!("{scheme} qrt_a").as_bytes()]), taken("qrt_a"));
        }
        assert_eq!(of(&[b"Bearer   a.b-c_d~e+f/g="]), taken("a.b-c_d~e+f/g="));
        assert!(of(&[&bearer(&longest)]).is_ok());
        for wrong in [
            &b"qrt_a"[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer\tqrt_a",
            b"Bearerqrt_a",
            b"Basic cXJ0Og==",
            b"Bearer a b",
            b"Bearer a,b",
            b"Bearer a\0b",
            b"Bearer \xc3\xa9",
            b" Bearer a",
            b"",
        ] {
            assert_eq!(of(&[wrong]), Err(Unidentified::NoBearer), "{wrong:?}");
        }
        assert_eq!(of(&[&bearer(&long)]), Err(Unidentified::Unknown));
        assert_eq!(of(&[&bearer(&vec![b'a'; 64 * 1024])]), Err(Unidentified::Unknown));
        assert_eq!(of(&[b"Bearer a", b"Bearer a"]), Err(Unidentified::Several));
        assert_eq!(of(&[b"", b"Bearer a"]), Err(Unidentified::Several));
    }

    #[test]
    fn digests_are_read_strictly_and_shown_to_nobody() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::parse(abc).unwrap();
        assert!(digest.is(&Digest::of(b"abc")));
        assert!(!digest.is(&Digest::of(b"abd")));
        for wrong in [
            &abc[7..],
            &abc[..70],
            &format!("{abc}0"),
            &abc.replace("sha256", "sha1"),
            &abc.replace('b', "g"),
            &abc.replace("ba", "+a"),
            "qrt_secret",
        ] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
        let shown = format!("{digest:?} {:?}", Bearer("qrt_secret"));
        assert!(!shown.contains("qrt_secret") && !shown.contains("ba78"), "{shown}");
    }
}
