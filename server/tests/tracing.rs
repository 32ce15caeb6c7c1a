//! Stories of `--enable-distributed-tracing`, against a small collector: the same calls to real etcd must leave the same
//! spans, times and IDs apart.

use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, eventually, free_address};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::{
    kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use ferretcd_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use ferretcd_proto::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, any_value::Value};
use futures::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse {}))
    }
}

impl Collector {
    /// One that listens, and the flags that send traces to it.
    async fn start() -> (Self, Vec<String>) {
        let (collector, address) = (Collector::default(), free_address());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve(address.parse().unwrap()));
        let flags = ["service-name=svc", "instance-id=one", "sampling-rate=0"];
        let flags = flags.iter().map(|flag| format!("--distributed-tracing-{flag}"));
        let own = ["--enable-distributed-tracing".to_owned(), format!("--distributed-tracing-address={address}")];
        (collector, own.into_iter().chain(flags).collect())
    }

    /// The spans of each trace, by the last byte of its ID, as far as they do not differ from run to run.
    fn traces(&self) -> BTreeMap<u8, BTreeSet<String>> {
        let requests = self.0.lock().unwrap();
        let mut spans = Vec::new();
        for resource in requests.iter().flat_map(|r| &r.resource_spans) {
            let named = text(&resource.resource.as_ref().unwrap().attributes);
            for scope in &resource.scope_spans {
                let scope_name = &scope.scope.as_ref().unwrap().name;
                spans.extend(scope.spans.iter().map(|span| (named.clone(), scope_name.clone(), span)));
            }
        }
        let names: BTreeMap<_, _> = spans.iter().map(|(_, _, s)| (s.span_id.clone(), s.name.clone())).collect();
        let mut traces: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
        for (resource, scope, span) in spans {
            let parent = names.get(&span.parent_span_id).cloned();
            let parent = parent.unwrap_or_else(|| format!("{:?}", &span.parent_span_id[..]));
            let events: Vec<_> = span.events.iter().map(|e| &e.name).collect();
            assert!(span.start_time_unix_nano > 0 && span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
            let status = span.status.clone().unwrap_or_default();
            let told = format!(
                "{resource} | {scope} | {parent} > {} | kind {} | {} | {events:?} | {} {:?} | {:?} | {:x}",
                span.name,
                span.kind,
                text(&span.attributes),
                status.code,
                status.message,
                span.trace_state,
                span.flags,
            );
            traces.entry(*span.trace_id.last().unwrap()).or_default().insert(told);
        }
        traces
    }
}

fn text(attributes: &[KeyValue]) -> String {
    let value = |a: &KeyValue| match a.value.as_ref().and_then(|v| v.value.clone()) {
        Some(Value::IntValue(_)) if a.key == "server.port" => "PORT".to_owned(),
        value => format!("{value:?}"),
    };
    let sorted: BTreeMap<_, _> = attributes.iter().map(|a| (a.key.clone(), value(a))).collect();
    format!("{sorted:?}")
}

/// A request in a trace of its own; the caller's span is sampled or not.
fn traced<T>(trace: u8, sampled: bool, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-000000000000000000000000000001{trace:02x}-1112131415161718-0{}", u8::from(sampled));
    request.metadata_mut().insert("traceparent", MetadataValue::try_from(parent).unwrap());
    request.metadata_mut().insert("tracestate", MetadataValue::from_static("vendor=1"));
    request
}

/// The same calls to either server. The last trace's number is that of the traces that they leave.
async fn call(member: &Member) -> u8 {
    let channel = member.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let put = pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
    kv.put(put.clone()).await.unwrap();
    kv.put(traced(0, false, put.clone())).await.unwrap();
    kv.put(traced(1, true, put.clone())).await.unwrap();
    let range =
        pb::RangeRequest { key: "a".into(), range_end: "b".into(), limit: 5, keys_only: true, ..Default::default() };
    kv.range(traced(2, true, range.clone())).await.unwrap();
    let mut streamed = kv.range_stream(traced(3, true, range.clone())).await.unwrap().into_inner();
    while streamed.message().await.unwrap().is_some() {}
    let op = |op| pb::RequestOp { request: Some(op) };
    let compare = pb::Compare {
        key: "a".into(),
        result: 1,
        target: 0,
        target_union: Some(pb::compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let success = vec![
        op(pb::request_op::Request::RequestRange(range.clone())),
        op(pb::request_op::Request::RequestPut(put.clone())),
    ];
    let txn = pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() };
    kv.txn(traced(4, true, txn)).await.unwrap();
    let read = pb::TxnRequest {
        failure: vec![op(pb::request_op::Request::RequestRange(range.clone()))],
        ..Default::default()
    };
    kv.txn(traced(5, true, read)).await.unwrap();
    kv.delete_range(traced(6, true, pb::DeleteRangeRequest { key: "x".into(), ..Default::default() })).await.unwrap();
    let mut lease = LeaseClient::new(channel.clone());
    lease.lease_grant(traced(7, true, pb::LeaseGrantRequest { id: 70, ttl: 600 })).await.unwrap();
    let alive = stream::iter([pb::LeaseKeepAliveRequest { id: 70 }]);
    let mut answers = lease.lease_keep_alive(traced(8, true, alive)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    lease.lease_revoke(traced(9, true, pb::LeaseRevokeRequest { id: 70 })).await.unwrap();
    kv.compact(traced(10, true, pb::CompactionRequest { revision: 3, physical: true })).await.unwrap();
    // A refusal is the caller's fault; that there is no such method is the server's.
    kv.range(traced(11, true, pb::RangeRequest::default())).await.unwrap_err();
    kv.compact(traced(12, true, pb::CompactionRequest { revision: 3, physical: false })).await.unwrap_err();
    MaintenanceClient::new(channel.clone()).status(traced(13, true, pb::StatusRequest {})).await.unwrap();
    let create = pb::WatchCreateRequest { key: "a".into(), prev_kv: true, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    // The end of the requests is not the end of the stream; that the client goes is.
    let requests = stream::iter([create]);
    let mut watch = WatchClient::new(channel.clone()).watch(traced(14, true, requests)).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().created);
    drop(watch);
    // (An alarm of an unknown action would end etcd's process.)
    let odd = pb::DowngradeRequest { action: 9, ..Default::default() };
    MaintenanceClient::new(channel).downgrade(traced(15, true, odd)).await.unwrap_err();
    15
}

#[tokio::test]
async fn the_same_calls_leave_the_spans_that_they_leave_in_etcd() {
    let ((theirs, their_flags), (ours, our_flags)) = (Collector::start().await, Collector::start().await);
    let etcd = Etcd::start(&their_flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut cluster = Cluster::new(&["solo"]);
    cluster.members[0].flags.extend(our_flags);
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let there = Member::at(&etcd.client, cluster.tmp.path());
    for (member, collector) in [(&there, &theirs), (&cluster.members[0], &ours)] {
        let last = call(member).await;
        let spans = async || {
            let traces = collector.traces();
            // The calls' own spans, and those of the work in all but three.
            let all = (1..=last).all(|n| traces.contains_key(&n));
            let count: usize = traces.values().map(BTreeSet::len).sum();
            if all && count >= 27 { Ok(()) } else { Err(format!("{count}: {traces:#?}")) }
        };
        eventually("the spans are there", spans).await;
    }
    let (theirs, ours) = (theirs.traces(), ours.traces());
    assert!(!ours.contains_key(&0), "{ours:?}");
    for (trace, spans) in &theirs {
        assert_eq!(ours.get(trace), Some(spans), "trace {trace}");
    }
    assert_eq!(theirs.len(), ours.len());
}

#[tokio::test]
async fn of_traces_that_begin_here_all_are_sent_if_asked_for_and_a_stop_sends_the_last() {
    let (collector, mut flags) = Collector::start().await;
    flags.retain(|flag| !flag.contains("sampling-rate"));
    flags.push("--distributed-tracing-sampling-rate=1000000".to_owned());
    let mut cluster = Cluster::new(&["solo"]);
    let member = &mut cluster.members[0];
    member.flags.extend(flags);
    member.start();
    member.ready().await;
    member.put("k", "v").await.unwrap();
    assert_eq!(member.terminate().await, Some(0));
    let told: Vec<String> = collector.traces().into_values().flatten().collect();
    assert!(told.iter().any(|span| span.contains("[] > etcdserverpb.KV/Put")), "{told:#?}");
    assert!(told.iter().any(|span| span.contains("etcdserverpb.KV/Put > put")), "{told:#?}");
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_a_line_of_the_log() {
    let mut cluster = Cluster::new(&["solo"]);
    let member = &mut cluster.members[0];
    member.flags.push("--enable-distributed-tracing".to_owned());
    member.flags.push(format!("--distributed-tracing-address={}", free_address()));
    member.flags.push("--distributed-tracing-sampling-rate=1000000".to_owned());
    member.start();
    member.ready().await;
    member.put("k", "v").await.unwrap();
    assert_eq!(member.terminate().await, Some(0));
    let lines = member.log().lines().filter(|l| l.contains("traces are lost")).count();
    assert_eq!(lines, 1, "{}", member.log());
}
