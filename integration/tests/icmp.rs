//! What senders hear about packets that cannot go their way: too big, no lease, nobody there, TTL run out.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Config, Daemon, Node, Spec, Underlay};
use overlayd::kernel::{NetNs, RouteSpec, sysctl};
use overlayd::lab::traffic::{
    Answer, Flow, Fragmenting, IcmpError, PathOpts, PingOpts, PingReport, TcpOpts, TcpServer, ping,
    tcp_transfer, trace_path,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const BACKENDS: [Backend; 2] = [Backend::Udp, Backend::Vxlan];
/// Off, strict, loose (RFC 3704): the kernel's reverse path filter, which takes an error from our own address for a
/// martian in its own way each time.
const RP_FILTERS: [&str; 3] = ["0", "1", "2"];

/// Sets the reverse path filter of a node, for all devices and for the overlay's own.
fn set_rp_filter(node: &Node, value: &str) {
    node.run(|| {
        for device in ["all", "default", "overlay0", "eth0"] {
            sysctl::write(&sysctl::conf("ipv4", device, "rp_filter"), value).unwrap();
        }
    });
}

/// One probe of `size` bytes of IP packet that must not be fragmented.
fn probe(from: &NetNs, to: IpAddr, size: usize) -> PingReport {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let opts = PingOpts {
        count: 1,
        size: size - headers,
        fragmenting: Fragmenting::Probe,
        ..PingOpts::default()
    };
    from.run(|| ping(to, &opts)).unwrap().unwrap()
}

/// The only error about the only probe.
#[track_caller]
fn error(report: &PingReport) -> IcmpError {
    assert_eq!((report.received, report.errors.len()), (0, 1), "{report:?}");
    report.errors[0]
}

/// A device as large as the underlay, so that the encapsulated packet is too large for it.
fn too_large(node: &Node, backend: Backend) -> Config {
    node.config(backend).set("device.mtu", 1500)
}

fn start_too_large(bed: &Bed, backend: Backend) -> Vec<Daemon> {
    let start = |node: &Node| Daemon::start(node, &too_large(node, backend));
    bed.nodes().iter().map(start).collect()
}

#[test]
fn too_big_is_told_to_pods_and_nodes_whatever_rp_filter_says() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let daemons = start_too_large(&bed, backend);
        let fits = 1500 - backend.overhead(Family::V4);
        // The kernel itself keeps to the MTU of the IPv6 route. Without it the daemon has the word.
        let overlay0 = bed
            .block_on(one.netlink().link("overlay0"))
            .unwrap()
            .unwrap();
        let route = RouteSpec::new("fd00:10:244::/48".parse().unwrap(), overlay0.index);
        let routes = bed.block_on(one.netlink().routes()).unwrap();
        let ours = routes.iter().find(|there| there.dst == route.dst).unwrap();
        assert_eq!(ours.mtu, Some(fits), "{backend:?}");
        let kernels = error(&probe(one.pod(), two.pod_ip(Family::V6), 1500));
        assert_eq!(
            (kernels.mtu, kernels.from),
            (Some(fits), one.gateway(Family::V6))
        );
        // A longer one of somebody else's, which is left alone, as ours would not be.
        let longer = RouteSpec {
            dst: two.subnet(Family::V6),
            protocol: 4,
            ..route
        };
        bed.block_on(one.netlink().add_route(&longer)).unwrap();

        let mut told = 0;
        for rp_filter in RP_FILTERS {
            set_rp_filter(one, rp_filter);
            for family in FAMILIES {
                for (who, from) in [("pod", one.pod()), ("node", one.netns())] {
                    let case = format!("{backend:?}, rp_filter {rp_filter}, {family:?}, {who}");
                    let report = probe(from, two.pod_ip(family), 1500);
                    assert_eq!(report.errors.len(), 1, "{case}: {report:?}");
                    let error = error(&report);
                    assert_eq!(error.mtu, Some(fits), "{case}: {error}");
                    // Once a probe of the node's own was too big, its kernel knows the path MTU and speaks for itself.
                    let learned = family == Family::V6 && error.from == one.gateway(family);
                    if !(learned && told >= 4) {
                        assert_eq!(error.from, one.base_ip(family), "{case}: {error}");
                        told += 1;
                    }
                    // What it was told is right: not a byte too little, nor one too much.
                    let fitting = probe(from, two.pod_ip(family), fits.try_into().unwrap());
                    assert_eq!(fitting.received, 1, "{case}: {fitting:?}");
                }
            }
        }
        assert_eq!(daemons[0].drops("too-big"), told);
        assert_eq!(daemons[0].status()["outbound"]["icmp_sent"], told);
        for daemon in daemons {
            daemon.assert_balanced(&["too-big"]);
            daemon.stop();
        }
    }
}

#[test]
fn the_outer_family_decides_what_is_too_big() {
    for (underlay, outers) in [
        (Underlay::V6, [Family::V6, Family::V6]),
        (Underlay::Dual, [Family::V4, Family::V6]),
    ] {
        let bed = Bed::new(2, underlay);
        let (one, two) = (bed.node(1), bed.node(2));
        let daemons = start_too_large(&bed, Backend::Vxlan);
        for (family, outer) in FAMILIES.into_iter().zip(outers) {
            let fits = 1500 - Backend::Vxlan.overhead(outer);
            for from in [one.pod(), one.netns()] {
                let error = error(&probe(from, two.pod_ip(family), 1500));
                assert_eq!(error.mtu, Some(fits), "{underlay:?}, {family:?}: {error}");
                let fitting = probe(from, two.pod_ip(family), fits.try_into().unwrap());
                assert_eq!(fitting.received, 1, "{underlay:?}, {family:?}: {fitting:?}");
            }
        }
        for daemon in daemons {
            daemon.assert_balanced(&["too-big"]);
        }
    }
}

#[test]
fn tcp_finds_the_path_mtu() {
    const BYTES: u64 = 1 << 20;
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let daemons = start_too_large(&bed, backend);
        for family in FAMILIES {
            let at = SocketAddr::new(two.pod_ip(family), 7000);
            let server = two.run_in_pod(|| TcpServer::bind(at)).unwrap();
            let opts = TcpOpts {
                overall: Duration::from_secs(10),
                ..TcpOpts::default()
            };
            let transfer = one
                .run_in_pod(|| tcp_transfer(at, BYTES, BYTES, &opts))
                .unwrap();
            assert!(
                transfer.is_intact() && transfer.is_untranslated(),
                "{transfer:?}"
            );
            assert!(
                transfer.elapsed < Duration::from_secs(5),
                "{backend:?}, {family:?}: {transfer:?}"
            );
            drop(server);
        }
        for daemon in daemons {
            assert!(daemon.drops("too-big") > 0, "the path MTU was in the way");
            daemon.assert_balanced(&["too-big"]);
        }
    }
}

#[test]
fn a_path_through_the_overlay_looks_sane() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let daemons = bed.start(backend);
        for family in FAMILIES {
            let to = two.pod_ip(family);
            let path = |from: &NetNs| {
                let hops = from
                    .run(|| trace_path(to, &PathOpts::default()))
                    .unwrap()
                    .unwrap();
                assert_eq!(hops.last().unwrap().answer, Answer::Reply, "{hops:?}");
                hops.iter().map(|hop| hop.from.unwrap()).collect::<Vec<_>>()
            };
            // The daemons themselves are a link: each node is one hop, the overlay none.
            let (gateway, peer) = (one.gateway(family), two.base_ip(family));
            assert_eq!(path(one.pod()), [gateway, peer, to], "{backend:?}");
            assert_eq!(path(one.netns()), [peer, to], "{backend:?}");

            let last_breath = PingOpts {
                count: 1,
                ttl: 1,
                ..PingOpts::default()
            };
            let report = one.run(|| ping(peer, &last_breath)).unwrap();
            assert!(
                report.all_answered(),
                "TTL 1 reaches the peer node: {report:?}"
            );
            let error = error(&one.run(|| ping(to, &last_breath)).unwrap());
            assert!(
                error.is_time_exceeded() && error.from == peer,
                "and no further: {error}"
            );
        }
        for daemon in daemons {
            daemon.assert_balanced(&[]);
        }
    }
}

#[test]
fn no_lease_is_told_at_once() {
    let bed = Bed::new(2, Underlay::V4);
    let one = bed.node(1);
    for backend in BACKENDS {
        let daemons = bed.start(backend);
        let mut asked = 0;
        for rp_filter in RP_FILTERS {
            set_rp_filter(one, rp_filter);
            for (family, nobody) in FAMILIES
                .into_iter()
                .zip(["10.244.200.1", "fd00:10:244:200::1"])
            {
                for from in [one.pod(), one.netns()] {
                    let start = Instant::now();
                    let error = error(&probe(from, nobody.parse().unwrap(), 100));
                    let took = start.elapsed();
                    assert!(took < Duration::from_secs(1), "{took:?}");
                    let unreachable = if family == Family::V4 { 3 } else { 1 };
                    assert_eq!((error.kind, error.code), (unreachable, 0), "{error}");
                    assert_eq!(error.from, one.base_ip(family));
                    asked += 1;
                }
            }
        }
        assert_eq!(daemons[0].drops("no-lease"), asked);
        daemons[0].assert_balanced(&["no-lease"]);
    }
}

#[test]
fn a_subnet_without_a_bridge_is_unreachable_and_no_loop() {
    // No pods, so no bridge: what goes to our own subnet comes back to the daemon.
    let bed = Bed::with(&Spec {
        pods: false,
        ..Spec::default()
    });
    let (one, two) = (bed.node(1), bed.node(2));
    for backend in BACKENDS {
        let daemons = bed.start(backend);
        let mut asked = 0;
        for family in FAMILIES {
            let nobody = one.host(family, 77);
            // From the node itself, and from its peer, whom the answer has to reach over the overlay.
            for from in [one, two] {
                let start = Instant::now();
                let report = probe(from.netns(), nobody, 100);
                if report.errors.is_empty() {
                    // Where it was lost is in the counts.
                    daemons.iter().for_each(|d| eprintln!("{:#}", d.status()));
                }
                let error = error(&report);
                assert!(start.elapsed() < Duration::from_secs(1));
                let host_unreachable = if family == Family::V4 { (3, 1) } else { (1, 3) };
                assert_eq!((error.kind, error.code), host_unreachable, "{error}");
                assert_eq!(error.from, one.base_ip(family));
                asked += 1;
            }
        }
        assert_eq!(daemons[0].drops("own-subnet"), asked);
        daemons[0].assert_balanced(&["own-subnet"]);
        let status = daemons[0].status();
        // The two answers to the peer, perhaps a redirect of the kernel's beside each, and nothing that went round.
        let forwarded = status["outbound"]["forwarded"].as_u64().unwrap();
        assert!((2..=4).contains(&forwarded), "{status:#}");
        assert_eq!(status["inbound"]["forwarded"], 2, "{status:#}");
        daemons[1].assert_balanced(&[]);
    }
}

#[test]
fn errors_are_limited_under_a_flood_and_counted() {
    const FLOOD: u64 = 5000;
    const RATE: u64 = 100;
    /// What a quiet time saves up.
    const BURST: u64 = 50;
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    let config = one.config(Backend::Vxlan).set("datapath.icmp-rate", RATE);
    let daemon = Daemon::start(one, &config);
    let bystander =
        one.run_in_pod(|| Flow::start(two.pod_ip(Family::V4), Duration::from_millis(5)));
    let bystander = bystander.unwrap();

    let start = Instant::now();
    one.run(|| {
        let socket = UdpSocket::bind("10.244.1.0:0").unwrap();
        for burst in 0..FLOOD / 100 {
            for _ in 0..100 {
                // The error about an earlier one may be told here.
                let _ = socket.send_to(b"flood", "10.244.200.1:9");
            }
            // The kernel's own queue in front of the device holds 500.
            daemon.wait_for("most have arrived", |status| {
                status["outbound"]["dropped"].as_u64() >= Some(burst * 50)
            });
        }
    });
    let report = bystander.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}");
    // Nothing moves any more.
    let status = daemon.status();
    let seconds = start.elapsed().as_secs_f64();
    let count = |key: &str| status["outbound"][key].as_u64().unwrap();
    let (sent, limited) = (count("icmp_sent"), count("icmp_limited"));
    assert_eq!(
        sent + limited,
        FLOOD,
        "each was answered or counted as limited"
    );
    let most = BURST as f64 + RATE as f64 * seconds + 1.0;
    assert!(sent as f64 <= most, "{sent} errors in {seconds} s");
    assert!(sent >= BURST, "some are told: {sent}");

    daemon.assert_balanced(&["no-lease"]);
    daemon.stop();

    // A rate of none.
    let silent = Daemon::start(one, &config.set("datapath.icmp-rate", 0));
    let opts = PingOpts {
        count: 3,
        timeout: Duration::from_millis(50),
        ..PingOpts::default()
    };
    let report = one
        .run(|| ping("10.244.200.1".parse().unwrap(), &opts))
        .unwrap();
    assert!(report.errors.is_empty(), "{report:?}");
    let status = silent.status();
    assert_eq!(
        (
            &status["outbound"]["icmp_sent"],
            &status["outbound"]["icmp_limited"]
        ),
        (&0.into(), &3.into())
    );
}
