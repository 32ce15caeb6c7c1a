//! What a watch asks for, and the events that it gets.

use ferretcd_node::WatchCreate;
use ferretcd_proto::{
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
    mvccpb,
};
use ferretcd_types::{Event, EventKind, KeyRange, KeyValue};

use super::key_value;

/// A request for a watcher. An empty key is etcd's smallest key; unknown filters are ignored, as etcd does.
pub fn create(request: WatchCreateRequest) -> WatchCreate {
    let no_put = request.filters().any(|f| f == FilterType::Noput);
    let no_delete = request.filters().any(|f| f == FilterType::Nodelete);
    let start = if request.key.is_empty() { bytes::Bytes::from_static(b"\0") } else { request.key };
    WatchCreate {
        id: request.watch_id,
        range: KeyRange { start, end: request.range_end },
        start_revision: request.start_revision,
        progress_notify: request.progress_notify,
        prev_kv: request.prev_kv,
        no_put,
        no_delete,
    }
}

/// A change, with what was there before.
pub fn event((event, prev_kv): (Event, Option<KeyValue>)) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event { r#type: kind.into(), kv: Some(key_value(event.kv)), prev_kv: prev_kv.map(key_value) }
}

#[cfg(test)]
mod tests {
    use ferretcd_types::Revision;

    use super::*;

    #[test]
    fn a_watch_keeps_every_field() {
        let request = WatchCreateRequest {
            key: "a".into(),
            range_end: "b".into(),
            start_revision: 5,
            progress_notify: true,
            filters: vec![FilterType::Nodelete.into(), 9],
            prev_kv: true,
            watch_id: 6,
            fragment: true,
        };
        let expected = WatchCreate {
            id: 6,
            range: KeyRange::new("a", "b"),
            start_revision: 5,
            progress_notify: true,
            prev_kv: true,
            no_put: false,
            no_delete: true,
        };
        assert_eq!(create(request), expected);
        assert_eq!(create(WatchCreateRequest::default()).range, KeyRange::single("\0"));
    }

    #[test]
    fn a_deletion_carries_what_was_there() {
        let kv = KeyValue { key: "a".into(), mod_revision: 3, ..KeyValue::default() };
        let prev = KeyValue { key: "a".into(), value: "v".into(), ..KeyValue::default() };
        let wire = event((Event { kind: EventKind::Delete, kv, revision: Revision::new(3, 0) }, Some(prev)));
        assert_eq!(wire.r#type(), mvccpb::event::EventType::Delete);
        assert_eq!(wire.kv.unwrap().mod_revision, 3);
        assert_eq!(wire.prev_kv.unwrap().value, "v");
    }
}
