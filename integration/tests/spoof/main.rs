//! The spoof matrix: crafted datagrams against a live daemon. Every check of the receive order has a case that only it
//! catches; none of them reaches the device, and each is counted under its own reason.
//!
//! Node 1 runs the daemon. Nodes 2 and 3 have leases and no daemon: the datagrams come from plain sockets in node 2.
#![allow(clippy::unwrap_used)]

mod craft;
mod target;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Daemon, Node, PATIENCE, Spec, Underlay};
use ipnet::IpNet;
use overlayd::kernel::RouteSpec;

use craft::{Checksum, IPV4, IPV6, Link, encapsulated, inner, outer, port_of, send_raw};
use target::{Attacker, Target};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const BACKENDS: [Backend; 2] = [Backend::Udp, Backend::Vxlan];
/// The listener's port in node 1's pod.
const PORT: u16 = 7777;
const PAYLOAD: &[u8] = b"whose packet is this?";
/// An address on the underlay that no lease carries.
const STRANGER: &str = "10.99.0.66";

fn bed(underlay: Underlay) -> Bed {
    let bed = Bed::with(&Spec {
        nodes: 3,
        underlay,
        ..Spec::default()
    });
    // Addresses that nobody gave it a lease for.
    bed.block_on(async {
        let netlink = bed.node(2).netlink();
        let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
        let stranger = IpNet::from(STRANGER.parse::<IpAddr>().unwrap());
        netlink.add_address(eth0, stranger, true).await.unwrap();
    });
    bed
}

#[test]
fn every_check_has_its_case_with_both_backends() {
    let bed = bed(Underlay::V4);
    let (one, two, three) = (bed.node(1), bed.node(2), bed.node(3));
    for backend in BACKENDS {
        let mut target = Target::start(one, &one.config(backend));
        let peer = Attacker::at(&bed, two.public_ip(Family::V4), backend);
        let stranger = Attacker::at(&bed, STRANGER.parse().unwrap(), backend);
        let wrap = |inner: &[u8]| encapsulated(backend, inner);
        for family in FAMILIES {
            let (pod1, pod2, pod3) = (one.pod_ip(family), two.pod_ip(family), three.pod_ip(family));
            let good = wrap(&inner(pod2, pod1, PORT));
            target.delivers("a good one", || peer.send(&good));
            target.drops("an outer source without a lease", "unknown-peer", || {
                stranger.send(&good)
            });

            let sources: &[&str] = match family {
                Family::V4 => &[
                    "127.0.0.1",
                    "0.0.0.0",
                    "224.0.0.1",
                    "255.255.255.255",
                    "10.99.0.2",
                    "198.51.100.1",
                ],
                Family::V6 => &["::1", "::", "ff02::1", "fe80::1", "2001:db8::1"],
            };
            let sources = sources.iter().map(|source| source.parse().unwrap());
            for source in sources.chain([pod3, pod1, one.base_ip(family), one.gateway(family)]) {
                let spoofed = wrap(&inner(source, pod1, PORT));
                target.drops(&format!("from {source}"), "inner-source", || {
                    peer.send(&spoofed)
                });
            }
            let destinations: &[&str] = match family {
                Family::V4 => &[
                    "127.0.0.1",
                    "224.0.0.1",
                    "255.255.255.255",
                    "10.99.0.1",
                    "198.51.100.1",
                ],
                Family::V6 => &["::1", "ff02::1", "fe80::1", "2001:db8::1"],
            };
            let destinations = destinations.iter().map(|to| to.parse().unwrap());
            for destination in destinations.chain([pod3, pod2]) {
                let strayed = wrap(&inner(pod2, destination, PORT));
                target.drops(&format!("to {destination}"), "inner-destination", || {
                    peer.send(&strayed)
                });
            }
        }
        // Our own encapsulation once more, toward us and toward a third node.
        for node in [one, three] {
            let again = inner(
                two.pod_ip(Family::V4),
                node.public_ip(Family::V4),
                port_of(backend),
            );
            target.drops("looped", "looped", || peer.send(&wrap(&again)));
        }

        let (pod1, pod2) = (one.pod_ip(Family::V4), two.pod_ip(Family::V4));
        let good = inner(pod2, pod1, PORT);
        let falsified = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            // Only where the link layer does not promise another version.
            let mut datagram = wrap(&good);
            let start = datagram.len() - packet.len();
            datagram[start..].copy_from_slice(&packet);
            datagram
        };
        for (what, datagram) in [
            ("IP version 5", falsified(0, 0x55)),
            ("a header of 16 bytes", falsified(0, 0x44)),
            ("a header longer than the packet", falsified(0, 0x4f)),
            ("a total length of 0", falsified(3, 0)),
            ("a header checksum that is wrong", falsified(10, !good[10])),
        ] {
            target.drops(what, "malformed", || peer.send(&datagram));
        }
        // A packet that ends before the datagram is delivered without the surplus.
        let mut surplus = wrap(&good);
        surplus.extend([0xee; 20]);
        target.delivers("bytes after the packet", || peer.send(&surplus));
        target.finish();
    }
}

#[test]
fn cut_at_every_length_nothing_is_delivered() {
    let bed = bed(Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let mut target = Target::start(one, &one.config(backend));
        let peer = Attacker::at(&bed, two.public_ip(Family::V4), backend);
        for family in FAMILIES {
            let good = encapsulated(
                backend,
                &inner(two.pod_ip(family), one.pod_ip(family), PORT),
            );
            for len in 0..good.len() {
                target.drops(&format!("{len} bytes"), "truncated", || {
                    peer.send(&good[..len])
                });
            }
            target.delivers("all of it", || peer.send(&good));
        }
        target.finish();
    }
}

#[test]
fn vxlan_and_its_inner_ethernet() {
    let bed = bed(Underlay::V4);
    let (one, two, three) = (bed.node(1), bed.node(2), bed.node(3));
    let mut target = Target::start(one, &one.config(Backend::Vxlan));
    let peer = Attacker::at(&bed, two.public_ip(Family::V4), Backend::Vxlan);
    let stranger = Attacker::at(&bed, STRANGER.parse().unwrap(), Backend::Vxlan);
    let (pod1, pod2, pod3) = (
        one.pod_ip(Family::V4),
        two.pod_ip(Family::V4),
        three.pod_ip(Family::V4),
    );
    let packet = inner(pod2, pod1, PORT);
    let good = Link::good(IPV4);
    let mut drops = |what: &str, reason: &str, link: Link| {
        target.drops(what, reason, || peer.send(&link.before(&packet)));
    };
    drops("no I flag", "vxlan-flag", Link { flags: 0, ..good });
    drops(
        "all flags but I",
        "vxlan-flag",
        Link {
            flags: 0xf7,
            ..good
        },
    );
    for vni in [0, 2, 0x0001_0000, 0x00ff_ffff] {
        drops("another network", "wrong-vni", Link { vni, ..good });
    }
    let mac = |last| [0x0a, 0x58, 10, 99, 0, last];
    drops(
        "another station",
        "wrong-mac",
        Link {
            dst: mac(3),
            ..good
        },
    );
    drops(
        "nobody",
        "wrong-mac",
        Link {
            dst: [0; 6],
            ..good
        },
    );
    drops(
        "everybody",
        "broadcast-mac",
        Link {
            dst: [0xff; 6],
            ..good
        },
    );
    drops(
        "a group",
        "multicast-mac",
        Link {
            dst: [0x01, 0, 0x5e, 0, 0, 1],
            ..good
        },
    );
    drops(
        "our own frame",
        "own-mac",
        Link {
            src: mac(1),
            ..good
        },
    );
    drops(
        "ARP to us",
        "arp",
        Link {
            ethertype: 0x0806,
            ..good
        },
    );
    drops(
        "ARP to all",
        "arp",
        Link {
            ethertype: 0x0806,
            dst: [0xff; 6],
            ..good
        },
    );
    drops(
        "a VLAN tag",
        "vlan-tag",
        Link {
            ethertype: 0x8100,
            ..good
        },
    );
    drops(
        "a service tag",
        "vlan-tag",
        Link {
            ethertype: 0x88a8,
            ..good
        },
    );
    drops(
        "LLDP",
        "ethertype",
        Link {
            ethertype: 0x88cc,
            ..good
        },
    );
    drops(
        "a length, not a type",
        "ethertype",
        Link {
            ethertype: 64,
            ..good
        },
    );
    drops(
        "IPv4 under IPv6's type",
        "malformed",
        Link {
            ethertype: IPV6,
            ..good
        },
    );

    // What is wrong in several ways has the reason of the first check that it fails.
    let all_wrong = Link {
        vni: 9,
        dst: mac(9),
        ..good
    };
    let bad_packet = inner(pod3, pod3, 8472);
    target.drops("all wrong", "wrong-vni", || {
        stranger.send(&all_wrong.before(&bad_packet))
    });
    let all_wrong = Link {
        vni: 1,
        ..all_wrong
    };
    target.drops("all else", "unknown-peer", || {
        stranger.send(&all_wrong.before(&bad_packet))
    });
    target.drops("and else", "wrong-mac", || {
        peer.send(&all_wrong.before(&bad_packet))
    });
    target.drops("the packet", "inner-source", || {
        peer.send(&good.before(&bad_packet))
    });

    // Reserved bits are to be ignored on receive, and are counted.
    let reserved = Link {
        flags: 0x48,
        reserved: 0xff,
        ..good
    };
    target.delivers("reserved bits", || peer.send(&reserved.before(&packet)));
    assert_eq!(target.daemon.status()["inbound"]["reserved_bits"], 1);
    target.finish();

    let mut strict = Target::start(one, &one.config(Backend::Vxlan).set("backend.strict", true));
    strict.drops("reserved bits", "reserved-bits", || {
        peer.send(&reserved.before(&packet))
    });
    strict.delivers("none", || peer.send(&good.before(&packet)));
    strict.finish();
}

#[test]
fn a_nodes_own_address_inside_passes_by_option_only() {
    let bed = bed(Underlay::V4);
    let (one, two, three) = (bed.node(1), bed.node(2), bed.node(3));
    for backend in BACKENDS {
        let peer = Attacker::at(&bed, two.public_ip(Family::V4), backend);
        let from = |node: &Node| {
            encapsulated(
                backend,
                &inner(node.public_ip(Family::V4), one.pod_ip(Family::V4), PORT),
            )
        };
        let config = one.config(backend).set("datapath.accept-node-source", true);
        let mut target = Target::start(one, &config);
        target.delivers("the peer's own", || peer.send(&from(two)));
        target.drops("another node's", "inner-source", || peer.send(&from(three)));
        target.drops("our own", "inner-source", || peer.send(&from(one)));
        target.finish();
    }
}

#[test]
fn outer_udp_checksums() {
    let bed = bed(Underlay::Dual);
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let plain = one.config(backend);
        let opted_in = plain.clone().set("datapath.udp6-zero-checksum", true);
        for (config, zero_over_v6) in [(plain, false), (opted_in, true)] {
            let mut target = Target::start(one, &config);
            for family in FAMILIES {
                let payload = encapsulated(
                    backend,
                    &inner(two.pod_ip(family), one.pod_ip(family), PORT),
                );
                for outer_family in FAMILIES {
                    let to = SocketAddr::new(one.public_ip(outer_family), port_of(backend));
                    let send = |checksum| {
                        let packet = outer(two.public_ip(outer_family), to, &payload, checksum);
                        send_raw(two, &packet, to.ip());
                    };
                    target.delivers("a good checksum", || send(Checksum::Good));
                    target.never_sees("a bad checksum", || send(Checksum::Bad));
                    if outer_family == Family::V4 || zero_over_v6 {
                        target.delivers("no checksum", || send(Checksum::Zero));
                    } else {
                        target.never_sees("no checksum over IPv6", || send(Checksum::Zero));
                    }
                }
            }
            target.finish();
        }
    }
}

#[test]
fn a_route_to_a_node_through_the_overlay_does_not_loop() {
    let bed = bed(Underlay::V4);
    let (one, three) = (bed.node(1), bed.node(3));
    for backend in BACKENDS {
        let daemon = Daemon::start(one, &one.config(backend));
        let public: Ipv4Addr = "10.99.0.3".parse().unwrap();
        bed.block_on(async {
            let overlay0 = one.netlink().link("overlay0").await.unwrap().unwrap().index;
            let wrong = RouteSpec::new(IpNet::from(IpAddr::from(public)), overlay0);
            one.netlink().add_route(&wrong).await.unwrap();
        });
        let socket = one.run_in_pod(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..10 {
            socket
                .send_to(PAYLOAD, (three.pod_ip(Family::V4), PORT))
                .unwrap();
        }
        // Each went out once, came back in its encapsulation, and ended there.
        let end = Instant::now() + PATIENCE;
        while daemon.drops("looped") < 10 {
            assert!(Instant::now() < end, "{:#}", daemon.status());
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(daemon.drops("looped"), 10);
        let status = daemon.status();
        assert_eq!(status["outbound"]["forwarded"], 10, "{status:#}");
        daemon.assert_balanced(&["looped"]);
        daemon.stop();
    }
}
