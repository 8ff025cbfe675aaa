//! The device, its addresses and our routes.

use std::time::{Duration, Instant};

use integration::bed::{Backend, Bed, Daemon, Spec, Underlay};
use integration::iproute::ip;
use overlayd::config::Engine;

use super::{PATIENCE, both_reach, complains, is_well, reaches, repairs, waits_for};

/// What somebody does, and what of our doing in status answers it.
const DAMAGES: &[(&[&str], &str)] = &[
    (&["link set overlay0 down"], "brought overlay0 up"),
    (
        &["link set overlay0 down", "link set overlay0 up"],
        "added the route 10.244.0.0/16 dev overlay0",
    ),
    (
        &["link set overlay0 mtu 1300"],
        "set the MTU of overlay0 to 1450",
    ),
    (
        &["addr del 10.244.1.0/32 dev overlay0"],
        "gave overlay0 the address 10.244.1.0",
    ),
    (
        &["addr del fd00:10:244:1::/128 dev overlay0"],
        "gave overlay0 the address fd00:10:244:1::",
    ),
    (
        &["addr flush dev overlay0"],
        "gave overlay0 the address 10.244.1.0",
    ),
    (
        &["route del 10.244.0.0/16"],
        "added the route 10.244.0.0/16 dev overlay0",
    ),
    (
        &["-6 route del fd00:10:244::/48"],
        "added the route fd00:10:244::/48 dev overlay0",
    ),
    (
        &["route replace 10.244.0.0/16 dev eth0"],
        "in the place of 10.244.0.0/16 dev eth0",
    ),
    (
        &["-6 route replace fd00:10:244::/48 dev eth0 metric 1024"],
        "in the place of fd00:10:244::/48 dev eth0",
    ),
    (
        &["route replace blackhole 10.244.0.0/16"],
        "in the place of 10.244.0.0/16",
    ),
    (&["link del overlay0"], "made the device overlay0 again"),
];

#[test]
fn whatever_is_undone_is_repaired_and_packets_flow() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for engine in [Engine::Batched, Engine::Classic] {
        let daemons = bed.start_with(Backend::Vxlan, engine);
        let daemon = &daemons[0];
        both_reach("start", one, two);
        let before = daemon.status();
        assert_eq!(repairs(&before), 0, "{before:#}");
        for (commands, answer) in DAMAGES {
            let what = commands.join(", ");
            let count = repairs(&daemon.status());
            for command in *commands {
                ip(one.netns(), command);
            }
            let start = Instant::now();
            daemon.wait_for(&what, |status| {
                let recent = status["repairs"]["recent"].to_string();
                repairs(status) > count && recent.contains(answer) && status["state"] == "ok"
            });
            let repaired = start.elapsed();
            let flows = both_reach(&what, one, two);
            println!("{engine:?}: {what}: repaired in {repaired:.0?}, and {flows:.0?} to ping");
        }
        let after = daemon.status();
        assert_eq!(after["pid"], before["pid"]);
        // The peer's counters did not start anew when its device, sockets and threads did.
        let sent = after["peers"][0]["sent_packets"].as_u64().unwrap();
        assert!(sent >= 2 * DAMAGES.len() as u64, "{after:#}");
        let log = daemon.log();
        assert!(
            log.contains("repaired what somebody undid: brought overlay0 up"),
            "{log}"
        );
        daemons.into_iter().for_each(Daemon::stop);
    }
}

#[test]
fn what_others_have_on_the_host_is_left_alone() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let theirs = [
        "10.244.77.0/24 via 10.99.0.2 dev eth0",
        "10.245.0.0/16 via 10.99.0.2 dev eth0 proto 82",
        "192.168.5.0/24 via 10.99.0.2 dev eth0 proto static",
    ];
    for route in theirs {
        ip(one.netns(), &format!("route add {route}"));
    }
    let daemons = bed.start(Backend::Vxlan);
    // Hung on our device while we run.
    ip(one.netns(), "addr add 192.0.2.1/32 dev overlay0");
    ip(one.netns(), "route add 192.168.6.0/24 dev overlay0");
    for _ in 0..2 {
        ip(one.netns(), "route del 10.244.0.0/16");
        both_reach("a repair", one, two);
    }
    let routes = ip(one.netns(), "route");
    let there = |route: &str| {
        let mut words = routes.lines().map(|line| line.trim_end().to_owned());
        words.any(|line| line.starts_with(route))
    };
    for route in theirs.into_iter().chain(["192.168.6.0/24 dev overlay0"]) {
        assert!(there(route), "{route} is not in {routes}");
    }
    assert!(ip(one.netns(), "addr show dev overlay0").contains("192.0.2.1/32"));
    daemons.into_iter().for_each(Daemon::stop);
    let routes = ip(one.netns(), "route");
    assert!(
        routes.contains("10.245.0.0/16") && routes.contains("10.244.77.0/24"),
        "{routes}"
    );
}

#[test]
fn with_one_who_keeps_undoing_there_is_no_fight() {
    let bed = Bed::with(&Spec::default());
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    let daemon = &daemons[0];
    let there = || ip(one.netns(), "route").contains("10.244.0.0/16 dev overlay0");
    let mut undone = 0;
    waits_for("a complaint about the fight", || {
        if there() {
            ip(one.netns(), "route del 10.244.0.0/16");
            undone += 1;
        }
        let status = daemon.status();
        status["reasons"]
            .to_string()
            .contains("keeps undoing the route 10.244.0.0/16")
    });
    assert!((11..=13).contains(&undone), "{undone}");
    let status = complains(daemon, &["left alone", "ip monitor"]);
    assert_eq!(repairs(&status), 11);
    // One that was put back after the complaint may have been undone once more.
    if there() {
        ip(one.netns(), "route del 10.244.0.0/16");
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(!there(), "it is left alone");
    assert!(reaches(two, two.pod_ip(super::V4)) && !reaches(one, two.pod_ip(super::V4)));
    // Others do not suffer: the IPv6 route is repaired at once.
    ip(one.netns(), "-6 route del fd00:10:244::/48");
    waits_for("IPv6", || reaches(one, two.pod_ip(super::V6)));
    // Whoever it was has stopped: the pause ends.
    let back = waits_for("the route is back", there);
    assert!(back < PATIENCE);
    both_reach("the fight", one, two);
    let log = daemon.log();
    let told = log
        .lines()
        .filter(|line| line.contains("keeps undoing"))
        .count();
    assert_eq!(told, 1, "{log}");
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn a_device_that_somebody_keeps_removing_is_given_up_for_a_while_and_the_daemon_lives() {
    let bed = Bed::with(&Spec::default());
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    let daemon = &daemons[0];
    waits_for("a complaint about the fight", || {
        if daemon.has_device() {
            ip(one.netns(), "link del overlay0");
        }
        let status = daemon.status();
        status["reasons"]
            .to_string()
            .contains("keeps undoing the device")
    });
    // The pause ends, and the device is back. For a minute it is still told that there was a fight.
    waits_for("the device is back", || daemon.has_device());
    complains(daemon, &["keeps undoing the device"]);
    both_reach("the fight", one, two);
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn a_device_that_was_carried_off_to_another_namespace_is_made_again() {
    let mut bed = Bed::with(&Spec::default());
    let away = bed.add_namespace("away");
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    let index = daemons[0].status()["device"]["index"].clone();
    let name = format!("{}away", bed.prefix());
    ip(one.netns(), &format!("link set overlay0 netns {name}"));
    daemons[0].wait_for("another device", |status| {
        status["device"]["index"] != index && status["state"] == "ok"
    });
    both_reach("carrying it off", one, two);
    waits_for("the old one is gone", || {
        !ip(&away, "link").contains("overlay0")
    });
    is_well(&daemons[0]);
    daemons.into_iter().for_each(Daemon::stop);
}
