//! A cluster with an access file, and calls with credentials.

use std::path::PathBuf;

use quorate_proto::v1::ListMembersRequest;
use tempfile::TempDir;
use tonic::Request;

use super::calls::with_timeout;
use super::harness::{Cluster, SOON, eventually};

/// May do everything; in the file of each guarded cluster.
pub(crate) const ROOT: &str = "qrt_root";

/// A cluster, and the access file that its nodes follow.
pub(crate) struct Guarded {
    pub(crate) cluster: Cluster,
    file: PathBuf,
    _dir: TempDir,
}

impl Guarded {
    /// Starts this number of nodes, which follow an access file with this text and [`ROOT`].
    pub(crate) async fn start(size: u64, access: &str) -> Self {
        let mut cluster = Cluster::prepare_founders(size).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        write(&file, access);
        for id in 1..=size {
            cluster.config_mut(id).access = Some(file.clone());
            cluster.restart(id).await;
        }
        for id in 1..=size {
            eventually("all know each other", || async {
                let request = by(Some(ROOT), ListMembersRequest {});
                let members = cluster.registry(id).list_members(request).await.ok()?;
                let members = members.into_inner().members;
                let known = members.iter().filter(|member| !member.client_address.is_empty());
                (known.count() == size as usize).then_some(())
            })
            .await;
        }
        Self { cluster, file, _dir: dir }
    }

    /// The nodes will see it within ten seconds.
    pub(crate) fn rewrite(&self, access: &str) {
        write(&self.file, access);
    }
}

fn write(file: &PathBuf, access: &str) {
    std::fs::write(file, access.to_owned() + &entry(ROOT, "role = 'admin'")).unwrap();
}

/// An entry for a token, which has its own text for an id.
pub(crate) fn entry(token: &str, rest: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let id = token.trim_start_matches("qrt_");
    format!("[[token]]\nid = '{id}'\ndigest = 'sha256:{hex}'\n{rest}\n")
}

/// A call with a token, or without one.
pub(crate) fn by<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = with_timeout(message, SOON);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}
