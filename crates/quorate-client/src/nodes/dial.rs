//! How a node is reached: which addresses can be one's, and the connection. Knows nothing of which
//! node is asked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::error::AddressFault;
use crate::nodes::endpoints::Address;
#[cfg(feature = "tls")]
pub(crate) use crate::nodes::tls::Encryption;
use crate::nodes::token::{Authorize, Token};

/// Connecting goes on for this long at least, also when the call that it began for was given up:
/// where a node has many handshakes to make, the next call finds this one further.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection on which nothing arrives for this long is probed ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ... and given up when the probe is not answered within this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to a node, and the token on each call over it.
pub(crate) type Connection = InterceptedService<Channel, Authorize>;

/// Without the feature, nothing is encrypted.
#[cfg(not(feature = "tls"))]
#[derive(Debug)]
pub(crate) enum Encryption {}

/// What all connections of a client have in common.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dial {
    /// What a call gives a node at first, connecting and the handshake included.
    pub(crate) timeout: Duration,
    pub(crate) encryption: Option<Arc<Encryption>>,
    /// The one that the client was made with.
    pub(crate) token: Option<Arc<Token>>,
    /// A token may go unencrypted to other machines, too.
    pub(crate) plaintext_token: bool,
}

impl Dial {
    /// # Errors
    /// Why it cannot be a node's address, or must not be called.
    pub(super) fn endpoint(&self, address: &str) -> Result<(Address, Endpoint), AddressFault> {
        let (scheme, plain) = parse(address)?;
        match (scheme, &self.encryption) {
            (Some(Scheme::Https), None) => return Err(AddressFault::Tls),
            (Some(Scheme::Http), Some(_)) => return Err(AddressFault::Plaintext),
            (_, Some(_)) => {}
            (_, None) if self.token.is_none() || self.may_send_token(plain) => {}
            (_, None) => return Err(AddressFault::PlaintextToken),
        }
        let uri = |scheme: &str| format!("{scheme}://{plain}");
        // Always "http" here: the transport's own TLS, where it is built in, is not ours.
        let endpoint = Endpoint::from_shared(uri("http")).map_err(|_| AddressFault::Characters)?;
        let endpoint = match &self.encryption {
            Some(_) => {
                let origin = uri("https").parse().map_err(|_| AddressFault::Characters)?;
                endpoint.origin(origin)
            }
            None => endpoint,
        };
        let endpoint = endpoint
            .connect_timeout(self.timeout.max(CONNECT_WITHIN))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok((plain.into(), endpoint))
    }

    /// Whether a token may go to this address.
    pub(super) fn may_send_token(&self, plain: &str) -> bool {
        self.encryption.is_some() || self.plaintext_token || is_loopback(plain)
    }

    /// A connection that is made when it is first used, and again whenever it broke.
    #[cfg_attr(not(feature = "tls"), allow(unused_variables, reason = "the endpoint has it"))]
    pub(super) fn connect(&self, address: &Address, endpoint: &Endpoint) -> Channel {
        match &self.encryption {
            #[cfg(feature = "tls")]
            Some(encryption) => {
                let (encryption, address) = (encryption.clone(), address.clone());
                endpoint.connect_with_connector_lazy(tower::service_fn(move |uri| {
                    let (encryption, address) = (encryption.clone(), address.clone());
                    async move { encryption.connect(&address, uri).await }
                }))
            }
            #[cfg(not(feature = "tls"))]
            Some(none) => match **none {},
            None => endpoint.connect_lazy(),
        }
    }

    /// Reads files again for ever; `None` where there are none.
    pub(crate) fn upkeep(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let token = self.token.clone().filter(|token| token.is_of_file());
        #[cfg(feature = "tls")]
        let encryption = self.encryption.clone().filter(|encryption| encryption.is_of_files());
        #[cfg(not(feature = "tls"))]
        let encryption = None::<Arc<Encryption>>;
        (token.is_some() || encryption.is_some()).then_some(async move {
            let token = async {
                if let Some(token) = token {
                    token.keep().await;
                }
            };
            let encryption = async {
                #[cfg(feature = "tls")]
                if let Some(encryption) = encryption {
                    encryption.keep().await;
                }
            };
            tokio::join!(token, encryption);
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// # Errors
/// Why it cannot be a node's address, whether connections are encrypted or not.
pub(crate) fn check(address: &str) -> Result<(), AddressFault> {
    parse(address).map(drop)
}

/// The scheme, if there is one, and `host:port`.
fn parse(address: &str) -> Result<(Option<Scheme>, &str), AddressFault> {
    let (scheme, plain) = if let Some(rest) = address.strip_prefix("https://") {
        (Some(Scheme::Https), rest)
    } else if let Some(rest) = address.strip_prefix("http://") {
        (Some(Scheme::Http), rest)
    } else {
        (None, address)
    };
    let plain = plain.strip_suffix('/').unwrap_or(plain);
    let (host, port) = plain.rsplit_once(':').ok_or(AddressFault::NoPort)?;
    if port.parse::<u16>().is_ok_and(|port| port > 0) && host.is_empty() {
        return Err(AddressFault::NoHost);
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(AddressFault::NoPort);
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !host.chars().all(|c| allowed(c) || (bracketed && "[:]".contains(c))) {
        return Err(AddressFault::Characters);
    }
    Ok((scheme, plain))
}

/// Whether `host:port` is on this machine for certain.
fn is_loopback(plain: &str) -> bool {
    let host = plain.rsplit_once(':').map_or(plain, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::token::TokenSource;

    fn fault(dial: &Dial, address: &str) -> Option<AddressFault> {
        dial.endpoint(address).err()
    }

    #[test]
    fn addresses_are_checked() {
        let dial = Dial::default();
        for good in ["127.0.0.1:7001", "node-1.example_x:1", "[::1]:7001", "http://h:65535/"] {
            assert_eq!(fault(&dial, good), None, "{good}");
        }
        for (bad, expected) in [
            ("", AddressFault::NoPort),
            ("host", AddressFault::NoPort),
            ("host:", AddressFault::NoPort),
            ("host:0", AddressFault::NoPort),
            ("host:65536", AddressFault::NoPort),
            (":7001", AddressFault::NoHost),
            ("::1:7001", AddressFault::Characters),
            ("a b:1", AddressFault::Characters),
            ("user@host:1", AddressFault::Characters),
            ("https://host:1", AddressFault::Tls),
        ] {
            assert_eq!(fault(&dial, bad), Some(expected), "{bad}");
        }
    }

    #[test]
    fn a_token_goes_unencrypted_to_this_machine_only_unless_it_may() {
        let token = TokenSource::given("secret".to_owned()).load().unwrap();
        let dial = Dial { token: Some(Arc::new(token)), ..Dial::default() };
        for here in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "http://LOCALHOST:1"] {
            assert_eq!(fault(&dial, here), None, "{here}");
        }
        for elsewhere in ["10.0.0.1:1", "[fe80::1]:1", "localhost.example:1", "128.0.0.1:1"] {
            assert_eq!(fault(&dial, elsewhere), Some(AddressFault::PlaintextToken), "{elsewhere}");
        }
        let allowed = Dial { plaintext_token: true, ..dial };
        assert_eq!(fault(&allowed, "10.0.0.1:1"), None);
    }
}
