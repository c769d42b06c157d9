//! Operators' overrides: set, cleared, listed.

use quorate_client::{
    FetchOptions, InstanceOverride, InstanceStatus, OverriddenInstance, Selection, Service,
};
use serde_json::json;

use super::admin;
use crate::args::{ClientArgs, OverrideArgs};
use crate::connect::{Stay, client, done};
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Format, Table};

pub(super) async fn set(args: OverrideArgs) -> Result<(), Failure> {
    if args.status.is_none() && args.weight.is_none() && !args.clear {
        let needed = "override: nothing to override; give one of --status, --weight, --clear";
        return Err(Failure::usage(needed));
    }
    let client = client(&args.client, Stay::Once).await?;
    let admin = client.admin();
    if args.clear {
        admin.clear_override(&args.service, &args.id).await?;
        return done(&args.client, "cleared the override of", &args.service, &args.id);
    }
    let decision = InstanceOverride {
        status: args.status.unwrap_or(InstanceStatus::Unspecified) as i32,
        weight: args.weight,
        reason: args.reason,
    };
    admin.set_override(&args.service, &args.id, decision).await?;
    done(&args.client, "overrode", &args.service, &args.id)?;
    let read = client.fetch_with(&FetchOptions::new(Selection::service(&args.service))).await;
    let services = read.ok().and_then(|read| read.services);
    let is_there = |services: Vec<Service>| {
        services.iter().flat_map(|service| &service.instances).any(|found| found.id == args.id)
    };
    if services.is_some_and(|services| !is_there(services)) {
        output::note(&format!(
            "warning: {}/{} is not registered; the override is kept for when it is\n  next: `quorate cluster overrides` lists them, --clear takes one back",
            args.service, args.id
        ));
    }
    Ok(())
}

pub(super) async fn list(args: &ClientArgs) -> Result<(), Failure> {
    let found = admin(args).await?.overrides().await?;
    match args.output {
        Format::Json => {
            let found: Vec<_> = found.iter().map(json::overridden).collect();
            output::json(&json!({ "namespace": args.namespace(), "overrides": found }))?;
        }
        Format::Table if found.is_empty() => {
            output::line(&format!("no override in namespace {}", args.namespace()))?;
        }
        Format::Table => {
            let mut table =
                Table::new(["SERVICE", "ID", "REGISTERED", "STATUS", "WEIGHT", "REASON"]);
            for OverriddenInstance { service, id, r#override, registered } in found {
                let decision = r#override.unwrap_or_default();
                let status = match decision.status() {
                    InstanceStatus::Unspecified => "-",
                    status => json::status(status),
                };
                table.row([
                    service,
                    id,
                    if registered { "yes" } else { "no" }.to_owned(),
                    status.to_owned(),
                    decision.weight.map_or("-".to_owned(), |weight| weight.to_string()),
                    decision.reason,
                ]);
            }
            table.print()?;
        }
    }
    Ok(())
}
