//! Verbs on a data directory that no process runs on: restoring a snapshot into a new one, looking into one, giving
//! space back; and what `--force-new-cluster` does before raft starts.

use crate::boot::{
    Boot, BootConfig, BootError, Damage, Opening, Remembered, chain, claim, expect_log, make_private, open_engine,
    open_storage, unwritable,
};
use crate::metrics::{Metrics, operation};
use crate::workers::CLUSTER_VERSION;
use crate::{admission, ids};
use ferretcd_bolt::Trailer;
use ferretcd_raft::offline;
use ferretcd_raft::snapshot::SnapshotDir;
use ferretcd_state::{Adoption, State, StateError};
use ferretcd_storage::{EngineKind, Format, Options, Store};
use ferretcd_types::{ClusterId, Epoch, LogPos, Member, MemberId, PeerNode};
use ferretcd_wal::fs::Lock;
use ferretcd_wal::{Listing, OsFs, Wal, record::Record};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder `member` of a data directory while a snapshot is restored into it. It has that name from the last moment on.
pub(crate) const RESTORING: &str = "member.part";

/// How a snapshot is restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreHow {
    /// Take a raw copy of a database, which has no digest at its end (`--skip-hash-check`).
    pub skip_hash_check: bool,
    /// Raise the revision by so much, and let all history before count as compacted (`--bump-revision`).
    pub bump: Option<u64>,
}

/// What a restore made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The new cluster.
    pub cluster: ClusterId,
    /// The member whose data directory it is.
    pub member: MemberId,
    /// The revision that the member starts with.
    pub revision: i64,
}

/// Makes the data directory of one member of a new cluster, named by `config` as for its founding, from a snapshot file.
/// Each member of the new cluster is restored from the same file; members that were restored from different ones do not
/// speak to each other. Whatever goes wrong, nothing is left behind; of a process that was killed the next one clears away what
/// it left in the data directory, and a member does not start there.
pub fn restore(config: &BootConfig, file: &Path, how: RestoreHow) -> Result<Restored, BootError> {
    let data_dir = &config.data_dir;
    // Its usual place, spelled out: it comes with the folder that is renamed at the end.
    let wal_dir = config.wal_dir.clone().filter(|dir| *dir != data_dir.join("member/wal"));
    let config = &BootConfig { wal_dir, ..config.clone() };
    let boot = Boot::new(config.clone());
    let me = boot.founder()?;
    let part = data_dir.join(RESTORING);
    // The log may lie in it, and is looked at by itself.
    let was_there = vacant("data-dir", data_dir, [Some(&part), config.wal_dir.as_ref()])?;
    let wal_was_there = config.wal_dir.as_deref().map(|dir| vacant("wal-dir", dir, [None; 2])).transpose();
    let wal_was_there = wal_was_there.map_err(|e| match part.is_dir() {
        true => BootError::Storage(format!("{e}; a restore was interrupted here: if its log is there, empty it")),
        false => e,
    })?;
    if part.is_dir() {
        // Not under the hands of one that still works.
        let _claim = claim(&part)?;
        tracing::info!(path = %part.display(), "deleting what an interrupted restore left");
        fs::remove_dir_all(&part).map_err(|e| unwritable(&part, &e))?;
    }
    let made = make_private(data_dir).and_then(|()| {
        let restored = restore_into(config, &boot, me, &part, file, how)?;
        let member = data_dir.join("member");
        fs::rename(&part, &member).and_then(|()| sync_dir(data_dir)).map_err(|e| unwritable(&member, &e))?;
        Ok(restored)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&part);
        if let (Some(dir), Some(was_there)) = (&config.wal_dir, wal_was_there) {
            clear(dir, was_there);
        }
        if !was_there {
            let _ = fs::remove_dir(data_dir);
        }
    }
    made
}

/// True if the directory is there and empty but for the ways to what may be there, false if it is not there.
fn vacant(flag: &str, dir: &Path, but: [Option<&PathBuf>; 2]) -> Result<bool, BootError> {
    let may_be = |path: PathBuf| but.iter().flatten().any(|there| there.starts_with(&path));
    let is_other = |file: &io::Result<fs::DirEntry>| !file.as_ref().is_ok_and(|file| may_be(file.path()));
    match fs::read_dir(dir).map(|files| !files.into_iter().any(|file| is_other(&file))) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Ok(true) => Ok(true),
        // etcd's words.
        _ => Err(BootError::Storage(format!("{flag} {:?} not empty or could not be read", dir.display().to_string()))),
    }
}

/// Removes what a failed restore left in a directory that was empty, or not there, before it.
fn clear(dir: &Path, was_there: bool) {
    for file in fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = fs::remove_file(file.path());
    }
    if !was_there {
        let _ = fs::remove_dir(dir);
    }
}

fn restore_into(
    config: &BootConfig,
    boot: &Boot,
    me: Remembered,
    dir: &Path,
    file: &Path,
    how: RestoreHow,
) -> Result<Restored, BootError> {
    let epoch = epoch_of(file, me.cluster, how)?;
    let source = File::open(file).map_err(|e| unreadable(file, &e))?;
    make_private(dir)?;
    me.store(dir)?;
    let opened = open(config, dir, me, Damage::Refuse)?;
    let voters = boot.founders();
    // As etcdutl has it: one entry for each member, in term 1.
    let position = LogPos { term: 1, index: voters.len() as u64 };
    let members = config.initial_cluster.iter().map(|(name, urls)| Member {
        id: crate::boot::static_member_id(urls, &config.token),
        name: name.clone(),
        peer_urls: urls.clone(),
        ..Member::default()
    });
    let adoption = Adoption {
        position,
        members: members.collect(),
        membership: offline::membership(position, voters).map_err(BootError::Storage)?,
        epoch,
        cluster_version: CLUSTER_VERSION.to_owned(),
        bump: how.bump,
    };
    let trailer = if how.skip_hash_check { Trailer::Ignore } else { Trailer::Verify };
    let revision = opened.state.adopt(&source, trailer, adoption).map_err(|e| match e {
        StateError::Snapshot(why) => BootError::Storage(format!("{}: {why}", file.display())),
        e => BootError::Storage(chain(&e)),
    })?;
    offline::begin_log(&opened.wal, &opened.state, &opened.snapshots, me.member)
        .map_err(|e| BootError::Storage(chain(&e)))?;
    opened.close()?;
    Remembered { logged: true, ..me }.store(dir)?;
    sync_dir(dir).map_err(|e| unwritable(dir, &e))?;
    Ok(Restored { cluster: me.cluster, member: me.member, revision })
}

/// The new history's number, from all that makes it: members that were restored alike agree on it without a word, and
/// those that were not can tell.
fn epoch_of(file: &Path, cluster: ClusterId, how: RestoreHow) -> Result<Epoch, BootError> {
    let mut source = File::open(file).map_err(|e| unreadable(file, &e))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match source.read(&mut piece).map_err(|e| unreadable(file, &e))? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    hash.update(cluster.0.to_be_bytes());
    hash.update(how.bump.unwrap_or(0).to_be_bytes());
    let first = hash.finalize().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte));
    Ok(Epoch(first.max(1)))
}

fn unreadable(file: &Path, e: &io::Error) -> BootError {
    // etcd's words for the one that happens.
    BootError::Storage(match e.kind() {
        io::ErrorKind::NotFound => format!("open {}: no such file or directory", file.display()),
        _ => format!("cannot read {}: {e}", file.display()),
    })
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A member's files, opened as for a start.
struct Files {
    wal: Wal,
    store: Arc<Store>,
    state: Arc<State>,
    snapshots: SnapshotDir,
    _claim: Box<dyn Lock>,
}

impl Files {
    fn close(self) -> Result<(), BootError> {
        drop(self.state);
        self.store.close().map_err(|e| BootError::Storage(chain(&e)))?;
        self.wal.close().map_err(|e| BootError::Storage(chain(&e)))
    }
}

fn open(config: &BootConfig, dir: &Path, me: Remembered, damage: Damage) -> Result<Files, BootError> {
    let claim = claim(dir)?;
    let opening = Opening { config, dir, me, damage };
    let (wal, store, state, snapshots) = open_storage(&opening, &Arc::new(Metrics::default()))?;
    Ok(Files { wal, store, state, snapshots, _claim: claim })
}

/// The member whose data directory this is.
fn member_of(dir: &Path) -> Result<Remembered, BootError> {
    Remembered::load(dir)?
        .ok_or_else(|| BootError::Identity(format!("{} holds no member; check --data-dir", dir.display())))
}

/// The engine that this data directory was made with.
fn engine_of(dir: &Path) -> Result<EngineKind, BootError> {
    let format = Format::load(dir).map_err(|e| BootError::Storage(chain(&e)))?;
    let kind = format.map(|format| format.engine.parse()).transpose();
    Ok(kind.map_err(|why| BootError::Storage(format!("{}: {why}", dir.display())))?.unwrap_or_default())
}

/// Gives the space of deleted records back. A directory that a process runs on, or that is damaged, is refused. Bytes
/// before and after.
pub fn defragment(config: &BootConfig) -> Result<(u64, u64), BootError> {
    let dir = config.data_dir.join("member");
    let me = member_of(&dir)?;
    // Nobody else writes there: all that is free may be used.
    let write_behind = Options { leaves_room: false, ..config.write_behind.clone() };
    let config = BootConfig { engine: engine_of(&dir)?, write_behind, ..config.clone() };
    // A log that is begun where --wal-dir was forgotten would be taken for this member's at the next start.
    expect_log(&config, &dir, me)?;
    let files = open(&config, &dir, me, Damage::Refuse)?;
    let failed = |e: StateError| BootError::Storage(chain(&e));
    let before = files.state.disk_bytes().map_err(failed)?;
    files.state.defragment().map_err(failed)?;
    let after = files.state.disk_bytes().map_err(failed)?;
    files.close()?;
    Ok((before, after))
}

/// What a data directory holds.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub member: MemberId,
    /// The layout: version, engine, and who made it.
    pub format: Option<Format>,
    /// The log.
    pub log: Listing,
    /// The newest snapshot file: what it stands for, where it lies, and its bytes.
    pub snapshot: Option<(LogPos, PathBuf, u64)>,
    /// The store, or why it cannot be opened. A start would set it aside then, and build it anew.
    pub store: Result<StoreInspection, String>,
}

/// What the store of a data directory holds.
#[derive(Clone, Debug)]
pub struct StoreInspection {
    /// The last log entry whose effects are in it.
    pub applied: Option<LogPos>,
    /// The history's epoch.
    pub epoch: Epoch,
    /// The cluster version.
    pub cluster_version: Option<String>,
    /// The members as of the applied entry.
    pub members: Vec<Member>,
    /// The store's revision.
    pub revision: i64,
    /// The compacted revision; -1 before the first compaction.
    pub compacted: i64,
    /// Keys that exist.
    pub keys: u64,
    /// Leases.
    pub leases: usize,
    /// Users and roles.
    pub users: (usize, usize),
    /// Raised alarms.
    pub alarms: usize,
    /// Bytes of all key records.
    pub logical_bytes: u64,
    /// Bytes that the engine's files take.
    pub disk_bytes: u64,
}

/// Looks into a data directory that no process runs on, and changes no byte of it: an engine writes as soon as it is opened,
/// so the store is copied to the system's place for temporary files, and the copy is opened. `visit` gets each record of the log in words, with its
/// segment's number and its offset.
pub fn inspect(
    data_dir: &Path,
    wal_dir: Option<&Path>,
    mut visit: impl FnMut(u32, u64, String),
) -> Result<Inspection, BootError> {
    let dir = data_dir.join("member");
    let me = member_of(&dir)?;
    let wal_dir = wal_dir.map_or_else(|| dir.join("wal"), Path::to_owned);
    let identity = ferretcd_wal::Identity { cluster_id: me.cluster.0, member_id: me.member.0 };
    // A look makes no lock file.
    let _claim = dir.join("LOCK").exists().then(|| claim(&dir)).transpose()?;
    let _lock = ferretcd_wal::lock(&OsFs, &wal_dir).map_err(|e| BootError::Storage(chain(&e)))?;
    let log = ferretcd_wal::list(&OsFs, &wal_dir, identity, |segment, offset, record| {
        visit(segment, offset, in_words(record));
    });
    let log = log.map_err(|e| BootError::Storage(chain(&e)))?;
    let format = Format::load(&dir).map_err(|e| BootError::Storage(chain(&e)))?;
    let snapshot = SnapshotDir::look(&dir.join("snap")).map_err(|e| BootError::Storage(chain(&e)))?;
    let engine = EngineKind::look(&dir.join("engine")).map_err(|e| BootError::Storage(chain(&e)))?;
    let kind = engine_of(&dir)?;
    let store = match engine.exists() {
        true => look_into_copy(&engine, kind, me.member)?,
        false => Err("it is not there".to_owned()),
    };
    Ok(Inspection {
        cluster: me.cluster,
        member: me.member,
        format,
        log,
        snapshot: snapshot.map(|(pos, file)| (pos, file.path, file.bytes)),
        store,
    })
}

/// What a copy of the engine's directory holds, or why it cannot be opened.
fn look_into_copy(engine: &Path, kind: EngineKind, me: MemberId) -> Result<Result<StoreInspection, String>, BootError> {
    let temporary = std::env::temp_dir();
    let failed = |e: io::Error| {
        let (from, to) = (engine.display(), temporary.display());
        BootError::Storage(format!("cannot copy {from} to {to}, to look into it: {e}; TMPDIR names another place"))
    };
    let copy = tempfile::Builder::new().prefix("ferretcd-inspect-").tempdir_in(&temporary).map_err(failed)?;
    copy_dir(engine, &copy.path().join("engine")).map_err(failed)?;
    let opened = open_engine(&copy.path().join("engine"), kind, me, &Arc::new(Metrics::default()));
    Ok(opened.and_then(|(_, state)| look_into(&state)))
}

/// Copies a directory with all below it. An engine's is two levels deep.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        match entry.is_dir() {
            true => copy_dir(&entry, &to)?,
            false => drop(fs::copy(&entry, &to)?),
        }
    }
    Ok(())
}

fn look_into(state: &State) -> Result<StoreInspection, String> {
    Ok(StoreInspection {
        applied: state.applied(),
        epoch: state.epoch(),
        cluster_version: state.cluster_version(),
        members: state.members(),
        revision: state.revision(),
        compacted: state.compacted_revision(),
        keys: state.key_count(),
        leases: state.leases().len(),
        users: (state.auth_users().len(), state.auth_roles().len()),
        alarms: state.alarms().len(),
        logical_bytes: state.logical_bytes(),
        disk_bytes: state.disk_bytes().map_err(|e| chain(&e))?,
    })
}

fn in_words(record: &Record<'_>) -> String {
    match record {
        Record::Entry { term, index, payload } => {
            let what = offline::describe(LogPos { term: *term, index: *index }, payload, operation);
            format!("entry {index} of term {term}, {} bytes: {what}", payload.len())
        }
        Record::Vote(vote) => {
            let granted = if vote.committed { ", who leads" } else { "" };
            format!("vote in term {} for {:x}{granted}", vote.term, vote.node)
        }
        Record::Truncate { after: Some(after) } => format!("cut behind entry {after}"),
        Record::Truncate { after: None } => "cut to nothing".to_owned(),
        Record::Purge(upto) => format!("purged up to entry {} of term {}", upto.index, upto.term),
        Record::Committed(pos) => format!("committed up to entry {} of term {}", pos.index, pos.term),
    }
}

/// The hash of a snapshot file's key space up to a revision (0 is all): hash, compacted revision, hashed revision.
pub fn hash_kv(file: &Path, revision: i64) -> Result<(u32, i64, i64), BootError> {
    let source = File::open(file).map_err(|e| unreadable(file, &e))?;
    let hash = ferretcd_state::snapshot_hash_kv(&source, revision);
    hash.map(|h| (h.hash, h.compact_revision, h.revision)).map_err(|e| BootError::Storage(e.to_string()))
}

/// What [`verify`] found in a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Records of keys, history included.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
    /// Its revision.
    pub revision: i64,
}

/// Checks all of a snapshot file: its SHA-256, its structure, and every record as a restore would read it.
pub fn verify(file: &Path) -> Result<Verified, BootError> {
    let source = File::open(file).map_err(|e| unreadable(file, &e))?;
    // Of pieces of any size; nothing is kept.
    let plan = ferretcd_state::restore_plan(&source, 1 << 20);
    let plan = plan.map_err(|e| BootError::Storage(format!("{}: {e}", file.display())))?;
    let totals = plan.totals();
    Ok(Verified {
        keys: totals.keys,
        leases: totals.leases,
        users: totals.users,
        roles: totals.roles,
        revision: plan.revision(),
    })
}

/// When `--force-new-cluster` is to be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// At every start, as in etcd.
    Always,
    /// Unless the data directory says that it was done under this name.
    Once(String),
}

impl Force {
    /// Writes down that a member which begins with an empty data directory is not to go on alone under this name: its supervisor
    /// leaves the flag set, and by its second start there are others.
    pub(crate) fn pass(&self, dir: &Path) -> Result<(), BootError> {
        let Force::Once(name) = self else { return Ok(()) };
        let mark = dir.join(FORCED);
        admission::write_durably(&mark, &admission::sealed(&format!("{name}\n"))).map_err(|e| unwritable(&mark, &e))
    }
}

/// The name under which a member was last made the only one, or began with nothing.
const FORCED: &str = "forced";

/// The word under which this member was made the only one last. What cannot be read must not count as none: the members that
/// came since would be removed. Its errors name the file.
fn forced(mark: &Path) -> io::Result<Option<String>> {
    let Some(text) = admission::read(mark)? else { return Ok(None) };
    let line = admission::unsealed(&text).and_then(|lines| lines.strip_suffix('\n'));
    let word = line.filter(|line| !line.is_empty() && !line.contains(char::is_whitespace));
    // Not to replace this member, as after other damage: it may be the only one that has the data.
    let damaged = || {
        let why = format!(
            "{} is damaged, which says under which word this member went on alone; if it has done so under this one, take \
             --force-new-cluster-once away, else remove the file",
            mark.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    word.map(|word| Some(word.to_owned())).ok_or_else(damaged)
}

/// Makes this member the only one of its cluster, if that is still to be done. The whole log counts, not only what is
/// known to be committed: an entry that a client was told of may be the last one here, with its commitment known only to
/// members that are lost. (etcd drops that tail.) The others are removed, and the history gets a new epoch, so one that
/// comes back is not let in, and stops.
pub(crate) fn stand_alone(
    force: &Force,
    dir: &Path,
    own_urls: &[String],
    me: (ClusterId, MemberId),
    (wal, state, snapshots): (&Wal, &Arc<State>, &SnapshotDir),
) -> Result<(), BootError> {
    let mark = dir.join(FORCED);
    if let Force::Once(name) = force
        && forced(&mark).map_err(|e| BootError::Storage(e.to_string()))?.as_ref() == Some(name)
    {
        tracing::info!(
            name,
            "this member was made the only one under this name before, or began with it: not done again"
        );
        return Ok(());
    }
    let failed =
        |e: &dyn std::error::Error| BootError::Storage(format!("cannot make this member the only one: {}", chain(e)));
    offline::replay(wal, state, snapshots).map_err(|e| failed(&e))?;
    let Some(last) = state.applied() else {
        return Err(BootError::Identity(
            "--force-new-cluster: this member's log is empty, so there is nothing to go on with; restore a snapshot"
                .to_owned(),
        ));
    };
    let voted = wal.vote().map_or(0, |vote| vote.term);
    let position = LogPos { term: last.term.max(voted) + 1, index: last.index + 1 };
    let known = state.members().into_iter().find(|m| m.id == me.1);
    let node = PeerNode { peer_urls: known.map_or_else(|| own_urls.to_vec(), |m| m.peer_urls) };
    let alone = BTreeMap::from([(me.1, node.clone())]);
    let membership = offline::membership(position, alone).map_err(BootError::Storage)?;
    // etcd's line.
    tracing::warn!(cluster_id = %me.0, local_member_id = %me.1, commit_index = last.index, "forcing restart member");
    state.reform(position, membership, (me.1, node), ids::epoch()).map_err(|e| failed(&e))?;
    offline::begin_log(wal, state, snapshots, me.1).map_err(|e| failed(&e))?;
    force.pass(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovered;
    use bytes::Bytes;
    use ferretcd_wal::{Entry, Identity, Options, Vote};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_word_under_which_a_member_went_on_alone_is_read_with_a_checksum_or_from_before_there_was_one() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join(FORCED);
        assert_eq!(forced(&mark).unwrap(), None);
        let sealed = admission::sealed("fire\n");
        for text in ["fire\n", &sealed] {
            fs::write(&mark, text).unwrap();
            assert_eq!(forced(&mark).unwrap().as_deref(), Some("fire"));
        }
        for text in ["", "\n", "fire", "fire\nchecksun = 00000000\n", &sealed.replace("fire", "fare")] {
            fs::write(&mark, text).unwrap();
            let told = forced(&mark).unwrap_err().to_string();
            assert!(told.contains(mark.to_str().unwrap()), "{text:?}: {told}");
        }
    }

    /// A member's directory without a store: who it is, its format, and a log of a few records.
    fn member_dir() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("member");
        fs::create_dir_all(dir.join("snap")).unwrap();
        let me = Remembered {
            cluster: ClusterId(0xc1),
            member: MemberId(7),
            founder: true,
            logged: true,
            epoch: Epoch::UNKNOWN,
        };
        me.store(&dir).unwrap();
        Format::ensure(&dir, "sled", "ferretcd").unwrap();
        let options = Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() };
        let identity = Identity { cluster_id: 0xc1, member_id: 7 };
        let (wal, _) = Wal::open_inline(Arc::new(OsFs), &dir.join("wal"), options, identity).unwrap();
        wal.save_vote(Vote { term: 1, node: 7, committed: true }, Box::new(|done| done.unwrap()));
        let entries = (0..3).map(|index| Entry { term: 1, index, payload: Bytes::from_static(&[0]) }).collect();
        wal.append(entries, Box::new(|done| done.unwrap()));
        wal.close().unwrap();
        for (name, text) in [("arrivals", "7 = 1f\n"), ("arrival", "1f\n"), ("discovered", "a=http://a:1\n")] {
            fs::write(dir.join(name), text).unwrap();
        }
        data
    }

    /// One file of a data directory is anything, or there is one with any name: what a look, and the first steps of a
    /// start, make of it.
    #[test]
    fn fuzz_data_directory() {
        let data = member_dir();
        let dir = data.path().join("member");
        let look = || {
            let mut records = 0;
            let found = inspect(data.path(), None, |_, _, what| records += usize::from(!what.is_empty()));
            let arrivals = admission::Arrivals::load(&dir).map(|_| ()).map_err(|e| e.to_string());
            let arrival = admission::own_arrival(&dir).map(|_| ()).map_err(|e| e.to_string());
            let found = found.map(|found| format!("{records} {:?} {:?}", found.format, found.snapshot.map(|s| s.0)));
            let found = found.map_err(|e| e.to_string());
            format!("{found:?} {arrivals:?} {arrival:?} {:?}", discovered::load(data.path()).is_ok())
        };
        assert!(look().starts_with("Ok(\"5 Some(Format"), "{}", look());
        let file = |name: &str| [name.as_bytes(), b"\n", &fs::read(dir.join(name)).unwrap()].concat();
        let names = ["identity", "format", "arrivals", "arrival", "discovered", "wal/00000001.wal"];
        let seeds = names.map(file).into_iter().chain([b"snap/0000000000000001-0000000000000002.snap\nx".to_vec()]);
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "data_directory").seeds(seeds);
        let words =
            ["cluster = ", "member = ", "engine.1", "wal/0000000", ".wal", ".snap", ".spare", ".part", "snap/", "\n"];
        // Each writes a file and reads a directory.
        fuzz.words(&words).quick(400).run(|bytes| {
            let (name, content) = bytes.split_at(bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len()));
            let path = dir.join(OsStr::from_bytes(name));
            // Only files of this directory, and none in the way of the next input.
            let is_inside =
                path.parent().is_some_and(|at| [&dir, &dir.join("wal"), &dir.join("snap")].contains(&&at.to_owned()));
            if !is_inside || name.starts_with(b"/") || path.file_name().is_none_or(|n| n == "LOCK") || path.is_dir() {
                return "no file of a member".to_owned();
            }
            let before = fs::read(&path).ok();
            if fs::write(&path, content.get(1..).unwrap_or_default()).is_err() {
                return "no name of a file".to_owned();
            }
            let said = look();
            match before {
                Some(before) => fs::write(&path, before).unwrap(),
                None => drop(fs::remove_file(&path)),
            }
            said.replace(&data.path().display().to_string(), "")
        });
    }
}
