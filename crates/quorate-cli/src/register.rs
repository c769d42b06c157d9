//! `register`, `deregister`, `update`.

use quorate_client::{
    Client, Gone, InstanceBuilder, Registration, RegistrationHandle, RegistrationState, Update,
};
use serde_json::json;

use crate::args::{ClientArgs, InstanceArgs, InstanceSettings, RegisterArgs, UpdateArgs};
use crate::failure::Failure;
use crate::logging::{self, LogFormat};
use crate::output::{self, Format};
use crate::signals::Stop;

/// Whether a command stays, and so has to learn of members that come and go, or asks only the nodes that were named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    Once,
    Long,
}

/// The client of a command.
pub(crate) async fn client(args: &ClientArgs, stay: Stay) -> Result<Client, Failure> {
    logging::start(logging::CLIENT, LogFormat::Text);
    let builder = Client::builder(args.nodes.iter().cloned())
        .namespace(args.namespace.as_str())
        .call_timeout(args.timeout)
        .in_order(true);
    let builder = match stay {
        Stay::Once => builder.member_refresh(None),
        Stay::Long => builder,
    };
    Ok(builder.connect().await?)
}

pub(crate) async fn register(args: Box<RegisterArgs>) -> Result<(), Failure> {
    // From here on, a signal deregisters what may have been registered.
    let mut stop = Stop::listen()?;
    let client = client(&args.client, Stay::Long).await?;
    let mut registration = registration(&args.service, &args.id, &args.instance);
    if let Some(status) = args.status {
        registration = registration.status(status);
    }
    let handle = client.register(registration).await?;
    let lease = handle.registered().await?;
    let (service, id) = (&args.service, &args.id);
    match args.client.output {
        Format::Json => output::json_line(&json!({
            "event": "registered",
            "namespace": args.client.namespace,
            "service": service,
            "id": id,
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
    if args.once {
        return Ok(());
    }
    output::note("renewing; Ctrl-C deregisters");
    let lost = tokio::select! {
        () = stop.requested() => None,
        lost = superseded(&handle) => Some(lost),
    };
    if let Some(lost) = lost {
        return Err(lost);
    }
    handle.deregister().await?;
    match args.client.output {
        Format::Json => {
            output::json_line(&json!({ "event": "deregistered", "service": service, "id": id }))?
        }
        Format::Table => output::line(&format!("deregistered {service}/{id}"))?,
    }
    Ok(())
}

/// What is to be registered, as the arguments say.
pub(crate) fn registration(service: &str, id: &str, args: &InstanceSettings) -> Registration {
    let mut instance = InstanceBuilder::new(service, id);
    for (name, uri) in &args.endpoints {
        instance = instance.endpoint(name, uri);
    }
    for (key, value) in &args.metadata {
        instance = instance.meta(key, value);
    }
    for service in &args.requires {
        instance = instance.requires(service);
    }
    for check in &args.checks {
        instance = instance.check(check.clone());
    }
    if let Some(zone) = &args.zone {
        instance = instance.zone(zone);
    }
    if let Some(version) = &args.version_tag {
        instance = instance.version(version);
    }
    if let Some(weight) = args.weight {
        instance = instance.weight(weight);
    }
    let registration = Registration::new(instance);
    match args.ttl {
        Some(ttl) => registration.ttl(ttl),
        None => registration,
    }
}

/// Tells how the registration fares, until it is lost for good.
pub(crate) async fn superseded(handle: &RegistrationHandle) -> Failure {
    let mut state = handle.watch_state();
    let mut was_retrying = false;
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            RegistrationState::Gone(Gone::Superseded { current }) => {
                return quorate_client::Error::Superseded { current }.into();
            }
            RegistrationState::Retrying { last_error: Some(error), .. } if !was_retrying => {
                was_retrying = true;
                output::note(&format!("not renewed, going on trying: {error}"));
            }
            RegistrationState::Registered(_) if was_retrying => {
                was_retrying = false;
                output::note("registered and renewed again");
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

/// Says that something was done with an instance.
pub(crate) fn done(
    client: &ClientArgs,
    what: &str,
    service: &str,
    id: &str,
) -> Result<(), Failure> {
    match client.output {
        Format::Json => output::json(&json!({ "done": what, "service": service, "id": id }))?,
        Format::Table => output::line(&format!("{what} {service}/{id}"))?,
    }
    Ok(())
}
