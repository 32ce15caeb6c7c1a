//! Segments of the log as anybody may have left them: opened with what is good, or refused, never a panic.

// The helpers of a test fail it by panicking; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ferretcd_fuzz::Fuzz;
use ferretcd_wal::fs::Fs;
use ferretcd_wal::fs::mem::MemFs;
use ferretcd_wal::{Entry, Identity, Options, Wal};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xfe44e7 };

fn open(fs: &MemFs) -> Result<String, String> {
    let options = Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() };
    let opened = Wal::open_inline(Arc::new(fs.clone()), Path::new("/wal"), options, IDENTITY);
    let (wal, _) = opened.map_err(|e| e.to_string())?;
    let entries = wal.read(wal.first_index(), u64::MAX, usize::MAX).map_err(|e| e.to_string())?;
    Ok(format!("{} entries", "x".repeat(entries.len())))
}

/// A log of a few entries; its only segment file.
fn written() -> (MemFs, String, Vec<u8>) {
    let fs = MemFs::new();
    let options = Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() };
    let (wal, _) = Wal::open_inline(Arc::new(fs.clone()), Path::new("/wal"), options, IDENTITY).unwrap();
    for index in 1..6 {
        let (sender, receiver) = mpsc::channel();
        let entry = Entry { term: 1, index, payload: vec![index as u8; 20].into() };
        wal.append(vec![entry], Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv().unwrap().unwrap();
    }
    drop(wal);
    let name = fs.list(Path::new("/wal")).unwrap().into_iter().find(|name| name.ends_with(".wal")).unwrap();
    let bytes = fs.contents(&Path::new("/wal").join(&name)).unwrap();
    (fs, name, bytes)
}

#[test]
fn fuzz_segment() {
    let (fs, name, bytes) = written();
    assert_eq!(open(&fs.fork()), Ok("xxxxx entries".to_owned()));
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "segment").seeds([bytes]).run(|bytes| {
        let fs = fs.fork();
        fs.set_contents(&Path::new("/wal").join(&name), bytes.to_vec());
        let said = open(&fs).unwrap_or_else(|e| e);
        // What was opened, and perhaps repaired, is opened again and says the same.
        if said.ends_with("entries") {
            assert_eq!(open(&fs).as_deref(), Ok(said.as_str()));
        }
        said
    });
}
