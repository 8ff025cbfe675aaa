//! What `/metrics` says: the counters of status, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Every name begins with `overlayd_`. A counter only grows while the daemon runs; sizes are in bytes, times in seconds. The
//! book's page "Metrics" lists all of them, and a test holds it to this file.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::status::{Health, Status};
use crate::datapath::DropReason;
use crate::datapath::counters::{DirectionCounts, Tally, Way};

/// The type of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All that is told.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// What people are told.
    pub status: &'a Status,
    /// Drops are told of every reason, also of those that have not happened.
    pub tally: &'a Tally,
    /// Times that our rules in the packet filter had to be put back.
    pub filter_repairs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn encode(self, value: u64, sample: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Kind::Counter => ConstCounter::new(value).encode(sample),
            Kind::Gauge => {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(sample)
            }
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// One metric with its samples.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<(Labels, u64)>,
}

#[derive(Debug)]
struct Metrics(Vec<Metric>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in &self.0 {
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            if let [(labels, value)] = &*metric.samples {
                if labels.is_empty() {
                    metric.kind.encode(*value, family)?;
                    continue;
                }
            }
            for (labels, value) in &metric.samples {
                metric.kind.encode(*value, family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

/// The answer to a scrape.
pub fn render(figures: &Figures<'_>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(metrics(figures))));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// Every metric as a scrape shows it: name, type, meaning.
pub fn catalogue() -> Vec<(String, &'static str, &'static str)> {
    let shown = |name: &str, kind, help| match kind {
        Kind::Counter => (format!("{name}_total"), "counter", help),
        Kind::Gauge => (name.to_owned(), "gauge", help),
    };
    let own = OWN
        .iter()
        .map(|(name, help, kind)| shown(name, *kind, *help));
    let directed = DIRECTED
        .iter()
        .map(|(name, help, kind, _)| shown(name, *kind, *help));
    own.chain(directed).collect()
}

/// How a count is taken from those of one direction.
type Take = fn(&DirectionCounts) -> u64;

/// Metrics of the daemon as a whole, and of its peers.
#[rustfmt::skip]
const OWN: &[(&str, &str, Kind)] = &[
    ("overlayd_build_info", "Always 1; version, engine and backend are its labels", Kind::Gauge),
    ("overlayd_uptime_seconds", "Time since start", Kind::Gauge),
    ("overlayd_degraded", "1 while something is not as configured; status says what", Kind::Gauge),
    ("overlayd_warnings", "Settings of the host that would eat overlay traffic", Kind::Gauge),
    ("overlayd_device_mtu_bytes", "MTU of the overlay device", Kind::Gauge),
    ("overlayd_underlay_mtu_bytes", "MTU of the underlay interface", Kind::Gauge),
    ("overlayd_peers", "Other nodes that packets are exchanged with", Kind::Gauge),
    ("overlayd_refused_leases", "Leases and static routes that were not taken", Kind::Gauge),
    ("overlayd_filter_repairs", "Times that rules of ours in the packet filter had to be put back", Kind::Counter),
    ("overlayd_store_reachable", "1 if the lease store could be read the last time", Kind::Gauge),
    ("overlayd_store_leases", "Leases in the store", Kind::Gauge),
    ("overlayd_store_reads", "Times that the whole store was read", Kind::Counter),
    ("overlayd_store_faults", "Attempts to read or write the store that failed", Kind::Counter),
    ("overlayd_store_watch_events", "Changes that the store's watch told", Kind::Counter),
    ("overlayd_store_relists", "Times that the watch began anew with a list of all", Kind::Counter),
    ("overlayd_store_unreadable_values", "Values in the store that made no sense", Kind::Counter),
    ("overlayd_store_age_seconds", "Time for which the leases in force have not been compared with the store", Kind::Gauge),
    ("overlayd_lease_renewals", "Times that this node's lease was renewed", Kind::Counter),
    ("overlayd_lease_conflicts", "Writes of this node's lease that lost a race", Kind::Counter),
    ("overlayd_lease_left_seconds", "What is left of the time of this node's lease", Kind::Gauge),
    ("overlayd_peer_packets", "Inner packets exchanged with a peer", Kind::Counter),
    ("overlayd_peer_bytes", "Inner bytes exchanged with a peer", Kind::Counter),
    ("overlayd_packets_dropped", "Packets dropped, by reason", Kind::Counter),
];

/// Metrics of each direction: outbound is from the device to peers, inbound from peers to the device.
#[rustfmt::skip]
const DIRECTED: &[(&str, &str, Kind, Take)] = &[
    ("overlayd_packets_in", "Packets taken in", Kind::Counter, |c| c.packets_in),
    ("overlayd_packets_forwarded", "Packets handed on", Kind::Counter, |c| c.forwarded),
    ("overlayd_forwarded_bytes", "Inner bytes of packets handed on", Kind::Counter, |c| c.forwarded_bytes),
    ("overlayd_packets_answered", "Packets answered in the destination's stead", Kind::Counter, |c| c.answered),
    ("overlayd_packets_flooded", "Packets sent to all peers", Kind::Counter, |c| c.flooded),
    ("overlayd_packets_queued", "Packets taken in that have not ended yet", Kind::Gauge, |c| c.queued),
    ("overlayd_fragments", "IPv4 fragments made", Kind::Counter, |c| c.fragments),
    ("overlayd_icmp_sent", "ICMP errors sent", Kind::Counter, |c| c.icmp_sent),
    ("overlayd_icmp_limited", "ICMP errors held back by the rate limit", Kind::Counter, |c| c.icmp_limited),
    ("overlayd_superpackets_split", "Superpackets split into packets", Kind::Counter, |c| c.split),
    ("overlayd_superpackets_injected", "Superpackets sent whole", Kind::Counter, |c| c.injected),
    ("overlayd_packets_coalesced", "Packets handed to the device in one piece with others", Kind::Counter, |c| c.coalesced),
    ("overlayd_checksums_completed", "Transport checksums completed", Kind::Counter, |c| c.checksums_completed),
    ("overlayd_reserved_bits", "Datagrams accepted although reserved bits were set", Kind::Counter, |c| c.reserved_bits),
    ("overlayd_overflow", "Packets that the kernel dropped before the daemon saw them, at the device or the socket", Kind::Counter, |c| c.overflow),
    ("overlayd_device_calls", "System calls on the device that moved something", Kind::Counter, |c| c.device_calls),
    ("overlayd_socket_calls", "System calls on the sockets that moved something", Kind::Counter, |c| c.socket_calls),
    ("overlayd_socket_messages", "Messages in those calls", Kind::Counter, |c| c.socket_messages),
    ("overlayd_datagrams", "Datagrams in those messages", Kind::Counter, |c| c.datagrams),
    ("overlayd_batches", "Batches that packets came in", Kind::Counter, |c| c.batches),
];

fn metrics(figures: &Figures<'_>) -> Vec<Metric> {
    let Status {
        outbound, inbound, ..
    } = figures.status;
    let own = OWN.iter().map(|(name, help, kind)| Metric {
        name,
        help,
        kind: *kind,
        samples: samples(name, figures),
    });
    let directed = DIRECTED.iter().map(|(name, help, kind, value)| Metric {
        name,
        help,
        kind: *kind,
        samples: vec![
            (direction("outbound"), value(outbound)),
            (direction("inbound"), value(inbound)),
        ],
    });
    // A metric without a sample would be a heading over nothing.
    own.chain(directed)
        .filter(|metric| !metric.samples.is_empty())
        .collect()
}

fn direction(name: &str) -> Labels {
    vec![("direction", name.to_owned())]
}

fn samples(name: &str, figures: &Figures<'_>) -> Vec<(Labels, u64)> {
    let Figures {
        status,
        tally,
        filter_repairs,
    } = *figures;
    let store = &status.store;
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let value = match name {
        "overlayd_build_info" => {
            let label = |name, value: &str| (name, value.to_owned());
            let labels = vec![
                label("version", &status.program_version),
                label("backend", &status.backend.name),
                label("engine", &status.engine),
                label("store", &store.kind),
            ];
            return vec![(labels, 1)];
        }
        "overlayd_peer_packets" => {
            return per_peer(status, |p| (p.sent_packets, p.received_packets));
        }
        "overlayd_peer_bytes" => return per_peer(status, |p| (p.sent_bytes, p.received_bytes)),
        "overlayd_packets_dropped" => {
            let of = |way: Way| {
                let sample = move |reason: &DropReason| {
                    let mut labels = direction(way.name());
                    labels.push(("reason", reason.name().to_owned()));
                    (labels, tally.dropped(way, *reason))
                };
                DropReason::ALL.iter().map(sample)
            };
            return Way::ALL.into_iter().flat_map(of).collect();
        }
        "overlayd_uptime_seconds" => Some(status.uptime_seconds),
        "overlayd_degraded" => Some(u64::from(status.state != Health::Ok)),
        "overlayd_warnings" => Some(count(status.warnings.len())),
        "overlayd_device_mtu_bytes" => Some(status.device.mtu.into()),
        "overlayd_underlay_mtu_bytes" => Some(status.device.underlay_mtu.into()),
        "overlayd_peers" => Some(count(status.peers.len())),
        "overlayd_refused_leases" => Some(count(status.refused.len())),
        "overlayd_filter_repairs" => Some(filter_repairs),
        "overlayd_store_reachable" => Some(store.reachable.into()),
        "overlayd_store_leases" => Some(count(store.leases)),
        "overlayd_store_reads" => Some(store.reads),
        "overlayd_store_faults" => Some(store.faults),
        "overlayd_store_watch_events" => Some(store.changes),
        "overlayd_store_relists" => Some(store.relists),
        "overlayd_store_unreadable_values" => Some(store.unreadable_values),
        "overlayd_store_age_seconds" => store.age_seconds,
        "overlayd_lease_renewals" => Some(store.renewals),
        "overlayd_lease_conflicts" => Some(store.races_lost),
        "overlayd_lease_left_seconds" => store.lease_left_seconds,
        _ => None,
    };
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn per_peer(
    status: &Status,
    value: impl Fn(&super::status::Peer) -> (u64, u64),
) -> Vec<(Labels, u64)> {
    let of = |peer: &super::status::Peer| {
        let (v4, v6) = (peer.public_ip, peer.public_ipv6);
        let name = v4
            .map(|ip| ip.to_string())
            .or_else(|| v6.map(|ip| ip.to_string()));
        let name = name.unwrap_or_default();
        let labels = |direction| vec![("peer", name.clone()), ("direction", direction)];
        let (sent, received) = value(peer);
        [
            (labels("sent".to_owned()), sent),
            (labels("received".to_owned()), received),
        ]
    };
    status.peers.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::observe::status::{Backend, Device, OwnLease, Peer, Repairs, Store};

    fn status() -> Status {
        Status {
            version: 1,
            state: Health::Ok,
            reasons: Vec::new(),
            warnings: Vec::new(),
            repairs: Repairs::default(),
            node: "node-a".into(),
            pid: 1,
            uptime_seconds: 7,
            program_version: "0.1.0".into(),
            backend: Backend {
                name: "vxlan".into(),
                port: 8472,
                vni: Some(1),
            },
            engine: "batched".into(),
            features: Vec::new(),
            device: Device {
                name: "overlay0".into(),
                index: 4,
                mtu: 1450,
                addresses: Vec::new(),
                underlay: "eth0".into(),
                underlay_mtu: 1500,
            },
            lease: OwnLease {
                subnet: None,
                ipv6_subnet: None,
                public_ip: None,
                public_ipv6: None,
                vtep_mac: None,
            },
            ip_masq: false,
            store: Store::default(),
            peers: vec![Peer {
                subnet: None,
                ipv6_subnet: None,
                also: Vec::new(),
                public_ip: Some("10.99.0.2".parse().unwrap()),
                public_ipv6: None,
                vtep_mac: None,
                sent_packets: 1,
                sent_bytes: 2,
                received_packets: 3,
                received_bytes: 4,
            }],
            refused: Vec::new(),
            outbound: DirectionCounts {
                packets_in: 5,
                ..DirectionCounts::default()
            },
            inbound: DirectionCounts::default(),
            drops: Vec::new(),
        }
    }

    fn rendered(store: Store) -> String {
        let tally = Tally::new(1);
        tally.queues()[0].inbound.drop_many(DropReason::WrongVni, 3);
        render(&Figures {
            status: &Status { store, ..status() },
            tally: &tally,
            filter_repairs: 0,
        })
    }

    #[test]
    fn samples_carry_their_values_and_labels() {
        let text = rendered(Store::default());
        for line in [
            "overlayd_build_info{version=\"0.1.0\",backend=\"vxlan\",engine=\"batched\",store=\"\"} 1",
            "overlayd_packets_in_total{direction=\"outbound\"} 5",
            "overlayd_packets_dropped_total{direction=\"inbound\",reason=\"wrong-vni\"} 3",
            "overlayd_packets_dropped_total{direction=\"outbound\",reason=\"wrong-vni\"} 0",
            "overlayd_peer_bytes_total{peer=\"10.99.0.2\",direction=\"received\"} 4",
            "overlayd_device_mtu_bytes 1450",
            "# TYPE overlayd_peers gauge",
            "# TYPE overlayd_packets_in counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(
            !text.contains("overlayd_lease_left_seconds"),
            "it has no end"
        );
    }

    #[test]
    fn every_name_is_unique_and_shown_where_it_has_a_value() {
        let text = rendered(Store {
            age_seconds: Some(1),
            lease_left_seconds: Some(2),
            ..Store::default()
        });
        let mut seen = HashSet::new();
        for (name, ..) in catalogue() {
            assert!(seen.insert(name.clone()), "{name} twice");
            let shown = |l: &str| {
                l.strip_prefix(&name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            assert!(text.lines().any(shown), "{name} has no sample\n{text}");
        }
    }
}
