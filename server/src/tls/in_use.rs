//! The certificates in use, as a metric: when each of them ends, and, after files were replaced, that the new ones are
//! taken.

use crate::tls::certificate;
use crate::tls::material::Material;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};
use std::sync::Arc;

/// What is told of one: the flag of its file, its serial number, and its fingerprint as
/// `openssl x509 -fingerprint -sha256` has it, without colons and in small letters.
const LABELS: [&str; 3] = ["flag", "serial", "sha256"];

/// Looks at the files whenever somebody asks, as a handshake does, so that what is told is what the next one uses.
struct Certificates {
    materials: Vec<Arc<Material>>,
    /// It stays empty: each look has a family of its own, so that two at once do not mix.
    described: IntGaugeVec,
}

/// Shows the certificates of these in a registry.
pub fn register(registry: &Registry, materials: Vec<Arc<Material>>) -> Result<(), prometheus::Error> {
    registry.register(Box::new(Certificates { materials, described: family()? }))
}

fn family() -> Result<IntGaugeVec, prometheus::Error> {
    let help = "When a certificate that is in use ends, in seconds since 1970; of authorities, too.";
    IntGaugeVec::new(Opts::new("ferretcd_tls_certificate_expiry_timestamp_seconds", help), &LABELS)
}

impl Collector for Certificates {
    fn desc(&self) -> Vec<&Desc> {
        self.described.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(family) = family() else { return Vec::new() };
        for (flag, der) in self.materials.iter().flat_map(|material| material.in_use()) {
            if let Some(about) = certificate::about(&der) {
                family.with_label_values(&[flag, &about.serial, &about.sha256]).set(about.expires);
            }
        }
        family.collect()
    }
}
