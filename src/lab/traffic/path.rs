//! The path to a destination, hop by hop: echo requests whose TTL is 1, then 2, then 3 (as `traceroute -I` does).
//!
//! A router that takes the last one off a packet's TTL drops it and tells the sender (RFC 1812 §5.3.1), and so names
//! itself. A hop that forwards without taking one off, as an overlay link should, stays unseen.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::echo::{Event, Prober};
use super::{Cancel, Fragmenting, IcmpError, Wait};

/// How to trace a path.
#[derive(Clone, Debug)]
pub struct PathOpts {
    /// The greatest TTL tried (default 16).
    pub max_hops: u8,
    /// Probes for a hop that stays silent before it is passed over (default 2).
    pub tries: u32,
    /// How long to wait for each probe's answer (default 1 s).
    pub timeout: Duration,
    /// Data bytes in each probe (default 32).
    pub size: usize,
    /// Our address; the kernel chooses if `None`.
    pub source: Option<IpAddr>,
    /// Ends the run early.
    pub cancel: Cancel,
}

impl Default for PathOpts {
    fn default() -> Self {
        Self {
            max_hops: 16,
            tries: 2,
            timeout: Duration::from_secs(1),
            size: 32,
            source: None,
            cancel: Cancel::default(),
        }
    }
}

/// How a hop answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A router on the way: the TTL ran out there.
    TimeExceeded,
    /// The destination itself.
    Reply,
    /// The path ends here, with this error.
    Error(IcmpError),
    /// The local kernel would not send, with this error number (`ENETUNREACH`, ...).
    Refused(i32),
    /// Nothing came back.
    Silent,
}

/// One hop of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The TTL or hop limit that led there: 1 is the first router.
    pub ttl: u8,
    /// Who answered.
    pub from: Option<IpAddr>,
    /// Time to the hop and back.
    pub rtt: Option<Duration>,
    /// What it said.
    pub answer: Answer,
}

/// Finds the routers between here and `dst`. The last hop is the destination if its [`Answer`] is `Reply`; the path
/// also ends at a hop that answers with another error, and after `max_hops`.
///
/// # Errors
/// Without CAP_NET_RAW, with a source address that no interface has, or when cancelled.
pub fn trace_path(dst: IpAddr, opts: &PathOpts) -> io::Result<Vec<Hop>> {
    let mut prober = Prober::open(dst, opts.source, opts.size, Fragmenting::Allowed)?;
    let mut hops = Vec::new();
    for ttl in 1..=opts.max_hops {
        prober.set_ttl(ttl)?;
        let mut hop = Hop {
            ttl,
            from: None,
            rtt: None,
            answer: Answer::Silent,
        };
        for _ in 0..opts.tries {
            if try_hop(&mut prober, dst, &mut hop, opts)? {
                break;
            }
        }
        hops.push(hop);
        if !matches!(hop.answer, Answer::TimeExceeded | Answer::Silent) {
            break;
        }
    }
    Ok(hops)
}

/// One probe; `true` when it was answered.
fn try_hop(prober: &mut Prober, dst: IpAddr, hop: &mut Hop, opts: &PathOpts) -> io::Result<bool> {
    let (number, result) = prober.send();
    let sent = match result {
        Ok(at) => at,
        Err(error) => {
            hop.answer = Answer::Refused(error.raw_os_error().ok_or(error)?);
            return Ok(true);
        }
    };
    let wait = Wait::of(opts.timeout, &opts.cancel);
    while let Some((event, at)) = prober.recv(&wait)? {
        // An answer to an earlier probe would put a router one hop too far.
        let (from, answer) = match event {
            Event::Reply { probe, .. } if probe == number => (dst, Answer::Reply),
            Event::Error(error) if error.probe == number && error.is_time_exceeded() => {
                (error.from, Answer::TimeExceeded)
            }
            Event::Error(error) if error.probe == number => (error.from, Answer::Error(error)),
            _ => continue,
        };
        (hop.from, hop.answer, hop.rtt) = (Some(from), answer, Some(at.duration_since(sent)));
        return Ok(true);
    }
    Ok(false)
}
