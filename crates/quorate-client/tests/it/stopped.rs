//! A runtime that was shut down under a client: what it kept up says so.

use std::time::Duration;

use quorate_client::{Client, Error, Gone, InstanceBuilder, RegistrationState, WatchStatus};

use crate::fake::Fake;

#[test]
fn what_a_runtime_kept_up_says_that_it_has_ended() {
    let fakes = Fake::cluster(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (kept, left, watch, view) = runtime.block_on(async {
        let client = Client::builder([fakes[0].address()]).build().unwrap();
        let register = async |id| {
            let instance = InstanceBuilder::new("orders", id).endpoint("http", "http://h:1");
            client.register(instance).await.unwrap()
        };
        let (kept, left) = (register("a").await, register("b").await);
        left.deregister().await.unwrap();
        let (watch, view) = (client.watch("orders"), client.discover("orders").unwrap());
        watch.synced().await.unwrap();
        view.synced().await;
        assert!(matches!(view.status(), WatchStatus::Following { .. }));
        (kept, left, watch, view)
    });
    runtime.shutdown_timeout(Duration::from_secs(20));
    let state = kept.state();
    assert!(
        matches!(state, RegistrationState::Retrying { last_error: Some(Error::Stopped), .. }),
        "{state:?}"
    );
    assert!(matches!(left.state(), RegistrationState::Gone(Gone::Deregistered)));
    for status in [watch.status(), view.status()] {
        let stopped = matches!(status, WatchStatus::Interrupted { last_error: Error::Stopped, .. });
        assert!(stopped, "{status:?}");
    }
    assert_eq!(view.current().len(), 1, "what is known stays");
}
