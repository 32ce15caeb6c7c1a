//! One client's watcher: what of the shared watch's answers is for it. Pure.

use crate::namespace::Namespace;
use ferretcd_proto::etcdserverpb::watch_create_request::FilterType;
use ferretcd_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use ferretcd_proto::mvccpb::event::EventType;
use prost::Message;
use prost::length_delimiter_len;

/// The watch ID of answers to a request for progress, which are about a whole stream.
pub const PROGRESS_ID: i64 = -1;

/// A watcher of one stream.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// Its ID on the stream.
    pub id: i64,
    /// The first revision that it has not seen.
    pub next: i64,
    /// The revision that its client has of it, by what it was sent; before that the one before its start.
    pub known: i64,
    /// It wants to hear of progress without events.
    pub progress: bool,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    /// Its answers may come in pieces.
    fragment: bool,
}

impl Watcher {
    /// As a client asks for it, under this ID, from this revision on.
    pub fn new(id: i64, next: i64, request: &WatchCreateRequest) -> Self {
        Watcher {
            id,
            next,
            known: next.saturating_sub(1),
            progress: request.progress_notify,
            prev_kv: request.prev_kv,
            no_put: request.filters().any(|f| f == FilterType::Noput),
            no_delete: request.filters().any(|f| f == FilterType::Nodelete),
            fragment: request.fragment,
        }
    }

    /// Its own answer for one of the shared watch. Nothing if there is nothing in it that it has not seen and wants.
    pub fn take(&mut self, shared: &WatchResponse, namespace: &Namespace) -> Option<WatchResponse> {
        let answer = self.unseen(shared, namespace)?;
        self.known = self.next.saturating_sub(1);
        Some(answer)
    }

    fn unseen(&mut self, shared: &WatchResponse, namespace: &Namespace) -> Option<WatchResponse> {
        let revision = shared.header.as_ref().map_or(0, |h| h.revision);
        if shared.events.is_empty() {
            let news = revision >= self.next;
            if news {
                self.next = revision.saturating_add(1);
            }
            // An answer to the proxy's own question (see `hub`) is not what the client asked for.
            let is_notice = shared.watch_id != PROGRESS_ID;
            return (self.progress && is_notice && revision.saturating_add(1) == self.next)
                .then(|| self.answer(shared));
        }
        let mut answer = self.answer(shared);
        let (from, mut last) = (self.next, 0);
        for event in &shared.events {
            let at = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if at < from {
                continue;
            }
            last = last.max(at);
            let unwanted = match event.r#type() {
                EventType::Put => self.no_put,
                EventType::Delete => self.no_delete,
            };
            if unwanted {
                continue;
            }
            let mut event = event.clone();
            if !self.prev_kv {
                event.prev_kv = None;
            }
            namespace.strip_event(&mut event);
            answer.events.push(event);
        }
        // A revision's events come together: those of `last` are all there.
        self.next = self.next.max(last.saturating_add(1));
        (!answer.events.is_empty()).then_some(answer)
    }

    fn answer(&self, shared: &WatchResponse) -> WatchResponse {
        WatchResponse { header: shared.header, watch_id: self.id, ..WatchResponse::default() }
    }

    /// An answer in the pieces that the client can take, of less than `limit` bytes if there are several events.
    pub fn pieces(&self, answer: WatchResponse, limit: usize) -> Vec<WatchResponse> {
        if !self.fragment || answer.events.len() < 2 || answer.encoded_len() < limit {
            return vec![answer];
        }
        let WatchResponse { events, .. } = answer;
        let frame = WatchResponse { events: Vec::new(), fragment: true, ..answer };
        let frame_bytes = frame.encoded_len();
        let (mut pieces, mut piece, mut bytes) = (Vec::new(), frame.clone(), frame_bytes);
        for event in events {
            let encoded = event.encoded_len();
            // The field's tag takes one byte.
            let event_bytes = 1 + length_delimiter_len(encoded) + encoded;
            if !piece.events.is_empty() && bytes + event_bytes >= limit {
                pieces.push(std::mem::replace(&mut piece, frame.clone()));
                bytes = frame_bytes;
            }
            piece.events.push(event);
            bytes += event_bytes;
        }
        piece.fragment = false;
        pieces.push(piece);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::etcdserverpb::ResponseHeader;
    use ferretcd_proto::mvccpb::{Event, KeyValue};

    fn put(key: &'static str, at: i64) -> Event {
        let kv = KeyValue { key: key.into(), mod_revision: at, ..KeyValue::default() };
        Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: Some(KeyValue::default()) }
    }
    fn delete(key: &'static str, at: i64) -> Event {
        Event { r#type: EventType::Delete.into(), ..put(key, at) }
    }
    fn shared(revision: i64, events: Vec<Event>) -> WatchResponse {
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        WatchResponse { header: Some(header), watch_id: 99, events, ..WatchResponse::default() }
    }
    fn watcher(next: i64, request: &WatchCreateRequest) -> Watcher {
        Watcher::new(7, next, request)
    }
    fn revisions(answer: Option<WatchResponse>) -> Vec<i64> {
        answer.map_or(vec![], |a| a.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision).collect())
    }

    #[test]
    fn no_event_comes_twice_and_none_from_before_the_start() {
        let none = Namespace::default();
        let mut one = watcher(5, &WatchCreateRequest::default());
        let first = shared(6, vec![put("a", 4), put("a", 5), put("b", 5), put("a", 6)]);
        assert_eq!(revisions(one.take(&first, &none)), [5, 5, 6]);
        assert_eq!(one.take(&first, &none), None);
        assert_eq!(one.next, 7);
        assert_eq!(revisions(one.take(&shared(8, vec![put("a", 6), put("a", 8)]), &none)), [8]);
    }

    #[test]
    fn each_gets_what_it_asked_for() {
        let event = shared(5, vec![put("n/a", 5), delete("n/b", 5)]);
        let taken = |request: WatchCreateRequest| {
            let answer = watcher(1, &request).take(&event, &Namespace::new("n/")).unwrap();
            assert_eq!(answer.watch_id, 7);
            answer.events
        };
        let keys = |events: &[Event]| -> Vec<_> { events.iter().map(|e| e.kv.clone().unwrap().key).collect() };
        let all = taken(WatchCreateRequest { prev_kv: true, ..Default::default() });
        assert_eq!((keys(&all), all[0].prev_kv.is_some()), (vec!["a".into(), "b".into()], true));
        assert!(taken(WatchCreateRequest::default())[0].prev_kv.is_none());
        let filtered = |f: FilterType| taken(WatchCreateRequest { filters: vec![f.into()], ..Default::default() });
        assert_eq!(keys(&filtered(FilterType::Noput)), ["b"]);
        assert_eq!(keys(&filtered(FilterType::Nodelete)), ["a"]);
    }

    #[test]
    fn unwanted_events_are_seen_all_the_same() {
        let none = Namespace::default();
        let mut one = watcher(1, &WatchCreateRequest { filters: vec![FilterType::Noput.into()], ..Default::default() });
        assert_eq!(one.take(&shared(5, vec![put("a", 5)]), &none), None);
        assert_eq!(one.next, 6);
    }

    #[test]
    fn progress_is_told_to_who_asked() {
        let none = Namespace::default();
        let (mut asked, mut not) = (
            watcher(5, &WatchCreateRequest { progress_notify: true, ..Default::default() }),
            watcher(5, &WatchCreateRequest::default()),
        );
        let told = asked.take(&shared(9, vec![]), &none).unwrap();
        assert_eq!((told.watch_id, told.header.unwrap().revision, asked.next), (7, 9, 10));
        assert_eq!((not.take(&shared(9, vec![]), &none), not.next), (None, 10));
        assert_eq!(asked.take(&WatchResponse { watch_id: PROGRESS_ID, ..shared(12, vec![]) }, &none), None);
        assert_eq!(asked.next, 13);
        // A watcher that starts in the future has no progress yet.
        let mut later = watcher(50, &WatchCreateRequest { progress_notify: true, ..Default::default() });
        assert_eq!((later.take(&shared(9, vec![]), &none), later.next), (None, 50));
    }

    #[test]
    fn pieces_are_for_those_who_can_join_them() {
        let answer = shared(5, (1..=5).map(|at| put("key", at)).collect());
        let pieces =
            |fragment| watcher(1, &WatchCreateRequest { fragment, ..Default::default() }).pieces(answer.clone(), 45);
        assert_eq!(pieces(false), std::slice::from_ref(&answer));
        let split = pieces(true);
        assert!(split.len() > 1 && split.iter().all(|p| p.encoded_len() < 45), "{split:?}");
        let marks: Vec<bool> = split.iter().map(|p| p.fragment).collect();
        assert!(marks[..marks.len() - 1].iter().all(|m| *m) && !marks[marks.len() - 1]);
        assert_eq!(split.into_iter().flat_map(|p| p.events).collect::<Vec<_>>(), answer.events);
    }
}
