//! Fetch in pages: what a gRPC client with the usual limits reads.

use std::collections::BTreeMap;

use quorate_client::{FetchOptions, Selection};
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{Consistency, FetchRequest, InstanceSpec, ListDependentsRequest};
use tonic::Code;

use super::calls::{
    Map, assert_refused, deregister, fetch_all, fetch_of, in_time, local, map_of, register,
    register_many, registration, spec,
};
use super::harness::{Cluster, SOON, eventually};

/// Services in the order of the answers, with how many instances came of each; and all instances.
type Read = (Vec<(String, usize)>, Map);

/// Reads page after page, each on the next node.
async fn read(cluster: &Cluster, request: &FetchRequest) -> (Read, usize) {
    let (mut all, mut order, mut pages) = (Map::new(), Vec::<(String, usize)>::new(), 0);
    let mut request = request.clone();
    loop {
        // A client as it is made by default: it takes 4 MiB.
        let nodes = cluster.ids();
        let mut registry = RegistryClient::new(cluster.channel(nodes[pages % nodes.len()]));
        let page = registry.fetch(request.clone()).await.expect("a page").into_inner();
        pages += 1;
        let header = page.header.clone().unwrap();
        (request.min_revision, request.cluster_id) = (header.revision, header.cluster_id);
        request.after = page.next.clone();
        for service in &page.services {
            match order.last_mut() {
                Some((name, count)) if *name == service.name => *count += service.instances.len(),
                _ => order.push((service.name.clone(), service.instances.len())),
            }
        }
        let count: usize = page.services.iter().map(|service| service.instances.len()).sum();
        assert!(request.limit == 0 || count <= request.limit as usize);
        let is_last = page.next.is_empty();
        for (key, instance) in map_of(page) {
            assert!(all.insert(key, instance).is_none(), "listed twice");
        }
        if is_last {
            return ((order, all), pages);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_every_size_bring_each_instance_once_in_order() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    for (service, count) in [("api", 3), ("db", 1), ("web", 7), ("web-2", 2)] {
        register_many(&mut registry, service, count).await;
    }
    register(&mut registry, "cache", "left").await;
    deregister(&mut registry, "cache", "left").await;
    let (_, all) = fetch_all(&mut registry).await;
    let prefixes = |prefix: &str| FetchRequest { prefix: prefix.to_owned(), ..<_>::default() };
    let count = |name: &str, count| (name.to_owned(), count);
    let everything = vec![
        count("api", 3),
        count("cache", 0),
        count("db", 1),
        count("web", 7),
        count("web-2", 2),
    ];
    for limit in 1..=15 {
        let ask = |request: FetchRequest| FetchRequest { limit, ..request };
        let (read_all, pages) = read(&cluster, &ask(local(prefixes("")))).await;
        assert_eq!(read_all, (everything.clone(), all.clone()), "limit {limit}");
        assert_eq!(pages, 13_usize.div_ceil(limit as usize), "limit {limit}");
        let (found, _) = read(&cluster, &ask(prefixes("web"))).await;
        assert_eq!(found.0, [count("web", 7), count("web-2", 2)]);
        // By name whatever the order asked; unknown ones too; each once.
        let (found, _) = read(&cluster, &ask(fetch_of(&["web", "none", "db", "web"]))).await;
        assert_eq!(found.0, [count("db", 1), count("none", 0), count("web", 7)]);
    }
    let up = FetchRequest { statuses: vec![3], limit: 2, ..prefixes("") };
    assert!(read(&cluster, &up).await.0.1.is_empty());

    // What comes and goes between two pages moves nothing else.
    let page = async |after: &str| {
        let request = FetchRequest { limit: 3, after: after.to_owned(), ..fetch_of(&["web"]) };
        let page = cluster.registry(2).fetch(request).await.unwrap().into_inner();
        let instances = page.services.into_iter().flat_map(|service| service.instances);
        (instances.map(|instance| instance.id).collect::<Vec<_>>(), page.next)
    };
    let (ids, next) = page("").await;
    assert_eq!(
        (ids, next.as_str()),
        (vec!["i00000".into(), "i00001".into(), "i00002".into()], "web/i00002")
    );
    deregister(&mut registry, "web", "i00002").await;
    deregister(&mut registry, "web", "i00003").await;
    register(&mut registry, "web", "h").await;
    register(&mut registry, "web", "i000045").await;
    let (ids, next) = page(&next).await;
    assert_eq!(
        (ids, next.as_str()),
        (vec!["i00004".into(), "i000045".into(), "i00005".into()], "web/i00005")
    );
    assert_eq!(page(&next).await, (vec!["i00006".to_owned()], String::new()));
    for (bad, word) in [("web", "next"), ("web/a/b", "after"), ("we b/", "after")] {
        let request = FetchRequest { after: bad.to_owned(), ..prefixes("") };
        assert_refused(registry.fetch(request).await, Code::InvalidArgument, &["after", word]);
    }
}

/// An instance with a lot of text.
fn large(id: usize) -> InstanceSpec {
    let text = "x".repeat(4_000);
    let entries = (0..4).map(|at| (format!("key{at}"), text.clone()));
    InstanceSpec { metadata: entries.collect(), ..spec("large", &format!("i{id:05}")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_the_usual_limit_reads_what_one_answer_cannot_hold() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    for part in (0..2_400).collect::<Vec<_>>().chunks(200) {
        let specs = part.iter().map(|id| large(*id)).collect();
        registry.register(registration(specs)).await.unwrap();
    }
    let all = FetchRequest { consistency: Consistency::Local.into(), ..fetch_of(&["large"]) };
    let mut plain = RegistryClient::new(cluster.channel(1));
    assert!(plain.fetch(all.clone()).await.is_err(), "40 MB in one answer");
    for limit in [u32::MAX, 100_000, 150] {
        let ((order, found), pages) = read(&cluster, &FetchRequest { limit, ..all.clone() }).await;
        assert_eq!((order, found.len()), (vec![("large".to_owned(), 2_400)], 2_400));
        assert!(pages >= if limit == 150 { 16 } else { 12 } && pages < 20, "{pages} pages");
        let sizes: BTreeMap<_, _> = found.values().map(|i| (&i.id, i.metadata.len())).collect();
        assert!(sizes.values().all(|entries| *entries == 4));
    }
}

/// The client crate reads what is over 32 MiB, in the order asked, and says whether it is one view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_reads_what_one_answer_cannot_hold_and_says_what_changed_meanwhile() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    for part in (0..2_400).collect::<Vec<_>>().chunks(200) {
        let specs = part.iter().map(|id| large(*id)).collect();
        registry.register(in_time(registration(specs))).await.unwrap();
    }
    register(&mut registry, "a", "small").await;
    let client = cluster.client_builder().call_timeout(SOON).build().unwrap();
    let asked = ["none", "large", "a", "large"];
    let fetch = async |selection: Selection| client.fetch_with(&FetchOptions::new(selection)).await;

    // Writes to what is not read.
    let mut writer = cluster.registry(2);
    let noise = tokio::spawn(async move {
        for number in 0.. {
            register(&mut writer, "elsewhere", &format!("n{}", number % 500)).await;
        }
    });
    eventually("there is noise", async || {
        fetch(Selection::service("elsewhere")).await.ok()?.services?[0].known.then_some(())
    })
    .await;
    let fetched = fetch(Selection::services(asked)).await.unwrap();
    assert_eq!(fetched.mixed_until, None, "nothing of it changed");
    let services = fetched.services.unwrap();
    let counts: Vec<_> = services.iter().map(|s| (&*s.name, s.known, s.instances.len())).collect();
    let large = ("large", true, 2_400);
    assert_eq!(counts, [("none", false, 0), large, ("a", true, 1), large]);
    assert!(services[1].instances.iter().is_sorted_by_key(|instance| &instance.id));

    let fetched = fetch(Selection::prefix("")).await.unwrap();
    let until = fetched.mixed_until.expect("elsewhere changed meanwhile");
    assert!(until > fetched.header.revision);
    let names: Vec<_> = fetched.services.iter().flatten().map(|s| &*s.name).collect();
    assert_eq!(names, ["a", "elsewhere", "large"]);
    noise.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_come_in_pages() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let names = [("a", "1"), ("a", "2"), ("a-b", "1"), ("c", "1")];
    let requires = vec!["db".to_owned()];
    let specs =
        names.map(|(service, id)| InstanceSpec { requires: requires.clone(), ..spec(service, id) });
    registry.register(in_time(registration(specs.into()))).await.unwrap();
    for (limit, sizes) in [(0, vec![4]), (3, vec![3, 1]), (2, vec![2, 2]), (1, vec![1; 4])] {
        let service = "db".to_owned();
        let mut request = ListDependentsRequest { service, limit, ..Default::default() };
        let (mut found, mut pages) = (Vec::new(), Vec::new());
        while pages.is_empty() || !request.after.is_empty() {
            let page = registry.list_dependents(request.clone()).await.unwrap().into_inner();
            pages.push(page.instances.len());
            found.extend(page.instances.into_iter().map(|it| (it.service, it.id)));
            request.after = page.next;
        }
        assert_eq!(pages, sizes);
        let found: Vec<_> = found.iter().map(|(name, id)| (name.as_str(), id.as_str())).collect();
        assert_eq!(found, names);
    }
    let service = "db".to_owned();
    for none in ["a", "a/", "/1"] {
        let after = none.to_owned();
        let request =
            ListDependentsRequest { service: service.clone(), after, ..Default::default() };
        let refused = registry.list_dependents(request).await;
        assert_refused(refused, Code::InvalidArgument, &["after"]);
    }
}
