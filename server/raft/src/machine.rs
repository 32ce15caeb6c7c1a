//! openraft's state machine over ours: it feeds entries to [`State`] and hands what happened to [`Effects`].

use crate::entry;
use crate::snapshot::{LOOKS_MAX, SnapshotDir, SnapshotFile};
use crate::types::{Entry, LogId, Membership, SnapshotMeta, StoredMembership, TypeConfig, log_id, log_pos};
use ferretcd_state::{Effect, Pinned, SnapshotKind, State};
use ferretcd_types::{Command, Error, LogPos, Proposal, Reply, RequestId, codec};
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Most entries that are applied in one go before the task yields: about a millisecond of work.
const APPLY_BATCH_MAX: usize = 256;

/// Most plain writes that are applied on an async worker's own time: a third of a millisecond. To hand its other work to another
/// thread takes longer than a few of them do.
const AT_ONCE_MAX: usize = 64;

/// Who is told what the log did. Called in log order, from one place; must not block.
pub trait Effects: Send + Sync + 'static {
    /// What applying one entry (or installing a snapshot) changed. Comes before the reply of the same entry.
    fn publish(&self, effects: Vec<Effect>);
    /// The outcome of a proposal, for whoever waits for it on this member.
    fn reply(&self, id: RequestId, outcome: Result<Reply, Error>);
    /// The whole state was replaced by a leader's snapshot: what was published before may not join up with what comes.
    fn installed(&self, effects: Vec<Effect>);
    /// A command was applied, or refused, in this time.
    fn timed(&self, _command: &Command, _success: bool, _took: Duration) {}
    /// A snapshot file was written in this time, of which the last sync took so long.
    fn snapshot_written(&self, _took: Duration, _synced: Duration) {}
    /// Everything up to here is applied.
    fn applied(&self, pos: LogPos);
}

#[derive(Clone)]
pub(crate) struct Machine {
    state: Arc<State>,
    effects: Arc<dyn Effects>,
    snapshots: SnapshotDir,
    /// The membership in the newest snapshot file, by the file's position. openraft asks for it before each attempt to send the
    /// file, and a file that is read says it only after its checksum is.
    membership: Arc<Mutex<Option<(LogPos, StoredMembership)>>>,
}

impl Machine {
    pub(crate) fn new(state: Arc<State>, effects: Arc<dyn Effects>, snapshots: SnapshotDir) -> Self {
        Machine { state, effects, snapshots, membership: Arc::default() }
    }

    /// The newest snapshot file. One may take another's place while it is looked at, once at a time.
    fn newest(&self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        for _ in 0..LOOKS_MAX {
            let Some((pos, snapshot)) = self.snapshots.newest()? else { return Ok(None) };
            let known = self.membership.lock().clone().filter(|(of, _)| *of == pos && !snapshot.is_suspect());
            let membership = match known {
                Some((_, membership)) => membership,
                None => match snapshot_membership(&snapshot.path) {
                    Ok(membership) => membership,
                    Err(_) if !snapshot.path.exists() => continue,
                    Err(e) => return Err(e),
                },
            };
            *self.membership.lock() = Some((pos, membership.clone()));
            return Ok(Some(SnapshotOf::<TypeConfig, _> { meta: self.meta(pos, membership), snapshot }));
        }
        Err(io::Error::other("a snapshot file takes the place of another faster than it can be opened"))
    }

    pub(crate) fn apply_one(&self, entry: Entry) -> io::Result<()> {
        let step = Step::of(entry)?;
        let pos = step.pos;
        self.take(step)?;
        self.effects.applied(pos);
        Ok(())
    }

    fn take(&self, Step { pos, what }: Step) -> io::Result<()> {
        match what {
            What::Nothing => {
                self.state.apply_blank(pos).map_err(io::Error::other)?;
            }
            What::Proposal(proposal) => {
                let begun = Instant::now();
                let applied = self.state.apply(pos, &proposal).map_err(io::Error::other)?;
                self.effects.timed(&proposal.command, applied.outcome.is_ok(), begun.elapsed());
                if !applied.effects.is_empty() {
                    self.effects.publish(applied.effects);
                }
                self.effects.reply(proposal.id, applied.outcome);
            }
            What::Membership(membership) => {
                let members = entry::members(&membership);
                let stored = StoredMembership::new(Some(log_id(pos)), membership);
                let blob = entry::encode_stored(&stored);
                let effects = self.state.apply_membership(pos, blob, &members).map_err(io::Error::other)?;
                self.effects.publish(effects);
            }
        }
        Ok(())
    }

    fn membership(&self) -> io::Result<StoredMembership> {
        match self.state.membership() {
            Some(blob) => entry::decode_stored(blob).map_err(io::Error::other),
            None => Ok(StoredMembership::default()),
        }
    }

    fn meta(&self, pos: LogPos, membership: StoredMembership) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(log_id(pos)), last_membership: membership }
    }
}

/// An entry to apply.
struct Step {
    pos: LogPos,
    what: What,
}

enum What {
    Nothing,
    Proposal(Proposal),
    Membership(Membership),
}

impl Step {
    fn of(entry: Entry) -> io::Result<Step> {
        let what = match entry.payload {
            EntryPayload::Blank => What::Nothing,
            EntryPayload::Normal(data) => {
                What::Proposal(codec::decode_proposal(entry::proposal(&data)).map_err(io::Error::other)?)
            }
            EntryPayload::Membership(membership) => What::Membership(membership),
        };
        Ok(Step { pos: log_pos(&entry.log_id), what })
    }

    /// The bytes that it writes, if to apply it takes the key index alone, which is in memory, and no value, which may be on disk.
    fn bytes_unread(&self) -> Option<usize> {
        match &self.what {
            What::Nothing => Some(0),
            What::Proposal(Proposal { command: Command::Put(put), .. }) => {
                let reads = put.prev_kv || put.ignore_value || put.ignore_lease;
                (!reads).then(|| put.key.len() + put.value.len())
            }
            What::Proposal(_) | What::Membership(_) => None,
        }
    }
}

/// Runs work that may wait for the disk without holding an async worker. A simulation, which has one thread, has none to
/// spare and just does it.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs work that takes its time with a file on a thread for such work. A simulation, which has one thread and a clock
/// of its own, does it at once.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.state.applied().map(log_id), self.membership()?))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            let (mut steps, mut broken) = (Vec::with_capacity(batch.len()), None);
            for item in batch {
                match item.and_then(|(entry, responder)| Ok((Step::of(entry)?, responder))) {
                    Ok(step) => steps.push(step),
                    Err(e) => {
                        broken = Some(e);
                        break;
                    }
                }
            }
            let bytes: Option<usize> = steps.iter().map(|(step, _)| step.bytes_unread()).sum();
            let at_once = steps.len() <= AT_ONCE_MAX && bytes.is_some_and(|bytes| self.state.applies_at_once(bytes));
            let last = steps.last().map(|(step, _)| step.pos);
            let apply = || {
                for (step, responder) in steps {
                    let pos = step.pos;
                    self.take(step)?;
                    // Once for all, before the last of them is answered.
                    if Some(pos) == last {
                        self.effects.applied(pos);
                    }
                    if let Some(responder) = responder {
                        responder.send(());
                    }
                }
                Ok::<_, io::Error>(())
            };
            if at_once { apply() } else { blocking(apply) }?;
            if let Some(broken) = broken {
                return Err(broken);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let pos = meta.last_log_id.as_ref().map(log_pos).unwrap_or_default();
        let effects = blocking(|| {
            let file = File::open(&snapshot.path)?;
            let effects = self.state.install(&file).map_err(io::Error::other)?;
            // Durable before the log below it may go.
            self.state.flush().map_err(io::Error::other)?;
            self.snapshots.finish(&snapshot.path, pos)?;
            *self.membership.lock() = Some((pos, meta.last_membership.clone()));
            Ok::<_, io::Error>(effects)
        })?;
        self.effects.installed(effects);
        self.effects.applied(pos);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        let why = match blocking(|| self.newest()) {
            Ok(newest) => return Ok(newest),
            Err(why) if why.kind() == io::ErrorKind::InvalidData => why,
            Err(why) => return Err(why),
        };
        // The state has all that the file had: a start makes sure that it is not behind what the log was purged of.
        let aside = blocking(|| match self.snapshots.newest()? {
            Some((_, file)) => self.snapshots.set_aside(&file).map(Some),
            None => Ok(None),
        })?;
        tracing::error!(aside = ?aside, "the snapshot file cannot be used: {why}; it is set aside, and a new one is written");
        self.build_snapshot().await?;
        blocking(|| self.newest())
    }
}

/// The membership in a snapshot file, which is read to its end: its checksum must be right.
pub(crate) fn snapshot_membership(path: &Path) -> io::Result<StoredMembership> {
    let unusable =
        |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    match ferretcd_state::snapshot_membership(&file).map_err(|e| unusable(&e))? {
        Some(blob) => entry::decode_stored(blob).map_err(|e| unusable(&e)),
        None => Ok(StoredMembership::default()),
    }
}

/// Writes a pinned moment as a member's snapshot file that has no final name yet, and says how long its sync took. What the
/// engine holds is durable afterwards, too: the log below the snapshot may go.
pub(crate) fn write_snapshot(
    state: &State,
    pinned: Pinned,
    snapshots: &SnapshotDir,
) -> io::Result<(PathBuf, Duration)> {
    let pos = pinned.applied().unwrap_or_default();
    // Two may be written at once: one in the background, and one in the place of a file that was damaged.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let part = snapshots.unfinished(&format!("build-{}-{}", pos.index, NUMBER.fetch_add(1, Ordering::Relaxed)));
    let mut file = io::BufWriter::with_capacity(1 << 20, File::create(&part)?);
    pinned.write(SnapshotKind::Raft, &mut |chunk: bytes::Bytes| file.write_all(&chunk)).map_err(io::Error::other)?;
    drop(pinned);
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    let written = Instant::now();
    file.sync_all()?;
    let synced = written.elapsed();
    state.flush().map_err(io::Error::other)?;
    Ok((part, synced))
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let this = self.clone();
        aside(move || {
            let begun = Instant::now();
            let pinned = this.state.pin();
            let applied = pinned.applied();
            let pos = applied.unwrap_or_default();
            let membership = match pinned.membership() {
                Some(blob) => entry::decode_stored(blob).map_err(io::Error::other)?,
                None => StoredMembership::default(),
            };
            let (part, synced) = write_snapshot(&this.state, pinned, &this.snapshots)?;
            this.effects.snapshot_written(begun.elapsed(), synced);
            if applied.is_none() {
                // A log that was purged and a state that is empty: openraft asks for a snapshot of nothing at start-up.
                // It stands for no entry and must not count as one.
                let bytes = std::fs::metadata(&part)?.len();
                let snapshot = SnapshotDir::received(part, bytes);
                return Ok(SnapshotOf::<TypeConfig, _> { meta: SnapshotMeta::default(), snapshot });
            }
            let meta = this.meta(pos, membership.clone());
            let Some(snapshot) = this.snapshots.finish(&part, pos)? else {
                // The leader's was installed meanwhile. openraft looks at what this one stands for, and forgets it.
                let newest = this.newest()?.ok_or_else(|| io::Error::other("the newest snapshot file is gone"))?;
                return Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: newest.snapshot });
            };
            *this.membership.lock() = Some((pos, membership));
            Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::Silent;
    use ferretcd_storage::{MemoryEngine, Options, Store};
    use ferretcd_types::MemberId;

    /// A state on an engine that makes nothing durable by itself.
    fn state(engine: &Arc<MemoryEngine>) -> Arc<State> {
        let store = Arc::new(Store::open_inline(engine.clone(), Options::default()));
        Arc::new(State::open_still(store, MemberId(1)).unwrap())
    }

    /// What a power loss would leave of it.
    fn after_a_power_loss(engine: &MemoryEngine) -> Option<LogPos> {
        state(&Arc::new(engine.durable_copy())).applied()
    }

    #[tokio::test]
    async fn behind_a_snapshot_the_engine_is_durable_so_that_the_log_below_may_go() {
        let tmp = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(tmp.path()).unwrap();
        let (engine, other) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()));
        let state_here = state(&engine);
        let last = LogPos { term: 2, index: 7 };
        for index in 1..=last.index {
            state_here.apply_blank(LogPos { term: 2, index }).unwrap();
        }
        assert_eq!(after_a_power_loss(&engine), None, "else this proves nothing");
        let mut machine = Machine::new(state_here, Arc::new(Silent), snapshots);
        let built = machine.build_snapshot().await.unwrap();
        assert_eq!(after_a_power_loss(&engine), Some(last), "built");

        // And where it is installed.
        let snapshots = SnapshotDir::open(&tmp.path().join("other")).unwrap();
        let part = snapshots.unfinished("received");
        let bytes = std::fs::copy(&built.snapshot.path, &part).unwrap();
        let mut machine = Machine::new(state(&other), Arc::new(Silent), snapshots);
        machine.install_snapshot(&built.meta, SnapshotDir::received(part, bytes)).await.unwrap();
        assert_eq!(after_a_power_loss(&other), Some(last), "installed");
    }

    #[tokio::test]
    async fn a_snapshot_file_is_read_once_however_often_it_is_asked_for() {
        let tmp = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(tmp.path()).unwrap();
        let state = state(&Arc::new(MemoryEngine::new()));
        state.apply_blank(LogPos { term: 2, index: 1 }).unwrap();
        let built = Machine::new(state.clone(), Arc::new(Silent), snapshots.clone()).build_snapshot().await.unwrap();
        // One that has just started, and does not know the file.
        let mut machine = Machine::new(state, Arc::new(Silent), snapshots);
        let found = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(found.meta, built.meta);
        std::fs::write(&found.snapshot.path, "no snapshot").unwrap();
        assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, built.meta);
        // But for one that a member could not use.
        found.snapshot.suspected();
        let anew = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(anew.meta, built.meta);
        assert_ne!(std::fs::read(&anew.snapshot.path).unwrap(), b"no snapshot", "written anew");
        assert_eq!(std::fs::read(tmp.path().join("damaged")).unwrap(), b"no snapshot", "for a person to look at");
    }

    /// Keeps what it was told of as applied.
    #[derive(Default)]
    struct Told(Mutex<Vec<u64>>);

    impl Effects for Told {
        fn publish(&self, _: Vec<Effect>) {}
        fn reply(&self, _: RequestId, _: Result<Reply, Error>) {}
        fn installed(&self, _: Vec<Effect>) {}
        fn applied(&self, pos: LogPos) {
            self.0.lock().push(pos.index);
        }
    }

    #[tokio::test]
    async fn entries_that_come_together_are_applied_in_one_go() {
        let tmp = tempfile::tempdir().unwrap();
        let told = Arc::new(Told::default());
        let state = state(&Arc::new(MemoryEngine::new()));
        let mut machine = Machine::new(state, told.clone(), SnapshotDir::open(tmp.path()).unwrap());
        let entry = |index| Entry { log_id: log_id(LogPos { term: 1, index }), payload: EntryPayload::Blank };
        // The first comes alone, the others while nobody looked.
        let others = move |()| futures::stream::iter(2..=301).map(entry);
        let late = futures::stream::once(Box::pin(tokio::task::yield_now())).flat_map(others);
        let entries = futures::stream::iter([entry(1)]).chain(late).map(|entry| Ok((entry, None)));
        machine.apply(entries.boxed()).await.unwrap();
        assert_eq!(*told.0.lock(), [1, 1 + APPLY_BATCH_MAX as u64, 301]);
    }

    #[test]
    fn what_waits_for_the_disk_holds_no_async_worker() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (disk, answers) = std::sync::mpsc::channel();
        runtime.block_on(async {
            let waits = tokio::spawn(async move { blocking(|| answers.recv_timeout(Duration::from_secs(20))) });
            // Runs on the only worker, which waits.
            let works = tokio::spawn(async move { disk.send("written") });
            works.await.unwrap().unwrap();
            assert_eq!(waits.await.unwrap(), Ok("written"), "nothing else ran until it gave up");
        });
    }
}
