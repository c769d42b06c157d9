//! What a caller has of a service: where it stands, and the tag of what it was sent.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::http::HeaderMap;
use axum::http::header::IF_NONE_MATCH;
use quorate_proto::v1::{FetchRequest, ResponseHeader};
use quorate_state::{Registry, Revision};

use crate::api::http::shown;

/// What an answer depends on besides its service and the revision: which part is asked for, and how
/// this version of the program shows it.
pub(super) fn form(request: &FetchRequest) -> u64 {
    let FetchRequest { statuses, tags, zones, limit, after, .. } = request;
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), statuses, tags, zones, limit, after).hash(&mut hasher);
    hasher.finish()
}

/// An answer's place: where a caller stands that has it, and the tag of what it is sent.
pub(super) struct Place {
    pub(super) index: String,
    pub(super) etag: String,
    /// The service is known.
    is_there: bool,
    stands: Revision,
    /// Where the caller stood that waited for a change.
    since: Option<Revision>,
}

/// The place of an answer: a service has a revision of its own for each list of instances; one that
/// is not known has none, and may have had instances before it was forgotten.
pub(super) fn place(
    registry: &Registry,
    header: Option<&ResponseHeader>,
    revision: u64,
    (since, form): (Option<Revision>, u64),
) -> Place {
    let (cluster_id, now) = header.map_or((0, 0), |header| (header.cluster_id, header.revision));
    let stands = stands(registry, revision, since, now);
    let index = shown::position(cluster_id, stands);
    let etag = match revision {
        0 => format!("\"{}-unknown-{form:016x}\"", shown::hex(cluster_id)),
        _ => format!("\"{index}-{form:016x}\""),
    };
    Place { index, etag, is_there: revision > 0, stands: Revision(stands), since }
}

impl Place {
    /// Whether the caller has this answer, and stands there. One that waited and stands elsewhere
    /// by now has to learn where, which 304 does not say: it would ask from the old place for ever.
    pub(super) fn is_known(&self, headers: &HeaderMap) -> bool {
        let has_moved = self.since.is_some_and(|since| since != self.stands);
        !has_moved && is_known(headers, &self.etag, self.is_there)
    }
}

/// The revision that a caller has of a service which is at `revision` (0: it is not known), and
/// which it had as of `since`; `now`: what its answer is of.
fn stands(registry: &Registry, revision: u64, since: Option<Revision>, now: u64) -> u64 {
    match (revision, since) {
        (0, Some(since)) if !registry.forgot_after(since) => since.0,
        (0, _) => now,
        (revision, _) => revision,
    }
}

/// Whether the caller has what has this tag; `*` is whatever is there, if anything is.
pub(super) fn is_known(headers: &HeaderMap, etag: &str, is_there: bool) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" && is_there || tag.trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests;
