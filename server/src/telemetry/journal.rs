//! `--log-outputs=systemd/journal`: lines for systemd's journal, in its own protocol.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// The journal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal(Arc<UnixDatagram>);

impl Journal {
    /// Connects; the error is etcd's.
    pub fn open(socket: &Path) -> Result<Self, String> {
        let connected = UnixDatagram::unbound().and_then(|journal| journal.connect(socket).map(|()| journal));
        let lost = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => e.to_string(),
        };
        let journal = connected
            .map_err(|e| format!("can't find journal (dial unixgram {}: connect: {})", socket.display(), lost(e)))?;
        Ok(Journal(Arc::new(journal)))
    }
}

impl Write for Journal {
    /// Takes a whole line. One that the journal does not take (too long for a datagram, or the journal is away) goes to
    /// standard error, as with etcd.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.send(&entry(line)).is_err() {
            io::stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The fields of an entry. A message comes with its length, since it may have several lines.
fn entry(line: &[u8]) -> Vec<u8> {
    let message = line.strip_suffix(b"\n").unwrap_or(line);
    let fields = format!("SYSLOG_IDENTIFIER=ferretcd\nPRIORITY={}\nMESSAGE\n", priority(message));
    let length = (message.len() as u64).to_le_bytes();
    [fields.as_bytes(), &length, message, b"\n"].concat()
}

/// syslog's number of a line's level, which is in the line's beginning in both of etcd's forms.
fn priority(line: &[u8]) -> u8 {
    let begins = |level: &str| match line.first() {
        Some(b'{') => line.starts_with(format!("{{\"level\":\"{level}\"").as_bytes()),
        _ => line.split(|b| *b == b'\t').nth(1) == Some(level.as_bytes()),
    };
    [("error", 3), ("warn", 4), ("info", 6)].into_iter().find(|(level, _)| begins(level)).map_or(7, |(_, n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_entry_with_its_level() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("socket");
        let missing =
            format!("can't find journal (dial unixgram {}: connect: no such file or directory)", at.display());
        assert_eq!(Journal::open(&at).unwrap_err(), missing);
        let socket = UnixDatagram::bind(&at).unwrap();
        let mut journal = Journal::open(&at).unwrap();
        for (line, level) in [
            ("{\"level\":\"warn\",\"msg\":\"a\"}\n", 4),
            ("2026-01-01T00:00:00.000000Z\terror\tsrc/x.rs:1\ta\n", 3),
            ("{\"level\":\"info\",\"msg\":\"\terror\t\"}\n", 6),
            ("{\"level\":\"debug\"}\n", 7),
        ] {
            journal.write_all(line.as_bytes()).unwrap();
            let mut got = [0; 1024];
            let n = socket.recv(&mut got).unwrap();
            let text = String::from_utf8_lossy(&got[..n]).into_owned();
            assert!(text.starts_with(&format!("SYSLOG_IDENTIFIER=ferretcd\nPRIORITY={level}\nMESSAGE\n")), "{text}");
            assert!(text.ends_with(line), "{text}");
        }
    }
}
