//! Blocks: one stored value of sled that holds several records. sled's work for a write hardly depends on its length, and
//! revisions are written once, in order, so four to a value cost it less than half of what they cost one by one.

/// First byte of a stored block. Then each record, in key order: `key length (u8) | key | value length (u16) | value`.
pub(super) const BLOCK: u8 = 2;

/// The longest block. Longer ones save no more work, and sled writes all of a block again when one of its records is
/// deleted; shorter than a piece, so that a page stays as small as with those.
const MAX_BYTES: usize = 2048;

/// A key and its value.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// How many bytes of a block a record takes, or None if it is too long for one: at least two shall fit.
fn size(key: &[u8], value: &[u8]) -> Option<usize> {
    let size = 1 + key.len() + 2 + value.len();
    (key.len() <= usize::from(u8::MAX) && size <= (MAX_BYTES - 1) / 2).then_some(size)
}

/// Where the first block of `records` ends: how many of them it holds, at least one.
pub(super) fn first(records: &[Pair<'_>]) -> usize {
    let mut bytes = 1;
    let fits = records.iter().take_while(|(key, value)| {
        bytes += size(key, value).unwrap_or(MAX_BYTES);
        bytes <= MAX_BYTES
    });
    fits.count().max(1)
}

/// A block of `records`, which are in key order; None if they do not fit into one.
pub(super) fn encode(records: &[Pair<'_>]) -> Option<Vec<u8>> {
    let sizes: Option<Vec<usize>> = records.iter().map(|(key, value)| size(key, value)).collect();
    let bytes = 1 + sizes?.iter().sum::<usize>();
    if bytes > MAX_BYTES {
        return None;
    }
    let mut block = Vec::with_capacity(bytes);
    block.push(BLOCK);
    for (key, value) in records {
        block.push(u8::try_from(key.len()).ok()?);
        block.extend_from_slice(key);
        block.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
        block.extend_from_slice(value);
    }
    Some(block)
}

/// The records of a stored block. An error says that it is none: its bytes are damaged.
pub(super) fn records(stored: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, Damaged>> {
    let mut rest = match stored.split_first() {
        Some((&BLOCK, records)) if !records.is_empty() => Ok(records),
        _ => Err(Damaged),
    };
    std::iter::from_fn(move || match rest {
        Ok([]) => None,
        Ok(bytes) => {
            let read = take(bytes);
            rest = read.map_or(Ok(&[]), |(_, left)| Ok(left));
            Some(read.map(|(pair, _)| pair).ok_or(Damaged))
        }
        Err(Damaged) => {
            rest = Ok(&[]);
            Some(Err(Damaged))
        }
    })
}

/// What is stored is not what [`encode`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

fn take(bytes: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (key, rest) = rest.split_at_checked(usize::from(length))?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some(((key, value), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stored: &[u8]) -> Result<Vec<Pair<'_>>, Damaged> {
        records(stored).collect()
    }

    #[test]
    fn what_was_put_into_a_block_is_read_from_it() {
        let pairs: [Pair<'_>; 3] = [(b"ka", b"1"), (b"kb", b""), (b"kc", &[7; 900])];
        assert_eq!(first(&pairs), 3);
        let block = encode(&pairs).unwrap();
        assert_eq!(read(&block).unwrap(), pairs);
        assert_eq!(block[..9], [BLOCK, 2, b'k', b'a', 0, 1, b'1', 2, b'k'], "this form is on disks");
    }

    #[test]
    fn a_block_ends_where_it_is_full_and_a_long_record_is_alone() {
        let value = [1; 400];
        let pairs: Vec<Pair<'_>> = (0..9).map(|_| (&b"k"[..], &value[..])).collect();
        let count = first(&pairs);
        assert_eq!(count, (MAX_BYTES - 1) / 404);
        assert!(encode(&pairs[..count]).unwrap().len() <= MAX_BYTES);
        assert_eq!(encode(&pairs[..count + 1]), None);
        let long = [1; MAX_BYTES / 2];
        let with_long: [Pair<'_>; 3] = [(b"ka", b"1"), (b"kb", &long), (b"kc", b"1")];
        assert_eq!((first(&with_long), first(&with_long[1..])), (1, 1));
        assert_eq!(encode(&with_long[1..2]), None);
    }

    #[test]
    fn a_damaged_block_is_noticed_or_read_as_something_else_and_never_a_panic() {
        let block = encode(&[(b"ka", b"1"), (b"kb", b"22")]).unwrap();
        // But for an end between two records: sled's own checksums see that.
        for end in (0..block.len()).filter(|end| *end != 7) {
            assert_eq!(read(&block[..end]), Err(Damaged), "{end} bytes");
        }
        for at in 0..block.len() {
            for bit in 0..8 {
                let mut flipped = block.clone();
                flipped[at] ^= 1 << bit;
                let _ = read(&flipped);
            }
        }
        assert_eq!(read(&[]), Err(Damaged));
        assert_eq!(read(&[BLOCK]), Err(Damaged));
        assert_eq!(read(&[0, 1, 2]), Err(Damaged));
    }
}
