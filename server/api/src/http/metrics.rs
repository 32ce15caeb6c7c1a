//! Counters of health checks and scrapes, under etcd's names.

use ferretcd_node::Check;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Counters of the probes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProbeMetrics {
    succeeded: IntCounter,
    failed: IntCounter,
    /// By type (`livez`) and name (`non_learner`): 1 if it last succeeded.
    results: IntGaugeVec,
    /// By type, name and status.
    checks: IntCounterVec,
    /// Scrapes by the code of their answer.
    scrapes: IntCounterVec,
    /// Scrapes under way.
    scraping: IntGauge,
}

/// A scrape under way.
#[derive(Debug)]
pub struct Scrape(IntGauge);

impl Drop for Scrape {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl ProbeMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = ProbeMetrics {
            succeeded: IntCounter::new("etcd_server_health_success", "The total number of successful health checks")?,
            failed: IntCounter::new("etcd_server_health_failures", "The total number of failed health checks")?,
            results: IntGaugeVec::new(
                Opts::new("etcd_server_healthcheck", "The result of each kind of healthcheck."),
                &["type", "name"],
            )?,
            checks: IntCounterVec::new(
                Opts::new("etcd_server_healthchecks_total", "The total number of each kind of healthcheck."),
                &["type", "name", "status"],
            )?,
            scrapes: IntCounterVec::new(
                Opts::new("promhttp_metric_handler_requests_total", "Total number of scrapes by HTTP status code."),
                &["code"],
            )?,
            scraping: IntGauge::new(
                "promhttp_metric_handler_requests_in_flight",
                "Current number of scrapes being served.",
            )?,
        };
        for code in ["200", "500", "503"] {
            metrics.scrapes.with_label_values(&[code]);
        }
        registry.register(Box::new(metrics.succeeded.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        registry.register(Box::new(metrics.results.clone()))?;
        registry.register(Box::new(metrics.checks.clone()))?;
        registry.register(Box::new(metrics.scrapes.clone()))?;
        registry.register(Box::new(metrics.scraping.clone()))?;
        Ok(metrics)
    }

    /// `/health` was asked.
    pub fn health(&self, healthy: bool) {
        if healthy { &self.succeeded } else { &self.failed }.inc();
    }

    /// A scrape begins, and lasts as long as the value.
    pub fn scrape(&self) -> Scrape {
        self.scraping.inc();
        Scrape(self.scraping.clone())
    }

    /// A scrape was answered.
    pub fn scraped(&self, well: bool) {
        self.scrapes.with_label_values(&[if well { "200" } else { "500" }]).inc();
    }

    /// A check of `/livez` or `/readyz` (`page`, without the slash) was run.
    pub fn check(&self, page: &str, check: Check, passed: bool) {
        let status = if passed { "success" } else { "error" };
        self.results.with_label_values(&[page, check.name()]).set(passed.into());
        self.checks.with_label_values(&[page, check.name(), status]).inc();
    }
}
