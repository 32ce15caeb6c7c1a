//! Is what we run on a real Kubernetes? `ferretcd-e2e test` runs these on a cluster of their own; with any cluster that is up:
//! `FERRETCD_E2E=1 cargo test -p ferretcd-e2e --test platform`.

use std::time::Duration;

use ferretcd_e2e::{Cluster, Probe, images, s3, suite, wait_until};

/// Image and volume are on the node, so seconds are normal.
const POD_TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn a_stateful_set_gets_a_volume_a_name_logs_and_exec() {
    if !suite::enabled() {
        return;
    }
    let cluster = Cluster::connect().unwrap();
    cluster.load_toolbox().unwrap();
    let manifest =
        include_str!("platform/stateful-set.yaml").replace("{{image}}", &cluster.image(images::TOOLBOX).unwrap());
    cluster
        .with_temp_ns("platform", |namespace| {
            namespace.apply(&manifest)?;
            namespace.wait_for_pod("web-0", POD_TIMEOUT)?;
            assert_eq!(namespace.get(&["pvc", "data-web-0"])?["status"]["phase"], "Bound");
            assert!(namespace.kubectl(&["logs", "web-0"])?.stdout.contains("this is web-0"));

            // Its own name, through the headless Service, and the API's, from the cluster's DNS.
            let address = namespace.get(&["pod", "web-0"])?["status"]["podIP"].as_str().unwrap_or("none").to_owned();
            let own = format!("web-0.web.{}.svc.cluster.local", namespace.name());
            wait_until("the pod's name", POD_TIMEOUT, || {
                let found = namespace.kubectl(&["exec", "web-0", "--", "getent", "ahostsv4", &own])?.stdout;
                Ok(Probe::when(found.starts_with(&address), found))
            })?;
            namespace.kubectl(&["exec", "web-0", "--", "getent", "hosts", "kubernetes.default"])?;

            // What is written stays when the pod is replaced.
            namespace.kubectl(&["exec", "web-0", "--", "sh", "-c", "echo kept > /data/file"])?;
            namespace.kubectl(&["delete", "pod", "web-0"])?;
            namespace.wait_for_pod("web-0", POD_TIMEOUT)?;
            assert_eq!(namespace.kubectl(&["exec", "web-0", "--", "cat", "/data/file"])?.stdout, "kept\n");
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_s3_server_answers_and_has_its_bucket() {
    if !suite::enabled() {
        return;
    }
    let cluster = Cluster::connect().unwrap();
    s3::up(&cluster).unwrap();
    let pod = cluster.get(&["--namespace", s3::NAMESPACE, "pods", "--selector=app=s3"]).unwrap();
    assert_eq!(pod["items"][0]["status"]["containerStatuses"][0]["ready"], true);
}
