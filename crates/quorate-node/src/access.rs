//! Callers and their rights: identities, proved by a certificate, a token or a JWT, and the rights
//! that the access file gives them. Without that file, every caller may do everything.
//!
//! Denies by default: what no entry of the file grants is not granted. Knows no call and no
//! registry; `api/grpc/door.rs` asks before anything is looked up.
//!
//! | file | duty |
//! |---|---|
//! | `rights` | principals, roles, what they reach |
//! | `file` | the access file, read strictly |
//! | `bearer` | the token of a call, and digests |
//! | `jwt`, `keys` | JSON Web Tokens, and the keys that sign them |

mod bearer;
mod error;
mod file;
mod jwt;
mod keys;
mod rights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::time::sleep;

pub(crate) use crate::access::bearer::authorization;
use crate::access::bearer::{Bearer, Digest};
use crate::access::error::{AccessError, Problem, READ_WITHIN, SETTLES};
use crate::access::file::{Contents, Keys};
pub(crate) use crate::access::rights::{Denied, Principal, Reach, Role};
use crate::error::with_causes;
use crate::net::tls::CertificateId;
use crate::runtime::{Reads, Unread};
use crate::wall;

/// JWTs that were verified and are kept, so that a caller's next call need not be: some KiB each.
const VERIFIED_MAX: usize = 4_096;

/// Why a caller is not known. Says nothing of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unidentified {
    #[error(
        "no credential came with the call; it needs a token (metadata `authorization: Bearer TOKEN`) or a client certificate"
    )]
    None,
    #[error("the metadata `authorization` must be `Bearer TOKEN`")]
    NoBearer,
    #[error("the metadata `authorization` came more than once")]
    Several,
    #[error("the credential is not known here, or not any more")]
    Unknown,
    #[error("the credential has expired")]
    Expired,
    #[error("the credential is not valid yet; clocks may differ by a minute")]
    NotYet,
    #[error("the token is for another audience than this cluster's name")]
    Audience,
    #[error("the token lives longer than a day")]
    TooLong,
    #[error("the token's claims are missing or of another type than they must be: {0}")]
    Claims(&'static str),
    #[error("no rule takes this credential")]
    NoRule,
}

/// Identifies callers, by the access file as it is now.
#[derive(Debug)]
pub(crate) struct Access {
    /// The cluster's name: the audience that tokens must be for, and what its nodes' certificates
    /// name.
    cluster: String,
    file: Option<PathBuf>,
    reads: Reads,
    rights: ArcSwap<Rights>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
    anonymous: Arc<Principal>,
    /// What was wrong with the file when it was last read, so that it is logged once.
    told: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Rights {
    contents: Contents,
    /// The principals of JWTs that were verified with the keys and rules of now.
    verified: Mutex<HashMap<Digest, Arc<Principal>>>,
}

impl Access {
    /// The cluster's name.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Reads the access file, if there is to be one.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) async fn open(cluster: &str, file: Option<PathBuf>) -> Result<Self, AccessError> {
        let reads = Reads::default();
        let contents = match &file {
            Some(file) => read(file, &reads, None).await?,
            None => Contents::default(),
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            file,
            reads,
            rights: ArcSwap::from_pointee(Rights { contents, ..Rights::default() }),
            changes: watch::Sender::new(0),
            anonymous: Arc::new(Principal::anonymous()),
            told: Mutex::default(),
        })
    }

    /// Whether rights are checked at all.
    pub(crate) fn is_checked(&self) -> bool {
        self.file.is_some()
    }

    /// Whether JWTs are taken, which name the cluster that they are for.
    pub(crate) fn takes_jwts(&self) -> bool {
        !self.rights.load().contents.jwts.is_empty()
    }

    /// Whether the file as it is now cannot be used, and the rights before stay.
    pub(crate) fn is_refused(&self) -> bool {
        self.told.lock().expect("invariant: nothing panics under this lock").is_some()
    }

    /// Changes when rights have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads the file again. What cannot be used is logged, and everything stays as it is; or, of a
    /// file with keys, those keys.
    pub(crate) async fn reload(&self) {
        let Some(file) = &self.file else { return };
        let path = file.display().to_string();
        let (news, what_stays) = match self.read_settled(file).await {
            Ok(mut contents) => {
                let fault = contents.fault.take();
                let changed = contents.fingerprint != self.rights.load().contents.fingerprint;
                if changed {
                    self.rights.store(Arc::new(Rights { contents, ..Rights::default() }));
                    self.changes.send_modify(|count| *count += 1);
                    tracing::info!(file = path, "the rights are those of the changed access file");
                }
                (
                    fault,
                    "keys cannot be used; those before stay, and the rest of the access file counts",
                )
            }
            Err(error) => {
                (Some(error), "the access file cannot be used; the rights stay as they were")
            }
        };
        let news = news.map(|error| with_causes(&error));
        let mut told = self.told.lock().expect("invariant: nothing panics under this lock");
        if let Some(error) = news.as_ref().filter(|error| told.as_ref() != Some(*error)) {
            tracing::warn!(%error, "{what_stays}");
        }
        *told = news;
    }

    /// What the files say; where that is something new, they say it twice.
    async fn read_settled(&self, file: &Path) -> Result<Contents, AccessError> {
        let (keys, used) = {
            let Contents { keys, fingerprint, .. } = &self.rights.load().contents;
            (keys.clone(), fingerprint.clone())
        };
        let first = read(file, &self.reads, Some(keys.clone())).await?;
        if first.fingerprint == used {
            return Ok(first);
        }
        sleep(SETTLES).await;
        let again = read(file, &self.reads, Some(keys)).await?;
        match again.fingerprint == first.fingerprint {
            true => Ok(again),
            false => Err(AccessError { path: file.to_owned(), problem: Problem::Unsettled }),
        }
    }

    /// The caller: by the [`authorization`] of the call, or, if it has none, by the certificate of
    /// its connection.
    ///
    /// # Errors
    /// The caller is not known.
    pub(crate) fn identify(
        &self,
        certificate: Option<&CertificateId>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Arc<Principal>, Unidentified> {
        if !self.is_checked() {
            return Ok(self.anonymous.clone());
        }
        let (rights, now) = (self.rights.load(), wall::now());
        let principal = match (authorization, certificate) {
            (Some(value), _) => rights.of_bearer(Bearer::read(value)?, &self.cluster, now)?,
            (None, Some(certificate)) => rights.of_certificate(certificate, &self.cluster)?,
            (None, None) => return Err(Unidentified::None),
        };
        match principal.is_live(now) {
            true => Ok(principal),
            false => Err(Unidentified::Expired),
        }
    }
}

impl Rights {
    fn of_bearer(
        &self,
        bearer: Bearer<'_>,
        cluster: &str,
        now: wall::Seconds,
    ) -> Result<Arc<Principal>, Unidentified> {
        let digest = bearer.digest();
        let mut same = self.contents.tokens.get(&digest.shelf()).into_iter().flatten();
        if let Some((_, principal)) = same.find(|(of, _)| of.is(&digest)) {
            return Ok(principal.clone());
        }
        let jwt = bearer.jwt().ok_or(Unidentified::Unknown)?;
        if let Some(known) = self.verified().get(&digest).filter(|known| known.is_live(now)) {
            return Ok(known.clone());
        }
        let verified = jwt::verify(jwt, &self.contents.jwts, cluster, now)?;
        let verified = Arc::new(verified);
        let mut kept = self.verified();
        if kept.len() >= VERIFIED_MAX {
            kept.retain(|_, principal| principal.is_live(now));
        }
        if kept.len() >= VERIFIED_MAX {
            kept.clear();
        }
        kept.insert(digest, verified.clone());
        Ok(verified)
    }

    fn of_certificate(
        &self,
        certificate: &CertificateId,
        cluster: &str,
    ) -> Result<Arc<Principal>, Unidentified> {
        let CertificateId { spiffe, common_name } = certificate;
        // A certificate with an id is known by that alone.
        let (names, name) = match spiffe {
            Some(spiffe) => (&self.contents.by_spiffe, Some(spiffe)),
            None => (&self.contents.by_common_name, common_name.as_ref()),
        };
        if let Some(principal) = name.and_then(|name| names.get(name)) {
            return Ok(principal.clone());
        }
        let node = certificate.node(cluster);
        node.map(|id| Arc::new(Principal::node(id))).ok_or(Unidentified::NoRule)
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Principal>>> {
        self.verified.lock().expect("invariant: nothing panics under this lock")
    }
}

async fn read(path: &Path, reads: &Reads, before: Option<Keys>) -> Result<Contents, AccessError> {
    let read = move |path: &Path| file::read(path, before.as_ref());
    let problem = match reads.read(path, READ_WITHIN, read).await {
        Ok(read) => return read,
        Err(Unread::Panicked(panicked)) => Problem::Panicked(panicked),
        Err(Unread::Slow) => Problem::Slow,
    };
    Err(AccessError { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests;
