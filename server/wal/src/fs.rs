//! What the log needs of a file system, so that tests and simulators can put their own beneath it: [`OsFs`] is the real
//! one, [`mem::MemFs`] models power loss.

pub mod mem;
mod os;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use os::OsFs;

/// A file system. All paths are of one kind: a file in a directory, never a link.
pub trait Fs: Send + Sync {
    /// Creates the directory and its parents. Fine if it exists.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Takes an exclusive lock on the file, which is created if need be; dropping the guard releases it, and so does
    /// the end of the process. [`io::ErrorKind::WouldBlock`] if another holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Creates a file, empty; an error if it exists. Its name is durable after [`Fs::sync_dir`].
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames within one directory, over what is there. Open files stay valid. Durable after [`Fs::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Open files stay valid. Durable after [`Fs::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Names of the files in a directory, in any order. Names that are not UTF-8 are left out: none of ours.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in the directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Offsets and lengths are bytes. Calls may come from several threads.
pub trait File: Send + Sync {
    /// Writes all of `bytes` at `offset`; the file grows as needed. After an error any part may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `bytes` from `offset`; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Makes the content durable, and the length if it is needed to read the content. After an error nobody knows what
    /// is durable, and a second call may succeed without having written anything: do not retry.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the content and all metadata durable. As [`File::sync_data`] after an error.
    fn sync_all(&self) -> io::Result<()>;

    /// The file's length.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file, or extends it by zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
}

/// A lock that is held until dropped.
pub trait Lock: Send + Sync {}
