//! JSON Web Tokens (RFC 7519), as Kubernetes projects them: signed, in the compact form, checked
//! against keys from a file alone. What a token's own header says beyond which key counts for
//! nothing.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::access::Unidentified;
use crate::access::keys::KeySet;
use crate::access::rights::{Grant, Principal};
use crate::wall::Seconds;

/// Clocks differ by at most this much.
const LEEWAY: Seconds = 60;
/// A token of a longer life is none: nothing can take it back before its end.
const LIFE_MAX: Seconds = 24 * 60 * 60;

/// Which tokens have which right.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) issuer: String,
    /// Rules with the same file share them.
    pub(crate) keys: Arc<KeySet>,
    /// All of these have to be so.
    pub(crate) claims: Vec<(String, Value)>,
    pub(super) grant: Grant,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// What must be understood and is not (RFC 7515, section 4.1.11).
    crit: Option<Value>,
}

/// The claims that every token has to have. A time that is no whole number is none at all, rather
/// than one that is not there (CVE-2026-25537).
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: Seconds,
    iat: Seconds,
    #[serde(default, deserialize_with = "there")]
    nbf: Option<Seconds>,
}

/// `null` is not "not there".
fn there<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Seconds>, D::Error> {
    Seconds::deserialize(value).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::One(only) => only == name,
            Self::Many(all) => all.iter().any(|one| one == name),
        }
    }
}

/// The principal that a token names, with all the rights that the rules give it.
///
/// # Errors
/// It is not signed by a key of these rules, or is not for this cluster or this time, or no rule is
/// for it.
pub(crate) fn verify(
    token: &str,
    rules: &[Rule],
    cluster: &str,
    now: Seconds,
) -> Result<Principal, Unidentified> {
    let (rules, payload) = signed(token, rules).ok_or(Unidentified::Unknown)?;
    // From here on the words may say more: an issuer that a rule trusts has signed this.
    let claims: Claims = serde_json::from_slice(&payload)
        .map_err(|_| Unidentified::Claims("iss sub aud exp iat"))?;
    check(&claims, cluster, now)?;
    let all: Value =
        serde_json::from_slice(&payload).map_err(|_| Unidentified::Claims("all of them"))?;
    let matching = rules.iter().filter(|rule| {
        let is = |(path, wanted): &(String, Value)| find(&all, path) == Some(wanted);
        rule.issuer == claims.iss && rule.claims.iter().all(is)
    });
    // A rule may end before its tokens.
    let until = |grant: &Grant| {
        Some(grant.until.unwrap_or(Seconds::MAX).min(claims.exp.saturating_add(LEEWAY)))
    };
    let grants: Vec<Grant> =
        matching.map(|rule| Grant { until: until(&rule.grant), ..rule.grant.clone() }).collect();
    match grants.is_empty() {
        true => Err(Unidentified::NoRule),
        false => Ok(Principal::new("jwt", &name(&claims), grants)),
    }
}

/// A subject is of its issuer: another one may have the same. The first `#` ends the issuer.
fn name(claims: &Claims) -> String {
    format!("{}#{}", claims.iss.replace('#', "%23"), claims.sub)
}

/// The rules whose key has signed the token, and what it has signed.
fn signed<'a>(token: &str, rules: &'a [Rule]) -> Option<(Vec<&'a Rule>, Vec<u8>)> {
    let (message, signature) = token.rsplit_once('.')?;
    let (header, payload) = message.split_once('.')?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    if header.crit.is_some() {
        return None;
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let mut seen: Vec<(&Arc<KeySet>, bool)> = Vec::new();
    let mut has_signed = |keys: &'a Arc<KeySet>| {
        if let Some((_, signed)) = seen.iter().find(|(of, _)| Arc::ptr_eq(of, keys)) {
            return *signed;
        }
        let key = keys.find(&header.kid).filter(|key| key.algorithm() == header.alg);
        let signed = key.is_some_and(|key| key.has_signed(message.as_bytes(), &signature));
        seen.push((keys, signed));
        signed
    };
    let rules: Vec<&Rule> = rules.iter().filter(|rule| has_signed(&rule.keys)).collect();
    if rules.is_empty() {
        return None;
    }
    Some((rules, URL_SAFE_NO_PAD.decode(payload).ok()?))
}

fn check(claims: &Claims, cluster: &str, now: Seconds) -> Result<(), Unidentified> {
    if !claims.aud.has(cluster) {
        return Err(Unidentified::Audience);
    }
    if claims.sub.is_empty() {
        return Err(Unidentified::Claims("sub"));
    }
    let begins = claims.nbf.unwrap_or(0).max(claims.iat);
    if begins > now.saturating_add(LEEWAY) {
        return Err(Unidentified::NotYet);
    }
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err(Unidentified::Expired);
    }
    match claims.exp.saturating_sub(claims.iat) > LIFE_MAX {
        true => Err(Unidentified::TooLong),
        false => Ok(()),
    }
}

/// The claim of this name, or, where dots go into objects, inside one: `kubernetes.io.namespace` is
/// `namespace` in `kubernetes.io`.
fn find<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let mut dots: Vec<usize> = path.match_indices('.').map(|(at, _)| at).collect();
    dots.reverse();
    dots.into_iter().find_map(|at| find(claims.get(&path[..at])?, &path[at + 1..]))
}

#[cfg(test)]
mod tests;
