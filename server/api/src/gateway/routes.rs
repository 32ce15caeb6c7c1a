//! Which path of the gateway is which method: etcd's table.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MessageDescriptor};

/// A method that the gateway can call.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its gRPC path.
    pub method: PathAndQuery,
    /// Type of its requests.
    pub input: MessageDescriptor,
    /// Type of its answers.
    pub output: MessageDescriptor,
    /// Which sides stream.
    pub form: Form,
}

/// Which sides of a call stream. No method of the table has a stream of requests and one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Neither.
    Unary,
    /// The answers.
    Answers,
    /// Requests and answers.
    Both,
}

/// All routes by path. Every method of the table is in our .proto files, which a test holds.
pub fn table() -> BTreeMap<&'static str, Route> {
    let pool = match DescriptorPool::decode(ferretcd_proto::FILE_DESCRIPTORS) {
        Ok(pool) => pool,
        Err(e) => {
            tracing::error!("the gateway is off: the message descriptors of this build are damaged: {e}");
            return BTreeMap::new();
        }
    };
    let route = |(path, service, name)| Some((path, route(&pool, service, name)?));
    PATHS.iter().copied().filter_map(route).collect()
}

fn route(pool: &DescriptorPool, service: &str, name: &str) -> Option<Route> {
    let method = pool.get_service_by_name(service)?.methods().find(|m| m.name() == name)?;
    let form = match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => Form::Unary,
        (false, true) => Form::Answers,
        (true, true) => Form::Both,
        (true, false) => return None,
    };
    let path = PathAndQuery::try_from(format!("/{service}/{name}")).ok()?;
    Some(Route { method: path, input: method.input(), output: method.output(), form })
}

const KV: &str = "etcdserverpb.KV";
const WATCH: &str = "etcdserverpb.Watch";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const AUTH: &str = "etcdserverpb.Auth";
const LOCK: &str = "v3lockpb.Lock";
const ELECTION: &str = "v3electionpb.Election";

/// Path, service, method. RangeStream and Health have no path in etcd either.
const PATHS: &[(&str, &str, &str)] = &[
    ("/v3/kv/range", KV, "Range"),
    ("/v3/kv/put", KV, "Put"),
    ("/v3/kv/deleterange", KV, "DeleteRange"),
    ("/v3/kv/txn", KV, "Txn"),
    ("/v3/kv/compaction", KV, "Compact"),
    ("/v3/watch", WATCH, "Watch"),
    ("/v3/lease/grant", LEASE, "LeaseGrant"),
    ("/v3/lease/revoke", LEASE, "LeaseRevoke"),
    ("/v3/kv/lease/revoke", LEASE, "LeaseRevoke"),
    ("/v3/lease/keepalive", LEASE, "LeaseKeepAlive"),
    ("/v3/lease/timetolive", LEASE, "LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", LEASE, "LeaseTimeToLive"),
    ("/v3/lease/leases", LEASE, "LeaseLeases"),
    ("/v3/kv/lease/leases", LEASE, "LeaseLeases"),
    ("/v3/cluster/member/add", CLUSTER, "MemberAdd"),
    ("/v3/cluster/member/remove", CLUSTER, "MemberRemove"),
    ("/v3/cluster/member/update", CLUSTER, "MemberUpdate"),
    ("/v3/cluster/member/list", CLUSTER, "MemberList"),
    ("/v3/cluster/member/promote", CLUSTER, "MemberPromote"),
    ("/v3/maintenance/alarm", MAINTENANCE, "Alarm"),
    ("/v3/maintenance/status", MAINTENANCE, "Status"),
    ("/v3/maintenance/defragment", MAINTENANCE, "Defragment"),
    ("/v3/maintenance/hash", MAINTENANCE, "Hash"),
    ("/v3/maintenance/hashkv", MAINTENANCE, "HashKV"),
    ("/v3/maintenance/snapshot", MAINTENANCE, "Snapshot"),
    ("/v3/maintenance/transfer-leadership", MAINTENANCE, "MoveLeader"),
    ("/v3/maintenance/downgrade", MAINTENANCE, "Downgrade"),
    ("/v3/auth/enable", AUTH, "AuthEnable"),
    ("/v3/auth/disable", AUTH, "AuthDisable"),
    ("/v3/auth/status", AUTH, "AuthStatus"),
    ("/v3/auth/authenticate", AUTH, "Authenticate"),
    ("/v3/auth/user/add", AUTH, "UserAdd"),
    ("/v3/auth/user/get", AUTH, "UserGet"),
    ("/v3/auth/user/list", AUTH, "UserList"),
    ("/v3/auth/user/delete", AUTH, "UserDelete"),
    ("/v3/auth/user/changepw", AUTH, "UserChangePassword"),
    ("/v3/auth/user/grant", AUTH, "UserGrantRole"),
    ("/v3/auth/user/revoke", AUTH, "UserRevokeRole"),
    ("/v3/auth/role/add", AUTH, "RoleAdd"),
    ("/v3/auth/role/get", AUTH, "RoleGet"),
    ("/v3/auth/role/list", AUTH, "RoleList"),
    ("/v3/auth/role/delete", AUTH, "RoleDelete"),
    ("/v3/auth/role/grant", AUTH, "RoleGrantPermission"),
    ("/v3/auth/role/revoke", AUTH, "RoleRevokePermission"),
    ("/v3/lock/lock", LOCK, "Lock"),
    ("/v3/lock/unlock", LOCK, "Unlock"),
    ("/v3/election/campaign", ELECTION, "Campaign"),
    ("/v3/election/proclaim", ELECTION, "Proclaim"),
    ("/v3/election/leader", ELECTION, "Leader"),
    ("/v3/election/observe", ELECTION, "Observe"),
    ("/v3/election/resign", ELECTION, "Resign"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_method() {
        let table = table();
        for (path, service, name) in PATHS {
            let method = table.get(path).map(|route| route.method.as_str().to_owned());
            assert_eq!(method, Some(format!("/{service}/{name}")));
        }
        assert_eq!(table.len(), PATHS.len());
        let streams: Vec<_> = table.iter().filter(|(_, r)| r.form != Form::Unary).map(|(p, r)| (*p, r.form)).collect();
        let both = ["/v3/lease/keepalive", "/v3/watch"].map(|path| (path, Form::Both));
        let answers = ["/v3/election/observe", "/v3/maintenance/snapshot"].map(|path| (path, Form::Answers));
        assert_eq!(streams, [answers[0], both[0], answers[1], both[1]]);
    }
}
