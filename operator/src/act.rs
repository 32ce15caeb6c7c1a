//! The only writer of the cluster: it carries out a plan's actions in order and stops at the first that does not succeed. Each
//! one names the UID or resourceVersion it was decided for, so that an object that changed since is left alone.

use std::fmt::Debug;

use ferretcd_operator_api::{EtcdBackup, EtcdCluster, EtcdClusterStatus, names};
use ferretcd_operator_plan::{Action, EtcdView, Fault, Kind, Notice, Object, Outcome, Probe, Target};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        core::v1::{ObjectReference, PersistentVolumeClaim, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::events::{Event, EventType, Recorder},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    kube_error,
    members::{Member, MemberError, Refusal},
};

/// Who owns what we write to a status.
pub const STATUS_MANAGER: &str = "ferretcd-operator-status";
/// Who owns the labels and annotations that we put on objects which we do not apply: volume claims, and pods that a
/// StatefulSet made.
pub const MARK_MANAGER: &str = "ferretcd-operator-mark";
/// The longest note of an event, in characters: the API allows 1024 bytes, and ours are nearly all ASCII.
const MAX_NOTE: usize = 800;

/// What a pass acts with.
pub struct Actor<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Where events go.
    pub recorder: &'a Recorder,
    /// The resource of the pass.
    pub about: ObjectReference,
    /// The cluster of the pass; absent in passes over backups and schedules, whose plans need none.
    pub cluster: Option<ClusterHandle>,
}

/// A cluster that is acted upon.
pub struct ClusterHandle {
    /// The resource as it was read, and later as it was written: its resourceVersion is the fencing token.
    pub object: EtcdCluster,
    /// Serials of the members to call, best first.
    pub callable: Vec<i64>,
}

impl ClusterHandle {
    /// Calls go to the member that listed the members, then to those that serve, then to whoever answered.
    pub fn new(object: EtcdCluster, etcd: &EtcdView) -> ClusterHandle {
        let mut callable: Vec<(u8, i64)> = etcd
            .probes
            .iter()
            .filter_map(|(serial, probe)| {
                let Probe::Answered(health) = probe else { return None };
                let listed = etcd.list.as_ref().is_some_and(|list| list.answered_by == *serial);
                Some((
                    if listed {
                        0
                    } else if health.ready {
                        1
                    } else {
                        2
                    },
                    *serial,
                ))
            })
            .collect();
        callable.sort_unstable();
        ClusterHandle { object, callable: callable.into_iter().map(|(_, serial)| serial).collect() }
    }

    /// The member with this serial.
    fn member(&self, serial: i64) -> Result<Member, Fault> {
        let namespace = self.object.namespace().unwrap_or_default();
        let url = names::client_url(&self.object.name_any(), &namespace, serial);
        Member::new(&url).map_err(|error| Fault::Failed(error.to_string()))
    }

    /// The best member to call.
    fn any_member(&self) -> Result<Member, Fault> {
        match self.callable.first() {
            Some(serial) => self.member(*serial),
            None => Err(Fault::Wait("no member answers".to_owned())),
        }
    }
}

impl Actor<'_> {
    /// Carries out actions until one does not succeed.
    pub async fn act(&mut self, actions: &[Action]) -> Outcome {
        for (done, action) in actions.iter().enumerate() {
            match self.one(action).await {
                Ok(()) => info!(action = summary(action), "done"),
                Err(fault) => {
                    let action = summary(action);
                    match &fault {
                        Fault::Wait(why) => info!(action, why, "not yet"),
                        Fault::Conflict(why) => info!(action, why, "the world has changed, looking again"),
                        Fault::Failed(why) => warn!(action, why, "failed"),
                    }
                    return Outcome { done, fault: Some(fault) };
                }
            }
        }
        Outcome { done: actions.len(), fault: None }
    }

    /// Writes the status of the cluster, with the resourceVersion that is known.
    ///
    /// # Errors
    /// A conflict, if somebody else has written the resource; the API server's refusal otherwise.
    pub async fn record(&mut self, status: &EtcdClusterStatus) -> Result<(), Fault> {
        let client = self.client.clone();
        let handle = self.cluster()?;
        let mut object = handle.object.clone();
        object.status = Some(status.clone());
        handle.object = write_status(&client, &object).await?;
        Ok(())
    }

    async fn one(&mut self, action: &Action) -> Result<(), Fault> {
        match action {
            Action::SetFinalizer { present } => self.set_finalizer(*present).await,
            Action::Record(status) => self.record(status).await,
            Action::Create(object) => self.create(object).await,
            Action::Apply(object) => self.apply(object).await,
            Action::Delete { target, uid } => self.delete(target, uid).await,
            Action::MarkClaim { name, uid, annotations, labels } => {
                let patch = json!({"metadata": {"uid": uid, "annotations": annotations, "labels": labels}});
                match self.merge::<PersistentVolumeClaim>(name, patch).await? {
                    Merged::Done => Ok(()),
                    Merged::Gone => Err(Fault::Conflict(format!("the volume claim {name} is gone"))),
                }
            }
            Action::LabelServing { pod, uid, serving } => {
                let value = if *serving { json!("true") } else { Value::Null };
                let patch = json!({"metadata": {"uid": uid, "labels": {names::LABEL_SERVING: value}}});
                // A pod that is gone serves nobody; the next one gets its label from the template.
                self.merge::<Pod>(pod, patch).await.map(drop)
            }
            Action::AddLearner { peer_url } => {
                let answer = self.cluster()?.any_member()?.add_learner(peer_url).await;
                etcd(answer.map(drop))
            }
            Action::Promote { id } => match self.cluster()?.any_member()?.promote(*id).await {
                // An earlier call whose answer was lost has done it.
                Err(error) if error.refusal() == Some(Refusal::NotLearner) => Ok(()),
                answer => etcd(answer),
            },
            Action::RemoveMember { id, peer_url } => self.remove_member(*id, peer_url).await,
            Action::MoveLeader { leader_serial, to } => {
                let leader = self.cluster()?.member(*leader_serial)?;
                etcd(leader.move_leader(*to).await)
            }
            Action::Notify(notice) => {
                self.notify(notice).await;
                Ok(())
            }
        }
    }

    async fn set_finalizer(&mut self, present: bool) -> Result<(), Fault> {
        let client = self.client.clone();
        let handle = self.cluster()?;
        let mut finalizers = handle.object.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != names::FINALIZER);
        if present {
            finalizers.push(names::FINALIZER.to_owned());
        }
        let patch =
            json!({"metadata": {"resourceVersion": handle.object.resource_version(), "finalizers": finalizers}});
        let api = api::<EtcdCluster>(&client, &handle.object.namespace().unwrap_or_default());
        let parameters = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let attempt = || format!("cannot change the finalizers of EtcdCluster {}", handle.object.name_any());
        let written = api.patch(&handle.object.name_any(), &parameters, &Patch::Merge(patch)).await;
        match written {
            Ok(object) => handle.object = object,
            // Without its last finalizer, the resource is gone.
            Err(error) if !present && kube_error::is_not_found(&error) => handle.object.metadata.finalizers = None,
            Err(error) => return Err(fault(&attempt(), &error)),
        }
        Ok(())
    }

    async fn create(&self, object: &Object) -> Result<(), Fault> {
        match object {
            Object::Service(object) => self.create_one(object.as_ref()).await,
            Object::PersistentVolumeClaim(object) => self.create_one(object.as_ref()).await,
            Object::StatefulSet(object) => self.create_one(object.as_ref()).await,
            Object::PodDisruptionBudget(object) => self.create_one(object.as_ref()).await,
            Object::Job(object) => self.create_one(object.as_ref()).await,
            Object::EtcdBackup(object) => self.create_one(object.as_ref()).await,
        }
    }

    async fn apply(&self, object: &Object) -> Result<(), Fault> {
        match object {
            Object::Service(object) => self.apply_one(object.as_ref()).await,
            Object::PersistentVolumeClaim(object) => self.apply_one(object.as_ref()).await,
            Object::StatefulSet(object) => self.apply_one(object.as_ref()).await,
            Object::PodDisruptionBudget(object) => self.apply_one(object.as_ref()).await,
            Object::Job(object) => self.apply_one(object.as_ref()).await,
            Object::EtcdBackup(object) => self.apply_one(object.as_ref()).await,
        }
    }

    async fn delete(&self, target: &Target, uid: &str) -> Result<(), Fault> {
        match target.kind {
            Kind::Service => self.delete_one::<Service>(&target.name, uid).await,
            Kind::PersistentVolumeClaim => self.delete_one::<PersistentVolumeClaim>(&target.name, uid).await,
            Kind::StatefulSet => self.delete_one::<StatefulSet>(&target.name, uid).await,
            Kind::PodDisruptionBudget => self.delete_one::<PodDisruptionBudget>(&target.name, uid).await,
            Kind::Job => self.delete_one::<Job>(&target.name, uid).await,
            Kind::EtcdBackup => self.delete_one::<EtcdBackup>(&target.name, uid).await,
        }
    }

    async fn create_one<K: Writable>(&self, object: &K) -> Result<(), Fault> {
        let parameters = PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let created = self.api::<K>().create(&parameters, object).await;
        created.map(drop).map_err(|error| fault(&format!("cannot create {}", describe(object)), &error))
    }

    async fn apply_one<K: Writable>(&self, object: &K) -> Result<(), Fault> {
        let attempt = || format!("cannot apply {}", describe(object));
        let (api, name) = (self.api::<K>(), object.name_any());
        let live = api.get(&name).await.map_err(|error| fault(&attempt(), &error))?;
        if let Some(patch) = owned_by_apply(&live) {
            let moved = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            moved.map_err(|error| fault(&attempt(), &error))?;
        }
        let applied = api.patch(&name, &PatchParams::apply(names::FIELD_MANAGER), &Patch::Apply(object)).await;
        applied.map(drop).map_err(|error| fault(&attempt(), &error))
    }

    async fn delete_one<K: Writable>(&self, name: &str, uid: &str) -> Result<(), Fault> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::foreground()
        };
        match self.api::<K>().delete(name, &parameters).await {
            Err(error) if !kube_error::is_not_found(&error) => {
                Err(fault(&format!("cannot delete {} {name}", K::kind(&())), &error))
            }
            _ => Ok(()),
        }
    }

    async fn merge<K: Writable>(&self, name: &str, patch: Value) -> Result<Merged, Fault> {
        let parameters = PatchParams { field_manager: Some(MARK_MANAGER.to_owned()), ..PatchParams::default() };
        match self.api::<K>().patch(name, &parameters, &Patch::Merge(patch)).await {
            Ok(_) => Ok(Merged::Done),
            Err(error) if kube_error::is_not_found(&error) => Ok(Merged::Gone),
            Err(error) => Err(fault(&format!("cannot mark {} {name}", K::kind(&())), &error)),
        }
    }

    /// The last look before the one step that cannot be taken back.
    async fn remove_member(&mut self, id: u64, peer_url: &str) -> Result<(), Fault> {
        let handle = self.cluster()?;
        let member = handle.any_member()?;
        let listed = member.list().await.map_err(|error| refused(&error))?;
        let Some(found) = listed.members.iter().find(|member| member.id == id) else { return Ok(()) };
        if !found.peer_ur_ls.iter().any(|url| url == peer_url) {
            return Err(Fault::Conflict(format!(
                "member {id:x} has the peer URLs {:?} by now, not {peer_url}; it is not removed",
                found.peer_ur_ls
            )));
        }
        match member.remove(id).await {
            Err(error) if error.refusal() == Some(Refusal::MemberNotFound) => Ok(()),
            answer => etcd(answer),
        }
    }

    async fn notify(&self, notice: &Notice) {
        let Notice { warning, reason, message } = notice;
        let event = Event {
            type_: if *warning { EventType::Warning } else { EventType::Normal },
            reason: (*reason).to_owned(),
            note: Some(message.chars().take(MAX_NOTE).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &self.about).await {
            warn!(reason, message, error = kube_error::text(&error), "the event could not be published");
        }
    }

    fn cluster(&mut self) -> Result<&mut ClusterHandle, Fault> {
        let missing = || Fault::Failed("the plan acts on a cluster, but the pass is not about one".to_owned());
        self.cluster.as_mut().ok_or_else(missing)
    }

    fn api<K: Writable>(&self) -> Api<K> {
        api(self.client, self.about.namespace.as_deref().unwrap_or_default())
    }
}

/// What became of marks on an object.
enum Merged {
    /// They are there.
    Done,
    /// The object is not.
    Gone,
}

/// Writes a resource's status, with the resourceVersion that the resource carries. Returns what is stored now.
///
/// # Errors
/// A conflict, if somebody else has written the resource; the API server's refusal otherwise.
pub async fn write_status<K: Writable>(client: &Client, object: &K) -> Result<K, Fault> {
    let parameters = PostParams { field_manager: Some(STATUS_MANAGER.to_owned()), ..PostParams::default() };
    let namespace = object.namespace().unwrap_or_default();
    let written = api::<K>(client, &namespace).replace_status(&object.name_any(), &parameters, object).await;
    written.map_err(|error| fault(&format!("cannot write the status of {}", describe(object)), &error))
}

/// What we write.
pub trait Writable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug
{
}
impl<K> Writable for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug
{
}

fn api<K: Writable>(client: &Client, namespace: &str) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

fn describe<K: Writable>(object: &K) -> String {
    format!("{} {}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

/// The API server keeps what we created as fields of an *update* by our manager. Server-side apply takes an update and an apply
/// by the same manager for two owners: it would report a conflict with ourselves, and never remove what we leave out. This
/// is the patch that hands the fields over to apply, if that is still to do (as client-go's csaupgrade does).
fn owned_by_apply<K: Writable>(live: &K) -> Option<Value> {
    let entries = live.managed_fields();
    let ours = |operation: &str| {
        entries.iter().position(|entry| {
            entry.manager.as_deref() == Some(names::FIELD_MANAGER)
                && entry.operation.as_deref() == Some(operation)
                && entry.subresource.is_none()
        })
    };
    let created = ours("Update")?;
    let mut entries = entries.to_vec();
    match ours("Apply") {
        None => entries.get_mut(created)?.operation = Some("Apply".to_owned()),
        Some(applied) => {
            let fields = entries.get(created)?.fields_v1.clone();
            if let (Some(into), Some(from)) = (entries.get_mut(applied)?.fields_v1.as_mut(), fields) {
                merge(&mut into.0, from.0);
            }
            entries.remove(created);
        }
    }
    // The resourceVersion refuses the patch if anybody has changed the object since.
    Some(json!({"metadata": {"resourceVersion": live.resource_version(), "managedFields": entries}}))
}

/// The union of two sets of fields.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        for (key, value) in from {
            match into.get_mut(&key) {
                Some(known) => merge(known, value),
                None => drop(into.insert(key, value)),
            }
        }
    }
}

fn fault(attempt: &str, error: &kube::Error) -> Fault {
    let text = format!("{attempt}: {}", kube_error::text(error));
    if kube_error::is_conflict(error) { Fault::Conflict(text) } else { Fault::Failed(text) }
}

fn etcd(answer: Result<(), MemberError>) -> Result<(), Fault> {
    answer.map_err(|error| refused(&error))
}

/// What an error of etcd means to a pass. A refusal that time can heal, and an answer that was lost, are both met by looking
/// again: the next pass reads what has become of the call.
fn refused(error: &MemberError) -> Fault {
    let text = error.to_string();
    match error {
        MemberError::Refused { refusal, .. } => match refusal {
            Refusal::Unhealthy
            | Refusal::TooManyLearners
            | Refusal::LearnerNotReady
            | Refusal::NotEnoughStarted
            | Refusal::NoLeader
            | Refusal::NotLeader
            | Refusal::LeaderChanged
            | Refusal::BadTransferee
            | Refusal::TransferTimedOut
            | Refusal::TimedOut
            | Refusal::NotForLearners => Fault::Wait(text),
            Refusal::MemberNotFound | Refusal::NotLearner | Refusal::PeerUrlExists => Fault::Conflict(text),
        },
        MemberError::TimedOut { .. } => Fault::Wait(text),
        MemberError::Failed { code, .. } if *code == tonic::Code::Unavailable => Fault::Wait(text),
        MemberError::BadUrl { .. } | MemberError::Failed { .. } => Fault::Failed(text),
    }
}

/// An action in a few words for the log; objects and statuses are too long to be written out.
fn summary(action: &Action) -> String {
    let named = |verb: &str, target: Target| format!("{verb} {:?} {}", target.kind, target.name);
    match action {
        Action::Record(_) => "Record".to_owned(),
        Action::Create(object) => named("Create", object.target()),
        Action::Apply(object) => named("Apply", object.target()),
        Action::Delete { target, .. } => named("Delete", target.clone()),
        Action::Notify(notice) => format!("Notify {}: {}", notice.reason, notice.message),
        Action::AddLearner { peer_url } => format!("AddLearner {peer_url}"),
        Action::Promote { id } => format!("Promote {id:x}"),
        Action::RemoveMember { id, peer_url } => format!("RemoveMember {id:x} {peer_url}"),
        Action::MoveLeader { leader_serial, to } => format!("MoveLeader from serial {leader_serial} to {to:x}"),
        Action::SetFinalizer { .. } | Action::MarkClaim { .. } | Action::LabelServing { .. } => format!("{action:?}"),
    }
}

#[cfg(test)]
mod tests {
    use ferretcd_operator_plan::{MemberHealth, MemberList};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};

    use super::*;

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    fn service(entries: Vec<ManagedFieldsEntry>) -> Service {
        let mut service = Service::default();
        service.metadata.resource_version = Some("7".to_owned());
        service.metadata.managed_fields = Some(entries);
        service
    }

    #[test]
    fn what_we_created_is_handed_over_to_apply_once() {
        let others = entry("kubectl", "Update", json!({"f:spec": {"f:x": {}}}));
        let mut created = service(vec![others.clone(), entry(names::FIELD_MANAGER, "Update", json!({"f:spec": {}}))]);
        let patch = owned_by_apply(&created).unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["metadata"]["managedFields"][0]["operation"], "Update");
        assert_eq!(patch["metadata"]["managedFields"][1]["operation"], "Apply");

        created.metadata.managed_fields =
            Some(vec![others, entry(names::FIELD_MANAGER, "Apply", json!({"f:spec": {}}))]);
        assert_eq!(owned_by_apply(&created), None);
    }

    #[test]
    fn fields_of_a_creation_and_of_an_earlier_apply_are_united() {
        let patch = owned_by_apply(&service(vec![
            entry(names::FIELD_MANAGER, "Apply", json!({"f:spec": {"f:a": {}}})),
            entry(names::FIELD_MANAGER, "Update", json!({"f:spec": {"f:b": {}}, "f:data": {}})),
        ]));
        let entries = &patch.unwrap()["metadata"]["managedFields"];
        assert_eq!(entries.as_array().unwrap().len(), 1);
        assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:a": {}, "f:b": {}}, "f:data": {}}));
    }

    #[test]
    fn calls_go_to_the_member_that_listed_the_members_then_to_those_that_serve() {
        let answered = |ready| Probe::Answered(Box::new(MemberHealth { ready, ..MemberHealth::default() }));
        let etcd = EtcdView {
            list: Some(MemberList { cluster_id: 1, answered_by: 3, members: Vec::new() }),
            probes: [
                (0, Probe::Unreachable("gone".to_owned())),
                (1, answered(false)),
                (2, answered(true)),
                (3, answered(true)),
            ]
            .into(),
        };
        let object: EtcdCluster = serde_json::from_value(json!({
            "apiVersion": "ferretcd.io/v1alpha1", "kind": "EtcdCluster", "metadata": {"name": "demo", "namespace": "ns"},
            "spec": {"replicas": 3, "storage": {"size": "1Gi"}}
        }))
        .unwrap();
        assert_eq!(ClusterHandle::new(object, &etcd).callable, [3, 2, 1]);
    }

    #[test]
    fn etcds_refusals_mean_wait_and_only_real_errors_fail() {
        let refusal = |refusal| MemberError::Refused { url: "u".to_owned(), call: "MemberAdd", refusal };
        for waits in [Refusal::Unhealthy, Refusal::TooManyLearners, Refusal::LearnerNotReady, Refusal::NoLeader] {
            assert!(matches!(refused(&refusal(waits)), Fault::Wait(_)), "{waits:?}");
        }
        assert!(matches!(refused(&refusal(Refusal::PeerUrlExists)), Fault::Conflict(_)));
        let failed =
            |code| MemberError::Failed { url: "u".to_owned(), call: "MemberAdd", code, message: String::new() };
        assert!(matches!(refused(&failed(tonic::Code::Unavailable)), Fault::Wait(_)));
        assert!(matches!(refused(&failed(tonic::Code::PermissionDenied)), Fault::Failed(_)));
    }
}
