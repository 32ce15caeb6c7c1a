//! The network: calls between members go from their own client code to their own server code without sockets, late, cut
//! off, or not at all. As over TCP, a stream's messages come in order and once, or the stream breaks. What raft says may
//! come a second time all the same, and late: a connection that was given up may be read when its successor long is.

use crate::chance::Chance;
use crate::trace::Trace;
use bytes::Bytes;
use ferretcd_proto::peer::peer_server::PeerServer;
use ferretcd_raft::transport::dial::{Wire, Wires};
use ferretcd_raft::transport::server::PeerService;
use http_body::Frame;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};

type Host = usize;

/// What may come twice. The others are calls of the product's own, which it makes once on purpose.
const REPEATED: [&str; 4] = ["/Append", "/Vote", "/PreVote", "/InstallSnapshot"];

/// How long a message over a cut line waits before it looks again: TCP sends again, ever more slowly.
const CUT_LOOK: Duration = Duration::from_millis(50);

/// Messages of a call that come a second time: a stream of entries goes on for as long as both live.
const SAID_MAX: usize = 50;

/// Where every host is reached at first.
pub const FIRST_PORT: u64 = 1;

/// The network of one run.
pub struct Net {
    inside: Mutex<Inside>,
    changed: Notify,
    chance: Chance,
    trace: Arc<Trace>,
}

#[derive(Default)]
struct Inside {
    /// Who listens, in which life.
    up: BTreeMap<Host, (u64, PeerServer<PeerService>)>,
    /// The first and the last port of a host; the first of all alone where there is nothing.
    ports: BTreeMap<Host, (u64, u64)>,
    /// Ways that nothing passes, from and to.
    cut: BTreeSet<(Host, Host)>,
    /// Further microseconds between any two hosts, for good: regions, and not one room.
    far: u64,
    /// Further microseconds to and from a host.
    slow: BTreeMap<Host, u64>,
    /// Connections of a thousand that are lost at their beginning.
    lost: u64,
    /// Calls of a thousand that come a second time.
    repeated: u64,
}

impl Net {
    pub fn new(chance: Chance, trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Net { inside: Mutex::default(), changed: Notify::new(), chance, trace })
    }

    /// How `from`, in this life, reaches the others.
    pub fn wires(self: &Arc<Self>, from: Host, life: u64) -> Arc<Wires> {
        let net = self.clone();
        Arc::new(move |url: &str| {
            let (net, to) = (net.clone(), (host_of(url), port_of(url)));
            Wire::new(tower::service_fn(move |request| {
                let net = net.clone();
                async move { net.call(from, life, to, request).await }
            }))
        })
    }

    pub fn up(&self, host: Host, life: u64, service: PeerServer<PeerService>) {
        self.inside.lock().up.insert(host, (life, service));
        self.changed.notify_waiters();
    }

    pub fn down(&self, host: Host) {
        self.inside.lock().up.remove(&host);
        self.changed.notify_waiters();
    }

    /// A host is reached at this address, too.
    pub fn listen(&self, host: Host, port: u64) {
        let mut inside = self.inside.lock();
        let ports = inside.ports.entry(host).or_insert((FIRST_PORT, FIRST_PORT));
        ports.1 = ports.1.max(port);
    }

    /// A host is not reached any more at its addresses before this one, or is again from this one on. At this one it is in any
    /// case: it may have started at an earlier one since it was told of this.
    pub fn listen_from(&self, host: Host, port: u64) {
        let mut inside = self.inside.lock();
        let ports = inside.ports.entry(host).or_insert((FIRST_PORT, FIRST_PORT));
        *ports = (port, ports.1.max(port));
        drop(inside);
        self.changed.notify_waiters();
    }

    /// A host is reached at this address alone.
    pub fn listen_only(&self, host: Host, port: u64) {
        self.inside.lock().ports.insert(host, (port, port));
        self.changed.notify_waiters();
    }

    fn listens(&self, (host, port): (Host, u64)) -> bool {
        let inside = self.inside.lock();
        let (first, last) = inside.ports.get(&host).copied().unwrap_or((FIRST_PORT, FIRST_PORT));
        (first..=last).contains(&port)
    }

    /// Nothing passes from the ones to the others; and back, unless `one_way`.
    pub fn cut(&self, ones: &[Host], others: &[Host], one_way: bool) {
        let mut inside = self.inside.lock();
        for (a, b) in ones.iter().flat_map(|a| others.iter().map(move |b| (*a, *b))) {
            inside.cut.insert((a, b));
            if !one_way {
                inside.cut.insert((b, a));
            }
        }
    }

    /// The hosts are so far from each other.
    pub fn spread(&self, by: Duration) {
        self.inside.lock().far = by.as_micros() as u64;
    }

    pub fn slow(&self, host: Host, by: Duration) {
        self.inside.lock().slow.insert(host, by.as_micros() as u64);
    }

    pub fn lose(&self, of_a_thousand: u64) {
        self.inside.lock().lost = of_a_thousand;
    }

    pub fn repeat(&self, of_a_thousand: u64) {
        self.inside.lock().repeated = of_a_thousand;
    }

    /// All is well again.
    pub fn heal(&self) {
        let mut inside = self.inside.lock();
        inside.cut.clear();
        inside.slow.clear();
        (inside.lost, inside.repeated) = (0, 0);
        drop(inside);
        self.changed.notify_waiters();
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.inside.lock().cut.contains(&(from, to))
    }

    fn lives(&self, host: Host, life: u64) -> bool {
        self.inside.lock().up.get(&host).is_some_and(|(now, _)| *now == life)
    }

    /// Ends with this life of a host.
    async fn death(&self, host: Host, life: u64) {
        loop {
            let changed = self.changed.notified();
            if !self.lives(host, life) {
                return;
            }
            changed.await;
        }
    }

    fn latency(&self, from: Host, to: Host) -> Duration {
        let (slow, far): (u64, u64) = {
            let inside = self.inside.lock();
            ([from, to].iter().filter_map(|host| inside.slow.get(host)).sum(), inside.far)
        };
        if slow > 0 {
            self.trace.count("messages over slow lines");
        }
        let usual = self.chance.micros(200, 2000);
        let spike = if self.chance.one_in(100) { self.chance.millis(5, 150) } else { Duration::ZERO };
        usual + spike + Duration::from_micros(slow + far)
    }

    /// One way of a message.
    async fn pass(&self, from: Host, to: Host) {
        tokio::time::sleep(self.latency(from, to)).await;
        while self.is_cut(from, to) {
            let _ = tokio::time::timeout(CUT_LOOK, self.changed.notified()).await;
        }
    }

    async fn call(
        self: Arc<Self>,
        from: Host,
        life: u64,
        address: (Host, u64),
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, StdError> {
        let (to, _) = address;
        let broken = || StdError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        self.pass(from, to).await;
        if !self.lives(from, life) {
            return std::future::pending().await;
        }
        let listens = self.inside.lock().up.get(&to).cloned();
        let Some((to_life, mut service)) = listens.filter(|_| self.listens(address)) else {
            self.pass(to, from).await;
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            return Err(Box::new(tonic::ConnectError(refused.into())));
        };
        let lost = self.inside.lock().lost;
        let (lost_there, lost_back) = (self.chance.below(1000) < lost, self.chance.below(1000) < lost);
        self.trace.note(format_args!("h{from}>h{to} {}", request.uri().path()));
        if lost_there || lost_back {
            self.trace.count("lost calls");
        }
        if lost_there {
            return Err(broken());
        }
        let there = Pipe { net: self.clone(), from, from_life: life, to, to_life, address };
        let back = Pipe { net: self.clone(), from: to, from_life: to_life, to: from, to_life: life, address };
        let (parts, body) = request.into_parts();
        let mut passing = Passing::new(body, there);
        let repeated = self.inside.lock().repeated;
        if self.chance.below(1000) < repeated && REPEATED.iter().any(|end| parts.uri.path().ends_with(end)) {
            let said = Arc::new(Mutex::new(VecDeque::new()));
            passing.said = Some(said.clone());
            tokio::spawn(self.clone().say_again(from, to, parts.clone(), said));
        }
        let installs = parts.uri.path().ends_with("/InstallSnapshot");
        let request = http::Request::from_parts(parts, Body::new(passing));
        // On a task of the one that serves: it goes on when the caller gives up.
        let served = tokio::spawn(async move { service.call(request).await });
        // One that dies with the call in its hands breaks the connection, whatever is left of it waits for.
        let response = tokio::select! {
            biased;
            served = served => served.map_err(StdError::from)?.map_err(|never| match never {})?,
            () = self.death(to, to_life) => {
                self.pass(to, from).await;
                return Err(broken());
            }
        };
        // A refusal has its code at its head.
        if installs && !response.headers().contains_key("grpc-status") {
            self.trace.count("installed snapshots");
        }
        self.pass(to, from).await;
        if lost_back || !self.lives(to, to_life) || !self.lives(from, life) {
            return Err(broken());
        }
        let (parts, body) = response.into_parts();
        Ok(http::Response::from_parts(parts, Body::new(Passing::new(body, back))))
    }
}

impl Net {
    /// What was said comes once more, later, whoever lives there then; nobody hears the answer.
    async fn say_again(
        self: Arc<Self>,
        from: Host,
        to: Host,
        parts: http::request::Parts,
        said: Arc<Mutex<VecDeque<Bytes>>>,
    ) {
        tokio::time::sleep(self.chance.millis(5, 2500)).await;
        self.pass(from, to).await;
        let Some((_, mut service)) = self.inside.lock().up.get(&to).cloned() else { return };
        let said = Said(said.lock().clone());
        self.trace.note(format_args!("h{from}>h{to} {} again, {} messages", parts.uri.path(), said.0.len()));
        self.trace.count("calls that come twice");
        let Ok(response) = service.call(http::Request::from_parts(parts, Body::new(said))).await;
        let mut answers = std::pin::pin!(response.into_body());
        while let Some(Ok(_)) = std::future::poll_fn(|cx| http_body::Body::poll_frame(answers.as_mut(), cx)).await {}
    }
}

/// Messages that were sent before.
struct Said(VecDeque<Bytes>);

impl http_body::Body for Said {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// `http://h3:1` is host 3.
pub fn host_of(url: &str) -> Host {
    url.trim_start_matches("http://h").split(':').next().and_then(|host| host.parse().ok()).unwrap_or(Host::MAX)
}

pub fn port_of(url: &str) -> u64 {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0)
}

pub fn url_of(host: Host, port: u64) -> String {
    format!("http://h{host}:{port}")
}

/// One direction of a call.
struct Pipe {
    net: Arc<Net>,
    from: Host,
    from_life: u64,
    to: Host,
    to_life: u64,
    /// Where the one that was called listens.
    address: (Host, u64),
}

impl Pipe {
    fn is_broken(&self) -> bool {
        let Pipe { net, from, from_life, to, to_life, address } = self;
        !net.lives(*from, *from_life) || !net.lives(*to, *to_life) || !net.listens(*address)
    }
}

/// A body on its way: each frame takes its time, and comes after the one before it.
struct Passing {
    inner: Body,
    pipe: Pipe,
    ended: bool,
    queue: VecDeque<(Instant, Result<Frame<Bytes>, Status>)>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Where what came through is written down, if it is to come again.
    said: Option<Arc<Mutex<VecDeque<Bytes>>>>,
}

impl Passing {
    fn new(inner: Body, pipe: Pipe) -> Self {
        Passing { inner, pipe, ended: false, queue: VecDeque::new(), sleep: None, said: None }
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if this.pipe.is_broken() {
                return Poll::Ready(Some(Err(Status::unavailable("connection reset"))));
            }
            while !this.ended {
                match Pin::new(&mut this.inner).poll_frame(cx) {
                    Poll::Ready(Some(frame)) => {
                        let at = Instant::now() + this.pipe.net.latency(this.pipe.from, this.pipe.to);
                        let at = this.queue.back().map_or(at, |(last, _)| at.max(*last));
                        this.queue.push_back((at, frame));
                    }
                    Poll::Ready(None) => this.ended = true,
                    Poll::Pending => break,
                }
            }
            let Some((at, _)) = this.queue.front() else {
                return if this.ended { Poll::Ready(None) } else { Poll::Pending };
            };
            let cut = this.pipe.net.is_cut(this.pipe.from, this.pipe.to);
            if *at <= Instant::now() && !cut {
                this.sleep = None;
                let Some((_, frame)) = this.queue.pop_front() else { return Poll::Pending };
                if let Ok(data) = &frame
                    && let Some(data) = data.data_ref()
                {
                    let Pipe { net, from, to, .. } = &this.pipe;
                    net.trace.note(format_args!("h{from}>h{to} {} bytes", data.len()));
                    if let Some(said) = &this.said
                        && said.lock().len() < SAID_MAX
                    {
                        said.lock().push_back(data.clone());
                    }
                }
                return Poll::Ready(Some(frame));
            }
            let until = if cut { Instant::now() + CUT_LOOK } else { *at };
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if sleep.deadline() != until && (sleep.is_elapsed() || sleep.deadline() > until) {
                sleep.as_mut().reset(until);
            }
            ready!(sleep.as_mut().poll(cx));
            this.sleep = None;
        }
    }
}
