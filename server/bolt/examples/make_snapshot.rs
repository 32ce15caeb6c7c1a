//! Writes a sample snapshot that etcd's own tools can judge: `make_snapshot FILE [KEYS]`.
//!
//! It holds KEYS (10 unless told) keys from revision 2 on, the first of them attached to lease 0x1234, and one more key
//! that is put and deleted again. `make_snapshot --status FILE` prints what this crate makes of any snapshot, in the
//! words of `etcdutl snapshot status -w json`.

use ferretcd_bolt::{File, Layout, RevisionKey, Trailer, Writer};
use std::error::Error;
use std::io::Write;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--status", path] => status(path),
        [path] => write(path, 10),
        [path, keys] => write(path, keys.parse()?),
        _ => Err("usage: make_snapshot FILE [KEYS] | make_snapshot --status FILE".into()),
    }
}

fn write(path: &str, keys: i64) -> Outcome {
    let mut layout = Layout::builder();
    feed(keys, &mut |step| match step {
        Step::Bucket(name) => Ok(layout.bucket(name)?),
        Step::Record(key, value) => Ok(layout.record(key.len(), value.len())?),
    })?;
    let mut out = std::fs::File::create(path)?;
    let mut writer = Writer::new(layout.finish(), |chunk| out.write_all(&chunk));
    feed(keys, &mut |step| match step {
        Step::Bucket(name) => Ok(writer.bucket(name)?),
        Step::Record(key, value) => Ok(writer.record(key, value)?),
    })?;
    writer.finish()?;
    Ok(())
}

fn status(path: &str) -> Outcome {
    let summary = File::open(std::fs::File::open(path)?, Trailer::Verify)?.summary()?;
    let version = summary.version.unwrap_or_default();
    println!(
        r#"{{"hash":{},"revision":{},"totalKey":{},"totalSize":{},"version":"{version}"}}"#,
        summary.hash, summary.revision, summary.total_keys, summary.total_size
    );
    Ok(())
}

/// One call of either pass.
enum Step<'s> {
    Bucket(&'s [u8]),
    Record(&'s [u8], &'s [u8]),
}

/// The sample in file order; both passes go through it.
fn feed(keys: i64, step: &mut dyn FnMut(Step) -> Outcome) -> Outcome {
    const LEASE: u64 = 0x1234;
    let mut buf = [0; RevisionKey::MAX_BYTES];
    step(Step::Bucket(b"alarm"))?;
    step(Step::Bucket(b"auth"))?;
    step(Step::Record(b"authEnabled", &[0]))?;
    step(Step::Record(b"authRevision", &1u64.to_be_bytes()))?;
    step(Step::Bucket(b"authRoles"))?;
    step(Step::Bucket(b"authUsers"))?;
    step(Step::Bucket(b"cluster"))?;
    step(Step::Record(b"clusterVersion", b"3.7.0"))?;
    step(Step::Bucket(b"key"))?;
    for n in 0..keys {
        let main = n + 2;
        let lease = if n == 0 { LEASE } else { 0 };
        let key = RevisionKey { main, sub: 0, tombstone: false };
        step(Step::Record(key.encode(&mut buf), &key_value(&format!("sample/{n:08}"), main as u64, lease)))?;
    }
    let (put, delete) = (keys + 2, keys + 3);
    let key = RevisionKey { main: put, sub: 0, tombstone: false };
    step(Step::Record(key.encode(&mut buf), &key_value("gone", put as u64, 0)))?;
    let key = RevisionKey { main: delete, sub: 0, tombstone: true };
    step(Step::Record(key.encode(&mut buf), b"\x0a\x04gone"))?;
    step(Step::Bucket(b"lease"))?;
    let mut lease = Vec::new();
    number(&mut lease, 1, LEASE);
    number(&mut lease, 2, 3600);
    step(Step::Record(&LEASE.to_be_bytes(), &lease))?;
    step(Step::Bucket(b"members"))?;
    step(Step::Record(b"1", br#"{"id":1,"peerURLs":["http://127.0.0.1:2380"],"name":"sample"}"#))?;
    step(Step::Bucket(b"members_removed"))?;
    step(Step::Bucket(b"meta"))?;
    step(Step::Record(b"confState", br#"{"voters":[1],"auto_leave":false}"#))?;
    step(Step::Record(b"consistent_index", &(delete as u64).to_be_bytes()))?;
    step(Step::Record(b"storageVersion", b"3.7.0"))?;
    step(Step::Record(b"term", &2u64.to_be_bytes()))
}

/// An encoded `mvccpb.KeyValue` of a key's first version.
fn key_value(key: &str, revision: u64, lease: u64) -> Vec<u8> {
    let mut message = Vec::new();
    text(&mut message, 1, key);
    number(&mut message, 2, revision);
    number(&mut message, 3, revision);
    number(&mut message, 4, 1);
    text(&mut message, 5, &format!("value of {key}"));
    number(&mut message, 6, lease);
    message
}

fn number(message: &mut Vec<u8>, field: u8, mut number: u64) {
    if number == 0 {
        return;
    }
    message.push(field << 3);
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// For texts below 128 bytes.
fn text(message: &mut Vec<u8>, field: u8, text: &str) {
    message.extend([field << 3 | 2, text.len() as u8]);
    message.extend(text.as_bytes());
}
