//! Checks a snapshot file of etcd while it streams by: a bbolt database in whole sectors, then 32 bytes of SHA-256 over it.

use sha2::{Digest as _, Sha256};

/// Length of the checksum at the end of a file.
const TRAILER: usize = 32;
/// etcd's own test of a snapshot: bbolt writes whole pages, so what is left beyond sectors of 512 bytes is the checksum.
const SECTOR: u64 = 512;

/// The running state: memory use does not depend on the size of the file.
#[derive(Clone, Debug, Default)]
pub struct FileDigest {
    file: Sha256,
    database: Sha256,
    /// The last bytes seen, up to `TRAILER`: they may be the checksum.
    tail: Vec<u8>,
    size: u64,
}

/// What is known of a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its size in bytes, checksum included.
    pub size: u64,
    /// SHA-256 of the whole file, checksum included, in hex.
    pub sha256: String,
}

/// Why a file is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It cannot be a database and a checksum.
    #[error(
        "its size of {size} bytes is not a whole number of 512-byte sectors and a checksum of 32 bytes, so it is cut short"
    )]
    Size {
        /// What came.
        size: u64,
    },
    /// The checksum at its end is not that of its contents.
    #[error("its checksum is {computed}, but the file says {stated}")]
    Checksum {
        /// Of what came, in hex.
        computed: String,
        /// What the file says, in hex.
        stated: String,
    },
}

impl FileDigest {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.file.update(bytes);
        self.size += bytes.len() as u64;
        // What leaves the tail belongs to the database for certain.
        let leaving = (self.tail.len() + bytes.len()).saturating_sub(TRAILER);
        let from_tail = leaving.min(self.tail.len());
        self.database.update(&self.tail[..from_tail]);
        self.tail.drain(..from_tail);
        let from_bytes = leaving - from_tail;
        self.database.update(&bytes[..from_bytes]);
        self.tail.extend_from_slice(&bytes[from_bytes..]);
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The verdict on the whole file.
    ///
    /// # Errors
    /// A size that no snapshot has, or a checksum that is not that of the contents.
    pub fn finish(self) -> Result<Checked, Damage> {
        if self.size < SECTOR + TRAILER as u64 || self.size % SECTOR != TRAILER as u64 {
            return Err(Damage::Size { size: self.size });
        }
        let (computed, stated) = (hex(&self.database.finalize()), hex(&self.tail));
        if computed != stated {
            return Err(Damage::Checksum { computed, stated });
        }
        Ok(Checked { size: self.size, sha256: hex(&self.file.finalize()) })
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What has the form of a snapshot: `sectors` sectors that differ, and their checksum.
    pub(crate) fn snapshot(sectors: usize) -> Vec<u8> {
        let mut file: Vec<u8> = (0..sectors * SECTOR as usize).map(|n| (n / 7 % 251) as u8).collect();
        let checksum = Sha256::digest(&file);
        file.extend_from_slice(&checksum);
        file
    }

    fn check(file: &[u8], piece: usize) -> Result<Checked, Damage> {
        let mut digest = FileDigest::default();
        file.chunks(piece).for_each(|piece| digest.update(piece));
        digest.finish()
    }

    #[test]
    fn a_whole_file_passes_however_it_is_cut_into_pieces() {
        let file = snapshot(8);
        let sha256 = hex(&Sha256::digest(&file));
        for piece in [1, 31, 32, 33, 512, 4096, file.len()] {
            assert_eq!(check(&file, piece), Ok(Checked { size: file.len() as u64, sha256: sha256.clone() }), "{piece}");
        }
    }

    /// A backup as the store hands it out: with its own checksum or none, in pieces as they come.
    #[test]
    fn fuzz_backup_file() {
        let file = snapshot(1);
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "backup_file")
            .seeds([file.clone(), file[..512].to_vec()]);
        fuzz.run(|bytes| {
            let sealed = [bytes, &Sha256::digest(bytes)].concat();
            let checks = [bytes, &sealed].map(|file| {
                let whole = check(file, file.len().max(1));
                assert_eq!(check(file, 33), whole);
                whole
            });
            assert_eq!(checks[1].is_ok(), !bytes.is_empty() && bytes.len() % 512 == 0);
            format!("{checks:?}")
        });
    }

    #[test]
    fn a_file_that_is_cut_short_is_refused() {
        let file = snapshot(8);
        assert!(matches!(check(&file[..file.len() - 32], 100), Err(Damage::Size { size: 4096 })));
        assert!(matches!(check(&file[..file.len() - 512], 100), Err(Damage::Checksum { .. })));
        assert!(matches!(check(&[], 100), Err(Damage::Size { size: 0 })));
        assert!(matches!(check(&file[file.len() - 32..], 100), Err(Damage::Size { size: 32 })));
    }

    #[test]
    fn one_flipped_bit_is_seen_wherever_it_is() {
        let file = snapshot(8);
        for position in [0, 2000, 4095, 4096, file.len() - 1] {
            let mut damaged = file.clone();
            damaged[position] ^= 1;
            assert!(matches!(check(&damaged, 1000), Err(Damage::Checksum { .. })), "{position}");
        }
    }
}
