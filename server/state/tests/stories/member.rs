//! A state machine with its log, for tests: proposes, applies, restarts, replays.

use bytes::Bytes;
use ferretcd_bolt::{Layout, Writer};
use ferretcd_state::{Applied, Effect, Pinned, SnapshotKind, State, StateError};
use ferretcd_storage::{Engine as _, MemoryEngine, Options, Store, keyspace};
use ferretcd_types::{
    Caller, Client, Command, Error, KeyRange, KeyValue, LeaseId, LogPos, MemberId, PeerNode, Proposal, Put, PutReply,
    Range, RangeReply, RequestId, Verb,
};
use std::sync::Arc;

/// One entry of the log.
#[derive(Clone, Debug)]
pub enum Entry {
    Blank,
    Command(Command),
    /// A command in a client's name.
    Asked(Client, Command),
    Membership(Bytes, Vec<(MemberId, PeerNode, bool)>),
}

/// A member: a log, a state, and the engine below it.
pub struct Member {
    pub state: State,
    pub engine: Arc<MemoryEngine>,
    pub log: Vec<Entry>,
}

impl Member {
    pub fn new() -> Member {
        Member::on(Arc::new(MemoryEngine::new()), Vec::new())
    }

    /// A member that finds this engine and this log at its start, and replays what is missing.
    pub fn on(engine: Arc<MemoryEngine>, log: Vec<Entry>) -> Member {
        let store = Store::open(engine.clone(), Options::default()).unwrap();
        let state = State::open(store, MemberId(1)).unwrap();
        let mut member = Member { state, engine, log: Vec::new() };
        let applied = member.state.applied().map_or(0, |applied| applied.index as usize);
        assert!(applied <= log.len(), "the store is ahead of the log");
        for (at, entry) in log.iter().enumerate() {
            member.log.push(entry.clone());
            if at >= applied {
                member.apply_last();
            }
        }
        member
    }

    /// What a power cut now would leave, started again with the same log.
    pub fn after_power_cut(&self) -> Member {
        Member::on(Arc::new(self.engine.durable_copy()), self.log.clone())
    }

    /// The same, after everything has become durable.
    pub fn after_flush_and_power_cut(&self) -> Member {
        assert_eq!(self.state.flush().unwrap(), self.log.len() as u64);
        self.after_power_cut()
    }

    /// How many key records the engine holds, of all generations.
    pub fn key_records(&self) -> usize {
        self.state.flush().unwrap();
        let (start, end) = keyspace::keyspace_range(keyspace::KEYS);
        self.engine.scan(&start, Some(&end), usize::MAX).unwrap().len()
    }

    /// The main revisions of the key records that are in the engine.
    pub fn key_revisions(&self) -> Vec<i64> {
        self.state.flush().unwrap();
        let (start, end) = keyspace::keyspace_range(keyspace::KEYS);
        let records = self.engine.scan(&start, Some(&end), usize::MAX).unwrap();
        let main = |key: &[u8]| i64::from_be_bytes(keyspace::split_revision(key).unwrap().1[..8].try_into().unwrap());
        records.iter().map(|(key, _)| main(key)).collect()
    }

    /// How many key records the background deletions have left when they are done.
    pub fn key_records_left(&self) -> usize {
        self.state.wait_deleted().unwrap();
        self.key_records()
    }

    /// What the engine would have after a power cut.
    pub fn engine_at_last_flush(&self) -> MemoryEngine {
        self.engine.durable_copy()
    }

    pub fn snapshot(&self, kind: SnapshotKind) -> Vec<u8> {
        write(&self.state.pin(), kind)
    }

    pub fn install(&self, file: &[u8]) -> Result<Vec<Effect>, StateError> {
        self.state.install(&file)
    }

    fn apply_last(&self) -> Applied {
        let position = LogPos { term: 1 + self.log.len() as u64 / 100, index: self.log.len() as u64 };
        match self.log.last().unwrap() {
            Entry::Blank => {
                self.state.apply_blank(position).unwrap();
                Applied { outcome: Err(Error::internal("blank")), effects: Vec::new() }
            }
            Entry::Command(command) => {
                let caller = Caller::Member;
                let proposal = Proposal { id: RequestId(position.index), caller, command: command.clone() };
                self.state.apply(position, &proposal).unwrap()
            }
            Entry::Asked(client, command) => {
                let caller = Caller::Client(client.clone());
                let proposal = Proposal { id: RequestId(position.index), caller, command: command.clone() };
                self.state.apply(position, &proposal).unwrap()
            }
            Entry::Membership(blob, group) => {
                let effects = self.state.apply_membership(position, blob.clone(), group).unwrap();
                Applied { outcome: Err(Error::internal("membership")), effects }
            }
        }
    }

    pub fn enter(&mut self, entry: Entry) -> Applied {
        self.log.push(entry);
        self.apply_last()
    }

    /// Proposes a verb: its answer, or its refusal.
    pub fn ask<V: Verb>(&mut self, verb: V) -> Result<V::Reply, Error> {
        self.ask_all(verb).0
    }

    /// The same, with the effects.
    pub fn ask_all<V: Verb>(&mut self, verb: V) -> (Result<V::Reply, Error>, Vec<Effect>) {
        let Applied { outcome, effects } = self.enter(Entry::Command(verb.into()));
        (outcome.and_then(V::reply), effects)
    }

    /// Proposes a verb in a client's name.
    pub fn ask_as<V: Verb>(&mut self, client: &Client, verb: V) -> Result<V::Reply, Error> {
        self.enter(Entry::Asked(client.clone(), verb.into())).outcome.and_then(V::reply)
    }

    pub fn put(&mut self, key: &'static str, value: &'static str) -> PutReply {
        self.ask(put(key, value)).unwrap()
    }

    pub fn range(&self, range: KeyRange) -> RangeReply {
        self.state.range(&Range { range, ..Range::default() }).unwrap()
    }

    pub fn get(&self, key: &'static str) -> Option<KeyValue> {
        self.range(KeyRange::single(key)).kvs.into_iter().next()
    }
}

pub fn put(key: &'static str, value: &'static str) -> Put {
    Put { key: key.into(), value: value.into(), ..Put::default() }
}

pub fn kv(key: &'static str, value: &'static str, create: i64, modified: i64, version: i64) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: create,
        mod_revision: modified,
        version,
        lease: LeaseId::NONE,
    }
}

/// A pinned snapshot's file.
pub fn write(pinned: &Pinned, kind: SnapshotKind) -> Vec<u8> {
    let mut file = Vec::new();
    let mut sink = |chunk: Bytes| {
        file.extend_from_slice(&chunk);
        Ok(())
    };
    pinned.write(kind, &mut sink).unwrap();
    assert_eq!(file.len() as u64, pinned.layout(kind).unwrap().file_bytes());
    file
}

/// A record of a file.
pub type Pair = (Vec<u8>, Vec<u8>);

/// A snapshot file with these records.
pub fn bolt_file(buckets: &[(&str, Vec<Pair>)]) -> Vec<u8> {
    let mut layout = Layout::builder();
    for (name, records) in buckets {
        layout.bucket(name.as_bytes()).unwrap();
        records.iter().for_each(|(key, value)| layout.record(key.len(), value.len()).unwrap());
    }
    let mut file = Vec::new();
    let mut writer = Writer::new(layout.finish(), |chunk: Bytes| {
        file.extend_from_slice(&chunk);
        Ok(())
    });
    for (name, records) in buckets {
        writer.bucket(name.as_bytes()).unwrap();
        records.iter().for_each(|(key, value)| writer.record(key, value).unwrap());
    }
    writer.finish().unwrap();
    file
}
