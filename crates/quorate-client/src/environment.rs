//! A client's settings from the environment, under the names that the command line knows.

use crate::client::{Client, ClientBuilder};
use crate::error::Error;
use crate::nodes::dial::check;

const NODES: &str = "QUORATE_NODES";
const NAMESPACE: &str = "QUORATE_NAMESPACE";
const CA: &str = "QUORATE_CA";
const LISTS: &str = "QUORATE_CRL";
const CERTIFICATE: &str = "QUORATE_CERT";
const KEY: &str = "QUORATE_KEY";
const TOKEN: &str = "QUORATE_TOKEN";
const TOKEN_FILE: &str = "QUORATE_TOKEN_FILE";

impl Client {
    /// Makes a client from the environment: [`ClientBuilder::from_env`], with the usual settings
    /// for everything else. Needs a tokio runtime, as [`ClientBuilder::build`].
    ///
    /// # Errors
    /// As [`ClientBuilder::from_env`] and [`ClientBuilder::build`].
    pub fn from_env() -> Result<Self, Error> {
        ClientBuilder::from_env()?.build()
    }
}

impl ClientBuilder {
    /// Begins with what the environment says: `QUORATE_NODES`, the addresses of some nodes
    /// (`10.0.0.1:7001,10.0.0.2:7001`; a port alone has the host before it:
    /// `127.0.0.1:7001,7002,7003`), and `QUORATE_NAMESPACE`, "default" unless set.
    ///
    /// For nodes with TLS: `QUORATE_CA`, the file with the CAs to trust, `QUORATE_CRL`, the one
    /// with their lists of revoked certificates, and `QUORATE_CERT` and `QUORATE_KEY`, this
    /// client's certificate and key. For nodes that want a token: `QUORATE_TOKEN_FILE`, or
    /// `QUORATE_TOKEN` with the token itself.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), quorate_client::Error> {
    /// let client = quorate_client::Client::from_env()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidVariable`]: `QUORATE_NODES` is not set, or names what is no address, or a
    /// certificate is named without its key or without a CA, or a list without a CA. For nodes
    /// there is no default: a service that looks for a registry on its own machine by mistake would
    /// find none, or another one.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| {
            std::env::var_os(name).map(|text| text.to_string_lossy().into())
        })
    }

    fn from_variables(value: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let invalid = |fault: String| Error::InvalidVariable { variable: NODES, fault };
        let given = value(NODES).ok_or_else(|| {
            invalid(
                "it is not set; name some of the cluster's nodes, as host:port,host:port"
                    .to_owned(),
            )
        })?;
        let nodes = parse_nodes(&given).map_err(invalid)?;
        for node in &nodes {
            check(node)
                .map_err(|fault| invalid(format!("\"{node}\" is no node address: {fault}")))?;
        }
        let set = |name| value(name).filter(|value| !value.is_empty());
        let builder = Client::builder(nodes);
        let builder = match set(NAMESPACE) {
            Some(namespace) => builder.namespace(namespace),
            None => builder,
        };
        let builder = match (set(TOKEN_FILE), set(TOKEN)) {
            (Some(file), _) => builder.token_file(file),
            (None, Some(token)) => builder.token(token),
            (None, None) => builder,
        };
        let invalid = |variable, fault: &str| {
            Err(Error::InvalidVariable { variable, fault: fault.to_owned() })
        };
        match (set(CA), set(CERTIFICATE), set(KEY)) {
            (None, None, None) if set(LISTS).is_none() => Ok(builder),
            (None, _, _) => invalid(CA, "it is not set, and without it no node can be trusted"),
            (_, Some(_), None) => invalid(KEY, "it is not set, and QUORATE_CERT is"),
            (_, None, Some(_)) => invalid(CERTIFICATE, "it is not set, and QUORATE_KEY is"),
            #[cfg(feature = "tls")]
            (Some(ca), certificate, key) => {
                let tls = crate::nodes::tls::Tls::new().ca_file(ca);
                let tls = match set(LISTS) {
                    Some(lists) => tls.crl_file(lists),
                    None => tls,
                };
                Ok(builder.tls(match certificate.zip(key) {
                    Some((certificate, key)) => tls.identity_files(certificate, key),
                    None => tls,
                }))
            }
            #[cfg(not(feature = "tls"))]
            (Some(_), _, _) => invalid(CA, "this program was built without TLS"),
        }
    }
}

/// The node addresses of a list as `QUORATE_NODES` and the command line's `--nodes` have it:
/// `host:port`, separated by commas; a port alone has the host before it.
///
/// ```
/// let nodes = quorate_client::parse_nodes("127.0.0.1:7001,7002").unwrap();
/// assert_eq!(nodes, ["127.0.0.1:7001", "127.0.0.1:7002"]);
/// ```
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_nodes(text: &str) -> Result<Vec<String>, String> {
    let mut nodes: Vec<String> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let is_port = item.chars().all(|c| c.is_ascii_digit());
        match nodes.last().and_then(|last| last.rsplit_once(':')) {
            Some((host, _)) if is_port => nodes.push(format!("{host}:{item}")),
            _ if item.contains(':') => nodes.push(item.to_owned()),
            _ => return Err(format!("\"{item}\" is no node address; write host:port")),
        }
    }
    if nodes.is_empty() { Err("no node address; write host:port".to_owned()) } else { Ok(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "tls")]
    #[test]
    fn the_environment_names_certificates_and_the_token() {
        let from = |set: &'static [(&'static str, &'static str)]| {
            ClientBuilder::from_variables(move |name| {
                let nodes = (name == NODES).then_some("a:1");
                let named =
                    || set.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
                nodes.or_else(named).map(str::to_owned)
            })
        };
        let plain = || Client::builder(["a:1"]);
        let tls = || crate::Tls::new().ca_file("ca");
        for (set, expected) in [
            (&[(CA, "ca"), (CERTIFICATE, ""), (KEY, "")] as &[_], plain().tls(tls())),
            (
                &[(CA, "ca"), (CERTIFICATE, "c"), (KEY, "k")],
                plain().tls(tls().identity_files("c", "k")),
            ),
            (&[(CA, "ca"), (LISTS, "l")], plain().tls(tls().crl_file("l"))),
            (&[(TOKEN_FILE, "f"), (TOKEN, "t")], plain().token_file("f")),
            (&[(TOKEN_FILE, ""), (TOKEN, "t")], plain().token("t")),
        ] {
            assert_eq!(format!("{:?}", from(set).unwrap()), format!("{expected:?}"));
        }
        for (set, words) in [
            (&[(CERTIFICATE, "c"), (KEY, "k")] as &[_], "QUORATE_CA: it is not set"),
            (&[(LISTS, "l")], "QUORATE_CA: it is not set"),
            (&[(CA, "ca"), (CERTIFICATE, "c")], "QUORATE_KEY: it is not set"),
            (&[(CA, "ca"), (KEY, "k")], "QUORATE_CERT: it is not set"),
        ] {
            let refused = from(set).unwrap_err().to_string();
            assert!(refused.starts_with(words), "{refused}");
        }
    }

    #[tokio::test]
    async fn the_environment_names_nodes_and_namespace_and_errors_name_the_variable() {
        let from = |nodes: Option<&'static str>, namespace: Option<&'static str>| {
            ClientBuilder::from_variables(move |name| {
                let value = match name {
                    NODES => nodes,
                    NAMESPACE => namespace,
                    _ => None,
                };
                value.map(str::to_owned)
            })
        };
        let builder = from(Some("10.0.0.1:7001, 7002"), Some("staging")).unwrap();
        let expected = Client::builder(["10.0.0.1:7001", "10.0.0.1:7002"]).namespace("staging");
        assert_eq!(format!("{builder:?}"), format!("{expected:?}"));
        let builder = from(Some("a:1"), Some("")).unwrap();
        assert_eq!(format!("{builder:?}"), format!("{:?}", Client::builder(["a:1"])));
        for (nodes, words) in [
            (None, "QUORATE_NODES: it is not set"),
            (Some(""), "QUORATE_NODES: no node address"),
            (Some("7001"), "QUORATE_NODES: \"7001\" is no node address"),
            (Some("a:99999"), "QUORATE_NODES: \"a:99999\" is no node address"),
        ] {
            let refused = from(nodes, None).unwrap_err().to_string();
            assert!(refused.starts_with(words), "{refused}");
        }
    }
}
