//! What `etcdutl snapshot status` says about a snapshot, computed from a complete check of it.

use crate::reader::{Error, File, ReadAt};
use crate::rev::RevisionKey;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// The figures of `etcdutl snapshot status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// CRC-32C over the names, keys and values of all buckets in order; etcdutl prints it in hexadecimal digits.
    pub hash: u32,
    /// Main revision of the last change, 0 when there is none.
    pub revision: i64,
    /// Keys that exist at that revision.
    pub total_keys: u64,
    /// Bytes of the database up to its high-water mark.
    pub total_size: u64,
    /// Storage version that wrote the file, such as `3.7.0`; `None` before 3.6, which did not store it.
    pub version: Option<String>,
}

/// What is wrong with an encoded `mvccpb.KeyValue`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueDamage {
    /// It ends inside a field.
    #[error("it ends inside a field")]
    Short,
    /// A number is longer than 64 bits.
    #[error("a number in it is longer than 64 bits")]
    Varint,
    /// A field's tag is impossible.
    #[error("it has a field with the impossible tag {0:#x}")]
    Tag(u64),
}

impl<R: ReadAt> File<R> {
    /// Reads and checks every page that is in use, and sums the contents up. Needs 16 bytes of memory and a little per
    /// existing key.
    pub fn summary(&self) -> Result<Summary, Error> {
        let mut seen = self.taken();
        let mut summary = Summary { hash: 0, revision: 0, total_keys: 0, total_size: self.db_bytes(), version: None };
        // Keys are told apart by half of their SHA-256, which is smaller than most, and of known size.
        let mut keys: HashSet<[u8; 16]> = HashSet::new();
        for bucket in self.buckets() {
            summary.hash = crc32c::crc32c_append(summary.hash, bucket);
            let mut record = 0;
            self.walk_bucket(bucket, &mut seen, |key, value| {
                summary.hash = crc32c::crc32c_append(summary.hash, key);
                summary.hash = crc32c::crc32c_append(summary.hash, value);
                if bucket == b"key" {
                    let revision = RevisionKey::decode(key).map_err(|source| Error::RevisionKey { record, source })?;
                    let name = key_of(value).map_err(|source| Error::Value { record, source })?;
                    summary.revision = revision.main;
                    let name = half_digest(name);
                    match revision.tombstone {
                        true => keys.remove(&name),
                        false => keys.insert(name),
                    };
                } else if bucket == b"meta" && key == b"storageVersion" {
                    summary.version = version(value);
                }
                record += 1;
                Ok::<_, Error>(())
            })?;
        }
        summary.total_keys = keys.len() as u64;
        Ok(summary)
    }
}

fn half_digest(key: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(key).into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// A version of three numbers, or nothing.
fn version(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let numbers = text.split('.').filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    (numbers.count() == 3 && text.split('.').count() == 3).then(|| text.to_string())
}

/// The key inside an encoded `mvccpb.KeyValue` (field 1), empty where the field is missing; checks that the rest is
/// protobuf too. Sixteen lines instead of a protobuf library, of which this crate would need nothing else.
fn key_of(mut message: &[u8]) -> Result<&[u8], ValueDamage> {
    let mut key: &[u8] = &[];
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let skip = match tag & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => varint(&mut message)?,
            5 => 4,
            _ => return Err(ValueDamage::Tag(tag)),
        };
        if tag >> 3 == 0 || tag > u64::from(u32::MAX) {
            return Err(ValueDamage::Tag(tag));
        }
        let field = usize::try_from(skip).ok().and_then(|skip| message.split_at_checked(skip));
        let (field, rest) = field.ok_or(ValueDamage::Short)?;
        message = rest;
        if tag == 1 << 3 | 2 {
            key = field;
        }
    }
    Ok(key)
}

fn varint(message: &mut &[u8]) -> Result<u64, ValueDamage> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().ok_or(ValueDamage::Short)?;
        *message = rest;
        if shift == 63 && *byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err(ValueDamage::Varint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_value_is_found_among_the_other_fields() {
        // create_revision, version, key, value, lease, and a field of the future.
        let message =
            b"\x10\x05\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x0a\x03abc\x2a\x01v\x30\x07\x79\0\0\0\0\0\0\0\0";
        assert_eq!(key_of(message), Ok(&b"abc"[..]));
        assert_eq!(key_of(b""), Ok(&b""[..]), "the empty record of `etcdutl snapshot restore --bump-revision`");
        assert_eq!(key_of(b"\x0a\x04abc"), Err(ValueDamage::Short));
        assert_eq!(key_of(b"\x0a"), Err(ValueDamage::Short));
        assert_eq!(key_of(b"\x0b\0"), Err(ValueDamage::Tag(0x0b)));
        assert_eq!(key_of(b"\x02\0"), Err(ValueDamage::Tag(2)));
        assert_eq!(key_of(&[0xff; 11]), Err(ValueDamage::Varint));
        assert_eq!(key_of(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), Err(ValueDamage::Varint));
    }

    #[test]
    fn a_version_is_three_numbers() {
        assert_eq!(version(b"3.7.0").as_deref(), Some("3.7.0"));
        for bad in [&b""[..], b"3.7", b"3.7.", b"3.7.0.1", b"3.x.0", b"\xff"] {
            assert_eq!(version(bad), None);
        }
    }
}
