//! What the operator counts. The binary owns the registry; `admin` shows it.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// Counters of all controllers.
#[derive(Clone, Debug)]
pub struct Metrics {
    passes: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    /// Makes the counters and adds them to a registry.
    ///
    /// # Errors
    /// The registry has counters with these names already.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let passes = IntCounterVec::new(
            Opts::new("ferretcd_operator_reconciles_total", "Passes over a resource, by kind and result."),
            &["kind", "result"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("ferretcd_operator_reconcile_duration_seconds", "Length of a pass, by kind.")
                // A quiet pass takes milliseconds; one with a member that hangs 3 s; a pass is cut off after 60.
                .buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0]),
            &["kind"],
        )?;
        registry.register(Box::new(passes.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Metrics { passes, seconds })
    }

    /// Counts one pass.
    pub fn pass(&self, kind: &str, result: &str, took: Duration) {
        self.passes.with_label_values(&[kind, result]).inc();
        self.seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }
}
