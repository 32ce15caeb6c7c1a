//! KV/RangeStream: a range's answer in chunks whose sizes follow what they turn out to hold. Joined together they are
//! what Range answers; header, `more` and `count` come with the last one alone (etcd 3.7's rules).

use ferretcd_node::RangePages;
use ferretcd_proto::etcdserverpb::{RangeRequest, RangeResponse, range_request::SortOrder};
use ferretcd_types::{Error, KeyValue};
use prost::Message;
use tonic::Status;

use crate::{convert::kv as convert, status::from_error, validate};

/// Keys in the first chunk (etcd's number): small, so that the client has something to do while the next is made.
const FIRST_CHUNK_KEYS: i64 = 10;

/// What Range refuses is refused, and what can't be streamed: other orders than the keys' own, and filters by revision.
pub fn check(request: &RangeRequest) -> Result<(), Status> {
    validate::range(request).map_err(from_error)?;
    let by_key = request.sort_target == 0 && request.sort_order() == SortOrder::Ascend;
    if request.sort_order() != SortOrder::None && !by_key {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = request;
    let filters = [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision];
    if filters.into_iter().any(|bound| *bound != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// Where the pages come from: the node's, or a story's.
pub trait Pages {
    fn next(&mut self, limit: usize) -> Result<(Vec<KeyValue>, bool), Error>;
    fn count_left(&self) -> Result<i64, Error>;
}

impl Pages for RangePages {
    fn next(&mut self, limit: usize) -> Result<(Vec<KeyValue>, bool), Error> {
        RangePages::next(self, limit)
    }
    fn count_left(&self) -> Result<i64, Error> {
        RangePages::count_left(self)
    }
}

/// Cuts the answer into chunks.
#[derive(Debug)]
pub struct Chunks<P> {
    pages: P,
    /// Keys that the client still wants.
    wanted: i64,
    /// Most keys in the next chunk.
    chunk: i64,
    /// About how many bytes a chunk should have.
    chunk_bytes: usize,
    /// Keys sent.
    sent: i64,
    done: bool,
}

impl<P: Pages> Chunks<P> {
    /// `limit` is the request's: 0 (or less) is no limit.
    pub fn new(pages: P, limit: i64, chunk_bytes: usize) -> Self {
        let wanted = if limit > 0 { limit } else { i64::MAX };
        Chunks { pages, wanted, chunk: FIRST_CHUNK_KEYS.min(wanted), chunk_bytes, sent: 0, done: false }
    }

    /// The next chunk, without a header; `None` after the last.
    pub fn next(&mut self) -> Result<Option<RangeResponse>, Error> {
        if self.done {
            return Ok(None);
        }
        let (kvs, more) = self.pages.next(usize::try_from(self.chunk).unwrap_or(usize::MAX))?;
        let keys = kvs.len() as i64;
        self.wanted -= keys;
        self.sent += keys;
        let mut answer = convert::range_chunk(kvs);
        self.done = !more || self.wanted == 0;
        if self.done {
            answer.more = more;
            answer.count = self.sent + if more { self.pages.count_left()? } else { 0 };
        } else {
            self.chunk = self.next_chunk(answer.encoded_len()).min(self.wanted);
        }
        Ok(Some(answer))
    }

    /// True once the last chunk was given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Doubles or halves what turned out far too small or large; in between the size stays, so that it settles.
    fn next_chunk(&self, bytes: usize) -> i64 {
        let next = if bytes < self.chunk_bytes / 2 {
            self.chunk.saturating_mul(2)
        } else if bytes > self.chunk_bytes.saturating_mul(2) {
            self.chunk / 2
        } else {
            self.chunk
        };
        next.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys with values of these sizes.
    struct Story {
        values: Vec<usize>,
        next: usize,
    }

    impl Pages for Story {
        fn next(&mut self, limit: usize) -> Result<(Vec<KeyValue>, bool), Error> {
            let page = self.values[self.next..].iter().take(limit);
            let kvs: Vec<_> = page.map(|n| KeyValue { value: vec![0; *n].into(), ..KeyValue::default() }).collect();
            self.next += kvs.len();
            Ok((kvs, self.next < self.values.len()))
        }
        fn count_left(&self) -> Result<i64, Error> {
            Ok((self.values.len() - self.next) as i64)
        }
    }

    /// Keys per chunk, and what the last one says.
    fn chunks(values: Vec<usize>, limit: i64) -> (Vec<usize>, bool, i64) {
        let mut chunks = Chunks::new(Story { values, next: 0 }, limit, 1000);
        let (mut sizes, mut last) = (Vec::new(), RangeResponse::default());
        while let Some(chunk) = chunks.next().unwrap() {
            let is_last = chunks.is_done();
            assert!(is_last || (!chunk.more && chunk.count == 0), "only the last one says more");
            assert_eq!(chunk.header, None);
            sizes.push(chunk.kvs.len());
            last = chunk;
        }
        assert_eq!(chunks.next(), Ok(None));
        (sizes, last.more, last.count)
    }

    #[test]
    fn chunks_grow_while_they_are_small_and_shrink_when_they_are_large() {
        // Nine bytes each: 10, 20, 40 are below half of 1000 bytes, 80 is not, and stays.
        assert_eq!(chunks(vec![5; 300], 0), (vec![10, 20, 40, 80, 80, 70], false, 300));
        assert_eq!(chunks(vec![3000; 4], 0), (vec![4], false, 4));
        assert_eq!(chunks(vec![1200; 20], 0), (vec![10, 5, 2, 1, 1, 1], false, 20));
        assert_eq!(chunks(vec![], 0), (vec![0], false, 0));
    }

    #[test]
    fn a_limit_ends_the_stream_and_the_rest_is_counted() {
        assert_eq!(chunks(vec![10; 300], 3), (vec![3], true, 300));
        assert_eq!(chunks(vec![10; 300], 25), (vec![10, 15], true, 300));
        assert_eq!(chunks(vec![10; 25], 25), (vec![10, 15], false, 25));
        assert_eq!(chunks(vec![10; 12], -1), (vec![10, 2], false, 12));
    }

    #[test]
    fn what_cannot_be_streamed_is_refused_in_etcds_words() {
        let told = |request: RangeRequest| check(&request).map_err(|s| (i32::from(s.code()), s.message().to_owned()));
        let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        assert_eq!(told(RangeRequest::default()), Err((3, "etcdserver: key is not provided".into())));
        assert_eq!(told(RangeRequest { sort_order: 1, ..range.clone() }), Ok(()));
        assert_eq!(told(RangeRequest { sort_target: 3, ..range.clone() }), Ok(()));
        let orders = Err((12, "RangeStream does not support custom sort orders".to_owned()));
        assert_eq!(told(RangeRequest { sort_order: 2, ..range.clone() }), orders);
        assert_eq!(told(RangeRequest { sort_order: 1, sort_target: 3, max_mod_revision: 1, ..range.clone() }), orders);
        let filters = Err((12, "RangeStream does not support revision filters".to_owned()));
        assert_eq!(told(RangeRequest { max_mod_revision: 1, ..range }), filters);
    }
}
