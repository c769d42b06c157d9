//! Now and then, while changes go on: whether what is shown is what the registry has. It always
//! should be; a difference is a bug somewhere, which is logged, counted, and repaired with what was
//! read: it is as of the revision that is shown, so a view never goes back in time for it.

use quorate_proto::ClusterId;
use quorate_proto::v1::{Consistency, FetchRequest, Service};

use super::hub::Shared;
use super::topics::Topics;
use crate::nodes::endpoints::Target;
use crate::reading::read;

/// Compares with some node, which need not be the one that sends the changes. True: something was
/// repaired, and the stream that was wrong is to begin anew.
pub(super) async fn finds_difference(shared: &Shared) -> bool {
    let core = &shared.core;
    let request = {
        let topics = shared.topics();
        // The registry refuses all where one may not be read, and gives all where none is named.
        let services = topics.synced();
        if services.is_empty() {
            return false;
        }
        FetchRequest {
            namespace: shared.namespace().to_owned(),
            consistency: Consistency::Local as i32,
            // The node has at least what is known here, unless it is of another cluster.
            min_revision: topics.lowest(&services),
            services,
            cluster_id: ClusterId::to_wire(topics.cluster_id),
            ..FetchRequest::default()
        }
    };
    match read(&core.endpoints, &core.plan("audit", Target::Any), request).await {
        Ok(fetched) => {
            let mut topics = shared.topics();
            if ClusterId::of(&fetched.header) != topics.cluster_id {
                return false; // the stream will bring what that one has
            }
            // What changed between two pages changed after this, and is not compared.
            let as_of = fetched.header.revision;
            let mut repaired = Vec::new();
            for service in fetched.services.unwrap_or_default() {
                if differs(&topics, &service, as_of) {
                    tracing::warn!(
                        service = service.name,
                        "a live view differed from the registry"
                    );
                    shared.counters().divergences.one_more();
                    repaired.push(service.name.clone());
                    topics.repair(service);
                }
            }
            drop(topics);
            let any = !repaired.is_empty();
            shared.to_be_saved(repaired);
            any
        }
        // Not the audit's business: what follows the changes notices, too.
        Err(error) => {
            tracing::debug!(%error, "no audit this time");
            false
        }
    }
}

/// Whether a service is shown otherwise than it was at this revision. Not if it changed after what
/// is known here, which is still to come, nor if what is known here is later: changes go on while
/// the registry is asked.
fn differs(topics: &Topics, service: &Service, as_of: u64) -> bool {
    let Some((position, shown)) = topics.known(&service.name) else { return false };
    let same = shown.len() == service.instances.len()
        && shown.iter().zip(&service.instances).all(|(shown, is)| **shown == *is);
    let comparable = service.revision <= position && topics.changed(&service.name) <= as_of;
    comparable && !same
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quorate_proto::v1::{Change, ChangeKind, Instance};

    use super::*;
    use crate::following::discovery::Selector;
    use crate::following::discovery::topics::Feed;

    #[test]
    fn only_what_is_of_the_same_time_is_compared() {
        // S2.6
        let mut topics = Topics::default();
        topics.add(Arc::new(Feed::new(Selector::service("s"))));
        topics.replace(&["s".to_owned()], 5, Vec::new());
        let instance = |id: &str| Instance {
            service: "s".to_owned(),
            id: id.to_owned(),
            ..Instance::default()
        };
        let kind = ChangeKind::Added as i32;
        topics.apply(vec![Change { revision: 9, kind, instance: Some(instance("a")), reason: 0 }]);
        let names = ["s".to_owned()];
        topics.move_to(&names, 10);
        let answer = |ids: &[&str], revision| Service {
            name: "s".to_owned(),
            instances: ids.iter().map(|id| instance(id)).collect(),
            revision,
            ..Service::default()
        };
        for (what, ids, revision, as_of, expected) in [
            ("the same", vec!["a"], 9, 12, false),
            ("before the last change here", vec![], 5, 8, false),
            ("at it", vec![], 5, 9, true),
            ("one is missing here", vec!["a", "b"], 8, 12, true),
            ("changed since", vec!["a", "b"], 11, 12, false),
        ] {
            assert_eq!(differs(&topics, &answer(&ids, revision), as_of), expected, "{what}");
        }
        // From a node that is behind, by its other services.
        topics.repair(answer(&["a", "b"], 8));
        topics.replace(&names, 9, vec![answer(&[], 9)]);
        let (position, shown) = topics.known("s").unwrap();
        assert_eq!((position, shown.len()), (10, 2), "nothing goes back in time");
    }
}
