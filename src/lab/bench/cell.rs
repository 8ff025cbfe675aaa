//! One path under one setting: its tests, one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::figures::Pair;
use super::host::{End, Host};
use super::load::{Job, MIN_SIZE, Outcome, Rtt, Send, Source, UdpReceived, UdpSent};
use super::meter::Cost;
use super::plan::{Size, Test, Way};
use super::search::{Search, Trial};
use super::side::Side;

/// Figures by name.
pub(super) type Figures = BTreeMap<String, f64>;

/// Payload of a round trip's datagram, and of the load beside it, in bytes.
const SMALL: u16 = 64;
/// The figure of what the daemons' system calls are counted for.
const CALLS: &str = "daemon_syscalls_per_packet";
/// How long they are counted, in windows; at least for [`SHORTEST`].
pub(super) const COUNTED: f64 = 0.25;
/// The shortest time in which a path on a busy machine carries something, in seconds.
const SHORTEST: f64 = 0.1;
/// How many trials a search for a rate may take.
const TRIALS: u32 = 14;

/// The two ends of a path that is up.
pub(super) struct Cell<'a> {
    pub(super) a: &'a mut Host,
    pub(super) b: &'a mut Side,
    pub(super) ends: (End, End),
    /// Seconds of one measurement.
    pub(super) window: f64,
    pub(super) send: Send,
    /// The zero-loss rate of small datagrams, once it is known.
    pub(super) small_rate: Option<f64>,
    /// Are the daemons' system calls being counted? Then nothing else is measured.
    pub(super) calls: bool,
}

impl Cell<'_> {
    /// Do packets get through at all? Resolves the neighbours too.
    pub(super) fn greet(&mut self) -> Result<()> {
        // A tunnel with a handshake may need a few seconds.
        for _ in 0..2 {
            match self.round_trips(0.005) {
                Err(error) if is_timeout(&error) => {}
                done => return done.map(drop),
            }
        }
        self.round_trips(0.005).map(drop)
    }

    /// Puts the load of a test on the path. Again, if nothing arrives: a short measurement may fall into a moment in which a busy
    /// machine has no time for it.
    fn measure(&mut self, test: Test) -> Result<(Figures, Value)> {
        let mut tries = 3;
        loop {
            tries -= 1;
            let measured = match test {
                Test::Tcp(streams, way) => self.tcp(streams, way),
                Test::Flood(size) => self.flood(size),
                Test::Loss(size, flows) => self.loss(size, flows),
                Test::Rtt => self.rtt(),
                Test::RttHalf => self.rtt_half(),
            };
            match measured {
                Err(error) if error.is::<NothingArrived>() && tries > 0 => {}
                done => return done,
            }
        }
    }

    /// Runs one test.
    pub(super) fn run(&mut self, test: Test) -> Result<(Figures, Value)> {
        let before = (self.a.status(), self.b.status());
        let (mut figures, mut raw) = self.measure(test)?;
        let batches = super::figures::batches(
            (before.0.as_ref(), self.a.status().as_ref()),
            (before.1.as_ref(), self.b.status().as_ref()),
        );
        raw["batches"] = json!(batches);
        figures.extend(batches);
        if let Some(counted) = self.count_calls(test, &figures) {
            raw["calls"] = match counted {
                Ok((counted, raw)) => {
                    let calls = counted.get_key_value(CALLS);
                    figures.extend(calls.map(|(name, calls)| (name.clone(), *calls)));
                    raw
                }
                // What was measured stands.
                Err(error) => json!({"error": format!("{error:#}")}),
            };
        }
        Ok((figures, raw))
    }

    /// Puts the load of a test on the path once more, for a moment, and counts the daemons' system calls meanwhile; `None` where
    /// there are no daemons or nothing was carried. Not while something is measured: see [`super::meter`].
    fn count_calls(&mut self, test: Test, measured: &Figures) -> Option<Result<(Figures, Value)>> {
        measured.get("daemon_switches_per_packet")?;
        let window = self.window;
        (self.window, self.calls) = ((window * COUNTED).max(SHORTEST), true);
        let counted = match test {
            Test::Tcp(streams, way) => Some(self.tcp(streams, way)),
            Test::Flood(size) => Some(self.flood(size)),
            Test::Loss(size, flows) => {
                let rate = measured.get("zero_loss_pps");
                let rate = rate.copied().filter(|rate| *rate > 0.0);
                rate.map(|rate| self.steady(size, flows, rate))
            }
            Test::Rtt | Test::RttHalf => None,
        };
        (self.window, self.calls) = (window, false);
        counted
    }

    /// Where a daemon has ended that should carry the path.
    pub(super) fn ended(&mut self) -> Option<&'static str> {
        if self.a.daemon_ended() {
            Some("sending")
        } else {
            self.b.daemon_ended().then_some("receiving")
        }
    }

    fn start_a(&mut self, job: Job) -> Result<(u32, u16)> {
        self.a.start(job, self.calls)
    }

    fn start_b(&mut self, job: Job) -> Result<(u32, u16)> {
        self.b.start(job, self.calls)
    }

    fn size(&self, size: Size) -> Result<u16> {
        let most = self.ends.0.mtu.min(self.ends.1.mtu) - 28;
        match size {
            Size::Mtu => Ok(most),
            Size::Bytes(bytes) if (MIN_SIZE..=most).contains(&bytes) => Ok(bytes),
            Size::Bytes(bytes) => {
                bail!("{bytes} bytes of UDP payload do not fit the path: {MIN_SIZE} to {most}")
            }
        }
    }

    fn pair<'c>(&self, a: &'c Cost, b: &'c Cost) -> Pair<'c> {
        Pair {
            a,
            b,
            apart: self.b.is_apart(),
        }
    }

    fn warmup(&self) -> f64 {
        (0.3 * self.window).min(0.3)
    }

    fn tcp(&mut self, streams: u16, way: Way) -> Result<(Figures, Value)> {
        let (warmup, window) = (self.warmup(), self.window);
        let (a_ip, b_ip) = (self.ends.0.ip, self.ends.1.ip);
        let sink = |at| Job::TcpSink {
            at,
            streams,
            warmup,
            window,
        };
        let source = |to| Job::TcpSource {
            to,
            streams,
            warmup,
            window,
        };
        let forth = way != Way::Back;
        let back = way != Way::Forth;
        let mut sinks = (None, None);
        if forth {
            sinks.1 = Some(self.start_b(sink(b_ip))?);
        }
        if back {
            sinks.0 = Some(self.start_a(sink(a_ip))?);
        }
        let mut sources = (None, None);
        if let Some((_, port)) = sinks.1 {
            sources.0 = Some(self.start_a(source(SocketAddr::new(b_ip, port)))?.0);
        }
        if let Some((_, port)) = sinks.0 {
            sources.1 = Some(self.start_b(source(SocketAddr::new(a_ip, port)))?.0);
        }
        // The sinks first: they close the streams.
        let jobs = [
            (sinks.1.map(|s| s.0), false),
            (sinks.0.map(|s| s.0), true),
            (sources.0, true),
            (sources.1, false),
        ];
        let mut bytes = 0;
        let mut costs: [Option<Cost>; 2] = [None, None];
        for (job, on_a) in jobs {
            let Some(job) = job else { continue };
            let outcome = if on_a {
                self.a.finish(job)
            } else {
                self.b.finish(job)
            };
            let cost = match outcome? {
                Outcome::TcpSink { bytes: more, cost } => {
                    bytes += more;
                    cost
                }
                Outcome::TcpSource { cost } => cost,
                other => bail!("not what was asked for: {other:?}"),
            };
            costs[usize::from(!on_a)] = Some(cost);
        }
        let [Some(a), Some(b)] = costs else {
            bail!("a side is missing");
        };
        if bytes == 0 {
            return Err(NothingArrived(format!("nothing arrived within {window} s")).into());
        }
        let mss = f64::from(self.ends.0.mtu) - 52.0;
        let figures = super::figures::tcp(bytes, mss, &self.pair(&a, &b));
        Ok((figures, json!({"bytes": bytes, "cost_a": a, "cost_b": b})))
    }

    fn flood(&mut self, size: Size) -> Result<(Figures, Value)> {
        let size = self.size(size)?;
        let (sent, received) = self.trial(size, 1, None, self.window)?;
        some_arrived(&sent, &received)?;
        let figures = super::figures::flood(&sent, &received, self.b.is_apart());
        Ok((
            figures,
            json!({"size": size, "sent": sent, "received": received}),
        ))
    }

    /// At the highest rate without loss.
    fn steady(&mut self, size: Size, flows: u16, rate: f64) -> Result<(Figures, Value)> {
        let size = self.size(size)?;
        let (sent, received) = self.trial(size, flows, Some(rate), self.window)?;
        some_arrived(&sent, &received)?;
        let figures = super::figures::udp_cost(&sent, &received, self.b.is_apart());
        Ok((figures, json!({"sent": sent, "received": received})))
    }

    fn loss(&mut self, size: Size, flows: u16) -> Result<(Figures, Value)> {
        let bytes = self.size(size)?;
        let window = (self.window / 4.0).clamp(0.1, 1.0);
        let mut zero = Search::new(0.0, TRIALS);
        let mut tenth = Search::new(0.001, 2 * TRIALS);
        let mut raw = Vec::new();
        let mut best = None;
        let mut reordered = 0;
        loop {
            let (asked, hunting_zero) = match (zero.next(), tenth.next()) {
                (Some(asked), _) => (asked, true),
                (None, Some(asked)) => (asked, false),
                (None, None) => break,
            };
            let (sent, received) = self.trial(bytes, flows, asked, window)?;
            reordered += received.reordered;
            #[allow(clippy::cast_precision_loss)]
            let trial = Trial {
                asked,
                sent: sent.packets as f64 / sent.seconds,
                loss: 1.0 - received.packets as f64 / sent.packets.max(1) as f64,
            };
            if hunting_zero {
                zero.tell(&trial);
                if trial.loss == 0.0 {
                    best = Some((sent.clone(), received.clone()));
                }
            }
            // What the first search tried need not be tried again.
            tenth.tell(&trial);
            raw.push(json!({"asked_pps": asked, "sent": sent, "received": received}));
        }
        let mut figures = match &best {
            Some((sent, received)) => super::figures::udp_cost(sent, received, self.b.is_apart()),
            None => Figures::new(),
        };
        figures.insert("zero_loss_pps".into(), zero.found());
        figures.insert("tenth_percent_pps".into(), tenth.found().max(zero.found()));
        #[allow(clippy::cast_precision_loss)]
        figures.insert("reordered".into(), reordered as f64);
        if size == Size::Bytes(SMALL) && flows == 1 {
            self.small_rate = Some(zero.found());
        }
        Ok((
            figures,
            json!({"size": bytes, "flows": flows, "trials": raw}),
        ))
    }

    fn trial(
        &mut self,
        size: u16,
        flows: u16,
        rate: Option<f64>,
        window: f64,
    ) -> Result<(UdpSent, UdpReceived)> {
        let (sink, port) = self.start_b(Job::UdpSink { at: self.ends.1.ip })?;
        let to = SocketAddr::new(self.ends.1.ip, port);
        let source = Source {
            to,
            size,
            flows,
            rate,
            send: self.send,
            window,
        };
        let (job, _) = self.start_a(Job::UdpSource(source))?;
        let sent = self.a.finish(job)?;
        let received = self.b.finish(sink)?;
        match (sent, received) {
            (Outcome::UdpSource(sent), Outcome::UdpSink(received)) => Ok((sent, received)),
            other => bail!("not what was asked for: {other:?}"),
        }
    }

    fn round_trips(&mut self, window: f64) -> Result<Rtt> {
        let (echo, port) = self.start_b(Job::Echo { at: self.ends.1.ip })?;
        let to = SocketAddr::new(self.ends.1.ip, port);
        let (job, _) = self.start_a(Job::PingPong {
            to,
            size: SMALL,
            window,
        })?;
        let trips = self.a.finish(job);
        self.b.finish(echo)?;
        match trips.context("no round trip")? {
            Outcome::PingPong(rtt) => Ok(rtt),
            other => bail!("not what was asked for: {other:?}"),
        }
    }

    fn rtt(&mut self) -> Result<(Figures, Value)> {
        let rtt = self.round_trips(self.window)?;
        Ok((super::figures::rtt(&rtt), json!({"rtt": rtt})))
    }

    fn rtt_half(&mut self) -> Result<(Figures, Value)> {
        let rate = match self.small_rate {
            Some(rate) => rate,
            None => {
                let (sent, received) = self.trial(SMALL, 1, None, (self.window / 4.0).max(0.1))?;
                #[allow(clippy::cast_precision_loss)]
                let delivered = received.packets as f64 / sent.seconds;
                delivered
            }
        } / 2.0;
        if rate < 1.0 {
            bail!("the path carries nothing without loss: there is no half of it");
        }
        let (sink, port) = self.start_b(Job::UdpSink { at: self.ends.1.ip })?;
        let to = SocketAddr::new(self.ends.1.ip, port);
        let load = Source {
            to,
            size: SMALL,
            flows: 1,
            rate: Some(rate),
            send: self.send,
            window: self.window + 0.05,
        };
        let (source, _) = self.start_a(Job::UdpSource(load))?;
        let rtt = self.round_trips((self.window - 0.05).max(0.05));
        let sent = self.a.finish(source)?;
        let received = self.b.finish(sink)?;
        let rtt = rtt?;
        let mut figures = super::figures::rtt(&rtt);
        figures.insert("load_pps".into(), rate);
        Ok((
            figures,
            json!({"rtt": rtt, "load": {"sent": sent, "received": received}}),
        ))
    }
}

/// What carries nothing has no figures.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NothingArrived(String);

fn some_arrived(sent: &UdpSent, received: &UdpReceived) -> Result<()> {
    if received.packets == 0 {
        let what = format!("of {} datagrams none arrived", sent.packets);
        return Err(NothingArrived(what).into());
    }
    Ok(())
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
}
