//! The keys of etcd's bucket `key`: revisions, in an encoding whose byte order is their order.

/// A revision as a key of bucket `key`: which change of the store its record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevisionKey {
    /// Main revision, not negative.
    pub main: i64,
    /// Number of the change inside the main revision, not negative.
    pub sub: i64,
    /// Whether the change is a deletion; its key is marked with a trailing `t`.
    pub tombstone: bool,
}

/// A key of bucket `key` that is no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionKeyError {
    /// A revision has 17 bytes, that of a deletion 18.
    #[error("a revision key has 17 or 18 bytes, not {0}")]
    Length(usize),
    /// The main and the sub revision are separated by `_`.
    #[error("a revision key has '_' at byte 8, not {0:#04x}")]
    Separator(u8),
    /// The mark of a deletion is `t`.
    #[error("a revision key of 18 bytes ends in 't', not {0:#04x}")]
    Mark(u8),
    /// Revisions are not negative.
    #[error("a negative revision: main {main}, sub {sub}")]
    Negative {
        /// Main revision found.
        main: i64,
        /// Sub revision found.
        sub: i64,
    },
}

impl RevisionKey {
    /// Bytes of the longest encoding.
    pub const MAX_BYTES: usize = 18;

    /// Writes the 17 bytes of a put or the 18 of a deletion into `buf`, and returns them.
    pub fn encode<'b>(&self, buf: &'b mut [u8; Self::MAX_BYTES]) -> &'b [u8] {
        buf[..8].copy_from_slice(&self.main.to_be_bytes());
        buf[8] = b'_';
        buf[9..17].copy_from_slice(&self.sub.to_be_bytes());
        buf[17] = b't';
        &buf[..17 + usize::from(self.tombstone)]
    }

    /// The revision in the bytes of a key.
    pub fn decode(key: &[u8]) -> Result<Self, RevisionKeyError> {
        let length = || RevisionKeyError::Length(key.len());
        let (main, rest) = key.split_first_chunk().ok_or_else(length)?;
        let (separator, rest) = rest.split_first().ok_or_else(length)?;
        let (sub, mark) = rest.split_first_chunk().ok_or_else(length)?;
        if *separator != b'_' {
            return Err(RevisionKeyError::Separator(*separator));
        }
        let tombstone = match mark {
            [] => false,
            [b't'] => true,
            [other] => return Err(RevisionKeyError::Mark(*other)),
            _ => return Err(length()),
        };
        let (main, sub) = (i64::from_be_bytes(*main), i64::from_be_bytes(*sub));
        if main < 0 || sub < 0 {
            return Err(RevisionKeyError::Negative { main, sub });
        }
        Ok(Self { main, sub, tombstone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_etcds() {
        let mut buf = [0; RevisionKey::MAX_BYTES];
        let put = RevisionKey { main: 0x0102, sub: 3, tombstone: false };
        assert_eq!(put.encode(&mut buf), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        let delete = RevisionKey { tombstone: true, ..put };
        assert_eq!(delete.encode(&mut buf), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
        for key in [put, delete, RevisionKey { main: i64::MAX, sub: i64::MAX, tombstone: true }] {
            assert_eq!(RevisionKey::decode(key.encode(&mut buf)), Ok(key));
        }
    }

    #[test]
    fn the_order_of_the_bytes_is_the_order_of_the_revisions() {
        let mut keys = Vec::new();
        for main in [0, 1, 255, 256, i64::MAX] {
            for sub in [0, 1, 256] {
                for tombstone in [false, true] {
                    keys.push(RevisionKey { main, sub, tombstone });
                }
            }
        }
        let bytes: Vec<_> = keys.iter().map(|key| key.encode(&mut [0; 18]).to_vec()).collect();
        assert!(bytes.is_sorted() && keys.is_sorted());
    }

    #[test]
    fn what_is_no_revision_is_refused() {
        let good = b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0t";
        for len in (0..17).chain([19, 100]) {
            let mut key = good.to_vec();
            key.resize(len, b't');
            assert_eq!(RevisionKey::decode(&key), Err(RevisionKeyError::Length(len)));
        }
        let with = |at: usize, byte: u8| {
            let mut key = *good;
            key[at] = byte;
            RevisionKey::decode(&key)
        };
        assert_eq!(with(8, b'-'), Err(RevisionKeyError::Separator(b'-')));
        assert_eq!(with(17, b'x'), Err(RevisionKeyError::Mark(b'x')));
        assert!(matches!(with(0, 0x80), Err(RevisionKeyError::Negative { .. })));
        assert!(matches!(with(9, 0xff), Err(RevisionKeyError::Negative { .. })));
    }
}
