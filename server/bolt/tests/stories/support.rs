//! Contents, a seeded source of numbers, and both directions in one call each.

use bytes::Bytes;
use ferretcd_bolt::{CHUNK_BYTES, Error, File, Layout, ReadAt, TRAILER_BYTES, Trailer, WriteError, Writer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Buckets by name, records by key.
pub type Contents = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// SplitMix64: small, and the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub fn layout(contents: &Contents) -> Layout {
    let mut builder = Layout::builder();
    for (name, records) in contents {
        builder.bucket(name).unwrap();
        for (key, value) in records {
            builder.record(key.len(), value.len()).unwrap();
        }
    }
    builder.finish()
}

/// Pass two over `contents` with the layout of pass one, whatever that saw; the chunks up to the end or an error.
pub fn print(layout: &Layout, contents: &Contents) -> (Vec<Bytes>, Result<[u8; 32], WriteError>) {
    let mut chunks = Vec::new();
    let mut writer = Writer::new(layout.clone(), |chunk| {
        chunks.push(chunk);
        Ok(())
    });
    let mut feed = || {
        for (name, records) in contents {
            writer.bucket(name)?;
            for (key, value) in records {
                writer.record(key, value)?;
            }
        }
        Ok(())
    };
    let result = feed().and_then(|()| writer.finish());
    (chunks, result)
}

/// The file, after the promises about chunks, length and digest have been checked.
pub fn write(contents: &Contents) -> Vec<u8> {
    let layout = layout(contents);
    let (chunks, digest) = print(&layout, contents);
    let (trailer, rest) = chunks.split_last().unwrap();
    let (last, full) = rest.split_last().unwrap();
    assert!(full.iter().all(|chunk| chunk.len() == CHUNK_BYTES) && (1..=CHUNK_BYTES).contains(&last.len()));
    assert_eq!(trailer[..], digest.unwrap());
    let file = chunks.concat();
    assert_eq!(file.len() as u64, layout.file_bytes());
    assert_eq!(file.len() as u64, layout.db_bytes() + TRAILER_BYTES as u64);
    let sealed: [u8; 32] = Sha256::digest(&file[..file.len() - 32]).into();
    assert_eq!(trailer[..], sealed);
    file
}

/// Everything in a file, and its summary.
pub fn read(source: impl ReadAt, trailer: Trailer) -> Result<Contents, Error> {
    let file = File::open(source, trailer)?;
    let mut contents = Contents::new();
    for bucket in file.buckets() {
        let records = contents.entry(bucket.to_vec()).or_default();
        file.for_each::<Error>(bucket, |key, value| {
            assert!(records.last_key_value().is_none_or(|(last, _)| last.as_slice() < key));
            records.insert(key.to_vec(), value.to_vec());
            Ok(())
        })?;
    }
    Ok(contents)
}

/// The CRC-32C of `etcdutl snapshot status`, from the contents alone.
pub fn hash(contents: &Contents) -> u32 {
    let mut all = Vec::new();
    for (name, records) in contents {
        all.extend(name);
        records.iter().for_each(|(key, value)| {
            all.extend(key);
            all.extend(value);
        });
    }
    crc32c::crc32c(&all)
}

/// One bucket with the given records.
pub fn bucket<K: AsRef<[u8]>, V: AsRef<[u8]>>(name: &str, records: impl IntoIterator<Item = (K, V)>) -> Contents {
    let records = records.into_iter().map(|(key, value)| (key.as_ref().to_vec(), value.as_ref().to_vec()));
    Contents::from([(name.as_bytes().to_vec(), records.collect())])
}
