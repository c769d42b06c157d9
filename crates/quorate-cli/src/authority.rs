//! A small certificate authority: a CA in a directory, and what it issues to nodes and clients. For
//! trials and small sites; a site that has a CA uses that. Knows nothing of how certificates are
//! used.

mod der;
mod revocation;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

pub(crate) use self::der::is_authority;
pub(crate) use self::revocation::Revoked;
use crate::files::{self, Mode};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a CA is good for.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// And what it issues, unless something else is asked for.
pub(crate) const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Nothing is issued for longer: the CA should not end before it.
pub(crate) const LIFETIME_MAX: Duration = Duration::from_secs(5 * 365 * 86_400);
/// What a node's certificate is for where nothing else is said.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Certificates begin this long ago: clocks differ.
const SINCE: Duration = Duration::from_secs(3_600);

/// A CA that may issue.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cluster_name: String,
}

/// What was made, and where it is.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Its name for machines: `spiffe://CLUSTER/node/1`.
    pub(crate) spiffe: String,
    /// What it may be called by ...
    pub(crate) hosts: Vec<String>,
    /// ... and why by that, in brackets; empty: it was told so.
    pub(crate) why: &'static str,
    /// The last moment, as RFC 3339 writes it.
    pub(crate) not_after: String,
}

/// Where a directory has the CA's certificate.
pub(crate) fn ca_file(dir: &Path) -> PathBuf {
    dir.join("ca.crt")
}

impl Authority {
    /// Makes a CA in a directory.
    ///
    /// # Errors
    /// What cannot be, or is there already; in words.
    pub(crate) fn init(
        dir: &Path,
        cluster_name: &str,
        overwrite: bool,
    ) -> Result<(Self, Issued), String> {
        check_cluster_name(cluster_name)?;
        let targets = [ca_file(dir), dir.join("ca.key")];
        files::make_room(dir, &targets, overwrite)?;
        let key = new_key()?;
        let params = ca(cluster_name, &key)?;
        let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
        let [certificate_file, key_file] = targets;
        let issued = Issued {
            certificate: certificate_file,
            key: key_file,
            spiffe: format!("spiffe://{cluster_name}"),
            hosts: Vec::new(),
            why: "",
            not_after: rfc3339(now() + CA_LIFETIME),
        };
        write(&issued, &certificate.pem(), &key, overwrite)?;
        let cluster_name = cluster_name.to_owned();
        Ok((Self { issuer: Issuer::new(params, key), cluster_name }, issued))
    }

    /// The CA that `init` made in a directory.
    ///
    /// # Errors
    /// What is missing, or is not as `init` makes it; in words.
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        let (certificate_file, key_file) = (ca_file(dir), dir.join("ca.key"));
        let read = |path: &Path| {
            let next = "`quorate certs init` makes a CA, --dir says where it is";
            let missing = |error| format!("{}: {error}\n  next: {next}", path.display());
            std::fs::read_to_string(path).map_err(missing)
        };
        let (certificate, key) = (read(&certificate_file)?, read(&key_file)?);
        let bad = |path: &Path, what: &str| format!("{}: {what}", path.display());
        let key = KeyPair::from_pem(&key)
            .map_err(|_| bad(&key_file, "it is no private key that can be used"))?;
        let not_ours = || bad(&certificate_file, "it is no CA that `quorate certs init` made");
        let der = der::of_pem(&certificate, der::CERTIFICATE).ok_or_else(not_ours)?;
        let cluster_name = cluster_name_in(&der).ok_or_else(not_ours)?;
        if !contains(&der, key.public_key_raw()) {
            return Err(bad(&key_file, "it is not the key of ca.crt beside it"));
        }
        if !contains(&der, common_name(&key).as_bytes()) {
            return Err(not_ours());
        }
        Ok(Self { issuer: Issuer::new(ca(&cluster_name, &key)?, key), cluster_name })
    }

    pub(crate) fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// Issues a node's certificate, for these hosts. If there are none, for those of the one that
    /// it takes the place of, or for this machine alone.
    ///
    /// # Errors
    /// What cannot be, or is there already; in words.
    pub(crate) fn node(
        &self,
        dir: &Path,
        id: u64,
        hosts: &[String],
        lifetime: Duration,
        overwrite: bool,
    ) -> Result<Issued, String> {
        if id == 0 {
            return Err("a node's id is at least 1".to_owned());
        }
        let file = format!("node-{id}");
        let before = match overwrite && hosts.is_empty() {
            true => hosts_of(&dir.join(format!("{file}.crt")))?,
            false => Vec::new(),
        };
        let (hosts, why) = match (hosts, before.is_empty()) {
            ([], true) => {
                (LOOPBACK.map(str::to_owned).to_vec(), " (no --host: on its own machine)")
            }
            ([], false) => (before, " (as the one before)"),
            (told, _) => (told.to_vec(), ""),
        };
        let names: Result<Vec<_>, _> = hosts.iter().map(|host| san(host)).collect();
        let who = Who {
            file: file.clone(),
            common_name: file,
            spiffe: format!("spiffe://{}/node/{id}", self.cluster_name),
            // A node dials its peers with it, too.
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            names: names?,
        };
        let issued = self.issue(dir, who, lifetime, overwrite)?;
        Ok(Issued { hosts, why, ..issued })
    }

    /// Issues a client's certificate.
    ///
    /// # Errors
    /// What cannot be, or is there already; in words.
    pub(crate) fn client(
        &self,
        dir: &Path,
        name: &str,
        lifetime: Duration,
        overwrite: bool,
    ) -> Result<Issued, String> {
        check_client_name(name)?;
        let who = Who {
            file: format!("client-{name}"),
            common_name: name.to_owned(),
            spiffe: format!("spiffe://{}/client/{name}", self.cluster_name),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            names: Vec::new(),
        };
        self.issue(dir, who, lifetime, overwrite)
    }

    fn issue(
        &self,
        dir: &Path,
        who: Who,
        lifetime: Duration,
        overwrite: bool,
    ) -> Result<Issued, String> {
        if lifetime < DAY || lifetime > LIFETIME_MAX {
            return Err("a certificate is valid for 1 day to 5 years".to_owned());
        }
        let file = |ending: &str| dir.join(format!("{}.{ending}", who.file));
        let targets = [file("crt"), file("key")];
        files::make_room(dir, &targets, overwrite)?;
        let key = new_key()?;
        let mut params = named(&who.common_name, &self.cluster_name, lifetime);
        params.subject_alt_names.push(SanType::URI(ia5(&who.spiffe)?));
        params.subject_alt_names.extend(who.names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = who.usages;
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        let [certificate_file, key_file] = targets;
        let issued = Issued {
            certificate: certificate_file,
            key: key_file,
            spiffe: who.spiffe,
            hosts: Vec::new(),
            why: "",
            not_after: rfc3339(now() + lifetime),
        };
        write(&issued, &certificate.pem(), &key, overwrite)?;
        Ok(issued)
    }
}

/// The node or client that a certificate is for.
struct Who {
    file: String,
    common_name: String,
    spiffe: String,
    usages: Vec<ExtendedKeyUsagePurpose>,
    names: Vec<SanType>,
}

/// ECDSA on P-256.
fn new_key() -> Result<KeyPair, String> {
    KeyPair::generate().map_err(|error| format!("cannot make a key: {error}"))
}

fn named(common_name: &str, cluster_name: &str, lifetime: Duration) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster_name);
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = date_time_ymd(1970, 1, 1) + now().saturating_sub(SINCE);
    params.not_after = date_time_ymd(1970, 1, 1) + now() + lifetime;
    params
}

/// Of each CA its own: while one is replaced by the next, revocation lists are told apart by name.
fn common_name(key: &KeyPair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key_raw());
    let short: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Quorate CA {short}")
}

/// As it was when the CA was made, but for its times: what is issued names it by the rest.
fn ca(cluster_name: &str, key: &KeyPair) -> Result<CertificateParams, String> {
    let mut params = named(&common_name(key), cluster_name, CA_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(ia5(&format!("spiffe://{cluster_name}"))?)];
    Ok(params)
}

/// The hosts that a certificate is for; empty: there is no such file, or it names none.
fn hosts_of(certificate: &Path) -> Result<Vec<String>, String> {
    let bad = |what: &str| {
        let next = "name the hosts: --host";
        format!("{}: {what}\n  next: {next}", certificate.display())
    };
    let pem = match std::fs::read_to_string(certificate) {
        Ok(pem) => pem,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(bad(&error.to_string())),
    };
    let hosts = der::of_pem(&pem, der::CERTIFICATE).and_then(|der| der::hosts(&der));
    hosts.ok_or_else(|| bad("its hosts cannot be read, which the new one would have"))
}

fn ia5<T: TryFrom<String>>(text: &str) -> Result<T, String> {
    text.to_owned().try_into().map_err(|_| format!("\"{text}\" is not ASCII"))
}

fn san(host: &str) -> Result<SanType, String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let is_label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.len() <= 63 && label.chars().all(allowed)
    };
    let plain = host.strip_prefix("*.").unwrap_or(host);
    if host.len() > 253 || !plain.split('.').all(is_label) {
        return Err(format!(
            "\"{host}\" is no DNS name and no IP address (a port is no part of it)"
        ));
    }
    Ok(SanType::DnsName(ia5(host)?))
}

fn write(issued: &Issued, certificate: &str, key: &KeyPair, overwrite: bool) -> Result<(), String> {
    files::write(&issued.key, key.serialize_pem().as_bytes(), Mode::Secret, overwrite)?;
    files::write(&issued.certificate, certificate.as_bytes(), Mode::Public, overwrite)
}

/// 1 to 63 of `a-z 0-9 . -`, with a letter or digit at both ends.
pub(crate) fn check_cluster_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    check_name("cluster", name, "a-z, 0-9, '.' or '-'", allowed)
}

fn check_client_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_'].contains(&c);
    check_name("client", name, "letters, digits, '.', '_' or '-'", allowed)
}

fn check_name(
    what: &str,
    name: &str,
    written: &str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), String> {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let ends = is_end(name.chars().next()) && is_end(name.chars().last());
    if ends && name.len() <= 63 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "\"{name}\" is no name of a {what}: 1 to 63 of {written}, with a letter or digit at both ends"
    ))
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

/// A CA of ours has one name, a URI with the cluster's alone.
fn cluster_name_in(der: &[u8]) -> Option<String> {
    let uri = der::uri(der)?;
    let name = uri.strip_prefix("spiffe://")?;
    check_cluster_name(name).ok().map(|()| name.to_owned())
}

/// Since 1970, by the wall clock: what a certificate or a token says of its time.
pub(crate) fn now() -> Duration {
    #[allow(clippy::disallowed_methods, reason = "what is signed is read on other machines")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// As RFC 3339 writes a moment, given since 1970: `2027-01-01T00:00:00Z`.
pub(crate) fn rfc3339(since_1970: Duration) -> String {
    let at = date_time_ymd(1970, 1, 1) + since_1970;
    let (hour, minute, second) = at.to_hms();
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests;
