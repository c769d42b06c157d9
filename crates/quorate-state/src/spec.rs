//! Instances: what a process registers of itself, what an operator overrides, and both together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checks::{Checked, Checks, Health, HealthReason};
use crate::limits::{self, Invalid};
use crate::texts::{TextList, TextMap, Texts, Unpacked};
use crate::types::{Incarnation, InstanceKey, LeaseId, Revision, ServiceName, check_optional_name};

/// What an instance says of itself, or an operator of it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Status {
    /// Alive, not yet ready for calls.
    Starting,
    /// Ready for calls.
    #[default]
    Up,
    /// Finishing what it has; no new calls.
    Draining,
    /// Taken out by itself or an operator; no calls.
    OutOfService,
}

/// The unchecked parts of an [`InstanceSpec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecParts {
    /// Named URIs.
    pub endpoints: BTreeMap<String, String>,
    /// Failure domain; may be empty.
    pub zone: String,
    /// The software's version; may be empty.
    pub version: String,
    /// Relative share of calls; `None` is 100.
    pub weight: Option<u32>,
    /// Its status.
    pub status: Status,
    /// Anything else.
    pub metadata: BTreeMap<String, String>,
    /// Services of the same namespace that it depends on.
    pub requires: BTreeSet<ServiceName>,
}

/// What a process registers of an instance: checked, so that a limit is broken nowhere behind this. A clone shares the texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    texts: Texts,
    pub(crate) weight: u32,
    status: Status,
    /// Not part of this record in logs, snapshots and hash, which are as they were before there were loads: there it stands
    /// in commands and records of its own.
    load: Load,
}

/// An [`InstanceSpec`] as it stands in logs and snapshots: `M` is a map of texts, `R` a sequence of them.
#[derive(Serialize, Deserialize)]
struct SpecRecord<'a, M, R> {
    endpoints: M,
    zone: &'a str,
    version: &'a str,
    weight: u32,
    status: Status,
    metadata: M,
    requires: R,
}

impl Serialize for InstanceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Unpacked { requires, endpoints, metadata, zone, version } = self.texts.unpack();
        let (weight, status) = (self.weight, self.status);
        let record: SpecRecord<'_, TextMap<'_>, TextList<'_>> =
            SpecRecord { endpoints, zone, version, weight, status, metadata, requires };
        record.serialize(serializer)
    }
}

/// From bytes in memory: texts are taken from where they stand.
impl<'de> Deserialize<'de> for InstanceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Map<'a> = BTreeMap<&'a str, &'a str>;
        let record: SpecRecord<'de, Map<'de>, BTreeSet<&'de str>> =
            SpecRecord::deserialize(deserializer)?;
        let entries = |map: Map<'de>| map.into_iter();
        let texts = Texts::pack(
            record.requires.into_iter(),
            entries(record.endpoints),
            entries(record.metadata),
            record.zone,
            record.version,
        );
        let SpecRecord { weight, status, .. } = record;
        Ok(Self { texts, weight, status, load: Load::default() })
    }
}

/// What an instance says of its load, 0 to 1,000,000, in a unit of its own.
///
/// It has three bytes (little endian), which every instance had to spare: no load costs no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load([u8; 3]);

impl Load {
    /// Checks it; `field` is what errors call it.
    ///
    /// # Errors
    /// Over the limit.
    pub fn new(field: impl Display + Copy, load: u32) -> Result<Self, Invalid> {
        if load > limits::LOAD {
            return Err(Invalid::number(field, load, format!("at most {}", limits::LOAD)));
        }
        let [a, b, c, _] = load.to_le_bytes();
        Ok(Self([a, b, c]))
    }

    /// The number.
    pub fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }
}

/// As the number that it is. What is over the limit is no load.
impl Serialize for Load {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Load {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new("load", u32::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl InstanceSpec {
    /// Checks the parts; `field` is what errors call the instance, e.g. `instances[3]`.
    ///
    /// # Errors
    /// The first part that is out of its limits.
    pub fn new(field: impl Display + Copy, parts: SpecParts) -> Result<Self, Invalid> {
        check_endpoints(field, &parts.endpoints)?;
        check_optional_name(format_args!("{field}.zone"), &parts.zone)?;
        check_optional_name(format_args!("{field}.version"), &parts.version)?;
        let weight = parts.weight.unwrap_or(limits::WEIGHT_DEFAULT);
        check_weight(format_args!("{field}.weight"), weight)?;
        check_metadata(format_args!("{field}.metadata"), &parts.metadata)?;
        let requires = parts.requires.len();
        if requires > limits::REQUIRES {
            let limit = format!("at most {} services", limits::REQUIRES);
            return Err(Invalid::number(format_args!("{field}.requires"), requires, limit));
        }
        let texts = Texts::pack(
            parts.requires.iter().map(ServiceName::as_str),
            parts.endpoints.iter().map(as_texts),
            parts.metadata.iter().map(as_texts),
            &parts.zone,
            &parts.version,
        );
        Ok(Self { texts, weight, status: parts.status, load: Load::default() })
    }

    /// Named URIs.
    pub fn endpoints(&self) -> TextMap<'_> {
        self.texts.unpack().endpoints
    }

    /// Failure domain; may be empty.
    pub fn zone(&self) -> &str {
        self.texts.unpack().zone
    }

    /// The software's version; may be empty.
    pub fn version(&self) -> &str {
        self.texts.unpack().version
    }

    /// Anything else.
    pub fn metadata(&self) -> TextMap<'_> {
        self.texts.unpack().metadata
    }

    /// Services of the same namespace that it depends on.
    pub fn requires(&self) -> impl ExactSizeIterator<Item = ServiceName> {
        self.texts.requires().iter().map(ServiceName::known)
    }

    /// How many texts it is made of, and their bytes.
    pub fn texts_and_bytes(&self) -> (usize, usize) {
        let Unpacked { requires, endpoints, metadata, zone, version } = self.texts.unpack();
        let entries = endpoints.iter().chain(metadata.iter()).flat_map(|(name, text)| [name, text]);
        let texts = requires.iter().chain(entries).chain([zone, version]);
        texts.fold((0, 0), |(texts, bytes), text| (texts + 1, bytes + text.len()))
    }

    /// What it says of its load.
    pub fn load(&self) -> Load {
        self.load
    }

    pub(crate) fn with_load(mut self, load: Load) -> Self {
        self.load = load;
        self
    }

    pub(crate) fn updated(
        &self,
        status: Option<Status>,
        weight: Option<u32>,
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Self {
        let mut spec = self.clone();
        spec.status = status.unwrap_or(spec.status);
        spec.weight = weight.unwrap_or(spec.weight);
        if let Some(metadata) = metadata {
            let Unpacked { requires, endpoints, zone, version, .. } = self.texts.unpack();
            let metadata = metadata.iter().map(as_texts);
            spec.texts = Texts::pack(requires.iter(), endpoints.iter(), metadata, zone, version);
        }
        spec
    }
}

fn as_texts<'a>((name, text): (&'a String, &'a String)) -> (&'a str, &'a str) {
    (name, text)
}

fn check_endpoints(
    field: impl Display + Copy,
    endpoints: &BTreeMap<String, String>,
) -> Result<(), Invalid> {
    let count = endpoints.len();
    if count == 0 || count > limits::ENDPOINTS {
        let limit = format!("1 to {} endpoints", limits::ENDPOINTS);
        return Err(Invalid::number(format_args!("{field}.endpoints"), count, limit));
    }
    for (name, uri) in endpoints {
        ServiceName::new(format_args!("{field}.endpoints name"), name)?;
        let named = format_args!("{field}.endpoints[{name}]");
        if uri.len() > limits::URI_BYTES {
            let limit = format!("{} bytes long, at most {}", uri.len(), limits::URI_BYTES);
            return Err(Invalid::text(named, uri, limit));
        }
        if !is_absolute_uri(uri) {
            let limit = "must be an absolute URI like http://10.0.0.1:8080";
            return Err(Invalid::text(named, uri, limit));
        }
    }
    Ok(())
}

/// RFC 3986, section 4.3, as far as it can be told without knowing the scheme: a scheme, a colon, something after it, and
/// only characters that may stand in a URI.
fn is_absolute_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else { return false };
    let mut scheme = scheme.chars();
    let scheme_ok = scheme.next().is_some_and(|c| c.is_ascii_alphabetic())
        && scheme.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c);
    let after_slashes = rest.trim_start_matches('/');
    scheme_ok && !after_slashes.is_empty() && rest.chars().all(allowed)
}

pub(crate) fn check_weight(field: impl Display + Copy, weight: u32) -> Result<(), Invalid> {
    if weight <= limits::WEIGHT {
        return Ok(());
    }
    Err(Invalid::number(field, weight, format!("at most {}", limits::WEIGHT)))
}

pub(crate) fn check_metadata(
    field: impl Display + Copy,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Invalid> {
    if metadata.len() > limits::METADATA_ENTRIES {
        let limit = format!("at most {} entries", limits::METADATA_ENTRIES);
        return Err(Invalid::number(field, metadata.len(), limit));
    }
    for key in metadata.keys() {
        if key.is_empty() || key.len() > limits::NAME_BYTES {
            let limit = format!("keys are 1 to {} bytes long", limits::NAME_BYTES);
            return Err(Invalid::text(format_args!("{field} key"), key, limit));
        }
    }
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > limits::METADATA_BYTES {
        let limit = format!("at most {} bytes of keys and values", limits::METADATA_BYTES);
        return Err(Invalid::number(field, bytes, limit));
    }
    Ok(())
}

/// An operator's decision about one instance; a record of its own that re-registration does not touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Replaces the instance's status where set.
    pub status: Option<Status>,
    /// Replaces the instance's weight where set.
    pub weight: Option<u32>,
    /// Why.
    pub reason: String,
}

impl Override {
    /// A checked override.
    ///
    /// # Errors
    /// A weight or a reason out of its limits, or neither status nor weight.
    pub fn new(
        status: Option<Status>,
        weight: Option<u32>,
        reason: String,
    ) -> Result<Self, Invalid> {
        if let Some(weight) = weight {
            check_weight("override.weight", weight)?;
        }
        if reason.len() > limits::REASON_BYTES {
            let limit = format!("at most {} bytes", limits::REASON_BYTES);
            return Err(Invalid::number("override.reason", reason.len(), limit));
        }
        if status.is_none() && weight.is_none() {
            return Err(Invalid::text("override", "", "must set a status or a weight"));
        }
        Ok(Self { status, weight, reason })
    }
}

/// A registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Which one.
    pub key: InstanceKey,
    /// What its process registered.
    pub spec: InstanceSpec,
    /// Which run of its process.
    pub incarnation: Incarnation,
    /// The lease that keeps it.
    pub lease: LeaseId,
    /// The revision that made it.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
    /// What an operator decided about it. Boxed because few have one.
    pub overridden: Option<Box<Override>>,
    /// Its health checks and what they say; `None`: it declares none. Not part of this record in logs, snapshots and hash,
    /// which are as they were before there were checks: it is a record of its own there. Boxed because few have some.
    #[serde(skip)]
    pub checked: Option<Box<Checked>>,
}

impl Instance {
    /// The health checks that its process declared; `None`: none.
    pub fn checks(&self) -> Option<&Checks> {
        self.checked.as_ref().map(|checked| &checked.checks)
    }

    /// Its status: the operator's where there is one.
    pub fn status(&self) -> Status {
        self.overridden.as_ref().and_then(|o| o.status).unwrap_or(self.spec.status)
    }

    /// Whether a health check of it fails.
    pub fn is_critical(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| checked.health == Health::Critical)
    }

    /// Why it is critical; empty where it is not.
    pub fn health_reason(&self) -> &str {
        let reason = self.checked.as_ref().and_then(|checked| checked.reason.as_ref());
        reason.map_or("", HealthReason::as_str)
    }

    /// Its weight: the operator's where there is one.
    pub fn weight(&self) -> u32 {
        self.overridden.as_ref().and_then(|o| o.weight).unwrap_or(self.spec.weight)
    }
}
