//! Stories of one EtcdCluster in a world in memory: what each pass does, and that the rules hold when the operator dies anywhere.

// Helpers of tests fail by panicking; Clippy's allowance covers only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fuzz;
mod world;

use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{
    AgentReport, Bootstrap, DeletionPolicy, EtcdClusterStatus, MemberRole, Phase, RestoreFrom, RestorePhase,
    RestoreSource, S3Destination, names,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use world::{World, cluster, is_member, serving};

fn three() -> World {
    let mut world = World::new(cluster("demo", "u1", 3));
    world.until("3 of 3", World::ready);
    world.story();
    world
}

#[test]
fn bootstrap_from_one_seed_to_three() {
    let mut world = World::new(cluster("demo", "u1", 3));
    world.until("3 of 3", World::ready);
    assert_eq!(
        world.story(),
        "\
add the finalizer
create Service demo-headless
create Service demo-client
record [0?…] Bootstrap demo-0
create PersistentVolumeClaim data-demo-0
create StatefulSet demo-0
record [0*] idle
label demo-0-0 as serving
apply StatefulSet demo-0
mark data-demo-0 with ferretcd.io/cluster-id, ferretcd.io/member-id
record [0* 1?…] ScaleUp demo-1
create PersistentVolumeClaim data-demo-1
add learner http://demo-1-0.demo-headless.ns.svc:2380
create PodDisruptionBudget demo
record [0* 1…] ScaleUp demo-1
create StatefulSet demo-1
mark data-demo-1 with ferretcd.io/cluster-id, ferretcd.io/member-id
record [0* 1] ScaleUp demo-1
apply StatefulSet demo-1
promote a001
record [0* 1*] idle
label demo-1-0 as serving
apply StatefulSet demo-1
record [0* 1* 2?…] ScaleUp demo-2
create PersistentVolumeClaim data-demo-2
add learner http://demo-2-0.demo-headless.ns.svc:2380
record [0* 1* 2…] ScaleUp demo-2
create StatefulSet demo-2
mark data-demo-2 with ferretcd.io/cluster-id, ferretcd.io/member-id
record [0* 1* 2] ScaleUp demo-2
apply StatefulSet demo-2
promote a002
record [0* 1* 2*] idle
label demo-2-0 as serving
apply StatefulSet demo-2"
    );
    let status = world.status();
    assert_eq!(status.phase, Phase::Ready);
    assert_eq!(status.leader.as_deref(), Some("demo-0"));
    assert_eq!(status.cluster_id.as_deref(), Some("c000"));
    assert_eq!(status.next_member_serial, 3);
}

#[test]
fn three_grow_to_five_and_the_leader_is_moved_away_when_it_must_go() {
    let mut world = three();
    world.object.spec.replicas = 5;
    world.until("5 of 5", World::ready);
    world.story();

    // The victim is chosen among those that do not lead; then it is elected.
    world.object.spec.replicas = 3;
    world.object.spec.deletion_policy = DeletionPolicy::Delete;
    world.until("a victim", |world| world.status().operation.is_some());
    let victim = world.status().operation.unwrap().member;
    assert_eq!(victim, "demo-4");
    world.etcd.leader = world.etcd.members.iter().find(|member| member.name == victim).unwrap().id;
    world.until("4 members", |world| world.status().members.len() == 4);
    assert_eq!(
        world.story(),
        "\
record [0* 1* 2* 3* 4] ScaleDown demo-4
label demo-4-0 as not serving
move leader from serial 4 to a000
remove member a004 http://demo-4-0.demo-headless.ns.svc:2380
delete StatefulSet demo-4
delete PersistentVolumeClaim data-demo-4
record [0* 1* 2* 3*] idle"
    );
    world.until("3 of 3", World::ready);
    let status = world.status();
    assert_eq!(status.retired_member_ids, ["a004", "a003"]);
    assert_eq!(status.next_member_serial, 5);
    assert_eq!(world.objects.claims.len(), 3);
}

#[test]
fn volumes_of_removed_members_are_kept_by_default() {
    let mut world = three();
    world.object.spec.replicas = 1;
    world.until("1 of 1", World::ready);
    let kept: Vec<_> =
        world.objects.claims.iter().filter(|claim| label(&claim.metadata, names::LABEL_RETAINED)).collect();
    assert_eq!(kept.len(), 2);
    assert!(world.objects.budgets.is_empty(), "one member has no budget that would stop every drain");

    // Growing again takes new serials: what was kept is not used again.
    world.object.spec.replicas = 3;
    world.until("3 of 3", World::ready);
    let serials: Vec<i64> = world.status().members.iter().map(|member| member.serial).collect();
    assert_eq!(serials, [0, 3, 4]);
}

#[test]
fn a_quiet_cluster_costs_no_write() {
    let mut world = three();
    world.tick();
    world.pass(usize::MAX);
    let before = world.status();
    for _ in 0..5 {
        world.tick();
        let (plan, _) = world.pass(usize::MAX);
        assert_eq!(plan.actions, []);
        assert_eq!(plan.requeue.as_secs(), 30);
    }
    assert_eq!(world.status(), before);
}

/// The operator dies before the n-th action of a life from nothing to three, five, one, and deletion; for every n.
#[test]
fn the_operator_may_die_before_any_action() {
    let whole = life(usize::MAX, usize::MAX);
    assert!(whole > 80, "the life has {whole} actions");
    for killed_at in 0..whole {
        life(killed_at, usize::MAX);
    }
}

/// The operator never survives more than one action, and its status is never written.
#[test]
fn the_operator_may_die_after_every_action() {
    life(usize::MAX, 1);
}

/// Runs a whole life and returns how many actions it took. The pass in which action number `killed_at` comes up ends before
/// it; no pass carries out more than `each` actions.
fn life(killed_at: usize, each: usize) -> usize {
    let mut world = World::new(cluster("demo", "u1", 3));
    world.object.spec.deletion_policy = DeletionPolicy::Delete;
    let mut done = 0;
    let mut drive = |world: &mut World, goal: &dyn Fn(&World) -> bool| {
        for _ in 0..800 {
            if goal(world) {
                return;
            }
            let limit = if done <= killed_at { killed_at - done } else { usize::MAX };
            let (plan, carried) = world.pass(limit.min(each));
            done += carried;
            if carried == limit && plan.actions.len() > carried {
                done += 1;
            }
            world.tick();
        }
        panic!("killed at {killed_at}: never\n{}\n{:#?}", world.log.join("\n"), world.status());
    };
    let whole = |wanted: usize| {
        move |world: &World| {
            let status = world.status();
            status.members.len() == wanted
                && status.operation.is_none()
                && status.members.iter().all(|member| member.serving && member.started)
                && world.objects.stateful_sets.len() == wanted
                && world.objects.pods.iter().filter(|pod| is_member(pod)).all(serving)
        }
    };
    for size in [3, 5, 1] {
        world.object.spec.replicas = size as i32;
        drive(&mut world, &whole(size));
        assert_eq!(world.etcd.members.iter().filter(|member| !member.learner).count(), size);
        assert_eq!(world.objects.claims.len(), size);
    }
    assert_eq!(world.founded.len(), 1, "R1: one cluster, killed at {killed_at}");
    world.object.metadata.deletion_timestamp = Some(Time(Default::default()));
    drive(&mut world, &|world: &World| world.gone);
    assert!(world.objects.claims.is_empty() && world.objects.pods.iter().all(|pod| !is_member(pod)));
    done
}

/// Deaths, lost pods and cut-off members in an order that a fixed arithmetic picks, while the size is changed.
#[test]
fn faults_in_any_order_converge() {
    for seed in 1..60_u64 {
        let mut world = World::new(cluster("demo", "u1", 3));
        let mut random = seed;
        let mut next = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for _ in 0..150 {
            match next(12) {
                0 => world.lose_pod(next(6) as i64),
                1 => drop(world.silent.insert(next(6) as i64)),
                2..=4 => world.silent.clear(),
                5 => world.object.spec.replicas = [1, 3, 5][next(3) as usize],
                _ => {}
            }
            world.pass(next(4) as usize);
            if next(3) > 0 {
                world.tick();
            }
        }
        world.silent.clear();
        // A member that missed its start for long enough is rolled back and tried again after a pause.
        world.now += chrono::Duration::hours(2);
        world.until(&format!("ready after seed {seed}"), World::ready);
        assert_eq!(world.founded.len(), 1, "seed {seed}");
    }
}

#[test]
fn the_status_can_be_lost() {
    for lost_after in 0..90 {
        let mut world = World::new(cluster("demo", "u1", 3));
        for _ in 0..lost_after {
            world.pass(usize::MAX);
            world.tick();
        }
        world.object.status = Some(EtcdClusterStatus::default());
        world.until("3 of 3", World::ready);
        assert_eq!(world.founded.len(), 1, "lost after {lost_after}");
    }
}

#[test]
fn without_a_quorum_nothing_changes() {
    let mut world = three();
    world.silent = [1, 2].into();
    world.object.spec.replicas = 5;
    world.story();
    for _ in 0..20 {
        world.tick();
        world.pass(usize::MAX);
    }
    assert_eq!(world.story(), "");
    let status = world.status();
    assert_eq!(status.phase, Phase::NoQuorum);
    assert_eq!(status.ready_members.as_deref(), Some("0/5"));
    let quorum = status.conditions.iter().find(|condition| condition.type_ == "QuorumHealthy").unwrap();
    assert_eq!((quorum.status.as_str(), quorum.reason.as_str()), ("False", reason::NO_QUORUM));
    assert!(quorum.message.contains("demo-1: connection refused"), "{}", quorum.message);

    // It goes on by itself when the members are back.
    world.silent.clear();
    world.until("5 of 5", World::ready);
}

#[test]
fn a_member_that_is_down_stops_growth_and_goes_first() {
    let mut world = three();
    world.silent = [1].into();
    world.object.spec.replicas = 5;
    for _ in 0..5 {
        world.tick();
        world.pass(usize::MAX);
    }
    assert_eq!(world.status().members.len(), 3);
    let progressing = world.status().conditions.into_iter().find(|condition| condition.type_ == "Progressing").unwrap();
    assert_eq!(progressing.message, "a member is added when all are well: demo-1 is not ready");

    world.object.spec.replicas = 1;
    world.until("a victim", |world| world.status().operation.is_some());
    assert_eq!(world.status().operation.unwrap().member, "demo-1");
    world.until("1 of 1", World::ready);
}

#[test]
fn a_removal_waits_while_the_rest_would_have_no_quorum() {
    let mut world = World::new(cluster("demo", "u1", 5));
    world.until("5 of 5", World::ready);
    world.object.spec.replicas = 3;
    world.until("a victim", |world| world.status().operation.is_some());
    // Two others go: three of five hold the quorum, but without the victim it would be two of four.
    world.silent = [1, 2].into();
    world.story();
    for _ in 0..10 {
        world.tick();
        world.pass(usize::MAX);
    }
    assert_eq!(world.story(), "label demo-4-0 as not serving");
    let progressing = condition(&world, "Progressing");
    assert_eq!(
        progressing.message,
        "ScaleDown of demo-4, RemoveMember: demo-4 is not removed yet: 2 of the 4 voters that would remain are healthy, 3 are needed"
    );
    world.silent.clear();
    world.until("3 of 3", World::ready);
}

#[test]
fn an_alarm_is_reported_for_its_member_and_stops_growth() {
    let mut world = three();
    let full = world.etcd.members[2].id;
    world.alarms = vec![ferretcd_operator_plan::Alarm { member_id: full, kind: "NOSPACE".to_owned() }];
    world.object.spec.replicas = 5;
    for _ in 0..5 {
        world.tick();
        world.pass(usize::MAX);
    }
    let status = world.status();
    assert_eq!(status.members.len(), 3);
    assert_eq!(
        (status.member(0).unwrap().alarms.len(), &status.member(2).unwrap().alarms[..]),
        (0, &["NOSPACE".to_owned()][..])
    );
    assert!(condition(&world, "Degraded").message.starts_with("demo-2 raised NOSPACE; free space"));
    world.alarms.clear();
    world.until("5 of 5", World::ready);
}

#[test]
fn a_removal_is_confirmed_by_another_member() {
    let mut world = three();
    world.object.spec.replicas = 1;
    world.until("the removal", |world| world.etcd.members.len() == 2);
    world.answered_by = Some(2);
    for _ in 0..5 {
        world.tick();
        let (plan, _) = world.pass(usize::MAX);
        assert_eq!(plan.step.as_deref(), Some("Verify"), "{plan:?}");
    }
    world.answered_by = None;
    world.until("1 of 1", World::ready);
}

#[test]
fn a_lost_volume_is_reported_and_not_replaced_by_an_empty_one() {
    let mut world = three();
    world.objects.claims.retain(|claim| claim.metadata.name.as_deref() != Some("data-demo-1"));
    world.wipe(1);
    world.lose_pod(1);
    for _ in 0..5 {
        world.tick();
        world.pass(usize::MAX);
    }
    assert_eq!(world.objects.claims.len(), 2);
    let degraded = condition(&world, "Degraded");
    assert_eq!(degraded.reason, reason::VOLUME_LOST);
    // What the message advises works.
    world.object.spec.replicas = 1;
    world.until("1 of 1", World::ready);
    world.object.spec.replicas = 3;
    world.until("3 of 3", World::ready);
}

#[test]
fn a_learner_that_never_starts_is_rolled_back_and_tried_again_later() {
    let mut world = three();
    world.broken = [3].into();
    world.object.spec.replicas = 5;
    world.until("an operation", |world| world.status().operation.is_some());
    world.story();
    for _ in 0..20 {
        world.tick();
        world.pass(usize::MAX);
    }
    world.story();
    world.now += chrono::Duration::minutes(41);
    world.until("rolled back", |world| world.status().members.len() == 3);
    assert_eq!(
        world.story(),
        "\
record [0* 1* 2* 3…] RollBack demo-3
remove member a003 http://demo-3-0.demo-headless.ns.svc:2380
apply PodDisruptionBudget demo
delete StatefulSet demo-3
delete PersistentVolumeClaim data-demo-3
record [0* 1* 2*] idle"
    );
    world.tick();
    let (plan, _) = world.pass(usize::MAX);
    assert_eq!(plan.notes[0].reason, reason::OPERATION_STALLED);
    assert!(plan.notes[0].message.starts_with("demo-3 did not start: "), "{}", plan.notes[0].message);

    world.now += chrono::Duration::minutes(2);
    world.until("5 of 5", World::ready);
    let serials: Vec<i64> = world.status().members.iter().map(|member| member.serial).collect();
    assert_eq!(serials, [0, 1, 2, 4, 5], "a new serial, a new volume");
}

#[test]
fn a_wiped_volume_founds_no_second_cluster() {
    let mut world = three();
    world.wipe(0);
    world.lose_pod(0);
    for _ in 0..10 {
        world.tick();
        world.pass(usize::MAX);
    }
    assert_eq!(world.founded.len(), 1);
    let status = world.status();
    assert_eq!(status.phase, Phase::Degraded);
    assert_eq!(status.ready_members.as_deref(), Some("2/3"));
    // Removing it works like any other removal, and a fresh member takes its place.
    world.object.spec.replicas = 1;
    world.until("1 of 1", World::ready);
    world.object.spec.replicas = 3;
    world.until("3 of 3", World::ready);
    assert_eq!(world.founded.len(), 1);
}

#[test]
fn volumes_of_a_former_cluster_are_never_adopted() {
    let mut world = three();
    world.object.metadata.deletion_timestamp = Some(Time(Default::default()));
    world.until("deletion", |world| world.gone);
    assert_eq!(world.objects.claims.len(), 3, "kept by policy");

    let mut second = World::new(cluster("demo", "u2", 3));
    second.objects.claims = world.objects.claims;
    for _ in 0..5 {
        second.pass(usize::MAX);
        second.tick();
    }
    let status = second.status();
    assert_eq!(status.phase, Phase::Rejected);
    assert!(status.seed.is_none() && second.objects.stateful_sets.is_empty(), "nothing was begun");
    let degraded = status.conditions.iter().find(|condition| condition.type_ == "Degraded").unwrap();
    assert_eq!(degraded.reason, reason::NAME_CONFLICT);
    assert_eq!(
        degraded.message,
        "PersistentVolumeClaim data-demo-0 exists and belongs to the EtcdCluster with uid u1; it is never adopted: delete it if nobody needs it, or choose another name for this cluster"
    );
}

#[test]
fn a_foreign_service_is_a_conflict_and_stays() {
    let mut world = World::new(cluster("demo", "u1", 1));
    let mut other = World::new(cluster("demo", "u9", 1));
    other.until("1 of 1", World::ready);
    world.objects.services = other.objects.services.clone();
    for _ in 0..5 {
        world.pass(usize::MAX);
        world.tick();
    }
    assert_eq!(world.story(), "add the finalizer");
    assert_eq!(world.objects.services, other.objects.services);
}

#[test]
fn a_restore_comes_before_clients_and_growth() {
    let mut world = World::new(restored());
    world.until("the Job", |world| !world.objects.jobs.is_empty());
    for _ in 0..5 {
        world.pass(usize::MAX);
        world.tick();
    }
    assert_eq!(world.status().phase, Phase::Restoring);
    assert_eq!(world.status().members.len(), 1);
    assert!(!world.objects.pods.iter().any(serving), "nobody is served before the data is there");

    world.restore_result = Some(Ok(AgentReport::Restored { key: "k".to_owned(), revision: 1_000_000_042 }));
    world.until("3 of 3", World::ready);
    let restore = world.status().restore.unwrap();
    assert_eq!((restore.phase, restore.revision), (RestorePhase::Complete, Some(1_000_000_042)));

    // The Job's object may go, and the status be lost: it is not run again over what clients have written since.
    world.objects.jobs.clear();
    world.tick();
    assert_eq!(world.pass(usize::MAX).0.actions, []);
    world.object.status = Some(EtcdClusterStatus::default());
    world.until("3 of 3", World::ready);
    assert!(world.objects.jobs.is_empty());
}

#[test]
fn a_failed_restore_says_why_and_serves_nothing() {
    let mut world = World::new(restored());
    let message = "restore s3://backups/k: its sha256 is not the manifest's".to_owned();
    world.restore_result = Some(Err(AgentReport::Failed { message }));
    for _ in 0..40 {
        world.pass(usize::MAX);
        world.tick();
    }
    let status = world.status();
    let degraded = status.conditions.iter().find(|condition| condition.type_ == "Degraded").unwrap();
    assert_eq!(degraded.reason, reason::RESTORE_FAILED);
    assert!(degraded.message.contains("its sha256 is not the manifest's"), "{}", degraded.message);
    assert_eq!(status.members.len(), 1);
    assert!(!world.objects.pods.iter().any(serving));

    // Deleting the Job tries again.
    world.objects.jobs.clear();
    world.restore_result = Some(Ok(AgentReport::Restored { key: "k".to_owned(), revision: 7 }));
    world.until("3 of 3", World::ready);
}

#[test]
fn a_restore_from_a_backup_that_is_not_there_makes_nothing() {
    let mut object = restored();
    object.spec.bootstrap = Some(Bootstrap {
        restore: RestoreFrom {
            backup_ref: Some(ferretcd_operator_api::LocalRef { name: "nightly".to_owned() }),
            source: None,
        },
    });
    let mut world = World::new(object);
    for _ in 0..10 {
        world.pass(usize::MAX);
        world.tick();
    }
    assert!(world.objects.claims.is_empty());
    let degraded = world.status().conditions.into_iter().find(|condition| condition.type_ == "Degraded").unwrap();
    assert_eq!(degraded.reason, reason::RESTORE_SOURCE_NOT_READY);
}

#[test]
fn an_invalid_spec_changes_nothing() {
    let mut world = three();
    world.object.spec.replicas = 2;
    let before = world.objects.stateful_sets.clone();
    for _ in 0..5 {
        world.pass(usize::MAX);
        world.tick();
    }
    assert_eq!(world.story(), "");
    assert_eq!(world.objects.stateful_sets, before);
    assert_eq!(world.status().phase, Phase::Rejected);
    let degraded = world.status().conditions.into_iter().find(|condition| condition.type_ == "Degraded").unwrap();
    assert_eq!(
        degraded.message,
        "the spec is refused and nothing was changed: spec.replicas: is 2, must be 1, 3, 5 or 7"
    );
}

#[test]
fn an_unwanted_learner_goes_and_a_lost_leader_is_seen() {
    let mut world = three();
    world.broken = [3].into();
    world.object.spec.replicas = 5;
    world.until("a learner", |world| world.etcd.members.iter().any(|member| member.learner));
    world.object.spec.replicas = 3;
    world.until("3 of 3", World::ready);
    assert!(world.status().backoff.is_none(), "a change of mind is no failure");

    let leader = world.status().leader.unwrap();
    let serial = world.status().members.iter().find(|member| member.name == leader).unwrap().serial;
    world.silent = [serial].into();
    world.tick();
    world.pass(usize::MAX);
    let status = world.status();
    assert_ne!(status.leader, Some(leader));
    assert_eq!(status.member(serial).unwrap().role, MemberRole::Unknown);
    assert_eq!(status.ready_members.as_deref(), Some("2/3"));
}

fn restored() -> ferretcd_operator_api::EtcdCluster {
    let mut object = cluster("copy", "u1", 3);
    let store = S3Destination {
        bucket: "backups".to_owned(),
        prefix: None,
        endpoint: Some("http://s3:9000".to_owned()),
        region: None,
        force_path_style: true,
        credentials_secret_ref: None,
    };
    let source = Some(RestoreSource { store, key: "k".to_owned() });
    object.spec.bootstrap = Some(Bootstrap { restore: RestoreFrom { backup_ref: None, source } });
    object
}

fn condition(world: &World, kind: &str) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
    world.status().conditions.into_iter().find(|condition| condition.type_ == kind).unwrap()
}

fn label(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, key: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key))
}
