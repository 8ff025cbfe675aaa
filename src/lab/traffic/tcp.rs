//! TCP: a pseudo-random stream each way at the same time, its digests compared, and the client's address as the server
//! saw it.
//!
//! The client asks, both sides stream, the server closes with what it saw. All numbers are big-endian.
//!
//! ```text
//! client -> server   "ovl-tcp1"  upload bytes (u64)  download bytes (u64)  seed (u64)   then the upload's bytes
//! server -> client   the download's bytes, then:
//!                    bytes received (u64)  SHA-256 of them  SHA-256 of those sent  client's address (16, v4 mapped)  port (u16)
//! ```

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel;
use socket2::{Domain, Protocol, Socket, Type};

use super::stream::Tally;
use super::{Cancel, Digest, Stream, Wait, is_not_yet};

const MAGIC: [u8; 8] = *b"ovl-tcp1";
const REQUEST: usize = 8 + 3 * 8;
const TRAILER: usize = 8 + 32 + 32 + 16 + 2;
/// Bytes made, hashed and handed to the kernel at a time.
const CHUNK: usize = 1 << 18;
/// A server gives up on a client that has not moved a byte for this long.
const IDLE: Duration = Duration::from_secs(20);

/// How to transfer.
#[derive(Clone, Debug)]
pub struct TcpOpts {
    /// Limit for the connection's set-up (default 3 s).
    pub connect: Duration,
    /// Limit for the whole transfer (default 60 s).
    pub overall: Duration,
    /// Our address and port; the kernel chooses if `None`.
    pub source: Option<SocketAddr>,
    /// Seed of the bytes sent up; those that come down have the seed's complement.
    pub seed: u64,
    /// Ends the transfer early.
    pub cancel: Cancel,
}

impl Default for TcpOpts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            overall: Duration::from_secs(60),
            source: None,
            seed: 0,
            cancel: Cancel::default(),
        }
    }
}

/// A finished connection as the server saw it.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where the connection came from.
    pub client: SocketAddr,
    /// Bytes received.
    pub received: u64,
    /// Their digest.
    pub received_digest: Digest,
    /// Bytes sent.
    pub sent: u64,
    /// Their digest.
    pub sent_digest: Digest,
    /// From the client's request to the end of both streams.
    pub elapsed: Duration,
}

/// A finished transfer as the client saw it, with what the server told of its side.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Our address and port.
    pub local: SocketAddr,
    /// The same as the server saw it: another one if something on the way translates addresses.
    pub seen_as: SocketAddr,
    /// Bytes sent.
    pub sent: u64,
    /// Digest of what we sent.
    pub sent_digest: Digest,
    /// Bytes that the server received.
    pub arrived: u64,
    /// Digest of what the server received.
    pub arrived_digest: Digest,
    /// Bytes received.
    pub received: u64,
    /// Digest of what we received.
    pub received_digest: Digest,
    /// Digest of what the server sent.
    pub offered_digest: Digest,
    /// Time to set up the connection.
    pub connect: Duration,
    /// From the request to the server's last word.
    pub elapsed: Duration,
}

impl Transfer {
    /// Both directions arrived whole and unchanged.
    pub fn is_intact(&self) -> bool {
        (self.arrived, self.arrived_digest) == (self.sent, self.sent_digest)
            && self.received_digest == self.offered_digest
    }

    /// No address or port translation on the way.
    pub fn is_untranslated(&self) -> bool {
        self.seen_as == self.local
    }

    /// Bytes both ways, per second.
    #[allow(clippy::cast_precision_loss)] // a rate to show
    pub fn bytes_per_second(&self) -> f64 {
        (self.sent + self.received) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A server for [`tcp_transfer`] and its kin. It ends when dropped.
#[derive(Debug)]
pub struct TcpServer {
    local: SocketAddr,
    sessions: channel::Receiver<io::Result<Session>>,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens on this address (port 0: any free one) in the calling thread's namespace.
    ///
    /// # Errors
    /// As bind(2): address not ours, port taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        let stop = Cancel::default();
        let (report, sessions) = channel::unbounded();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("tcp-server".into())
            .spawn(move || accept(&listener, &report, &stopped))?;
        Ok(Self {
            local,
            sessions,
            stop,
            thread: Some(thread),
        })
    }

    /// The address and port it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection that has ended, in the order of their ends.
    ///
    /// # Errors
    /// When none ends in this time (`TimedOut`), or the connection failed on the way.
    pub fn next_session(&self, timeout: Duration) -> io::Result<Session> {
        match self.sessions.recv_timeout(timeout) {
            Ok(session) => session,
            Err(_) => Err(Wait::timed_out("wait for a TCP session")),
        }
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, report: &channel::Sender<io::Result<Session>>, stop: &Cancel) {
    std::thread::scope(|scope| {
        while let Ok(ready) = Wait::of(super::LOOK, stop).for_input(listener) {
            if !ready {
                continue;
            }
            // A client that gave up before it was accepted is no one's loss.
            if let Ok((stream, client)) = listener.accept() {
                scope.spawn(move || {
                    // Nobody listens once the server is being dropped.
                    let _ = report.send(serve(&stream, client, stop));
                });
            }
        }
    });
}

fn serve(stream: &TcpStream, client: SocketAddr, stop: &Cancel) -> io::Result<Session> {
    let pipe = Pipe::new(stream, Limit::Idle(IDLE), stop)?;
    let mut request = [0; REQUEST];
    pipe.read(&mut request)?;
    let start = Instant::now();
    let mut fields = request.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        bytes
    });
    if fields.next() != Some(MAGIC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{client} does not speak our protocol"),
        ));
    }
    let mut numbers = fields.map(u64::from_be_bytes);
    let (upload, download, seed) = match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(upload), Some(download), Some(seed)) => (upload, download, seed),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let (sent, received) = pipe.both(download, !seed, upload)?;
    let session = Session {
        client,
        received: received.bytes(),
        received_digest: received.digest(),
        sent: sent.bytes(),
        sent_digest: sent.digest(),
        elapsed: start.elapsed(),
    };
    let mut trailer = Vec::with_capacity(TRAILER);
    trailer.extend(session.received.to_be_bytes());
    trailer.extend(session.received_digest.0);
    trailer.extend(session.sent_digest.0);
    trailer.extend(mapped(client.ip()).octets());
    trailer.extend(client.port().to_be_bytes());
    pipe.write(&trailer)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(session)
}

/// Sends `bytes` bytes to a [`TcpServer`].
///
/// # Errors
/// As [`tcp_transfer`].
pub fn tcp_send(dst: SocketAddr, bytes: u64, opts: &TcpOpts) -> io::Result<Transfer> {
    tcp_transfer(dst, bytes, 0, opts)
}

/// Fetches `bytes` bytes from a [`TcpServer`].
///
/// # Errors
/// As [`tcp_transfer`].
pub fn tcp_fetch(dst: SocketAddr, bytes: u64, opts: &TcpOpts) -> io::Result<Transfer> {
    tcp_transfer(dst, 0, bytes, opts)
}

/// Sends `upload` bytes to a [`TcpServer`] and fetches `download` bytes from it, at the same time on one connection.
///
/// # Errors
/// When the connection is refused or breaks, when a limit of `opts` is over (`TimedOut`), or when cancelled. Whether
/// the bytes are the right ones is the result's to say.
pub fn tcp_transfer(
    dst: SocketAddr,
    upload: u64,
    download: u64,
    opts: &TcpOpts,
) -> io::Result<Transfer> {
    let begin = Instant::now();
    let stream = connect(dst, opts)?;
    let connected = begin.elapsed();
    let (local, start) = (stream.local_addr()?, Instant::now());
    let pipe = Pipe::new(&stream, Limit::Until(begin + opts.overall), &opts.cancel)?;
    let mut request = MAGIC.to_vec();
    for number in [upload, download, opts.seed] {
        request.extend(number.to_be_bytes());
    }
    pipe.write(&request)?;
    let (sent, received) = pipe.both(upload, opts.seed, download)?;
    let mut trailer = [0; TRAILER];
    pipe.read(&mut trailer)?;
    let mut rest = trailer.as_slice();
    let (arrived, arrived_digest, offered_digest) =
        (take(&mut rest), take(&mut rest), take(&mut rest));
    let (address, port): ([u8; 16], [u8; 2]) = (take(&mut rest), take(&mut rest));
    let mut seen_as = SocketAddr::new(
        Ipv6Addr::from(address).to_canonical(),
        u16::from_be_bytes(port),
    );
    if let (SocketAddr::V6(seen), SocketAddr::V6(local)) = (&mut seen_as, local) {
        // The scope of a link-local address has a meaning on its own host only.
        seen.set_scope_id(local.scope_id());
    }
    Ok(Transfer {
        local,
        seen_as,
        sent: sent.bytes(),
        sent_digest: sent.digest(),
        arrived: u64::from_be_bytes(arrived),
        arrived_digest: Digest(arrived_digest),
        received: received.bytes(),
        received_digest: received.digest(),
        offered_digest: Digest(offered_digest),
        connect: connected,
        elapsed: start.elapsed(),
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    // The callers share out a trailer whose length is the sum of their parts.
    let mut part = [0; N];
    let (head, tail) = bytes.split_at(N);
    part.copy_from_slice(head);
    *bytes = tail;
    part
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn connect(dst: SocketAddr, opts: &TcpOpts) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(dst), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = opts.source {
        socket.bind(&source.into())?;
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&dst.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
            if !Wait::of(opts.connect, &opts.cancel).for_output(&socket)? {
                return Err(Wait::timed_out(&format!("connect to {dst}")));
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

#[derive(Clone, Copy)]
enum Limit {
    /// The transfer ends at this moment.
    Until(Instant),
    /// The transfer may take its time, as long as bytes move.
    Idle(Duration),
}

/// A non-blocking connection whose every wait is bounded. `Read` and `Write` work on a shared reference, so both
/// directions can run at once.
struct Pipe<'a> {
    stream: &'a TcpStream,
    limit: Limit,
    cancel: &'a Cancel,
}

impl<'a> Pipe<'a> {
    fn new(stream: &'a TcpStream, limit: Limit, cancel: &'a Cancel) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            limit,
            cancel,
        })
    }

    /// Sends a stream and receives another; what went each way.
    fn both(&self, send: u64, seed: u64, receive: u64) -> io::Result<(Tally, Tally)> {
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let sent = self.send_stream(send, seed);
                if sent.is_err() {
                    // The other direction would wait for its limit.
                    let _ = self.stream.shutdown(Shutdown::Both);
                }
                sent
            });
            let received = self.receive_stream(receive);
            if received.is_err() {
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            let sent = sender
                .join()
                .map_err(|_| io::Error::other("the sending thread failed"))?;
            match (sent, received) {
                (Ok(sent), Ok(received)) => Ok((sent, received)),
                // Of two errors the one that is not the consequence of our own shutdown.
                (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(e),
                (Err(a), Err(b)) => Err(if a.kind() == io::ErrorKind::BrokenPipe {
                    b
                } else {
                    a
                }),
            }
        })
    }

    fn send_stream(&self, bytes: u64, seed: u64) -> io::Result<Tally> {
        let (mut stream, mut tally) = (Stream::new(seed), Tally::default());
        let mut chunk = vec![0; CHUNK];
        while tally.bytes() < bytes {
            let part = &mut chunk[..part(bytes - tally.bytes())];
            stream.fill(part);
            tally.add(part);
            self.write(part)?;
        }
        Ok(tally)
    }

    fn receive_stream(&self, bytes: u64) -> io::Result<Tally> {
        let mut tally = Tally::default();
        let mut chunk = vec![0; CHUNK];
        while tally.bytes() < bytes {
            let len = self.read_some(&mut chunk[..part(bytes - tally.bytes())])?;
            tally.add(&chunk[..len]);
        }
        Ok(tally)
    }

    fn wait(&self) -> Wait<'_> {
        match self.limit {
            Limit::Until(moment) => Wait::until(moment, self.cancel),
            Limit::Idle(time) => Wait::of(time, self.cancel),
        }
    }

    fn read_some(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let wait = self.wait();
        loop {
            match (&*self.stream).read(buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer closed early",
                    ));
                }
                Ok(len) => return self.cancel.check().map(|()| len),
                Err(e) if is_not_yet(&e) => {
                    if !wait.for_input(self.stream)? {
                        return Err(Wait::timed_out("receive"));
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn read(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let len = self.read_some(buffer)?;
            buffer = &mut buffer[len..];
        }
        Ok(())
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut wait = self.wait();
        while !bytes.is_empty() {
            self.cancel.check()?;
            match (&*self.stream).write(bytes) {
                Ok(len) => {
                    bytes = &bytes[len..];
                    wait = self.wait();
                }
                Err(e) if is_not_yet(&e) => {
                    if !wait.for_output(self.stream)? {
                        return Err(Wait::timed_out("send"));
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The next piece of a stream that has so many bytes left.
fn part(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}
