//! A client's settings from the environment, under the names that the command line knows.

use crate::client::{Client, ClientBuilder};
use crate::error::Error;
use crate::nodes::endpoints::check;

const NODES: &str = "QUORATE_NODES";
const NAMESPACE: &str = "QUORATE_NAMESPACE";

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
    /// ```no_run
    /// # fn example() -> Result<(), quorate_client::Error> {
    /// let client = quorate_client::Client::from_env()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidVariable`]: `QUORATE_NODES` is not set, or names what is no address. There
    /// is no default for it: a service that looks for a registry on its own machine by mistake
    /// would find none, or another one.
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
        let builder = Client::builder(nodes);
        Ok(match value(NAMESPACE).filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => builder.namespace(namespace),
            None => builder,
        })
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

    #[tokio::test]
    async fn the_environment_names_nodes_and_namespace_and_errors_name_the_variable() {
        let from = |nodes: Option<&'static str>, namespace: Option<&'static str>| {
            ClientBuilder::from_variables(move |name| {
                let value = if name == NODES { nodes } else { namespace };
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
