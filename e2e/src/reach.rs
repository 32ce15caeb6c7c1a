//! A way from this host to a port in the cluster: straight to the address on a local cluster, through kubectl elsewhere.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::connect::Cluster;

/// A URL that this host can use. Dropping it ends the forwarding, if there is one.
#[derive(Debug)]
pub struct Reach {
    url: String,
    forward: Option<Child>,
}

impl Reach {
    /// `http://<address>:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        if let Some(child) = &mut self.forward {
            // It may have ended by itself, with its pod.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    /// A way to `port` of a pod.
    pub fn reach_pod(&self, namespace: &str, pod: &str, port: u16) -> Result<Reach> {
        if self.run_directory().is_none() {
            return self.forward(namespace, &format!("pod/{pod}"), port);
        }
        let object = self.get(&["--namespace", namespace, "pod", pod])?;
        match object["status"]["podIP"].as_str() {
            Some(address) => Ok(Reach { url: format!("http://{address}:{port}"), forward: None }),
            None => bail!("the pod {namespace}/{pod} has no address yet"),
        }
    }

    /// A way to `port` of a service that has a cluster address.
    pub fn reach_service(&self, namespace: &str, service: &str, port: u16) -> Result<Reach> {
        if self.run_directory().is_none() {
            return self.forward(namespace, &format!("service/{service}"), port);
        }
        let address = self.service_address(namespace, service)?;
        Ok(Reach { url: format!("http://{address}:{port}"), forward: None })
    }

    /// kubectl chooses a free port of this host's loopback and says which.
    fn forward(&self, namespace: &str, target: &str, port: u16) -> Result<Reach> {
        let mut command = self.kubectl_command();
        command.args(["--namespace", namespace, "port-forward", target, &format!(":{port}")]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting kubectl port-forward")?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let mut reach = Reach { url: String::new(), forward: Some(child) };
        match forwarded_port(&line) {
            Some(local) => reach.url = format!("http://127.0.0.1:{local}"),
            None => bail!("kubectl port-forward {target} did not say its port, but {line:?}"),
        }
        Ok(reach)
    }
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 2379`.
fn forwarded_port(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_says_which_port_it_took() {
        assert_eq!(forwarded_port("Forwarding from 127.0.0.1:40123 -> 2379\n"), Some(40123));
        assert_eq!(forwarded_port("error: no pod\n"), None);
    }
}
