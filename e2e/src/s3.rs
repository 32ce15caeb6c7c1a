//! The S3 server in the cluster, where demo and tests keep their backups.

use std::time::Duration;

use anyhow::Result;

use crate::connect::{Cluster, fill};
use crate::images;
use crate::progress::say;
use crate::wait::wait_until;

/// Its namespace.
pub const NAMESPACE: &str = "ferretcd-s3";
/// Its service, in [`NAMESPACE`].
pub const SERVICE: &str = "s3";
/// The port of its service, plain HTTP.
pub const PORT: u16 = 7070;
/// Its URL for pods.
pub const ENDPOINT: &str = "http://s3.ferretcd-s3.svc.cluster.local:7070";
/// The one bucket that it starts with.
pub const BUCKET: &str = "backups";
/// Its region.
pub const REGION: &str = "us-east-1";
/// The access key ID. No secret: the server lives in a throw-away cluster.
pub const ACCESS_KEY: &str = "ferretcd-test";
/// The secret access key. No secret either.
pub const SECRET_KEY: &str = "ferretcd-test-secret";

/// How long its pod may take: its image is on the node, so a few seconds are normal.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Brings the server up with its bucket, or leaves it as it is if it is up already. Returns its URL for this host, which a
/// local cluster answers ([`ENDPOINT`] is the one for pods).
pub fn up(cluster: &Cluster) -> Result<String> {
    cluster.load(&images::s3(cluster.tools())?)?;
    let image = cluster.image(images::S3)?;
    let port = PORT.to_string();
    let values = [
        ("namespace", NAMESPACE),
        ("image", image.as_str()),
        ("port", port.as_str()),
        ("region", REGION),
        ("bucket", BUCKET),
        ("access_key", ACCESS_KEY),
        ("secret_key", SECRET_KEY),
    ];
    cluster.apply(&fill(include_str!("manifests/s3.yaml"), &values))?;
    wait_until("the S3 server", TIMEOUT, || cluster.deployment_available(NAMESPACE, SERVICE))?;
    let url = format!("http://{}:{PORT}", cluster.service_address(NAMESPACE, SERVICE)?);
    say(format!("the S3 server is up: {ENDPOINT} for pods, {url} for this host, bucket {BUCKET}"));
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_the_service() {
        assert_eq!(ENDPOINT, format!("http://{SERVICE}.{NAMESPACE}.svc.cluster.local:{PORT}"));
    }
}
