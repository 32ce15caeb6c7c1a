//! `--enable-log-rotation`: a log file that is renamed when it is full, as the library does it that etcd uses (lumberjack):
//! the same names, and the same five settings.

use chrono::{DateTime, Local, NaiveDateTime, Utc};
use flate2::{Compression, write::GzEncoder};
use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The time in a full file's name.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";
const MIB: u64 = 1 << 20;
/// What a size of 0 stands for, in MiB.
const SIZE_DEFAULT: u64 = 100;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// `--log-rotation-config-json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bytes that a file may have.
    pub max_bytes: u64,
    /// How long full files are kept; zero is for good.
    pub max_age: Duration,
    /// How many full files are kept; zero is all.
    pub max_backups: usize,
    /// Names carry local time and not UTC.
    pub local_time: bool,
    /// Full files are packed.
    pub compress: bool,
}

impl Settings {
    /// Reads the JSON, with etcd's errors; keys that it does not know are ignored.
    pub fn read(json: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| {
            let why = if e.is_eof() { "unexpected end of JSON input".to_owned() } else { e.to_string() };
            format!("improperly formatted log rotation config: {why}")
        })?;
        let mismatch = |value: &serde_json::Value, into: &str| {
            let what = match value {
                serde_json::Value::Null => "null".to_owned(),
                serde_json::Value::Bool(_) => "bool".to_owned(),
                serde_json::Value::Number(n) => format!("number {n}"),
                serde_json::Value::String(_) => "string".to_owned(),
                serde_json::Value::Array(_) => "array".to_owned(),
                serde_json::Value::Object(_) => "object".to_owned(),
            };
            format!("invalid log rotation config: json: cannot unmarshal {what} into {into}")
        };
        let map = value.as_object().ok_or_else(|| mismatch(&value, "Go value of type embed.logRotationConfig"))?;
        let field = |name: &str| map.get(name).filter(|v| !v.is_null());
        let place = |name: &str, kind: &str| format!("Go struct field logRotationConfig.Logger.{name} of type {kind}");
        let number = |name: &str| match field(name) {
            // Below zero is as good as not set, as in lumberjack.
            Some(v) => {
                v.as_i64().map(|n| u64::try_from(n).unwrap_or(0)).ok_or_else(|| mismatch(v, &place(name, "int")))
            }
            None => Ok(0),
        };
        let switch = |name: &str| match field(name) {
            Some(v) => v.as_bool().ok_or_else(|| mismatch(v, &place(name, "bool"))),
            None => Ok(false),
        };
        let size = match number("maxsize")? {
            0 => SIZE_DEFAULT,
            size => size,
        };
        Ok(Settings {
            max_bytes: size.saturating_mul(MIB),
            max_age: DAY.saturating_mul(u32::try_from(number("maxage")?).unwrap_or(u32::MAX)),
            max_backups: usize::try_from(number("maxbackups")?).unwrap_or(usize::MAX),
            local_time: switch("localtime")?,
            compress: switch("compress")?,
        })
    }
}

/// The file that is written now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Rotating(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    settings: Settings,
    open: Mutex<Open>,
    /// Held by the thread that removes and packs full files, one at a time.
    tidying: Mutex<()>,
    /// Whether there may be something to tidy that nobody has looked at.
    untidy: AtomicBool,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl Rotating {
    /// Goes on in the file if it is there.
    pub fn open(path: &Path, settings: Settings) -> io::Result<Self> {
        let open = Mutex::new(append(path)?);
        let inner =
            Inner { path: path.to_owned(), settings, open, tidying: Mutex::new(()), untidy: AtomicBool::default() };
        let rotating = Rotating(Arc::new(inner));
        rotating.tidy_aside();
        Ok(rotating)
    }

    fn tidy_aside(&self) {
        let inner = self.0.clone();
        inner.untidy.store(true, Ordering::SeqCst);
        // Without a thread, the next full file tries again.
        let _ = std::thread::Builder::new().name("log-rotation".to_owned()).spawn(move || {
            // Who has the turn looks again behind it: the one that looked at the start may be at it when the first file is full.
            while inner.untidy.load(Ordering::SeqCst) {
                let Some(_turn) = inner.tidying.try_lock() else { return };
                while inner.untidy.swap(false, Ordering::SeqCst) {
                    inner.tidy(Utc::now());
                }
            }
        });
    }
}

fn append(path: &Path) -> io::Result<Open> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Open { file, bytes })
}

impl Write for Rotating {
    /// Takes a whole line: it is never in two files.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.0.open.lock();
        if open.bytes > 0 && open.bytes + line.len() as u64 > self.0.settings.max_bytes {
            // Who took the file away to make room has done so. Where the machine allows no other, this one goes on, and the next
            // line tries again.
            let moved = match fs::rename(&self.0.path, self.0.full_name(Utc::now())) {
                Err(e) => e.kind() == io::ErrorKind::NotFound,
                Ok(()) => true,
            };
            if moved && let Ok(fresh) = append(&self.0.path) {
                *open = fresh;
                self.tidy_aside();
            }
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    /// The parts of the file's name around the time: `etcd-` and `.log`.
    fn around(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = self.path.extension().map_or(String::new(), |e| format!(".{}", e.to_string_lossy()));
        (format!("{}-", part(self.path.file_stem())), extension)
    }

    fn full_name(&self, now: DateTime<Utc>) -> PathBuf {
        let (before, after) = self.around();
        let stamp = match self.settings.local_time {
            true => now.with_timezone(&Local).format(STAMP).to_string(),
            false => now.format(STAMP).to_string(),
        };
        self.path.with_file_name(format!("{before}{stamp}{after}"))
    }

    /// Full files by the time in their names, the newest first, packed or not.
    fn full(&self) -> Vec<(NaiveDateTime, PathBuf)> {
        let (before, after) = self.around();
        let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let stamp = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            let name = name.strip_suffix(".gz").unwrap_or(name);
            NaiveDateTime::parse_from_str(name.strip_prefix(&before)?.strip_suffix(&after)?, STAMP).ok()
        };
        let paths = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut full: Vec<_> = paths.filter_map(|path| Some((stamp(&path)?, path))).collect();
        full.sort_by(|a, b| b.cmp(a));
        full
    }

    /// Removes what is too many or too old, and packs the rest. What fails is tried again with the next full file.
    fn tidy(&self, now: DateTime<Utc>) {
        let Settings { max_age, max_backups, local_time, compress, .. } = self.settings;
        let now = if local_time { now.with_timezone(&Local).naive_local() } else { now.naive_utc() };
        for (at, (stamp, path)) in self.full().into_iter().enumerate() {
            let age = now.signed_duration_since(stamp).to_std().unwrap_or_default();
            let too_many = max_backups > 0 && at >= max_backups;
            let too_old = !max_age.is_zero() && age > max_age;
            let is_packed = path.extension().is_some_and(|e| e == "gz");
            if too_many || too_old || (compress && !is_packed && pack(&path).is_ok()) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// Packs a file into another with `.gz` behind its name, which is there whole or not at all.
fn pack(path: &Path) -> io::Result<()> {
    let behind = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    let part = behind(".gz.part");
    let to = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::rename(part, behind(".gz"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn settings_are_read_and_refused_as_in_etcd() {
        let json = r#"{"maxsize": 1, "maxage": 2, "maxbackups": 3, "localtime": true, "compress": true, "nope": 5}"#;
        let all = Settings { max_bytes: MIB, max_age: DAY * 2, max_backups: 3, local_time: true, compress: true };
        assert_eq!(Settings::read(json), Ok(all));
        assert_eq!(Settings::read("{}"), Ok(Settings { max_bytes: 100 * MIB, ..Settings::default() }));
        for (json, error) in [
            ("{\"maxsize\": ", "improperly formatted log rotation config: unexpected end of JSON input"),
            (
                "{\"maxsize\": \"x\"}",
                "invalid log rotation config: json: cannot unmarshal string into Go struct field \
                 logRotationConfig.Logger.maxsize of type int",
            ),
            (
                "{\"compress\": 1}",
                "invalid log rotation config: json: cannot unmarshal number 1 into Go struct field \
                 logRotationConfig.Logger.compress of type bool",
            ),
        ] {
            assert_eq!(Settings::read(json), Err(error.to_owned()));
        }
    }

    fn rotating(dir: &Path, settings: Settings) -> Rotating {
        let inner = Inner {
            path: dir.join("etcd.log"),
            open: Mutex::new(append(&dir.join("etcd.log")).unwrap()),
            settings,
            tidying: Mutex::new(()),
            untidy: AtomicBool::default(),
        };
        Rotating(Arc::new(inner))
    }

    #[test]
    fn a_full_file_is_renamed_and_no_line_is_lost_or_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = rotating(dir.path(), Settings { max_bytes: 10, ..Settings::default() });
        for line in ["first\n", "2nd\n", "third\n", "one that is longer than any file\n", "last\n"] {
            log.write_all(line.as_bytes()).unwrap();
            // Two files of one millisecond would have one name.
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut full = log.0.full();
        full.reverse();
        let texts: Vec<String> = full.iter().map(|(_, path)| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(texts, ["first\n2nd\n", "third\n", "one that is longer than any file\n"]);
        assert_eq!(fs::read_to_string(dir.path().join("etcd.log")).unwrap(), "last\n");
        // A new process goes on where the old one was.
        rotating(dir.path(), Settings { max_bytes: 10, ..Settings::default() }).write_all(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etcd.log")).unwrap(), "last\nmore\n");
    }

    /// To make room, mostly.
    #[test]
    fn a_file_that_somebody_removed_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = rotating(dir.path(), Settings { max_bytes: 10, ..Settings::default() });
        log.write_all(b"first\n").unwrap();
        fs::remove_file(dir.path().join("etcd.log")).unwrap();
        log.write_all(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etcd.log")).unwrap(), "second\n");
        // Where it cannot be, what is written goes on where it did: a file is where the folder was.
        let moved = dir.path().with_extension("moved");
        fs::rename(dir.path(), &moved).unwrap();
        fs::write(dir.path(), "in the way").unwrap();
        log.write_all(b"third\n").unwrap();
        assert_eq!(fs::read_to_string(moved.join("etcd.log")).unwrap(), "second\nthird\n");
        fs::remove_file(dir.path()).unwrap();
        fs::rename(&moved, dir.path()).unwrap();
    }

    #[test]
    fn what_is_too_old_or_too_many_goes_and_the_rest_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { max_age: DAY * 2, max_backups: 2, compress: true, ..Settings::default() };
        let log = rotating(dir.path(), settings);
        let now = Utc::now();
        let make = |hours: i64| {
            let path = log.0.full_name(now - TimeDelta::hours(hours));
            fs::write(&path, hours.to_string()).unwrap();
        };
        fs::write(dir.path().join("etcd-other.log"), "somebody else's").unwrap();
        make(1);
        make(30);
        log.0.tidy(now);
        let left = || log.0.full().into_iter().map(|(_, path)| path).collect::<Vec<_>>();
        assert!(left().len() == 2 && left().iter().all(|p| p.extension().is_some_and(|e| e == "gz")), "{:?}", left());
        make(0);
        log.0.tidy(now);
        let hour = log.0.full_name(now - TimeDelta::hours(1));
        assert_eq!(left()[1], PathBuf::from(format!("{}.gz", hour.display())));
        assert_eq!(left().len(), 2, "{:?}", left());
        log.0.tidy(now + TimeDelta::minutes(47 * 60 + 30));
        assert_eq!(left().len(), 1, "{:?}", left());
        assert!(dir.path().join("etcd-other.log").exists());
    }
}
