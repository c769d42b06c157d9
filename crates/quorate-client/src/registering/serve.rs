//! [`Serving`]: the life of a process that serves: bind, register, serve, drain, deregister,
//! finish, stop. Works with every server that takes a listener and a future to stop at (tonic,
//! axum, hyper-util).

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::handle::RegistrationHandle;
use super::registrar::Registrar;
use crate::error::Error;
use crate::types::{InstanceStatus, Registration};

/// The registry has this long to take in that the process is draining; then it is deregistered all
/// the same.
const DRAINING_WITHIN: Duration = Duration::from_secs(1);

/// Unless set: callers that follow a live view hear within milliseconds that an instance is gone,
/// slow and busy ones within this.
const GRACE: Duration = Duration::from_millis(500);
/// Unless set: twice what a call of the client crate may take, and a third of what Kubernetes gives
/// a process to end.
const DRAIN: Duration = Duration::from_secs(10);

/// When the server is to take no new calls and to end when the calls in flight are done.
///
/// An example is at [`Serving`].
pub type Stop = BoxFuture<'static, ()>;

type Publish = Box<dyn FnOnce(Arc<RegistrationHandle>) -> BoxFuture<'static, ()> + Send>;

/// How a process serves; from [`crate::Client::serve`].
///
/// In this order: the listener is bound by the caller; the server begins; the registration is made
/// (and tried again for as long as it takes); at the signal its status becomes DRAINING, so that
/// callers leave; it is deregistered; after a grace, in which callers hear of that, the server
/// takes no new calls and finishes the ones in flight; at the hard deadline it is dropped.
///
/// ```no_run
/// # use quorate_client::{Client, InstanceBuilder, Registration};
/// # async fn example(client: Client, app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// let me = InstanceBuilder::new("orders", "orders-1").endpoint("http", "http://{addr}");
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let served = client.serve(Registration::new(me)).until_signal()
///     .run(listener, |listener, stop| axum::serve(listener, app).with_graceful_shutdown(stop))
///     .await?;
/// println!("{served}");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Serving {
    registrar: Arc<Registrar>,
    registration: Registration,
    until: Stop,
    publish: Publish,
    grace: Duration,
    drain: Duration,
}

/// How serving ended.
///
/// An example is at [`Serving`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Served<T> {
    /// What the server returned; `None`: it had to be dropped at the hard deadline, with calls in
    /// flight.
    pub output: Option<T>,
    /// Whether the registration was removed; if not, it runs out with its TTL.
    pub deregistered: Result<(), Error>,
    /// Whether the server ended by itself, before it was stopped.
    pub by_itself: bool,
}

impl<T> fmt::Display for Served<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.output, self.by_itself) {
            (_, true) => "the server ended by itself",
            (Some(_), _) => "stopped; all calls were finished",
            (None, _) => "stopped; calls in flight were cut off at the deadline",
        })?;
        match &self.deregistered {
            Ok(()) => Ok(()),
            Err(error) => write!(f, "; not deregistered: {error}"),
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("registration", &self.registration).finish_non_exhaustive()
    }
}

impl Serving {
    pub(crate) fn new(registrar: Arc<Registrar>, registration: Registration) -> Self {
        let until = std::future::pending().boxed();
        let publish: Publish = Box::new(|_| std::future::pending().boxed());
        Self { registrar, registration, until, publish, grace: GRACE, drain: DRAIN }
    }

    /// Until SIGTERM or SIGINT (Ctrl-C).
    pub fn until_signal(self) -> Self {
        self.until(signal())
    }

    /// Until this resolves.
    pub fn until(mut self, until: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = until.boxed();
        self
    }

    /// Runs this beside the server, with the registration, to publish what changes while it serves:
    /// load, weight, status, metadata. It is dropped when the process begins to drain; one that
    /// ends earlier ends nothing.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use quorate_client::{Client, Registration};
    /// # fn queue_length() -> u32 { 0 }
    /// # fn example(client: Client, registration: Registration) {
    /// let serving = client.serve(registration).publish(|registration| async move {
    ///     loop {
    ///         if let Err(error) = registration.set_load(queue_length()).await {
    ///             eprintln!("the load could not be published: {error}");
    ///         }
    ///         tokio::time::sleep(Duration::from_secs(5)).await;
    ///     }
    /// });
    /// # }
    /// ```
    pub fn publish<F>(
        mut self,
        publish: impl FnOnce(Arc<RegistrationHandle>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.publish = Box::new(move |registration| publish(registration).boxed());
        self
    }

    /// How long to go on taking calls after the registration is gone; 500 ms unless set. Callers
    /// that follow a live view hear of it within milliseconds; callers that poll need longer.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long calls in flight may take after that; 10 s unless set. Then the server is dropped.
    pub fn drain(mut self, deadline: Duration) -> Self {
        self.drain = deadline;
        self
    }

    /// Serves; `serve` returns a future, or what becomes one, as axum's servers do. In the
    /// endpoints of the registration, `{addr}` and `{port}` stand for the listener's own. One that
    /// is bound to all addresses (`0.0.0.0`, `[::]`) has only a port.
    ///
    /// # Errors
    /// [`Error::NoAddress`], [`Error::AlreadyRegistered`], [`Error::InvalidOption`]; nothing was
    /// served then. An outage of the registry is none: serving goes on, and so does the
    /// registering.
    pub async fn run<T, F>(
        self,
        listener: TcpListener,
        serve: impl FnOnce(TcpListener, Stop) -> F,
    ) -> Result<Served<T>, Error>
    where
        F: IntoFuture<Output = T>,
    {
        let Self { registrar, mut registration, until, publish, grace, drain } = self;
        if let Ok(bound) = listener.local_addr() {
            fill_in(&mut registration, bound)?;
        }
        let (stop, stopped) = oneshot::channel::<()>();
        // Dropped or sent: both mean that it is time.
        let stopped = stopped.map(|_told| ()).boxed();
        let mut server = Box::pin(serve(listener, stopped).into_future());
        let handle = Arc::new(registrar.register_in_background(registration)?);
        let published = publish(handle.clone());
        let publishing = async {
            published.await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            never = publishing => match never {},
            output = &mut server => {
                let deregistered = handle.deregister().await;
                return Ok(Served { output: Some(output), deregistered, by_itself: true });
            }
            () = until => {}
        }
        // The server goes on while the others learn of it.
        let leaving = async {
            let told = timeout(DRAINING_WITHIN, handle.set_status(InstanceStatus::Draining)).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::warn!("the registry did not take in that this process is draining");
            }
            let deregistered = handle.deregister().await;
            sleep(grace).await;
            drop(stop);
            deregistered
        };
        let mut ended = None;
        let deregistered = {
            tokio::pin!(leaving);
            loop {
                tokio::select! {
                    deregistered = &mut leaving => break deregistered,
                    output = &mut server, if ended.is_none() => ended = Some(output),
                }
            }
        };
        let output = match ended {
            Some(output) => Some(output),
            None => timeout(drain, server).await.ok(),
        };
        Ok(Served { output, deregistered, by_itself: false })
    }
}

/// Puts the listener's address and port into the endpoints.
fn fill_in(registration: &mut Registration, bound: SocketAddr) -> Result<(), Error> {
    let (addr, port) = (bound.to_string(), bound.port().to_string());
    for (name, uri) in registration.instances.iter_mut().flat_map(|i| &mut i.endpoints) {
        if bound.ip().is_unspecified() && uri.contains("{addr}") {
            return Err(Error::NoAddress { endpoint: name.clone(), bound });
        }
        *uri = uri.replace("{addr}", &addr).replace("{port}", &port);
    }
    Ok(())
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _received = terminate.recv() => {}
            _received = tokio::signal::ctrl_c() => {}
        },
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be listened for");
            let _received = tokio::signal::ctrl_c().await;
        }
    }
}

#[cfg(not(unix))]
async fn signal() {
    let _received = tokio::signal::ctrl_c().await;
}
