//! About what services and instances take in a message, so that messages and the watch ring stay
//! within their bounds without being encoded first.

use quorate_state::{Checks, Instance, ServiceKey};

/// What an instance or a service costs beside its texts, bytes: tags, lengths and numbers.
const OVERHEAD_BYTES: usize = 128;

/// About what a service takes without its instances.
pub(crate) fn service_bytes(key: &ServiceKey) -> usize {
    OVERHEAD_BYTES + key_bytes(key)
}

/// About what an instance takes in a message.
pub(crate) fn instance_bytes(instance: &Instance) -> usize {
    // A tag and a length, and its part of the tag and length of an entry.
    const TEXT: usize = 5;
    let (texts, bytes) = instance.spec.texts_and_bytes();
    let reason = instance.overridden.as_ref().map_or(0, |value| value.reason.len());
    let names = key_bytes(&instance.key.service) + instance.key.id.as_str().len();
    // A check has up to one text of its own; its numbers are small.
    const CHECK: usize = 32;
    let checks = instance.checks().into_iter().flat_map(Checks::iter);
    let checks: usize = checks.map(|check| CHECK + check.endpoint.len() + check.text().len()).sum();
    let checks = checks + instance.health_reason().len();
    OVERHEAD_BYTES + TEXT * texts + bytes + names + reason + checks
}

fn key_bytes(key: &ServiceKey) -> usize {
    key.namespace.as_str().len() + key.name.as_str().len()
}
