//! Instances: what a process registers of itself, what an operator overrides, and both together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checks::{Checks, Finding, Health, HealthCheck, HealthReason};
use crate::limits::{self, Invalid};
use crate::load::Load;
use crate::optional::Optional;
use crate::record;
use crate::texts::{TextList, TextMap, Texts};
use crate::types::{
    Incarnation, InstanceKey, LeaseId, Revision, ServiceName, check_name, check_optional_name,
};

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
    /// How loaded it is.
    pub load: u32,
    /// How to find out whether it works.
    pub checks: Vec<HealthCheck>,
    /// Short labels.
    pub tags: BTreeSet<String>,
}

/// What a process registers of an instance: checked, so that a limit is broken nowhere behind this.
/// A clone shares the texts and the checks.
#[derive(Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    texts: Texts,
    checks: Option<Arc<Checks>>,
    pub(crate) weight: u32,
    status: Status,
    load: Load,
}

/// The texts of an [`InstanceSpec`], in the order in which they are packed.
#[derive(Debug, Clone, Copy)]
struct SpecTexts<'a> {
    requires: TextList<'a>,
    endpoints: TextMap<'a>,
    metadata: TextMap<'a>,
    zone: &'a str,
    version: &'a str,
    tags: TextList<'a>,
}

impl<'a> SpecTexts<'a> {
    fn unpack(texts: &'a Texts) -> Self {
        let mut texts = texts.reader();
        Self {
            requires: texts.list(),
            endpoints: texts.map(),
            metadata: texts.map(),
            zone: texts.text(),
            version: texts.text(),
            tags: texts.list(),
        }
    }
}

/// An [`InstanceSpec`] as it stands in logs and snapshots: `M` is a map of texts, `R` a sequence of
/// them, `O` what is optional.
#[derive(Serialize, Deserialize)]
struct SpecRecord<'a, M, R, O> {
    endpoints: M,
    zone: &'a str,
    version: &'a str,
    weight: u32,
    status: Status,
    metadata: M,
    requires: R,
    optional: O,
}

/// A load of 0, no checks and no tags are not written. New fields come at the end.
type SpecOptional<'a> = Optional<(Option<Load>, Option<Arc<Checks>>, Option<BTreeSet<&'a str>>)>;

impl Serialize for InstanceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { texts, checks, weight, status, load } = self;
        let texts = SpecTexts::unpack(texts);
        let SpecTexts { requires, endpoints, metadata, zone, version, tags } = texts;
        let (weight, status) = (*weight, *status);
        let load = Some(*load).filter(|load| load.get() > 0);
        let tags = Some(tags).filter(|tags| tags.iter().len() > 0);
        let optional = Optional((load, checks.as_deref(), tags));
        let record: SpecRecord<'_, TextMap<'_>, TextList<'_>, _> =
            SpecRecord { endpoints, zone, version, weight, status, metadata, requires, optional };
        record.serialize(serializer)
    }
}

/// From bytes in memory: texts are taken from where they stand.
impl<'de> Deserialize<'de> for InstanceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Map<'a> = BTreeMap<&'a str, &'a str>;
        let record: SpecRecord<'de, Map<'de>, BTreeSet<&'de str>, SpecOptional<'de>> =
            SpecRecord::deserialize(deserializer)?;
        let SpecRecord { endpoints, zone, version, weight, status, metadata, requires, optional } =
            record;
        let Optional((load, checks, tags)) = optional;
        let texts = Texts::pack(|texts| {
            texts.list(requires.into_iter());
            texts.map(endpoints.into_iter());
            texts.map(metadata.into_iter());
            texts.text(zone);
            texts.text(version);
            texts.list(tags.unwrap_or_default().into_iter());
        });
        Ok(Self { texts, checks, weight, status, load: load.unwrap_or_default() })
    }
}

impl fmt::Debug for InstanceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { texts, checks, weight, status, load } = self;
        let fields = (SpecTexts::unpack(texts), checks, weight, status, load);
        f.debug_tuple("InstanceSpec").field(&fields).finish()
    }
}

/// What is to change of an instance; `None`: nothing.
pub(crate) struct NewValues<'a> {
    pub(crate) status: Option<Status>,
    pub(crate) weight: Option<u32>,
    /// All of it.
    pub(crate) metadata: Option<&'a BTreeMap<String, String>>,
    pub(crate) load: Option<Load>,
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
        check_tags(format_args!("{field}.tags"), &parts.tags)?;
        let load = Load::new(format_args!("{field}.load"), parts.load)?;
        let checks = Checks::new(field, &parts.endpoints, parts.checks)?.map(Arc::new);
        let texts = Texts::pack(|texts| {
            texts.list(parts.requires.iter().map(ServiceName::as_str));
            texts.map(parts.endpoints.iter().map(as_texts));
            texts.map(parts.metadata.iter().map(as_texts));
            texts.text(&parts.zone);
            texts.text(&parts.version);
            texts.list(parts.tags.iter().map(String::as_str));
        });
        Ok(Self { texts, checks, weight, status: parts.status, load })
    }

    /// A tag, also one that is asked for.
    ///
    /// # Errors
    /// Empty, too long, or with a character that is not allowed.
    pub fn check_tag(field: impl Display + Copy, tag: &str) -> Result<(), Invalid> {
        if tag.is_empty() || tag.len() > limits::TAG_BYTES {
            let limit = format!("a tag is 1 to {} bytes long", limits::TAG_BYTES);
            return Err(Invalid::text(field, tag, limit));
        }
        // A comma separates tags wherever several stand in one text.
        if !tag.chars().all(|c| c.is_ascii_graphic() && c != ',') {
            let limit = "only printable ASCII without spaces and commas is allowed";
            return Err(Invalid::text(field, tag, limit));
        }
        Ok(())
    }

    /// Checks what was read from bytes, past [`InstanceSpec::new`].
    pub(crate) fn check(&self, field: impl Display + Copy) -> Result<(), Invalid> {
        for service in self.requires() {
            check_name(format_args!("{field}.requires"), service.as_str())?;
        }
        Self::new(field, self.to_parts()).map(drop)
    }

    fn to_parts(&self) -> SpecParts {
        let Self { texts, checks, weight, status, load } = self;
        let texts = SpecTexts::unpack(texts);
        let SpecTexts { requires, endpoints, metadata, zone, version, tags } = texts;
        SpecParts {
            endpoints: endpoints.to_map(),
            zone: zone.to_owned(),
            version: version.to_owned(),
            weight: Some(*weight),
            status: *status,
            metadata: metadata.to_map(),
            requires: requires.iter().map(ServiceName::known).collect(),
            load: load.get(),
            checks: checks.iter().flat_map(|checks| checks.iter()).cloned().collect(),
            tags: tags.iter().map(str::to_owned).collect(),
        }
    }

    fn texts(&self) -> SpecTexts<'_> {
        SpecTexts::unpack(&self.texts)
    }

    /// Named URIs.
    pub fn endpoints(&self) -> TextMap<'_> {
        self.texts().endpoints
    }

    /// Failure domain; may be empty.
    pub fn zone(&self) -> &str {
        self.texts().zone
    }

    /// The software's version; may be empty.
    pub fn version(&self) -> &str {
        self.texts().version
    }

    /// Anything else.
    pub fn metadata(&self) -> TextMap<'_> {
        self.texts().metadata
    }

    /// Services of the same namespace that it depends on.
    pub fn requires(&self) -> impl ExactSizeIterator<Item = ServiceName> {
        self.texts.reader().list().iter().map(ServiceName::known)
    }

    /// The same names, without a copy of each.
    pub(crate) fn required_names(&self) -> impl Iterator<Item = &str> {
        self.texts().requires.iter()
    }

    /// Short labels, in order, each once.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = &str> {
        self.texts().tags.iter()
    }

    /// How many texts it is made of, and their bytes.
    pub fn texts_and_bytes(&self) -> (usize, usize) {
        let SpecTexts { requires, endpoints, metadata, zone, version, tags } = self.texts();
        let entries = endpoints.iter().chain(metadata.iter()).flat_map(|(name, text)| [name, text]);
        let texts = requires.iter().chain(entries).chain([zone, version]).chain(tags.iter());
        texts.fold((0, 0), |(texts, bytes), text| (texts + 1, bytes + text.len()))
    }

    /// What its texts take in memory, bytes.
    pub(crate) fn packed_bytes(&self) -> usize {
        self.texts.len()
    }

    /// What it says of its load.
    pub fn load(&self) -> Load {
        self.load
    }

    /// How to find out whether it works; `None`: it declares no checks.
    pub fn checks(&self) -> Option<&Checks> {
        self.checks.as_deref()
    }

    pub(crate) fn updated(&self, new: NewValues<'_>) -> Self {
        let NewValues { status, weight, metadata, load } = new;
        let mut spec = self.clone();
        spec.status = status.unwrap_or(spec.status);
        spec.weight = weight.unwrap_or(spec.weight);
        spec.load = load.unwrap_or(spec.load);
        if let Some(metadata) = metadata {
            let SpecTexts { requires, endpoints, zone, version, tags, .. } = self.texts();
            spec.texts = Texts::pack(|texts| {
                texts.list(requires.iter());
                texts.map(endpoints.iter());
                texts.map(metadata.iter().map(as_texts));
                texts.text(zone);
                texts.text(version);
                texts.list(tags.iter());
            });
        }
        spec
    }
}

fn as_texts<'a>((name, text): (&'a String, &'a String)) -> (&'a str, &'a str) {
    (name, text)
}

fn check_tags(field: impl Display + Copy, tags: &BTreeSet<String>) -> Result<(), Invalid> {
    if tags.len() > limits::TAGS {
        let limit = format!("at most {} tags", limits::TAGS);
        return Err(Invalid::number(field, tags.len(), limit));
    }
    tags.iter().try_for_each(|tag| InstanceSpec::check_tag(field, tag))
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

/// RFC 3986, section 4.3, as far as it holds for every scheme: a scheme, a colon,
/// something after it, and only characters that may stand in a URI.
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

/// An operator's decision about one instance; a record of its own that re-registration does not
/// touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Replaces the instance's status where set.
    pub status: Option<Status>,
    /// Replaces the instance's weight where set.
    pub weight: Option<u32>,
    /// Why.
    pub reason: String,
}

record!(Override { reason } { status, weight });

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// What its health checks were found to say; `None`: nothing yet, or it declares none. Boxed
    /// because few have some.
    pub found: Option<Box<Finding>>,
}

record!(Instance { key, spec, incarnation, lease, created, modified } { overridden, found });

impl Instance {
    /// The health checks that its process declared; `None`: none.
    pub fn checks(&self) -> Option<&Checks> {
        self.spec.checks()
    }

    /// What they say; `None`: it declares none.
    pub fn health(&self) -> Option<Health> {
        let found = self.found.as_ref();
        self.checks().map(|_| found.map_or(Health::Unknown, |found| found.health))
    }

    /// Its status: the operator's where there is one.
    pub fn status(&self) -> Status {
        self.overridden.as_ref().and_then(|o| o.status).unwrap_or(self.spec.status)
    }

    /// Whether a health check of it fails.
    pub fn is_critical(&self) -> bool {
        self.health() == Some(Health::Critical)
    }

    /// Why it is critical; empty where it is not.
    pub fn health_reason(&self) -> &str {
        let reason = self.found.as_ref().and_then(|found| found.reason.as_ref());
        reason.map_or("", HealthReason::as_str)
    }

    /// Its weight: the operator's where there is one.
    pub fn weight(&self) -> u32 {
        self.overridden.as_ref().and_then(|o| o.weight).unwrap_or(self.spec.weight)
    }
}
