//! The notes of the library, read back: one file per process, in the order of their numbers. A record is as `shim.c` has it.

use std::fs;
use std::path::{Path, PathBuf};

/// Some bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Zeros(usize),
    Some(Vec<u8>),
}

impl Bytes {
    pub(crate) fn len(&self) -> usize {
        match self {
            Bytes::Zeros(length) => *length,
            Bytes::Some(bytes) => bytes.len(),
        }
    }

    pub(crate) fn to_vec(&self) -> Vec<u8> {
        match self {
            Bytes::Zeros(length) => vec![0; *length],
            Bytes::Some(bytes) => bytes.clone(),
        }
    }

    pub(crate) fn copy_to(&self, target: &mut [u8]) {
        match self {
            Bytes::Zeros(_) => target.fill(0),
            Bytes::Some(bytes) => target.copy_from_slice(bytes),
        }
    }

    pub(crate) fn part(&self, from: usize, to: usize) -> Bytes {
        match self {
            Bytes::Zeros(_) => Bytes::Zeros(to - from),
            Bytes::Some(bytes) => Bytes::Some(bytes[from..to].to_vec()),
        }
    }
}

/// One record.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    /// Number of the journal.
    pub process: usize,
    /// Where in the journal it begins.
    pub offset: u64,
    /// What it is about: of a name, what the name stands for.
    pub inode: u64,
    pub what: What,
}

/// What was done.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Write {
        at: u64,
        length_before: u64,
        fresh: Bytes,
        old: Bytes,
    },
    Length {
        to: u64,
        length_before: u64,
        old: Bytes,
    },
    Sync {
        begun: u64,
    },
    SyncFailed,
    SyncAll,
    Add {
        dir: u64,
        name: String,
        is_dir: bool,
    },
    Remove {
        dir: u64,
        name: String,
        is_dir: bool,
    },
    Rename {
        from_dir: u64,
        from: String,
        dir: u64,
        to: String,
        replaced: Option<u64>,
    },
    Blind(String),
    /// A change of names follows, unless the kill came first.
    Intent,
}

impl Op {
    /// The inode whose sync makes it durable.
    pub(crate) fn belongs_to(&self) -> u64 {
        match &self.what {
            What::Add { dir, .. } | What::Remove { dir, .. } | What::Rename { dir, .. } => *dir,
            _ => self.inode,
        }
    }
}

const MAGIC: u32 = 0x5455_4346;
const HEADER: usize = 80;
const ZEROS: u64 = 1 << 63;

/// All records of all processes.
pub(crate) fn read(notes: &Path) -> Result<Vec<Op>, String> {
    let mut journals: Vec<PathBuf> = fs::read_dir(notes)
        .map_err(|e| e.to_string())?
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal.")))
        .collect();
    journals.sort();
    let mut ops = Vec::new();
    for (process, path) in journals.iter().enumerate() {
        let bytes = fs::read(path).map_err(|e| e.to_string())?;
        let mut at = 0;
        while let Some((op, length)) = record(&bytes[at..], process, at as u64)? {
            ops.push(op);
            at += length;
        }
    }
    Ok(ops)
}

/// The record that `bytes` begin with, and its length; None if it was cut off.
fn record(bytes: &[u8], process: usize, offset: u64) -> Result<Option<(Op, usize)>, String> {
    if bytes.len() < HEADER {
        return Ok(None);
    }
    let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    if short(0) != MAGIC {
        return Err(format!("the notes of process {process} are no notes at {offset}"));
    }
    let (kind, inode, dir, other_dir, replaced) = (short(4), long(8), long(16), long(24), long(32));
    let (position, length_before) = (long(40), long(48));
    let (name, other) = (short(56) as usize, short(60) as usize);
    let (fresh, old) = (long(64), long(72));
    let mut end = HEADER;
    let mut take = |length: usize| {
        let found = bytes.get(end..end + length);
        end += length;
        found
    };
    let stored = |length: u64| if length & ZEROS == 0 { length as usize } else { 0 };
    let (Some(name), Some(other)) = (take(name), take(other)) else { return Ok(None) };
    let (Some(fresh_bytes), Some(old_bytes)) = (take(stored(fresh)), take(stored(old))) else { return Ok(None) };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let data = |length: u64, bytes: &[u8]| match length & ZEROS {
        0 => Bytes::Some(bytes.to_vec()),
        _ => Bytes::Zeros((length & !ZEROS) as usize),
    };
    let what = match kind {
        1 => What::Write { at: position, length_before, fresh: data(fresh, fresh_bytes), old: data(old, old_bytes) },
        2 => What::Length { to: position, length_before, old: data(old, old_bytes) },
        3 => What::Sync { begun: position },
        4 => What::SyncFailed,
        5 => What::SyncAll,
        6 => What::Add { dir, name: text(name), is_dir: position == 1 },
        7 => What::Remove { dir, name: text(name), is_dir: position == 1 },
        8 => {
            let replaced = (replaced != 0).then_some(replaced);
            What::Rename { from_dir: dir, from: text(name), dir: other_dir, to: text(other), replaced }
        }
        9 => What::Blind(format!("{}: {}", text(name), text(other))),
        10 => What::Intent,
        other => return Err(format!("a record of kind {other} in the notes")),
    };
    Ok(Some((Op { process, offset, inode, what }, end)))
}
