//! What the API's description says of single values: the limits are those of the state machine.

use quorate_state::limits;
use utoipa::Number;
use utoipa::openapi::schema::{ArrayBuilder, SchemaFormat, Type};
use utoipa::openapi::{Object, ObjectBuilder, OneOfBuilder, RefOr, Schema};

pub(super) const U32: u64 = u32::MAX as u64;
pub(super) const U64: u64 = u64::MAX;
pub(super) const NAME_MAX: usize = limits::NAME_BYTES;

const NAME: &str = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";
const OPTIONAL_NAME: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
const URI: &str = "^[A-Za-z][A-Za-z0-9+.-]*:/*[A-Za-z0-9._~:?#@!$&'()*+,;=%\\[\\]-]\
                   [A-Za-z0-9._~:/?#@!$&'()*+,;=%\\[\\]-]*$";
const STATUSES: [&str; 4] = ["STARTING", "UP", "DRAINING", "OUT_OF_SERVICE"];

fn texts() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

pub(super) fn any_text() -> Schema {
    texts().build().into()
}

pub(super) fn text(longest: usize) -> Schema {
    texts().max_length(Some(longest)).build().into()
}

pub(super) fn pattern(pattern: &str) -> Schema {
    texts().pattern(Some(pattern)).build().into()
}

pub(super) fn words(words: &[&str]) -> Schema {
    texts().enum_values(Some(words.iter().copied())).build().into()
}

pub(super) fn many(item: Schema) -> Schema {
    ArrayBuilder::new().items(RefOr::T(item)).build().into()
}

pub(super) fn number(least: u64, most: u64) -> Schema {
    let number = |number: u64| Some(Number::from(number));
    let schema = ObjectBuilder::new().schema_type(Type::Integer);
    schema.minimum(number(least)).maximum(number(most)).build().into()
}

pub(super) fn given_duration() -> Schema {
    or_null(duration())
}

/// A number and a unit.
pub(super) fn duration() -> Schema {
    pattern("^[0-9]{1,9}(ms|s|m|h|d)$")
}

/// The same, and not 0.
pub(super) fn some_duration() -> Schema {
    pattern("^0*[1-9][0-9]{0,8}(ms|s|m|h|d)$")
}

fn formatted(format: &str, pattern: &str) -> Object {
    let format = SchemaFormat::Custom(format.to_owned());
    texts().format(Some(format)).pattern(Some(pattern)).build()
}

/// Decimal digits of a number of 64 bits.
pub(super) fn digits() -> Schema {
    formatted("uint64", "^[0-9]{1,20}$").into()
}

/// The same, or the number itself.
pub(super) fn digits_or_number() -> Schema {
    OneOfBuilder::new().item(number(0, U64)).item(digits()).build().into()
}

/// A revision, alone or behind its cluster's id.
pub(super) fn position() -> Schema {
    formatted("position", "^([0-9a-fA-F]{1,16}-)?[0-9]{1,20}$").into()
}

/// Where a stream begins.
pub(super) fn begin() -> Schema {
    let pattern = "^(oldest|([0-9a-fA-F]{1,16}-)?[0-9]{1,20})$";
    formatted("begin", pattern).into()
}

pub(super) fn cluster_id() -> Schema {
    texts().pattern(Some("^0*[1-9a-fA-F][0-9a-fA-F]*$")).max_length(Some(16)).build().into()
}

pub(super) fn name() -> Schema {
    texts().pattern(Some(NAME)).max_length(Some(NAME_MAX)).build().into()
}

/// How a name may begin.
pub(super) fn prefix() -> Schema {
    let prefix = texts().pattern(Some("^([A-Za-z0-9][A-Za-z0-9._-]*)?$"));
    prefix.max_length(Some(NAME_MAX)).build().into()
}

/// Not 0.
pub(super) fn lease_id() -> Schema {
    formatted("uint64", "^0*[1-9][0-9]*$").into()
}

pub(super) fn lease_ids() -> Schema {
    let most = Some(limits::LEASES_PER_CALL);
    let ids = ArrayBuilder::new().items(RefOr::T(digits_or_number()));
    ids.min_items(Some(1)).max_items(most).build().into()
}

pub(super) fn optional_name() -> Schema {
    texts().pattern(Some(OPTIONAL_NAME)).max_length(Some(NAME_MAX)).build().into()
}

pub(super) fn status() -> Schema {
    words(&STATUSES)
}

/// Printable ASCII without a comma.
pub(super) fn tag() -> Schema {
    texts().pattern(Some("^[!-+\\--~]+$")).max_length(Some(limits::TAG_BYTES)).build().into()
}

pub(super) fn tags() -> Schema {
    ArrayBuilder::new().items(RefOr::T(tag())).max_items(Some(limits::TAGS)).build().into()
}

pub(super) fn requires() -> Schema {
    ArrayBuilder::new().items(RefOr::T(name())).max_items(Some(limits::REQUIRES)).build().into()
}

pub(super) fn weight() -> Schema {
    number(0, limits::WEIGHT.into())
}

pub(super) fn load() -> Schema {
    number(0, limits::LOAD.into())
}

pub(super) fn reason() -> Schema {
    text(limits::REASON_BYTES)
}

/// URIs by their names.
pub(super) fn endpoints() -> Schema {
    let uri = texts().pattern(Some(URI)).max_length(Some(limits::URI_BYTES)).build();
    let map = ObjectBuilder::new().schema_type(Type::Object).property_names(Some(name()));
    let map = map.additional_properties(Some(Schema::from(uri)));
    map.min_properties(Some(1)).max_properties(Some(limits::ENDPOINTS)).build().into()
}

/// 16 KiB together.
pub(super) fn metadata() -> Schema {
    let key = texts().min_length(Some(1)).max_length(Some(NAME_MAX)).build();
    let map = ObjectBuilder::new().schema_type(Type::Object).property_names(Some(key));
    let map = map.additional_properties(Some(text(limits::METADATA_BYTES)));
    map.max_properties(Some(limits::METADATA_ENTRIES)).build().into()
}

/// 0: what is usual.
pub(super) fn ttl() -> Schema {
    number_or_zero(limits::TTL_MIN_MS, limits::TTL_MAX_MS)
}

pub(super) fn interval() -> Schema {
    number_or_zero(limits::CHECK_INTERVAL_MIN_MS.into(), limits::CHECK_INTERVAL_MAX_MS.into())
}

pub(super) fn timeout() -> Schema {
    number_or_zero(limits::CHECK_TIMEOUT_MIN_MS.into(), limits::CHECK_INTERVAL_MAX_MS.into())
}

pub(super) fn threshold() -> Schema {
    number(0, limits::CHECK_THRESHOLD.into())
}

fn number_or_zero(least: u64, most: u64) -> Schema {
    let zero = number(0, 0);
    OneOfBuilder::new().item(number(least, most)).item(zero).build().into()
}

/// The path of a check.
pub(super) fn check_path() -> Schema {
    let path = texts().pattern(Some("^/[!-~]*$")).max_length(Some(limits::CHECK_TEXT_BYTES));
    path.build().into()
}

pub(super) fn check_service() -> Schema {
    let service = texts().pattern(Some("^[!-~]*$")).max_length(Some(limits::CHECK_TEXT_BYTES));
    service.build().into()
}

/// With what a newer node may say.
pub(super) fn shown_status() -> Schema {
    words(&["STARTING", "UP", "DRAINING", "OUT_OF_SERVICE", "UNKNOWN"])
}

pub(super) fn health() -> Schema {
    or_null(words(&["UNKNOWN", "PASSING", "CRITICAL"]))
}

pub(super) fn role() -> Schema {
    words(&["voter", "learner", "unknown"])
}

pub(super) fn kind() -> Schema {
    words(&["added", "modified", "removed", "unknown"])
}

pub(super) fn removal() -> Schema {
    words(&["deregistered", "expired", "filtered"])
}

/// What need not be given may be `null`.
fn or_null(schema: Schema) -> Schema {
    let null = ObjectBuilder::new().schema_type(Type::Null).build();
    OneOfBuilder::new().item(schema).item(null).build().into()
}

pub(super) fn given_weight() -> Schema {
    or_null(weight())
}

pub(super) fn given_status() -> Schema {
    or_null(status())
}

pub(super) fn given_metadata() -> Schema {
    or_null(metadata())
}

pub(super) fn given_load() -> Schema {
    or_null(load())
}

pub(super) fn given_cluster_id() -> Schema {
    or_null(cluster_id())
}
