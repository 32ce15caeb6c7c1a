//! The proxy's own metrics, under etcd's names and types (its "totals" are gauges, but for one).

use prometheus::{IntCounter, IntGauge, Registry};

/// What the proxy counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Answers that the cache has.
    pub cache_keys: IntGauge,
    /// Reads that it answered.
    pub cache_hits: IntGauge,
    /// Serializable reads that it could not answer.
    pub cache_misses: IntGauge,
    /// Events that went to a watcher without coming from a member once more.
    pub events_coalescing: IntCounter,
    /// Watchers that ride on another's watch.
    pub watchers_coalescing: IntGauge,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics {
            cache_keys: IntGauge::new("etcd_grpc_proxy_cache_keys_total", "Total number of keys/ranges cached")?,
            cache_hits: IntGauge::new("etcd_grpc_proxy_cache_hits_total", "Total number of cache hits")?,
            cache_misses: IntGauge::new("etcd_grpc_proxy_cache_misses_total", "Total number of cache misses")?,
            events_coalescing: IntCounter::new(
                "etcd_grpc_proxy_events_coalescing_total",
                "Total number of events coalescing",
            )?,
            watchers_coalescing: IntGauge::new(
                "etcd_grpc_proxy_watchers_coalescing_total",
                "Total number of current watchers coalescing",
            )?,
        };
        registry.register(Box::new(metrics.cache_keys.clone()))?;
        registry.register(Box::new(metrics.cache_hits.clone()))?;
        registry.register(Box::new(metrics.cache_misses.clone()))?;
        registry.register(Box::new(metrics.events_coalescing.clone()))?;
        registry.register(Box::new(metrics.watchers_coalescing.clone()))?;
        Ok(metrics)
    }
}
