//! Ping: numbered echo requests, one after the other, and what came back for each.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::echo::{Event, Prober};
use super::{Cancel, Fragmenting, IcmpError, Wait};

/// How to ping.
#[derive(Clone, Debug)]
pub struct PingOpts {
    /// Probes to send (default 3).
    pub count: u32,
    /// Data bytes in each, after the 8 of the ICMP header: the IPv4 packet is 28 bytes longer, IPv6 48 (default 56).
    pub size: usize,
    /// May the probes be fragmented (default: yes)?
    pub fragmenting: Fragmenting,
    /// TTL or hop limit (default 64).
    pub ttl: u8,
    /// How long to wait for each probe's answer; the next one leaves as soon as it is there (default 1 s).
    pub timeout: Duration,
    /// The least time from one probe to the next (default 0).
    pub interval: Duration,
    /// Our address; the kernel chooses if `None`.
    pub source: Option<IpAddr>,
    /// Ends the run early.
    pub cancel: Cancel,
}

impl Default for PingOpts {
    fn default() -> Self {
        Self {
            count: 3,
            size: 56,
            fragmenting: Fragmenting::Allowed,
            ttl: 64,
            timeout: Duration::from_secs(1),
            interval: Duration::ZERO,
            source: None,
            cancel: Cancel::default(),
        }
    }
}

/// A probe that did not leave this host: the kernel refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the probe, counted from 0.
    pub probe: u64,
    /// The error number: `EMSGSIZE`, `ENETUNREACH`, `EHOSTUNREACH`, `EPERM`, ...
    pub errno: i32,
    /// With `EMSGSIZE`: the MTU that stands in the way, of the interface or the route, in bytes.
    pub mtu: Option<u32>,
}

/// What became of the probes of one run.
#[derive(Clone, Debug, Default)]
pub struct PingReport {
    /// Probes that were to be sent, refused ones counted.
    pub sent: u32,
    /// Probes that were answered with their own bytes.
    pub received: u32,
    /// Round-trip time of each answered probe, in the order of the answers.
    pub rtts: Vec<Duration>,
    /// ICMP errors about our probes, from anyone.
    pub errors: Vec<IcmpError>,
    /// Probes that the local kernel refused.
    pub refusals: Vec<Refusal>,
    /// Second answers to a probe.
    pub duplicates: u32,
    /// Answers that carried other bytes than were sent.
    pub corrupted: u32,
}

impl PingReport {
    /// Every probe was answered, once, and with its own bytes.
    pub fn all_answered(&self) -> bool {
        self.received == self.sent && self.corrupted == 0 && self.duplicates == 0
    }

    /// The shortest round trip.
    pub fn best(&self) -> Option<Duration> {
        self.rtts.iter().min().copied()
    }

    /// The mean round trip.
    pub fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.rtts.len()).ok()?;
        self.rtts.iter().sum::<Duration>().checked_div(count)
    }

    /// The MTU that somebody told, ICMP or the local kernel, if a probe was too big.
    pub fn mtu(&self) -> Option<u32> {
        let told = self.errors.iter().find_map(|e| e.mtu);
        told.or_else(|| self.refusals.iter().find_map(|r| r.mtu))
    }
}

/// Pings `dst` and reports. At most `count * max(timeout, interval)` passes.
///
/// A probe is done with when it is answered, when an ICMP error tells of it, when the kernel refuses it, or when its
/// time is over; an answer that comes later is still counted as long as the run lasts.
///
/// # Errors
/// Without CAP_NET_RAW, with a source address that no interface has, or when cancelled. Losses, ICMP errors and
/// refusals are results, not errors.
pub fn ping(dst: IpAddr, opts: &PingOpts) -> io::Result<PingReport> {
    let mut prober = Prober::open(dst, opts.source, opts.size, opts.fragmenting)?;
    prober.set_ttl(opts.ttl)?;
    let mut report = PingReport::default();
    // When each probe left, and whether its answer came.
    let mut probes: Vec<(Option<Instant>, bool)> = Vec::new();
    for _ in 0..opts.count {
        let start = Instant::now();
        let (probe, result) = prober.send();
        report.sent += 1;
        match result {
            Ok(at) => {
                probes.push((Some(at), false));
                let wait = Wait::until(start + opts.timeout, &opts.cancel);
                while let Some((event, at)) = prober.recv(&wait)? {
                    if note(&mut report, &mut probes, &event, at) == Some(probe) {
                        break;
                    }
                }
            }
            Err(error) => {
                probes.push((None, false));
                let Some(errno) = error.raw_os_error() else {
                    return Err(error);
                };
                let mtu = if errno == libc::EMSGSIZE {
                    prober.local_mtu()?
                } else {
                    None
                };
                report.refusals.push(Refusal { probe, errno, mtu });
            }
        }
        if report.sent < opts.count {
            Wait::until(start + opts.interval, &opts.cancel).pause()?;
        }
    }
    Ok(report)
}

/// Enters an event into the report; returns the probe that it settles.
fn note(
    report: &mut PingReport,
    probes: &mut [(Option<Instant>, bool)],
    event: &Event,
    at: Instant,
) -> Option<u64> {
    match *event {
        Event::Error(error) => {
            report.errors.push(error);
            Some(error.probe)
        }
        Event::Reply { probe, intact } => {
            let (sent, answered) = probes.get_mut(usize::try_from(probe).ok()?)?;
            if !intact {
                report.corrupted += 1;
            } else if *answered {
                report.duplicates += 1;
            } else {
                *answered = true;
                report.received += 1;
                report.rtts.extend(sent.map(|sent| at.duration_since(sent)));
            }
            Some(probe)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_answers_apart() {
        let start = Instant::now();
        let mut probes = vec![(Some(start), false), (Some(start), false), (None, false)];
        let mut report = PingReport {
            sent: 3,
            ..PingReport::default()
        };
        let reply = |probe, intact| Event::Reply { probe, intact };
        let at = start + Duration::from_millis(2);
        assert_eq!(note(&mut report, &mut probes, &reply(0, true), at), Some(0));
        assert_eq!(note(&mut report, &mut probes, &reply(0, true), at), Some(0));
        assert_eq!(
            note(&mut report, &mut probes, &reply(1, false), at),
            Some(1)
        );
        assert_eq!(
            (report.received, report.duplicates, report.corrupted),
            (1, 1, 1)
        );
        assert!(!report.all_answered());
        assert_eq!(report.mean(), Some(Duration::from_millis(2)));
        assert_eq!(report.mtu(), None);
        let error = IcmpError {
            from: IpAddr::from([10, 0, 0, 1]),
            kind: 3,
            code: 4,
            mtu: Some(1400),
            probe: 1,
        };
        assert_eq!(
            note(&mut report, &mut probes, &Event::Error(error), at),
            Some(1)
        );
        assert_eq!(report.mtu(), Some(1400));
    }

    #[test]
    fn a_run_without_answers_has_no_mean() {
        let report = PingReport {
            sent: 3,
            ..PingReport::default()
        };
        assert_eq!((report.mean(), report.best()), (None, None));
        assert!(!report.all_answered());
    }
}
