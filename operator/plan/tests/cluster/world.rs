//! A world in memory: a Kubernetes and an etcd that are small enough to read, and strict. Every action is checked against the
//! rules that must hold whatever happens (R1, R3, R4, R5, R9, R10); a test that breaks one panics with its name.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use ferretcd_operator_api::{
    AgentReport, DeletionPolicy, EtcdBackup, EtcdCluster, EtcdClusterSpec, EtcdClusterStatus, Storage, names,
};
use ferretcd_operator_plan::{
    Action, Alarm, EtcdView, Fault, Identity, Kind, ListedMember, MemberHealth, MemberList, Object, Observed, Outcome,
    Plan, Probe, SeenObjects, Settings, Target, delete, plan, status, validate,
};
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

pub const NAMESPACE: &str = "ns";

pub fn settings() -> Settings {
    Settings {
        server_repository: "example.org/ferretcd".to_owned(),
        server_version: "0.1.0".to_owned(),
        operator_image: "example.org/ferretcd-operator:0.1.0".to_owned(),
        operator_pull_policy: None,
    }
}

pub fn cluster(name: &str, uid: &str, replicas: i32) -> EtcdCluster {
    let spec = EtcdClusterSpec {
        replicas,
        storage: Storage { size: "1Gi".to_owned(), storage_class_name: None },
        version: None,
        image: None,
        image_pull_policy: None,
        resources: None,
        deletion_policy: DeletionPolicy::Retain,
        options: None,
        bootstrap: None,
    };
    let mut cluster = EtcdCluster::new(name, spec);
    cluster.metadata.namespace = Some(NAMESPACE.to_owned());
    cluster.metadata.uid = Some(uid.to_owned());
    cluster.metadata.generation = Some(1);
    cluster
}

/// A data directory.
#[derive(Clone, Debug)]
struct Disk {
    serial: i64,
    member: u64,
    cluster: u64,
}

/// What etcd's members agree on.
#[derive(Clone, Debug, Default)]
pub struct Etcd {
    pub cluster: u64,
    pub members: Vec<ListedMember>,
    pub leader: u64,
    pub term: u64,
    pub index: u64,
}

pub struct World {
    pub object: EtcdCluster,
    pub gone: bool,
    pub objects: SeenObjects,
    pub etcd: Etcd,
    pub backup: Option<EtcdBackup>,
    pub now: DateTime<Utc>,
    /// Members that are cut off: they run and answer nobody.
    pub silent: BTreeSet<i64>,
    /// Serials whose pods cannot start.
    pub broken: BTreeSet<i64>,
    /// Alarms, as the member that is asked for the list knows them.
    pub alarms: Vec<Alarm>,
    /// What the restore Job reports; `None` while it runs.
    pub restore_result: Option<Result<AgentReport, AgentReport>>,
    /// The member through which the list is read, where a story wants a certain one.
    pub answered_by: Option<i64>,
    /// Every cluster that was ever founded: R1 allows one.
    pub founded: Vec<u64>,
    /// The plan's actions, in order, for stories.
    pub log: Vec<String>,
    disks: BTreeMap<String, Disk>,
    applied: BTreeMap<u64, u64>,
    used_ids: BTreeSet<u64>,
    next_uid: u64,
}

impl World {
    pub fn new(object: EtcdCluster) -> World {
        World {
            object,
            gone: false,
            objects: SeenObjects::default(),
            etcd: Etcd::default(),
            backup: None,
            now: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            silent: BTreeSet::new(),
            broken: BTreeSet::new(),
            alarms: Vec::new(),
            restore_result: None,
            answered_by: None,
            founded: Vec::new(),
            log: Vec::new(),
            disks: BTreeMap::new(),
            applied: BTreeMap::new(),
            used_ids: BTreeSet::new(),
            next_uid: 0,
        }
    }

    pub fn name(&self) -> String {
        self.object.metadata.name.clone().unwrap()
    }

    pub fn status(&self) -> EtcdClusterStatus {
        self.object.status.clone().unwrap_or_default()
    }

    fn uid(&mut self) -> String {
        self.next_uid += 1;
        format!("uid-{}", self.next_uid)
    }

    fn url(&self, serial: i64) -> String {
        names::peer_url(&self.name(), NAMESPACE, serial)
    }

    pub fn serial_of(&self, id: u64) -> i64 {
        let listed = self.etcd.members.iter().find(|member| member.id == id).expect("a listed member");
        (0..100).find(|serial| listed.peer_urls == [self.url(*serial)]).expect("a serial")
    }

    /// One full pass, of which only the first `limit` actions happen (the operator is killed before the next).
    /// Returns the plan and how many actions were carried out.
    pub fn pass(&mut self, limit: usize) -> (Plan, usize) {
        let observed = self.observe();
        let identity = Identity::of(&self.object).unwrap();
        let policy = self.object.spec.deletion_policy;
        let plan = if identity.deleting {
            delete(&identity, policy, &observed)
        } else {
            match validate(&self.object, &settings()) {
                Ok(cluster) => plan(&cluster, &observed, self.now),
                Err(rejections) => rejections.plan(),
            }
        };
        self.check_plan(&plan, &observed);
        let mut outcome = Outcome::default();
        for action in &plan.actions {
            if outcome.done == limit {
                return (plan, outcome.done);
            }
            match self.act(action) {
                Ok(()) => {
                    outcome.done += 1;
                    if !matches!(action, Action::Notify(_)) {
                        self.log.push(action.to_string());
                    }
                }
                Err(fault) => {
                    outcome.fault = Some(fault);
                    break;
                }
            }
        }
        let done = outcome.done;
        if !self.gone && limit > plan.actions.len() {
            let next = status(&identity, self.object.spec.replicas, &observed, &plan, &outcome, self.now);
            self.object.status = Some(next);
        }
        (plan, done)
    }

    /// Passes and ticks until `done`, or panics with the story so far.
    pub fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..400 {
            if done(self) {
                return;
            }
            self.pass(usize::MAX);
            self.tick();
        }
        panic!("never: {what}\n{}\n{:#?}", self.log.join("\n"), self.status());
    }

    pub fn ready(&self) -> bool {
        let status = self.status();
        let wanted = self.object.spec.replicas;
        status.ready_members == Some(format!("{wanted}/{wanted}"))
            && status.members.len() == wanted as usize
            && status.operation.is_none()
            && status.members.iter().all(|member| member.serving)
            && self.objects.pods.iter().filter(|pod| is_member(pod)).all(serving)
    }

    fn check_plan(&self, plan: &Plan, observed: &Observed) {
        let quorum_actions = plan.actions.iter().filter(|action| touches_quorum(action)).count();
        assert!(quorum_actions <= 1, "one quorum change per pass: {:?}", plan.actions);
        if let Some(at) = plan.actions.iter().position(|action| matches!(action, Action::Record(_))) {
            let after = plan.actions[at + 1..].iter().all(|action| matches!(action, Action::Notify(_)));
            assert!(after, "nothing but events after a Record: {:?}", plan.actions);
        }
        // R7
        if observed.recorded.cluster_id.is_some()
            && observed.etcd.list.is_none()
            && self.object.metadata.deletion_timestamp.is_none()
        {
            for action in &plan.actions {
                let harmless = !touches_quorum(action)
                    && !matches!(action, Action::MarkClaim { .. } | Action::Create(Object::PersistentVolumeClaim(_)))
                    && !matches!(
                        action,
                        Action::Delete { target: Target { kind: Kind::PersistentVolumeClaim, .. }, .. }
                    );
                assert!(harmless, "R7: {action} without a quorum");
            }
        }
    }

    pub fn observe(&self) -> Observed {
        let identity = Identity::of(&self.object).unwrap();
        let finalizer = self.object.metadata.finalizers.iter().flatten().any(|name| name == names::FINALIZER);
        let etcd = EtcdView { list: self.member_list(), probes: self.probes() };
        Observed::collect(&identity, self.status(), finalizer, &self.objects, self.backup.clone(), etcd)
    }

    fn member_list(&self) -> Option<MemberList> {
        let leaving = self.status().operation.map(|operation| operation.member);
        let mut voters: Vec<i64> = self.running_voters();
        // Prefers one that no operation is about, as observe does.
        voters.sort_by_key(|serial| Some(names::member(&self.name(), *serial)) == leaving);
        let answered_by = self.answered_by.or(voters.first().copied())?;
        self.quorum().then(|| MemberList {
            cluster_id: self.etcd.cluster,
            answered_by,
            members: self.etcd.members.clone(),
        })
    }

    fn probes(&self) -> BTreeMap<i64, Probe> {
        let mut probes = BTreeMap::new();
        let asked = self.member_list().map(|list| list.answered_by);
        for member in &self.status().members {
            let probe = match self.running(member.serial) {
                Some(id) => {
                    let listed = self.etcd.members.iter().find(|listed| listed.id == id);
                    let learner = listed.is_some_and(|listed| listed.learner);
                    Probe::Answered(Box::new(MemberHealth {
                        member_id: id,
                        cluster_id: self.etcd.cluster,
                        leader: if self.quorum() { self.etcd.leader } else { 0 },
                        learner,
                        ready: listed.is_some() && !learner && self.quorum(),
                        version: "0.1.0".to_owned(),
                        db_size: 20_480,
                        raft_index: self.etcd.index,
                        raft_applied_index: self.applied.get(&id).copied().unwrap_or_default(),
                        raft_term: self.etcd.term,
                        alarms: if asked == Some(member.serial) { self.alarms.clone() } else { Vec::new() },
                    }))
                }
                None => Probe::Unreachable("connection refused".to_owned()),
            };
            probes.insert(member.serial, probe);
        }
        probes
    }

    /// The ID of the member that runs under this serial and answers.
    fn running(&self, serial: i64) -> Option<u64> {
        let pod = self.objects.pods.iter().find(|pod| pod.metadata.name == Some(names::pod(&self.name(), serial)))?;
        if pod.metadata.deletion_timestamp.is_some() || self.silent.contains(&serial) || self.broken.contains(&serial) {
            return None;
        }
        let disk = self.disks.get(&names::volume_claim(&self.name(), serial))?;
        (disk.cluster == self.etcd.cluster).then_some(disk.member)
    }

    fn running_voters(&self) -> Vec<i64> {
        let voters = self.etcd.members.iter().filter(|member| !member.learner);
        voters
            .filter_map(|member| {
                self.disks
                    .values()
                    .find(|disk| disk.member == member.id)
                    .map(|disk| disk.serial)
                    .filter(|serial| self.running(*serial) == Some(member.id))
            })
            .collect()
    }

    pub fn quorum(&self) -> bool {
        let voters = self.etcd.members.iter().filter(|member| !member.learner).count();
        voters > 0 && self.running_voters().len() > voters / 2
    }

    /// One side effect, as the API servers would take it.
    pub fn act(&mut self, action: &Action) -> Result<(), Fault> {
        let wait = |why: &str| Err(Fault::Wait(why.to_owned()));
        match action {
            Action::SetFinalizer { present: true } => {
                self.object.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
            }
            Action::SetFinalizer { present: false } => {
                let members = self.objects.pods.iter().any(is_member);
                assert!(!members && self.objects.stateful_sets.is_empty(), "R43: pods are gone before the finalizer");
                self.gone = true;
            }
            Action::Record(ledger) => self.record(ledger),
            Action::Create(object) => return self.create(object),
            Action::Apply(object) => return self.apply(object),
            Action::Delete { target, uid } => return self.delete(target, uid),
            Action::MarkClaim { name, uid, annotations, labels } => {
                let claim = self.objects.claims.iter_mut().find(|claim| claim.metadata.name.as_ref() == Some(name));
                let Some(claim) = claim else { return Err(Fault::Conflict("no such claim".to_owned())) };
                assert_eq!(claim.metadata.uid.as_ref(), Some(uid), "R9");
                claim.metadata.annotations.get_or_insert_default().extend(annotations.clone());
                claim.metadata.labels.get_or_insert_default().extend(labels.clone());
            }
            Action::LabelServing { pod, uid, serving } => {
                let Some(pod) = self.objects.pods.iter_mut().find(|other| other.metadata.name.as_ref() == Some(pod))
                else {
                    return Ok(());
                };
                assert_eq!(pod.metadata.uid.as_ref(), Some(uid), "R9");
                let labels = pod.metadata.labels.get_or_insert_default();
                labels.remove(names::LABEL_SERVING);
                if *serving {
                    labels.insert(names::LABEL_SERVING.to_owned(), "true".to_owned());
                }
            }
            Action::AddLearner { peer_url } => {
                if !self.quorum() {
                    return wait("etcdserver: unhealthy cluster");
                }
                if self.etcd.members.iter().any(|member| member.learner) {
                    return wait("etcdserver: too many learner members in cluster");
                }
                let voters = self.etcd.members.len();
                assert_eq!(self.running_voters().len(), voters, "R3: all voters are healthy when a member is added");
                assert!(!self.etcd.members.iter().any(|member| member.peer_urls.contains(peer_url)), "added twice");
                let id = self.mint();
                let (name, peer_urls) = (String::new(), vec![peer_url.clone()]);
                self.etcd.members.push(ListedMember { id, name, peer_urls, learner: true });
            }
            Action::Promote { id } => {
                let applied = self.applied.get(id).copied().unwrap_or_default();
                if !self.quorum() || applied < self.etcd.index * 9 / 10 {
                    return wait("etcdserver: can only promote a learner member which is in sync with leader");
                }
                let member = self.etcd.members.iter_mut().find(|member| member.id == *id).expect("a member");
                assert!(member.learner, "promoted twice");
                member.learner = false;
            }
            Action::RemoveMember { id, peer_url } => {
                if !self.quorum() {
                    return wait("etcdserver: unhealthy cluster");
                }
                let member = self.etcd.members.iter().find(|member| member.id == *id).expect("a member").clone();
                assert!(member.peer_urls.contains(peer_url), "ID and URL match");
                assert_ne!(self.etcd.leader, *id, "R6: the leader is moved away first");
                let learners = self.etcd.members.iter().filter(|member| member.learner && member.id != *id).count();
                assert_eq!(learners, 0, "R4: no voter changes while a learner exists");
                let serial = self.serial_of(*id);
                self.etcd.members.retain(|member| member.id != *id);
                let voters = self.etcd.members.iter().filter(|member| !member.learner).count();
                assert!(self.running_voters().len() > voters / 2, "R3: the rest has a healthy quorum");
                let pod =
                    self.objects.pods.iter().find(|pod| pod.metadata.name == Some(names::pod(&self.name(), serial)));
                assert!(pod.is_none_or(|pod| !serving(pod)), "C2: no clients at a member that is removed");
            }
            Action::MoveLeader { leader_serial, to } => {
                assert_eq!(self.running(*leader_serial), Some(self.etcd.leader), "asked of the leader");
                let heir = self.etcd.members.iter().find(|member| member.id == *to).expect("a member");
                assert!(!heir.learner, "a voter");
                self.etcd.leader = *to;
                self.etcd.term += 1;
            }
            Action::Notify(_) => {}
        }
        Ok(())
    }

    fn mint(&mut self) -> u64 {
        let id = 0xa000 + self.used_ids.len() as u64;
        assert!(self.used_ids.insert(id));
        id
    }

    fn record(&mut self, ledger: &EtcdClusterStatus) {
        let old = self.status();
        assert!(ledger.next_member_serial >= old.next_member_serial, "serials only grow");
        if old.cluster_id.is_some() {
            assert_eq!(ledger.cluster_id, old.cluster_id, "R1: the cluster ID never changes");
        }
        for member in &ledger.members {
            if let Some(id) = &member.id {
                assert!(!ledger.retired_member_ids.contains(id), "a retired ID is never a member again");
            }
        }
        self.object.status = Some(ledger.clone());
    }

    fn create(&mut self, object: &Object) -> Result<(), Fault> {
        let uid = self.uid();
        let exists = || Err(Fault::Conflict("it exists".to_owned()));
        macro_rules! put {
            ($list:expr, $object:expr) => {{
                if $list.iter().any(|other| other.metadata.name == $object.metadata.name) {
                    return exists();
                }
                let mut object = (**$object).clone();
                object.metadata.uid = Some(uid);
                $list.push(object);
            }};
        }
        match object {
            Object::Service(object) => put!(self.objects.services, object),
            Object::PersistentVolumeClaim(object) => {
                assert!(!self.status().members.is_empty(), "R1: serial and token are recorded before the volume");
                put!(self.objects.claims, object);
            }
            Object::StatefulSet(object) => {
                self.check_set(object);
                put!(self.objects.stateful_sets, object);
            }
            Object::PodDisruptionBudget(object) => put!(self.objects.budgets, object),
            Object::Job(object) => put!(self.objects.jobs, object),
            Object::EtcdBackup(_) => panic!("not of a cluster"),
        }
        Ok(())
    }

    fn check_set(&self, set: &k8s_openapi::api::apps::v1::StatefulSet) {
        let args = arguments(&set.spec.template.spec.as_ref().unwrap().containers[0]);
        if args.contains(&"--member-intent=bootstrap".to_owned()) {
            assert!(self.status().cluster_id.is_none(), "R1: no intent to bootstrap once the cluster ID is known");
        }
    }

    fn apply(&mut self, object: &Object) -> Result<(), Fault> {
        macro_rules! replace {
            ($list:expr, $object:expr) => {{
                let existing = $list.iter_mut().find(|other| other.metadata.name == $object.metadata.name);
                let Some(existing) = existing else { return Err(Fault::Conflict("gone".to_owned())) };
                assert!($object.metadata.uid.is_some(), "R9: an update names the UID");
                if existing.metadata.uid != $object.metadata.uid {
                    return Err(Fault::Conflict("another UID".to_owned()));
                }
                *existing = (**$object).clone();
            }};
        }
        match object {
            Object::Service(object) => replace!(self.objects.services, object),
            Object::StatefulSet(object) => {
                self.check_set(object);
                replace!(self.objects.stateful_sets, object);
            }
            Object::PodDisruptionBudget(object) => replace!(self.objects.budgets, object),
            Object::PersistentVolumeClaim(_) | Object::Job(_) | Object::EtcdBackup(_) => panic!("never changed"),
        }
        Ok(())
    }

    fn delete(&mut self, target: &Target, uid: &str) -> Result<(), Fault> {
        let deleting = self.object.metadata.deletion_timestamp.is_some();
        let time = Some(Time(Default::default()));
        let Target { kind, name } = target;
        let named = |metadata: &ObjectMeta| metadata.name.as_ref() == Some(name);
        match kind {
            Kind::StatefulSet => {
                let serial: i64 = name.rsplit('-').next().unwrap().parse().unwrap();
                let listed = self.etcd.members.iter().any(|member| member.peer_urls.contains(&self.url(serial)));
                assert!(deleting || !listed, "R5: the member is removed before its pod");
                let set = self.objects.stateful_sets.iter_mut().find(|set| named(&set.metadata));
                let Some(set) = set else { return Ok(()) };
                assert_eq!(set.metadata.uid.as_deref(), Some(uid), "R9");
                set.metadata.deletion_timestamp = time;
            }
            Kind::PersistentVolumeClaim => {
                let serial: i64 = name.rsplit('-').next().unwrap().parse().unwrap();
                let pod = names::pod(&self.name(), serial);
                assert!(
                    !self.objects.pods.iter().any(|other| other.metadata.name.as_ref() == Some(&pod)),
                    "R5: pod first"
                );
                let listed = self.etcd.members.iter().any(|member| member.peer_urls.contains(&self.url(serial)));
                assert!(deleting || !listed, "R5: member first");
                let claim = self.objects.claims.iter_mut().find(|claim| named(&claim.metadata));
                let Some(claim) = claim else { return Ok(()) };
                assert_eq!(claim.metadata.uid.as_deref(), Some(uid), "R9");
                let owner = claim.metadata.annotations.as_ref().unwrap().get(names::ANNOTATION_CLUSTER_UID);
                assert_eq!(owner, self.object.metadata.uid.as_ref(), "R10: never another cluster's data");
                claim.metadata.deletion_timestamp = time;
            }
            Kind::PodDisruptionBudget => self.objects.budgets.clear(),
            Kind::Service | Kind::Job | Kind::EtcdBackup => panic!("never deleted by a cluster's pass"),
        }
        Ok(())
    }

    /// Time passes: Kubernetes' controllers, the servers and raft each take a step.
    pub fn tick(&mut self) {
        self.now += Duration::seconds(2);
        self.stop_pods();
        self.start_pods();
        self.run_servers();
        self.run_jobs();
    }

    fn stop_pods(&mut self) {
        let name = self.name();
        let stopping: Vec<String> = self
            .objects
            .stateful_sets
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_some())
            .map(|set| set.metadata.name.clone().unwrap())
            .collect();
        for set in stopping {
            let pod = format!("{set}-0");
            match self.objects.pods.iter_mut().find(|other| other.metadata.name.as_ref() == Some(&pod)) {
                Some(pod) if pod.metadata.deletion_timestamp.is_none() => {
                    pod.metadata.deletion_timestamp = Some(Time(Default::default()));
                }
                Some(_) => self.objects.pods.retain(|other| other.metadata.name.as_ref() != Some(&pod)),
                None => self.objects.stateful_sets.retain(|other| other.metadata.name.as_ref() != Some(&set)),
            }
        }
        let gone: Vec<String> = self
            .objects
            .claims
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_some())
            .map(|claim| claim.metadata.name.clone().unwrap())
            .filter(|claim| {
                let serial: i64 = claim.rsplit('-').next().unwrap().parse().unwrap();
                !self.objects.pods.iter().any(|pod| pod.metadata.name == Some(names::pod(&name, serial)))
            })
            .collect();
        for claim in gone {
            self.objects.claims.retain(|other| other.metadata.name.as_ref() != Some(&claim));
            self.disks.remove(&claim);
        }
    }

    fn start_pods(&mut self) {
        for set in self.objects.stateful_sets.clone() {
            let name = format!("{}-0", set.metadata.name.clone().unwrap());
            let exists = self.objects.pods.iter().any(|pod| pod.metadata.name.as_ref() == Some(&name));
            if set.metadata.deletion_timestamp.is_some() || exists {
                continue;
            }
            let template = set.spec.template.clone();
            let metadata = ObjectMeta {
                name: Some(name),
                uid: Some(self.uid()),
                labels: template.metadata.unwrap().labels,
                ..ObjectMeta::default()
            };
            self.objects.pods.push(Pod { metadata, spec: template.spec, status: None });
        }
    }

    fn run_servers(&mut self) {
        for pod in self.objects.pods.clone().iter().filter(|pod| is_member(pod)) {
            let serial: i64 = pod.metadata.labels.as_ref().unwrap()[names::LABEL_SERIAL].parse().unwrap();
            let claim = names::volume_claim(&self.name(), serial);
            let bound = self.objects.claims.iter().any(|other| other.metadata.name.as_ref() == Some(&claim));
            if !bound || self.disks.contains_key(&claim) || self.broken.contains(&serial) {
                continue;
            }
            let args = arguments(&pod.spec.as_ref().unwrap().containers[0]);
            let intent = args.iter().find_map(|arg| arg.strip_prefix("--member-intent=")).expect("always an intent");
            let url = self.url(serial);
            match intent {
                "bootstrap" => {
                    let token = args.iter().find_map(|arg| arg.strip_prefix("--initial-cluster-token=")).unwrap();
                    assert!(token.contains(self.object.metadata.uid.as_ref().unwrap()), "the token holds the UID");
                    let cluster = 0xc000 + self.founded.len() as u64;
                    self.founded.push(cluster);
                    let member = self.mint();
                    let (name, peer_urls) = (names::member(&self.name(), serial), vec![url]);
                    let members = vec![ListedMember { id: member, name, peer_urls, learner: false }];
                    self.etcd = Etcd { cluster, members, leader: member, term: 2, index: 10 };
                    self.disks.insert(claim, Disk { serial, member, cluster });
                }
                "join" => {
                    let (name, cluster) = (names::member(&self.name(), serial), self.etcd.cluster);
                    let quorum = self.quorum();
                    let Some(member) = self.etcd.members.iter_mut().find(|member| member.peer_urls.contains(&url))
                    else {
                        continue;
                    };
                    if quorum && member.name.is_empty() {
                        member.name = name;
                        self.disks.insert(claim, Disk { serial, member: member.id, cluster });
                    }
                }
                "run" => {}
                other => panic!("no such intent: {other}"),
            }
        }
        let voters = self.running_voters();
        let leads = voters.iter().any(|serial| self.running(*serial) == Some(self.etcd.leader));
        if self.quorum() {
            if !leads {
                self.etcd.leader = self.running(voters[0]).unwrap();
                self.etcd.term += 1;
            }
            self.etcd.index += 3;
        }
        for serial in self.disks.values().map(|disk| disk.serial).collect::<Vec<_>>() {
            if let Some(id) = self.running(serial) {
                let behind = self.etcd.members.iter().any(|member| member.id == id && member.learner);
                let applied = self.applied.entry(id).or_insert(0);
                // A learner takes two steps to catch up.
                *applied = if behind && *applied == 0 { 1 } else { self.etcd.index };
            }
        }
    }

    fn run_jobs(&mut self) {
        let Some(result) = self.restore_result.clone() else { return };
        for job in self.objects.jobs.iter_mut().filter(|job| job.status.is_none()) {
            let (kind, report) = match &result {
                Ok(report) => ("Complete", report),
                Err(report) => ("Failed", report),
            };
            job.status = Some(JobStatus {
                conditions: Some(vec![JobCondition {
                    type_: kind.to_owned(),
                    status: "True".to_owned(),
                    ..JobCondition::default()
                }]),
                ..JobStatus::default()
            });
            let ended =
                ContainerStateTerminated { message: Some(report.to_message()), ..ContainerStateTerminated::default() };
            self.objects.pods.push(Pod {
                metadata: ObjectMeta {
                    name: Some(format!("{}-x", job.metadata.name.clone().unwrap())),
                    owner_references: Some(vec![OwnerReference {
                        uid: job.metadata.uid.clone().unwrap(),
                        ..OwnerReference::default()
                    }]),
                    ..ObjectMeta::default()
                },
                spec: None,
                status: Some(PodStatus {
                    container_statuses: Some(vec![ContainerStatus {
                        state: Some(ContainerState { terminated: Some(ended), ..ContainerState::default() }),
                        ..ContainerStatus::default()
                    }]),
                    ..PodStatus::default()
                }),
            });
        }
    }

    /// Deletes a pod as a node failure or a user would; its data stays.
    pub fn lose_pod(&mut self, serial: i64) {
        let name = names::pod(&self.name(), serial);
        self.objects.pods.retain(|pod| pod.metadata.name.as_ref() != Some(&name));
    }

    /// Empties a volume, as a broken disk would.
    pub fn wipe(&mut self, serial: i64) {
        self.disks.remove(&names::volume_claim(&self.name(), serial));
    }

    /// The actions since the last call, one per line.
    pub fn story(&mut self) -> String {
        let story = self.log.join("\n");
        self.log.clear();
        story
    }
}

fn touches_quorum(action: &Action) -> bool {
    match action {
        Action::AddLearner { .. }
        | Action::Promote { .. }
        | Action::RemoveMember { .. }
        | Action::MoveLeader { .. } => true,
        Action::SetFinalizer { .. }
        | Action::Record(_)
        | Action::Create(_)
        | Action::Apply(_)
        | Action::Delete { .. }
        | Action::MarkClaim { .. }
        | Action::LabelServing { .. }
        | Action::Notify(_) => false,
    }
}

pub fn is_member(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::LABEL_SERIAL))
}

pub fn serving(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::LABEL_SERVING))
}

pub fn arguments(container: &k8s_openapi::api::core::v1::Container) -> Vec<String> {
    container.args.clone().unwrap_or_default()
}
