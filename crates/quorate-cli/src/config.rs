//! A node's settings from three layers: flags win over QUORATE_* variables, variables over the
//! file. Knows nothing of what the settings do; `quorate_node::Config` checks their ranges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use quorate_node::{
    Audit, CLUSTER_NAME, ClientCertificates, Config, Dns, HealthChecks, Networks, Start, Tls,
    Tunables,
};
use serde::Deserialize;

use crate::args::{Clients, ServeArgs};
use crate::parse;

/// A setting that is missing or cannot be. The message names it by flag, variable or file key, with
/// its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadSetting(pub(crate) String);

/// One layer: what is not set is for the next one to say.
#[derive(Debug, Default, Clone, PartialEq)]
struct Layer {
    id: Option<u64>,
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    peer_listen: Option<SocketAddr>,
    http_listen: Option<SocketAddr>,
    http_cors_origins: Option<Vec<String>>,
    dns_listen: Option<SocketAddr>,
    dns_domain: Option<String>,
    dns_allow: Option<Networks>,
    dns: Option<Dns>,
    advertise: Option<String>,
    peer_advertise: Option<String>,
    bootstrap: Option<BTreeMap<u64, String>>,
    join: Option<Vec<String>>,
    observer: Option<bool>,
    health_checks: Option<HealthChecks>,
    cluster_name: Option<String>,
    tls: TlsLayer,
    insecure: Option<bool>,
    access: Option<PathBuf>,
    audit: Option<PathBuf>,
    audit_required: Option<bool>,
    tunables: Option<Tunables>,
}

/// The parts of [`Tls`] that flags and variables can set, and the whole of it from the file.
#[derive(Debug, Default, Clone, PartialEq)]
struct TlsLayer {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    clients: Option<ClientCertificates>,
    peer_ca: Option<PathBuf>,
    peer_cert: Option<PathBuf>,
    peer_key: Option<PathBuf>,
    whole: Option<Tls>,
}

/// The configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: Option<u64>,
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    peer_listen: Option<SocketAddr>,
    http_listen: Option<SocketAddr>,
    http_cors_origins: Option<Vec<String>>,
    dns_listen: Option<SocketAddr>,
    dns: Option<Dns>,
    advertise: Option<String>,
    peer_advertise: Option<String>,
    bootstrap: Option<BTreeMap<String, String>>,
    join: Option<Vec<String>>,
    observer: Option<bool>,
    health_checks: Option<HealthChecks>,
    cluster_name: Option<String>,
    tls: Option<Tls>,
    insecure: Option<bool>,
    access: Option<PathBuf>,
    audit: Option<Audit>,
    tunables: Option<Tunables>,
}

/// Puts the layers together. `variable` looks up an environment variable, `read` a file.
pub(crate) fn load(
    args: &ServeArgs,
    variable: impl Fn(&str) -> Result<Option<String>, String>,
    read: impl Fn(&Path) -> Result<String, String>,
) -> Result<Config, BadSetting> {
    // One that is empty is not set.
    let set = |name: &str| -> Result<Option<String>, BadSetting> {
        Ok(variable(name).map_err(BadSetting)?.filter(|value| !value.is_empty()))
    };
    let path = match args.config.clone() {
        Some(path) => Some(path),
        None => set("QUORATE_CONFIG")?.map(PathBuf::from),
    };
    let file = match &path {
        Some(path) => {
            let named = |error: String| BadSetting(format!("{}: {error}", path.display()));
            from_file(&read(path).map_err(named)?).map_err(named)?
        }
        None => Layer::default(),
    };
    merge([from_flags(args)?, from_variables(set)?, file])
}

/// Whether a configuration file has nothing in it but settings that there are.
pub(crate) fn is_known(text: &str) -> bool {
    from_file(text).is_ok()
}

fn from_flags(args: &ServeArgs) -> Result<Layer, BadSetting> {
    let named = |flag: &str, error: String| BadSetting(format!("{flag}: {error}"));
    let bootstrap = args.bootstrap.as_deref().map(parse::bootstrap).transpose();
    let join = args.join.as_deref().map(parse::nodes).transpose();
    Ok(Layer {
        id: args.id,
        data_dir: args.data_dir.clone(),
        listen: args.listen,
        peer_listen: args.peer_listen,
        http_listen: args.http_listen,
        http_cors_origins: args.http_cors_origins.as_deref().map(parse::listed),
        dns_listen: args.dns_listen,
        dns_domain: args.dns_domain.clone(),
        dns_allow: args.dns_allow.clone(),
        dns: None,
        advertise: args.advertise.clone(),
        peer_advertise: args.peer_advertise.clone(),
        bootstrap: bootstrap.map_err(|error| named("--bootstrap", error))?,
        join: join.map_err(|error| named("--join", error))?,
        // A flag can only say yes.
        observer: args.observer.then_some(true),
        health_checks: args.health_checks_allow.clone().map(|allow| HealthChecks { allow }),
        cluster_name: args.cluster_name.clone(),
        tls: TlsLayer {
            cert: args.tls.tls_cert.clone(),
            key: args.tls.tls_key.clone(),
            ca: args.tls.tls_ca.clone(),
            crl: args.tls.tls_crl.clone(),
            clients: args.tls.tls_clients.map(ClientCertificates::from),
            peer_ca: args.tls.peer_tls_ca.clone(),
            peer_cert: args.tls.peer_tls_cert.clone(),
            peer_key: args.tls.peer_tls_key.clone(),
            whole: None,
        },
        insecure: args.tls.insecure.then_some(true),
        access: args.access.clone(),
        audit: args.audit.clone(),
        audit_required: args.audit_required.then_some(true),
        tunables: None,
    })
}

fn from_variables(
    set: impl Fn(&str) -> Result<Option<String>, BadSetting>,
) -> Result<Layer, BadSetting> {
    Ok(Layer {
        id: parsed("QUORATE_ID", set("QUORATE_ID")?, "a number from 1 on")?,
        data_dir: set("QUORATE_DATA_DIR")?.map(PathBuf::from),
        listen: parsed("QUORATE_LISTEN", set("QUORATE_LISTEN")?, LISTEN)?,
        peer_listen: parsed("QUORATE_PEER_LISTEN", set("QUORATE_PEER_LISTEN")?, LISTEN)?,
        http_listen: parsed("QUORATE_HTTP_LISTEN", set("QUORATE_HTTP_LISTEN")?, LISTEN)?,
        http_cors_origins: set("QUORATE_HTTP_CORS_ORIGINS")?.as_deref().map(parse::listed),
        dns_listen: parsed("QUORATE_DNS_LISTEN", set("QUORATE_DNS_LISTEN")?, LISTEN)?,
        dns_domain: set("QUORATE_DNS_DOMAIN")?,
        dns_allow: set("QUORATE_DNS_ALLOW")?
            .map(|text| text.parse::<Networks>())
            .transpose()
            .map_err(|error| BadSetting(format!("QUORATE_DNS_ALLOW: {error}")))?,
        dns: None,
        advertise: set("QUORATE_ADVERTISE")?,
        peer_advertise: set("QUORATE_PEER_ADVERTISE")?,
        bootstrap: set("QUORATE_BOOTSTRAP")?
            .map(|text| parse::bootstrap(&text))
            .transpose()
            .map_err(|error| BadSetting(format!("QUORATE_BOOTSTRAP: {error}")))?,
        join: set("QUORATE_JOIN")?
            .map(|text| parse::nodes(&text))
            .transpose()
            .map_err(|error| BadSetting(format!("QUORATE_JOIN: {error}")))?,
        observer: parsed("QUORATE_OBSERVER", set("QUORATE_OBSERVER")?, "true or false")?,
        health_checks: set("QUORATE_HEALTH_CHECKS_ALLOW")?
            .map(|text| text.parse::<Networks>())
            .transpose()
            .map_err(|error| BadSetting(format!("QUORATE_HEALTH_CHECKS_ALLOW: {error}")))?
            .map(|allow| HealthChecks { allow }),
        cluster_name: set("QUORATE_CLUSTER_NAME")?,
        tls: TlsLayer {
            cert: set("QUORATE_TLS_CERT")?.map(PathBuf::from),
            key: set("QUORATE_TLS_KEY")?.map(PathBuf::from),
            ca: set("QUORATE_TLS_CA")?.map(PathBuf::from),
            crl: set("QUORATE_TLS_CRL")?.map(PathBuf::from),
            clients: set("QUORATE_TLS_CLIENTS")?
                .map(|text| Clients::from_str(&text, false))
                .transpose()
                .map_err(|error| BadSetting(format!("QUORATE_TLS_CLIENTS: {error}")))?
                .map(ClientCertificates::from),
            peer_ca: set("QUORATE_PEER_TLS_CA")?.map(PathBuf::from),
            peer_cert: set("QUORATE_PEER_TLS_CERT")?.map(PathBuf::from),
            peer_key: set("QUORATE_PEER_TLS_KEY")?.map(PathBuf::from),
            whole: None,
        },
        insecure: parsed("QUORATE_INSECURE", set("QUORATE_INSECURE")?, "true or false")?,
        access: set("QUORATE_ACCESS")?.map(PathBuf::from),
        audit: set("QUORATE_AUDIT")?.map(PathBuf::from),
        audit_required: parsed(
            "QUORATE_AUDIT_REQUIRED",
            set("QUORATE_AUDIT_REQUIRED")?,
            "true or false",
        )?,
        tunables: None,
    })
}

/// What a variable has to say of where a node listens.
const LISTEN: &str = "IP:PORT; names go into QUORATE_ADVERTISE";

fn parsed<T: FromStr>(
    name: &str,
    text: Option<String>,
    expected: &str,
) -> Result<Option<T>, BadSetting> {
    let Some(text) = text else { return Ok(None) };
    let bad = |_| BadSetting(format!("{name} = \"{text}\": must be {expected}"));
    text.parse().map(Some).map_err(bad)
}

fn from_file(text: &str) -> Result<Layer, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let bootstrap = file.bootstrap.map(parse::members).transpose();
    Ok(Layer {
        id: file.id,
        data_dir: file.data_dir,
        listen: file.listen,
        peer_listen: file.peer_listen,
        http_listen: file.http_listen,
        http_cors_origins: file.http_cors_origins,
        dns_listen: file.dns_listen,
        dns_domain: None,
        dns_allow: None,
        dns: file.dns,
        advertise: file.advertise,
        peer_advertise: file.peer_advertise,
        bootstrap: bootstrap.map_err(|error| format!("bootstrap: {error}"))?,
        join: file.join,
        observer: file.observer,
        health_checks: file.health_checks,
        cluster_name: file.cluster_name,
        tls: TlsLayer { whole: file.tls, ..TlsLayer::default() },
        insecure: file.insecure,
        access: file.access,
        audit_required: file.audit.as_ref().map(|audit| audit.required),
        audit: file.audit.map(|audit| audit.file),
        tunables: file.tunables,
    })
}

/// How the node starts is one setting with two spellings: the first layer that says either decides.
fn start(layers: &[Layer; 3]) -> Result<Start, BadSetting> {
    let start = layers.iter().find(|layer| layer.bootstrap.is_some() || layer.join.is_some());
    let start = start.map(|layer| (layer.bootstrap.clone(), layer.join.clone()));
    let observer = layers.iter().find_map(|layer| layer.observer).unwrap_or(false);
    Ok(match start {
        Some((Some(_), Some(_))) => {
            return Err(BadSetting("bootstrap and join: only one of them can be set".to_owned()));
        }
        Some((None, Some(nodes))) => Start::Join { nodes, observer },
        _ if observer => {
            return Err(BadSetting("observer = true: only with join".to_owned()));
        }
        Some((Some(members), None)) => Start::Bootstrap(members),
        _ => Start::Wait,
    })
}

fn merge(layers: [Layer; 3]) -> Result<Config, BadSetting> {
    let start = start(&layers)?;
    let mut merged = Layer::default();
    for layer in layers {
        merged = Layer {
            id: merged.id.or(layer.id),
            data_dir: merged.data_dir.or(layer.data_dir),
            listen: merged.listen.or(layer.listen),
            peer_listen: merged.peer_listen.or(layer.peer_listen),
            http_listen: merged.http_listen.or(layer.http_listen),
            http_cors_origins: merged.http_cors_origins.or(layer.http_cors_origins),
            dns_listen: merged.dns_listen.or(layer.dns_listen),
            dns_domain: merged.dns_domain.or(layer.dns_domain),
            dns_allow: merged.dns_allow.or(layer.dns_allow),
            dns: merged.dns.or(layer.dns),
            advertise: merged.advertise.or(layer.advertise),
            peer_advertise: merged.peer_advertise.or(layer.peer_advertise),
            health_checks: merged.health_checks.or(layer.health_checks),
            cluster_name: merged.cluster_name.or(layer.cluster_name),
            tls: TlsLayer {
                cert: merged.tls.cert.or(layer.tls.cert),
                key: merged.tls.key.or(layer.tls.key),
                ca: merged.tls.ca.or(layer.tls.ca),
                crl: merged.tls.crl.or(layer.tls.crl),
                clients: merged.tls.clients.or(layer.tls.clients),
                peer_ca: merged.tls.peer_ca.or(layer.tls.peer_ca),
                peer_cert: merged.tls.peer_cert.or(layer.tls.peer_cert),
                peer_key: merged.tls.peer_key.or(layer.tls.peer_key),
                whole: merged.tls.whole.or(layer.tls.whole),
            },
            insecure: merged.insecure.or(layer.insecure),
            access: merged.access.or(layer.access),
            audit: merged.audit.or(layer.audit),
            audit_required: merged.audit_required.or(layer.audit_required),
            tunables: merged.tunables.or(layer.tunables),
            ..Layer::default()
        };
    }
    Ok(Config {
        id: needed("id", merged.id)?,
        data_dir: needed("data_dir", merged.data_dir)?,
        listen: needed("listen", merged.listen)?,
        peer_listen: needed("peer_listen", merged.peer_listen)?,
        http_listen: merged.http_listen,
        http_cors_origins: merged.http_cors_origins.unwrap_or_default(),
        dns_listen: merged.dns_listen,
        dns: dns(merged.dns, merged.dns_domain, merged.dns_allow),
        advertise: merged.advertise,
        peer_advertise: merged.peer_advertise,
        start,
        health_checks: merged.health_checks.unwrap_or_default(),
        cluster_name: merged.cluster_name.unwrap_or_else(|| CLUSTER_NAME.to_owned()),
        tls: tls(merged.tls)?,
        insecure: merged.insecure.unwrap_or(false),
        access: merged.access,
        audit: audit(merged.audit, merged.audit_required)?,
        tunables: merged.tunables.unwrap_or_default(),
    })
}

/// The table of the file, with what flags and variables say instead.
fn dns(table: Option<Dns>, domain: Option<String>, allow: Option<Networks>) -> Dns {
    let table = table.unwrap_or_default();
    Dns { domain: domain.unwrap_or(table.domain), allow: allow.unwrap_or(table.allow), ..table }
}

/// An audit log is a file, in whichever layer it stands.
fn audit(file: Option<PathBuf>, required: Option<bool>) -> Result<Option<Audit>, BadSetting> {
    match (file, required.unwrap_or(false)) {
        (Some(file), required) => Ok(Some(Audit { file, required })),
        (None, false) => Ok(None),
        (None, true) => {
            let missing = "audit_required: needs a file; set --audit too";
            Err(BadSetting(missing.to_owned()))
        }
    }
}

/// TLS takes a certificate, its key and the authorities, in whichever layers they stand; `None`:
/// none of them is set.
fn tls(layer: TlsLayer) -> Result<Option<Tls>, BadSetting> {
    let TlsLayer { cert, key, ca, crl, clients, peer_ca, peer_cert, peer_key, whole } = layer;
    let files = [&cert, &key, &ca, &crl, &peer_ca, &peer_cert, &peer_key];
    let given = files.iter().any(|file| file.is_some()) || clients.is_some();
    if !given && whole.is_none() {
        return Ok(None);
    }
    let of_file = |part: fn(&Tls) -> &PathBuf| whole.as_ref().map(|tls| part(tls).clone());
    let missing =
        |name: &str| BadSetting(format!("tls_{name}: missing; TLS takes --tls-{name} too"));
    let cert = cert.or_else(|| of_file(|tls| &tls.cert)).ok_or_else(|| missing("cert"))?;
    let key = key.or_else(|| of_file(|tls| &tls.key)).ok_or_else(|| missing("key"))?;
    let ca = ca.or_else(|| of_file(|tls| &tls.ca)).ok_or_else(|| missing("ca"))?;
    let base = whole.unwrap_or_else(|| Tls::new(cert.clone(), key.clone(), ca.clone()));
    Ok(Some(Tls {
        cert,
        key,
        ca,
        crl: crl.or(base.crl),
        clients: clients.unwrap_or(base.clients),
        peer_ca: peer_ca.or(base.peer_ca),
        peer_cert: peer_cert.or(base.peer_cert),
        peer_key: peer_key.or(base.peer_key),
        connection_age_ms: base.connection_age_ms,
    }))
}

fn needed<T>(name: &str, value: Option<T>) -> Result<T, BadSetting> {
    let missing = || {
        let (flag, variable) = (name.replace('_', "-"), name.to_uppercase());
        BadSetting(format!(
            "{name} is missing: set --{flag}, QUORATE_{variable}, or {name} in the file"
        ))
    };
    value.ok_or_else(missing)
}

#[cfg(test)]
mod tests;
