//! From counts to figures: what is printed, and what two runs are compared by. The end of a name is the unit.

use serde_json::Value;

use super::cell::Figures;
use super::load::{Rtt, UdpReceived, UdpSent};
use super::meter::Cost;

/// The figure that stands for a test of this name: its name, unit and divisor for people, and whether more is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Principal {
    /// The figure's name.
    pub name: &'static str,
    /// The unit that people read.
    pub unit: &'static str,
    /// What to divide by for that unit.
    pub scale: f64,
    /// Is more better?
    pub more_is_better: bool,
}

/// The figures by which people compare a test: the first is the most important.
pub fn principals(test: &str) -> &'static [Principal] {
    const fn figure(
        name: &'static str,
        unit: &'static str,
        scale: f64,
        more_is_better: bool,
    ) -> Principal {
        Principal {
            name,
            unit,
            scale,
            more_is_better,
        }
    }
    const TCP: &[Principal] = &[figure("gbps", "Gb/s", 1.0, true)];
    const FLOOD: &[Principal] = &[figure("received_pps", "kpps", 1e3, true)];
    const LOSS: &[Principal] = &[
        figure("zero_loss_pps", "kpps, no loss", 1e3, true),
        figure("tenth_percent_pps", "kpps, 0.1 % loss", 1e3, true),
    ];
    const RTT: &[Principal] = &[
        figure("p50_us", "us p50", 1.0, false),
        figure("p99_us", "us p99", 1.0, false),
        figure("p999_us", "us p99.9", 1.0, false),
    ];
    match test.split('-').next() {
        Some("tcp") => TCP,
        Some("udp") => FLOOD,
        Some("loss") => LOSS,
        _ => RTT,
    }
}

/// Of TCP: `bytes` of goodput while the hosts had these costs. `mss` bytes count as a packet.
pub(super) fn tcp(bytes: u64, mss: f64, costs: &Pair<'_>) -> Figures {
    let bytes = as_f64(bytes);
    let seconds = f64::midpoint(costs.a.seconds, costs.b.seconds);
    let mut figures = Figures::new();
    let mut put = |name: &str, value: f64| {
        figures.insert(name.into(), value);
    };
    put("gbps", bytes * 8.0 / seconds / 1e9);
    let (cpu, daemon) = (costs.system(|c| c.cpu), costs.daemons(|d| Some(d.cpu)));
    put("cpu_s_per_gb", cpu / (bytes / 1e9));
    if let Some(daemon) = daemon {
        put("daemon_cpu_s_per_gb", daemon / (bytes / 1e9));
    }
    per_packet(&mut figures, bytes / mss, costs);
    figures
}

/// Of datagrams sent flat out.
pub(super) fn flood(sent: &UdpSent, received: &UdpReceived, apart: bool) -> Figures {
    let mut figures = udp_cost(sent, received, apart);
    let mut put = |name: &str, value: f64| {
        figures.insert(name.into(), value);
    };
    put("sent_pps", as_f64(sent.packets) / sent.seconds);
    put("received_pps", as_f64(received.packets) / sent.seconds);
    put(
        "loss",
        1.0 - as_f64(received.packets) / as_f64(sent.packets.max(1)),
    );
    put("reordered", as_f64(received.reordered));
    put("duplicates", as_f64(received.duplicates));
    figures
}

/// What datagrams cost, counted by those that arrived.
pub(super) fn udp_cost(sent: &UdpSent, received: &UdpReceived, apart: bool) -> Figures {
    let mut figures = Figures::new();
    let packets = as_f64(received.packets);
    let costs = Pair {
        a: &sent.cost,
        b: &received.cost,
        apart,
    };
    // The sink's window is longer by the wait for stragglers: idle time, which costs nothing.
    let cpu = costs.system(|c| c.cpu);
    figures.insert("cpu_s_per_mpkt".into(), cpu / (packets / 1e6));
    if let Some(daemon) = costs.daemons(|d| Some(d.cpu)) {
        figures.insert("daemon_cpu_s_per_mpkt".into(), daemon / (packets / 1e6));
    }
    per_packet(&mut figures, packets, &costs);
    figures
}

/// Of round trips.
pub(super) fn rtt(rtt: &Rtt) -> Figures {
    let mut figures = Figures::new();
    let mut put = |name: &str, value: f64| {
        figures.insert(name.into(), value);
    };
    put("min_us", rtt.min);
    put("p50_us", rtt.p50);
    put("p99_us", rtt.p99);
    put("p999_us", rtt.p999);
    put("max_us", rtt.max);
    put("lost", as_f64(rtt.lost));
    put("count", as_f64(rtt.count));
    figures
}

/// How many packets a daemon moved per system call, where its engine counts them: each pair is a status document before
/// and after, of the sending and of the receiving host.
pub(super) fn batches(
    sending: (Option<&Value>, Option<&Value>),
    receiving: (Option<&Value>, Option<&Value>),
) -> Figures {
    let mut figures = Figures::new();
    let mut put = |name: &str,
                   (before, after): (Option<&Value>, Option<&Value>),
                   direction: &str,
                   what: &str,
                   calls: &str| {
        let count = |key: &str| -> Option<f64> {
            let count = |status: Option<&Value>| status?[direction][key].as_f64();
            Some(count(after)? - count(before)?)
        };
        if let (Some(what), Some(calls)) = (count(what), count(calls)) {
            if calls > 0.0 {
                figures.insert(name.into(), what / calls);
            }
        }
    };
    put(
        "packets_per_device_read",
        sending,
        "outbound",
        "in",
        "device_calls",
    );
    put(
        "datagrams_per_send",
        sending,
        "outbound",
        "datagrams",
        "socket_calls",
    );
    put(
        "datagrams_per_receive",
        receiving,
        "inbound",
        "datagrams",
        "socket_calls",
    );
    put(
        "packets_per_device_write",
        receiving,
        "inbound",
        "forwarded",
        "device_calls",
    );
    figures
}

fn per_packet(figures: &mut Figures, packets: f64, costs: &Pair<'_>) {
    let mut put = |name: &str, value: f64| {
        figures.insert(name.into(), value / packets);
    };
    put("switches_per_packet", costs.system(|c| as_f64(c.switches)));
    if let Some(switches) = costs.daemons(|d| Some(as_f64(d.switches))) {
        put("daemon_switches_per_packet", switches);
    }
    if let Some(syscalls) = costs.daemons(|d| d.syscalls.map(as_f64)) {
        put("daemon_syscalls_per_packet", syscalls);
    }
}

/// The costs of both hosts.
pub(super) struct Pair<'a> {
    pub(super) a: &'a Cost,
    pub(super) b: &'a Cost,
    /// On two machines. On one, each has seen all of it.
    pub(super) apart: bool,
}

impl Pair<'_> {
    /// Of the whole system or both.
    fn system(&self, what: impl Fn(&Cost) -> f64) -> f64 {
        let other = if self.apart { what(self.b) } else { 0.0 };
        what(self.a) + other
    }

    /// Of both daemons together; `None` where there are none, or one of them could not be counted.
    fn daemons(&self, what: impl Fn(&super::meter::DaemonCost) -> Option<f64>) -> Option<f64> {
        Some(what(self.a.daemon.as_ref()?)? + what(self.b.daemon.as_ref()?)?)
    }
}

#[allow(clippy::cast_precision_loss)] // figures, not books
fn as_f64(count: u64) -> f64 {
    count as f64
}
