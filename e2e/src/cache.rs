//! The one folder outside the repository: built tools, and the state of running clusters. Deleting it costs only time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder that `FERRETCD_CACHE` names, else `$XDG_CACHE_HOME/ferretcd`, else `~/.cache/ferretcd`. Makes it.
    pub fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = match (variable("FERRETCD_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _, _) => cache,
            (None, Some(xdg), _) => xdg.join("ferretcd"),
            (None, None, Some(home)) => home.join(".cache/ferretcd"),
            (None, None, None) => {
                bail!("no cache folder: set FERRETCD_CACHE to an absolute path (HOME is not set either)")
            }
        };
        Self::at(root)
    }

    /// The cache at `root`, which must be an absolute path. Makes the folder.
    pub fn at(root: PathBuf) -> Result<Self> {
        if !root.is_absolute() {
            bail!("the cache folder {} is not an absolute path: set FERRETCD_CACHE to one", root.display());
        }
        fs::create_dir_all(&root).with_context(|| format!("making the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where built tools lie, one folder for each name, version and key.
    pub fn tools(&self) -> PathBuf {
        self.root.join("tools")
    }

    /// Where the cluster `name` keeps everything it has while it runs.
    pub fn run(&self, name: &str) -> PathBuf {
        self.root.join("run").join(name)
    }

    /// Takes the lock `name`, waiting for another process that holds it, and holds it until the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        if file.try_lock().is_err() {
            crate::progress::say(format!("waiting for another process that holds {}", path.display()));
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_folder_is_refused() {
        assert!(Cache::at("cache".into()).unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn a_lock_is_exclusive_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_path_buf()).unwrap();
        let held = cache.lock("x").unwrap();
        let second = File::open(folder.path().join("locks/x")).unwrap();
        assert!(second.try_lock().is_err());
        drop(held);
        assert!(second.try_lock().is_ok());
    }
}
