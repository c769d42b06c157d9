//! `watch`: one line for each change, until Ctrl-C.

use std::time::Duration;

use quorate_client::{Error, Instance, Selection, Watch, WatchEvent, WatchStatus};
use serde_json::{Value, json};

use crate::args::WatchArgs;
use crate::commands::endpoints;
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::instance;
use crate::json;
use crate::output::{self, Format};
use crate::patience::{told, trying};
use crate::signals::Stop;

/// What happens while a command watches.
enum Happening {
    Event(Option<WatchEvent>),
    Status,
    Stop,
}

pub(crate) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let client = client(&args.client, Stay::Long).await?;
    let selection = match &args.prefix {
        Some(prefix) => Selection::prefix(prefix),
        None => Selection::services(args.services.clone()),
    };
    let mut watch = client.watch(args.wanted.of(selection));
    tokio::select! {
        begun = told(trying("watch", &args.client), begin(&watch, args.client.timeout)) => begun?,
        () = stop.requested() => return Ok(()),
    }
    let mut status = watch.watch_status();
    let mut interrupted = false;
    loop {
        let happening = tokio::select! {
            event = watch.next() => Happening::Event(event),
            Ok(()) = status.changed() => Happening::Status,
            () = stop.requested() => Happening::Stop,
        };
        match happening {
            Happening::Event(Some(event)) => print(&event, args.client.output)?,
            Happening::Event(None) => return Err(refused(&watch)),
            Happening::Status => tell(&status.borrow_and_update(), &mut interrupted),
            Happening::Stop => return Ok(()),
        }
    }
}

/// Waits for the first snapshot: a cluster that cannot be reached at all is an error here, later on
/// it is not.
async fn begin(watch: &Watch, within: Duration) -> Result<(), Failure> {
    let synced = tokio::select! {
        synced = tokio::time::timeout(within, watch.synced()) => synced,
        error = unauthenticated(watch) => return Err(error.into()),
    };
    match synced {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => match watch.status() {
            WatchStatus::Interrupted { last_error, .. } => Err(last_error.into()),
            _ => Err(Failure::unreachable(format!(
                "watch: no snapshot within {within:?}\n  next: check `quorate cluster status`"
            ))),
        },
    }
}

/// Waits until a node has refused the token or certificate. The client goes on with it, for there
/// may be another one later; an operator who has just typed the command wants to hear of it.
async fn unauthenticated(watch: &Watch) -> Error {
    let mut status = watch.watch_status();
    loop {
        if let WatchStatus::Interrupted { last_error: error @ Error::Rejected { .. }, .. } =
            &*status.borrow_and_update()
        {
            return error.clone();
        }
        if status.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

fn refused(watch: &Watch) -> Failure {
    match watch.status() {
        WatchStatus::Refused { error } => error.into(),
        _ => Failure::failed("the watch has ended"),
    }
}

/// Reports on stderr when the watch is interrupted, and when it goes on.
fn tell(status: &WatchStatus, interrupted: &mut bool) {
    match status {
        WatchStatus::Interrupted { last_error, .. } if !*interrupted => {
            *interrupted = true;
            output::note(&format!("interrupted, going on elsewhere: {last_error}"));
        }
        WatchStatus::Following { address, has_leader: true } if *interrupted => {
            *interrupted = false;
            output::note(&format!("following again, on {address}"));
        }
        WatchStatus::Following { address, has_leader: false } if !*interrupted => {
            *interrupted = true;
            output::note(&format!("{address} has no leader: nothing new until there is one"));
        }
        _ => {}
    }
}

fn print(event: &WatchEvent, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json_line(&to_json(event))?,
        Format::Table => output::line(&to_text(event))?,
    }
    Ok(())
}

fn to_json(event: &WatchEvent) -> Value {
    match event {
        WatchEvent::Snapshot(view) => json!({
            "event": "snapshot",
            "revision": view.revision(),
            "instances": view.iter().map(|instance| instance::json(instance)).collect::<Vec<_>>(),
        }),
        WatchEvent::Reset { cluster_id, revision } => json!({
            "event": "reset",
            "cluster_id": cluster_id.to_string(),
            "revision": revision,
        }),
        WatchEvent::Added(instance) => json!({
            "event": "added",
            "revision": instance.modify_revision,
            "instance": instance::json(instance),
        }),
        WatchEvent::Modified(instance) => json!({
            "event": "modified",
            "revision": instance.modify_revision,
            "instance": instance::json(instance),
        }),
        WatchEvent::Removed { instance, reason, revision } => json!({
            "event": "removed",
            "revision": revision,
            "reason": json::reason(*reason),
            "instance": instance::json(instance),
        }),
        other => json!({ "event": format!("{other:?}") }),
    }
}

fn to_text(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Snapshot(view) => {
            let mut text = format!("revision {}: {} to begin with", view.revision(), view.len());
            for instance in view.iter() {
                text.push_str(&format!("\n= {}", in_line(instance)));
            }
            text
        }
        WatchEvent::Reset { cluster_id, revision } => format!(
            "reset: another cluster answers ({cluster_id}, revision {revision}); what differs follows"
        ),
        WatchEvent::Added(instance) => format!("+ {}", in_line(instance)),
        WatchEvent::Modified(instance) => format!("~ {}", in_line(instance)),
        WatchEvent::Removed { instance, reason, .. } => {
            format!("- {}/{} {}", instance.service, instance.id, json::reason(*reason))
        }
        other => format!("? {other:?}"),
    }
}

fn in_line(instance: &Instance) -> String {
    let (service, id) = (&instance.service, &instance.id);
    let status = json::status(instance.status());
    let health = json::health(instance);
    let health = if health.is_empty() { String::new() } else { format!(" {health}") };
    let endpoints = endpoints(instance).join(" ");
    let weight = instance.weight;
    let mut text = format!("{service}/{id} {status}{health} weight {weight} {endpoints}");
    if !instance.health_reason.is_empty() {
        text.push_str(&format!(" ({})", instance.health_reason));
    }
    output::one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_client::{Health, RemoveReason};
    use std::sync::Arc;

    fn instance() -> Arc<Instance> {
        Arc::new(Instance {
            service: "orders".to_owned(),
            id: "orders-1".to_owned(),
            endpoints: [("http".to_owned(), "http://h:1".to_owned())].into(),
            status: 2,
            weight: 100,
            modify_revision: 7,
            ..Instance::default()
        })
    }

    #[test]
    fn events_are_one_line_each() {
        let added = WatchEvent::Added(instance());
        assert_eq!(to_text(&added), "+ orders/orders-1 UP weight 100 http=http://h:1");
        let mut critical = (*instance()).clone();
        critical.set_health(Health::Critical);
        critical.health_reason = "http://h:1/: HTTP status 503".to_owned();
        let changed = to_text(&WatchEvent::Modified(critical.into()));
        assert_eq!(
            changed,
            "~ orders/orders-1 UP CRITICAL weight 100 http=http://h:1 (http://h:1/: HTTP status 503)"
        );
        let (reason, revision) = (RemoveReason::Expired, 9);
        let removed = WatchEvent::Removed { instance: instance(), reason, revision };
        assert_eq!(to_text(&removed), "- orders/orders-1 expired");
        let json = to_json(&removed);
        assert_eq!((&json["event"], &json["revision"]), (&json!("removed"), &json!(9)));
        assert_eq!(
            (&json["reason"], &json["instance"]["id"]),
            (&json!("expired"), &json!("orders-1"))
        );
        assert!(!json.to_string().contains('\n'));
        let cluster_id = quorate_client::ClusterId::new(0xab).unwrap();
        let reset = WatchEvent::Reset { cluster_id, revision: 3 };
        let text = to_text(&reset);
        assert!(text.starts_with("reset: another cluster answers (00000000000000ab, revision 3)"));
        assert_eq!(
            to_json(&reset),
            json!({ "event": "reset", "cluster_id": "00000000000000ab", "revision": 3 })
        );
        assert_eq!(to_json(&added)["revision"], json!(7));
    }
}
