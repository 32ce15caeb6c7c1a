//! Every method that this server has, by path: what metrics are labelled with, and what tells an unknown method from
//! an unknown service.

/// One method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its service with package, such as `etcdserverpb.KV`.
    pub service: &'static str,
    /// Its name, such as `Range`.
    pub name: &'static str,
    /// Which sides stream.
    pub kind: Kind,
}

/// Which sides of a call stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Neither.
    Unary,
    /// The client.
    ClientStream,
    /// The server.
    ServerStream,
    /// Both.
    BidiStream,
}

impl Kind {
    /// The name that metrics use (`grpc_type`).
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ClientStream => "client_stream",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

const fn unary(service: &'static str, name: &'static str) -> Method {
    Method { service, name, kind: Kind::Unary }
}

const KV: &str = "etcdserverpb.KV";
const WATCH: &str = "etcdserverpb.Watch";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const HEALTH: &str = "grpc.health.v1.Health";
const FERRETCD: &str = "ferretcd.v1.Maintenance";

/// All of them.
pub const METHODS: &[Method] = &[
    unary(KV, "Range"),
    Method { service: KV, name: "RangeStream", kind: Kind::ServerStream },
    unary(KV, "Put"),
    unary(KV, "DeleteRange"),
    unary(KV, "Txn"),
    unary(KV, "Compact"),
    Method { service: WATCH, name: "Watch", kind: Kind::BidiStream },
    unary(LEASE, "LeaseGrant"),
    unary(LEASE, "LeaseRevoke"),
    Method { service: LEASE, name: "LeaseKeepAlive", kind: Kind::BidiStream },
    unary(LEASE, "LeaseTimeToLive"),
    unary(LEASE, "LeaseLeases"),
    unary(CLUSTER, "MemberAdd"),
    unary(CLUSTER, "MemberRemove"),
    unary(CLUSTER, "MemberUpdate"),
    unary(CLUSTER, "MemberList"),
    unary(CLUSTER, "MemberPromote"),
    unary(MAINTENANCE, "Alarm"),
    unary(MAINTENANCE, "Status"),
    unary(MAINTENANCE, "Defragment"),
    unary(MAINTENANCE, "Hash"),
    unary(MAINTENANCE, "HashKV"),
    Method { service: MAINTENANCE, name: "Snapshot", kind: Kind::ServerStream },
    unary(MAINTENANCE, "MoveLeader"),
    unary(MAINTENANCE, "Downgrade"),
    unary(HEALTH, "Check"),
    unary(HEALTH, "List"),
    Method { service: HEALTH, name: "Watch", kind: Kind::ServerStream },
    Method { service: FERRETCD, name: "Restore", kind: Kind::ClientStream },
];

/// The position in [`METHODS`] of the method that a request's path names. The error is grpc-go's text for one that
/// does not exist.
pub fn find(path: &str) -> Result<usize, String> {
    let malformed = || format!("malformed method name: \"{path}\"");
    let (service, name) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')).ok_or_else(malformed)?;
    let found = METHODS.iter().position(|m| m.service == service && m.name == name);
    found.ok_or_else(|| match METHODS.iter().any(|m| m.service == service) {
        true => format!("unknown method {name} for service {service}"),
        false => format!("unknown service {service}"),
    })
}

/// True for what a learner answers: etcd lets it serve nothing else. (Range is refused later unless serializable.)
pub fn serves_on_learner(method: &Method) -> bool {
    matches!((method.service, method.name), (KV, "Range") | (MAINTENANCE, "Status" | "Snapshot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_path() {
        assert_eq!(find("/etcdserverpb.KV/Put").map(|i| METHODS[i]), Ok(unary(KV, "Put")));
        assert_eq!(find("/etcdserverpb.KV/Pot"), Err("unknown method Pot for service etcdserverpb.KV".into()));
        assert_eq!(find("/etcdserverpb.Auth/UserAdd"), Err("unknown service etcdserverpb.Auth".into()));
        assert_eq!(find("/nothing"), Err("malformed method name: \"/nothing\"".into()));
    }

    #[test]
    fn a_learner_serves_little() {
        let served: Vec<_> = METHODS.iter().filter(|m| serves_on_learner(m)).map(|m| m.name).collect();
        assert_eq!(served, ["Range", "Status", "Snapshot"]);
    }
}
