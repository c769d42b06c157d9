//! [`Client`]: how it is made, and the calls that lead to the rooms below. Reading is in
//! `client/reads.rs`.

mod reads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::requests::Origin;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
#[cfg(feature = "channel")]
use tonic::transport::Channel;

use crate::admin::Admin;
#[cfg(feature = "channel")]
use crate::calling::ChannelBuilder;
use crate::core::{Core, Options};
use crate::counters::Counters;
use crate::error::{Error, check_duration};
use crate::following::{Discovery, Hubs, Selector, Watch};
use crate::nodes::dial::{Dial, Encryption};
use crate::nodes::endpoints::{Endpoints, Target};
use crate::nodes::members;
#[cfg(feature = "tls")]
use crate::nodes::tls::Tls;
use crate::nodes::token::TokenSource;
#[cfg(feature = "serve")]
use crate::registering::Serving;
use crate::registering::{Registrar, RegistrationHandle};
use crate::types::{Registration, Selection};

/// A connection to the registry, as many nodes as it has. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    core: Arc<Core>,
    registrar: Arc<Registrar>,
    hubs: Arc<Hubs>,
}

/// What a client has unless it is set; the methods of the builder say what for. An election takes
/// about a second, so a call outlasts one several times over, and an attempt is given up while
/// there is time for the other nodes. A watch hears a bookmark every 5 s, so three may be missed.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
const WATCH_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const LEADERLESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Seldom: both ask nodes for what usually has not changed.
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);
const MEMBER_REFRESH: Duration = Duration::from_secs(30);

/// Makes a [`Client`]; an example is among the [settings](crate#settings).
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    addresses: Vec<String>,
    options: Options,
    member_refresh: Option<Duration>,
    shuffle: bool,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
    token: Option<TokenSource>,
    plaintext_token: bool,
}

impl ClientBuilder {
    fn new<S: Into<String>>(addresses: impl IntoIterator<Item = S>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            options: Options {
                namespace: String::new(),
                call_timeout: CALL_TIMEOUT,
                attempt_timeout: ATTEMPT_TIMEOUT,
                watch_idle_timeout: WATCH_IDLE_TIMEOUT,
                leaderless_timeout: LEADERLESS_TIMEOUT,
                audit_interval: AUDIT_INTERVAL,
                cache_dir: None,
            },
            member_refresh: Some(MEMBER_REFRESH),
            shuffle: true,
            #[cfg(feature = "tls")]
            tls: None,
            token: None,
            plaintext_token: false,
        }
    }

    /// The namespace of everything that the client registers, reads and follows; "default" unless
    /// set.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.options.namespace = namespace.into();
        self
    }

    /// How long a call may take, over all nodes; 5 s unless set, at least 10 ms.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.options.call_timeout = timeout;
        self
    }

    /// How long one node may take before the next is asked; 0.5 s unless set, and never more than
    /// half the call timeout. Where no node answers in time, each round over all nodes waits twice
    /// as long, up to half the call timeout (a renewal: half its interval), so that a cluster that
    /// is only slow is waited for.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.options.attempt_timeout = timeout;
        self
    }

    /// A watch on which nothing arrives for this long goes to another node; 15 s unless set. Has to
    /// be longer than the server's bookmark period (5 s unless configured).
    #[must_use]
    pub fn watch_idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.watch_idle_timeout = timeout;
        self
    }

    /// A watch whose node has had no leader for this long goes to another node; 3 s unless set. So
    /// does one whose node has a leader and says that what it has is older than this, where there
    /// is a node that has not failed of late. None begins at such a node, or at one without a
    /// leader, until each of those was asked.
    #[must_use]
    pub fn leaderless_timeout(mut self, timeout: Duration) -> Self {
        self.options.leaderless_timeout = timeout;
        self
    }

    /// How often live views are compared with the registry, about; 60 s unless set. A difference,
    /// which would be a bug, is logged, counted ([`Client::counters`]) and repaired.
    #[must_use]
    pub fn audit_interval(mut self, interval: Duration) -> Self {
        self.options.audit_interval = interval;
        self
    }

    /// A directory for the last known view of each service that is discovered: a start while the
    /// registry is down then begins with that. Made if it is not there; several processes may share
    /// it.
    #[cfg(feature = "cache")]
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.cache_dir = Some(dir.into());
        self
    }

    /// How often the cluster's members are looked up, beside when a node tells that they have
    /// changed, on whatever is open, and when one failed; 30 s unless set. `None`: never, only the
    /// addresses given are used, and, for writes, the leader that nodes name. When nodes were
    /// added, their share of the streams moves to them within another such interval, one stream at
    /// a time; no change is missed or comes twice.
    #[must_use]
    pub fn member_refresh(mut self, interval: Option<Duration>) -> Self {
        self.member_refresh = interval;
        self
    }

    /// True: nodes are tried in the order given, not from a random one on.
    #[must_use]
    pub fn in_order(mut self, in_order: bool) -> Self {
        self.shuffle = !in_order;
        self
    }

    /// Encrypts all connections: see [`Tls`]. Addresses are written as without it (`host:port`), or
    /// with `https://` before them.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The token that identifies this client: opaque, or a JWT. It goes with every call, as
    /// `authorization: Bearer TOKEN`, and is shown nowhere.
    ///
    /// ```no_run
    /// # fn example(tls: quorate_client::Tls) -> Result<(), quorate_client::Error> {
    /// let nodes = ["registry-1:7001", "registry-2:7001"];
    /// let client = quorate_client::Client::builder(nodes).tls(tls).token_file("orders.token").build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(TokenSource::given(token.into()));
        self
    }

    /// A file with the token, instead of [`ClientBuilder::token`]. It is looked at every 10 s and
    /// when a node does not take the token (any more); until there is another one, a call fails
    /// with [`tonic::Code::Unauthenticated`], registrations and watches go on trying.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(TokenSource::file(path.into()));
        self
    }

    /// True: the token may go unencrypted to nodes on other machines. Unless it is set, such
    /// addresses are refused: a listener on the way could use the token.
    #[must_use]
    pub fn allow_plaintext_token(mut self, allow: bool) -> Self {
        self.plaintext_token = allow;
        self
    }

    fn encryption(&mut self) -> Result<Option<Arc<Encryption>>, Error> {
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.take() {
            let bad = |fault| Error::InvalidCredential { option: "tls", fault };
            return Ok(Some(Arc::new(tls.load().map_err(bad)?)));
        }
        Ok(None)
    }

    fn dial(&mut self) -> Result<Dial, Error> {
        let bad = |fault| Error::InvalidCredential { option: "token", fault };
        let token = self.token.take().map(TokenSource::load).transpose().map_err(bad)?;
        Ok(Dial {
            timeout: self.options.attempt_timeout,
            encryption: self.encryption()?,
            token: token.map(Arc::new),
            plaintext_token: self.plaintext_token,
        })
    }

    /// Makes the client. Sends nothing and waits for nothing: it also succeeds while the registry
    /// is down. Has to be called within a tokio runtime, on which the client's background work then
    /// runs, whichever thread calls it later.
    ///
    /// # Errors
    /// [`Error::NoAddresses`], [`Error::InvalidAddress`], [`Error::InvalidOption`] for a duration
    /// below 10 ms or over 365 days, [`Error::InvalidCredential`], or [`Error::NoRuntime`].
    pub fn build(mut self) -> Result<Client, Error> {
        for (option, value) in [
            ("call_timeout", self.options.call_timeout),
            ("attempt_timeout", self.options.attempt_timeout),
            ("watch_idle_timeout", self.options.watch_idle_timeout),
            ("leaderless_timeout", self.options.leaderless_timeout),
            ("audit_interval", self.options.audit_interval),
            ("member_refresh", self.member_refresh.unwrap_or(MEMBER_REFRESH)),
        ] {
            check_duration(option, value)?;
        }
        let runtime = Handle::try_current().map_err(|_outside| Error::NoRuntime)?;
        let dial = self.dial()?;
        let upkeep = dial.upkeep().map(|upkeep| AbortOnDropHandle::new(runtime.spawn(upkeep)));
        let within = self.member_refresh.unwrap_or(MEMBER_REFRESH);
        let endpoints = Endpoints::new(&self.addresses, dial, self.shuffle, within)?;
        let endpoints = Arc::new(endpoints);
        let plan = self.options.plan("list members", Target::Any);
        let refresh = self.member_refresh.map(|interval| {
            let refresh = members::refresh(endpoints.clone(), interval, plan);
            AbortOnDropHandle::new(runtime.spawn(refresh))
        });
        Ok(Client::of(Core {
            options: self.options,
            endpoints,
            origin: Origin::new(rand::random()),
            runtime,
            upkeep: refresh.into_iter().chain(upkeep).collect(),
        }))
    }
}

impl Client {
    /// Begins to make a client from the addresses (`host:port`) of some nodes; it finds the others
    /// by itself.
    pub fn builder<S: Into<String>>(addresses: impl IntoIterator<Item = S>) -> ClientBuilder {
        ClientBuilder::new(addresses)
    }

    /// Makes a client with the usual settings, within a tokio runtime.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub fn new<S: Into<String>>(addresses: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        Self::builder(addresses).build()
    }

    fn of(core: Core) -> Self {
        let core = Arc::new(core);
        let (registrar, hubs) = (Registrar::new(core.clone()), Hubs::new(core.clone()));
        Self { core, registrar: Arc::new(registrar), hubs: Arc::new(hubs) }
    }

    /// A client for another caller, over the same connections: this token goes with each of its
    /// calls, in the place of this client's own. For a process that calls for others, each with
    /// their rights. Cheap: one may be made for each call.
    ///
    /// It has views, watches and registrations of its own, keeps no cache, and counts with this
    /// client. The members are looked up as this client's caller, who may be nobody: then only the
    /// addresses given are used, and, for writes, the leader that nodes name.
    ///
    /// ```no_run
    /// # async fn example(client: quorate_client::Client, token: &str) -> Result<(), quorate_client::Error> {
    /// let orders = client.with_token(token)?.fetch("orders").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidCredential`]; [`Error::InvalidAddress`]: the token would go unencrypted to
    /// another machine.
    pub fn with_token(&self, token: impl Into<String>) -> Result<Self, Error> {
        let bad = |fault| Error::InvalidCredential { option: "token", fault };
        let token = TokenSource::given(token.into()).load().map_err(bad)?;
        let Core { options, endpoints, origin, runtime, upkeep } = &*self.core;
        Ok(Self::of(Core {
            // What this client may see is not for the other's caller.
            options: Options { cache_dir: None, ..options.clone() },
            endpoints: Arc::new(endpoints.with_token(token)?),
            origin: origin.clone(),
            runtime: runtime.clone(),
            upkeep: upkeep.clone(),
        }))
    }

    /// Registers, waits until that is committed, and keeps it so in the background until the handle
    /// is dropped or deregistered.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`], [`Error::InvalidOption`] for a renew interval over half the
    /// TTL, [`Error::Unreachable`] at the deadline or where the registry has no room and an attempt
    /// before may have been made, [`Error::Rejected`] with the reason.
    pub async fn register(
        &self,
        registration: impl Into<Registration>,
    ) -> Result<RegistrationHandle, Error> {
        self.registrar.register(registration.into()).await
    }

    /// Like [`Client::register`], but returns at once and goes on trying while the registry is
    /// down. The handle's state says when it is done.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`], [`Error::InvalidOption`].
    pub fn register_in_background(
        &self,
        registration: impl Into<Registration>,
    ) -> Result<RegistrationHandle, Error> {
        self.registrar.register_in_background(registration.into())
    }

    /// A live view of a service, by its name or a [`Selector`]: at once, and empty until the
    /// registry (or the cache) has answered. All views of a client share one stream, which goes on
    /// with a service for half a minute after its last view: the next one shows what is known.
    ///
    /// # Errors
    /// [`Error::InvalidName`].
    pub fn discover(&self, selector: impl Into<Selector>) -> Result<Discovery, Error> {
        self.hubs.discover(selector.into())
    }

    /// A tonic channel to a service, for generated clients: its endpoints follow a live view. Must
    /// be called within a tokio runtime. For settings, [`Client::channel_to`].
    ///
    /// ```no_run
    /// # use tonic::transport::Channel;
    /// # struct GreeterClient; impl GreeterClient { fn new(channel: Channel) -> Self { Self } }
    /// # fn example(client: quorate_client::Client) -> Result<(), quorate_client::Error> {
    /// let greeter = GreeterClient::new(client.channel("greeter")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidName`].
    #[cfg(feature = "channel")]
    pub fn channel(&self, selector: impl Into<Selector>) -> Result<Channel, Error> {
        Ok(self.channel_to(selector)?.connect())
    }

    /// Begins to make a channel, as [`Client::channel`].
    ///
    /// # Errors
    /// [`Error::InvalidName`].
    #[cfg(feature = "channel")]
    pub fn channel_to(&self, selector: impl Into<Selector>) -> Result<ChannelBuilder, Error> {
        Ok(ChannelBuilder::new(self.discover(selector)?))
    }

    /// Begins to serve under this registration: see [`Serving`].
    #[cfg(feature = "serve")]
    pub fn serve(&self, registration: impl Into<Registration>) -> Serving {
        Serving::new(self.registrar.clone(), registration.into())
    }

    /// What this client and its clones have done until now.
    pub fn counters(&self) -> Counters {
        self.core.endpoints.counts.shown(self.hubs.age())
    }

    /// Follows services for as long as the [`Watch`] lives, over every failure of nodes.
    pub fn watch(&self, selection: impl Into<Selection>) -> Watch {
        Watch::start(self.core.clone(), selection.into())
    }

    /// Changes one instance, whichever process registered it: what is not set in `update` stays.
    /// Lasts until its owner registers it again with something else. For an instance that this
    /// process registered, use [`RegistrationHandle::update`].
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`] (with [`tonic::Code::NotFound`] if it is not
    /// registered).
    pub async fn update(
        &self,
        service: &str,
        id: &str,
        update: &crate::Update,
    ) -> Result<(), Error> {
        self.registrar.update_foreign(service, id, update).await
    }

    /// Removes one instance, whichever process registered it.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`] (with [`tonic::Code::NotFound`] if it was not
    /// registered).
    pub async fn deregister(&self, service: &str, id: &str) -> Result<(), Error> {
        self.registrar.deregister_foreign(service, id).await
    }

    /// The operators' calls.
    pub fn admin(&self) -> Admin {
        Admin::new(self.core.clone())
    }

    /// The cluster that answers, `None` before the first answer, and each change of it. It changes
    /// when the cluster was founded again, or when all addresses lead to another one: the client
    /// then registers again what it keeps registered, and shows in its watches and views what the
    /// other cluster has, once it has all of that. Where nodes of two clusters answer, it stays
    /// with the one that it is of for as long as a node of that one answers (or failed less than 5
    /// s ago).
    ///
    /// ```no_run
    /// # async fn example(client: quorate_client::Client) {
    /// let mut cluster = client.watch_cluster();
    /// while cluster.changed().await.is_ok() {
    ///     if let Some(cluster) = *cluster.borrow_and_update() {
    ///         println!("with cluster {cluster} now");
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_cluster(&self) -> tokio::sync::watch::Receiver<Option<ClusterId>> {
        self.core.endpoints.watch_cluster()
    }

    /// The node addresses known now.
    pub fn addresses(&self) -> Vec<String> {
        self.core.endpoints.addresses()
    }
}
