//! Range reads: which keys, in which order, how many.

use crate::error::Fault;
use crate::mvcc::view::{Found, View};
use ferretcd_types::{KeyRange, KeyValue, LeaseId, Range, RangeReply, SortOrder, SortTarget};
use std::cmp::Ordering;

impl View<'_> {
    /// Answers a range request as etcd does (see [`Range`] for the options).
    pub fn range(&self, request: &Range) -> Result<RangeReply, Fault> {
        let at = self.resolve(request.revision)?;
        let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0);
        // Where nobody asked for an order, etcd takes the first keys of the range, one more than asked for, and only then
        // sorts by the target, if it is another than the key.
        let first_keys = !is_filtered(request) && (request.sort_order == SortOrder::None || !is_sorted(request));
        // One more than asked for tells whether there are more.
        let wanted = match limit {
            _ if request.count_only => 0,
            Some(limit) if first_keys => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let (mut found, count) = self.select(&request.range, at, wanted);
        let mut reply = RangeReply { revision: self.revision(), count, ..RangeReply::default() };
        found.retain(|found| passes(request, found));
        if request.sort_target == SortTarget::Value && is_sorted(request) {
            // Only this order needs all values.
            let mut kvs = found.iter().map(|found| self.fetch(found)).collect::<Result<Vec<_>, _>>()?;
            kvs.sort_by(|a, b| directed(request, a.value.cmp(&b.value)));
            reply.more = cut(&mut kvs, limit);
            if request.keys_only {
                kvs.iter_mut().for_each(|kv| kv.value.clear());
            }
            reply.kvs = kvs;
            return Ok(reply);
        }
        if is_sorted(request) {
            found.sort_by(|a, b| directed(request, compare(request.sort_target, a, b)));
        }
        reply.more = cut(&mut found, limit);
        let answer = |found| match request.keys_only {
            true => Ok(without_value(found)),
            false => self.fetch(&found),
        };
        reply.kvs = found.into_iter().map(answer).collect::<Result<_, _>>()?;
        Ok(reply)
    }

    /// The first keys of a range in key order, and whether there are more. Unlike [`View::range`] it does not count the
    /// rest, so that reading a large range page by page costs no more than reading it at once.
    pub fn page(
        &self,
        range: &KeyRange,
        revision: i64,
        limit: usize,
        keys_only: bool,
    ) -> Result<(Vec<KeyValue>, bool), Fault> {
        let at = self.resolve(revision)?;
        let mut found = self.first(range, at, limit.saturating_add(1));
        let more = cut(&mut found, Some(limit));
        let answer = |found| match keys_only {
            true => Ok(without_value(found)),
            false => self.fetch(&found),
        };
        Ok((found.into_iter().map(answer).collect::<Result<_, _>>()?, more))
    }
}

/// True unless the answer comes in the index's own order.
fn is_sorted(request: &Range) -> bool {
    request.sort_order == SortOrder::Descend || request.sort_target != SortTarget::Key
}

fn is_filtered(request: &Range) -> bool {
    let Range { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision].into_iter().any(|&bound| bound != 0)
}

fn passes(request: &Range, found: &Found) -> bool {
    let within = |v: i64, min: i64, max: i64| (min == 0 || v >= min) && (max == 0 || v <= max);
    within(found.change.main, request.min_mod_revision, request.max_mod_revision)
        && within(found.change.created, request.min_create_revision, request.max_create_revision)
}

fn compare(target: SortTarget, a: &Found, b: &Found) -> Ordering {
    match target {
        SortTarget::Key | SortTarget::Value => a.key.cmp(&b.key),
        SortTarget::Version => a.change.version.cmp(&b.change.version),
        SortTarget::Create => a.change.created.cmp(&b.change.created),
        SortTarget::Mod => a.change.main.cmp(&b.change.main),
    }
}

fn directed(request: &Range, order: Ordering) -> Ordering {
    match request.sort_order {
        SortOrder::None | SortOrder::Ascend => order,
        SortOrder::Descend => order.reverse(),
    }
}

/// Cuts an answer at the limit: true when that took something away.
fn cut<T>(answer: &mut Vec<T>, limit: Option<usize>) -> bool {
    let limit = limit.unwrap_or(usize::MAX);
    let more = answer.len() > limit;
    answer.truncate(limit);
    more
}

/// A key as the index alone knows it: since 3.7 etcd answers `keys_only` so too, and the lease is missing.
fn without_value(found: Found) -> KeyValue {
    let Found { key, change, .. } = found;
    KeyValue {
        key,
        create_revision: change.created,
        mod_revision: change.main,
        version: change.version,
        value: Default::default(),
        lease: LeaseId::NONE,
    }
}
