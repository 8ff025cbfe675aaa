//! A kernel VXLAN peer: overlayd on node 1, on node 2 a device set up as flannel 0.20.2 sets it up
//! (`fixtures/flannel-0.20.2/vxlan*/kernel.h*.txt`).
//!
//! The trap: on one machine the kernel hands a UDP socket whole inner TCP packets of up to 64 KiB with checksums that
//! nobody has computed. Pings work and TCP never connects, until the receiver finishes and splits them.
#![allow(clippy::unwrap_used)] // a test fails where it stands

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use encap::{Family, Family::V4, Family::V6, MacAddr};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use overlayd::kernel::{NetNs, RouteSpec, VxlanSpec};
use overlayd::lab::traffic::{Fragmenting, Stream};
use serde_json::json;

use crate::bed::{Backend, Bed, Config, Daemon, Node, Spec, Underlay};
use crate::probe;

const PORT: u16 = 8472;

/// The kernel's outer UDP checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Computed, as flannel has them.
    On,
    /// Zero (`noudpcsum`), as many set-ups have them over IPv4.
    Off,
}

/// One flannel device: which inner family it carries over which outer one, and the Ethernet addresses of both ends.
pub struct Side {
    family: Family,
    name: &'static str,
    mtu: u32,
    /// The VTEP MAC of overlayd's node.
    pub ours: MacAddr,
    /// That of the kernel's.
    pub theirs: MacAddr,
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// Of `vxlan/kernel.h*.txt`: VNI 1, IPv4 alone.
pub fn single_stack() -> (u32, Vec<Side>) {
    let ipv4 = Side {
        family: V4,
        name: "flannel.1",
        mtu: 1450,
        ours: mac("5a:94:04:4d:4d:ae"),
        theirs: mac("1a:5f:29:49:23:bd"),
    };
    (1, vec![ipv4])
}

/// Of `vxlan-dualstack/kernel.h*.txt`: VNI 7, a device for each family.
pub fn dual_stack() -> (u32, Vec<Side>) {
    let ipv4 = Side {
        family: V4,
        name: "flannel.7",
        mtu: 1450,
        ours: mac("c6:6d:e6:7f:19:ac"),
        theirs: mac("ce:97:0e:95:99:c3"),
    };
    let ipv6 = Side {
        family: V6,
        name: "flannel-v6.7",
        mtu: 1430,
        ours: mac("22:a6:89:1c:da:8e"),
        theirs: mac("2e:76:2a:ab:f4:32"),
    };
    (7, vec![ipv4, ipv6])
}

/// overlayd on node 1, flannel's kernel VXLAN on node 2.
pub struct Pair {
    /// Both nodes.
    pub bed: Bed,
    /// Node 1's.
    pub daemon: Daemon,
    sides: Vec<Side>,
}

impl Pair {
    /// A pair whose overlayd node has a configuration of its own.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn with(
        underlay: Underlay,
        (vni, sides): (u32, Vec<Side>),
        checksums: Checksums,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let bed = Bed::with(&Spec {
            underlay,
            pod_mtu: 1450,
            ..Spec::default()
        });
        let mut leases = bed.leases();
        for side in &sides {
            let key = if side.family == V4 {
                "BackendData"
            } else {
                "BackendV6Data"
            };
            leases[0][key] = json!({"VNI": vni, "VtepMAC": side.ours.to_string()});
            leases[1][key] = json!({"VNI": vni, "VtepMAC": side.theirs.to_string()});
            bed.block_on(make_device(bed.node(2), bed.node(1), vni, side, checksums));
        }
        for lease in &mut leases {
            lease["BackendType"] = json!("vxlan");
        }
        bed.write_leases(&leases);
        let config: Config = bed.node(1).config(Backend::Vxlan).set("backend.vni", vni);
        let daemon = Daemon::start(bed.node(1), &change(config));
        Pair { bed, daemon, sides }
    }

    /// overlayd's node.
    pub fn one(&self) -> &Node {
        self.bed.node(1)
    }

    /// The kernel's node.
    pub fn two(&self) -> &Node {
        self.bed.node(2)
    }

    /// Everything that must arrive, each way: connections of so many bytes, datagrams of every `step`th size.
    ///
    /// # Panics
    /// If something does not.
    pub fn carry(&self, bytes: u64, step: usize) {
        for side in &self.sides {
            let family = side.family;
            let (one, two) = (self.one(), self.two());
            let (pod1, pod2) = (one.pod_ip(family), two.pod_ip(family));
            let (base1, base2) = (one.base_ip(family), two.base_ip(family));
            probe::ping(one.pod(), pod2);
            probe::ping(two.pod(), pod1);
            probe::ping(one.netns(), base2);
            probe::ping(two.netns(), base1);

            // The connection comes from either end: the first SYN is the kernel's once.
            probe::tcp(two.pod(), pod2, one.pod(), pod1, bytes);
            probe::tcp(one.netns(), base1, two.netns(), base2, bytes);

            let most = usize::try_from(side.mtu).unwrap() - probe::headers(family);
            let sizes = (0..=most).step_by(step).chain([most]);
            probe::udp(one.pod(), two.pod(), pod2, sizes, Fragmenting::Forbidden);
            let large = [most + 1, 2 * most, 9001, 65_507];
            probe::udp(one.pod(), two.pod(), pod2, large, Fragmenting::Allowed);
            probe::udp(two.pod(), one.pod(), pod1, large, Fragmenting::Allowed);

            segmented(two.pod(), one.pod(), pod1, most);
            segmented(two.netns(), one.netns(), base1, most);
        }
        probe::premade_fragments(&self.bed);
    }
}

/// What flannel's vxlan backend does on a node for itself and for one peer.
///
/// # Panics
/// If the kernel refuses.
pub async fn make_device(node: &Node, peer: &Node, vni: u32, side: &Side, checksums: Checksums) {
    let netlink = node.netlink();
    let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
    if checksums == Checksums::Off {
        // Netlink's maker has no words for it, and a device cannot be changed to it.
        let local = node.public_ip(side.family);
        let off = match side.family {
            V4 => "noudpcsum",
            V6 => "udp6zerocsumtx udp6zerocsumrx",
        };
        let (name, mac) = (side.name, side.theirs);
        let made = format!(
            "ip link add {name} address {mac} type vxlan id {vni} local {local} dev eth0 dstport {PORT} nolearning {off}"
        );
        probe::command(node.netns(), &made);
    }
    let spec = VxlanSpec {
        name: side.name.into(),
        vni,
        local: node.public_ip(side.family),
        dev: eth0,
        port: PORT,
        mac: Some(side.theirs.0),
    };
    let device = match checksums {
        Checksums::On => netlink.add_vxlan(&spec).await.unwrap(),
        Checksums::Off => netlink.link(side.name).await.unwrap().unwrap(),
    };
    assert_eq!(device.mtu, side.mtu, "the kernel's own choice is flannel's");
    let base = node.base_ip(side.family);
    netlink
        .add_address(device.index, base.into(), true)
        .await
        .unwrap();
    netlink.set_up(device.index).await.unwrap();

    let peer_base = peer.base_ip(side.family);
    let mut route = RouteSpec::new(peer.subnet(side.family), device.index);
    route.via = Some(peer_base);
    route.onlink = true;
    let ours = side.ours.0;
    let public = peer.public_ip(side.family);
    netlink
        .add_neighbour(device.index, peer_base, ours)
        .await
        .unwrap();
    netlink.add_fdb(device.index, ours, public).await.unwrap();
    netlink.add_route(&route).await.unwrap();
}

/// One sendto of many datagrams (UDP_SEGMENT, udp(7)) at the kernel's side: each arrives whole. `most` bytes fill the MTU.
fn segmented(from: &NetNs, to: &NetNs, ip: IpAddr, most: usize) {
    for (size, total) in [(1000, 50_500), (1, 60), (most, 63_000)] {
        let receiver = to.run(|| UdpSocket::bind((ip, 0))).unwrap().unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let at = receiver.local_addr().unwrap();
        let data = Stream::bytes(size.try_into().unwrap(), total);
        from.run(|| send_segmented(at, &data, size))
            .unwrap()
            .unwrap();
        let mut buffer = vec![0; 1 << 16];
        for (number, expected) in data.chunks(size).enumerate() {
            let what = format!("datagram {number} of {size} bytes to {ip}");
            let len = receiver
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(buffer[..len] == *expected, "{what}: {len} bytes");
        }
    }
}

fn send_segmented(to: SocketAddr, data: &[u8], size: usize) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(size).unwrap())?;
    assert_eq!(socket.send_to(data, to)?, data.len());
    Ok(())
}
