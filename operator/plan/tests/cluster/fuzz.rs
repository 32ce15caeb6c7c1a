//! A cluster's objects as anybody may have stored them who may write them: status, labels, annotations, what a pod says.

use crate::world::{World, cluster, settings};
use ferretcd_fuzz::Fuzz;
use ferretcd_operator_api::{EtcdCluster, names};
use ferretcd_operator_plan::{Identity, Observed, Outcome, SeenObjects, delete, plan, status, validate};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Stored {
    cluster: EtcdCluster,
    services: Vec<Service>,
    claims: Vec<PersistentVolumeClaim>,
    sets: Vec<StatefulSet>,
    pods: Vec<Pod>,
    jobs: Vec<Job>,
}

fn stored(world: &World) -> Vec<u8> {
    let SeenObjects { services, claims, stateful_sets, pods, jobs, .. } = world.objects.clone();
    let mut stored = Stored { cluster: world.object.clone(), services, claims, sets: stateful_sets, pods, jobs };
    // Nothing looks into what a set is made of, and mutation would stay in there.
    for set in &mut stored.sets {
        set.spec = StatefulSetSpec { replicas: set.spec.replicas, ..StatefulSetSpec::default() };
    }
    serde_json::to_vec(&stored).unwrap()
}

#[test]
fn fuzz_cluster_objects() {
    let mut world = World::new(cluster("demo", "u1", 3));
    let mut seeds = Vec::new();
    for _ in 0..60 {
        world.pass(usize::MAX);
        world.tick();
        seeds.push(stored(&world));
    }
    assert!(world.ready());
    let (etcd, now) = (world.observe().etcd, world.now);
    let decide = |bytes: &[u8]| {
        let Stored { cluster, services, claims, sets, pods, jobs } =
            serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let identity = Identity::of(&cluster).map_err(|e| format!("{e:?}"))?;
        let objects = SeenObjects { services, claims, stateful_sets: sets, pods, jobs, ..SeenObjects::default() };
        let finalizer = cluster.metadata.finalizers.iter().flatten().any(|name| name == names::FINALIZER);
        let recorded = cluster.status.clone().unwrap_or_default();
        let observed = Observed::collect(&identity, recorded, finalizer, &objects, None, etcd.clone());
        let deletion = delete(&identity, cluster.spec.deletion_policy, &observed);
        let plan = match validate(&cluster, &settings()) {
            Ok(valid) => plan(&valid, &observed, now),
            Err(rejections) => rejections.plan(),
        };
        let next = status(&identity, cluster.spec.replicas, &observed, &plan, &Outcome::default(), now);
        let actions = plan.actions.iter().chain(&deletion.actions).map(ToString::to_string).collect::<Vec<_>>();
        Ok::<_, String>(format!("{:?} {} {:?}", plan.notes, actions.join(" "), next.operation))
    };
    assert!(seeds.iter().all(|seed| decide(seed).is_ok()));
    let words = [
        "9223372036854775807",
        "-9223372036854775808",
        "\"serial\":",
        "\"nextMemberSerial\":",
        "\"ferretcd.io/serial\":\"",
        "\"status\":",
        "null",
        "\"operation\":",
        "\"members\":[",
        "\"metadata\":",
        "-1",
        "\"",
    ];
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "cluster_objects").seeds(seeds.into_iter().step_by(6));
    fuzz.words(&words).quick(500).run(|bytes| decide(bytes).unwrap_or_else(|e| e));
}
