//! The JSON gateway and the HTTP endpoints beside real etcd: the same requests to both, and the answers compared.

use crate::support;
use std::collections::BTreeMap;

use crate::support::{
    Cluster,
    etcd::Etcd,
    eventually,
    http::{Answer, Ask, Connection, ask},
};
use serde_json::Value;

/// A request, and what about its answers need not agree.
struct Row {
    ask: Ask,
    /// JSON fields whose values are each server's own, beside those of [`OWN`].
    own: &'static [&'static str],
    /// Why the answers differ. A row that has a reason and does not differ is a failure, too.
    differs: Option<&'static str>,
}

impl Row {
    fn header(mut self, name: &str, value: &str) -> Self {
        self.ask = self.ask.header(name, value);
        self
    }
    fn lines(mut self, lines: usize) -> Self {
        self.ask = self.ask.lines(lines);
        self
    }
    fn own(mut self, fields: &'static [&'static str]) -> Self {
        self.own = fields;
        self
    }
    fn differs(mut self, why: &'static str) -> Self {
        self.differs = Some(why);
        self
    }
}

impl From<Ask> for Row {
    fn from(ask: Ask) -> Self {
        Row { ask, own: &[], differs: None }
    }
}

fn post(path: &str, body: &str) -> Row {
    // curl's own content type, since curl is what people use.
    Row::from(Ask::post(path, body)).header("Content-Type", "application/x-www-form-urlencoded")
}
fn get(path: &str) -> Row {
    Ask::get(path).into()
}
fn with(method: &str, path: &str) -> Row {
    Ask::new(method, path, b"").into()
}

/// Values that are each server's own, wherever they stand.
const OWN: &[&str] = &[
    "cluster_id",
    "member_id",
    "memberID",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
    "hash",
    "token",
    "blob",
    "remaining_bytes",
    "peerURLs",
    "clientURLs",
];

/// Headers that must be the same. (Dates and lengths are not looked at.)
const HEADERS: &[&str] = &[
    "content-type",
    "allow",
    "location",
    "www-authenticate",
    "x-content-type-options",
    "grpc-metadata-content-type",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
];

/// One of the two servers, with what its answers gave for later requests.
struct Server {
    address: String,
    /// `{name}` in a request becomes this.
    learnt: BTreeMap<&'static str, String>,
}

impl Server {
    async fn new(address: &str) -> Self {
        let mut server = Server { address: address.to_owned(), learnt: BTreeMap::new() };
        let answer = ask(address, &Ask::post("/v3/maintenance/status", "{}")).await;
        let status: Value = serde_json::from_slice(&answer.body).unwrap();
        server.learnt.insert("member", status["header"]["member_id"].as_str().unwrap().to_owned());
        server
    }

    async fn ask(&mut self, row: &Row) -> Answer {
        let mut request = row.ask.clone();
        for (name, value) in &self.learnt {
            let name = format!("{{{name}}}");
            if let Ok(body) = String::from_utf8(request.body.clone()) {
                request.body = body.replace(&name, value).into_bytes();
            }
            request.headers.iter_mut().for_each(|(_, v)| *v = v.replace(&name, value));
        }
        let answer = ask(&self.address, &request).await;
        if let Ok(Value::Object(body)) = serde_json::from_slice(&answer.body) {
            for name in ["token", "leader", "key"] {
                if let Some(value) = body.get(name) {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    self.learnt.insert(name, text);
                }
            }
        }
        answer
    }
}

/// What of an answer must agree, as text that shows where it does not.
fn shown(answer: &Answer, own: &[&str]) -> String {
    let mut text = format!("{}\n", answer.status);
    for name in HEADERS {
        if let Some(value) = answer.header(name) {
            text += &format!("{name}: {value}\n");
        }
    }
    let body = answer.text();
    if answer.header("content-type") == Some("application/json") {
        for line in body.lines() {
            let mut json: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            mask(&mut json, own, "");
            text += &format!("{json}\n");
        }
    } else if answer.header("content-type").is_some_and(|t| t.contains("version=0.0.4")) {
        text += if body.contains("\netcd_server_has_leader 1\n") { "metrics" } else { &body };
    } else if body.starts_with('[') {
        // The checks come in any order.
        let mut lines: Vec<&str> = body.lines().collect();
        lines.sort_unstable();
        text += &lines.join("\n");
    } else {
        text += &body;
    }
    // Go's protobuf errors begin with a space of another width in some builds, on purpose; and when a deadline ends a
    // stream, etcd's client and server race for the words.
    text.replace('\u{a0}', " ")
        .replace("stream terminated by RST_STREAM with error code: CANCEL", "context deadline exceeded")
}

fn mask(json: &mut Value, own: &[&str], within: &str) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.as_str();
                let is_own = OWN.contains(&name) || own.contains(&name);
                // A member's ID is its own; a lease's is the one that the request gave.
                let is_member = name == "ID" && within.starts_with("member");
                match value {
                    Value::String(_) | Value::Number(_) | Value::Array(_) if is_own || is_member => *value = "~".into(),
                    _ => mask(value, own, name),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| mask(value, own, within)),
        _ => {}
    }
}

/// Sends all rows to both and fails with every difference that has no reason.
async fn compare(etcd: &str, ours: &str, rows: Vec<Row>) {
    let (mut etcd, mut ours) = (Server::new(etcd).await, Server::new(ours).await);
    let mut wrong = Vec::new();
    let count = rows.len();
    for row in rows {
        let (theirs, own) = (etcd.ask(&row).await, ours.ask(&row).await);
        let (a, b) = (shown(&theirs, row.own), shown(&own, row.own));
        let body = String::from_utf8_lossy(&row.ask.body).chars().take(200).collect::<String>();
        let name = format!("{} {} {body}", row.ask.method, row.ask.path);
        match row.differs {
            None if a != b => wrong.push(format!("--- {name}\netcd: {a}\nours: {b}")),
            Some(why) if a == b => wrong.push(format!("--- {name}\nno longer differs, though: {why}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {count} rows differ:\n{}", wrong.len(), wrong.join("\n"));
}

async fn both() -> (Etcd, Cluster) {
    let mut cluster = Cluster::new(&["solo"]);
    let metrics = support::free_address();
    cluster.members[0].flags.push(format!("--listen-metrics-urls=http://{metrics}"));
    cluster.members[0].start();
    let etcd = Etcd::start(&[]).await;
    cluster.members[0].ready().await;
    (etcd, cluster)
}

/// Requests for one key under another spelling of the body each.
fn bodies() -> Vec<Row> {
    let mut rows: Vec<Row> = [
        // What is no JSON.
        "",
        "   ",
        "x",
        "{'key':1}",
        "{\"key\" \"a\"}",
        "{\"key\":tru}",
        "{\"key\":\"a",
        "{\"key\":\"YQ==\",}",
        "{",
        "[1 2]",
        "\"\\u12\"",
        "{\"key\":-}",
        "{\"key\":1.}",
        "{\"key\":1e}",
        "{\"key\":\"\\x\"}",
        "{\"key\":\"\n\"}",
        // What is JSON, and no message.
        "null",
        "[]",
        "5",
        "\"a\"",
        "true",
        r#"{"key":12}"#,
        r#"{"key":"***"}"#,
        r#"{"key":"A"}"#,
        r#"{"key":"YQ="}"#,
        r#"{"key":"+/-_"}"#,
        r#"{"key":{}}"#,
        r#"{"key":"YQ","key":"YQ"}"#,
        r#"{"key":"YQ","prevKv":true,"prev_kv":true}"#,
        r#"{"prev_kv":"true"}"#,
        r#"{"lease":1.5}"#,
        r#"{"lease":"1.5"}"#,
        r#"{"lease":99999999999999999999}"#,
        r#"{"lease":"x"}"#,
        r#"{"lease":""}"#,
        r#"{"lease":" 1"}"#,
        r#"{"lease":true}"#,
        "{\"x\":1,\n \"key\":7}",
        r#"{"x":"\ud800"}"#,
        r#"{"x":"\ud800\ud800"}"#,
        r#"{"x":"\ud800aaaaaaaa"}"#,
        r#"{"é":1,"key":7}"#,
        // What is a message.
        "{}",
        r#"{"key":null}"#,
        r#"{"key":"YQ=="} garbage"#,
        r#"{"key":"YQ"}"#,
        r#"{"key":"YR"}"#,
        r#"{"key":"Y\nQ"}"#,
        r#"{"key":"-_-_","value":"+/+/"}"#,
        r#"{"key":"-_-_","prevKv":true}"#,
        r#"{"key":"Y\u0051"}"#,
        r#"{"key":"YQ==","lease":"1 2"}"#,
        r#"{"key":"YQ==","lease":1e1}"#,
        r#"{"key":"YQ==","lease":"-0"}"#,
        r#"{"key":"YQ==","unknown":{"a":[1,"b",null]},"Key":"Yg=="}"#,
        r#"{"key":"YQ==","ignore_value":true,"value":"Yg=="}"#,
        r#"{"key":"YQ==","ignore_lease":true,"lease":5}"#,
        r#"{"key":"bm9uZQ==","ignore_value":true}"#,
    ]
    .into_iter()
    .map(|body| post("/v3/kv/put", body))
    .collect();
    rows.push(Ask::new("POST", "/v3/kv/put", b"{\"key\":\"\xff\"}").into());
    rows.push(Ask::new("POST", "/v3/kv/put", b"{\"key\":\x80}").into());
    // Found by changing good bodies at random.
    rows.push(Ask::new("POST", "/v3/kv/put", b"{\"x\":\"\\ud83d\xff\\ude00\"}").into());
    rows.push(post("/v3/kv/put", r#"{"key":"YQ==","lease":"1e}2"}"#));
    let deep = "[".repeat(10_001);
    rows.push(post("/v3/kv/put", &deep));
    let large =
        |bytes: usize| post("/v3/kv/put", &format!("{{\"key\":\"YQ==\",\"value\":\"{}\"}}", "AAAA".repeat(bytes / 3)));
    rows.push(large(1_600_000));
    rows.push(large(2_200_000));
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_a_body_is_answered_as_etcd_answers_it() {
    let (etcd, cluster) = both().await;
    compare(&etcd.client, &cluster.members[0].client, bodies()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_is_answered_as_etcd_answers_it() {
    let (etcd, cluster) = both().await;
    let nested = "{\"success\":[{\"request_txn\":".repeat(20) + "{}" + &"}]}".repeat(20);
    let rows = vec![
        // Keys.
        post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
        post("/v3/kv/put", r#"{"key":"Zm9w","value":"YmF6"}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#),
        post("/v3/kv/range", r#"{"key":"Zm8=","range_end":"Zm9+","limit":1}"#),
        post("/v3/kv/range", r#"{"key":"Zm8=","rangeEnd":"Zm9+","sort_order":"DESCEND","sortTarget":"MOD","keysOnly":true}"#),
        post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true,"serializable":true}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","sort_order":"SIDEWAYS"}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","sort_order":7}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","sort_order":1.5}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","sort_order":true}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","revision":1000000}"#),
        post("/v3/kv/range", "{}"),
        post("/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
        post("/v3alpha/kv/range", r#"{"key":"Zm9v"}"#),
        post("/v3/kv/%72ange", r#"{"key":"Zm9v"}"#),
        post("/v3/kv/range?pretty=1", r#"{"key":"Zm9v"}"#),
        post("/v3/kv/range/", r#"{"key":"Zm9v"}"#),
        post("/v3/kv/txn", r#"{"compare":[{"target":"VALUE","key":"Zm9v","value":"YmF6"}],"success":[{"request_range":{"key":"Zm9v"}}],"failure":[{"request_put":{"key":"Zm9v"}}]}"#),
        post("/v3/kv/txn", r#"{"compare":[{"target":"CREATE","key":"bmV3","createRevision":"0","result":"EQUAL"}],"success":[{"requestPut":{"key":"bmV3","value":"AQ=="}},{"requestDeleteRange":{"key":"Zm9w","prevKv":true}}]}"#),
        post("/v3/kv/txn", r#"{"compare":[{"target":"VERSION","key":"bmV3","version":"7","result":1}],"failure":[{"requestRange":{"key":"bmV3"}}]}"#),
        post("/v3/kv/txn", r#"{"compare":[{"key":"YQ==","value":"","version":"1"}]}"#),
        post("/v3/kv/txn", r#"{"compare":[null]}"#),
        post("/v3/kv/txn", r#"{"compare":{}}"#),
        post("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
        post("/v3/kv/txn", r#"{"success":[{}]}"#),
        post("/v3/kv/txn", r#"{"success":[{"request_range":{"key":""}}]}"#),
        post("/v3/kv/txn", &nested),
        post("/v3/kv/txn", "{}"),
        post("/v3/kv/deleterange", r#"{"key":"bmV3","prev_kv":true}"#),
        post("/v3/kv/deleterange", r#"{"key":"bmV3"}"#),
        post("/v3/kv/deleterange", "{}"),
        post("/v3/kv/compaction", r#"{"revision":"3"}"#),
        post("/v3/kv/compaction", r#"{"revision":"3"}"#),
        post("/v3/kv/compaction", r#"{"revision":"3000","physical":true}"#),
        post("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
        // Leases.
        post("/v3/lease/grant", r#"{"TTL":"200","ID":"77"}"#),
        post("/v3/lease/grant", r#"{"TTL":200,"ID":77}"#),
        post("/v3/lease/grant", r#"{"TTL":"9000000001"}"#),
        post("/v3/lease/grant", r#"{"TTL":"200"}"#).own(&["ID"]),
        // At once: it lives for two seconds.
        post("/v3/lease/grant", r#"{"ID":78}"#),
        post("/v3/lease/revoke", r#"{"ID":"78"}"#),
        post("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":"77"}"#),
        post("/v3/lease/timetolive", r#"{"ID":"77","keys":true}"#).own(&["TTL"]),
        post("/v3/kv/lease/timetolive", r#"{"ID":"77"}"#).own(&["TTL"]),
        post("/v3/lease/timetolive", r#"{"ID":"5"}"#),
        post("/v3/lease/keepalive", r#"{"ID":"77"}"#),
        post("/v3/lease/keepalive", r#"{"ID":"77"}{"ID":5} {"ID":7"#),
        post("/v3/lease/keepalive", ""),
        post("/v3/lease/keepalive", "x"),
        post("/v3/lease/keepalive", r#"{"ID":"77"}{"ID":true}"#),
        post("/v3/lease/revoke", r#"{"ID":"5"}"#),
        post("/v3/kv/lease/revoke", r#"{"ID":"77"}"#),
        post("/v3/lease/leases", "{}").own(&["ID"]),
        post("/v3/kv/lease/leases", "").own(&["ID"]),
        // Watches.
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#).lines(1),
        post("/v3/watch", r#"{"createRequest":{"key":"Zm9v","startRevision":"4","watch_id":"9","prevKv":true}}"#).lines(1),
        post("/v3/watch", r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":5}}"#).lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":5,"filters":["NOPUT"]}}"#).lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#).lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"YQ==","watch_id":5}}{"create_request":{"key":"YQ==","watch_id":5}}{"cancel_request":{"watch_id":5}}"#).lines(3),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}} {"create_request":5}"#).lines(1),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#).header("Grpc-Timeout", "400m"),
        with("GET", "/v3/watch"),
        // Members.
        post("/v3/cluster/member/list", "{}"),
        post("/v3/cluster/member/list", r#"{"linearizable":true}"#),
        post("/v3/cluster/member/add", r#"{"peerURLs":["abc"]}"#),
        post("/v3/cluster/member/add", r#"{"peerURLs":"abc"}"#),
        post("/v3/cluster/member/add", r#"{"peerURLs":[1]}"#),
        post("/v3/cluster/member/add", "{}"),
        post("/v3/cluster/member/remove", r#"{"ID":"5"}"#),
        post("/v3/cluster/member/remove", r#"{"ID":-5}"#),
        post("/v3/cluster/member/promote", r#"{"ID":"5"}"#),
        post("/v3/cluster/member/promote", r#"{"ID":"{member}"}"#),
        post("/v3/cluster/member/update", r#"{"ID":"5","peerURLs":["http://127.0.0.1:1"]}"#),
        post("/v3/cluster/member/update", r#"{"ID":"{member}","peerURLs":["x"]}"#)
            .differs("etcd writes down whatever it is given; ferretcd refuses an address that no member has"),
        // Maintenance.
        post("/v3/maintenance/status", "{}").own(&["leader"]),
        post("/v3/maintenance/status", "").own(&["leader"]),
        post("/v3/maintenance/alarm", "{}"),
        post("/v3/maintenance/alarm", r#"{"action":"GET","memberID":"0","alarm":"NONE"}"#),
        // (An action that has no name ends etcd's process, so that is no row.)
        post("/v3/maintenance/alarm", r#"{"action":"ACTIVATE","memberID":"{member}","alarm":"NOSPACE"}"#),
        post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        get("/health"),
        get("/health?exclude=NOSPACE"),
        get("/health?exclude=CORRUPT"),
        get("/readyz"),
        post("/v3/maintenance/alarm", r#"{"action":"DEACTIVATE","memberID":"{member}","alarm":"NOSPACE"}"#),
        post("/v3/maintenance/defragment", "{}"),
        post("/v3/maintenance/hash", "{}"),
        post("/v3/maintenance/hashkv", "{}"),
        post("/v3/maintenance/hashkv", r#"{"revision":"1000000"}"#),
        post("/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
        post("/v3/maintenance/downgrade", r#"{"action":"VALIDATE","version":"x"}"#),
        post("/v3/maintenance/downgrade", r#"{"action":"CANCEL"}"#),
        post("/v3/maintenance/snapshot", "x"),
        // Paths, methods and headers.
        post("/v3/kv/nothing", "{}"),
        post("/v3/", "{}"),
        get("/v3/"),
        get("/v3"),
        post("/v3", "{}"),
        get("/v3/kv/put"),
        with("PUT", "/v3/kv/put"),
        with("DELETE", "/v3/kv/put"),
        with("HEAD", "/v3/kv/put"),
        with("OPTIONS", "/v3/kv/put"),
        with("OPTIONS", "/nothing"),
        get("/"),
        get("/nothing"),
        get("//health"),
        get("/v3/../health?a=b"),
        post("/v3/kv/./put", "{}"),
        post("/etcdserverpb.KV/Put", "{}").header("Content-Type", "application/grpc"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Content-Type", "text/xml"),
        Row::from(Ask::post("/v3/kv/range", r#"{"key":"Zm9v"}"#)),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Authorization", "nonsense"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Grpc-Metadata-hasleader", "true"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Grpc-Timeout", "1x"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Grpc-Timeout", "1n"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Grpc-Timeout", "10S"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("X-HTTP-Method-Override", "GET"),
        post("/v3/kv/range", r#"{"key":"Zm9v"}"#).header("Origin", "http://a.test").header("Host", "b.test"),
    ];
    compare(&etcd.client, &cluster.members[0].client, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_elections_are_answered_as_etcd_answers_them() {
    let (etcd, cluster) = both().await;
    let ours = &cluster.members[0].client;
    let rows = vec![
        post("/v3/lock/lock", r#"{"name":"bQ=="}"#).own(&["key"]),
        post("/v3/lock/unlock", r#"{"key":"{key}"}"#),
        post("/v3/lock/unlock", "{}"),
        post("/v3/lock/lock", r#"{"name":"bQ==","lease":"5"}"#),
        post("/v3/election/leader", r#"{"name":"ZQ=="}"#),
        post("/v3/election/campaign", r#"{"name":"ZQ==","lease":5}"#),
        post("/v3/election/campaign", r#"{"name":"ZQ==","value":"dg=="}"#).own(&["key", "lease"]),
        post("/v3/election/leader", r#"{"name":"ZQ=="}"#).own(&["key", "lease"]),
        post("/v3/election/proclaim", r#"{"leader":{leader},"value":"dw=="}"#),
        post("/v3/election/observe", r#"{"name":"ZQ=="}"#).own(&["key", "lease"]).lines(1),
        post("/v3/election/observe", "x"),
        post("/v3/election/resign", r#"{"leader":{leader}}"#),
        post("/v3/election/proclaim", r#"{"leader":{leader},"value":"dw=="}"#),
        post("/v3/election/resign", r#"{"leader":{leader}}"#),
        post("/v3/election/resign", "{}"),
        post("/v3/election/proclaim", "{}"),
    ];
    compare(&etcd.client, ours, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_are_answered_as_etcd_answers_them() {
    let (etcd, cluster) = both().await;
    let ours = &cluster.members[0].client;
    let root = |row: Row| row.header("Authorization", "{token}");
    let rows = vec![
        post("/v3/auth/status", "{}"),
        post("/v3/auth/enable", "{}"),
        post("/v3/auth/disable", "{}"),
        post("/v3/auth/authenticate", r#"{"name":"root","password":"r"}"#),
        post("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        post("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        post("/v3/auth/user/add", r#"{"password":"r"}"#),
        post("/v3/auth/user/add", r#"{"name":"a<b>&\u00e9","options":{"no_password":true}}"#),
        post("/v3/auth/user/add", r#"{"name":"u","password":"p","options":{"noPassword":false}}"#),
        post("/v3/auth/user/list", "{}"),
        post("/v3/auth/user/get", r#"{"name":"nobody"}"#),
        post("/v3/auth/user/changepw", r#"{"name":"u","password":"q"}"#),
        post("/v3/auth/user/changepw", r#"{"name":"nobody","password":"q"}"#),
        post("/v3/auth/role/add", r#"{"name":"root"}"#),
        post("/v3/auth/role/add", r#"{"name":"r"}"#),
        post("/v3/auth/role/add", r#"{"name":"r"}"#),
        post("/v3/auth/role/add", "{}"),
        post("/v3/auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#),
        post("/v3/auth/role/grant", r#"{"name":"r","perm":{"permType":0,"key":"eA=="}}"#),
        post("/v3/auth/role/grant", r#"{"name":"r"}"#),
        post("/v3/auth/role/get", r#"{"role":"r"}"#),
        post("/v3/auth/role/get", r#"{"role":"none"}"#),
        post("/v3/auth/role/list", "{}"),
        post("/v3/auth/role/revoke", r#"{"role":"r","key":"eA=="}"#),
        post("/v3/auth/role/revoke", r#"{"role":"r","key":"eg=="}"#),
        post("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        post("/v3/auth/user/grant", r#"{"user":"u","role":"r"}"#),
        post("/v3/auth/user/grant", r#"{"user":"u","role":"none"}"#),
        post("/v3/auth/user/get", r#"{"name":"u"}"#),
        post("/v3/auth/user/revoke", r#"{"name":"u","role":"none"}"#),
        post("/v3/auth/enable", "{}"),
        // From here on a token is needed.
        post("/v3/kv/range", r#"{"key":"YQ=="}"#),
        post("/v3/kv/range", r#"{"key":"YQ=="}"#).header("Authorization", "nonsense"),
        post("/v3/kv/range", r#"{"key":"YQ=="}"#).header("token", "nonsense"),
        post("/v3/watch", r#"{"create_request":{"key":"YQ=="}}"#).lines(1),
        post("/v3/watch", r#"{"create_request":{"key":"YQ=="}}"#).header("Authorization", "nonsense").lines(1),
        post("/v3/lease/keepalive", r#"{"ID":4}"#).header("Authorization", "nonsense"),
        post("/v3/maintenance/snapshot", "{}"),
        post("/v3/maintenance/snapshot", "{}").header("Authorization", "nonsense"),
        post("/v3/cluster/member/list", "{}"),
        get("/health"),
        get("/readyz"),
        post("/v3/auth/authenticate", r#"{"name":"u","password":"p"}"#),
        post("/v3/auth/authenticate", r#"{"name":"u","password":"q"}"#),
        root(post("/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#)),
        root(post("/v3/kv/put", r#"{"key":"eA=="}"#)),
        root(post("/v3/kv/range", r#"{"key":"YQ=="}"#)),
        root(post("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"eA=="}}]}"#)),
        root(post("/v3/watch", r#"{"create_request":{"key":"eA=="}}"#)).lines(1),
        root(post("/v3/auth/user/list", "{}")),
        post("/v3/kv/range", r#"{"key":"YQ=="}"#).header("Grpc-Metadata-Token", "{token}"),
        post("/v3/auth/authenticate", r#"{"name":"root","password":"r"}"#),
        root(post("/v3/auth/user/delete", r#"{"name":"root"}"#)),
        root(post("/v3/auth/role/delete", r#"{"role":"r"}"#)),
        root(post("/v3/auth/role/delete", r#"{"role":"none"}"#)),
        root(post("/v3/auth/status", "{}")),
        root(post("/v3/auth/disable", "{}")),
        post("/v3/kv/range", r#"{"key":"YQ=="}"#),
    ];
    compare(&etcd.client, ours, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_answered_as_etcd_answers_them() {
    let (etcd, cluster) = both().await;
    let member = &cluster.members[0];
    let rows = || {
        let mut rows = vec![
            get("/debug/pprof/"),
            get("/livez/"),
            with("POST", "/livez/linearizable_read"),
            with("POST", "/nothing"),
            get("/readyz?verbose&exclude=linearizable_read&exclude=data_corruption&exclude=nothing&exclude="),
            get("/readyz?exclude=linearizable_read&verbose=false"),
            get("/health?serializable=true"),
            get("/health?exclude=%zz;x&exclude=NOSPACE"),
            with("POST", "/metrics"),
        ];
        let checks = ["data_corruption", "serializable_read", "linearizable_read", "non_learner", "nothing"];
        for check in checks {
            rows.push(get(&format!("/readyz/{check}")));
            rows.push(get(&format!("/readyz/{check}?verbose=1")));
            rows.push(get(&format!("/livez/{check}?verbose")));
        }
        for path in ["/health", "/livez", "/readyz", "/version", "/debug/vars", "/livez/serializable_read"] {
            for method in ["POST", "HEAD", "OPTIONS", "PUT"] {
                rows.push(with(method, path));
            }
            if path != "/debug/vars" {
                rows.push(get(path));
                rows.push(get(&format!("{path}?verbose")));
            }
        }
        rows.push(get("/metrics"));
        rows.push(get("/metrics").header("Accept", "application/openmetrics-text; version=1.0.0"));
        rows
    };
    let vars = get("/debug/vars").differs("the command line is each one's own, and memstats are Go's");
    compare(&etcd.client, &member.client, rows().into_iter().chain([vars]).collect()).await;

    // The metrics listener: no gateway, no version, no CORS.
    let metrics = member.flags.iter().find_map(|f| f.strip_prefix("--listen-metrics-urls=http://")).unwrap();
    for row in rows().into_iter().chain([post("/v3/kv/put", "{}"), get("/v3/kv/put"), get("/v3"), get("//health")]) {
        let (theirs, own) = (ask(&etcd.metrics, &row.ask).await, ask(metrics, &row.ask).await);
        assert_eq!(shown(&own, &[]), shown(&theirs, &[]), "{} {}", row.ask.method, row.ask.path);
    }
}

/// Bodies that are nearly right, the same in every run: each is a good one with a few bytes changed, doubled, left out
/// or put in. None of them may end, hold up or confuse the gateway, and etcd's words are right for all of them.
fn nearly_right(count: usize) -> Vec<Row> {
    let seeds = [
        (
            "/v3/kv/range",
            r#"{"key":"Zm8=","range_end":"Zm9+","limit":"10","sort_order":"DESCEND","sortTarget":3,"keys_only":true}"#,
        ),
        (
            "/v3/kv/range",
            r#"{"key":"-_8","revision":-1.0e0,"min_mod_revision":"1e2","serializable":false,"x":{"y":[null,"\u00e9\ud83d\ude00"]}}"#,
        ),
        (
            "/v3/kv/txn",
            r#"{"compare":[{"target":"MOD","key":"YQ==","mod_revision":"0","result":"LESS"}],"failure":[{"request_range":{"key":"YQ=="}},{"requestTxn":{}}]}"#,
        ),
        ("/v3/lease/timetolive", "[{\"ID\":\"9223372036854775807\",\n \"keys\":true},-12.5E-1,\"\\\"\",false]"),
        ("/v3/cluster/member/add", r#"{"peerURLs":["é","\\\/\b\f\n\r\t"],"isLearner":null}"#),
    ];
    let interesting = b"{}[]\",:\\/ueE+-.0123456789tfnYQ=_ \n\x00\x1f\x7f\x80\xc3\xff";
    // xorshift64: it only has to be the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % n
    };
    let mut rows = Vec::new();
    for i in 0..count {
        let (path, seed) = seeds[i % seeds.len()];
        let mut body = seed.as_bytes().to_vec();
        for _ in 0..=below(3) {
            let at = below(body.len().max(1)).min(body.len().saturating_sub(1));
            let byte = interesting[below(interesting.len())];
            match below(5) {
                0 if !body.is_empty() => drop(body.remove(at)),
                1 => body.insert(at, byte),
                2 => body.truncate(at),
                3 => body.extend_from_within(at.min(body.len())..),
                _ if !body.is_empty() => body[at] = byte,
                _ => {}
            }
        }
        rows.push(Ask::new("POST", path, &body).into());
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_nearly_right_are_answered_as_etcd_answers_them() {
    let (etcd, cluster) = both().await;
    compare(&etcd.client, &cluster.members[0].client, nearly_right(1500)).await;
}

/// Sends a request's body piece by piece while the answer comes.
async fn conversation(address: &str) -> Vec<String> {
    let watch = Ask::new("POST", "/v3/watch", b"");
    let mut connection = Connection::open(address, &watch, None).await.unwrap();
    let mut said = Vec::new();
    connection.chunk(r#"{"create_request":{"key":"dw==","watch_"#).await.unwrap();
    connection.chunk(r#"id":"7"}}"#).await.unwrap();
    said.push(connection.head().await.unwrap().status.to_string());
    said.push(connection.line().await.unwrap());
    for (body, key) in [("{\"key\":\"dw==\",\"value\":\"MQ==\"}", "w"), ("{\"key\":\"eg==\"}", "z")] {
        let put = ask(address, &Ask::post("/v3/kv/put", body)).await;
        assert_eq!(put.status, 200, "{key}: {}", put.text());
    }
    said.push(connection.line().await.unwrap());
    connection.chunk(r#"{"create_request":{"key":"eg==","start_revision":"3"}}"#).await.unwrap();
    said.push(connection.line().await.unwrap());
    said.push(connection.line().await.unwrap());
    // One after the other: etcd answers them from two queues, of which it takes either first.
    connection.chunk(r#" {"progress_request":{}}"#).await.unwrap();
    said.push(connection.line().await.unwrap());
    connection.chunk(r#"{"cancel_request":{"watch_id":7}}"#).await.unwrap();
    said.push(connection.line().await.unwrap());
    said.iter_mut().for_each(|line| {
        let mut json: Value = serde_json::from_str(line).unwrap();
        mask(&mut json, &[], "");
        *line = json.to_string();
    });
    said
}

/// What a WebSocket hears that asks this and goes once it has heard so many messages, or the server goes.
async fn over_a_websocket(address: &str, path: &str, messages: &[&str], count: usize) -> Vec<String> {
    let ask = Ask::get(path)
        .header("Upgrade", "websocket")
        .header("Connection", "Upgrade")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let mut connection = Connection::open(address, &ask, None).await.unwrap();
    let head = connection.head().await.unwrap();
    assert_eq!((head.status, head.header("sec-websocket-accept")), (101, Some("ICX+Yqv66kxgM0FcWaLWlFLwTAI=")));
    for message in messages {
        // One final text frame, masked with zeros.
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(message.as_bytes());
        connection.send(&frame).await.unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < count {
        let Ok(head) = connection.exactly(2).await else { break };
        let length = match head[1] {
            126 => connection.exactly(2).await.unwrap().iter().fold(0, |n, b| n << 8 | usize::from(*b)),
            short => usize::from(short),
        };
        assert_eq!(head[0], 0x81, "a final text frame");
        let mut json = serde_json::from_slice(&connection.exactly(length).await.unwrap()).unwrap();
        mask(&mut json, &[], "");
        heard.push(json.to_string());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_answered_as_etcd_answers_them() {
    let (etcd, cluster) = both().await;
    let ours = &cluster.members[0].client;
    let create = r#"{"create_request":{"key":"dw==","watch_id":"7"}}"#;
    // Path, messages, how many answers to wait for, and how many come.
    let cases: &[(&str, &[&str], usize, usize)] = &[
        ("/v3/watch", &[create, r#"{"cancel_request":{"watch_id":7}}"#], 2, 2),
        ("/v3/lease/keepalive", &[r#"{"ID":"#, r#""5"}"#, r#"{"ID":6}"#], 2, 2),
        ("/v3/nothing", &["{}"], 9, 1),
    ];
    for (path, messages, wanted, heard) in cases {
        let theirs = over_a_websocket(&etcd.client, path, messages, *wanted).await;
        let own = over_a_websocket(ours, path, messages, *wanted).await;
        assert_eq!((own.len(), own), (*heard, theirs), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_answers_of_a_watch_pass_each_other() {
    let (etcd, cluster) = both().await;
    let (theirs, own) = (conversation(&etcd.client).await, conversation(&cluster.members[0].client).await);
    assert_eq!(own, theirs);
    assert_eq!(own.len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_stream() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let watch = Ask::post("/v3/watch", r#"{"create_request":{"key":"dw=="}}"#).lines(1);
    let answer = ask(&m.client, &watch).await;
    assert!(answer.text().contains(r#""created":true}}"#), "{}", answer.text());
    let ended = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",\
                 grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1";
    eventually("the watch ends", async || match m.http("/metrics").await.1.lines().any(|l| l == ended) {
        true => Ok(()),
        false => Err("no watch has ended".to_owned()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_whole_through_the_gateway() {
    use sha2::{Digest, Sha256};
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    m.put("k", &"x".repeat(100_000)).await.unwrap();
    let answer = ask(&m.client, &Ask::post("/v3/maintenance/snapshot", "{}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let mut file = Vec::new();
    for line in answer.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        file.extend(
            base64::Engine::decode(&base64::prelude::BASE64_STANDARD, line["result"]["blob"].as_str().unwrap())
                .unwrap(),
        );
    }
    let (database, hash) = file.split_at(file.len() - 32);
    assert!(database.len() > 100_000 && Sha256::digest(database).as_slice() == hash, "{} bytes", file.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_above_the_bound_wait_for_a_place() {
    let mut cluster = Cluster::new(&["solo"]);
    cluster.members[0].flags.push("--max-concurrent-streams=2".to_owned());
    cluster.members[0].start();
    let m = &cluster.members[0];
    // (Readiness is asked by gRPC, whose streams are counted for each connection.)
    m.ready().await;
    let watch = Ask::post("/v3/watch", r#"{"create_request":{"key":"dw=="}}"#);
    let mut places = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::open(&m.client, &watch, Some(watch.body.len())).await.unwrap();
        connection.send(&watch.body).await.unwrap();
        connection.head().await.unwrap();
        connection.line().await.unwrap();
        places.push(connection);
    }
    let put = Ask::post("/v3/kv/put", r#"{"key":"YQ=="}"#);
    let mut waiting = Connection::open(&m.client, &put, Some(put.body.len())).await.unwrap();
    waiting.send(&put.body).await.unwrap();
    // Whatever is not the gateway is answered meanwhile.
    assert_eq!(m.http("/health").await.0, 200);
    assert_eq!(m.get("a", false).await.unwrap(), None);
    drop(places.pop());
    assert_eq!(waiting.head().await.unwrap().status, 200);
    assert!(m.get("a", false).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_cost_bounded_memory() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let value = "x".repeat(128 << 10);
    for _ in 0..512 {
        m.put("big", &value).await.unwrap();
    }
    let before = m.resident_bytes();
    let watch = Ask::post("/v3/watch", r#"{"create_request":{"key":"Ymln","start_revision":"1"}}"#);
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut connection = Connection::open(&m.client, &watch, Some(watch.body.len())).await.unwrap();
        connection.send(&watch.body).await.unwrap();
        connection.head().await.unwrap();
        readers.push(connection);
    }
    // A writer beside them is not slowed down, and what waits for them does not grow with what is written.
    for i in 0..50 {
        m.put("small", &i.to_string()).await.unwrap();
    }
    let grown = m.resident_bytes().saturating_sub(before);
    // Each holds a few messages of 2 MiB, 20 MiB in all; what they did not read is ten times 64 MiB, and a third more
    // in base64.
    assert!(grown < 400 << 20, "{} MiB for {} readers", grown >> 20, readers.len());
}
