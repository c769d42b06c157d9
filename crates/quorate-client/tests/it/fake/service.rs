//! The fake's answers: an honest registry in a few lines, unless the mode says otherwise.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use quorate_proto::v1::registry_server::Registry;
use quorate_proto::v1::*;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::page::page;
use super::{Mode, Shared, State, Tells, WATCH_QUEUE, locked};

#[derive(Clone)]
pub(super) struct Node {
    pub(super) state: Shared,
    pub(super) mode: Arc<Mutex<Mode>>,
    pub(super) number: usize,
}

/// A call or stream without the token that is wanted is not taken.
fn authenticate<T>(state: &Shared, request: &Request<T>) -> Result<(), Status> {
    let mut state = locked(state);
    let Some(wanted) = state.wanted_token else { return Ok(()) };
    let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if given.and_then(|given| given.strip_prefix("Bearer ")) == Some(wanted) {
        return Ok(());
    }
    *state.calls.entry("unauthenticated").or_default() += 1;
    Err(Status::unauthenticated("the token is not known, or has run out"))
}

/// Whom a node names.
fn leader_of(mode: Mode) -> u64 {
    u64::from(mode != Mode::Leaderless)
}

impl Node {
    fn mode(&self) -> Result<Mode, Status> {
        let mode = *self.mode.lock().unwrap();
        if mode != Mode::Stranger {
            return Ok(mode);
        }
        let mut status = Status::unauthenticated("the token is not known here");
        let is = format!("{:016x}", locked(&self.state).cluster_id);
        status.metadata_mut().insert("quorate-cluster-id", is.parse().unwrap());
        Err(status)
    }

    /// What every call does first and last.
    async fn serve<Req, Res>(
        &self,
        name: &'static str,
        request: Request<Req>,
        serve: impl FnOnce(&mut State, ResponseHeader, Req) -> Result<Res, Status>,
    ) -> Result<Response<Res>, Status> {
        let mode = self.mode()?;
        if name != "renew" {
            authenticate(&self.state, &request)?;
        }
        {
            let mut state = locked(&self.state);
            *state.calls.entry(name).or_default() += 1;
            if !request.metadata().contains_key("grpc-timeout") {
                state.without_deadline.push(name);
            }
        }
        match mode {
            Mode::NoRoom if name == "register" => {
                return Err(Status::resource_exhausted("the disk is nearly full"));
            }
            Mode::Deaf if name == "renew" => {}
            Mode::Honest
            | Mode::Leaderless
            | Mode::SwallowAnswers
            | Mode::NoRoom
            | Mode::Stranger => {}
            Mode::Slow(time) => tokio::time::sleep(time).await,
            Mode::Hang | Mode::Deaf => std::future::pending().await,
            Mode::Unavailable => return Err(Status::unavailable("no leader")),
            Mode::Broken => return Err(Status::internal("the disk is failing")),
            Mode::Refusing => return Err(Status::permission_denied("not for you")),
            Mode::Overloaded | Mode::Full => {
                let mut status = Status::resource_exhausted("too many calls wait");
                let after = locked(&self.state).retry_after.as_millis() as u64;
                status.metadata_mut().insert("retry-after-ms", after.into());
                if mode == Mode::Full {
                    status.metadata_mut().insert("try-elsewhere", "1".parse().unwrap());
                }
                return Err(status);
            }
        }
        let answer = {
            let mut state = locked(&self.state);
            let header = ResponseHeader {
                cluster_id: state.cluster_id,
                node_id: self.number as u64 + 1,
                leader_id: leader_of(mode),
                leader_address: state.leader_address.clone(),
                members_as_of: match name == "list members"
                    || state.tells_of_members == Tells::Answers
                {
                    true => state.members_as_of,
                    false => 0,
                },
                ..ResponseHeader::default()
            };
            serve(&mut state, header, request.into_inner())
        };
        if mode == Mode::SwallowAnswers {
            std::future::pending().await
        }
        answer.map(Response::new)
    }
}

impl Node {
    /// One message of a stream of renewals. It has no deadline of its own.
    async fn renew_some(&self, request: RenewRequest) -> Result<RenewResponse, Status> {
        let mut timed = Request::new(request);
        timed.set_timeout(std::time::Duration::from_secs(1));
        let answer = self.serve("renew", timed, |state, mut header, request| {
            header.revision = state.revision;
            let all: Vec<u64> = request.renewals.iter().map(|renewal| renewal.lease_id).collect();
            if request.cluster_id != 0 && request.cluster_id != state.cluster_id {
                return Ok(renewed(header, all));
            }
            *state.calls.entry("renewed leases").or_default() += all.len();
            for id in &all {
                let now = std::time::Instant::now();
                state.renewals.entry(*id).or_default().push((self.number, now));
            }
            let unknown_lease_ids =
                all.into_iter().filter(|id| !state.leases.contains_key(id)).collect();
            Ok(renewed(header, unknown_lease_ids))
        });
        Ok(answer.await?.into_inner())
    }
}

fn renewed(header: ResponseHeader, unknown_lease_ids: Vec<u64>) -> RenewResponse {
    RenewResponse { header: Some(header), unknown_lease_ids, news: false }
}

fn newer(current: u64) -> Status {
    let mut status = Status::failed_precondition("a newer run holds it");
    status.metadata_mut().insert("quorate-incarnation", current.into());
    status
}

fn check_instances(instances: &[InstanceSpec]) -> Result<(), Status> {
    if instances.iter().any(|instance| instance.endpoints.is_empty()) {
        return Err(Status::invalid_argument("endpoints: 0 given, 1 to 32 allowed"));
    }
    if instances.iter().any(|instance| instance.load > 1_000_000) {
        return Err(Status::invalid_argument("load: at most 1000000"));
    }
    Ok(())
}

#[tonic::async_trait]
impl Registry for Node {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.serve("register", request, |state, mut header, request| {
            state.registered_at.push(std::time::Instant::now());
            check_instances(&request.instances)?;
            let named = request.incarnation;
            if let Some(max) = state.incarnation_max.filter(|max| named > *max) {
                state.refused_incarnations += 1;
                let said = format!("incarnation = {named}: must be at most {max}");
                return Err(Status::invalid_argument(said));
            }
            let key = |spec: &InstanceSpec| (spec.service.clone(), spec.id.clone());
            let mut lease = None;
            for spec in &request.instances {
                match state.instances.get(&key(spec)) {
                    Some(held) if held.incarnation > request.incarnation => {
                        return Err(newer(held.incarnation));
                    }
                    Some(held) if held.incarnation == request.incarnation => {
                        lease = lease.or(Some(held.lease_id));
                    }
                    _ => {}
                }
                if let Some(ended) = state.ended.get(&key(spec))
                    && *ended >= request.incarnation
                {
                    return Err(newer(*ended));
                }
            }
            let lease_id = lease.unwrap_or_else(|| {
                state.last_lease += 1;
                state.last_lease
            });
            for spec in request.instances {
                let key = key(&spec);
                if let Some(old) = state.instances.get(&key).map(|held| held.lease_id)
                    && old != lease_id
                {
                    state.leases.remove(&old);
                }
                let keys = state.leases.entry(lease_id).or_default();
                if !keys.contains(&key) {
                    keys.push(key);
                }
                state.put(Instance {
                    service: spec.service,
                    id: spec.id,
                    endpoints: spec.endpoints,
                    weight: spec.weight.unwrap_or(100),
                    status: if spec.status == 0 { 2 } else { spec.status },
                    metadata: spec.metadata,
                    load: spec.load,
                    incarnation: request.incarnation,
                    lease_id,
                    ..Instance::default()
                });
            }
            header.revision = state.revision;
            let ttl_ms = if request.ttl_ms == 0 { state.granted_ttl_ms } else { request.ttl_ms };
            let (header, incarnation) = (Some(header), request.incarnation);
            Ok(RegisterResponse { header, lease_id, ttl_ms, incarnation })
        })
        .await
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        self.serve("renew", request, |state, mut header, request| {
            header.revision = state.revision;
            let all = request.renewals.iter().map(|renewal| renewal.lease_id);
            let unknown_lease_ids: Vec<u64> =
                all.filter(|id| !state.leases.contains_key(id)).collect();
            if unknown_lease_ids.len() == request.renewals.len() {
                return Err(Status::not_found("unknown lease"));
            }
            Ok(renewed(header, unknown_lease_ids))
        })
        .await
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        self.serve("deregister", request, |state, mut header, request| {
            let mut removed = state.end_lease(request.lease_id);
            state.check_ended(&request)?;
            for target in request.instances {
                let key = (target.service, target.id);
                if let Some(held) = state.instances.get(&key)
                    && target.incarnation != 0
                    && held.incarnation > target.incarnation
                {
                    return Err(newer(held.incarnation));
                }
                let held = state.instances.get(&key).map(|held| (held.incarnation, held.lease_id));
                let (incarnation, lease_id) = held.unwrap_or((target.incarnation, 0));
                state.ended.insert(key.clone(), incarnation);
                state.leases.remove(&lease_id);
                removed += u32::from(state.remove(&key, RemoveReason::Deregistered));
            }
            if removed == 0 {
                return Err(Status::not_found("no such instance"));
            }
            header.revision = state.revision;
            *state.calls.entry("deregister done").or_default() += 1;
            Ok(DeregisterResponse { header: Some(header), removed })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        self.serve("update", request, |_, header, _| Ok(UpdateResponse { header: Some(header) }))
            .await
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        self.serve("fetch", request, |state, mut header, request| {
            header.revision = state.revision;
            let is_ours = [0, state.cluster_id].contains(&request.cluster_id);
            if is_ours && request.min_revision > state.revision {
                state.behind += 1;
                return Err(Status::unavailable("it has not applied min_revision"));
            }
            if state.page_of > 0 {
                return page(state, header, &request);
            }
            let service = |name: &String| {
                let all = state.instances.values().filter(|instance| instance.service == *name);
                let known = all.clone().next().is_some();
                let passes = |instance: &&Instance| {
                    request.statuses.is_empty() || request.statuses.contains(&instance.status)
                };
                let instances = all.filter(passes).cloned().collect();
                Service {
                    name: name.clone(),
                    known,
                    instances,
                    revision: state.revision,
                    ..Service::default()
                }
            };
            let services = request.services.iter().map(service).collect();
            let not_modified = is_ours
                && request.not_modified_since > 0
                && request.not_modified_since >= state.revision;
            let services = if not_modified { Vec::new() } else { services };
            Ok(FetchResponse { header: Some(header), not_modified, services, ..Default::default() })
        })
        .await
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        self.serve("list services", request, |state, header, request| {
            let mut names: Vec<&String> = state.instances.keys().map(|(name, _)| name).collect();
            names.dedup();
            let later: Vec<_> = names.into_iter().filter(|name| **name > request.after).collect();
            // Pages of two.
            let summary =
                |name: &&String| ServiceSummary { name: (*name).clone(), ..Default::default() };
            let services: Vec<_> = later.iter().take(2).map(summary).collect();
            let more = later.len() > 2;
            let next = services.last().filter(|_| more).map_or(String::new(), |s| s.name.clone());
            Ok(ListServicesResponse { header: Some(header), services, next })
        })
        .await
    }

    async fn list_dependents(
        &self,
        request: Request<ListDependentsRequest>,
    ) -> Result<Response<ListDependentsResponse>, Status> {
        self.serve("list dependents", request, |state, header, request| {
            let after = request.after.split_once('/');
            let later = state.instances.iter().filter(|((service, id), instance)| {
                let is_later = after.is_none_or(|after| (service.as_str(), id.as_str()) > after);
                is_later && instance.requires.contains(&request.service)
            });
            // Pages of two.
            let (later, mut next) = (later.map(|(_, it)| it.clone()), String::new());
            let mut instances: Vec<_> = later.take(3).collect();
            if instances.len() == 3 {
                instances.truncate(2);
                next = format!("{}/{}", instances[1].service, instances[1].id);
            }
            Ok(ListDependentsResponse { header: Some(header), instances, next })
        })
        .await
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        self.serve("list members", request, |state, header, _| {
            let members = state.members.iter().map(|client_address| Member {
                client_address: client_address.clone(),
                ..Member::default()
            });
            Ok(ListMembersResponse { header: Some(header), members: members.collect() })
        })
        .await
    }

    type RenewStreamStream = Pin<Box<dyn Stream<Item = Result<RenewResponse, Status>> + Send>>;

    async fn renew_stream(
        &self,
        request: Request<Streaming<RenewRequest>>,
    ) -> Result<Response<Self::RenewStreamStream>, Status> {
        self.mode()?;
        authenticate(&self.state, &request)?;
        let token = request.metadata().get("authorization").cloned();
        {
            let mut state = locked(&self.state);
            *state.calls.entry("renew stream").or_default() += 1;
            state.streams_at.push(std::time::Instant::now());
        }
        let node = self.clone();
        let (news, told) = tokio::sync::mpsc::channel(WATCH_QUEUE);
        let mut news = Some(news);
        let answers = request.into_inner().then(move |request| {
            if request.as_ref().is_ok_and(|request| request.with_news) {
                locked(&node.state).news.extend(news.take());
            }
            let (node, mut judged) = (node.clone(), Request::new(()));
            token.iter().for_each(|token| {
                judged.metadata_mut().insert("authorization", token.clone());
            });
            async move {
                authenticate(&node.state, &judged)?;
                node.renew_some(request?).await
            }
        });
        Ok(Response::new(Box::pin(answers.merge(ReceiverStream::new(told)))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mode = self.mode()?;
        authenticate(&self.state, &request)?;
        *locked(&self.state).calls.entry("watch").or_default() += 1;
        let mut requests = request.into_inner();
        let first = requests.next().await;
        let Some(Ok(WatchRequest { kind: Some(watch_request::Kind::Subscribe(subscribe)) })) =
            first
        else {
            return Err(Status::invalid_argument("the first message is to subscribe"));
        };
        match mode {
            Mode::Hang | Mode::Deaf | Mode::SwallowAnswers => std::future::pending().await,
            Mode::Unavailable => return Err(Status::unavailable("stopping")),
            Mode::Broken | Mode::Overloaded | Mode::Full => return Err(Status::internal("broken")),
            Mode::Refusing => return Err(Status::permission_denied("not for you")),
            Mode::Slow(time) => tokio::time::sleep(time).await,
            Mode::Honest | Mode::Leaderless | Mode::NoRoom | Mode::Stranger => {}
        }
        if subscribe.services.iter().any(String::is_empty) {
            return Err(Status::invalid_argument("services: \"\": 1 to 253 bytes"));
        }
        let (last, ours) = {
            let state = locked(&self.state);
            if subscribe.services.iter().any(|name| state.denied.contains(&name.as_str())) {
                return Err(Status::permission_denied("not for you"));
            }
            (state.revision, [0, state.cluster_id].contains(&subscribe.cluster_id))
        };
        if ours && subscribe.from_revision > last + 1_000_000 {
            return Err(Status::out_of_range("from_revision is beyond what there is"));
        }
        let (messages, mut silence) = {
            let mut state = locked(&self.state);
            let messages = state.subscribe(self.number, &subscribe, leader_of(mode));
            (messages, Some(state.first_word_after).filter(|time| !time.is_zero()))
        };
        let messages = ReceiverStream::new(messages).then(move |message| {
            let silence = silence.take();
            async move {
                if let Some(time) = silence {
                    tokio::time::sleep(time).await;
                }
                message
            }
        });
        let state = self.state.clone();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if let Some(watch_request::Kind::Ack(ack)) = request.kind {
                    locked(&state).acks.push(ack.revision);
                }
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }
}
