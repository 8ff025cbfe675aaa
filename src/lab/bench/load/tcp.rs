//! TCP streams, a thread each, with a congestion control that is the same everywhere.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use socket2::{Domain, Protocol, Socket, Type};

use super::{LOOK, Outcome, PATIENCE, Worker};

/// The congestion control of every stream. The host's default may be bbr, which retransmits a lot on a veth.
const CONGESTION: &[u8] = b"cubic";
/// Bytes per read and write.
const CHUNK: usize = 256 << 10;

/// When bytes count.
pub(super) struct Window {
    warmup: Duration,
    window: Duration,
}

impl Window {
    pub(super) fn new(warmup: f64, window: f64) -> Self {
        Self {
            warmup: Duration::from_secs_f64(warmup),
            window: Duration::from_secs_f64(window),
        }
    }
}

/// Accepts the streams, and counts what arrives in the window. Then it closes them.
pub(super) fn sink(
    at: IpAddr,
    streams: u16,
    window: &Window,
    worker: &Worker<'_>,
) -> io::Result<Outcome> {
    let listener = TcpListener::bind((at, 0))?;
    listener.set_nonblocking(true)?;
    worker.ready(listener.local_addr()?.port());
    let mut connections = Vec::new();
    let end = Instant::now() + PATIENCE;
    while connections.len() < usize::from(streams) {
        worker.cancel.check()?;
        match listener.accept() {
            Ok((stream, _)) => connections.push(stream),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} of {streams} TCP connections arrived", connections.len()),
                ));
            }
            Err(e) => return Err(e),
        }
    }
    let counts: Vec<CachePadded<AtomicU64>> =
        connections.iter().map(|_| CachePadded::default()).collect();
    let total = || -> u64 {
        counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    };
    thread::scope(|scope| {
        for (stream, count) in connections.iter().zip(&counts) {
            stream.set_nonblocking(false)?;
            thread::Builder::new()
                .name("tcp-sink".into())
                .spawn_scoped(scope, move || drain(stream, count))?;
        }
        let measured = measure(window, worker, total);
        for stream in &connections {
            // One that has ended by itself is shut already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let (bytes, cost) = measured?;
        Ok(Outcome::TcpSink { bytes, cost })
    })
}

fn measure(
    window: &Window,
    worker: &Worker<'_>,
    total: impl Fn() -> u64,
) -> io::Result<(u64, super::Cost)> {
    worker.pause(window.warmup)?;
    let (before, bytes) = (worker.meter.read()?, total());
    worker.pause(window.window)?;
    let (bytes, after) = (total() - bytes, worker.meter.read()?);
    Ok((bytes, after.since(&before)))
}

fn drain(mut stream: &TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    // Ends with the stream: shut by us, or reset by the other end.
    while let Ok(len) = stream.read(&mut buffer) {
        if len == 0 {
            return;
        }
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Opens the streams and fills them until the other end closes them.
pub(super) fn source(
    to: SocketAddr,
    streams: u16,
    window: &Window,
    worker: &Worker<'_>,
) -> io::Result<Outcome> {
    let connections = (0..streams)
        .map(|_| connect(to))
        .collect::<io::Result<Vec<_>>>()?;
    worker.ready(0);
    thread::scope(|scope| {
        for stream in &connections {
            thread::Builder::new()
                .name("tcp-source".into())
                .spawn_scoped(scope, move || fill(stream, worker.cancel))?;
        }
        let measured = measure(window, worker, || 0);
        if measured.is_err() {
            for stream in &connections {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
        let (_, cost) = measured?;
        Ok(Outcome::TcpSource { cost })
    })
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_congestion(CONGESTION).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("TCP congestion control cubic (modprobe tcp_cubic): {e}"),
        )
    })?;
    socket
        .connect_timeout(&to.into(), PATIENCE)
        .map_err(|e| io::Error::new(e.kind(), format!("connect to {to}: {e}")))?;
    socket.set_write_timeout(Some(LOOK))?;
    Ok(socket.into())
}

fn fill(mut stream: &TcpStream, cancel: &crate::lab::traffic::Cancel) {
    let bytes = vec![0x5a; CHUNK];
    // A sink that was interrupted closes late; one that was killed never does.
    let mut stuck = Instant::now();
    while !cancel.is_set() && stuck.elapsed() < PATIENCE {
        match stream.write(&bytes) {
            Ok(_) => stuck = Instant::now(),
            Err(e) if super::udp::is_pause(&e) => {}
            // Closed by the sink: its window is over.
            Err(_) => return,
        }
    }
}
