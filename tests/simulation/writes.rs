//! A write as simulated clients make it: under one name, attempt by attempt, each noted down.

use std::time::Duration;

use quorate_proto::requests::{OpenWrite, Origin};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    DeregisterRequest, InstanceOverride, InstanceRef, InstanceSpec, InstanceStatus, LeaseRenewal,
    RegisterRequest, RenewRequest, RequestId, ResponseHeader, SetOverrideRequest, UpdateRequest,
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::history::{Answer, Ask, Call, now};
use super::net::again;
use super::nodes::Nodes;
use super::plan::{CALM, HEALED, Ms};

/// How long a client waits for an answer, by its own clock and by the deadline that the node gets.
const PATIENCE: Duration = Duration::from_millis(1_200);

/// A write that is tried until its fate is known.
pub(crate) struct Write {
    open: OpenWrite,
    from: Ms,
}

impl Write {
    pub(crate) fn begin(origin: &Origin) -> Self {
        Self { open: origin.begin(), from: now() }
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(RequestId {
            origin: self.open.origin(),
            number: self.open.number(),
            done_below: self.open.done_below(),
            age_ms: now() - self.from,
        })
    }
}

/// One attempt at one node; the next one is turned to when it is not known what came of it.
pub(crate) async fn attempt(nodes: &mut Nodes, key: &str, ask: Ask, write: &Write) -> Answer {
    let from = write.from;
    if now() >= HEALED {
        nodes.leave_removed();
    }
    let (node, sent) = (nodes.node(), now());
    let call = again(async || send(nodes.channel(), key, &ask, write).await);
    let answer = match timeout(PATIENCE, call).await {
        Ok(Ok((header, lease))) => {
            nodes.notes().borrow_mut().cluster(header.cluster_id, node);
            Answer::Done { revision: header.revision, lease }
        }
        Ok(Err(status)) => match status.code() {
            code @ (Code::NotFound | Code::FailedPrecondition) => Answer::Refused(code),
            code => {
                let what = format!("{key}: {ask:?}");
                nodes.notes().borrow_mut().failed(node, &what, &status);
                Answer::Unknown(code)
            }
        },
        Err(_elapsed) => Answer::Unknown(Code::DeadlineExceeded),
    };
    if let Answer::Unknown(code) = &answer {
        nodes.next();
        if from >= CALM {
            let line = format!("{from} ms: {key} at node {node}: {ask:?}: {code:?}");
            nodes.notes().borrow_mut().late_failures.push(line);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let (key, to) = (key.to_owned(), now());
    let name = (write.open.origin(), write.open.number());
    let mut notes = nodes.notes().borrow_mut();
    notes.note(format!("{key} at n{node} since {from}: {ask:?} -> {answer:?}"));
    notes.calls.push(Call { name, key, node, from, sent, to, ask, answer: answer.clone() });
    answer
}

/// The answer's header, and the lease of a registration.
async fn send(
    channel: Channel,
    key: &str,
    ask: &Ask,
    write: &Write,
) -> Result<(ResponseHeader, u64), Status> {
    let (service, id) = key.split_once('/').expect("service/id");
    let (service, id) = (service.to_owned(), id.to_owned());
    let (mut registry, mut admin) =
        (RegistryClient::new(channel.clone()), AdminClient::new(channel));
    let request_id = write.request_id();
    let (header, lease) = match ask.clone() {
        Ask::Register { incarnation, ttl_ms } => {
            let spec = InstanceSpec {
                service,
                id,
                endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
                ..InstanceSpec::default()
            };
            let instances = vec![spec];
            let request =
                RegisterRequest { instances, ttl_ms, incarnation, request_id, ..<_>::default() };
            let answer = registry.register(timed(request)).await?.into_inner();
            (answer.header, answer.lease_id)
        }
        Ask::Renew { lease } => {
            let renewals = vec![LeaseRenewal { lease_id: lease }];
            let request = RenewRequest { renewals, ..<_>::default() };
            (registry.renew(timed(request)).await?.into_inner().header, lease)
        }
        Ask::Update { incarnation, weight } => {
            let instance = Some(InstanceRef { service, id, incarnation });
            let weight = Some(weight);
            let request = UpdateRequest { instance, weight, request_id, ..<_>::default() };
            (registry.update(timed(request)).await?.into_inner().header, 0)
        }
        Ask::Deregister { incarnation } => {
            let instances = vec![InstanceRef { service, id, incarnation }];
            let request = DeregisterRequest { instances, request_id, ..<_>::default() };
            (registry.deregister(timed(request)).await?.into_inner().header, 0)
        }
        Ask::Override { reason } => {
            let status = InstanceStatus::OutOfService.into();
            let r#override =
                reason.map(|reason| InstanceOverride { status, reason, ..<_>::default() });
            let request =
                SetOverrideRequest { service, id, r#override, request_id, ..<_>::default() };
            (admin.set_override(timed(request)).await?.into_inner().header, 0)
        }
    };
    Ok((header.unwrap_or_default(), lease))
}

/// With the deadline that the node gets: a little less than the process's own.
pub(crate) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE - Duration::from_millis(200));
    request
}
