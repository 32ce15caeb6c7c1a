//! What `act` says to the API server, word for word, and what it makes of answers that a real one gives only by chance: lost
//! races, objects that were replaced, objects that are gone.

// Helpers of tests fail by panicking; Clippy's allowance covers only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use ferretcd_operator::act::{Actor, ClusterHandle};
use ferretcd_operator_api::{EtcdCluster, EtcdClusterStatus, names};
use ferretcd_operator_plan::{Action, EtcdView, Fault, Kind, Object, Outcome, Target};
use http::{Request, Response};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Client, Resource,
    client::Body,
    runtime::events::{Recorder, Reporter},
};
use serde_json::{Value, json};

/// One request, and the answer to it.
struct Turn {
    method: &'static str,
    /// Path and query.
    path: &'static str,
    /// What the request's body must hold: every field of this value.
    holds: Value,
    status: u16,
    answer: Value,
}

/// An API server that answers by script, and every request that did not follow it.
#[derive(Clone, Default)]
struct Script {
    turns: Arc<Mutex<Vec<Turn>>>,
    surprises: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn new(mut turns: Vec<Turn>) -> Script {
        turns.reverse();
        Script { turns: Arc::new(Mutex::new(turns)), ..Script::default() }
    }

    fn client(&self) -> Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let body = request.into_body().collect_bytes().await?;
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, answer) = script.answer(&line, &body);
                Ok::<_, kube::Error>(
                    Response::builder().status(status).body(Body::from(answer.to_string().into_bytes())).unwrap(),
                )
            }
        });
        Client::new(service, "ns")
    }

    fn answer(&self, line: &str, body: &Value) -> (u16, Value) {
        let Some(turn) = self.turns.lock().unwrap().pop() else {
            self.surprises.lock().unwrap().push(format!("nothing more was expected, but came: {line}"));
            return (500, Value::Null);
        };
        let wanted = format!("{} {}", turn.method, turn.path);
        if line != wanted || !holds(body, &turn.holds) {
            let surprise = format!("expected {wanted} with {}, but came {line} with {body}", turn.holds);
            self.surprises.lock().unwrap().push(surprise);
        }
        (turn.status, turn.answer)
    }

    /// All was said that the script has, and nothing else.
    fn is_told(&self) {
        assert_eq!(*self.surprises.lock().unwrap(), [""; 0]);
        let left: Vec<_> = self.turns.lock().unwrap().iter().map(|turn| turn.path).collect();
        assert_eq!(left, [""; 0], "not said");
    }
}

/// Whether a value has every field of another.
fn holds(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Object(value), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| value.get(key).is_some_and(|value| holds(value, wanted)))
        }
        (_, Value::Null) => true,
        (value, wanted) => value == wanted,
    }
}

fn turn(method: &'static str, path: &'static str, holds: Value, status: u16, answer: Value) -> Turn {
    Turn { method, path, holds, status, answer }
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "why"})
}

fn cluster() -> EtcdCluster {
    serde_json::from_value(json!({
        "apiVersion": "ferretcd.io/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "demo", "namespace": "ns", "uid": "u", "resourceVersion": "7", "finalizers": ["other"]},
        "spec": {"replicas": 3, "storage": {"size": "1Gi"}}
    }))
    .unwrap()
}

fn service(uid: Option<&str>) -> Object {
    let mut service = Service::default();
    service.metadata.name = Some("demo-client".to_owned());
    service.metadata.namespace = Some("ns".to_owned());
    service.metadata.uid = uid.map(str::to_owned);
    Object::Service(Box::new(service))
}

fn delete() -> Action {
    Action::Delete { target: Target { kind: Kind::StatefulSet, name: "demo-1".to_owned() }, uid: "s".to_owned() }
}

async fn act(script: &Script, actions: &[Action]) -> Outcome {
    let client = script.client();
    let recorder = Recorder::new(client.clone(), Reporter::from("test"));
    let object = cluster();
    let mut actor = Actor {
        client: &client,
        recorder: &recorder,
        about: object.object_ref(&()),
        cluster: Some(ClusterHandle::new(object, &EtcdView::default())),
    };
    actor.act(actions).await
}

#[tokio::test]
async fn an_object_that_exists_already_is_a_conflict_and_ends_the_pass() {
    let script = Script::new(vec![turn(
        "POST",
        "/api/v1/namespaces/ns/services?&fieldManager=ferretcd-operator",
        json!({"metadata": {"name": "demo-client"}}),
        409,
        refusal(409, "AlreadyExists"),
    )]);
    let outcome = act(&script, &[Action::Create(service(None)), delete()]).await;
    assert_eq!(outcome.done, 0);
    assert!(matches!(outcome.fault, Some(Fault::Conflict(_))), "{outcome:?}");
    script.is_told();
}

#[tokio::test]
async fn the_first_apply_takes_over_what_was_created_and_names_the_uid() {
    let managed = |operation: &str| json!([{"manager": names::FIELD_MANAGER, "operation": operation, "fieldsV1": {"f:spec": {}}}]);
    let live = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "demo-client", "namespace": "ns", "resourceVersion": "9", "managedFields": managed("Update")}});
    let script = Script::new(vec![
        turn("GET", "/api/v1/namespaces/ns/services/demo-client", Value::Null, 200, live.clone()),
        turn(
            "PATCH",
            "/api/v1/namespaces/ns/services/demo-client?",
            json!({"metadata": {"resourceVersion": "9", "managedFields": managed("Apply")}}),
            200,
            live.clone(),
        ),
        turn(
            "PATCH",
            "/api/v1/namespaces/ns/services/demo-client?&fieldManager=ferretcd-operator",
            json!({"metadata": {"uid": "x"}}),
            200,
            live,
        ),
    ]);
    assert_eq!(act(&script, &[Action::Apply(service(Some("x")))]).await, Outcome { done: 1, fault: None });
    script.is_told();
}

#[tokio::test]
async fn a_delete_names_the_uid_and_absence_is_success() {
    let path = "/apis/apps/v1/namespaces/ns/statefulsets/demo-1?";
    let wanted = json!({"preconditions": {"uid": "s"}, "propagationPolicy": "Foreground"});
    let script = Script::new(vec![
        turn("DELETE", path, wanted.clone(), 404, refusal(404, "NotFound")),
        turn("DELETE", path, wanted, 409, refusal(409, "Conflict")),
    ]);
    let outcome = act(&script, &[delete(), delete()]).await;
    assert_eq!(outcome.done, 1);
    assert!(matches!(outcome.fault, Some(Fault::Conflict(_))), "{outcome:?}");
    script.is_told();
}

#[tokio::test]
async fn a_ledger_entry_that_loses_its_race_is_followed_by_nothing() {
    let script = Script::new(vec![turn(
        "PUT",
        "/apis/ferretcd.io/v1alpha1/namespaces/ns/etcdclusters/demo/status?&fieldManager=ferretcd-operator-status",
        json!({"metadata": {"resourceVersion": "7"}, "status": {"nextMemberSerial": 4}}),
        409,
        refusal(409, "Conflict"),
    )]);
    let status = EtcdClusterStatus { next_member_serial: 4, ..EtcdClusterStatus::default() };
    let outcome = act(&script, &[Action::Record(Box::new(status)), delete()]).await;
    assert_eq!(outcome.done, 0);
    assert!(matches!(outcome.fault, Some(Fault::Conflict(_))), "{outcome:?}");
    script.is_told();
}

#[tokio::test]
async fn the_finalizer_is_added_beside_others_and_the_next_write_uses_the_new_version() {
    let mut answer = serde_json::to_value(cluster()).unwrap();
    answer["metadata"]["resourceVersion"] = json!("8");
    let script = Script::new(vec![
        turn(
            "PATCH",
            "/apis/ferretcd.io/v1alpha1/namespaces/ns/etcdclusters/demo?&fieldManager=ferretcd-operator",
            json!({"metadata": {"resourceVersion": "7", "finalizers": ["other", names::FINALIZER]}}),
            200,
            answer.clone(),
        ),
        turn(
            "PUT",
            "/apis/ferretcd.io/v1alpha1/namespaces/ns/etcdclusters/demo/status?&fieldManager=ferretcd-operator-status",
            json!({"metadata": {"resourceVersion": "8"}}),
            200,
            answer,
        ),
    ]);
    let actions = [Action::SetFinalizer { present: true }, Action::Record(Box::default())];
    assert_eq!(act(&script, &actions).await, Outcome { done: 2, fault: None });
    script.is_told();
}

#[tokio::test]
async fn a_pod_that_is_gone_needs_no_label_but_a_claim_that_was_replaced_is_a_conflict() {
    let invalid = json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid",
        "message": "metadata.uid: Invalid value: field is immutable"});
    let script = Script::new(vec![
        turn(
            "PATCH",
            "/api/v1/namespaces/ns/pods/demo-1-0?&fieldManager=ferretcd-operator-mark",
            json!({"metadata": {"uid": "p", "labels": {}}}),
            404,
            refusal(404, "NotFound"),
        ),
        turn(
            "PATCH",
            "/api/v1/namespaces/ns/persistentvolumeclaims/data-demo-1?&fieldManager=ferretcd-operator-mark",
            json!({"metadata": {"uid": "c", "labels": {"a": "b"}}}),
            422,
            invalid,
        ),
    ]);
    let actions = [
        Action::LabelServing { pod: "demo-1-0".to_owned(), uid: "p".to_owned(), serving: false },
        Action::MarkClaim {
            name: "data-demo-1".to_owned(),
            uid: "c".to_owned(),
            annotations: [].into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
        },
    ];
    let outcome = act(&script, &actions).await;
    assert_eq!(outcome.done, 1);
    assert!(matches!(outcome.fault, Some(Fault::Conflict(_))), "{outcome:?}");
    script.is_told();
}
