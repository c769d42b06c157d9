//! `register`, `deregister`, `update`.

use quorate_client::{
    Client, Gone, Lease, MemberRole, MemberStatus, RegistrationHandle, RegistrationState, Update,
};
use serde_json::json;

use crate::args::{InstanceArgs, RegisterArgs, UpdateArgs};
use crate::connect::{Stay, client, done};
use crate::failure::Failure;
use crate::instance::InstanceSettings;
use crate::output::{self, Format};
use crate::patience::{told, trying};
use crate::signals::Stop;

pub(crate) async fn register(args: Box<RegisterArgs>) -> Result<(), Failure> {
    // From here on, a signal ends it in words, or with a deregistration.
    let mut stop = Stop::listen()?;
    let client = client(&args.client, Stay::Long).await?;
    let mut registration = args.instance.registration(&args.service, &args.id);
    if let Some(status) = args.status {
        registration = registration.status(status);
    }
    let (service, id) = (&args.service, &args.id);
    let handle = tokio::select! {
        handle = told(trying("register", &args.client), client.register(registration)) => handle?,
        () = stop.requested() => return Err(Failure::failed(format!(
            "interrupted before the registry had answered; if {service}/{id} was registered all the same, it ends with its TTL"
        ))),
    };
    let lease = handle.registered().await?;
    tell_registered(&args, &handle, &lease)?;
    warn_of_checks(&client, &args.instance).await;
    if args.once {
        return Ok(());
    }
    output::note("renewing; Ctrl-C deregisters");
    let lost = tokio::select! {
        () = stop.requested() => None,
        lost = superseded(&handle, |lease| tell_registered(&args, &handle, lease)) => Some(lost),
    };
    if let Some(lost) = lost {
        return Err(lost);
    }
    tokio::select! {
        done = told(trying("deregister", &args.client), handle.deregister()) => done?,
        () = stop.requested() => return Err(Failure::failed(format!(
            "interrupted again: {service}/{id} may not be deregistered; it ends with its TTL"
        ))),
    }
    match args.client.output {
        Format::Json => {
            output::json_line(&json!({ "event": "deregistered", "service": service, "id": id }))?
        }
        Format::Table => output::line(&format!("deregistered {service}/{id}"))?,
    }
    Ok(())
}

/// Warns if health checks are declared that no node makes.
pub(super) async fn warn_of_checks(client: &Client, args: &InstanceSettings) {
    if args.checks.is_empty() {
        return;
    }
    // It is registered: a status that does not come is no reason to fail.
    let Ok(status) = client.admin().status(false).await else { return };
    if let Some(warning) = checks_warning(&status.members) {
        output::note(&warning);
    }
}

fn checks_warning(members: &[MemberStatus]) -> Option<String> {
    let idle = members.iter().filter(|status| status.reachable && !status.health_checks);
    let idle = idle.filter_map(|status| status.member.as_ref());
    let idle = idle.filter(|member| member.role() == MemberRole::Voter);
    let idle: Vec<String> = idle.map(|member| member.id.to_string()).collect();
    if idle.is_empty() {
        return None;
    }
    Some(format!(
        "warning: no health check is made while node {} leads: its operator allows no networks\n  \
         next: start the nodes with --health-checks-allow, or `allow` in [health_checks]",
        idle.join(" or ")
    ))
}

/// Says what was granted.
fn tell_registered(
    args: &RegisterArgs,
    handle: &RegistrationHandle,
    lease: &Lease,
) -> Result<(), Failure> {
    let (service, id) = (&args.service, &args.id);
    match args.client.output {
        Format::Json => output::json_line(&json!({
            "event": "registered",
            "namespace": args.client.namespace(),
            "service": service,
            "id": id,
            "cluster_id": lease.cluster_id.to_string(),
            "lease_id": lease.id,
            "revision": lease.revision,
            "ttl_ms": u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX),
            "incarnation": handle.incarnation(),
        }))?,
        Format::Table => output::line(&format!(
            "registered {service}/{id}: lease {}, revision {}, TTL {:?}",
            lease.id, lease.revision, lease.ttl
        ))?,
    }
    Ok(())
}

/// Reports how the registration fares, until it is lost for good; `granted` gets the lease that
/// another cluster has granted.
pub(super) async fn superseded(
    handle: &RegistrationHandle,
    granted: impl Fn(&Lease) -> Result<(), Failure>,
) -> Failure {
    let mut state = handle.watch_state();
    let mut was_retrying = false;
    let mut cluster_id = None;
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            // What was ended is this very run: no other has the id.
            RegistrationState::Gone(Gone::Superseded { current: Some(current) })
                if current == handle.incarnation() =>
            {
                return Failure::failed(
                    "it was deregistered by somebody else, an operator perhaps\n  next: register again",
                );
            }
            RegistrationState::Gone(Gone::Superseded { current }) => {
                return quorate_client::Error::Superseded { current }.into();
            }
            RegistrationState::Retrying { last_error: Some(error), .. } if !was_retrying => {
                was_retrying = true;
                output::note(&format!("not renewed, going on trying: {error}"));
            }
            RegistrationState::Registered(lease) => {
                let before = cluster_id.replace(lease.cluster_id);
                if before.is_some_and(|before| before != lease.cluster_id) {
                    let is = lease.cluster_id;
                    output::note(&format!("registered again, with another cluster ({is})"));
                    if let Err(failure) = granted(&lease) {
                        return failure;
                    }
                } else if was_retrying {
                    output::note("registered and renewed again");
                }
                was_retrying = false;
            }
            _ => {}
        }
        if state.changed().await.is_err() {
            return Failure::failed("the registration's task has ended");
        }
    }
}

pub(crate) async fn deregister(args: InstanceArgs) -> Result<(), Failure> {
    let client = client(&args.client, Stay::Once).await?;
    client.deregister(&args.service, &args.id).await?;
    done(&args.client, "deregistered", &args.service, &args.id)
}

pub(crate) async fn update(args: UpdateArgs) -> Result<(), Failure> {
    if args.status.is_none() && args.weight.is_none() && args.metadata.is_empty() {
        let needed = "update: nothing to change; give at least one of --status, --weight, --meta";
        return Err(Failure::usage(needed));
    }
    let client = client(&args.client, Stay::Once).await?;
    let mut update = Update::new();
    if let Some(status) = args.status {
        update = update.status(status);
    }
    if let Some(weight) = args.weight {
        update = update.weight(weight);
    }
    if !args.metadata.is_empty() {
        update = update.metadata(args.metadata);
    }
    client.update(&args.service, &args.id, &update).await?;
    done(&args.client, "updated", &args.service, &args.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_client::Member;

    #[test]
    fn checks_that_nobody_makes_are_warned_of() {
        let status = |id, role: MemberRole, health_checks| {
            let member = Some(Member { id, role: role.into(), ..Member::default() });
            MemberStatus { member, reachable: true, health_checks, ..MemberStatus::default() }
        };
        let (voter, learner) = (MemberRole::Voter, MemberRole::Learner);
        let warning = checks_warning(&[status(1, voter, false), status(2, voter, false)]);
        let warning = warning.expect("no node makes any");
        assert!(warning.contains("node 1 or 2 leads") && warning.contains("--health-checks-allow"));
        assert_eq!(checks_warning(&[status(1, voter, true), status(2, learner, false)]), None);
    }
}
