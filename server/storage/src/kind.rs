//! Which engine: the choice that a data directory is made with and keeps.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::engine::Engine;
use crate::error::Result;
use crate::{RedbEngine, SledEngine, home};

/// The engines on disk. A data directory's format file names the one that it was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// sled, a log-structured one.
    #[default]
    Sled,
    /// redb, a copy-on-write B-tree.
    Redb,
}

impl EngineKind {
    /// Its name in flags and in the format file.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Sled => "sled",
            EngineKind::Redb => "redb",
        }
    }

    /// Where the newest complete database of a place is: `base`, or `base.N` after the Nth [`Engine::rewrite`]. Deletes
    /// what interrupted rewrites left beside it. Call it before [`EngineKind::open`].
    pub fn newest(base: &Path) -> Result<PathBuf> {
        home::newest(base)
    }

    /// As [`EngineKind::newest`], and deletes nothing.
    pub fn look(base: &Path) -> Result<PathBuf> {
        home::look(base).map(|(newest, _)| newest)
    }

    /// Opens the database in the directory `path`, creating it if absent. `cache_bytes` bounds the engine's own cache.
    /// Errors as of [`SledEngine::open`] and [`RedbEngine::open`].
    pub fn open(self, path: &Path, cache_bytes: u64) -> Result<Arc<dyn Engine>> {
        Ok(match self {
            EngineKind::Sled => Arc::new(SledEngine::open(path, cache_bytes)?),
            EngineKind::Redb => Arc::new(RedbEngine::open(path, cache_bytes)?),
        })
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [EngineKind::Sled, EngineKind::Redb];
        let found = all.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("there is no storage engine {text:?}: use sled or redb"))
    }
}
