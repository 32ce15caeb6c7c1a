//! Clients that ping too often (`--grpc-keepalive-min-time`): grpc-go's rule, which etcd follows. hyper answers pings
//! by itself and tells nobody, so this looks at the frames as they pass, and ends the connection in grpc-go's words.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Pings out of turn that are forgiven (grpc-go's maxPingStrikes); the next one ends the connection.
const STRIKES_MAX: u8 = 2;

/// How far apart pings must be while no call is under way (grpc-go's defaultPingTimeout; etcd does not permit more).
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 3600);

/// How long the client may take to hang up after it was told: closing with its bytes unread would take back what it was
/// told (grpc-go's number).
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a client sends first if it speaks HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types and flags of HTTP/2 (RFC 9113, section 6).
mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the heads of frames in bytes that come in pieces.
#[derive(Debug, Default)]
struct Heads {
    /// Bytes of the head that is being read.
    head: [u8; 9],
    have: usize,
    /// Bytes of the frame that still follow.
    left: usize,
}

impl Heads {
    fn take(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let [byte, rest @ ..] = bytes else { return };
            bytes = rest;
            if let Some(place) = self.head.get_mut(self.have) {
                *place = *byte;
                self.have += 1;
            }
            if self.have == self.head.len() {
                let [a, b, c, kind, flags, s0, s1, s2, s3] = self.head;
                self.have = 0;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                seen(Head { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]) });
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// Who pings how often.
#[derive(Debug)]
struct Pings {
    min_time: Duration,
    /// Calls under way, and the newest there was.
    open: HashSet<u32>,
    newest: u32,
    last: Option<Instant>,
    strikes: u8,
    /// The server has sent something of a call since the last ping: pings are forgiven.
    answered: bool,
}

impl Pings {
    fn new(min_time: Duration) -> Self {
        Pings { min_time, open: HashSet::new(), newest: 0, last: None, strikes: 0, answered: false }
    }

    /// A frame of the client; true when that was one ping too many.
    fn received(&mut self, head: Head, now: Instant) -> bool {
        match head.kind {
            frame::HEADERS if head.stream > self.newest => {
                self.newest = head.stream;
                self.open.insert(head.stream);
            }
            frame::RST_STREAM => drop(self.open.remove(&head.stream)),
            frame::PING if head.flags & frame::ACK == 0 => return self.pinged(now),
            _ => {}
        }
        false
    }

    fn pinged(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.answered) {
            self.strikes = 0;
            return false;
        }
        let min_time = if self.open.is_empty() { IDLE_MIN_TIME } else { self.min_time };
        if last.is_some_and(|last| now.duration_since(last) < min_time) {
            self.strikes = self.strikes.saturating_add(1);
        }
        self.strikes > STRIKES_MAX
    }

    /// A frame of the server.
    fn sent(&mut self, head: Head) {
        match head.kind {
            frame::DATA | frame::HEADERS => {
                self.answered = true;
                if head.flags & frame::END_STREAM != 0 {
                    self.open.remove(&head.stream);
                }
            }
            frame::RST_STREAM => drop(self.open.remove(&head.stream)),
            _ => {}
        }
    }
}

/// grpc-go's last frame on such a connection.
fn goaway(newest: u32) -> Vec<u8> {
    const WHY: &[u8] = b"too_many_pings";
    let length = 8 + WHY.len() as u32;
    let [_, length @ ..] = length.to_be_bytes();
    let stream = newest.to_be_bytes();
    let code = frame::ENHANCE_YOUR_CALM.to_be_bytes();
    [&length[..], &[frame::GOAWAY, 0, 0, 0, 0, 0], &stream, &code, WHY].concat()
}

/// A connection whose pings are watched, if it turns out to be one of HTTP/2.
pub struct Watched<S> {
    stream: S,
    watch: Watch,
}

/// How far the watching is.
enum Watch {
    /// It is not HTTP/2, or nobody watches.
    No,
    /// So many bytes of the preface have come.
    Preface(usize, Duration),
    Frames {
        received: Heads,
        sent: Heads,
        pings: Pings,
    },
    /// The client is being told; nothing of it counts any more.
    Telling {
        goaway: Vec<u8>,
        written: usize,
    },
    Told(Pin<Box<Sleep>>),
}

impl<S> Watched<S> {
    /// With `None` nobody watches.
    pub fn new(stream: S, min_time: Option<Duration>) -> Self {
        Watched { stream, watch: min_time.map_or(Watch::No, |min_time| Watch::Preface(0, min_time)) }
    }

    fn received(&mut self, mut bytes: &[u8]) {
        if let Watch::Preface(have, min_time) = &mut self.watch {
            let (expected, min_time) = (PREFACE.get(*have..).unwrap_or_default(), *min_time);
            let (now, later) = bytes.split_at(expected.len().min(bytes.len()));
            if !expected.starts_with(now) {
                self.watch = Watch::No;
                return;
            }
            *have += now.len();
            if *have < PREFACE.len() {
                return;
            }
            let (received, sent) = (Heads::default(), Heads::default());
            self.watch = Watch::Frames { received, sent, pings: Pings::new(min_time) };
            bytes = later;
        }
        let Watch::Frames { received, sent, pings } = &mut self.watch else { return };
        let (now, mut too_many) = (Instant::now(), false);
        received.take(bytes, |head| too_many |= pings.received(head, now));
        if too_many {
            // In the middle of a frame nothing can be said: then the connection just ends.
            let goaway = if sent.is_between_frames() { goaway(pings.newest) } else { Vec::new() };
            self.watch = Watch::Telling { goaway, written: 0 };
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        if let Watch::Frames { sent, pings, .. } = &mut self.watch {
            sent.take(bytes, |head| pings.sent(head));
        }
    }

    fn is_ending(&self) -> bool {
        matches!(self.watch, Watch::Telling { .. } | Watch::Told(_))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Says the last word, waits for the client to hang up, and reports the end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Watch::Telling { goaway, written } = &mut self.watch {
            while let Some(rest) = goaway.get(*written..).filter(|rest| !rest.is_empty()) {
                *written += ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            }
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            tracing::debug!("a client pings too often (--grpc-keepalive-min-time): its connection ends");
            self.watch = Watch::Told(Box::pin(tokio::time::sleep(LAST_WORD)));
        }
        let Watch::Told(end) = &mut self.watch else { return Poll::Ready(Ok(())) };
        loop {
            if end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut unread = [0; 4096];
            let mut unread = ReadBuf::new(&mut unread);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut unread))?;
            if unread.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_ending() {
            return self.poll_end(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if !matches!(self.watch, Watch::No) {
            self.received(buf.filled().get(before..).unwrap_or_default());
        }
        if self.is_ending() {
            // The ping itself is not to be answered any more.
            buf.set_filled(before);
            return self.poll_end(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_ending() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.sent(buf.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_ending() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let now = left.min(buf.len());
            self.sent(buf.get(..now).unwrap_or_default());
            left -= now;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PING: Head = Head { kind: frame::PING, flags: 0, stream: 0 };

    fn head(kind: u8, flags: u8, stream: u32) -> Head {
        Head { kind, flags, stream }
    }

    fn bytes(head: Head, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, head.kind, head.flags];
        bytes.extend(head.stream.to_be_bytes());
        bytes.resize(9 + usize::from(length), 7);
        bytes
    }

    /// What a client sends before anybody knows who it is, in pieces as they come.
    #[test]
    fn fuzz_http2_frames() {
        let frames = [(head(frame::HEADERS, 5, 1), 12), (head(frame::DATA, 1, 1), 9), (PING, 8), (PING, 8), (PING, 8)];
        let frames: Vec<u8> = frames.iter().flat_map(|(head, length)| bytes(*head, *length)).collect();
        let pings = bytes(PING, 8).repeat(300);
        let seeds = [[&PREFACE[..], &frames].concat(), [&PREFACE[..], &pings].concat(), b"GET / HTTP/1.1\r\n".to_vec()];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "http2_frames").seeds(seeds);
        fuzz.run(|bytes| {
            let seen = [1, 7, usize::MAX].map(|size| {
                let mut watched = Watched::new((), Some(Duration::from_secs(5)));
                bytes.chunks(size).for_each(|piece| watched.received(piece));
                match &watched.watch {
                    Watch::No => "not HTTP/2".to_owned(),
                    Watch::Preface(..) => "not yet".to_owned(),
                    Watch::Frames { received, pings, .. } => {
                        let Pings { open, newest, strikes, .. } = pings;
                        assert!(open.iter().all(|stream| stream <= newest));
                        format!("{received:?} {} {strikes}", "x".repeat(open.len().min(9)))
                    }
                    Watch::Telling { goaway, .. } => format!("{} too many", goaway.len()),
                    Watch::Told(_) => "told".to_owned(),
                }
            });
            // Of too many pings in one piece the newest stream may be a later one.
            assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
            seen[0].clone()
        });
    }

    #[test]
    fn heads_are_found_in_any_pieces() {
        let heads = [head(0, 1, 3), head(6, 0, 0), head(1, 5, 0x7fff_ffff)];
        let all: Vec<u8> = heads.iter().zip([20, 8, 0]).flat_map(|(head, length)| bytes(*head, length)).collect();
        for size in 1..all.len() {
            let (mut parser, mut seen) = (Heads::default(), Vec::new());
            all.chunks(size).for_each(|piece| parser.take(piece, |head| seen.push(head)));
            assert_eq!((&seen[..], parser.is_between_frames()), (&heads[..], true), "in pieces of {size}");
        }
    }

    #[test]
    fn pings_that_are_too_near_each_other_are_forgiven_twice() {
        let mut pings = Pings::new(Duration::from_secs(5));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!pings.received(head(frame::HEADERS, 4, 1), at(0)));
        for second in [0, 5, 10, 15, 20, 21, 22] {
            assert!(!pings.received(PING, at(second)), "at {second} s");
        }
        assert!(pings.received(PING, at(23)));

        // An acknowledgement is no ping, and an answer makes good for what was.
        pings.sent(head(frame::DATA, 0, 1));
        assert!(!pings.received(head(frame::PING, frame::ACK, 0), at(23)));
        for second in [23, 24, 25] {
            assert!(!pings.received(PING, at(second)), "at {second} s");
        }
        assert!(pings.received(PING, at(26)));
    }

    #[test]
    fn without_a_call_pings_must_be_hours_apart() {
        for end in [head(frame::DATA, 1, 1), head(frame::HEADERS, 5, 1), head(frame::RST_STREAM, 0, 1)] {
            let mut pings = Pings::new(Duration::from_secs(5));
            let begin = Instant::now();
            assert!(!pings.received(head(frame::HEADERS, 4, 1), begin));
            pings.sent(end);
            let told = (0..5).position(|n| pings.received(PING, begin + Duration::from_secs(10 * n)));
            // The first one follows an answer, if there was one, and the one after it is compared with it.
            assert_eq!(told, Some(3), "{end:?}");
        }
    }

    #[tokio::test]
    async fn the_client_is_told_and_the_connection_ends() {
        let (mut client, server) = tokio::io::duplex(1 << 12);
        let mut server = Watched::new(server, Some(Duration::from_secs(5)));
        client.write_all(&[&PREFACE[..], &bytes(head(4, 0, 0), 0)].concat()).await.unwrap();
        for _ in 0..4 {
            client.write_all(&bytes(PING, 8)).await.unwrap();
        }
        let serving = tokio::spawn(async move {
            let mut passed = Vec::new();
            server.read_to_end(&mut passed).await.unwrap();
            passed.len()
        });
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, goaway(0));
        assert_eq!(told.last_chunk::<14>(), Some(b"too_many_pings"));
        drop(client);
        assert!(serving.await.unwrap() <= PREFACE.len() + 9 + 3 * 17);
    }

    #[tokio::test]
    async fn other_protocols_pass() {
        let (mut client, server) = tokio::io::duplex(1 << 12);
        let mut server = Watched::new(server, Some(Duration::from_secs(5)));
        let text = b"PRI * HTTP/1.1\r\n\r\n";
        client.write_all(text).await.unwrap();
        drop(client);
        let mut passed = Vec::new();
        server.read_to_end(&mut passed).await.unwrap();
        assert_eq!(passed, text);
    }
}
