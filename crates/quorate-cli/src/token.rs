//! Tokens: 256 random bits, written so that scanners for leaked secrets recognise one, and what the
//! nodes are given of it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

/// What every token begins with.
const PREFIX: &str = "qrt_";
const CHECKSUM_DIGITS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `qrt_`, 43 characters with 256 random bits (base64url), 6 with the CRC-32 of all that (base62):
/// a text that only looks like a token can be recognised without asking a node.
pub(crate) fn new() -> Result<String, String> {
    let mut random = [0; 32];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(written(&random))
}

fn written(random: &[u8; 32]) -> String {
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut checksum = [b'0'; CHECKSUM_DIGITS];
    for digit in checksum.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    text + str::from_utf8(&checksum).expect("invariant: digits are ASCII")
}

/// What stands for it in the access file: it cannot be used as the token.
pub(crate) fn digest_of(token: &str) -> String {
    let digest = digest(&SHA256, token.as_bytes());
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", hex.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognised_and_has_its_checksum() {
        let all = [new().unwrap(), new().unwrap(), written(&[0; 32]), written(&[255; 32])];
        for token in &all {
            assert_eq!(token.len(), 4 + 43 + 6, "{token}");
            let (text, checksum) = token.split_at(47);
            let value = |c: u8| BASE62.iter().position(|digit| *digit == c).unwrap() as u64;
            let read = checksum.bytes().fold(0, |sum, c| sum * 62 + value(c));
            assert_eq!(read, u64::from(crc32fast::hash(text.as_bytes())));
            assert!(token.starts_with("qrt_"));
        }
        assert_ne!(all[0], all[1]);
        // By python: hashlib.sha256(b"abc").hexdigest()
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of("abc"), format!("sha256:{abc}"));
    }
}
