//! The engine for tests and simulation: a map in memory that remembers what a power cut would leave.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::engine::{Batch, Engine, Limit, Page, Write};
use crate::error::{Error, Result};

/// An [`Engine`] without files.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<Bytes, Bytes>,
    /// What the last flush made durable.
    durable: BTreeMap<Bytes, Bytes>,
    /// What was committed since, in order. Bounded by the caller's flushes.
    unflushed: Vec<Batch>,
    /// The next flush fails.
    failing: bool,
    /// One has.
    failed: bool,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        MemoryEngine::default()
    }

    /// What a restart finds after a power cut now: a new engine with the state at the last flush.
    pub fn durable_copy(&self) -> MemoryEngine {
        let durable = self.state.read().durable.clone();
        MemoryEngine { state: RwLock::new(State { live: durable.clone(), durable, ..State::default() }) }
    }

    /// Lets the next flush fail. What it should have made durable never is, whatever later ones say: the system has dropped it.
    pub fn fail_flush(&self) {
        self.state.write().failing = true;
    }

    /// Whether a flush has failed.
    pub fn failed(&self) -> bool {
        self.state.read().failed
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.state.read().live.get(key).cloned())
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        let mut page = Page::default();
        // BTreeMap::range panics on a start behind the end; here it is an empty range.
        if end.is_some_and(|end| start >= end) {
            return Ok(page);
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.read();
        let mut found = state.live.range::<[u8], _>((Bound::Included(start), end));
        while !page.is_full(limit)
            && let Some((key, value)) = found.next()
        {
            page.push((key.clone(), value.clone()));
        }
        Ok(page)
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        batch.check()?;
        let mut state = self.state.write();
        apply(&mut state.live, batch);
        state.unflushed.push(batch.clone());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.state.write();
        let unflushed = std::mem::take(&mut state.unflushed);
        if std::mem::take(&mut state.failing) {
            state.failed = true;
            return Err(Error::Engine("injected".to_owned()));
        }
        for batch in unflushed {
            apply(&mut state.durable, &batch);
        }
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64> {
        let state = self.state.read();
        Ok(state.live.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}

fn apply(map: &mut BTreeMap<Bytes, Bytes>, batch: &Batch) {
    for Write { key, value } in batch.writes() {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;

    #[test]
    fn passes_the_engine_suite() {
        suite::run(&MemoryEngine::new());
    }

    #[test]
    fn a_power_cut_leaves_the_last_flush() {
        let engine = MemoryEngine::new();
        engine.commit(Batch::new().put("ka", "1").put("kb", "1")).unwrap();
        engine.flush().unwrap();
        engine.commit(Batch::new().put("ka", "2").delete("kb")).unwrap();

        let restarted = engine.durable_copy();
        assert_eq!(restarted.get(b"ka").unwrap().unwrap(), "1");
        assert_eq!(restarted.get(b"kb").unwrap().unwrap(), "1");
        assert_eq!(engine.get(b"ka").unwrap().unwrap(), "2");

        // A second cut right after the restart loses nothing more.
        assert_eq!(restarted.durable_copy().get(b"ka").unwrap().unwrap(), "1");
        engine.flush().unwrap();
        assert_eq!(engine.durable_copy().get(b"kb").unwrap(), None);

        engine.commit(Batch::new().put("kc", "1")).unwrap();
        engine.fail_flush();
        assert!(engine.flush().is_err() && engine.failed());
        engine.flush().unwrap();
        assert_eq!(engine.durable_copy().get(b"kc").unwrap(), None, "what a failed flush has dropped");
    }
}
