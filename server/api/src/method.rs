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
    /// Whom it asks to be let in for.
    pub asks: Asks,
}

/// What a method asks of its caller while auth is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    Nothing,
    /// What its request names decides: keys, leases, users or roles. Looked at below, when it is read or applied, in
    /// the name that [`crate::grpc::asked_by`] gives the node's handle.
    Below,
    /// To be some user.
    User,
    /// To be root.
    Root,
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

const fn method(service: &'static str, name: &'static str, kind: Kind, asks: Asks) -> Method {
    Method { service, name, kind, asks }
}

/// One that is checked by what its request names.
const fn unary(service: &'static str, name: &'static str) -> Method {
    method(service, name, Kind::Unary, Asks::Below)
}

/// One for root alone.
const fn for_root(service: &'static str, name: &'static str) -> Method {
    method(service, name, Kind::Unary, Asks::Root)
}

const KV: &str = "etcdserverpb.KV";
const WATCH: &str = "etcdserverpb.Watch";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const AUTH: &str = "etcdserverpb.Auth";
const LOCK: &str = "v3lockpb.Lock";
const ELECTION: &str = "v3electionpb.Election";
const HEALTH: &str = "grpc.health.v1.Health";
const FERRETCD: &str = "ferretcd.v1.Maintenance";

/// All of them.
pub const METHODS: &[Method] = &[
    unary(KV, "Range"),
    method(KV, "RangeStream", Kind::ServerStream, Asks::Below),
    unary(KV, "Put"),
    unary(KV, "DeleteRange"),
    unary(KV, "Txn"),
    unary(KV, "Compact"),
    method(WATCH, "Watch", Kind::BidiStream, Asks::Below),
    unary(LEASE, "LeaseGrant"),
    unary(LEASE, "LeaseRevoke"),
    method(LEASE, "LeaseKeepAlive", Kind::BidiStream, Asks::Below),
    unary(LEASE, "LeaseTimeToLive"),
    unary(LEASE, "LeaseLeases"),
    // etcd looks at its URLs before it looks at the caller.
    unary(CLUSTER, "MemberAdd"),
    for_root(CLUSTER, "MemberRemove"),
    for_root(CLUSTER, "MemberUpdate"),
    method(CLUSTER, "MemberList", Kind::Unary, Asks::User),
    for_root(CLUSTER, "MemberPromote"),
    // To look is for every user, to raise and disarm for root.
    unary(MAINTENANCE, "Alarm"),
    method(MAINTENANCE, "Status", Kind::Unary, Asks::User),
    for_root(MAINTENANCE, "Defragment"),
    for_root(MAINTENANCE, "Hash"),
    for_root(MAINTENANCE, "HashKV"),
    method(MAINTENANCE, "Snapshot", Kind::ServerStream, Asks::Root),
    for_root(MAINTENANCE, "MoveLeader"),
    for_root(MAINTENANCE, "Downgrade"),
    unary(AUTH, "AuthEnable"),
    unary(AUTH, "AuthDisable"),
    unary(AUTH, "AuthStatus"),
    method(AUTH, "Authenticate", Kind::Unary, Asks::Nothing),
    unary(AUTH, "UserAdd"),
    unary(AUTH, "UserGet"),
    unary(AUTH, "UserList"),
    unary(AUTH, "UserDelete"),
    unary(AUTH, "UserChangePassword"),
    unary(AUTH, "UserGrantRole"),
    unary(AUTH, "UserRevokeRole"),
    unary(AUTH, "RoleAdd"),
    unary(AUTH, "RoleGet"),
    unary(AUTH, "RoleList"),
    unary(AUTH, "RoleDelete"),
    unary(AUTH, "RoleGrantPermission"),
    unary(AUTH, "RoleRevokePermission"),
    // As their reads and writes: by key.
    unary(LOCK, "Lock"),
    unary(LOCK, "Unlock"),
    unary(ELECTION, "Campaign"),
    unary(ELECTION, "Proclaim"),
    unary(ELECTION, "Leader"),
    method(ELECTION, "Observe", Kind::ServerStream, Asks::Below),
    unary(ELECTION, "Resign"),
    method(HEALTH, "Check", Kind::Unary, Asks::Nothing),
    method(HEALTH, "List", Kind::Unary, Asks::Nothing),
    method(HEALTH, "Watch", Kind::ServerStream, Asks::Nothing),
    method(FERRETCD, "Restore", Kind::ClientStream, Asks::Root),
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

/// True for what ends by itself: a member that stops answers it first. What waits for others, or for their changes, may
/// last for ever.
pub fn ends_by_itself(method: &Method) -> bool {
    !matches!(
        (method.service, method.name),
        (WATCH | HEALTH, "Watch") | (LEASE, "LeaseKeepAlive") | (LOCK, "Lock") | (ELECTION, "Campaign" | "Observe")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_path() {
        assert_eq!(find("/etcdserverpb.KV/Put").map(|i| METHODS[i]), Ok(unary(KV, "Put")));
        assert_eq!(find("/etcdserverpb.KV/Pot"), Err("unknown method Pot for service etcdserverpb.KV".into()));
        assert_eq!(find("/etcdserverpb.Gone/X"), Err("unknown service etcdserverpb.Gone".into()));
        assert_eq!(find("/nothing"), Err("malformed method name: \"/nothing\"".into()));
    }

    #[test]
    fn what_is_about_the_whole_cluster_is_for_root() {
        let asking = |asks| METHODS.iter().filter(move |m| m.asks == asks).map(|m| m.name).collect::<Vec<_>>();
        let root = ["MemberRemove", "MemberUpdate", "MemberPromote", "Defragment", "Hash", "HashKV", "Snapshot"];
        assert_eq!(asking(Asks::Root)[..7], root);
        assert_eq!(asking(Asks::Root)[7..], ["MoveLeader", "Downgrade", "Restore"]);
        assert_eq!(asking(Asks::User), ["MemberList", "Status"]);
        assert_eq!(asking(Asks::Nothing), ["Authenticate", "Check", "List", "Watch"]);
    }

    #[test]
    fn a_learner_serves_little() {
        let served: Vec<_> = METHODS.iter().filter(|m| serves_on_learner(m)).map(|m| m.name).collect();
        assert_eq!(served, ["Range", "Status", "Snapshot"]);
    }
}
