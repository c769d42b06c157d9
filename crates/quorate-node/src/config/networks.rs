//! The networks that may be probed. An instance's owner chooses its address, so without this any
//! client that may register could have the cluster connect to anything that it reaches.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

/// Networks in CIDR notation; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Networks(Vec<IpNet>);

/// What is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no network like 10.0.0.0/8, nor an IP address")]
pub struct BadNetwork(String);

impl Networks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them. An IPv4 address that is written as an IPv6 one
    /// (`::ffff:10.0.0.1`) counts as what it is.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Separated by commas.
impl FromStr for Networks {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let named = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        named.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<Vec<String>> for Networks {
    type Error = BadNetwork;

    fn try_from(names: Vec<String>) -> Result<Self, BadNetwork> {
        names.iter().map(|name| network(name)).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&named.join(","))
    }
}

fn network(name: &str) -> Result<IpNet, BadNetwork> {
    let address = || name.parse::<IpAddr>().map(IpNet::from);
    name.parse().or_else(|_| address()).map_err(|_| BadNetwork(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_inside_or_outside() {
        let networks: Networks = "10.0.0.0/8, 192.168.7.9,2001:db8::/32".parse().unwrap();
        for (address, inside) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("192.168.7.9", true),
            ("192.168.7.8", false),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("::ffff:10.1.2.3", true),
            ("::ffff:127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(networks.contain(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!Networks::default().contain([10, 0, 0, 1].into()));
    }

    #[test]
    fn what_is_no_network_is_named() {
        for bad in ["10.0.0.0/33", "10.0.0", "web.example", "10.0.0.0/8 x"] {
            let error = format!("127.0.0.0/8,{bad}").parse::<Networks>().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
        assert!("".parse::<Networks>().unwrap().is_empty());
    }
}
