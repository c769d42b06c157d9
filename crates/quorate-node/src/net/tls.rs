//! TLS of a node, in both directions: one policy for both listeners and for what the node dials. A
//! certificate of the cluster's authority alone opens no door between nodes: it has to name a node
//! of this cluster, and the one that is wanted.

mod accept;
mod der;
mod error;
mod files;
mod lasting;
mod lists;
mod pem;
mod told;
mod verify;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use quorate_log::NodeId;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config;
use crate::error::with_causes;
use crate::net::Net;
use crate::net::tls::error::Problem;
use crate::net::tls::files::{Lists, Loaded};
use crate::net::tls::told::Told;
use crate::net::tls::verify::NodeVerifier;
use crate::runtime::{Reads, blocking};
use crate::wall;

pub(crate) use accept::{Secured, Security, TellsRefused};
pub(crate) use error::TlsError;
pub(crate) use lasting::{Outlived, Shown};

/// A peer that has accepted a connection has this long for its handshake, beside what the endpoint
/// grants in all.
const DIAL_HANDSHAKE: Duration = Duration::from_secs(2);

/// The identity that a verified certificate gives its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateId {
    /// The only URI among its names.
    pub(crate) spiffe: Option<String>,
    pub(crate) common_name: Option<String>,
}

impl CertificateId {
    /// The node of this cluster that it names, if any.
    pub(crate) fn node(&self, cluster: &str) -> Option<NodeId> {
        let path = self.spiffe.as_deref()?.strip_prefix("spiffe://")?.strip_prefix(cluster)?;
        let id = path.strip_prefix("/node/")?;
        // One spelling for each id.
        let digits = id.bytes().all(|byte| byte.is_ascii_digit()) && !id.starts_with('0');
        id.parse().ok().filter(|_| digits).and_then(NodeId::new)
    }
}

/// The time by which handshakes judge certificates.
fn wall_time() -> UnixTime {
    UnixTime::since_unix_epoch(wall::since_1970())
}

/// Gives the TLS library that time.
#[derive(Debug)]
struct WallTime;

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(wall_time())
    }
}

/// The TLS of one node: what its files had when they could be used last.
pub(crate) struct Tls {
    files: config::Tls,
    reads: Reads,
    cluster: Arc<str>,
    node: NodeId,
    loaded: ArcSwap<Loaded>,
    /// The number of the set that is in use.
    changes: watch::Sender<u64>,
    /// Of the files that are in use.
    used: ArcSwap<files::Read>,
    /// The last refusal in the log: one line for each fault, however often it is found.
    refusal: Mutex<String>,
    told: Told,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub(crate) async fn open(
        files: config::Tls,
        cluster: &str,
        node: NodeId,
    ) -> Result<Arc<Self>, TlsError> {
        let reads = Reads::default();
        let (read, _) = files::read(&files, &reads, None).await?;
        let loaded = files::load(&files, cluster, node, (&read, Lists::Newest), None)?;
        let (loaded, used) = (ArcSwap::from_pointee(loaded), ArcSwap::from_pointee(read));
        let (cluster, refusal) = (cluster.into(), Mutex::default());
        let changes = watch::Sender::new(0);
        let told = Told::default();
        Ok(Arc::new(Self { files, reads, cluster, node, loaded, changes, used, refusal, told }))
    }

    /// Reads the files again, and takes what they have if it has changed and can be used.
    pub(crate) async fn reload(self: &Arc<Self>) {
        let used = self.used.load_full();
        let (fault, is_new) = match files::read(&self.files, &self.reads, Some(&used)).await {
            // Of large files, and where some are bad, that takes its time.
            Ok((read, fault)) => {
                let tls = self.clone();
                blocking(move || tls.take(&read, fault)).await.unwrap_or_else(|panicked| {
                    let problem = Problem::Read(panicked.into());
                    (Some(TlsError { path: self.files.ca.clone(), problem }), false)
                })
            }
            Err(error) => (Some(error), false),
        };
        let mut refusal = self.refusal.lock().expect("invariant: nothing panics under this lock");
        match (fault.map(|fault| with_causes(&fault)), is_new) {
            (Some(error), _) if *refusal == error && !is_new => {}
            (Some(error), false) => {
                tracing::warn!(%error, "TLS: the files cannot be used; those before stay");
                *refusal = error;
            }
            (Some(error), true) => {
                tracing::warn!(
                    %error,
                    "TLS: some of the files cannot be used, and count as before; the others are in use"
                );
                *refusal = error;
            }
            (None, true) => {
                refusal.clear();
                tracing::info!("TLS: new certificates are in use for new connections");
            }
            (None, false) if refusal.is_empty() => {}
            (None, false) => {
                refusal.clear();
                tracing::info!("TLS: the files are those that are in use again");
            }
        }
    }

    /// Takes what can be used of what was read; why that is not all, and whether it is anything
    /// new.
    /// `unread`: why some of it is as before.
    fn take(&self, read: &files::Read, unread: Option<TlsError>) -> (Option<TlsError>, bool) {
        let mut is_new = false;
        loop {
            let (newest, fault) = self.newest(read, &self.used.load());
            let Some((loaded, used)) = newest else { return (unread.or(fault), is_new) };
            if let Some(unfit) = &loaded.unfit {
                let error = with_causes(unfit);
                tracing::warn!(%error, "TLS: other nodes do not take this node's certificate");
            }
            let set = loaded.set;
            self.loaded.store(Arc::new(loaded));
            self.changes.send_replace(set);
            self.used.store(Arc::new(used));
            // What did not fit the rest may fit now.
            is_new = true;
        }
    }

    /// What is to be used from now on, if that is something else; and why it is not all of what was
    /// read.
    fn newest(
        &self,
        read: &files::Read,
        used: &files::Read,
    ) -> (Option<(Loaded, files::Read)>, Option<TlsError>) {
        let mut fault = None;
        let before = self.loaded.load();
        for (read, lists) in read.newest(used) {
            let is_used = lists == Lists::Kept || !before.has_foreign_lists;
            if read == *used && is_used {
                continue;
            }
            // Also where they were refused before: a certificate may be valid by now.
            let (set, before) = ((&read, lists), Some((&**before, used)));
            match files::load(&self.files, &self.cluster, self.node, set, before) {
                Ok(loaded) => return (Some((loaded, read)), fault),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        (None, fault)
    }

    /// Says in the log, if it is time, that this node's certificate ends, and that revocation lists
    /// are overdue.
    pub(crate) fn tell_end(&self) {
        let (loaded, now) = (self.loaded.load(), wall::now());
        if let Some(lifetime) = loaded.lifetime {
            self.told.end(lifetime, now);
        }
        self.told.overdue(loaded.overdue(now));
    }

    /// Seconds until this node's certificate ends, negative when it has; `None`: it does not say.
    pub(crate) fn ends_in(&self) -> Option<i64> {
        let not_after = self.loaded.load().lifetime?.not_after;
        i64::try_from(not_after).ok()?.checked_sub_unsigned(wall::now())
    }

    /// Whether the files as they are now cannot be used, and those before stay.
    pub(crate) fn is_refused(&self) -> bool {
        !self.refusal.lock().expect("invariant: nothing panics under this lock").is_empty()
    }

    /// How many handshakes were refused.
    pub(crate) fn handshakes_refused(&self) -> u64 {
        self.told.handshakes_refused()
    }

    /// What a connection's age may be.
    fn connection_age(&self) -> Duration {
        Duration::from_millis(self.files.connection_age_ms)
    }

    /// Of a node: `node`, where that is known. What it shows to clients may be of a host only.
    fn verifier(&self, loaded: &Loaded, node: Option<NodeId>) -> Arc<dyn ServerCertVerifier> {
        match &loaded.hosts {
            Some(hosts) if node.is_none() => hosts.clone(),
            _ => {
                let (chain, cluster) = (loaded.nodes.clone(), self.cluster.clone());
                Arc::new(NodeVerifier { chain, cluster, node })
            }
        }
    }

    /// To dial a node: where it listens for nodes, or, with `node` `None`, for clients.
    fn dial(
        &self,
        loaded: &Loaded,
        node: Option<NodeId>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        loaded.dialled.get_or_make(node, || {
            let identity = match node {
                Some(_) => &loaded.identity,
                None => &loaded.of_listener,
            };
            let mut config =
                ClientConfig::builder_with_details(files::provider(), Arc::new(WallTime))
                    .with_safe_default_protocol_versions()?
                    .dangerous()
                    .with_custom_certificate_verifier(self.verifier(loaded, node))
                    .with_client_cert_resolver(identity.clone());
            config.alpn_protocols = vec![files::H2.to_vec()];
            // Each dial is verified whole, by the newest files.
            config.resumption = rustls::client::Resumption::disabled();
            Ok(config)
        })
    }

    /// A channel to a node that connects when it is first used, each time by the newest files.
    pub(crate) fn connect(
        self: &Arc<Self>,
        net: &Net,
        endpoint: &Endpoint,
        node: Option<NodeId>,
    ) -> Channel {
        let (tls, net) = (self.clone(), net.clone());
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let (tls, net) = (tls.clone(), net.clone());
            async move {
                let stream = net.reach(&uri).await?;
                let loaded = tls.loaded.load_full();
                let dial = tls.dial(&loaded, node).map_err(io::Error::other)?;
                let connector = TlsConnector::from(dial);
                let name = name(&uri, loaded.hosts.is_some() && node.is_none())?;
                let handshake =
                    timeout(DIAL_HANDSHAKE, connector.connect(name.clone(), stream)).await;
                let late = || io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time");
                let stream = handshake.map_err(|_elapsed| late())??;
                tls.watched(stream, node, name, loaded.set).map(TokioIo::new)
            }
        }))
    }

    /// The identity in the certificate that the other end has shown; `None`: it has shown none.
    ///
    /// # Errors
    /// It names several identities.
    fn certificate(
        &self,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> io::Result<Option<CertificateId>> {
        let Some(leaf) = shown.and_then(<[_]>::first) else { return Ok(None) };
        let read = verify::identity(leaf).map(Some);
        read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// The name that a certificate must have: the host's, or any, where the node's id is looked at.
fn name(uri: &Uri, by_host: bool) -> io::Result<ServerName<'static>> {
    let host = match by_host {
        true => uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        false => "node".to_owned(),
    };
    ServerName::try_from(host).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
