//! Fetch: answers with services that are encoded already, if they were fetched before
//! (`applied/encoded.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::encoded::v1::EncodedFetchResponse;
use quorate_proto::limits::ANSWER_BYTES;
use quorate_proto::v1::{FetchRequest, Instance, ResponseHeader};
use quorate_state::{InstanceId, Namespace, Registry, Revision, ServiceKey, ServiceName};
use tokio::time::Instant;
use tonic::Response;

use crate::api::grpc::convert;
use crate::api::grpc::door::Call;
use crate::api::grpc::pages::{self, Page};
use crate::api::grpc::{age_ms, header, is_foreign, min_revision};
use crate::applied::hub::{Filter, Selection};
use crate::applied::subscription::{Part, part_of};
use crate::error::CallError;
use crate::net::answers::Reserved;
use crate::node::{Consistency, Node};
use crate::runtime::blocking;

/// Instances that are encoded, or looked at for a page, where calls are handled, at most: about a
/// millisecond's work. More are elsewhere, so that other calls need not wait.
const LARGE: usize = 1_000;

/// Answers a Fetch.
///
/// # Errors
/// A bad request, a read that is not possible now, or an answer that is too large.
pub(super) async fn answer(
    node: &Arc<Node>,
    call: Call<FetchRequest>,
) -> Result<Response<EncodedFetchResponse>, CallError> {
    let Call { message: request, deadline, caller } = call;
    let consistency = convert::consistency(request.consistency)?;
    let filter = convert::fetch_filter(&request)?;
    let after = pages::after(&request.after)?;
    let is_paged = request.limit > 0 || after.is_some();
    let min_revision = min_revision(node, request.min_revision, request.cluster_id);
    let (registry, fresh_at) = node.read(consistency, min_revision, deadline).await?;
    let header = header(node, registry.revision().0, age_ms(fresh_at, consistency));
    let since = Revision(request.not_modified_since);
    let is_ours = !is_foreign(node, request.cluster_id);
    if since > Revision(0) && is_ours && after.is_none() && !registry.forgot_after(since) {
        let revision = |key| registry.service(key).map(|service| service.revision);
        let keys = keys(&registry, &filter, &request.services);
        if !keys.iter().filter_map(revision).any(|revision| revision > since) {
            let unchanged = EncodedFetchResponse { header, not_modified: true, ..<_>::default() };
            return Ok(Response::new(unchanged));
        }
    }
    let mut reserved = node.answers().begin(&caller.line, deadline)?;
    if is_paged {
        let limit = request.limit;
        let (services, next) = match pages::page(&registry, &filter, (limit, LARGE), after.as_ref())
        {
            Some(page) => encode_page(&page),
            None => {
                let long = move || {
                    let page = pages::page(&registry, &filter, (limit, usize::MAX), after.as_ref());
                    encode_page(&page.expect("invariant: it may look at all there is"))
                };
                made(node, usize::MAX, deadline, long).await?
            }
        };
        reserved.add(services.iter().map(Bytes::len).sum())?;
        let page = EncodedFetchResponse { header, services, next, ..<_>::default() };
        let mut response = Response::new(page);
        reserved.attach(response.extensions_mut());
        return Ok(response);
    }
    let keys = keys(&registry, &filter, &request.services);
    let instances = instances_of(&registry, &keys);
    let (services, reserved) = match instances > LARGE {
        false => {
            let services = encode_all(node, &registry, &filter, &keys, &mut reserved)?;
            (services, reserved)
        }
        true => encode_elsewhere(node, registry, filter, keys, reserved, deadline).await?,
    };
    let response = EncodedFetchResponse { header, services, ..<_>::default() };
    let bytes = response.encoded_len();
    if instances > LARGE {
        node.answers().learn(instances, bytes);
    }
    if bytes > ANSWER_BYTES {
        return Err(too_large(bytes));
    }
    let mut response = Response::new(response);
    reserved.attach(response.extensions_mut());
    Ok(response)
}

/// Makes something of so many instances: of many where that holds up no other call.
///
/// # Errors
/// Its turn does not come in time.
pub(super) async fn made<T: Send + 'static>(
    node: &Node,
    instances: usize,
    deadline: Instant,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CallError> {
    if instances <= LARGE {
        return Ok(make());
    }
    let _turn = node.answers().turn(deadline).await?;
    Ok(blocking(make).await?)
}

/// The services of a page, and what it goes on after.
fn encode_page(page: &Page) -> (Vec<Bytes>, String) {
    let encode = |part| Bytes::from(convert::service_to_wire(part).encode_to_vec());
    (page.services.iter().map(encode).collect(), page.next.clone())
}

/// One instance of the one service that a request names, read as consistently as the service would
/// be; `None`: no such instance is registered.
///
/// # Errors
/// A bad request, or a read that is not possible now.
pub(super) async fn instance(
    node: &Arc<Node>,
    call: Call<FetchRequest>,
    id: &str,
) -> Result<Response<(Option<ResponseHeader>, Option<Instance>)>, CallError> {
    let Call { message: request, deadline, .. } = call;
    let consistency = convert::consistency(request.consistency)?;
    let namespace = convert::namespace(&request.namespace)?;
    let service = request.services.first().map_or("", String::as_str);
    let key = convert::service_key(&namespace, service)?;
    let id = InstanceId::new("id", id)?;
    let min_revision = min_revision(node, request.min_revision, request.cluster_id);
    let (registry, fresh_at) = node.read(consistency, min_revision, deadline).await?;
    let header = header(node, registry.revision().0, age_ms(fresh_at, consistency));
    let found = registry.service(&key).and_then(|service| service.instances.get(&id));
    Ok(Response::new((header, found.map(|found| convert::instance_to_wire(found)))))
}

/// What this node has, and of which age.
pub(in crate::api) struct Local {
    pub(in crate::api) registry: Registry,
    /// Of the services that were asked for.
    pub(in crate::api) namespace: Namespace,
    /// The highest number: nobody knows.
    pub(in crate::api) age_ms: u64,
}

/// What this node has, without asking the leader.
///
/// # Errors
/// A bad request, or the node is no member.
pub(super) async fn local(
    node: &Arc<Node>,
    call: Call<FetchRequest>,
) -> Result<Response<Local>, CallError> {
    let Call { message: request, deadline, .. } = call;
    let Filter { namespace, .. } = convert::fetch_filter(&request)?;
    let (registry, fresh_at) = node.read(Consistency::Local, 0, deadline).await?;
    let age_ms = age_ms(fresh_at, Consistency::Local);
    Ok(Response::new(Local { registry, namespace, age_ms }))
}

/// Encodes many services where that holds up no other call.
async fn encode_elsewhere(
    node: &Arc<Node>,
    registry: Registry,
    filter: Filter,
    keys: Vec<ServiceKey>,
    mut reserved: Reserved,
    deadline: Instant,
) -> Result<(Vec<Bytes>, Reserved), CallError> {
    let _turn = node.answers().turn(deadline).await?;
    // Not known before the turn came: what answers take, and how many are under way by now.
    let estimate = node.answers().estimate(instances_of(&registry, &keys));
    match reserved.check(estimate) {
        // It would be refused whatever else is under way: do not let its caller try again.
        Err(_) if estimate > ANSWER_BYTES => return Err(too_large(estimate)),
        checked => checked?,
    }
    let node = node.clone();
    let encode = move || {
        let services = encode_all(&node, &registry, &filter, &keys, &mut reserved)?;
        Ok::<_, CallError>((services, reserved))
    };
    blocking(encode).await?
}

fn too_large(bytes: usize) -> CallError {
    let instead = "use `limit` and read pages, a narrower prefix, or Watch";
    CallError::TooLarge { what: "the answer", bytes, limit: ANSWER_BYTES, instead }
}

fn instances_of(registry: &Registry, keys: &[ServiceKey]) -> usize {
    let services = keys.iter().filter_map(|key| registry.service(key));
    services.map(|service| service.instances.len()).sum()
}

fn encode_all(
    node: &Node,
    registry: &Registry,
    filter: &Filter,
    keys: &[ServiceKey],
    reserved: &mut Reserved,
) -> Result<Vec<Bytes>, CallError> {
    let mut bytes = 0;
    let encode = |key| {
        let encoded = encoded(node, registry, filter, key);
        bytes += encoded.len();
        if bytes > ANSWER_BYTES {
            return Err(too_large(bytes));
        }
        reserved.add(encoded.len()).map(|()| encoded)
    };
    keys.iter().map(encode).collect()
}

/// The services asked for: one for each name, in the order asked, or all with the prefix, by name.
fn keys(registry: &Registry, filter: &Filter, asked: &[String]) -> Vec<ServiceKey> {
    match &filter.selection {
        Selection::Prefix(prefix) => {
            let all = registry.services(&filter.namespace, prefix, None);
            all.map(|(key, _)| key.clone()).collect()
        }
        Selection::Services(names) => {
            let by_name: HashMap<&str, &ServiceName> =
                names.iter().map(|name| (name.as_str(), name)).collect();
            let in_order = asked.iter().filter_map(|name| by_name.get(name.as_str()).copied());
            let namespace = &filter.namespace;
            in_order
                .map(|name| ServiceKey { namespace: namespace.clone(), name: name.clone() })
                .collect()
        }
    }
}

fn encoded(node: &Node, registry: &Registry, filter: &Filter, key: &ServiceKey) -> Bytes {
    let service = registry.service(key);
    let encode = || {
        let part: Part = part_of(key, service, filter);
        Bytes::from(convert::service_to_wire(&part).encode_to_vec())
    };
    match service {
        Some(service) if is_by_name(filter) => {
            node.encoded().get(key, service.revision, registry.bytes(), encode)
        }
        _ => encode(),
    }
}

/// Whether whole services were asked for by name: the same ones are asked for again and again.
fn is_by_name(filter: &Filter) -> bool {
    filter.is_all() && matches!(filter.selection, Selection::Services(_))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_state::{
        Clock, Command, Incarnation, InstanceKey, InstanceSpec, Op, Register, SpecParts,
    };

    use super::*;
    use crate::server::Bound;

    const NOTE_BYTES: usize = 16_000;

    fn key(service: &str) -> ServiceKey {
        let name = ServiceName::new("service", service).unwrap();
        ServiceKey { namespace: Namespace::default(), name }
    }

    /// Registers so many, with a note each.
    fn register(registry: &mut Registry, service: &str, instances: usize) {
        let endpoints = BTreeMap::from([("http".to_owned(), "http://h:1".to_owned())]);
        let metadata = BTreeMap::from([("note".to_owned(), "x".repeat(NOTE_BYTES))]);
        let spec = InstanceSpec::new("spec", SpecParts { endpoints, metadata, ..<_>::default() });
        let (spec, service) = (spec.unwrap(), key(service));
        let key = |at: usize| InstanceKey {
            service: service.clone(),
            id: InstanceId::new("id", &format!("i{at}")).unwrap(),
        };
        let instances = (0..instances).map(|at| (key(at), spec.clone())).collect();
        let incarnation = Some(Incarnation(1));
        let op = Register { lease: None, ttl: None, incarnation, instances, within: None };
        registry.apply(&Command::new(Clock(1), Op::from(op)));
    }

    /// Where the state is small, 16 MiB are.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_a_large_state_more_is_kept_encoded() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::waiting(dir.path()).await;
        let node = bound.node();
        let mut registry = Registry::new();
        register(&mut registry, "fetched", 18 * 1024 * 1024 / NOTE_BYTES);
        register(&mut registry, "other", 20 * 1024 * 1024 / NOTE_BYTES);
        let request = FetchRequest { services: vec!["fetched".to_owned()], ..<_>::default() };
        let (filter, key) = (convert::fetch_filter(&request).unwrap(), key("fetched"));
        let first = encoded(node, &registry, &filter, &key);
        let revision = registry.service(&key).unwrap().revision;
        let again = node.encoded().get(&key, revision, 0, || panic!("encoded again"));
        assert_eq!((first.len(), again.as_ptr()), (again.len(), first.as_ptr()));
        assert!(first.len() > 18 * 1024 * 1024 - NOTE_BYTES);
    }
}
