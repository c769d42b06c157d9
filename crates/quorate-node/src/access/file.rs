//! The access file: which credentials have which rights. Read strictly: what is not understood is
//! an error that names its line, and no error shows a value that could be a secret.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_state::{Namespace, ServiceName};
use serde::Deserialize;
use toml::Spanned;

use crate::access::bearer::Digest;
use crate::access::error::{AccessError, EntryError, FILE_MAX, Problem};
use crate::access::jwt;
use crate::access::keys::KeySet;
use crate::access::rights::{Grant, Principal, Role};
use crate::wall;

/// Everything that the access file and the files that it names say.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// By some bits of their digests.
    pub(super) tokens: HashMap<u64, Vec<(Digest, Arc<Principal>)>>,
    pub(super) by_spiffe: HashMap<String, Arc<Principal>>,
    pub(super) by_common_name: HashMap<String, Arc<Principal>>,
    pub(super) jwts: Vec<jwt::Rule>,
    pub(super) keys: Keys,
    /// What was read, to see a change by.
    pub(super) fingerprint: Vec<Digest>,
    /// A file with keys that cannot be used: those that it had before count.
    pub(super) fault: Option<AccessError>,
}

/// The keys that the access file names, by their files.
pub(super) type Keys = HashMap<PathBuf, (Digest, Arc<KeySet>)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Spanned<Token>>,
    #[serde(default)]
    certificate: Vec<Spanned<Certificate>>,
    #[serde(default)]
    jwt: Vec<Spanned<Jwt>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    id: String,
    digest: String,
    role: Role,
    namespace: Option<String>,
    prefix: Option<String>,
    not_after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    spiffe: Option<String>,
    common_name: Option<String>,
    role: Role,
    namespace: Option<String>,
    prefix: Option<String>,
    not_after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jwt {
    issuer: String,
    jwks: PathBuf,
    claims: toml::Table,
    role: Role,
    namespace: Option<String>,
    prefix: Option<String>,
    not_after: Option<String>,
}

/// Reads the access file and the keys that it names. `before`: the keys that are in use; where
/// there are some, a file with keys that is bad does not keep the rest from counting, as that a
/// token was taken out. It has the keys that it had, or none.
///
/// # Errors
/// Which file cannot be used, and why.
pub(super) fn read(path: &Path, before: Option<&Keys>) -> Result<Contents, AccessError> {
    let text = read_file(path)?;
    let mut files = vec![Digest::of(&text)];
    let mut fault = None;
    let read_keys = |jwks: &Path| {
        let read = read_file(jwks).and_then(|bytes| {
            let keys = KeySet::parse(&bytes).map_err(|error| of_file(jwks)(error.into()))?;
            Ok((Digest::of(&bytes), Arc::new(keys)))
        });
        let read = match (read, before) {
            (Err(error), Some(before)) => {
                fault.get_or_insert(error);
                let none = || (Digest::of(&[]), Arc::default());
                before.get(jwks).cloned().unwrap_or_else(none)
            }
            (read, _) => read?,
        };
        files.push(read.0);
        Ok(read)
    };
    let text = String::from_utf8(text).map_err(|_| of_file(path)(Problem::NoText))?;
    let contents = parse(&text, read_keys).map_err(of_file(path))?;
    Ok(Contents { fingerprint: files, fault, ..contents })
}

fn of_file(path: &Path) -> impl FnOnce(Problem) -> AccessError {
    move |problem| AccessError { path: path.to_owned(), problem }
}

fn read_file(path: &Path) -> Result<Vec<u8>, AccessError> {
    let read = || {
        let mut bytes = Vec::new();
        // To open a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(Problem::NoFile);
        }
        let file = std::fs::File::open(path)?;
        match file.take(FILE_MAX + 1).read_to_end(&mut bytes)? as u64 > FILE_MAX {
            true => Err(Problem::TooLarge),
            false => Ok(bytes),
        }
    };
    read().map_err(of_file(path))
}

/// What the text says; `read_keys` reads each file with keys once.
fn parse(
    text: &str,
    mut read_keys: impl FnMut(&Path) -> Result<(Digest, Arc<KeySet>), AccessError>,
) -> Result<Contents, Problem> {
    let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let at = |at: usize| move |source| Problem::Entry { line: line(at), source };
    let file: File = toml::from_str(text).map_err(|error| {
        let line = line(error.span().map_or(0, |span| span.start));
        Problem::Syntax(without_tokens(&format!("line {line}: {}", error.message())))
    })?;
    if file.token.is_empty() && file.certificate.is_empty() && file.jwt.is_empty() {
        // As of one that is half written.
        return Err(Problem::Empty);
    }
    let mut tokens: Vec<(Digest, String, Vec<Grant>)> = Vec::new();
    for entry in file.token {
        let begin = entry.span().start;
        take_token(entry.into_inner(), &mut tokens).map_err(at(begin))?;
    }
    let mut certificates = [const { Vec::new() }; 2];
    for entry in file.certificate {
        let begin = entry.span().start;
        take_certificate(entry.into_inner(), &mut certificates).map_err(at(begin))?;
    }
    let mut keys = Keys::new();
    let mut jwts = Vec::new();
    for entry in file.jwt {
        let begin = entry.span().start;
        let entry = entry.into_inner();
        let known = keys.get(&entry.jwks).cloned();
        let of = known.map_or_else(|| read_keys(&entry.jwks), Ok);
        let of = of.map_err(|error| at(begin)(EntryError::Keys(error.into())))?;
        keys.insert(entry.jwks.clone(), of.clone());
        jwts.push(jwt_rule(entry, of.1).map_err(at(begin))?);
    }
    let mut contents = Contents { jwts, keys, ..Contents::default() };
    for (digest, id, grants) in tokens {
        let principal = Arc::new(Principal::new("token", &id, grants));
        contents.tokens.entry(digest.shelf()).or_default().push((digest, principal));
    }
    let [by_spiffe, by_common_name] = certificates.map(|of_kind| {
        let principal = |(name, grants): (String, Vec<Grant>)| {
            let principal = Principal::new("certificate", &name, grants);
            (name, Arc::new(principal))
        };
        of_kind.into_iter().map(principal).collect::<HashMap<_, _>>()
    });
    (contents.by_spiffe, contents.by_common_name) = (by_spiffe, by_common_name);
    Ok(contents)
}

/// Entries of one token are its rights together.
fn take_token(
    entry: Token,
    tokens: &mut Vec<(Digest, String, Vec<Grant>)>,
) -> Result<(), EntryError> {
    let Token { id, digest, role, namespace, prefix, not_after } = entry;
    if id.is_empty() || id.len() > 128 {
        return Err("id: must have 1 to 128 bytes".into());
    }
    // Not shown: it may be the token itself.
    let digest = Digest::parse(&digest)
        .ok_or("digest: must be sha256: and 64 hexadecimal digits; `quorate token new` makes it")?;
    let grant = grant(role, namespace, prefix, not_after)?;
    match tokens.iter_mut().find(|(other, other_id, _)| digest == *other || id == *other_id) {
        None => tokens.push((digest, id, vec![grant])),
        Some((other, other_id, grants)) if digest == *other && id == *other_id => {
            grants.push(grant);
        }
        Some((_, other_id, _)) if id == *other_id => {
            return Err(format!("id = {id:?}: another token has it already").into());
        }
        Some((_, other_id, _)) => {
            return Err(format!("digest: is that of the token {other_id:?} already").into());
        }
    }
    Ok(())
}

fn take_certificate(
    entry: Certificate,
    certificates: &mut [Vec<(String, Vec<Grant>)>; 2],
) -> Result<(), EntryError> {
    let Certificate { spiffe, common_name, role, namespace, prefix, not_after } = entry;
    let grant = grant(role, namespace, prefix, not_after)?;
    let (of_kind, name) = match (spiffe, common_name) {
        (Some(name), None) | (None, Some(name)) if name.contains('*') => {
            let must =
                "stands for one certificate, and `*` for nothing else: write one entry for each";
            return Err(without_tokens(&format!("spiffe, common_name = {name:?}: {must}")).into());
        }
        (Some(spiffe), None) if is_spiffe(&spiffe) => (0, spiffe),
        (None, Some(name)) if !name.is_empty() => (1, name),
        (Some(_), None) => {
            let must = "must be spiffe://TRUST-DOMAIN/PATH, of letters, digits and -._";
            return Err(format!("spiffe: {must}").into());
        }
        (None, Some(_)) => return Err("common_name: must not be empty".into()),
        _ => return Err("spiffe, common_name: exactly one of them is needed".into()),
    };
    let of_kind = &mut certificates[of_kind];
    match of_kind.iter_mut().find(|(other, _)| *other == name) {
        Some((_, grants)) => grants.push(grant),
        None => of_kind.push((name, vec![grant])),
    }
    Ok(())
}

/// As the standard has it (SPIFFE-ID, section 2).
fn is_spiffe(name: &str) -> bool {
    let part = |part: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        !part.is_empty() && part.chars().all(fits)
    };
    let parts = name.strip_prefix("spiffe://").map(|rest| rest.split('/'));
    parts.is_some_and(|mut parts| parts.all(part))
}

fn jwt_rule(entry: Jwt, keys: Arc<KeySet>) -> Result<jwt::Rule, EntryError> {
    let Jwt { issuer, claims, role, namespace, prefix, not_after, .. } = entry;
    if issuer.is_empty() {
        return Err("issuer: must not be empty".into());
    }
    if claims.is_empty() {
        // A client that may have a token of this issuer may name any audience, as a rule.
        return Err("claims: must name at least one claim; without, all tokens of the issuer would be taken".into());
    }
    let claim = |(path, value): (String, toml::Value)| match value {
        toml::Value::String(text) if text.contains('*') => {
            let must = "must be equal, and `*` stands for nothing else";
            Err(without_tokens(&format!("claims.{path:?} = {text:?}: {must}")))
        }
        toml::Value::String(text) => Ok((path, text.into())),
        toml::Value::Integer(number) => Ok((path, number.into())),
        toml::Value::Boolean(is) => Ok((path, is.into())),
        _ => Err(format!("claims.{path:?}: must be a text, a whole number, true or false")),
    };
    let claims = claims.into_iter().map(claim).collect::<Result<_, String>>()?;
    Ok(jwt::Rule { issuer, keys, claims, grant: grant(role, namespace, prefix, not_after)? })
}

fn grant(
    role: Role,
    namespace: Option<String>,
    prefix: Option<String>,
    not_after: Option<String>,
) -> Result<Grant, EntryError> {
    let until = match not_after {
        None => None,
        Some(text) => Some(wall::parse(&text).ok_or_else(|| {
            format!("not_after = {text:?}: must be a time like \"2027-01-01T00:00:00Z\"")
        })?),
    };
    if role == Role::Admin {
        return match (namespace, prefix) {
            (None, None) => Ok(Grant { role, namespace: None, prefix: String::new(), until }),
            _ => Err("namespace, prefix: not with the role \"admin\", which may do all".into()),
        };
    }
    let namespace = match namespace.as_deref() {
        None => return Err("namespace: is missing; \"*\" for all".into()),
        Some("*") => None,
        Some(name) => {
            Namespace::new("namespace", name)?;
            namespace
        }
    };
    let prefix = prefix.unwrap_or_default();
    // A name may not end with a dot, a prefix may.
    if !prefix.is_empty() {
        let whole = format!("{prefix}0");
        ServiceName::new("prefix", &whole)
            .map_err(|_| format!("prefix = {prefix:?}: no name of a service can begin so"))?;
    }
    Ok(Grant { role, namespace, prefix, until })
}

/// What a parser says of what it did not expect may hold a token that stands in the wrong place.
fn without_tokens(text: &str) -> String {
    let mut parts = text.split("qrt_");
    let mut safe = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-".contains(c));
        safe.push_str("qrt_***");
        safe.push_str(rest);
    }
    safe
}

#[cfg(test)]
mod tests;
