//! Logs in etcd's form (one JSON object a line with level, ts, caller, msg and the fields), and what a panic does.

mod journal;
mod rotation;

use crate::flags::Flags;
use crate::telemetry::journal::Journal;
use crate::telemetry::rotation::Rotating;
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriter};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Sets the log up. An unknown level or format is an error.
pub fn init(flags: &Flags) -> Result<(), String> {
    let filter = match flags.log_level.as_str() {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" | "dpanic" | "panic" | "fatal" => LevelFilter::ERROR,
        other => return Err(format!("unrecognized level: {other:?}; use debug, info, warn, error, panic or fatal")),
    };
    // openraft tells its whole life at info; what matters of it is logged by our own crates.
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(filter)
        .with_target("openraft", filter.min(LevelFilter::ERROR))
        // Its errors are answers to our own calls, of which most come from its end: a leader that stops would log an error each time.
        .with_target("openraft::raft", LevelFilter::OFF)
        .with_target("h2", filter.min(LevelFilter::WARN))
        .with_target("hyper", filter.min(LevelFilter::WARN))
        .with_target("rustls", filter.min(LevelFilter::WARN))
        .with_target("sled", filter.min(LevelFilter::WARN));
    let format = match flags.log_format.as_str() {
        "json" => Format::Json,
        "console" => Format::Console,
        other => return Err(format!("unknown log format: {other}, supported values json, console")),
    };
    let rotation = match flags.enable_log_rotation {
        true => Some(rotation(&flags.log_outputs.0, &flags.log_rotation_config_json)?),
        false => None,
    };
    let writer = outputs(&flags.log_outputs.0, rotation.as_ref())?;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let layer = tracing_subscriber::fmt::layer().event_format(format).with_writer(Outside(writer));
    // A second call is a refusal being reported; the log is there already then.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    Ok(())
}

/// Names of outputs that are no files.
const STREAMS: [&str; 5] = ["default", "stderr", "/dev/stderr", "stdout", "/dev/stdout"];
const JOURNAL: &str = "systemd/journal";

/// Rotation wants one file, beside which there may be other outputs.
fn rotation(names: &[String], json: &str) -> Result<rotation::Settings, String> {
    if names.iter().filter(|name| !STREAMS.contains(&name.as_str())).count() != 1 {
        return Err("--log-outputs requires a single file path when --log-rotate-config-json is defined".to_owned());
    }
    rotation::Settings::read(json)
}

/// `--log-outputs`: each name once, and standard error for want of another.
fn outputs(names: &[String], rotation: Option<&rotation::Settings>) -> Result<BoxMakeWriter, String> {
    use tracing_subscriber::fmt::writer::MakeWriterExt;
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    if names.len() > 1 && names.iter().any(|n| n == "default") {
        return Err(format!("multi logoutput for {:?} is not supported yet", "default"));
    }
    if names.len() > 1 && names.iter().any(|n| n == JOURNAL) {
        let given: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
        return Err(format!(
            "running with systemd/journal but other '--log-outputs' values ([{}]) are configured with 'default'; \
             override 'default' value with something else",
            given.join(" ")
        ));
    }
    let mut all: Option<BoxMakeWriter> = None;
    for name in &names {
        let one = match name.as_str() {
            "default" | "stderr" | "/dev/stderr" => BoxMakeWriter::new(io::stderr),
            "stdout" | "/dev/stdout" => BoxMakeWriter::new(io::stdout),
            JOURNAL => {
                let journal = Journal::open(Path::new(journal::SOCKET))?;
                BoxMakeWriter::new(move || journal.clone())
            }
            path => file(path, rotation).map_err(|e| {
                let why = match e.kind() {
                    io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                    io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                    _ => e.to_string(),
                };
                format!("open sink {path:?}: open {path}: {why}")
            })?,
        };
        all = Some(match all {
            Some(others) => BoxMakeWriter::new(others.and(one)),
            None => one,
        });
    }
    Ok(all.unwrap_or_else(|| BoxMakeWriter::new(io::stderr)))
}

fn file(path: &str, rotation: Option<&rotation::Settings>) -> io::Result<BoxMakeWriter> {
    if let Some(settings) = rotation {
        let file = Rotating::open(Path::new(path), settings.clone())?;
        return Ok(BoxMakeWriter::new(move || file.clone()));
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(BoxMakeWriter::new(move || Appender(file.try_clone())))
}

/// Writes lines where they hold no async worker. A full pipe and a disk that is busy take nothing for seconds, which is when
/// members have most to say, and a worker that waits for them keeps to itself the task that it would run next: tokio's other
/// workers cannot take that from it, be it the heartbeats to a member.
struct Outside<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Outside<W> {
    type Writer = Outside<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Outside(self.0.make_writer())
    }

    fn make_writer_for(&'a self, of: &tracing::Metadata<'_>) -> Self::Writer {
        Outside(self.0.make_writer_for(of))
    }
}

impl<W: Write> Write for Outside<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        ferretcd_raft::blocking(|| self.0.write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        ferretcd_raft::blocking(|| self.0.flush())
    }
}

/// A file of the log, opened once and written in whole lines.
struct Appender(io::Result<std::fs::File>);

impl Write for Appender {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Ok(file) => file.write(line),
            Err(e) => Err(io::Error::new(e.kind(), "the log's file")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// etcd's two forms of a line.
#[derive(Clone, Copy, Debug)]
enum Format {
    Json,
    Console,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let meta = event.metadata();
        let level = match *meta.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let file = meta.file().unwrap_or_default();
        let mut near = file.rsplitn(3, '/');
        let (last, folder) = (near.next().unwrap_or_default(), near.next().unwrap_or_default());
        let caller = format!("{folder}/{last}:{}", meta.line().unwrap_or_default());
        match self {
            Format::Json => {
                write!(
                    out,
                    "{{\"level\":\"{level}\",\"ts\":\"{time}\",\"caller\":{},\"msg\":{}",
                    quoted(&caller),
                    quoted(&line.message)
                )?;
                if !line.fields.is_empty() {
                    write!(out, ",{}", line.fields)?;
                }
                writeln!(out, "}}")
            }
            Format::Console => {
                write!(out, "{time}\t{level}\t{caller}\t{}", line.message)?;
                if !line.fields.is_empty() {
                    write!(out, "\t{{{}}}", line.fields)?;
                }
                writeln!(out)
            }
        }
    }
}

/// What an event says: its message, and its fields as the inside of a JSON object.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn add(&mut self, field: &Field, json: &str) {
        if field.name() == "message" {
            return;
        }
        let comma = if self.fields.is_empty() { "" } else { "," };
        let _ = write!(self.fields, "{comma}{}:{json}", quoted(field.name()));
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.add(field, &quoted(&text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, &quoted(value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A broken invariant stops the member instead of leaving it half alive: the log has everything that was acknowledged.
/// The engine's own panics while it opens a damaged file are caught there and lead to a rebuild.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if std::thread::current().name() != Some(ferretcd_node::boot::ENGINE_OPENER) {
            std::process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn outputs_that_do_not_go_together_are_refused_in_etcds_words() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let told = |list: &[&str]| outputs(&names(list), None).map(drop).unwrap_err();
        assert_eq!(told(&["stdout", "default"]), "multi logoutput for \"default\" is not supported yet");
        assert_eq!(
            told(&["systemd/journal", "stderr"]),
            "running with systemd/journal but other '--log-outputs' values ([\"stderr\" \"systemd/journal\"]) are \
             configured with 'default'; override 'default' value with something else"
        );
        assert_eq!(told(&["/no/such/x"]), "open sink \"/no/such/x\": open /no/such/x: no such file or directory");
        for list in [&["default"][..], &["stderr", "stdout"], &["/tmp/a", "/tmp/b"]] {
            let error = "--log-outputs requires a single file path when --log-rotate-config-json is defined";
            assert_eq!(rotation(&names(list), "{}").unwrap_err(), error);
        }
        assert_eq!(rotation(&names(&["stderr", "/tmp/a"]), "{}").map(|s| s.max_bytes), Ok(100 << 20));
    }

    fn line(format: Format) -> String {
        let sink = Sink::default();
        let to = sink.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(format).with_writer(move || to.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!("remote-addr" = "1.2.3.4:5", n = 7, on = true, who = %"a\"b", "rejected\tit");
        });
        String::from_utf8(sink.0.lock().clone()).unwrap()
    }

    #[test]
    fn lines_have_etcds_keys_in_etcds_order() {
        let json = line(Format::Json);
        assert!(json.starts_with("{\"level\":\"warn\",\"ts\":\"2"), "{json}");
        assert!(json.contains("Z\",\"caller\":\"src/telemetry.rs:"), "{json}");
        let end = r#","msg":"rejected\tit","remote-addr":"1.2.3.4:5","n":7,"on":true,"who":"a\"b"}"#;
        assert!(json.ends_with(&format!("{end}\n")), "{json}");
        let console = line(Format::Console);
        assert!(console.contains("Z\twarn\tsrc/telemetry.rs:"), "{console}");
    }

    /// Takes a line once somebody else has done something, for which it waits a while.
    struct Stuck(std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<bool>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.1.send(self.0.recv_timeout(std::time::Duration::from_secs(10)).is_ok());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_nobody_takes_holds_up_no_task() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (done, awaited) = std::sync::mpsc::channel();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            // In the worker's own slot, since it is what was woken last.
            tokio::spawn(async move { done.send(()) });
            Outside(Stuck(awaited, tell)).write_all(b"a line")
        });
        assert!(told.recv().unwrap(), "the other task ran only when the line was written");
    }
}
