//! What the log keeps in memory: where each retained entry is, and the payloads of the recent ones. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::record::Record;
use crate::state::{LogPos, LogState};
use crate::wal::Entry;

/// What a cached payload costs beyond its bytes: the handle and the allocation around it. Without it, a budget in
/// bytes would not bound the number of empty payloads.
const CACHED_OVERHEAD: usize = 64;

/// Marks a slot whose record is not in a file yet. Segments are numbered from 1.
const UNWRITTEN: u32 = 0;

/// Where one entry is: 24 bytes per retained entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub term: u64,
    /// Sequence of the segment, or [`UNWRITTEN`].
    pub segment: u32,
    /// Where the record begins in the segment; while unwritten, the ticket of the append that brought it.
    pub offset: u32,
    /// Bytes of the payload.
    pub length: u32,
}

/// The log as its callers see it: with everything that was handed over, durable or not.
pub(crate) struct Memory {
    state: LogState,
    /// One per retained entry; the last is entry `state.next - 1`.
    slots: VecDeque<Slot>,
    /// Payloads of the last entries: the last is that of the last slot.
    cache: VecDeque<Bytes>,
    cached_bytes: usize,
    budget: usize,
}

impl Memory {
    /// A log without entries. `budget` bounds the cached payloads in bytes; unwritten ones are kept beyond it.
    pub fn new(state: LogState, budget: usize) -> Self {
        Memory { state, slots: VecDeque::new(), cache: VecDeque::new(), cached_bytes: 0, budget }
    }

    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// Takes entries that are not written yet, all or none.
    pub fn append(&mut self, entries: &[Entry], ticket: u32) -> Result<(), String> {
        let mut state = self.state;
        for entry in entries {
            state.apply(&Record::Entry { term: entry.term, index: entry.index, payload: b"" })?;
        }
        self.state = state;
        for entry in entries {
            let slot =
                Slot { term: entry.term, segment: UNWRITTEN, offset: ticket, length: entry.payload.len() as u32 };
            self.push(slot, entry.payload.clone());
        }
        Ok(())
    }

    /// Replays a record that was found at this place.
    pub fn replay(&mut self, record: &Record<'_>, segment: u32, offset: u32) -> Result<(), String> {
        self.apply(record)?;
        if let Record::Entry { term, payload, .. } = *record {
            let slot = Slot { term, segment, offset, length: payload.len() as u32 };
            self.push(slot, Bytes::copy_from_slice(payload));
            self.evict();
        }
        Ok(())
    }

    /// Applies any record but an entry.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), String> {
        let before = self.first_index();
        self.state.apply(record)?;
        match record {
            Record::Truncate { .. } => {
                let next = self.state.next.unwrap_or(0);
                self.keep_last_below(next.saturating_sub(before));
            }
            Record::Purge(_) => {
                let gone =
                    self.state.purged.map_or(0, |purged| (purged.index.saturating_add(1)).saturating_sub(before));
                let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(self.slots.len());
                self.slots.drain(..gone);
                while self.cache.len() > self.slots.len() {
                    self.forget_first();
                }
            }
            Record::Entry { .. } | Record::Vote(_) | Record::Committed(_) => {}
        }
        Ok(())
    }

    /// The record of entry `index`, appended with `ticket`, is now in a file. Ignored if the entry is gone or was
    /// replaced by a later append.
    pub fn written(&mut self, index: u64, ticket: u32, segment: u32, offset: u32) {
        let Some(at) = self.position(index) else { return };
        let Some(slot) = self.slots.get_mut(at) else { return };
        if slot.segment == UNWRITTEN && slot.offset == ticket {
            (slot.segment, slot.offset) = (segment, offset);
        }
    }

    /// Forgets the oldest payloads beyond the budget, as far as they can be read from a file.
    pub fn evict(&mut self) {
        while self.cached_bytes > self.budget {
            match self.slots.get(self.slots.len() - self.cache.len()) {
                Some(slot) if slot.segment != UNWRITTEN => self.forget_first(),
                _ => break,
            }
        }
    }

    /// Index of the first retained entry; if there is none, the index that the next one has, or may have.
    pub fn first_index(&self) -> u64 {
        self.state.next.unwrap_or(0) - self.slots.len() as u64
    }

    /// Index after the last retained entry.
    pub fn end_index(&self) -> u64 {
        self.state.next.unwrap_or(0)
    }

    /// The last entry; if none is retained, what was purged last.
    pub fn last(&self) -> Option<LogPos> {
        match self.slots.back() {
            Some(slot) => Some(LogPos { term: slot.term, index: self.end_index() - 1 }),
            None => self.state.purged,
        }
    }

    /// Term of a retained entry, or of the one purged last.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        match self.slot(index) {
            Some(slot) => Some(slot.term),
            None => self.state.purged.filter(|purged| purged.index == index).map(|purged| purged.term),
        }
    }

    pub fn slot(&self, index: u64) -> Option<Slot> {
        self.slots.get(self.position(index)?).copied()
    }

    /// Bytes from the record of entry `from`, or of the first that is retained, to the last that is written.
    pub fn distance(&self, from: u64, segment_bytes: u64) -> u64 {
        let written = |slot: &&Slot| slot.segment != UNWRITTEN;
        let first = self.slot(from.max(self.first_index())).filter(|slot| written(&slot));
        // Only the last few are not written, as many as wait for the disk.
        let (Some(first), Some(last)) = (first, self.slots.iter().rev().find(written)) else { return 0 };
        let place = |slot: &Slot| u64::from(slot.segment).saturating_mul(segment_bytes) + u64::from(slot.offset);
        (place(last) + u64::from(last.length)).saturating_sub(place(&first))
    }

    /// The payload, if it is in memory.
    pub fn cached(&self, index: u64) -> Option<&Bytes> {
        let uncached = self.slots.len() - self.cache.len();
        self.cache.get(self.position(index)?.checked_sub(uncached)?)
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first_index())?).ok()
    }

    fn push(&mut self, slot: Slot, payload: Bytes) {
        self.slots.push_back(slot);
        self.cached_bytes += payload.len() + CACHED_OVERHEAD;
        self.cache.push_back(payload);
    }

    fn forget_first(&mut self) {
        if let Some(payload) = self.cache.pop_front() {
            self.cached_bytes -= payload.len() + CACHED_OVERHEAD;
        }
    }

    fn keep_last_below(&mut self, count: u64) {
        while self.slots.len() as u64 > count {
            self.slots.pop_back();
            if let Some(payload) = self.cache.pop_back() {
                self.cached_bytes -= payload.len() + CACHED_OVERHEAD;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { term, index, payload: Bytes::from(vec![index as u8; 36]) }).collect()
    }

    /// A log with entries 0..10, of which the cache holds three.
    fn ten() -> Memory {
        let mut memory = Memory::new(LogState::default(), 300);
        memory.append(&entries(0..10, 1), 7).unwrap();
        for index in 0..10 {
            memory.written(index, 7, 1, index as u32 * 100);
        }
        memory.evict();
        memory
    }

    #[test]
    fn a_slot_is_small() {
        assert_eq!(size_of::<Slot>(), 24);
    }

    #[test]
    fn the_cache_holds_the_last_entries_within_its_budget() {
        let memory = ten();
        assert_eq!((memory.first_index(), memory.end_index()), (0, 10));
        assert!(memory.cached(6).is_none());
        assert_eq!(memory.cached(7).unwrap()[0], 7);
        assert_eq!(memory.slot(3).unwrap(), Slot { term: 1, segment: 1, offset: 300, length: 36 });
        assert_eq!(memory.last(), Some(LogPos { term: 1, index: 9 }));
    }

    #[test]
    fn what_is_not_written_is_not_evicted() {
        let mut memory = Memory::new(LogState::default(), 0);
        memory.append(&entries(0..3, 1), 0).unwrap();
        memory.written(1, 0, 1, 128);
        memory.evict();
        assert!(memory.cached(0).is_some());
        memory.written(0, 0, 1, 128);
        memory.evict();
        assert!(memory.cached(1).is_none() && memory.cached(2).is_some());
    }

    #[test]
    fn truncation_takes_slots_and_payloads() {
        let mut memory = ten();
        memory.apply(&Record::Truncate { after: Some(7) }).unwrap();
        assert_eq!(memory.last(), Some(LogPos { term: 1, index: 7 }));
        assert!(memory.cached(7).is_some() && memory.cached(8).is_none());
        memory.apply(&Record::Truncate { after: Some(2) }).unwrap();
        assert!(memory.cache.is_empty() && memory.cached_bytes == 0);
        memory.append(&entries(3..4, 2), 8).unwrap();
        assert_eq!((memory.term_of(2), memory.term_of(3), memory.term_of(4)), (Some(1), Some(2), None));
        memory.apply(&Record::Truncate { after: None }).unwrap();
        assert_eq!((memory.last(), memory.slots.len()), (None, 0));
    }

    #[test]
    fn purging_keeps_the_term_of_the_last_purged() {
        let mut memory = ten();
        memory.apply(&Record::Purge(LogPos { term: 1, index: 7 })).unwrap();
        assert_eq!((memory.first_index(), memory.slots.len(), memory.cache.len()), (8, 2, 2));
        assert_eq!((memory.term_of(6), memory.term_of(7)), (None, Some(1)));
        memory.apply(&Record::Purge(LogPos { term: 3, index: 99 })).unwrap();
        assert_eq!((memory.first_index(), memory.end_index(), memory.cached_bytes), (100, 100, 0));
        assert_eq!(memory.last(), Some(LogPos { term: 3, index: 99 }));
    }

    #[test]
    fn a_late_report_about_a_replaced_entry_is_ignored() {
        let mut memory = Memory::new(LogState::default(), 0);
        memory.append(&entries(0..2, 1), 1).unwrap();
        memory.apply(&Record::Truncate { after: Some(0) }).unwrap();
        memory.append(&entries(1..2, 2), 2).unwrap();
        memory.written(1, 1, 1, 128);
        assert_eq!(memory.slot(1).unwrap().segment, UNWRITTEN);
        memory.written(1, 2, 1, 256);
        assert_eq!(memory.slot(1).unwrap().offset, 256);
    }

    #[test]
    fn a_batch_with_a_gap_is_refused_whole() {
        let mut memory = ten();
        let mut batch = entries(10..12, 1);
        batch.extend(entries(13..14, 1));
        assert!(memory.append(&batch, 9).is_err());
        assert_eq!(memory.end_index(), 10);
    }
}
