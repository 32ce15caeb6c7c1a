//! `--resolver-prefix`: a proxy writes where it is under a common prefix, for as long as it lives, in the form of
//! etcd's endpoint manager, so that proxies of both kinds see each other.

use crate::caller::Caller;
use crate::client;
use crate::lease;
use crate::namespace::prefix_end;
use crate::shared::Shared;
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use ferretcd_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// Pause before registering is tried again (etcd's rate).
const PAUSE: Duration = Duration::from_secs(1);

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a proxy writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its host's name.
    pub name: String,
    /// Where clients reach it.
    pub address: String,
}

impl Registered {
    /// The range that all proxies of a prefix are in.
    pub fn all(prefix: &str) -> (Bytes, Bytes) {
        let folder = format!("{prefix}/");
        let end = prefix_end(folder.as_bytes());
        (folder.into(), end)
    }

    fn key(&self, prefix: &str) -> Bytes {
        format!("{prefix}/{}", self.address).into()
    }

    fn value(&self) -> Bytes {
        let meta = json!({ "name": self.name }).to_string();
        json!({ "Op": 0, "Addr": self.address, "Metadata": meta }).to_string().into()
    }

    /// Reads what a proxy wrote; what is something else is not a proxy.
    pub fn read(value: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(value).ok()?;
        let meta: Value = serde_json::from_str(value["Metadata"].as_str()?).ok()?;
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        Some(Registered { name, address: value["Addr"].as_str()?.to_owned() })
    }
}

/// This host's name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A proxy's place below the prefix.
#[derive(Clone, Debug)]
pub struct Registration {
    shared: Shared,
    own: Registered,
    prefix: String,
    /// Seconds.
    ttl: i64,
    lease: Arc<Mutex<Option<i64>>>,
}

impl Registration {
    /// For this address, below this prefix, with a lease of so many seconds.
    pub fn new(shared: Shared, address: String, prefix: String, ttl: i64) -> Self {
        let own = Registered { name: hostname(), address };
        Registration { shared, own, prefix, ttl, lease: Arc::default() }
    }

    /// Keeps it registered, for ever.
    pub async fn keep(self) {
        loop {
            match self.once().await {
                Ok(()) => tracing::warn!("session expired; possible network partition or server restart"),
                Err(status) => tracing::warn!("failed to create a session: {status}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Registers, and returns when the lease is lost.
    async fn once(&self) -> Result<(), Status> {
        let caller = Caller::default();
        let grant = LeaseGrantRequest { ttl: self.ttl, id: 0 };
        let lease = client!(self.shared, LeaseClient).lease_grant(caller.request(grant)).await?.into_inner();
        *self.lease.lock() = Some(lease.id);
        let key = self.shared.namespace.key(&self.own.key(&self.prefix));
        let put = PutRequest { key, value: self.own.value(), lease: lease.id, ..PutRequest::default() };
        client!(self.shared, KvClient).put(caller.request(put)).await?;
        tracing::info!(addr = self.own.address, lease_ttl = self.ttl, "registered session with lease");
        let third = Duration::from_secs(u64::try_from(lease.ttl).unwrap_or(1).max(1)) / 3;
        loop {
            tokio::time::sleep(third).await;
            if lease::keep_alive(self.shared.clone(), caller.clone(), lease.id).await?.ttl <= 0 {
                return Ok(());
            }
        }
    }

    /// Takes it away again, if a member answers soon.
    pub async fn end(&self) {
        let Some(id) = self.lease.lock().take() else { return };
        let revoke = Caller::default().request(LeaseRevokeRequest { id });
        let _ = tokio::time::timeout(FAREWELL, client!(self.shared, LeaseClient).lease_revoke(revoke)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_registered() {
        let own = Registered { name: "vm".to_owned(), address: "127.0.0.1:9390".to_owned() };
        let seeds = [own.value().to_vec(), br#"{"Addr":"a","Metadata":"{\"name\":1}"}"#.to_vec()];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "registered").seeds(seeds);
        fuzz.words(&["\"Addr\":", "\"Metadata\":", "\\\"name\\\":", "{}", "null", "\\u0000"]).run(|bytes| {
            let read = Registered::read(bytes);
            if let Some(read) = &read {
                assert_eq!(Registered::read(&read.value()).as_ref(), Some(read));
            }
            format!("{read:?}")
        });
    }

    #[test]
    fn what_is_written_is_what_etcds_proxy_writes() {
        let own = Registered { name: "vm".to_owned(), address: "127.0.0.1:9390".to_owned() };
        assert_eq!(own.key("/px"), "/px/127.0.0.1:9390");
        // Written by etcd 3.7.1.
        let etcds = br#"{"Op":0,"Addr":"127.0.0.1:9390","Metadata":"{\"name\":\"vm\"}"}"#;
        assert_eq!(Registered::read(etcds), Some(own.clone()));
        assert_eq!(
            serde_json::from_slice::<Value>(&own.value()).unwrap(),
            serde_json::from_slice::<Value>(etcds).unwrap()
        );
        for other in
            ["", "{}", "[]", r#"{"Addr":"a"}"#, r#"{"Addr":1,"Metadata":"{}"}"#, r#"{"Addr":"a","Metadata":"x"}"#]
        {
            assert_eq!(Registered::read(other.as_bytes()), None, "{other}");
        }
    }
}
