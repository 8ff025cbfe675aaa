//! Nothing else passes through what injection sets up, nothing of the host changes, and nothing is left.

use std::env;
use std::io;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::Backend;
use integration::wire::Wire;
use overlayd::inject::{Injector, Kind, Unavailable};
use overlayd::kernel::NetNs;

use crate::bed::{
    FAMILIES, OURS4, OURS6, PEER4, PEER6, Pair, TAP, frame, hop, pattern, superpacket, try_in,
};

const TCP: Kind = Kind::Tcp { ecn: false };

/// A frame that passes, of a superpacket for the VXLAN port over that family.
fn good_frame(pair: &Pair, injector: &Injector, outer: Family) -> Vec<u8> {
    let packet = superpacket(Family::V4, TCP, 1000, &pattern(3000));
    let hop = hop(Backend::Vxlan, outer, Family::V4);
    frame(injector, &pair.path(outer), &hop, &packet)
}

/// How many frames with our pattern in them reach the peer.
fn reach_the_peer(pair: &Pair, send: impl FnOnce()) -> usize {
    let its_own = pair.path(Family::V4).next_hop;
    let wire = Wire::listen(&pair.peer);
    send();
    let marker = pattern(64);
    let frames = wire.stop();
    // Its ICMP errors quote what it received.
    let received = frames.iter().filter(|frame| frame[6..12] != its_own.0);
    received
        .filter(|frame| frame.windows(marker.len()).any(|bytes| bytes == marker))
        .count()
}

/// Offsets of the fields that are spoilt, from the start of the frame with its 24 bytes in front.
const ETHERTYPE: usize = 24 + 12;
const IP: usize = 24 + 14;

#[test]
fn only_our_own_tunnel_packets_pass_the_device() {
    let pair = Pair::new();
    let injector = pair.open(Backend::Vxlan);
    // A socket of our host that would gladly take what ends up in its stack.
    let host = pair
        .ours
        .run(|| UdpSocket::bind(("0.0.0.0", 8472)).unwrap())
        .unwrap();
    host.set_nonblocking(true).unwrap();
    let mac_of_tap = pair.us(&format!("cat /sys/class/net/{TAP}/address"));
    let mac_of_tap: encap::MacAddr = mac_of_tap.trim().parse().unwrap();
    for outer in FAMILIES {
        let good = good_frame(&pair, &injector, outer);
        let passes = |frame: &[u8]| reach_the_peer(&pair, || injector.inject(frame, &[]).unwrap());
        assert_eq!(passes(&good), 1, "{outer:?}");
        let (source, port, protocol) = match outer {
            Family::V4 => (IP + 12, IP + 20 + 2, IP + 9),
            Family::V6 => (IP + 8, IP + 40 + 2, IP + 6),
        };
        let last_of_source = source + if outer == Family::V4 { 3 } else { 15 };
        let mut spoilt = vec![
            ("another EtherType", ETHERTYPE + 1),
            ("another first byte of the source", source),
            ("another last byte of the source", last_of_source),
            ("another port", port),
            ("a neighbouring port", port + 1),
            ("another protocol", protocol),
        ];
        if outer == Family::V4 {
            spoilt.push(("IP options", IP));
        }
        for (what, at) in spoilt {
            let mut frame = good.clone();
            frame[at] ^= 1;
            assert_eq!(passes_raw(&pair, &injector, &frame), 0, "{outer:?}, {what}");
        }
        // To our own host, by the device's own address: dropped as well.
        let mut frame = good.clone();
        frame[24..30].copy_from_slice(&mac_of_tap.0);
        match outer {
            Family::V4 => {
                frame[source..source + 4].copy_from_slice(&PEER4.octets());
                frame[source + 4..source + 8].copy_from_slice(&OURS4.octets());
            }
            Family::V6 => {
                frame[source..source + 16].copy_from_slice(&PEER6.octets());
                frame[source + 16..source + 32].copy_from_slice(&OURS6.octets());
            }
        }
        assert_eq!(passes_raw(&pair, &injector, &frame), 0, "{outer:?}, to us");
    }
    // Without segmentation: a plain small frame, ARP, and one shorter than what the filter reads.
    let plain = |ethernet: &[u8]| [&[0; 24], ethernet].concat();
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.extend(&pattern(3000)[..100]);
    assert_eq!(passes_raw(&pair, &injector, &plain(&arp)), 0);
    assert_eq!(passes_raw(&pair, &injector, &plain(&arp[..30])), 0);
    let nothing = host.recv(&mut [0; 9]).unwrap_err();
    assert_eq!(
        nothing.kind(),
        io::ErrorKind::WouldBlock,
        "our stack got one"
    );
}

/// As many as pass of a frame that the kernel may not even accept; what counts is that it goes nowhere.
fn passes_raw(pair: &Pair, injector: &Injector, frame: &[u8]) -> usize {
    reach_the_peer(pair, || {
        let _ = injector.inject(frame, &[]);
    })
}

#[test]
fn what_is_sent_into_the_device_goes_nowhere() {
    let pair = Pair::new();
    let _injector = pair.open(Backend::Vxlan);
    pair.us("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    pair.us(&format!("ip route add 10.77.0.0/16 dev {TAP}"));
    let sender = pair
        .ours
        .run(|| UdpSocket::bind((OURS4, 0)).unwrap())
        .unwrap();
    let sent = reach_the_peer(&pair, || {
        for _ in 0..5 {
            let _ = sender.send_to(&pattern(3000)[..1000], "10.77.0.1:8472");
        }
    });
    assert_eq!(sent, 0);
    let counters = pair.us(&format!("cat /sys/class/net/{TAP}/statistics/rx_packets"));
    // The eight that it was probed with.
    assert_eq!(counters.trim(), "8");
}

#[test]
fn nothing_of_the_host_changes_and_all_is_gone_when_dropped() {
    let pair = Pair::new();
    let before = settled_state(&pair);
    let injector = pair.open(Backend::Vxlan);
    let good = good_frame(&pair, &injector, Family::V4);
    let during = host_state(&pair);
    assert_same(&without_tap(&during), &before);
    assert!(during.contains(TAP));
    let addresses = pair.us(&format!("ip -o addr show dev {TAP}"));
    assert_eq!(addresses, "", "it has an address");
    // Other traffic of the underlay, both ways, while packets are injected.
    for _ in 0..100 {
        injector.inject(&good, &[]).unwrap();
    }
    pair.us("ping -c 3 -i 0.02 -W 2 10.99.0.2");
    pair.them("ping -c 3 -i 0.02 -W 2 fd99::1");
    drop(injector);
    assert_same(&host_state(&pair), &before);
}

/// Links, addresses, routes, rules, queueing disciplines, filters, firewall, and the settings of the network.
fn host_state(pair: &Pair) -> String {
    let commands = [
        "ip -o link",
        "ip -o addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "tc qdisc",
        "tc filter show dev eth0 ingress",
        "tc filter show dev eth0 egress",
        "nft list ruleset",
        "sysctl -a --pattern ^net\\.ipv[46]\\.(conf|ip_forward)",
    ];
    let mut state = String::new();
    for command in commands {
        let (_, stdout, _) = try_in(&pair.ours, command);
        state += &stdout;
    }
    state
}

/// The host's state once the kernel has stopped changing it: addresses are made usable, and their routes made, after a while.
fn settled_state(pair: &Pair) -> String {
    let mut state = host_state(pair);
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut state, host_state(pair));
        if before == state && !state.contains("tentative") {
            break;
        }
    }
    state
}

/// Names the lines that differ, of the hundreds that there are.
fn assert_same(now: &str, before: &str) {
    let only_in = |one: &str, other: &str| -> Vec<String> {
        let lines = one
            .lines()
            .filter(|line| !other.lines().any(|l| l == *line));
        lines.map(str::to_owned).collect()
    };
    let (new, gone) = (only_in(now, before), only_in(before, now));
    assert!(
        new.is_empty() && gone.is_empty(),
        "new: {new:#?}, gone: {gone:#?}"
    );
}

fn without_tap(state: &str) -> String {
    let lines = state.lines().filter(|line| !line.contains(TAP));
    lines.map(|line| line.to_owned() + "\n").collect()
}

#[test]
fn it_works_on_a_strict_host() {
    let pair = Pair::new();
    pair.us("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    for family in ["ip", "ip6"] {
        pair.us(&format!("nft add table {family} strict"));
        for hook in ["input", "forward"] {
            pair.us(&format!(
                "nft add chain {family} strict {hook} {{ type filter hook {hook} priority 0 ; policy drop ; }}"
            ));
        }
    }
    let injector = pair.open(Backend::Vxlan);
    for outer in FAMILIES {
        let good = good_frame(&pair, &injector, outer);
        let passed = reach_the_peer(&pair, || injector.inject(&good, &[]).unwrap());
        assert_eq!(passed, 1, "{outer:?}");
    }
}

/// Set for the process that [`after_kill_9_nothing_is_left`] starts: the namespace to open a device in.
const HOLD_IN: &str = "OVERLAYD_TEST_INJECT_IN";

#[test]
fn after_kill_9_nothing_is_left() {
    if let Ok(namespace) = env::var(HOLD_IN) {
        hold(&namespace);
        return;
    }
    let pair = Pair::new();
    let before = settled_state(&pair);
    let mut holder = Command::new(env::current_exe().unwrap())
        .args(["--exact", "safety::after_kill_9_nothing_is_left"])
        .env(HOLD_IN, pair.ours.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let is_up = || {
        try_in(&pair.ours, &format!("ip -o link show {TAP} up"))
            .1
            .contains(TAP)
    };
    while !is_up() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it does not come up"
        );
        thread::sleep(Duration::from_millis(20));
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_same(&host_state(&pair), &before);
    let injector = pair.open(Backend::Vxlan);
    let good = good_frame(&pair, &injector, Family::V4);
    assert_eq!(
        reach_the_peer(&pair, || injector.inject(&good, &[]).unwrap()),
        1
    );
}

fn hold(namespace: &str) {
    let ours = NetNs::open(namespace).unwrap();
    let spec = overlayd::inject::Spec {
        name: TAP.into(),
        underlay: crate::bed::run_in(&ours, "cat /sys/class/net/eth0/ifindex")
            .trim()
            .parse()
            .unwrap(),
        sources: crate::bed::sources(),
        port: 8472,
        header_len: 22,
        dont_fragment: true,
    };
    let injector = crate::bed::open_in(&ours, &spec).unwrap();
    thread::sleep(Duration::from_secs(30));
    drop(injector);
}

#[test]
fn what_stands_in_the_way_is_said() {
    let pair = Pair::new();
    let spec = pair.spec(Backend::Vxlan);
    pair.us(&format!("ip tuntap add dev {TAP} mode tap"));
    assert!(matches!(pair.try_open(&spec), Err(Unavailable::Taken(name)) if name == TAP));
    pair.us(&format!("ip link show {TAP}"));
    pair.us(&format!("ip tuntap del dev {TAP} mode tap"));

    let mut other = spec.clone();
    pair.us("ip tuntap add dev tun9 mode tun");
    other.underlay = pair
        .us("cat /sys/class/net/tun9/ifindex")
        .trim()
        .parse()
        .unwrap();
    assert!(matches!(pair.try_open(&other), Err(Unavailable::NotEthernet(name)) if name == "tun9"));
    other.underlay = 12_345;
    let error = pair.try_open(&other).unwrap_err().to_string();
    assert!(error.contains("No such device"), "{error}");
    let links = pair.us("ip -o link");
    assert!(!links.contains(TAP), "{links}");
    pair.try_open(&spec).unwrap();
}

#[test]
fn a_full_underlay_queue_says_would_block() {
    let pair = Pair::new();
    let injector = pair.open(Backend::Vxlan);
    pair.us("tc qdisc add dev eth0 root tbf rate 1mbit burst 64kb limit 200mb");
    let packet = superpacket(Family::V4, TCP, 1400, &pattern(60_000));
    let hop = hop(Backend::Vxlan, Family::V4, Family::V4);
    let frame = frame(&injector, &pair.path(Family::V4), &hop, &packet);
    // 4 MiB in flight, and what the first went out with.
    let refused = (0..200)
        .map(|_| injector.inject(&frame, &[]))
        .find_map(Result::err);
    let refused = refused.expect("there is a bound to what is in flight");
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    pair.us("tc qdisc del dev eth0 root");
    injector.inject(&frame, &[]).unwrap();
}
