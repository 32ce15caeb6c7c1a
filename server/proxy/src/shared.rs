//! What all services of the proxy hold: the members, the namespace, the cache and the counts.

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::namespace::Namespace;
use crate::upstream::Upstream;
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::ResponseHeader;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Sizes of messages to and from the members, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MessageSizes {
    /// `--max-send-bytes`.
    pub send_max: usize,
    /// `--max-recv-bytes`.
    pub receive_max: usize,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The members.
    pub upstream: Upstream,
    /// The prefix of all keys.
    pub namespace: Namespace,
    /// Bounds of messages.
    pub sizes: MessageSizes,
    /// The counts.
    pub metrics: Metrics,
    cache: Arc<Mutex<Cache>>,
    /// The highest revision that any answer named.
    revision: Arc<AtomicI64>,
}

impl Shared {
    /// With an empty cache.
    pub fn new(upstream: Upstream, namespace: Namespace, sizes: MessageSizes, metrics: Metrics) -> Self {
        Shared { upstream, namespace, sizes, metrics, cache: Arc::default(), revision: Arc::default() }
    }

    /// Works on the cache.
    pub fn cache<T>(&self, work: impl FnOnce(&mut Cache) -> T) -> T {
        let mut cache = self.cache.lock();
        let done = work(&mut cache);
        self.metrics.cache_keys.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
        done
    }

    /// Takes note of an answer's revision.
    pub fn saw(&self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            self.revision.fetch_max(header.revision, Ordering::SeqCst);
        }
    }

    /// The highest revision that a client of this proxy can know by it.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::SeqCst)
    }
}

/// A gRPC client over the members, with the sizes of messages that the flags allow.
#[macro_export]
#[doc(hidden)]
macro_rules! client {
    ($shared:expr, $client:ident) => {
        $client::new($shared.upstream.clone())
            .max_encoding_message_size($shared.sizes.send_max)
            .max_decoding_message_size($shared.sizes.receive_max)
    };
}

/// etcd's word for a request without a key.
pub fn no_key(key: &Bytes) -> Result<(), tonic::Status> {
    match key.is_empty() {
        true => Err(tonic::Status::invalid_argument("etcdserver: key is not provided")),
        false => Ok(()),
    }
}
