//! What a node finds and settles before it is built: its data, the node and cluster that they are
//! of, its addresses, and Raft's settings.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftLogStorage as _;
use openraft::{Config as RaftConfig, SnapshotPolicy};
use quorate_log::{Identity, Io, LogOptions, NodeId, OpenError, SnapshotStore, make_dir};
use quorate_state::Levels;

use crate::access::Access;
use crate::applied::Applied;
use crate::audit::{Audit, Writer};
use crate::config::{self, CLUSTER_NAME, Config, Start, Tunables};
use crate::error::StartError;
use crate::meters::Meters;
use crate::net::tls::{Tls, TlsError};
use crate::net::{Listener, Net};
use crate::peers::Peers;
use crate::rescue::RescueError;
use crate::rescue::place::{self, Lock};
use crate::runtime::blocking;
use crate::types::{LogId, LogStore, Member, TypeConfig};
use crate::upkeep::amnesia::member_knows;

/// Opens the log and the snapshots in a data directory, which is made if it is missing. A new state
/// that was decided on (`rescue/place.rs`) is put into its place first.
///
/// # Errors
/// It cannot be made or read, is damaged, or is in use.
pub(crate) async fn open(
    data_dir: &Path,
    log_io: Io,
) -> Result<(LogStore, Arc<SnapshotStore<TypeConfig>>), StartError> {
    let dir = data_dir.to_owned();
    let opened = blocking(move || {
        make_dir(&dir).map_err(|source| StartError::DataDir { dir: dir.clone(), source })?;
        let _until_it_is_open = Lock::take(&dir).map_err(|error| in_use(&dir, error))?;
        place::finish(&dir).map_err(|source| StartError::DataDir { dir: dir.clone(), source })?;
        if is_log_lost(&dir).map_err(|source| StartError::DataDir { dir: dir.clone(), source })? {
            return Err(StartError::LogMissing { dir });
        }
        let options = LogOptions { io: log_io, ..LogOptions::default() };
        let log = LogStore::open(dir.join("log"), options)?;
        let snapshots = SnapshotStore::<TypeConfig>::open(dir.join("snapshots"))?;
        let covered = snapshots.current()?.and_then(|file| file.meta().last_log_id);
        Ok::<_, StartError>((log, Arc::new(snapshots), covered))
    });
    let (mut log, snapshots, covered): (LogStore, _, _) =
        opened.await.map_err(|source| StartError::Panicked { source })??;
    let Some(state) = log.get_log_state().await.ok() else { return Ok((log, snapshots)) };
    let ends = state.last_log_id.map(|last| last.index());
    let is_further = |covered: &LogId| Some(covered.index()) > ends && log.identity().is_some();
    if let Some(covered) = covered.filter(is_further) {
        // The node stopped between the snapshot of a leader and the purge that goes with it. What
        // the log has was never committed, if it is of a later term; Raft would take that for
        // newer.
        log.purge(covered).await.map_err(|source| StartError::Purge { source })?;
        return Ok((log, snapshots));
    }
    match state.last_purged_log_id.filter(|purged| Some(*purged) > covered) {
        None => Ok((log, snapshots)),
        Some(purged) => {
            let dir = data_dir.join("snapshots");
            Err(StartError::SnapshotMissing { dir, purged: purged.index() })
        }
    }
}

/// Nothing is applied yet. Where the log cannot say how far it goes, Raft fails on that next.
pub(super) async fn begin(log: &LogStore, tunables: &Tunables, meters: &Meters) -> Applied {
    let state = log.clone().get_log_state().await.ok();
    let again_until = state.and_then(|state| state.last_log_id);
    let (ring, bytes) = (tunables.watch_ring, tunables.watch_ring_bytes);
    Applied::after(again_until, ring, bytes, meters.propagation.clone())
}

/// Whether a node has run here, which makes the log before the snapshots, and its log is gone.
fn is_log_lost(dir: &Path) -> io::Result<bool> {
    Ok(dir.join("snapshots").try_exists()? && !dir.join("log").join("db").try_exists()?)
}

fn in_use(dir: &Path, error: RescueError) -> StartError {
    match error {
        RescueError::InUse { .. } => OpenError::Locked { path: dir.to_owned() }.into(),
        error => StartError::DataDir { dir: dir.to_owned(), source: io::Error::other(error) },
    }
}

/// The node and cluster that the data are of, as far as that is known. The cluster's id is not
/// known until it has applied the command that drew it, or a leader has taken it in.
pub(super) async fn settle_identity(
    id: NodeId,
    config: &Config,
    log: &LogStore,
    snapshots: &SnapshotStore<TypeConfig>,
    net: &Net,
    tls: Option<Arc<Tls>>,
) -> Result<Identity, StartError> {
    let nobody = Identity { cluster_id: None, founders: None, node_id: id };
    let dir = config.data_dir.clone();
    if let Some(owner) = log.identity() {
        if owner.node_id != id {
            return Err(StartError::OtherNode { dir, owner, id });
        }
        return Ok(owner);
    }
    if snapshots.current()?.is_some() {
        return Err(StartError::LogMissing { dir });
    }
    if let Start::Join { nodes, .. } = &config.start
        && let peers = Peers::new(nobody, net.clone(), tls, Levels::OWN)
        && let Some(told_by) = member_knows(id, nodes, &peers).await
    {
        return Err(StartError::Amnesia { id, dir, told_by });
    }
    let Some(members) = config.start.founders() else { return Ok(nobody) };
    let identity = Identity { founders: Some(founders_hash(&members)), ..nobody };
    log.stamp(identity).await?;
    Ok(identity)
}

/// Says what an operator has to know of a node that is in no cluster yet.
pub(super) fn tell_of_start(start: &Start, identity: Identity, peer_address: &str) {
    let id = identity.node_id;
    if identity.cluster_id.is_some() {
        return;
    }
    match start {
        Start::Bootstrap(members) => {
            let listed = members.get(&id.get()).filter(|listed| *listed != peer_address);
            if let Some(listed) = listed {
                tracing::warn!(
                    id = id.get(),
                    listed,
                    peer_address,
                    "bootstrap names another address for this node than its own: the others will look for it there; \
                     set peer_advertise to that, or correct the list on all nodes"
                );
            }
        }
        // What a directory with founders waits for is told by `Node::waits_for`.
        Start::Wait if identity.founders.is_some() => {}
        Start::Wait => tracing::info!(
            "this node is in no cluster, and waits: take it in with `quorate cluster add {id} {peer_address}`, \
             start it with --join MEMBER, or, for a new cluster, with --bootstrap {id}={peer_address}"
        ),
        Start::Join { .. } => {}
    }
}

/// By what founders know each other: every one of them finds the same from the list that all of
/// them were given. It is no cluster's id: clusters may be founded with the same list again.
fn founders_hash(members: &BTreeMap<NodeId, String>) -> NonZeroU64 {
    let listed: Vec<String> = members.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
    let hash = xxhash_rust::xxh3::xxh3_64(listed.join(",").as_bytes());
    NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN)
}

/// Warns of what this node takes from more callers than it may be meant to.
pub(super) fn warn_of_openness(
    access: &Access,
    has_tls: bool,
    clients: SocketAddr,
    peers: SocketAddr,
) {
    if !access.is_checked() && !clients.ip().is_loopback() {
        tracing::warn!(
            %clients,
            "every caller that reaches this address may do everything: `access` is not set"
        );
    }
    if access.is_checked() && !has_tls {
        tracing::warn!(
            %peers,
            "rights are checked for clients only: without TLS, every caller that reaches this address may \
             act as a node of the cluster, and so do everything"
        );
    }
    if (has_tls || access.takes_jwts()) && access.cluster() == CLUSTER_NAME {
        tracing::warn!(
            cluster_name = CLUSTER_NAME,
            "`cluster_name` is not set: a certificate of a node, or a JWT, of another cluster without a name \
             is good here, too, where both trust one authority or issuer"
        );
    }
}

/// # Errors
/// A file that cannot be used.
pub(super) async fn open_tls(config: &Config) -> Result<Option<Arc<Tls>>, StartError> {
    let Some(files) = config.tls.clone() else { return Ok(None) };
    let opened = Tls::open(files, &config.cluster_name, config.node_id()?).await;
    let failed = |TlsError { path, problem }| StartError::Tls { path, source: problem.into() };
    opened.map(Some).map_err(failed)
}

/// # Errors
/// The access file cannot be used.
pub(super) async fn open_access(config: &Config) -> Result<Arc<Access>, StartError> {
    let opened = Access::open(&config.cluster_name, config.access.clone()).await;
    opened.map(Arc::new).map_err(|error| StartError::Access { source: error.into() })
}

/// # Errors
/// The audit log cannot be written.
pub(super) fn open_audit(config: &Config) -> Result<(Arc<Audit>, Option<Writer>), StartError> {
    let Some(config::Audit { file, required }) = config.audit.clone() else {
        return Ok((Arc::default(), None));
    };
    let failed = |source| StartError::Audit { file: file.clone(), source };
    let (audit, writer) = Audit::open(file.clone(), required).map_err(failed)?;
    Ok((audit, Some(writer)))
}

/// Where a node listens.
pub(crate) struct Listeners {
    pub(crate) clients: Listener,
    pub(crate) peers: Listener,
    /// For operators' tools.
    pub(crate) tools: Option<Listener>,
    /// For DNS, on the same port.
    pub(crate) dns: Option<(UdpSocket, Listener)>,
}

impl Listeners {
    /// # Errors
    /// An address that is taken, or not this machine's.
    pub(crate) async fn bind(net: &Net, config: &Config) -> Result<Self, StartError> {
        let clients = listen(net, "listen", config.listen).await?;
        let peers = listen(net, "peer_listen", config.peer_listen).await?;
        let tools = match config.http_listen {
            Some(address) => Some(listen(net, "http_listen", address).await?),
            None => None,
        };
        let dns = match config.dns_listen {
            Some(address) => {
                let listener = listen(net, "dns_listen", address).await?;
                let bound = net.datagrams(listener.address());
                let failed = |source| StartError::Listen { field: "dns_listen", address, source };
                Some((bound.map_err(failed)?, listener))
            }
            None => None,
        };
        Ok(Self { clients, peers, tools, dns })
    }

    /// What this node tells others of where it is.
    pub(crate) fn member(
        &self,
        advertise: Option<String>,
        peer_advertise: Option<String>,
    ) -> Member {
        Member {
            client_address: advertised(advertise, &self.clients),
            peer_address: advertised(peer_advertise, &self.peers),
        }
    }

    /// What strangers on other machines can reach of it, in words; empty: nothing.
    pub(crate) fn open(&self, has_tls: bool, has_rights: bool) -> String {
        let is_far = |listener: &Listener| !listener.address().ip().is_loopback();
        let at = |whose: &str, listener: &Listener| format!("{whose} at {}", listener.address());
        let mut open = Vec::new();
        if !has_tls {
            let tools = self.tools.iter().map(|tools| ("tools", tools));
            let all = [("clients", &self.clients), ("peers", &self.peers)].into_iter().chain(tools);
            let all = all.filter(|(_, listener)| is_far(listener));
            open.extend(all.map(|(whose, listener)| at(whose, listener) + ", without TLS"));
        }
        if !has_rights && is_far(&self.clients) {
            open.push(at("clients", &self.clients) + ", where every caller may do everything");
        }
        open.join("; ")
    }
}

async fn listen(
    net: &Net,
    field: &'static str,
    address: SocketAddr,
) -> Result<Listener, StartError> {
    let bound = net.listen(address).await;
    bound.map_err(|source| StartError::Listen { field, address, source })
}

fn advertised(configured: Option<String>, listener: &Listener) -> String {
    configured.unwrap_or_else(|| listener.address().to_string())
}

pub(super) fn raft_config(tunables: &Tunables) -> Result<Arc<RaftConfig>, StartError> {
    let config = RaftConfig {
        heartbeat_interval: tunables.heartbeat_ms,
        election_timeout_min: tunables.election_timeout_min_ms,
        election_timeout_max: tunables.election_timeout_max_ms,
        enable_pre_vote: Some(true),
        // A leader that is back at once would lead on in its old term: it would answer linearizable
        // reads from before what it had acknowledged, and could give a log id that a follower holds
        // to another entry (its last ones may have reached followers and not its own disk).
        enable_leader_restore: Some(false),
        // A member that is back on an older copy of its directory is given what it lacks. Without
        // this, a leader leaves it alone for as long as it leads. What was committed with its help
        // stays so.
        allow_log_reversion: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(tunables.snapshot_every),
        max_in_snapshot_log_to_keep: tunables.keep_entries,
        replication_lag_threshold: tunables.snapshot_every + tunables.keep_entries,
        // Only for giving up on a transfer; its messages have their own timeouts.
        install_snapshot_timeout: 600_000,
        ..RaftConfig::default()
    };
    let config = config.validate();
    config.map(Arc::new).map_err(|source| StartError::RaftConfig { source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use openraft::testing::log_id;

    use super::*;
    use crate::types::{Entry, SnapshotMeta, StoredMembership};

    fn id(term: u64, index: u64) -> LogId {
        log_id::<TypeConfig>(term, NodeId::new(1).unwrap(), index)
    }

    /// A founder alone would found its cluster again, and say that it is empty.
    #[tokio::test]
    async fn a_log_that_is_gone_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (log, _) = open(dir, Io::Inline).await.unwrap();
        log.close().unwrap();
        let (log, _) = open(dir, Io::Inline).await.unwrap();
        log.close().unwrap();
        fs::remove_dir_all(dir.join("log")).unwrap();
        for _ in 0..2 {
            let refused = open(dir, Io::Inline).await.err().unwrap();
            assert!(matches!(refused, StartError::LogMissing { .. }), "{refused}");
            assert!(refused.needs_operator());
            for part in ["has run on it", "--join", "restore a backup"] {
                assert!(refused.to_string().contains(part), "{refused}");
            }
            assert!(!dir.join("log").exists(), "a log is made");
        }
        // The first opening failed where it had made the directory and nothing in it.
        fs::remove_dir(dir.join("snapshots")).unwrap();
        fs::create_dir(dir.join("log")).unwrap();
        open(dir, Io::Inline).await.unwrap();
    }

    /// Entries that were never committed, of a later term than the snapshot that a leader sent,
    /// and the node stopped before it had purged them.
    #[tokio::test]
    async fn a_snapshot_that_goes_further_than_the_log_counts_whatever_the_terms_are() {
        use openraft::storage::RaftLogStorageExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (mut log, snapshots) = open(dir.path(), Io::Inline).await.unwrap();
        let node_id = NodeId::new(1).unwrap();
        log.stamp(Identity { cluster_id: None, founders: NonZeroU64::new(1), node_id })
            .await
            .unwrap();
        let blank = |index| Entry { log_id: id(5, index), payload: openraft::EntryPayload::Blank };
        log.blocking_append((0..=50).map(blank)).await.unwrap();
        let last_log_id = Some(id(3, 100));
        let last_membership = StoredMembership::default();
        let meta = SnapshotMeta { last_log_id, last_membership };
        snapshots.begin(&meta).unwrap().finish().unwrap();
        log.close().unwrap();
        drop(snapshots);
        for _ in 0..2 {
            let (mut log, _) = open(dir.path(), Io::Inline).await.unwrap();
            let state = log.get_log_state().await.unwrap();
            assert_eq!((state.last_purged_log_id, state.last_log_id), (last_log_id, last_log_id));
            log.close().unwrap();
        }
    }
}
