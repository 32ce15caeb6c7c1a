//! Stories of backups and schedules: which slot is due, one backup at a time, and which old ones go.

// Helpers of tests fail by panicking; Clippy's allowance covers only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chrono::{DateTime, Utc};
use ferretcd_operator_api::status::condition;
use ferretcd_operator_api::{
    AgentReport, BackupPhase, EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleSpec, EtcdBackupSpec, EtcdBackupStatus,
    EtcdCluster, EtcdClusterSpec, EtcdClusterStatus, LocalRef, MemberRole, MemberStatus, S3Destination, names,
};
use ferretcd_operator_plan::{
    Action, BackupObserved, JobState, Object, Ownership, ScheduleObserved, Seen, SeenBackup, SeenJob, Settings,
    plan_backup, plan_schedule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn time(text: &str) -> Time {
    Time(Timestamp::from_second(at(text).timestamp()).unwrap())
}

fn settings() -> Settings {
    Settings {
        server_repository: "example.org/ferretcd".to_owned(),
        server_version: "0.1.0".to_owned(),
        operator_image: "example.org/ferretcd-operator:0.1.0".to_owned(),
        operator_pull_policy: None,
    }
}

fn destination() -> S3Destination {
    S3Destination {
        bucket: "backups".to_owned(),
        prefix: Some("prod".to_owned()),
        endpoint: Some("http://s3.storage.svc:9000".to_owned()),
        region: None,
        force_path_style: true,
        credentials_secret_ref: Some(LocalRef { name: "s3".to_owned() }),
    }
}

/// A cluster of three that serves, led by demo-0.
fn cluster() -> EtcdCluster {
    let spec: EtcdClusterSpec = serde_json::from_value(serde_json::json!({"storage": {"size": "1Gi"}})).unwrap();
    let mut cluster = EtcdCluster::new("demo", spec);
    cluster.metadata.uid = Some("c-uid".to_owned());
    let member = |serial, role| MemberStatus {
        name: names::member("demo", serial),
        serial,
        role,
        ready: true,
        serving: true,
        started: true,
        ..MemberStatus::default()
    };
    cluster.status = Some(EtcdClusterStatus {
        cluster_id: Some("cdf8".to_owned()),
        members: vec![
            member(0, MemberRole::Leader),
            member(1, MemberRole::Follower),
            MemberStatus { ready: false, ..member(2, MemberRole::Follower) },
        ],
        conditions: vec![Condition {
            type_: condition::QUORUM_HEALTHY.to_owned(),
            status: "True".to_owned(),
            last_transition_time: time("2026-01-01T00:00:00Z"),
            message: String::new(),
            observed_generation: None,
            reason: "Ready".to_owned(),
        }],
        ..EtcdClusterStatus::default()
    });
    cluster
}

fn backup(name: &str) -> EtcdBackup {
    let cluster_ref = LocalRef { name: "demo".to_owned() };
    let mut backup = EtcdBackup::new(name, EtcdBackupSpec { cluster_ref, destination: destination() });
    backup.metadata.namespace = Some("ns".to_owned());
    backup.metadata.uid = Some("12345678-b".to_owned());
    backup
}

fn job(name: &str, state: JobState, report: Option<AgentReport>) -> SeenJob {
    let seen = Seen {
        name: name.to_owned(),
        uid: "j".to_owned(),
        owner: Ownership::Ours,
        hash: String::new(),
        deleting: false,
    };
    SeenJob { seen, state, report }
}

const NOW: &str = "2026-01-05T10:00:30Z";

#[test]
fn a_backup_asks_followers_first_and_ends_with_the_report() {
    let mut object = backup("first");
    let mut observed = BackupObserved { cluster: Some(cluster()), job: None };
    let plan = plan_backup(&object, &observed, &settings(), at(NOW));
    let [Action::Create(Object::Job(made)), Action::Notify(_)] = plan.actions.as_slice() else { panic!("{plan:?}") };
    let pod = made.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    assert_eq!(
        pod.containers[0].args.as_ref().unwrap().join(" "),
        "backup --endpoint=http://demo-1-0.demo-headless.ns.svc:2379 --endpoint=http://demo-0-0.demo-headless.ns.svc:2379 \
         --bucket=backups --key=prod/demo/c-uid/cdf8/first-12345678.db --s3-endpoint=http://s3.storage.svc:9000 \
         --force-path-style --cluster=demo --cluster-uid=c-uid --cluster-id=cdf8 --backup-uid=12345678-b"
    );
    assert_eq!(made.metadata.name.as_deref(), Some("first-backup"));
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert!(pod.volumes.is_none(), "the agent mounts no volume");
    assert_eq!(plan.status.phase, BackupPhase::Running);

    object.status = Some(plan.status);
    observed.job = Some(job("first-backup", JobState::Active, None));
    let plan = plan_backup(&object, &observed, &settings(), at(NOW));
    assert_eq!(plan.actions, []);

    object.status = Some(plan.status);
    let key = "prod/demo/c-uid/cdf8/first-12345678.db".to_owned();
    let report = AgentReport::BackedUp { key, revision: 42, size: 1024, sha256: "ab".to_owned() };
    observed.job = Some(job("first-backup", JobState::Succeeded, Some(report)));
    let plan = plan_backup(&object, &observed, &settings(), at(NOW));
    assert_eq!(
        (plan.status.phase, plan.status.revision, plan.status.size),
        (BackupPhase::Complete, Some(42), Some(1024))
    );
    assert_eq!(plan.status.location.as_deref(), Some("s3://backups/prod/demo/c-uid/cdf8/first-12345678.db"));

    // Final: whatever becomes of the Job and the cluster.
    object.status = Some(plan.status.clone());
    let again = plan_backup(&object, &BackupObserved::default(), &settings(), at(NOW));
    assert_eq!((again.actions, again.status, again.requeue), (vec![], plan.status, None));
}

#[test]
fn a_backup_that_fails_says_why() {
    let mut object = backup("first");
    let failed =
        |state, report| BackupObserved { cluster: Some(cluster()), job: Some(job("first-backup", state, report)) };
    let why = || JobState::Failed("BackoffLimitExceeded".to_owned());
    let message = "bucket `backups` does not exist at http://s3.storage.svc:9000".to_owned();
    let report = Some(AgentReport::Failed { message: message.clone() });
    let plan = plan_backup(&object, &failed(why(), report), &settings(), at(NOW));
    assert_eq!((plan.status.phase, plan.status.message), (BackupPhase::Failed, Some(message)));

    // No report: the pod was killed.
    let plan = plan_backup(&object, &failed(why(), None), &settings(), at(NOW));
    assert!(plan.status.message.unwrap().contains("BackoffLimitExceeded"));
    // A Job that claims success without a report is not believed.
    let plan = plan_backup(&object, &failed(JobState::Succeeded, None), &settings(), at(NOW));
    assert_eq!(plan.status.phase, BackupPhase::Failed);
    // Somebody else's Job is not adopted.
    let mut foreign = failed(JobState::Succeeded, None);
    foreign.job.as_mut().unwrap().seen.owner = Ownership::Foreign("nobody".to_owned());
    let plan = plan_backup(&object, &foreign, &settings(), at(NOW));
    assert!(plan.status.message.unwrap().contains("belongs to nobody"));
    // A Job that was deleted is not silently run again.
    object.status = Some(EtcdBackupStatus { phase: BackupPhase::Running, ..EtcdBackupStatus::default() });
    let plan = plan_backup(&object, &BackupObserved { cluster: Some(cluster()), job: None }, &settings(), at(NOW));
    assert_eq!(plan.status.phase, BackupPhase::Failed);
}

#[test]
fn a_backup_waits_for_a_cluster_that_serves() {
    let object = backup("first");
    let mut lost = cluster();
    lost.status.as_mut().unwrap().conditions[0].status = "False".to_owned();
    let mut closed = cluster();
    closed.status.as_mut().unwrap().members.iter_mut().for_each(|member| member.serving = false);
    for (cluster, why) in [
        (None, "EtcdCluster demo does not exist in this namespace; the backup waits for it"),
        (Some(lost), "EtcdCluster demo has no quorum yet"),
        (Some(closed), "no member of EtcdCluster demo serves yet"),
    ] {
        let plan = plan_backup(&object, &BackupObserved { cluster, job: None }, &settings(), at(NOW));
        assert_eq!(plan.actions, []);
        assert_eq!((plan.status.phase, plan.status.message.as_deref()), (BackupPhase::Pending, Some(why)));
        assert!(plan.requeue.is_some());
    }
    let mut wrong = object;
    wrong.spec.destination.endpoint = Some("s3.storage".to_owned());
    let plan = plan_backup(&wrong, &BackupObserved { cluster: Some(cluster()), job: None }, &settings(), at(NOW));
    assert_eq!(plan.status.phase, BackupPhase::Failed);
    assert!(plan.status.message.unwrap().contains("must be a URL"));
}

/// Every hour at five past; made at 08:30.
fn schedule() -> EtcdBackupSchedule {
    let spec = EtcdBackupScheduleSpec {
        cluster_ref: LocalRef { name: "demo".to_owned() },
        schedule: "5 * * * *".to_owned(),
        suspend: false,
        keep_last: 2,
        destination: destination(),
    };
    let mut schedule = EtcdBackupSchedule::new("hourly", spec);
    schedule.metadata.namespace = Some("ns".to_owned());
    schedule.metadata.uid = Some("s-uid".to_owned());
    schedule.metadata.creation_timestamp = Some(time("2026-01-05T08:30:00Z"));
    schedule
}

/// The backup of a slot, as the schedule makes it, in this phase.
fn made(slot: &str, phase: BackupPhase) -> SeenBackup {
    let unix = at(slot).timestamp();
    let mut object = backup(&names::scheduled_backup("hourly", unix));
    object.metadata.uid = Some(format!("b-{unix}"));
    object.metadata.annotations = Some(
        [
            (names::ANNOTATION_SCHEDULE_UID.to_owned(), "s-uid".to_owned()),
            (names::ANNOTATION_SLOT.to_owned(), unix.to_string()),
        ]
        .into(),
    );
    let key = Some(format!("k-{unix}"));
    let completed_at = phase.is_final().then(|| time(slot));
    object.status = Some(EtcdBackupStatus { phase, key, completed_at, ..EtcdBackupStatus::default() });
    SeenBackup { object, prune_job: None }
}

/// What one pass does, in words.
fn pass(schedule: &mut EtcdBackupSchedule, backups: Vec<SeenBackup>, now: &str) -> Vec<String> {
    let plan = plan_schedule(schedule, &ScheduleObserved { backups }, &settings(), at(now));
    schedule.status = Some(plan.status);
    plan.actions.iter().filter(|action| !matches!(action, Action::Notify(_))).map(Action::to_string).collect()
}

fn last_slot(schedule: &EtcdBackupSchedule) -> Option<Time> {
    schedule.status.as_ref()?.last_schedule_time.clone()
}

#[test]
fn a_slot_makes_one_backup() {
    let mut schedule = schedule();
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T09:04:59Z"), [""; 0]);
    assert_eq!(schedule.status.as_ref().unwrap().next_time, Some(time("2026-01-05T09:05:00Z")));

    let name = format!("create EtcdBackup hourly-{}", at("2026-01-05T09:05:00Z").timestamp());
    let before = schedule.clone();
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T09:05:00Z"), [name]);
    assert_eq!(last_slot(&schedule), Some(time("2026-01-05T09:05:00Z")));
    assert_eq!(schedule.status.as_ref().unwrap().next_time, Some(time("2026-01-05T10:05:00Z")));

    // The operator died between the backup and the status: the backup is found by its name.
    let mut again = before;
    let backups = || vec![made("2026-01-05T09:05:00Z", BackupPhase::Running)];
    assert_eq!(pass(&mut again, backups(), "2026-01-05T09:05:20Z"), [""; 0]);
    assert_eq!(last_slot(&again), last_slot(&schedule));
    assert_eq!(again.status.unwrap().active.as_deref(), backups()[0].object.metadata.name.as_deref());
}

#[test]
fn missed_slots_are_made_up_for_once_and_never_overlap() {
    let mut schedule = schedule();
    // Down from before 09:05 until 12:30: only 12:05 is taken.
    let made_up = format!("create EtcdBackup hourly-{}", at("2026-01-05T12:05:00Z").timestamp());
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T12:30:00Z"), [made_up]);

    // 13:05 waits while 12:05 still runs, and comes when it has ended.
    let running = vec![made("2026-01-05T12:05:00Z", BackupPhase::Running)];
    assert_eq!(pass(&mut schedule, running, "2026-01-05T13:05:01Z"), [""; 0]);
    assert!(schedule.status.as_ref().unwrap().message.as_ref().unwrap().contains("waits for hourly-"));
    let ended = vec![made("2026-01-05T12:05:00Z", BackupPhase::Complete)];
    let late = format!("create EtcdBackup hourly-{}", at("2026-01-05T13:05:00Z").timestamp());
    assert_eq!(pass(&mut schedule, ended, "2026-01-05T13:20:00Z"), [late]);
    assert!(schedule.status.as_ref().unwrap().message.is_none());
}

#[test]
fn a_name_that_is_taken_skips_the_slot() {
    let mut schedule = schedule();
    let mut foreign = made("2026-01-05T09:05:00Z", BackupPhase::Complete);
    foreign.object.metadata.annotations = None;
    let plan =
        plan_schedule(&schedule, &ScheduleObserved { backups: vec![foreign] }, &settings(), at("2026-01-05T09:05:10Z"));
    let [Action::Notify(notice)] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert!(notice.warning && notice.message.contains("is not of this schedule"), "{notice:?}");
    assert_eq!(plan.status.last_schedule_time, Some(time("2026-01-05T09:05:00Z")));
    schedule.status = Some(plan.status);
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T09:06:00Z"), [""; 0]);
}

#[test]
fn a_suspended_schedule_makes_nothing_and_makes_up_for_nothing() {
    let mut schedule = schedule();
    schedule.spec.suspend = true;
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T11:30:00Z"), [""; 0]);
    assert_eq!(schedule.status.as_ref().unwrap().next_time, None);
    schedule.spec.suspend = false;
    assert_eq!(pass(&mut schedule, vec![], "2026-01-05T11:31:00Z"), [""; 0]);
}

#[test]
fn the_last_two_are_kept_and_the_store_is_cleared_before_the_object() {
    let mut schedule = schedule();
    schedule.status = Some(Default::default());
    schedule.status.as_mut().unwrap().last_schedule_time = Some(time("2026-01-05T12:05:00Z"));
    let (a, b, c, d) = ("2026-01-05T09:05:00Z", "2026-01-05T10:05:00Z", "2026-01-05T11:05:00Z", "2026-01-05T12:05:00Z");
    let now = "2026-01-05T12:30:00Z";
    let old = at(a).timestamp();
    let four = |phase: BackupPhase| {
        vec![
            made(d, phase),
            made(b, BackupPhase::Failed),
            made(a, BackupPhase::Complete),
            made(c, BackupPhase::Complete),
        ]
    };
    let mut backups = four(BackupPhase::Complete);
    assert_eq!(pass(&mut schedule, backups.clone(), now), [format!("create Job hourly-{old}-prune")]);

    backups[2].prune_job = Some(job("p", JobState::Active, None));
    assert_eq!(pass(&mut schedule, backups.clone(), now), [""; 0]);
    backups[2].prune_job = Some(job("p", JobState::Succeeded, Some(AgentReport::Pruned { key: "k".to_owned() })));
    assert_eq!(pass(&mut schedule, backups.clone(), now), [format!("delete EtcdBackup hourly-{old}")]);
    // The failed one is older than the two that are kept.
    backups.remove(2);
    let failed = at(b).timestamp();
    assert_eq!(pass(&mut schedule, backups.clone(), now), [format!("create Job hourly-{failed}-prune")]);
    backups.remove(1);
    assert_eq!(pass(&mut schedule, backups, now), [""; 0]);
    assert_eq!(schedule.status.as_ref().unwrap().last_successful_time, Some(time(d)));

    // While the latest one failed, nothing is removed.
    assert_eq!(pass(&mut schedule, four(BackupPhase::Failed), now), [""; 0]);
    // A store that forbids deletion is reported, not asked again and again.
    let mut locked = four(BackupPhase::Complete);
    let report = Some(AgentReport::Failed { message: "object lock: access denied".to_owned() });
    locked[2].prune_job = Some(job("p", JobState::Failed("BackoffLimitExceeded".to_owned()), report));
    assert_eq!(pass(&mut schedule, locked, now), [""; 0]);
    assert!(schedule.status.as_ref().unwrap().message.as_ref().unwrap().contains("object lock: access denied"));
}

#[test]
fn a_schedule_that_cannot_be_read_says_so() {
    for (text, why) in [
        ("nonsense", "has 1 fields, five are needed"),
        ("61 * * * *", "is no cron expression"),
        ("0 0 5 * * *", "has 6 fields, five are needed"),
    ] {
        let mut schedule = schedule();
        schedule.spec.schedule = text.to_owned();
        let plan = plan_schedule(&schedule, &ScheduleObserved::default(), &settings(), at(NOW));
        assert_eq!(plan.actions, []);
        assert!(plan.status.message.as_ref().unwrap().contains(why), "{text}: {:?}", plan.status.message);
    }
}

/// Backups and schedules as anybody may have stored them who may write them, and what a Job's pod left.
#[test]
fn fuzz_backup_objects() {
    use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
    #[derive(serde::Deserialize)]
    struct Stored {
        backup: EtcdBackup,
        cluster: Option<EtcdCluster>,
        job: Option<Job>,
        #[serde(default)]
        pods: Vec<Pod>,
        schedule: EtcdBackupSchedule,
        backups: Vec<EtcdBackup>,
    }
    let stored = |schedule: &EtcdBackupSchedule, job: serde_json::Value| {
        let backups =
            ["2026-01-05T08:05:00Z", "2026-01-05T09:05:00Z"].map(|slot| made(slot, BackupPhase::Complete).object);
        let report = AgentReport::Failed { message: "no".to_owned() }.to_message();
        let pod = serde_json::json!({
            "metadata": {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j"}]},
            "status": {"containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 1, "message": report}},
            }]},
        });
        let all = serde_json::json!({
            "backup": backup("first"), "cluster": cluster(), "job": job, "pods": [pod],
            "schedule": schedule, "backups": backups,
        });
        all.to_string()
    };
    let mut used = schedule();
    pass(&mut used, vec![], "2026-01-05T09:05:00Z");
    let ended = serde_json::json!({
        "metadata": {"name": "first-backup", "uid": "j",
            "ownerReferences": [{"apiVersion": "v", "kind": "EtcdBackup", "name": "first", "uid": "12345678-b"}]},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]},
    });
    let decide = |bytes: &[u8]| {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let uid = stored.backup.metadata.uid.clone().unwrap_or_default();
        let job = stored.job.map(|job| SeenJob::of(&job, &stored.pods, &uid));
        let now = at(NOW);
        let one = plan_backup(&stored.backup, &BackupObserved { cluster: stored.cluster, job }, &settings(), now);
        let backups = stored.backups.into_iter().map(|object| SeenBackup { object, prune_job: None }).collect();
        let all = plan_schedule(&stored.schedule, &ScheduleObserved { backups }, &settings(), now);
        let actions = one.actions.iter().chain(&all.actions).map(Action::to_string).collect::<Vec<_>>();
        Ok::<_, String>(format!("{:?} {:?} {}", one.status.message, all.status.message, actions.join(" ")))
    };
    let seeds = [stored(&schedule(), serde_json::Value::Null), stored(&used, ended)];
    for seed in &seeds {
        decide(seed.as_bytes()).unwrap();
    }
    let words = [
        "0 0 31 2 *",
        "*/1 ",
        "L",
        "\"schedule\":",
        "9223372036854775807",
        "-1",
        "\"creationTimestamp\":",
        "\"9999-12-31T23:59:59Z\"",
        "\"-009999-01-01T00:00:00Z\"",
        "null",
        "\"keepLast\":",
        "\"ferretcd.io/slot\":\"",
    ];
    let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "backup_objects").seeds(seeds);
    fuzz.words(&words).quick(1000).run(|bytes| decide(bytes).unwrap_or_else(|e| e));
}
