//! How spans leave: in batches, by OTLP over gRPC without TLS, as etcd's. A collector that is slow or gone costs spans and
//! a line of the log, and never a call's time.

use std::time::Duration;

use ferretcd_proto::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span,
    trace_service_client::TraceServiceClient,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{Scope, text};

/// Spans that wait; what comes when so many do is dropped. This and the next two are OpenTelemetry's defaults.
pub const QUEUE_MAX: usize = 2048;
/// Spans that leave together.
const BATCH_MAX: usize = 512;
/// How long the first of them waits for others.
const DELAY: Duration = Duration::from_secs(5);

/// How long a collector may take for a batch (the exporter's default).
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last batch may take when the member stops.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Where spans go, and in whose name.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port` (`--distributed-tracing-address`).
    pub address: String,
    /// `service.name`.
    pub service_name: String,
    /// `service.instance.id`, if it is not empty.
    pub instance_id: String,
}

/// Takes finished spans away; see [`Exporter::run`].
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Receiver<(Scope, Span)>,
    client: TraceServiceClient<Channel>,
    resource: Resource,
    /// Whether the last batch got through: the log says when that changes.
    works: bool,
}

impl Exporter {
    pub(super) fn new(queue: mpsc::Receiver<(Scope, Span)>, target: Target) -> Result<Self, String> {
        let Target { address, service_name, instance_id } = target;
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|e| format!("--distributed-tracing-address={address}: {e}; use host:port"))?;
        let mut attributes = vec![text("service.name", service_name.as_bytes())];
        if !instance_id.is_empty() {
            attributes.push(text("service.instance.id", instance_id.as_bytes()));
        }
        let client = TraceServiceClient::new(endpoint.connect_timeout(TIMEOUT).connect_lazy());
        Ok(Exporter { queue, client, resource: Resource { attributes }, works: true })
    }

    /// Sends what comes until `stop`, and then what is there.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            let stopped = self.fill(&mut batch, &stop).await;
            if stopped {
                while let Ok(span) = self.queue.try_recv() {
                    batch.push(span);
                }
            }
            if !batch.is_empty() {
                self.send(batch, if stopped { LAST_TIMEOUT } else { TIMEOUT }).await;
            }
            if stopped {
                return;
            }
        }
    }

    /// Waits for a batch; true if there will be no other.
    async fn fill(&mut self, batch: &mut Vec<(Scope, Span)>, stop: &CancellationToken) -> bool {
        let mut due = None;
        while batch.len() < BATCH_MAX {
            let late = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                span = self.queue.recv() => match span {
                    Some(span) => batch.push(span),
                    None => return true,
                },
                () = late => return false,
                () = stop.cancelled() => return true,
            }
            due = due.or(Some(Instant::now() + DELAY));
        }
        false
    }

    async fn send(&mut self, batch: Vec<(Scope, Span)>, timeout: Duration) {
        let count = batch.len();
        let mut request = tonic::Request::new(request(self.resource.attributes.clone(), batch));
        request.set_timeout(timeout);
        let sent = tokio::time::timeout(timeout, self.client.export(request)).await;
        let why = match sent {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.to_string()),
            Err(_) => Some(format!("no answer within {timeout:?}")),
        };
        match &why {
            Some(why) if self.works => {
                tracing::warn!(spans = count, "traces are lost: the collector cannot be reached: {why}")
            }
            None if !self.works => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        self.works = why.is_none();
    }
}

fn request(attributes: Vec<KeyValue>, batch: Vec<(Scope, Span)>) -> ExportTraceServiceRequest {
    let (calls, work): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(scope, _)| *scope == Scope::Call);
    // The names of what makes these spans in etcd, by which people find them.
    const CALLS: (&str, &str) =
        ("go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc", "0.68.0");
    const WORK: (&str, &str) = ("go.etcd.io/etcd", "");
    let scopes = [(CALLS, calls), (WORK, work)].into_iter().filter(|(_, spans)| !spans.is_empty());
    let scope_spans = scopes.map(|((name, version), spans)| ScopeSpans {
        scope: Some(InstrumentationScope { name: name.to_owned(), version: version.to_owned() }),
        spans: spans.into_iter().map(|(_, span)| span).collect(),
    });
    let scope_spans = scope_spans.collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn spans_wait_for_others_and_leave_when_the_member_stops() {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let target = Target { address: "127.0.0.1:1".into(), service_name: "etcd".into(), instance_id: "x".into() };
        let mut exporter = Exporter::new(queue, target).unwrap();
        for _ in 0..BATCH_MAX + 1 {
            sender.try_send((Scope::Work, Span::default())).unwrap();
        }
        let (mut batch, stop) = (Vec::new(), CancellationToken::new());
        assert!(!exporter.fill(&mut batch, &stop).await);
        assert_eq!(batch.len(), BATCH_MAX);
        stop.cancel();
        let mut rest = Vec::new();
        assert!(exporter.fill(&mut rest, &stop).await);
        assert!(
            Exporter::new(
                mpsc::channel(1).1,
                Target { address: "a b".into(), service_name: String::new(), instance_id: String::new() }
            )
            .is_err()
        );
        // Nobody listens there: it ends all the same.
        exporter.run(stop).await;
    }
}
