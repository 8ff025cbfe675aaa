//! The daemon under attack, and who attacks it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use encap::Family;
use integration::bed::{Backend, Bed, Config, Daemon, Node, PATIENCE};
use serde_json::Value;

use super::craft::port_of;
use super::{PAYLOAD, PORT};

/// The daemon under attack, and what it said last.
pub(super) struct Target<'a> {
    node: &'a Node,
    pub(super) daemon: Daemon,
    listener: UdpSocket,
    last: Counts,
    reasons: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    taken_in: u64,
    drops: BTreeMap<String, u64>,
    /// What the kernel says the device has received.
    delivered: u64,
}

impl<'a> Target<'a> {
    pub(super) fn start(node: &'a Node, config: &Config) -> Self {
        let daemon = Daemon::start(node, config);
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let listener = node.run_in_pod(|| UdpSocket::bind(any)).unwrap();
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut target = Target {
            node,
            daemon,
            listener,
            last: Counts {
                taken_in: 0,
                drops: BTreeMap::new(),
                delivered: 0,
            },
            reasons: Vec::new(),
        };
        target.last = target.counts(&target.daemon.status());
        target
    }

    fn counts(&self, status: &Value) -> Counts {
        let inbound = status["drops"].as_array().unwrap().iter();
        let inbound = inbound.filter(|drop| drop["direction"] == "inbound");
        let named = inbound.map(|drop| {
            let reason = drop["reason"].as_str().unwrap().to_owned();
            (reason, drop["packets"].as_u64().unwrap())
        });
        let table = self
            .node
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .unwrap();
        let device = table
            .lines()
            .find_map(|line| line.trim().strip_prefix("overlay0:"));
        // Bytes, then packets.
        let received = device.unwrap().split_whitespace().nth(1).unwrap();
        Counts {
            taken_in: status["inbound"]["in"].as_u64().unwrap(),
            drops: named.collect(),
            delivered: received.parse().unwrap(),
        }
    }

    /// What changed, once `packets` more have been taken in.
    fn after(&mut self, what: &str, packets: u64) -> Counts {
        let wanted = self.last.taken_in + packets;
        // A packet is taken in a moment before it ends somewhere.
        let status = self.daemon.wait_for(what, |status| {
            let inbound = &status["inbound"];
            inbound["in"].as_u64() >= Some(wanted) && inbound["queued"] == 0
        });
        let now = self.counts(&status);
        let grown = now.drops.iter().map(|(reason, count)| {
            let before = self.last.drops.get(reason).copied().unwrap_or(0);
            (reason.clone(), count - before)
        });
        let changed = Counts {
            taken_in: now.taken_in - self.last.taken_in,
            drops: grown.filter(|(_, count)| *count > 0).collect(),
            delivered: now.delivered - self.last.delivered,
        };
        self.last = now;
        changed
    }

    /// It was dropped, for this reason and no other.
    #[track_caller]
    pub(super) fn drops(&mut self, what: &str, reason: &str, send: impl FnOnce()) {
        send();
        let expected = Counts {
            taken_in: 1,
            drops: BTreeMap::from([(reason.to_owned(), 1)]),
            delivered: 0,
        };
        assert_eq!(self.after(what, 1), expected, "{what}");
        self.reasons.push(reason.to_owned());
    }

    /// It reached the listener in the pod.
    #[track_caller]
    pub(super) fn delivers(&mut self, what: &str, send: impl FnOnce()) {
        send();
        let changed = self.after(what, 1);
        assert!(
            changed.drops.is_empty() && changed.delivered == 1,
            "{what}: {changed:?}"
        );
        let mut payload = [0; 64];
        let len = self.listener.recv(&mut payload).expect(what);
        assert_eq!(&payload[..len], PAYLOAD, "{what}");
    }

    /// The kernel dropped it before the daemon.
    #[track_caller]
    pub(super) fn never_sees(&mut self, what: &str, send: impl FnOnce()) {
        send();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.after(what, 0).taken_in, 0, "{what}");
    }

    pub(super) fn finish(self) {
        self.listener.set_nonblocking(true).unwrap();
        assert!(
            self.listener.recv(&mut [0; 64]).is_err(),
            "nothing else came to the pod"
        );
        let expected: Vec<_> = self.reasons.iter().map(String::as_str).collect();
        self.daemon.assert_balanced(&expected);
        self.daemon.stop();
    }
}

/// Sends from an address of node 2 to node 1's daemon.
pub(super) struct Attacker {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Attacker {
    pub(super) fn at(bed: &Bed, from: IpAddr, backend: Backend) -> Self {
        let to = bed.node(1).public_ip(Family::of(&from));
        Attacker {
            socket: bed.node(2).run(|| UdpSocket::bind((from, 0))).unwrap(),
            to: SocketAddr::new(to, port_of(backend)),
        }
    }

    pub(super) fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.to).unwrap();
    }
}
