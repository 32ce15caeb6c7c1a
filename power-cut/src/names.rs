//! Folders as maps from names to inodes, in which changes can be taken back, and from which a tree can be built.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::inode;
use crate::journal::What;

/// A tree of names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub root: u64,
    dirs: BTreeMap<u64, BTreeMap<String, u64>>,
    /// Where the content of each file is.
    pub files: BTreeMap<u64, PathBuf>,
}

impl Names {
    pub(crate) fn empty(root: u64) -> Names {
        Names { root, dirs: BTreeMap::from([(root, BTreeMap::new())]), files: BTreeMap::new() }
    }

    /// What is at a path now.
    pub(crate) fn walk(root: &Path) -> Names {
        let mut names = Names::empty(inode(root));
        names.walk_into(root);
        names
    }

    fn walk_into(&mut self, dir: &Path) {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let number = inode(&path);
            entries.insert(path.file_name().unwrap().to_string_lossy().into_owned(), number);
            match path.is_dir() {
                true => self.walk_into(&path),
                false => drop(self.files.insert(number, path)),
            }
        }
        self.dirs.insert(inode(dir), entries);
    }

    /// Adds the files whose names are gone.
    pub(crate) fn add_buried(&mut self, notes: &Path) {
        for entry in fs::read_dir(notes).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if let Some(number) = name.strip_prefix("inode.") {
                self.files.entry(number.parse().unwrap()).or_insert(path);
            }
        }
    }

    pub(crate) fn redo(&mut self, inode: u64, what: &What) {
        match what {
            What::Add { dir, name, is_dir } => {
                self.put(*dir, name, inode);
                if *is_dir {
                    self.dirs.entry(inode).or_default();
                }
            }
            What::Remove { dir, name, .. } => self.take(*dir, name, inode),
            What::Rename { from_dir, from, dir, to, .. } => {
                self.take(*from_dir, from, inode);
                self.put(*dir, to, inode);
            }
            _ => {}
        }
    }

    pub(crate) fn undo(&mut self, inode: u64, what: &What) {
        match what {
            What::Add { dir, name, .. } => self.take(*dir, name, inode),
            What::Remove { dir, name, is_dir } => {
                self.put(*dir, name, inode);
                if *is_dir {
                    self.dirs.entry(inode).or_default();
                }
            }
            What::Rename { from_dir, from, dir, to, replaced } => {
                self.take(*dir, to, inode);
                if let Some(replaced) = replaced {
                    self.put(*dir, to, *replaced);
                }
                self.put(*from_dir, from, inode);
            }
            _ => {}
        }
    }

    fn put(&mut self, dir: u64, name: &str, inode: u64) {
        self.dirs.entry(dir).or_default().insert(name.to_owned(), inode);
    }

    fn take(&mut self, dir: u64, name: &str, inode: u64) {
        let entries = self.dirs.entry(dir).or_default();
        if entries.get(name) == Some(&inode) {
            entries.remove(name);
        }
    }

    /// Whether both say the same of all that can be reached from the root. `unsure` changes may be done and not told: a
    /// name that came, or one that went, or both.
    pub(crate) fn compare(&self, there: &Names, unsure: usize) -> Result<(), String> {
        let (told, found) = (self.paths(), there.paths());
        let unseen: Vec<_> = found.iter().filter(|path| !told.contains(path)).collect();
        let missing: Vec<_> = told.iter().filter(|path| !found.contains(path)).collect();
        match unseen.len() <= unsure && missing.len() <= unsure {
            true => Ok(()),
            false => Err(format!("names were changed unseen: {unseen:?} are there, {missing:?} are not")),
        }
    }

    fn paths(&self) -> Vec<(PathBuf, u64)> {
        let mut paths = Vec::new();
        let mut waiting = vec![(PathBuf::new(), self.root)];
        while let Some((path, inode)) = waiting.pop() {
            if let Some(entries) = self.dirs.get(&inode) {
                waiting.extend(entries.iter().map(|(name, inode)| (path.join(name), *inode)));
            }
            paths.push((path, inode));
        }
        paths.sort();
        paths
    }

    /// Makes the tree at `root`, in place of what is there.
    pub(crate) fn build(&self, root: &Path) {
        let (fresh, old) = (root.with_extension("fresh"), root.with_extension("old"));
        for (path, inode) in self.paths() {
            let target = if path.as_os_str().is_empty() { fresh.clone() } else { fresh.join(&path) };
            match (self.dirs.contains_key(&inode), self.files.get(&inode)) {
                (true, _) => {
                    fs::create_dir(&target).unwrap();
                    if let Ok(was) = fs::metadata(root.join(&path)) {
                        fs::set_permissions(&target, was.permissions()).unwrap();
                    }
                }
                (false, Some(content)) => fs::hard_link(content, &target).unwrap(),
                (false, None) => panic!("{} has no content", path.display()),
            }
        }
        fs::rename(root, &old).unwrap();
        fs::rename(&fresh, root).unwrap();
        fs::remove_dir_all(&old).unwrap();
    }
}
