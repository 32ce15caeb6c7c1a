//! The two Services of a cluster.

use std::collections::BTreeMap;

use ferretcd_operator_api::names;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cluster_metadata;
use crate::action::Object;
use crate::validate::Identity;

/// The headless Service: a DNS name for each member's pod. It publishes addresses that are not ready, because a member must
/// be found by its peers in order to become ready, and by the operator in order to be repaired.
pub fn headless(identity: &Identity) -> Object {
    service(
        identity,
        names::headless_service(&identity.name),
        names::members_selector(&identity.name),
        vec![port("client", names::CLIENT_PORT), port("peer", names::PEER_PORT), port("metrics", names::METRICS_PORT)],
        Some("None".to_owned()),
        Some(true),
    )
}

/// The client Service: members that are labelled as serving, and of those the ready ones.
pub fn client(identity: &Identity) -> Object {
    service(
        identity,
        names::client_service(&identity.name),
        names::serving_selector(&identity.name),
        vec![port("client", names::CLIENT_PORT)],
        None,
        None,
    )
}

fn service(
    identity: &Identity,
    name: String,
    selector: BTreeMap<String, String>,
    ports: Vec<ServicePort>,
    cluster_ip: Option<String>,
    publish_not_ready_addresses: Option<bool>,
) -> Object {
    Object::Service(Box::new(Service {
        metadata: cluster_metadata(identity, name, names::cluster_labels(&identity.name)),
        spec: Some(ServiceSpec {
            cluster_ip,
            publish_not_ready_addresses,
            selector: Some(selector),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        status: None,
    }))
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
