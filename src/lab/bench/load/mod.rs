//! The loads: what the bench sends and how it counts what arrives.
//!
//! A load has two ends, each a [`Job`] on a thread of its own in the namespace where it belongs: first the end that
//! listens, which tells its port, then the end that sends. Neither knows what lies between them.
//!
//! | file | what it does |
//! |---|---|
//! | `tcp` | streams as separate threads, cubic pinned; bytes counted where they arrive |
//! | `udp` | numbered datagrams at a set rate or flat out; losses, reordering and duplicates counted |
//! | `rtt` | one datagram to and fro, again and again |

mod rtt;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::meter::{Cost, Meter};
use crate::kernel::NetNs;
use crate::lab::traffic::Cancel;

pub use rtt::Rtt;
pub use udp::{MIN_SIZE, Send, Source, UdpReceived, UdpSent};

/// How long the other end may take to appear.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a blocked call looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

/// One end of a load.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Accepts streams and counts their bytes, for `window` seconds from `warmup` seconds after the last is there.
    TcpSink {
        /// The address to listen on.
        at: IpAddr,
        /// How many streams.
        streams: u16,
        /// Seconds before the window.
        warmup: f64,
        /// Seconds that count.
        window: f64,
    },
    /// Opens streams and fills them until the sink closes them.
    TcpSource {
        /// Where the sink listens.
        to: SocketAddr,
        /// How many streams.
        streams: u16,
        /// Seconds before the window, for the cost.
        warmup: f64,
        /// Seconds that count, for the cost.
        window: f64,
    },
    /// Counts numbered datagrams until it is asked.
    UdpSink {
        /// The address to listen on.
        at: IpAddr,
    },
    /// Sends numbered datagrams.
    UdpSource(udp::Source),
    /// Sends every datagram back, until it is asked.
    Echo {
        /// The address to listen on.
        at: IpAddr,
    },
    /// Sends a datagram, waits for it to come back, sends the next.
    PingPong {
        /// Where the echo listens.
        to: SocketAddr,
        /// UDP payload in bytes.
        size: u16,
        /// For how long, in seconds.
        window: f64,
    },
}

/// What one end saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Of a [`Job::TcpSink`].
    TcpSink {
        /// Bytes that arrived in the window.
        bytes: u64,
        /// The window as it was, and what it cost here.
        cost: Cost,
    },
    /// Of a [`Job::TcpSource`].
    TcpSource {
        /// What the window cost here.
        cost: Cost,
    },
    /// Of a [`Job::UdpSink`].
    UdpSink(UdpReceived),
    /// Of a [`Job::UdpSource`].
    UdpSource(UdpSent),
    /// Of a [`Job::Echo`].
    Echo,
    /// Of a [`Job::PingPong`].
    PingPong(Rtt),
}

/// A job at work.
#[derive(Debug)]
pub(super) struct Running {
    thread: Option<JoinHandle<io::Result<Outcome>>>,
    stop: Cancel,
    /// The port it listens on; 0 for an end that sends.
    pub(super) port: u16,
}

/// Where and under which circumstances a job works.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// The namespace.
    pub(super) namespace: NetNs,
    /// Counts what the job costs.
    pub(super) meter: Meter,
    /// The CPUs it may use; empty: all.
    pub(super) cpus: Vec<usize>,
    /// The whole bench is being interrupted.
    pub(super) cancel: Cancel,
}

/// What a job's thread knows.
struct Worker<'a> {
    meter: &'a Meter,
    /// Set when the outcome is asked for.
    stop: &'a Cancel,
    /// Set when the bench is interrupted.
    cancel: &'a Cancel,
    ready: &'a mpsc::Sender<u16>,
}

impl Worker<'_> {
    /// Tells that this end is in place.
    fn ready(&self, port: u16) {
        // The one who waited may have given up.
        let _ = self.ready.send(port);
    }

    fn pause(&self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        loop {
            self.cancel.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn over(&self) -> bool {
        self.stop.is_set() || self.cancel.is_set()
    }
}

impl Running {
    /// Starts a job and waits until it listens or sends.
    pub(super) fn start(job: Job, around: &Surroundings) -> io::Result<Self> {
        let stop = Cancel::default();
        let (tell, ready) = mpsc::channel();
        let (stopped, surroundings) = (stop.clone(), around.clone());
        // A thread started inside a namespace stays there.
        let thread = around.namespace.run(move || {
            std::thread::Builder::new()
                .name("load".into())
                .spawn(move || {
                    super::pin::pin(&surroundings.cpus)?;
                    let worker = Worker {
                        meter: &surroundings.meter,
                        stop: &stopped,
                        cancel: &surroundings.cancel,
                        ready: &tell,
                    };
                    run(&job, &worker)
                })
        })??;
        let mut running = Self {
            thread: Some(thread),
            stop,
            port: 0,
        };
        match ready.recv() {
            Ok(port) => {
                running.port = port;
                Ok(running)
            }
            // Its end of the channel is gone: it has failed, and says why.
            Err(_) => Err(running
                .finish()
                .err()
                .unwrap_or_else(|| io::Error::other("a load ended before it began"))),
        }
    }

    /// Waits for the outcome; an end without an end of its own is asked to stop.
    pub(super) fn finish(mut self) -> io::Result<Outcome> {
        self.stop.set();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err(io::Error::other("a load's thread failed")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(job: &Job, worker: &Worker<'_>) -> io::Result<Outcome> {
    match *job {
        Job::TcpSink {
            at,
            streams,
            warmup,
            window,
        } => tcp::sink(at, streams, &tcp::Window::new(warmup, window), worker),
        Job::TcpSource {
            to,
            streams,
            warmup,
            window,
        } => tcp::source(to, streams, &tcp::Window::new(warmup, window), worker),
        Job::UdpSink { at } => udp::sink(at, worker).map(Outcome::UdpSink),
        Job::UdpSource(ref source) => udp::source(source, worker).map(Outcome::UdpSource),
        Job::Echo { at } => rtt::echo(at, worker).map(|()| Outcome::Echo),
        Job::PingPong { to, size, window } => {
            rtt::ping_pong(to, size, Duration::from_secs_f64(window), worker).map(Outcome::PingPong)
        }
    }
}
