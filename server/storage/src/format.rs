//! The file that says what a data directory holds, so that no version opens one that it would misread.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The version of the layout of a data directory that this build writes, and the newest it can read.
///
/// 1: the first. 2: sled has blocks of revisions (`sled/block.rs`); a directory of version 1 is read as it is, and written on
/// in version 2.
pub const FORMAT_VERSION: u32 = 2;

/// The file's name inside the data directory.
pub const FORMAT_FILE: &str = "format";

/// A longer file is not ours: the real one has about 60 bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// Where etcd keeps its database, inside the folder `member` of a data directory of its own. No file of ours has that name.
const ETCD_DATABASE: &str = "snap/db";

/// What a data directory holds: the content of its format file, three lines of `name = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Version of the layout.
    pub version: u32,
    /// Name of the storage engine, e.g. `sled`.
    pub engine: String,
    /// Which program created the directory, for people; never compared.
    pub created_by: String,
}

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused a file operation.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A later version wrote the directory.
    #[error("{} has format version {found}, this build reads up to {supported}: start a newer version of the server",
        path.display(), supported = FORMAT_VERSION)]
    Newer {
        /// The format file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The directory was made with another engine.
    #[error("{} says that the data directory was made with the storage engine {found:?}, and {expected:?} is asked for: \
        start it with --storage-engine={found}, or, to change the engine, remove this member and add it anew with an empty \
        data directory (a cluster of one: restore a snapshot into an empty one)", path.display())]
    Engine {
        /// The format file.
        path: PathBuf,
        /// The engine it names.
        found: String,
        /// The engine asked for.
        expected: String,
    },
    /// The file is not a format file.
    #[error("{} is not a format file ({detail}): check that the data directory is the right one", path.display())]
    Malformed {
        /// The format file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory is that of an etcd server.
    #[error("{} belongs to etcd, whose files this server does not write: save a snapshot of that etcd (`etcdctl snapshot save`), and \
        restore it into another data directory (`ferretcd snapshot restore`)", path.display())]
    Etcd {
        /// The file by which it was recognised.
        path: PathBuf,
    },
}

impl Format {
    /// Checks that `dir` can be opened with `engine`, and marks it as ours if it is new. Returns what the file says: of an
    /// older version, that it is of this one from now on, since an older server must not open what this one writes.
    /// The caller holds the directory's lock (the log's) and has created the directory.
    pub fn ensure(dir: &Path, engine: &str, created_by: &str) -> Result<Format, FormatError> {
        if let Some(found) = Format::load(dir)? {
            if found.engine != engine {
                let path = dir.join(FORMAT_FILE);
                return Err(FormatError::Engine { path, found: found.engine, expected: engine.to_owned() });
            }
            let format = Format { version: FORMAT_VERSION, ..found };
            if found.version < FORMAT_VERSION {
                format.write(dir)?;
            }
            return Ok(format);
        }
        Format::refuse_etcd(dir)?;
        let format = Format { version: FORMAT_VERSION, engine: one_line(engine), created_by: one_line(created_by) };
        format.write(dir)?;
        Ok(format)
    }

    /// An error if `dir` is the folder `member` of an etcd's data directory. A member that starts asks before it writes anything:
    /// its own files would stand beside etcd's, some of which have names like its own.
    pub fn refuse_etcd(dir: &Path) -> Result<(), FormatError> {
        let etcd = dir.join(ETCD_DATABASE);
        match etcd.try_exists().map_err(failed("look for", &etcd))? {
            true => Err(FormatError::Etcd { path: etcd }),
            false => Ok(()),
        }
    }

    /// The format of `dir`, or None if it has no format file (it is new, or not ours).
    pub fn load(dir: &Path) -> Result<Option<Format>, FormatError> {
        let path = dir.join(FORMAT_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(failed("open", &path)(err)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(FormatError::Malformed { path, detail: format!("longer than {MAX_FILE_BYTES} bytes") });
        }
        Format::parse(&bytes, path).map(Some)
    }

    fn parse(bytes: &[u8], path: PathBuf) -> Result<Format, FormatError> {
        let malformed = |detail: &str| FormatError::Malformed { path: path.clone(), detail: detail.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("not text"))?;
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(" = "));
            lines.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
        };
        let version = field("version").ok_or_else(|| malformed("no version line"))?;
        let version: u32 = version.parse().map_err(|_| malformed("the version is not a number"))?;
        // Before the other lines, which a newer version may have changed.
        if version > FORMAT_VERSION {
            return Err(FormatError::Newer { path, found: version });
        }
        if version == 0 {
            return Err(malformed("there is no version 0"));
        }
        let engine = field("engine").ok_or_else(|| malformed("no engine line"))?;
        let created_by = field("created-by").ok_or_else(|| malformed("no created-by line"))?;
        Ok(Format { version, engine, created_by })
    }

    /// Writes the file so that a crash leaves all of it or none.
    fn write(&self, dir: &Path) -> Result<(), FormatError> {
        let Format { version, engine, created_by } = self;
        let text = format!("version = {version}\nengine = {engine}\ncreated-by = {created_by}\n");
        let (path, temporary) = (dir.join(FORMAT_FILE), dir.join("format.tmp"));
        let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
        file.write_all(text.as_bytes()).map_err(failed("write", &temporary))?;
        file.sync_all().map_err(failed("fsync", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename to", &path))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("fsync", dir))
    }
}

/// Both texts end up on a line of their own.
fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FormatError {
    let path = path.to_owned();
    move |source| FormatError::Io { attempt, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(content: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FORMAT_FILE), content).unwrap();
        dir
    }

    #[test]
    fn a_new_directory_is_marked_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Format::load(dir.path()).unwrap(), None);
        // What an interrupted earlier attempt leaves is no obstacle.
        fs::write(dir.path().join("format.tmp"), "ver").unwrap();
        let made = Format::ensure(dir.path(), "sled", "ferretcd\n1.2").unwrap();
        assert_eq!(made, Format { version: 2, engine: "sled".into(), created_by: "ferretcd 1.2".into() });
        assert!(!dir.path().join("format.tmp").exists());
        // A later build of the same format keeps the first one's mark.
        assert_eq!(Format::ensure(dir.path(), "sled", "ferretcd 2").unwrap(), made);
        assert_eq!(Format::load(dir.path()).unwrap(), Some(made));
    }

    #[test]
    fn the_files_of_all_releases_are_read_and_the_last_is_still_written_so() {
        let first = b"version = 1\nengine = sled\ncreated-by = ferretcd 0.1.0\n";
        let second = b"version = 2\nengine = sled\ncreated-by = ferretcd 0.1.0\n";
        for golden in [first, second] {
            let dir = dir_with(golden);
            assert_eq!(Format::load(dir.path()).unwrap().unwrap().engine, "sled");
            let found = Format::ensure(dir.path(), "sled", "ferretcd 9").unwrap();
            assert_eq!(found, Format { version: 2, engine: "sled".into(), created_by: "ferretcd 0.1.0".into() });
            assert_eq!(fs::read(dir.path().join(FORMAT_FILE)).unwrap(), second, "an older server must refuse it now");
        }
        let fresh = tempfile::tempdir().unwrap();
        Format::ensure(fresh.path(), "sled", "ferretcd 0.1.0").unwrap();
        assert_eq!(fs::read(fresh.path().join(FORMAT_FILE)).unwrap(), second);
    }

    #[test]
    fn a_newer_format_is_refused_whatever_else_it_says() {
        let dir = dir_with(b"version = 3\nsomething = new\n");
        let refused = Format::ensure(dir.path(), "sled", "x").unwrap_err();
        assert!(matches!(refused, FormatError::Newer { found: 3, .. }));
        assert!(refused.to_string().contains("newer version of the server"));
        assert_eq!(fs::read(dir.path().join(FORMAT_FILE)).unwrap(), b"version = 3\nsomething = new\n");
    }

    #[test]
    fn another_engine_is_refused() {
        let dir = dir_with(b"version = 1\nengine = redb\ncreated-by = x\n");
        assert!(
            matches!(Format::ensure(dir.path(), "sled", "x"), Err(FormatError::Engine { found, .. }) if found == "redb")
        );
    }

    #[test]
    fn anything_else_is_refused_and_left_alone() {
        let long = vec![b'x'; 5000];
        let bad: [&[u8]; 7] = [
            b"",
            b"\xff\xfe",
            b"version = one\n",
            b"version = 0\nengine = sled\ncreated-by = x\n",
            b"version = 1\nengine = sled\n",
            b"version = 1\ncreated-by = x\n",
            &long,
        ];
        for content in bad {
            let dir = dir_with(content);
            assert!(matches!(Format::ensure(dir.path(), "sled", "x"), Err(FormatError::Malformed { .. })));
            assert_eq!(fs::read(dir.path().join(FORMAT_FILE)).unwrap(), content);
        }
    }

    #[test]
    fn a_data_directory_of_etcd_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("snap")).unwrap();
        fs::write(dir.path().join(ETCD_DATABASE), "bolt").unwrap();
        assert!(matches!(Format::ensure(dir.path(), "sled", "x"), Err(FormatError::Etcd { .. })));
        assert!(!dir.path().join(FORMAT_FILE).exists());
    }

    #[test]
    fn fuzz_format_file() {
        let seeds = ["version = 1\nengine = sled\ncreated_by = ferretcd 1\n", "version = 2\n", "engine = x"];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "format_file").seeds(seeds);
        fuzz.words(&["version", "engine", "created_by", " = ", "\n", "4294967296"]).run(|bytes| {
            match Format::parse(bytes, PathBuf::from("f")) {
                Ok(format) => format!("{format:?}"),
                Err(e) => e.to_string(),
            }
        });
    }
}
