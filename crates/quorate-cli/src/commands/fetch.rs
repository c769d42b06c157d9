//! `fetch`, `services`, `dependents`: what is read once.

use quorate_client::{
    Error, FetchOptions, Instance, InstanceOverride, ResponseHeader, Selection, Service,
};
use serde_json::json;

use crate::args::{DependentsArgs, FetchArgs, ServicesArgs};
use crate::commands::endpoints;
use crate::connect::{Stay, client};
use crate::failure::{FAILED, Failure};
use crate::instance;
use crate::json;
use crate::output::{self, Format, Table};

pub(crate) async fn fetch(args: FetchArgs) -> Result<(), Failure> {
    let client = client(&args.client, Stay::Once).await?;
    let selection = args.wanted.of(Selection::services(args.services.clone()));
    let options = FetchOptions::new(selection)
        .consistency(args.consistency.into())
        .min_revision(args.min_revision);
    let fetched = client.fetch_with(&options).await?;
    let services = fetched.services.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json(&json!({
            "header": json::header(&fetched.header),
            "mixed_until": fetched.mixed_until,
            "services": services.iter().map(json::service).collect::<Vec<_>>(),
        }))?,
        Format::Table => print(&fetched.header, fetched.mixed_until, &services)?,
    }
    // After the output: the other services are worth having.
    let is_empty = services.iter().any(|service| service.instances.is_empty());
    match services.into_iter().find(|service| !service.known) {
        Some(unknown) => Err(Error::UnknownService { service: unknown.name }.into()),
        None if args.exit_code && is_empty => Err(Failure::of_program(FAILED)),
        None => Ok(()),
    }
}

fn print(
    header: &ResponseHeader,
    mixed_until: Option<u64>,
    services: &[Service],
) -> Result<(), Failure> {
    for service in services.iter().filter(|service| service.known) {
        let count = service.instances.len();
        output::line(&format!(
            "{}: {count} instance{}, changed at revision {}",
            service.name,
            if count == 1 { "" } else { "s" },
            service.revision
        ))?;
        if count > 0 {
            instances(&service.instances).print()?;
        }
        for instance in &service.instances {
            if !instance.health_reason.is_empty() {
                output::line(&format!(
                    "! {} is CRITICAL: {}",
                    instance.id,
                    output::one_line(&instance.health_reason)
                ))?;
            }
            if let Some(decision) = &instance.r#override {
                output::line(&format!("* {} is overridden{}", instance.id, why(decision)))?;
            }
        }
        output::line("")?;
    }
    output::line(&format!("revision {}, {}", header.revision, age(header)))?;
    if let Some(until) = mixed_until {
        output::line(&format!(
            "not one view: it was read in pages and changed meanwhile, up to revision {until}"
        ))?;
    }
    Ok(())
}

fn why(decision: &InstanceOverride) -> String {
    let reason = output::one_line(&decision.reason);
    if reason.is_empty() { reason } else { format!(": {reason}") }
}

/// How old the answer may be, in words.
fn age(header: &ResponseHeader) -> String {
    match header.age_ms {
        0 => "current".to_owned(),
        u64::MAX => {
            format!("of unknown age: node {} has not heard from a leader yet", header.node_id)
        }
        ms => format!("as node {} knew it up to {ms} ms ago", header.node_id),
    }
}

fn instances(instances: &[Instance]) -> Table {
    let heading = ["ID", "STATUS", "HEALTH", "WEIGHT", "ZONE", "VERSION", "ENDPOINTS"];
    let mut table = Table::new(heading);
    for instance in instances {
        let mark = if instance.r#override.is_some() { "*" } else { "" };
        table.row([
            instance.id.clone(),
            format!("{}{mark}", json::status(instance.status())),
            json::health(instance).to_owned(),
            instance.weight.to_string(),
            instance.zone.clone(),
            instance.version.clone(),
            endpoints(instance).join("\n"),
        ]);
    }
    table.hide_if_empty("HEALTH");
    table
}

pub(crate) async fn services(args: ServicesArgs) -> Result<(), Failure> {
    let client = client(&args.client, Stay::Once).await?;
    let services = client.list_services(&args.prefix, args.consistency.into()).await?;
    match args.client.output {
        Format::Json => {
            let services: Vec<_> = services.iter().map(json::summary).collect();
            output::json(&json!({ "services": services }))?;
        }
        Format::Table if services.is_empty() => {
            let namespace = args.client.namespace();
            output::line(&format!("no service in namespace {namespace}"))?;
        }
        Format::Table => {
            let mut table = Table::new(["SERVICE", "USABLE", "UP", "INSTANCES", "REVISION"]);
            for service in services {
                table.row([
                    service.name,
                    service.usable.to_string(),
                    service.up.to_string(),
                    service.instances.to_string(),
                    service.revision.to_string(),
                ]);
            }
            table.print()?;
        }
    }
    Ok(())
}

pub(crate) async fn dependents(args: DependentsArgs) -> Result<(), Failure> {
    let client = client(&args.client, Stay::Once).await?;
    let dependents = client.dependents(&args.service).await?;
    match args.client.output {
        Format::Json => {
            let dependents: Vec<_> = dependents.iter().map(instance::json).collect();
            output::json(&json!({ "service": args.service, "dependents": dependents }))?;
        }
        Format::Table if dependents.is_empty() => {
            output::line(&format!("no registered instance requires {}", args.service))?;
        }
        Format::Table => {
            let mut table = Table::new(["SERVICE", "ID", "STATUS", "ENDPOINTS"]);
            for instance in dependents {
                let endpoints = endpoints(&instance).join("\n");
                let status = json::status(instance.status()).to_owned();
                table.row([instance.service, instance.id, status, endpoints]);
            }
            table.print()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_an_answer_is_told() {
        let told = |age_ms| age(&ResponseHeader { node_id: 2, age_ms, ..Default::default() });
        assert_eq!(told(0), "current");
        assert_eq!(told(1_500), "as node 2 knew it up to 1500 ms ago");
        assert!(told(u64::MAX).contains("unknown age"));
    }
}
