//! A cluster with an access file, and calls with credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use quorate_node::Audit;
use quorate_proto::v1::ListMembersRequest;
use serde_json::Value;
use tempfile::TempDir;
use tonic::Request;

use super::calls::with_timeout;
use super::harness::{Cluster, SOON, eventually};
use super::metrics::get;

/// May do everything; in the file of each guarded cluster.
pub(crate) const ROOT: &str = "qrt_root";

/// A cluster, and the access file that its nodes follow.
pub(crate) struct Guarded {
    pub(crate) cluster: Cluster,
    file: PathBuf,
    dir: TempDir,
}

impl Guarded {
    /// Starts this number of nodes, which follow an access file with this text and [`ROOT`].
    pub(crate) async fn start(size: u64, access: &str) -> Self {
        Self::start_with(size, access, false).await
    }

    /// The same, and each writes an audit log.
    pub(crate) async fn start_audited(size: u64, access: &str) -> Self {
        Self::start_with(size, access, true).await
    }

    async fn start_with(size: u64, access: &str, audited: bool) -> Self {
        let mut cluster = Cluster::prepare_founders(size).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        write(&file, access);
        for id in 1..=size {
            let config = cluster.config_mut(id);
            config.access = Some(file.clone());
            config.tunables.deny_after_ms = 0;
            let log = dir.path().join(format!("audit-{id}"));
            config.audit = audited.then_some(Audit { file: log, required: false });
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
        Self { cluster, file, dir }
    }

    /// The lines of a node's audit log of one method, in order.
    pub(crate) fn audit(&self, id: u64, method: &str) -> Vec<Value> {
        let mut lines = self.audit_lines(id);
        lines.retain(|line| line["method"] == method);
        lines
    }

    fn audit_lines(&self, id: u64) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("audit-{id}"))).unwrap();
        assert!(!text.contains("qrt_") && !text.contains("eyJ"), "a token is in it: {text}");
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// How many calls of each method node 1 has counted: by `started`, those that began, by
    /// `handled`, with each code, those that were answered.
    pub(crate) async fn counted(&self, calls: &str) -> BTreeMap<String, f64> {
        let scraped = get(self.cluster.http_address(1), "/metrics", Some(ROOT)).await;
        let scraped = scraped.expect("an answer").body;
        let name = format!("grpc_server_{calls}_total{{");
        let mut counted = BTreeMap::new();
        for line in scraped.lines().filter_map(|line| line.strip_prefix(name.as_str())) {
            let (labels, count) = line.rsplit_once(' ').unwrap();
            let method = labels.split(",grpc_code=").next().unwrap().trim_end_matches('}');
            *counted.entry(method.to_owned()).or_insert(0.0) += count.parse::<f64>().unwrap();
        }
        counted
    }

    /// Waits until each refusal has a line of node 1's audit log, so many of each caller that is
    /// known, or is counted as left out, which those of strangers may be.
    pub(crate) async fn each_refusal_is_told(
        &self,
        known: &BTreeMap<String, usize>,
        strangers: usize,
    ) {
        let expected = known.values().sum::<usize>() + strangers;
        let told = eventually("all refusals are told or counted", || async {
            let metrics = get(self.cluster.http_address(1), "/metrics", Some(ROOT)).await?.body;
            let left_out = "quorate_audit_left_out_total ";
            let left_out = metrics.lines().find_map(|line| line.strip_prefix(left_out))?;
            let left_out: usize = left_out.parse().ok()?;
            let mut lines = self.audit_lines(1);
            lines.retain(|line| line["decision"] == "denied");
            (lines.len() + left_out >= expected).then_some((lines, left_out))
        });
        let (lines, left_out) = told.await;
        let mut found = BTreeMap::new();
        for line in &lines {
            let who = line["principal"].as_str().unwrap_or("nobody").to_owned();
            *found.entry(who).or_insert(0) += 1;
        }
        let of_nobody = found.remove("nobody").unwrap_or(0);
        assert_eq!(found, *known);
        assert_eq!(of_nobody + left_out, strangers, "{of_nobody} lines, {left_out} left out");
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
