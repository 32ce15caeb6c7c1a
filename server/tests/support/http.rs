//! A small HTTP/1.1 client that shows what came over the wire, also of an answer that does not end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Read so many lines of the answer and hang up, instead of waiting for its end.
    pub lines: Option<usize>,
}

impl Ask {
    pub fn new(method: &str, path: &str, body: &[u8]) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        Ask { method, path, headers: Vec::new(), body: body.to_vec(), lines: None }
    }
    pub fn get(path: &str) -> Self {
        Ask::new("GET", path, b"")
    }
    pub fn post(path: &str, body: &str) -> Self {
        Ask::new("POST", path, body.as_bytes())
    }
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
    pub fn lines(mut self, lines: usize) -> Self {
        self.lines = Some(lines);
        self
    }
}

/// What came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks a server that is there.
pub async fn ask(address: &str, ask: &Ask) -> Answer {
    try_ask(address, ask).await.unwrap_or_else(|e| panic!("{ask:?}: {e}"))
}

/// Asks; the error says what did not work.
pub async fn try_ask(address: &str, ask: &Ask) -> Result<Answer, String> {
    let work = async {
        let length = if ask.body.is_empty() && ask.method != "POST" { None } else { Some(ask.body.len()) };
        let mut connection = Connection::open(address, ask, length).await?;
        connection.send(&ask.body).await?;
        let mut answer = connection.head().await?;
        if ask.method == "HEAD" {
            return Ok(answer);
        }
        while ask.lines.is_none_or(|lines| answer.body.iter().filter(|b| **b == b'\n').count() < lines) {
            match connection.piece().await? {
                Some(piece) => answer.body.extend(piece),
                None => break,
            }
        }
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

/// One request on one connection, step by step.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    framing: Framing,
}

enum Framing {
    Length(usize),
    Chunked,
    Close,
}

impl Connection {
    /// Sends the request's head; without a length its body comes in chunks.
    pub async fn open(address: &str, ask: &Ask, length: Option<usize>) -> Result<Self, String> {
        let mut stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let mut head = format!("{} {} HTTP/1.1\r\n", ask.method, ask.path);
        if !ask.headers.iter().any(|(name, _)| name == "Connection") {
            head += "Connection: close\r\n";
        }
        if !ask.headers.iter().any(|(name, _)| name == "Host") {
            head += &format!("Host: {address}\r\n");
        }
        for (name, value) in &ask.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match length {
            Some(length) => head += &format!("Content-Length: {length}\r\n"),
            None if ask.method == "POST" => head += "Transfer-Encoding: chunked\r\n",
            None => {}
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await.map_err(|e| e.to_string())?;
        Ok(Connection { stream, received: Vec::new(), framing: Framing::Close })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).await.map_err(|e| e.to_string())
    }

    /// A chunk of the request's body.
    pub async fn chunk(&mut self, text: &str) -> Result<(), String> {
        self.send(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    async fn receive(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 16 << 10];
        let n = self.stream.read(&mut buffer).await.map_err(|e| e.to_string())?;
        self.received.extend_from_slice(&buffer[..n]);
        Ok(n > 0)
    }

    /// Everything up to and with these bytes.
    async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, String> {
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|w| w == end) {
                return Ok(self.received.drain(..at + end.len()).collect());
            }
            if !self.receive().await? {
                return Err(format!("closed after {:?}", String::from_utf8_lossy(&self.received)));
            }
        }
    }

    /// So many bytes of what comes next, whatever the framing.
    pub async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.received.len() < length {
            if !self.receive().await? {
                return Err("closed within the body".to_owned());
            }
        }
        Ok(self.received.drain(..length).collect())
    }

    /// The answer without its body.
    pub async fn head(&mut self) -> Result<Answer, String> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).map_err(|e| e.to_string())?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).ok_or("no status")?;
        let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let answer = Answer { status, headers: lines.filter_map(pair).collect(), body: Vec::new() };
        self.framing = match (answer.header("content-length"), answer.header("transfer-encoding")) {
            (Some(length), _) => Framing::Length(length.parse().map_err(|_| "length")?),
            (None, Some("chunked")) => Framing::Chunked,
            _ => Framing::Close,
        };
        Ok(answer)
    }

    /// The next piece of the answer's body; nothing after its end.
    pub async fn piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        match self.framing {
            Framing::Length(0) => Ok(None),
            Framing::Length(length) => {
                self.framing = Framing::Length(0);
                self.exactly(length).await.map(Some)
            }
            Framing::Chunked => {
                let size = self.until(b"\r\n").await?;
                let size = String::from_utf8_lossy(&size).trim().to_owned();
                let size = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk of {size:?}"))?;
                let chunk = self.exactly(size).await?;
                // Whether trailers follow the last chunk is not looked at.
                if size == 0 {
                    self.framing = Framing::Length(0);
                    return Ok(None);
                }
                self.exactly(2).await?;
                Ok(Some(chunk))
            }
            Framing::Close => {
                let more = self.receive().await?;
                let piece = std::mem::take(&mut self.received);
                Ok((more || !piece.is_empty()).then_some(piece))
            }
        }
    }

    /// The next line of the answer's body, without its end.
    pub async fn line(&mut self) -> Result<String, String> {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            text.extend(self.piece().await?.ok_or("the answer ended")?);
        }
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }
}
