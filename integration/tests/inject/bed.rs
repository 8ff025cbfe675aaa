//! Two hosts on a wire, and superpackets to send from one to the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use encap::ipv4::{self, Ipv4};
use encap::ipv6::Ipv6;
use encap::tcp::{self, Tcp};
use encap::udp::{self, Udp};
use encap::{Encapsulation, Family, Inner, MacAddr, OwnMacs, RawUdp, Vxlan, checksum};
use fdb::{Endpoint, NextHop};
use integration::bed::Backend;
use overlayd::inject::{Injector, Kind, Path, Spec, Super, Unavailable};
use overlayd::kernel::{NetNs, Netlink};
use tokio::runtime::Runtime;

pub(crate) const OURS4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const PEER4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub(crate) const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
/// The injection device.
pub(crate) const TAP: &str = "overlay0-tx";
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const KINDS: [Kind; 2] = [Kind::Tcp { ecn: false }, Kind::Udp];
/// The acknowledgment field is significant (RFC 9293 section 3.1).
const ACK: u16 = 0x10;
const VTEP: [u8; 6] = [0x0a, 0x58, 10, 99, 0, 2];

/// Two namespaces, joined by a veth pair whose ends are called `eth0`, with addresses of both families.
pub(crate) struct Pair {
    pub(crate) ours: NetNs,
    pub(crate) peer: NetNs,
    names: [String; 2],
}

impl Pair {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        integration::bed::sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["ours", "peer"]
            .map(|part| format!("ovt-{}-inject{number}-{part}", std::process::id()));
        let [ours, peer] = names
            .each_ref()
            .map(|name| NetNs::create_named(name).expect("these tests need root"));
        let pair = Pair { ours, peer, names };
        let there = pair.names[1].clone();
        pair.us(&format!(
            "ip link add eth0 type veth peer name eth0 netns {there}"
        ));
        for (run, host) in [(Self::us as fn(&Self, &str) -> String, 1), (Self::them, 2)] {
            run(&pair, &format!("ip addr add 10.99.0.{host}/24 dev eth0"));
            run(
                &pair,
                &format!("ip addr add fd99::{host}/64 dev eth0 nodad"),
            );
            run(&pair, "ip link set lo up");
            run(&pair, "ip link set eth0 up");
        }
        // A superpacket that was cut shall be seen cut.
        pair.them("ethtool -K eth0 gro off");
        pair
    }

    /// Runs a command on our host.
    pub(crate) fn us(&self, command: &str) -> String {
        run_in(&self.ours, command)
    }

    /// Runs a command on the peer's host.
    pub(crate) fn them(&self, command: &str) -> String {
        run_in(&self.peer, command)
    }

    pub(crate) fn ifindex(&self) -> u32 {
        let link = self.us("cat /sys/class/net/eth0/ifindex");
        link.trim().parse().unwrap()
    }

    /// The way to the peer, as a host that talked to it knows it.
    pub(crate) fn path(&self, family: Family) -> Path {
        let mac = |text: String| text.trim().parse::<MacAddr>().unwrap();
        Path {
            source: match family {
                Family::V4 => OURS4.into(),
                Family::V6 => OURS6.into(),
            },
            source_mac: mac(self.us("cat /sys/class/net/eth0/address")),
            next_hop: mac(self.them("cat /sys/class/net/eth0/address")),
            mtu: 1500,
        }
    }

    pub(crate) fn spec(&self, backend: Backend) -> Spec {
        Spec {
            name: TAP.into(),
            underlay: self.ifindex(),
            sources: sources(),
            port: port(backend),
            header_len: match backend {
                Backend::Udp => RawUdp::HEADER_LEN,
                Backend::Vxlan => Vxlan::HEADER_LEN,
            },
            dont_fragment: true,
        }
    }

    pub(crate) fn try_open(&self, spec: &Spec) -> Result<Injector, Unavailable> {
        open_in(&self.ours, spec)
    }

    pub(crate) fn open(&self, backend: Backend) -> Injector {
        self.try_open(&self.spec(backend)).unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = NetNs::delete_named(name);
        }
    }
}

pub(crate) fn open_in(namespace: &NetNs, spec: &Spec) -> Result<Injector, Unavailable> {
    let open =
        || runtime().block_on(async { Injector::open(&Netlink::open().unwrap(), spec).await });
    namespace.run(open).unwrap()
}

pub(crate) fn sources() -> Endpoint {
    Endpoint {
        v4: Some(OURS4),
        v6: Some(OURS6),
    }
}

pub(crate) fn port(backend: Backend) -> u16 {
    match backend {
        Backend::Udp => 8285,
        Backend::Vxlan => 8472,
    }
}

pub(crate) fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Runs a command (words without quotes) in a namespace; panics if it fails.
pub(crate) fn run_in(namespace: &NetNs, command: &str) -> String {
    let (code, stdout, stderr) = try_in(namespace, command);
    assert!(code, "{command}: {stderr}");
    stdout
}

pub(crate) fn try_in(namespace: &NetNs, command: &str) -> (bool, String, String) {
    let words: Vec<_> = command.split_whitespace().collect();
    // `ip netns exec` mounts the namespace's own /sys, where the devices are.
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace.to_string()])
        .args(words)
        .output()
        .expect("run ip (apt install iproute2 ethtool nftables)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Where the packets go, with the header of the backend.
pub(crate) fn hop(backend: Backend, outer: Family, inner: Family) -> NextHop {
    let header = match backend {
        Backend::Udp => RawUdp.header(inner, MacAddr(VTEP)),
        Backend::Vxlan => {
            let us = MacAddr([0x0a, 0x58, 10, 99, 0, 1]);
            let vxlan = Vxlan {
                vni: 1,
                macs: OwnMacs { v4: us, v6: us },
                strict: false,
            };
            vxlan.header(inner, MacAddr(VTEP))
        }
    };
    let ip: IpAddr = match outer {
        Family::V4 => PEER4.into(),
        Family::V6 => PEER6.into(),
    };
    NextHop {
        peer: 0,
        to: SocketAddr::new(ip, port(backend)),
        mtu: 1400,
        header,
    }
}

/// An inner superpacket of `payload` bytes, as a TUN device hands it out.
pub(crate) fn superpacket(
    family: Family,
    kind: Kind,
    gso_size: u16,
    payload: &[u8],
) -> (Vec<u8>, Super) {
    let (protocol, l4_header) = match kind {
        Kind::Tcp { .. } => (tcp::PROTOCOL, tcp::MIN_HEADER),
        Kind::Udp => (udp::PROTOCOL, udp::HEADER_LEN),
    };
    let l4_len = u16::try_from(l4_header + payload.len()).unwrap();
    let mut packet = match family {
        Family::V4 => {
            let mut header = Ipv4 {
                header_len: 20,
                tos: 0,
                total_len: 20 + l4_len,
                id: 7,
                flags: ipv4::DF,
                offset: 0,
                ttl: 64,
                protocol,
                checksum: 0,
                src: [10, 244, 1, 2].into(),
                dst: [10, 244, 2, 2].into(),
            }
            .emit();
            ipv4::fill_checksum(&mut header);
            header.to_vec()
        }
        Family::V6 => Ipv6 {
            traffic_class: 0,
            flow_label: 0,
            payload_len: l4_len,
            next_header: protocol,
            hop_limit: 64,
            src: "fd00:10:244:1::2".parse().unwrap(),
            dst: "fd00:10:244:2::2".parse().unwrap(),
        }
        .emit()
        .to_vec(),
    };
    let l4 = packet.len();
    match kind {
        Kind::Tcp { .. } => packet.extend(
            Tcp {
                src: 1000,
                dst: 2000,
                seq: 1,
                ack: 1,
                header_len: 20,
                flags: ACK,
                window: 1000,
                checksum: 0,
                urgent: 0,
            }
            .emit(),
        ),
        Kind::Udp => packet.extend(
            Udp {
                src: 1000,
                dst: 2000,
                len: l4_len,
                checksum: 0,
            }
            .emit(),
        ),
    }
    packet.extend(payload);
    let inner = Inner::parse(&packet).unwrap();
    let field = l4
        + match kind {
            Kind::Tcp { .. } => tcp::CHECKSUM,
            Kind::Udp => udp::CHECKSUM,
        };
    let unfinished = checksum::pseudo_header(&inner, l4_len.into());
    packet[field..field + 2].copy_from_slice(&unfinished.to_be_bytes());
    let shape = Super {
        family,
        kind,
        l4,
        len: packet.len(),
        payload: l4 + l4_header,
        gso_size,
    };
    (packet, shape)
}

/// Bytes that are not the same anywhere.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap())
        .collect()
}

/// The frame for [`Injector::inject`].
pub(crate) fn frame(
    injector: &Injector,
    path: &Path,
    hop: &NextHop,
    (packet, shape): &(Vec<u8>, Super),
) -> Vec<u8> {
    let head = injector
        .header(path, hop, 50_000, 0, shape)
        .expect("it fits");
    [head.as_slice(), packet].concat()
}
