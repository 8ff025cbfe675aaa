//! overlayd on node 1, a kernel VXLAN device on node 2, set up as flannel 0.20.2 sets it up
//! (`fixtures/flannel-0.20.2/vxlan*/kernel.h*.txt`), all offloads as they are by default.
//!
//! The trap: on one machine the kernel hands a UDP socket whole inner TCP packets of up to 64 KiB with checksums that
//! nobody has computed. Pings work and TCP never connects, until the receiver finishes and splits them.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use encap::{Family, Family::V4, Family::V6, MacAddr};
use integration::bed::{Backend, Bed, Config, Daemon, Node, Spec, Underlay};
use integration::probe;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use overlayd::kernel::{NetNs, RouteSpec, VxlanSpec};
use overlayd::lab::traffic::{Fragmenting, Stream};
use serde_json::json;

const PORT: u16 = 8472;
const LARGE: u64 = 100_000_000;

/// One flannel device: which inner family it carries over which outer one, and the Ethernet addresses of both ends.
struct Side {
    family: Family,
    name: &'static str,
    mtu: u32,
    ours: MacAddr,
    theirs: MacAddr,
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// Of `vxlan/kernel.h*.txt`: VNI 1, IPv4 alone.
fn single_stack() -> (u32, Vec<Side>) {
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
fn dual_stack() -> (u32, Vec<Side>) {
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

struct Pair {
    bed: Bed,
    daemon: Daemon,
    sides: Vec<Side>,
}

impl Pair {
    /// A pair whose overlayd node has a configuration of its own.
    fn with(
        underlay: Underlay,
        (vni, sides): (u32, Vec<Side>),
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
            bed.block_on(make_device(bed.node(2), bed.node(1), vni, side));
        }
        for lease in &mut leases {
            lease["BackendType"] = json!("vxlan");
        }
        bed.write_leases(&leases);
        let config: Config = bed.node(1).config(Backend::Vxlan).set("backend.vni", vni);
        let daemon = Daemon::start(bed.node(1), &change(config));
        Pair { bed, daemon, sides }
    }

    fn one(&self) -> &Node {
        self.bed.node(1)
    }

    fn two(&self) -> &Node {
        self.bed.node(2)
    }

    /// Everything that must arrive, each way.
    fn carry(&self) {
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
            probe::tcp(two.pod(), pod2, one.pod(), pod1, LARGE);
            probe::tcp(one.netns(), base1, two.netns(), base2, LARGE);

            let most = usize::try_from(side.mtu).unwrap() - probe::headers(family);
            probe::udp(one.pod(), two.pod(), pod2, 0..=most, Fragmenting::Forbidden);
            let large = [most + 1, 2 * most, 9001, 65_507];
            probe::udp(one.pod(), two.pod(), pod2, large, Fragmenting::Allowed);
            probe::udp(two.pod(), one.pod(), pod1, large, Fragmenting::Allowed);

            segmented(two.pod(), one.pod(), pod1, most);
            segmented(two.netns(), one.netns(), base1, most);
        }
        probe::premade_fragments(&self.bed);
    }

    /// The kernel did what the test is about, and nothing was lost over it.
    fn finish(self) {
        let status = self.daemon.status();
        let inbound = &status["inbound"];
        let count = |name: &str| inbound[name].as_u64().unwrap();
        // Hundreds of megabytes came; were they cut into single packets, these would be zero.
        if status["engine"] == "classic" {
            for met in ["split", "checksums_completed"] {
                assert!(count(met) > 1000, "{met}: {inbound:#}");
            }
        } else {
            assert!(count("in") > count("datagrams") + 1000, "{inbound:#}");
        }
        self.daemon.assert_balanced(&[]);
        self.daemon.stop();
    }
}

/// What flannel's vxlan backend does on a node for itself and for one peer.
async fn make_device(node: &Node, peer: &Node, vni: u32, side: &Side) {
    let netlink = node.netlink();
    let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
    let spec = VxlanSpec {
        name: side.name.into(),
        vni,
        local: node.public_ip(side.family),
        dev: eth0,
        port: PORT,
        mac: Some(side.theirs.0),
    };
    let device = netlink.add_vxlan(&spec).await.unwrap();
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

fn carries(underlay: Underlay, stack: (u32, Vec<Side>), engine: &'static str) {
    let pair = Pair::with(underlay, stack, |config| {
        config.set("datapath.engine", engine)
    });
    pair.carry();
    pair.finish();
}

#[test]
fn flannel_vxlan_carries_ipv4_classic() {
    carries(Underlay::V4, single_stack(), "classic");
}

#[test]
fn flannel_vxlan_carries_ipv4_batched() {
    carries(Underlay::V4, single_stack(), "batched");
}

#[test]
fn flannel_vxlan_carries_both_families_classic() {
    carries(Underlay::Dual, dual_stack(), "classic");
}

#[test]
fn flannel_vxlan_carries_both_families_batched() {
    carries(Underlay::Dual, dual_stack(), "batched");
}

/// What arrives is cut for the pods behind us, whose links are no wider than the path.
#[test]
fn a_device_mtu_above_the_paths_leaves_no_superpacket_whole() {
    let wide = |config: Config| config.set("device.mtu", 9000);
    let pair = Pair::with(Underlay::V4, single_stack(), wide);
    let (one, two) = (pair.one(), pair.two());
    probe::tcp(two.pod(), two.pod_ip(V4), one.pod(), one.pod_ip(V4), LARGE);
    pair.finish();
}
