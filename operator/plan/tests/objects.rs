//! What a spec becomes: what is refused and how, and the objects that members are made of.

// Helpers of tests fail by panicking; Clippy's allowance covers only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use ferretcd_operator_api::{EtcdCluster, EtcdClusterSpec, names};
use ferretcd_operator_plan::build::stateful_set::{Intent, arguments, stateful_set};
use ferretcd_operator_plan::build::{budget, claim, service};
use ferretcd_operator_plan::{Object, Settings, validate};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

fn settings() -> Settings {
    Settings {
        server_repository: "example.org/ferretcd".to_owned(),
        server_version: "0.1.0".to_owned(),
        operator_image: "example.org/ferretcd-operator:0.1.0".to_owned(),
        operator_pull_policy: None,
    }
}

fn object(name: &str, spec: Value) -> EtcdCluster {
    let spec: EtcdClusterSpec = serde_json::from_value(spec).unwrap();
    let mut object = EtcdCluster::new(name, spec);
    object.metadata.namespace = Some("ns".to_owned());
    object.metadata.uid = Some("u1".to_owned());
    object
}

/// The sentence with which a spec is refused.
fn refusal(name: &str, spec: Value) -> String {
    match validate(&object(name, spec), &settings()) {
        Ok(_) => "accepted".to_owned(),
        Err(rejections) => rejections.to_string(),
    }
}

#[test]
fn each_mistake_is_named_with_its_field() {
    let storage = json!({"size": "1Gi"});
    for (spec, sentence) in [
        (json!({"storage": storage}), "accepted"),
        (json!({"storage": storage, "replicas": 2}), "spec.replicas: is 2, must be 1, 3, 5 or 7"),
        (json!({"storage": {"size": "0Gi"}}), "spec.storage.size: `0Gi` is not a positive quantity such as 8Gi"),
        (json!({"storage": {"size": "1GB"}}), "spec.storage.size: `1GB` is not a positive quantity such as 8Gi"),
        (json!({"storage": storage, "image": "a:1", "version": "1"}), "spec.version: set image or version, not both"),
        (
            json!({"storage": storage, "resources": {"limits": {"memory": "lots"}}}),
            "spec.resources.limits.memory: `lots` is not a positive quantity such as 500m or 512Mi",
        ),
        (
            json!({"storage": storage, "options": {"electionTimeoutMs": 400}}),
            "spec.options.electionTimeoutMs: is 400, must be at least 5 times heartbeatIntervalMs (100)",
        ),
        (
            json!({"storage": storage, "options": {"quotaBackendBytes": 0}}),
            "spec.options.quotaBackendBytes: is 0, must be at least 1",
        ),
        (
            json!({"storage": storage, "bootstrap": {"restore": {}}}),
            "spec.bootstrap.restore: set exactly one of backupRef and source",
        ),
        (
            json!({"storage": storage, "bootstrap": {"restore": {"source": {"key": "k", "store": {"bucket": "B!"}}}}}),
            "spec.bootstrap.restore.source.store.bucket: `B!` is not the name of a bucket",
        ),
    ] {
        assert_eq!(refusal("demo", spec), sentence);
    }
    // All mistakes at once, not one per attempt.
    let both = refusal("Demo", json!({"storage": storage, "replicas": 4}));
    assert!(both.contains("metadata.name") && both.contains("spec.replicas"), "{both}");
    assert!(refusal(&"a".repeat(41), json!({"storage": storage})).contains("has 41 characters, at most 40"));
}

#[test]
fn the_image_comes_from_image_version_or_the_operator() {
    let image = |spec: Value| validate(&object("demo", spec), &settings()).unwrap().image;
    let storage = json!({"size": "1Gi"});
    assert_eq!(image(json!({"storage": storage})), "example.org/ferretcd:0.1.0");
    assert_eq!(image(json!({"storage": storage, "version": "0.2.0"})), "example.org/ferretcd:0.2.0");
    assert_eq!(image(json!({"storage": storage, "image": "mine:1"})), "mine:1");
}

#[test]
fn the_command_line_of_each_intent() {
    let cluster =
        validate(&object("demo", json!({"storage": {"size": "1Gi"}, "options": {"snapshotCount": 500}})), &settings())
            .unwrap();
    let token = || "u1-0".to_owned();
    let differing = |intent: &Intent| {
        let arguments = arguments(&cluster, 1, intent);
        assert_eq!(
            arguments[..7],
            [
                "--name=demo-1",
                "--data-dir=/var/lib/ferretcd/data",
                "--listen-client-urls=http://0.0.0.0:2379",
                "--advertise-client-urls=http://demo-1-0.demo-headless.ns.svc:2379",
                "--listen-peer-urls=http://0.0.0.0:2380",
                "--initial-advertise-peer-urls=http://demo-1-0.demo-headless.ns.svc:2380",
                "--listen-metrics-urls=http://0.0.0.0:2381",
            ]
        );
        assert_eq!(arguments[9], "--initial-cluster-token=u1-0");
        assert_eq!(arguments[11], "--snapshot-count=500");
        [7, 8, 10].map(|index| arguments[index].clone()).join(" ")
    };
    assert_eq!(
        differing(&Intent::Bootstrap { token: token() }),
        "--initial-cluster=demo-1=http://demo-1-0.demo-headless.ns.svc:2380 --initial-cluster-state=new --member-intent=bootstrap"
    );
    let members = [0, 1].map(|serial| (names::member("demo", serial), names::peer_url("demo", "ns", serial))).to_vec();
    assert_eq!(
        differing(&Intent::Join { token: token(), members }),
        "--initial-cluster=demo-0=http://demo-0-0.demo-headless.ns.svc:2380,demo-1=http://demo-1-0.demo-headless.ns.svc:2380 --initial-cluster-state=existing --member-intent=join"
    );
    assert_eq!(
        differing(&Intent::Run { token: token() }),
        "--initial-cluster=demo-1=http://demo-1-0.demo-headless.ns.svc:2380 --initial-cluster-state=existing --member-intent=run"
    );
}

#[test]
fn a_member_is_restricted_and_selected_by_its_serial_alone() {
    let cluster = validate(
        &object("demo", json!({"storage": {"size": "1Gi"}, "resources": {"requests": {"cpu": 1}}})),
        &settings(),
    )
    .unwrap();
    let intent = Intent::Run { token: "t".to_owned() };
    let Object::StatefulSet(set) = stateful_set(&cluster, "image:1", 3, true, &intent) else { panic!() };
    let labels = set.spec.template.metadata.as_ref().unwrap().labels.clone().unwrap();
    let selector = set.spec.selector.match_labels.clone().unwrap();
    assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selector:?} selects {labels:?}");
    assert_eq!(selector[names::LABEL_SERIAL], "3");
    assert_eq!(labels[names::LABEL_SERVING], "true");
    assert!(!selector.contains_key(names::LABEL_SERVING), "a selector never changes");
    assert_eq!(set.spec.update_strategy.as_ref().unwrap().type_.as_deref(), Some("OnDelete"));

    let pod = set.spec.template.spec.as_ref().unwrap();
    let container = &pod.containers[0];
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.enable_service_links, Some(false), "a Service named etcd would set ETCD_ variables");
    assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
    let security = container.security_context.as_ref().unwrap();
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(container.resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "1");
    let path = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
        let get = probe.as_ref().unwrap().http_get.clone().unwrap();
        (get.path.unwrap(), get.port)
    };
    assert_eq!(path(&container.liveness_probe), ("/livez".to_owned(), IntOrString::Int(2381)));
    assert_eq!(path(&container.readiness_probe), ("/readyz".to_owned(), IntOrString::Int(2381)));

    // The claim outlives the cluster; the Services and the budget go with it.
    let Object::PersistentVolumeClaim(claim) = claim::claim(&cluster, 3) else { panic!() };
    assert!(claim.metadata.owner_references.is_none());
    assert_eq!(claim.metadata.annotations.as_ref().unwrap()[names::ANNOTATION_CLUSTER_UID], "u1");
    let mounted = pod.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap();
    assert_eq!(Some(&mounted.claim_name), claim.metadata.name.as_ref());
    let Object::Service(client) = service::client(&cluster.identity) else { panic!() };
    let wanted = client.spec.as_ref().unwrap().selector.clone().unwrap();
    assert!(wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let Object::Service(headless) = service::headless(&cluster.identity) else { panic!() };
    assert_eq!(headless.spec.as_ref().unwrap().publish_not_ready_addresses, Some(true));
    assert_eq!(headless.metadata.owner_references.as_ref().unwrap()[0].uid, "u1");
}

#[test]
fn the_budget_keeps_a_quorum() {
    let cluster = validate(&object("demo", json!({"storage": {"size": "1Gi"}})), &settings()).unwrap();
    let minimum: BTreeMap<usize, IntOrString> = [2, 3, 4, 5, 7]
        .into_iter()
        .map(|voters| {
            let Object::PodDisruptionBudget(budget) = budget::budget(&cluster.identity, voters) else { panic!() };
            (voters, budget.spec.unwrap().min_available.unwrap())
        })
        .collect();
    let wanted = [(2, 2), (3, 2), (4, 3), (5, 3), (7, 4)].map(|(voters, quorum)| (voters, IntOrString::Int(quorum)));
    assert_eq!(minimum, BTreeMap::from(wanted));
}
