//! Where page boundaries fall: an online B+ tree builder that sees sizes only, so that the pass that measures and the
//! pass that writes cannot disagree.
//!
//! Pages leave in post-order: a branch page follows the last of its children, because only then all their numbers are
//! known. So the open pages are one leaf and one branch per level, whatever the number of records.

use crate::format::{ELEMENT, PAGE_HEADER, PAGE_SIZE, PageId};

/// Takes finished pages, numbers them, and (when writing) prints them.
pub(crate) trait Press<K> {
    /// Why a page could not be taken.
    type Error;

    /// The open leaf is complete and fills `pages` pages: every record admitted since the last call belongs to it.
    /// Returns the number of its first page.
    fn leaf(&mut self, pages: u64) -> Result<PageId, Self::Error>;

    /// A branch page of `pages` pages with these children, each with its first key.
    fn branch(&mut self, pages: u64, children: &[(K, PageId)]) -> Result<PageId, Self::Error>;
}

/// A key as far as the shape of the tree goes.
pub(crate) trait KeySize {
    fn size(&self) -> usize;
}

/// While measuring, a key is its length.
impl KeySize for usize {
    fn size(&self) -> usize {
        *self
    }
}

impl KeySize for bytes::Bytes {
    fn size(&self) -> usize {
        self.len()
    }
}

/// The open pages of one bucket.
pub(crate) struct Tree<K> {
    /// First key of the open leaf; `None` while it is empty.
    first: Option<K>,
    /// Bytes of the open leaf, with its header.
    used: usize,
    /// The open branch pages, lowest level first.
    levels: Vec<Level<K>>,
}

/// One open branch page, and at most one child beyond it.
struct Level<K> {
    children: Vec<(K, PageId)>,
    /// The leading children that make up the page. One more may wait behind them: whether it starts the next page or
    /// must be joined by a neighbour (a branch page needs two children, or bbolt panics when it rebalances) shows only
    /// when its successor comes or does not.
    fitting: usize,
    /// Bytes of the fitting children, with the page header.
    used: usize,
}

/// Fewest children of a branch page, even if they do not fit into one page.
const MIN_CHILDREN: usize = 2;

impl<K: KeySize> Tree<K> {
    pub fn new() -> Self {
        Self { first: None, used: PAGE_HEADER, levels: Vec::new() }
    }

    /// Admits the next record of the bucket to the open leaf, after closing that leaf when it is full. `key` is called
    /// when the record is the first of its leaf.
    ///
    /// A leaf grows while the record fits into the pages it needs anyway, so the slack behind an oversized value is used.
    /// That also bounds the records of a leaf to two pages of the smallest ones (below 500), far from bbolt's 65535.
    pub fn push<P: Press<K>>(
        &mut self,
        key_len: usize,
        value_len: usize,
        key: impl FnOnce() -> K,
        press: &mut P,
    ) -> Result<(), P::Error> {
        let need = ELEMENT + key_len + value_len;
        if self.used + need > self.used.next_multiple_of(PAGE_SIZE) {
            self.close_leaf(press)?;
        }
        self.first.get_or_insert_with(key);
        self.used += need;
        Ok(())
    }

    /// Closes every open page and returns the root's number. A tree without records is one empty leaf.
    pub fn finish<P: Press<K>>(mut self, press: &mut P) -> Result<PageId, P::Error> {
        if self.levels.is_empty() {
            return press.leaf(pages_of(self.used));
        }
        self.close_leaf(press)?;
        let mut level = 0;
        loop {
            let Level { mut children, fitting, .. } = std::mem::replace(&mut self.levels[level], Level::new());
            // The waiting child takes a neighbour along, unless that would rob the page before it.
            let last = match children.len() > fitting && fitting > MIN_CHILDREN {
                true => children.split_off(fitting - 1),
                false => Vec::new(),
            };
            let page = print(&children, press)?;
            if last.is_empty() && level + 1 == self.levels.len() {
                return Ok(page);
            }
            let up = first_key(children).map(|key| (key, page));
            self.add(level + 1, up, press)?;
            if !last.is_empty() {
                let page = print(&last, press)?;
                let up = first_key(last).map(|key| (key, page));
                self.add(level + 1, up, press)?;
            }
            level += 1;
        }
    }

    fn close_leaf<P: Press<K>>(&mut self, press: &mut P) -> Result<(), P::Error> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let page = press.leaf(pages_of(self.used))?;
        self.used = PAGE_HEADER;
        self.add(0, Some((first, page)), press)
    }

    /// Adds a child to a level, and a completed branch page to the level above, and so on up.
    fn add<P: Press<K>>(
        &mut self,
        mut level: usize,
        mut child: Option<(K, PageId)>,
        press: &mut P,
    ) -> Result<(), P::Error> {
        while let Some(next) = child.take() {
            if level == self.levels.len() {
                self.levels.push(Level::new());
            }
            let Some(full) = self.levels[level].add(next) else { break };
            let page = print(&full, press)?;
            child = first_key(full).map(|key| (key, page));
            level += 1;
        }
        Ok(())
    }
}

impl<K: KeySize> Level<K> {
    fn new() -> Self {
        Self { children: Vec::new(), fitting: 0, used: PAGE_HEADER }
    }

    /// Adds a child; returns the children of a page that is now complete.
    fn add(&mut self, child: (K, PageId)) -> Option<Vec<(K, PageId)>> {
        let need = ELEMENT + child.0.size();
        self.children.push(child);
        let waiting = self.children.len() - self.fitting;
        if waiting == 1 && (self.fitting < MIN_CHILDREN || self.used + need <= PAGE_SIZE) {
            self.fitting += 1;
            self.used += need;
        }
        if waiting < MIN_CHILDREN {
            return None;
        }
        // Two wait, enough for a page of their own.
        let rest = self.children.split_off(self.fitting);
        self.fitting = rest.len();
        self.used = size_of(&rest);
        Some(std::mem::replace(&mut self.children, rest))
    }
}

fn print<K: KeySize, P: Press<K>>(children: &[(K, PageId)], press: &mut P) -> Result<PageId, P::Error> {
    press.branch(pages_of(size_of(children)), children)
}

fn first_key<K>(children: Vec<(K, PageId)>) -> Option<K> {
    children.into_iter().next().map(|(key, _)| key)
}

fn size_of<K: KeySize>(children: &[(K, PageId)]) -> usize {
    PAGE_HEADER + children.iter().map(|(key, _)| ELEMENT + key.size()).sum::<usize>()
}

fn pages_of(bytes: usize) -> u64 {
    bytes.div_ceil(PAGE_SIZE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// Counts what leaves the press.
    #[derive(Default)]
    struct Tally {
        next: PageId,
        leaves: usize,
        branches: Vec<usize>,
    }

    impl Press<usize> for Tally {
        type Error = Infallible;

        fn leaf(&mut self, pages: u64) -> Result<PageId, Infallible> {
            self.leaves += 1;
            self.next += pages;
            Ok(self.next - pages)
        }

        fn branch(&mut self, pages: u64, children: &[(usize, PageId)]) -> Result<PageId, Infallible> {
            self.branches.push(children.len());
            self.next += pages;
            Ok(self.next - pages)
        }
    }

    fn build(records: usize, key: usize, value: usize) -> Tally {
        let (mut tree, mut tally) = (Tree::new(), Tally::default());
        for _ in 0..records {
            let Ok(()) = tree.push(key, value, || key, &mut tally);
        }
        let Ok(root) = tree.finish(&mut tally);
        assert!(root < tally.next);
        tally
    }

    #[test]
    fn no_branch_page_has_fewer_than_two_children_whatever_the_count() {
        // One record per leaf, 4 or 5 children per branch: every count up to several levels, so every kind of end.
        for (key, per_branch) in [(1000, 4), (800, 5), (17, 123), (3000, 2)] {
            for leaves in 1..700 {
                let tally = build(leaves, key, 4000 - key);
                assert_eq!(tally.leaves, leaves);
                assert!(
                    tally.branches.iter().all(|n| (2..=per_branch.max(3)).contains(n)),
                    "{leaves}: {:?}",
                    tally.branches
                );
                // Every page but the root has exactly one parent.
                let pages = leaves + tally.branches.len();
                assert_eq!(tally.branches.iter().sum::<usize>(), pages - 1, "{leaves} leaves of keys of {key} bytes");
            }
        }
    }

    #[test]
    fn leaves_are_full_and_the_slack_behind_a_large_value_is_used() {
        // 4080 bytes for records of 16 + 17 + 35: sixty per page.
        assert_eq!(build(6000, 17, 35).leaves, 100);
        assert_eq!(build(1, 17, 5000).next, 2);
        let (mut tree, mut tally) = (Tree::new(), Tally::default());
        for value in [5000, 1000, 1000, 1000, 1000] {
            let Ok(()) = tree.push(17, value, || 17, &mut tally);
        }
        let Ok(_) = tree.finish(&mut tally);
        assert_eq!((tally.leaves, tally.next), (2, 4), "5000 and three times 1000 share two pages");
    }
}
