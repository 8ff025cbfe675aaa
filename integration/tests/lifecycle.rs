//! A daemon's life: start, reload, signals, crash, end.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{
    Backend, Bed, Config, Daemon, Node, PATIENCE, Spec, Underlay, overlayd_bin,
};
use ipnet::IpNet;
use nix::sys::signal::Signal;
use overlayd::lab::traffic::{Flow, PingOpts, ping};
use serde_json::{Value, json};

const V4: Family = Family::V4;

fn reaches(from: &Node, to: IpAddr) -> bool {
    let opts = PingOpts {
        count: 1,
        ..PingOpts::default()
    };
    from.run(|| ping(to, &opts)).unwrap().received == 1
}

/// The prefixes that lead into `device`, of the overlay and of static routes.
fn routes_into(bed: &Bed, node: &Node, device: &str) -> Vec<IpNet> {
    let (link, routes) = bed.block_on(async {
        let link = node.netlink().link(device).await.unwrap();
        (link, node.netlink().routes().await.unwrap())
    });
    let Some(link) = link else { return Vec::new() };
    let ours = routes.iter().filter(|route| route.oif == Some(link.index));
    ours.map(|route| route.dst).collect()
}

fn waits_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lock_of(socket: &Path) -> PathBuf {
    PathBuf::from(format!("{}.lock", socket.display()))
}

fn port_is_free(node: &Node, port: u16) -> bool {
    node.run(|| UdpSocket::bind((node.public_ip(V4), port)))
        .is_ok()
}

#[test]
fn sigterm_and_sigint_take_everything_away() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start(one, &one.config(Backend::Vxlan));
        assert!(reaches(one, two.pod_ip(V4)));
        assert!(lock_of(daemon.socket()).exists());
        assert!(!port_is_free(one, 8472));

        daemon.signal(signal);
        let start = Instant::now();
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0), "{signal}");
        println!("{signal}: gone in {:.1?}", start.elapsed());
        assert!(!daemon.has_device(), "{signal}");
        let overlay: IpNet = "10.244.0.0/16".parse().unwrap();
        let routes = bed.block_on(one.netlink().routes()).unwrap();
        assert!(
            routes.iter().all(|route| route.dst != overlay),
            "{routes:?}"
        );
        assert!(port_is_free(one, 8472));
        assert!(!daemon.socket().exists() && !lock_of(daemon.socket()).exists());
        assert!(daemon.log().contains("stopped"), "{}", daemon.log());
    }
}

#[test]
fn a_killed_daemon_is_succeeded_at_once() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    let config = one.config(Backend::Vxlan);
    for _ in 0..3 {
        let mut daemon = Daemon::start(one, &config);
        assert!(reaches(one, two.pod_ip(V4)));
        daemon.kill();
        assert!(daemon.socket().exists(), "nobody cleared up after it");
    }
    let daemon = Daemon::start(one, &config);
    assert!(reaches(one, two.pod_ip(V4)));
    daemon.stop();
}

#[test]
fn a_device_that_was_left_is_adopted_and_made_ours() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    // As a daemon that was upgraded would leave it, with the address of an older lease.
    for command in [
        "tuntap add dev overlay0 mode tun",
        "addr add 10.244.77.0/32 dev overlay0",
        "addr add fd00:10:244:77::/128 dev overlay0",
        "link set overlay0 up mtu 1300",
        "route add 10.244.0.0/16 dev overlay0",
        "route add 192.168.77.0/24 dev overlay0 proto 82",
    ] {
        ip(one, command);
    }
    let daemon = Daemon::start(one, &one.config(Backend::Vxlan));
    assert!(reaches(one, two.pod_ip(V4)));
    let routes = ["10.244.0.0/16", "fd00:10:244:1::/128", "fd00:10:244::/48"];
    let there = routes_into(&bed, one, "overlay0").into_iter();
    let there = there.map(|route| route.to_string());
    // `ip link set up` gave it a link-local address as well.
    let mut there: Vec<_> = there.filter(|route| route != "fe80::/64").collect();
    there.sort();
    assert_eq!(there, routes, "the stale route is gone");
    let (link, addresses) = bed.block_on(async {
        let link = one.netlink().link("overlay0").await.unwrap().unwrap();
        (link, one.netlink().addresses().await.unwrap())
    });
    assert_eq!(link.mtu, 1450);
    let ours = addresses
        .iter()
        .filter(|address| address.ifindex == link.index && address.scope == 0);
    let mut ours: Vec<_> = ours.map(|address| address.ip).collect();
    ours.sort();
    assert_eq!(ours, [one.base_ip(V4), one.base_ip(Family::V6)]);
    daemon.stop();
}

/// iproute2 in a node: what a person would type.
fn ip(node: &Node, arguments: &str) {
    let done = node.run(|| Command::new("ip").args(arguments.split(' ')).output());
    let done = done.expect("these tests need the `ip` program (package iproute2)");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {said}");
}

/// A second overlay beside the first: other network, backend, device, port and socket.
fn second(node: &Node) -> Config {
    let at = |name: &str| node.dir().join(name).to_str().unwrap().to_owned();
    let leases = json!([
        {"Subnet": "10.245.1.0/24", "PublicIP": "10.99.0.1"},
        {"Subnet": "10.245.2.0/24", "PublicIP": "10.99.0.2"},
    ]);
    fs::write(at("second.json"), leases.to_string()).unwrap();
    node.config(Backend::Udp)
        .set("network.network", "10.245.0.0/16")
        .unset("network.ipv6-network")
        .set("device.name", "overlay1")
        .set("store.path", at("second.json"))
        .set("control.socket", at("second.sock"))
}

#[test]
fn two_daemons_share_a_host() {
    let bed = Bed::new(2, Underlay::V4);
    let first = bed.start(Backend::Vxlan);
    let second: Vec<_> = bed
        .nodes()
        .iter()
        .map(|node| Daemon::start(node, &second(node)))
        .collect();
    let (one, two) = (bed.node(1), bed.node(2));
    let in_second: IpAddr = "10.245.2.0".parse().unwrap();
    assert!(reaches(one, two.pod_ip(V4)) && reaches(one, in_second));
    for daemon in [&first[0], &second[0]] {
        // The reply is counted a moment after it was delivered.
        daemon.wait_for("one reply each", |status| {
            status["peers"][0]["received_packets"] == 1
        });
    }
    for daemon in second {
        daemon.assert_balanced(&[]);
        daemon.stop();
    }
    assert!(reaches(one, two.pod_ip(V4)), "the first does not mind");
    for daemon in first {
        daemon.assert_balanced(&[]);
        daemon.stop();
    }
}

fn reload(daemon: &Daemon, config: &Config) {
    fs::write(daemon.config_path(), config.to_string()).unwrap();
    daemon.reload();
}

#[test]
fn a_reload_takes_up_routes_and_the_log_level() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let behind_two: IpNet = "192.168.77.0/24".parse().unwrap();
    let routed = |node: &Node| {
        node.config(Backend::Vxlan)
            .route("192.168.77.0/24", "10.99.0.2")
    };
    let _other = Daemon::start(two, &routed(two));
    ip(two, "addr add 192.168.77.1/24 dev cni0");
    let daemon = Daemon::start(one, &one.config(Backend::Vxlan));
    let target: IpAddr = "192.168.77.1".parse().unwrap();
    let from_pod = || {
        let opts = PingOpts {
            count: 1,
            timeout: Duration::from_millis(300),
            ..PingOpts::default()
        };
        one.run_in_pod(|| ping(target, &opts)).unwrap().received == 1
    };
    assert!(!from_pod());

    let flow = one
        .run_in_pod(|| Flow::start(two.pod_ip(V4), Duration::from_millis(1)))
        .unwrap();
    reload(&daemon, &routed(one));
    waits_for("the kernel has the route", || {
        routes_into(&bed, one, "overlay0").contains(&behind_two)
    });
    waits_for("the tables have it", from_pod);
    assert_eq!(
        daemon.status()["peers"][0]["also"],
        json!(["192.168.77.0/24"])
    );
    let reloads = || daemon.log().matches("configuration reloaded").count();
    assert_eq!(reloads(), 1);

    // The route goes, and so does talk below `warn`.
    let quiet = one.config(Backend::Vxlan).set("log.level", "warn");
    reload(&daemon, &quiet);
    waits_for("the kernel lost the route", || {
        !routes_into(&bed, one, "overlay0").contains(&behind_two)
    });
    assert!(!from_pod());
    assert_eq!(reloads(), 1, "{}", daemon.log());
    reload(&daemon, &routed(one));
    waits_for("it talks again", || reloads() == 2);
    waits_for("the route is back", from_pod);

    // Removed by hand, it comes back, and does not make the next reload fail.
    ip(one, "route del 192.168.77.0/24 dev overlay0");
    waits_for("the kernel has it again", || {
        routes_into(&bed, one, "overlay0").contains(&behind_two)
    });
    reload(&daemon, &one.config(Backend::Vxlan));
    waits_for("the reload", || reloads() == 3);
    daemon.wait_for("no fault", |status| status["state"] == "ok");

    let report = flow.stop().unwrap();
    assert!(report.sent > 5, "{report:?}");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    daemon.stop();
}

#[test]
fn a_reload_that_cannot_be_taken_up_changes_nothing() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    let config = one.config(Backend::Vxlan);
    let daemon = Daemon::start(one, &config);
    let flow = one
        .run_in_pod(|| Flow::start(two.pod_ip(V4), Duration::from_millis(2)))
        .unwrap();
    let reason = |status: &Value| status["reasons"][0].as_str().unwrap_or_default().to_owned();
    let routes = routes_into(&bed, one, "overlay0");

    // One part of it could be taken up, another needs a restart: none is taken.
    let mixed = config
        .clone()
        .set("backend.port", 9999)
        .route("192.168.78.0/24", "10.99.0.2");
    reload(&daemon, &mixed);
    let status = daemon.wait_for("degraded", |status| status["state"] == "degraded");
    let why = reason(&status);
    assert!(
        why.contains("backend.port") && why.contains("restart"),
        "{why}"
    );
    assert_eq!(status["backend"]["port"], 8472);
    assert_eq!(routes_into(&bed, one, "overlay0"), routes);
    assert_eq!(status_code(&daemon), 4);

    // Lease changes still come through, and the reason stays.
    bed.write_leases(&bed.leases()[..1]);
    let status = daemon.wait_for("the peer is gone", |status| status["peers"] == json!([]));
    assert!(reason(&status).contains("backend.port"), "{status:#}");
    bed.write_leases(&bed.leases());
    daemon.wait_for("the peer is back", |status| status["peers"][0].is_object());

    fs::write(daemon.config_path(), "[network\nnetwork = ").unwrap();
    daemon.reload();
    let status = daemon.wait_for("another reason", |status| {
        !reason(status).contains("restart")
    });
    let why = reason(&status);
    assert!(
        why.contains("not valid TOML") && why.contains(".toml:1"),
        "{why}"
    );
    fs::remove_file(daemon.config_path()).unwrap();
    daemon.reload();
    daemon.wait_for("the file is missed", |status| {
        reason(status).contains("No such file")
    });

    // A static route whose place another device has.
    ip(one, "route add 192.168.79.0/24 dev eth0");
    let taken = config.clone().route("192.168.79.0/24", "10.99.0.2");
    reload(&daemon, &taken);
    daemon.wait_for("the holder is named", |status| {
        reason(status).contains("ip route del 192.168.79.0/24 dev eth0")
    });
    ip(one, "route del 192.168.79.0/24 dev eth0");
    daemon.reload();
    daemon.wait_for("the cure helps", |status| status["state"] == "ok");
    assert!(routes_into(&bed, one, "overlay0").len() > routes.len());

    reload(&daemon, &config);
    waits_for("only the old routes", || {
        routes_into(&bed, one, "overlay0") == routes
    });
    assert_eq!(daemon.status()["state"], "ok");
    assert_eq!(status_code(&daemon), 0);
    // Nothing was lost but in the time without the peer's lease, and that is accounted for.
    let report = flow.stop().unwrap();
    let accounted = daemon.drops("no-lease") + daemon.drops("unknown-peer");
    assert_eq!(report.lost, accounted, "{report:?}");
    daemon.stop();
}

/// The exit code of `overlayd status`.
fn status_code(daemon: &Daemon) -> i32 {
    let mut command = Command::new(overlayd_bin());
    command.arg("status").arg("--socket").arg(daemon.socket());
    command.output().unwrap().status.code().unwrap()
}

/// A process that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_service_manager_is_told() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    let notify = bed.dir().join("notify.sock");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut text = [0; 1024];
        let len = manager
            .recv(&mut text)
            .expect("a message to the service manager");
        String::from_utf8(text[..len].to_vec()).unwrap()
    };
    let file = bed.dir().join("notify.toml");
    fs::write(&file, node.config(Backend::Vxlan).to_string()).unwrap();
    let mut command = Command::new(overlayd_bin());
    command
        .arg("run")
        .arg("--config")
        .arg(&file)
        .env("NOTIFY_SOCKET", &notify);
    command.stderr(Stdio::null());
    let mut daemon = Guard(node.netns().spawn(command).unwrap());
    let signal = |signal| {
        let pid = nix::unistd::Pid::from_raw(daemon.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };

    assert_eq!(next().trim(), "READY=1");
    // Ready means ready: what the overlay needs stands.
    assert!(!routes_into(&bed, node, "overlay0").is_empty());
    signal(Signal::SIGHUP);
    let reloading = next();
    assert!(
        reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(next().trim(), "READY=1");
    signal(Signal::SIGTERM);
    assert_eq!(next().trim(), "STOPPING=1");
    assert!(daemon.0.wait().unwrap().success());
}

/// Prints the footprint, which hangs on the machine and is judged elsewhere.
#[test]
fn start_is_quick_and_rest_is_small() {
    let bed = Bed::with(&Spec::default());
    let (one, two) = (bed.node(1), bed.node(2));
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    overlayd_bin();
    let start = Instant::now();
    let daemon = Daemon::launch(one, &one.config(Backend::Vxlan));
    let opts = PingOpts {
        count: 1,
        timeout: Duration::from_millis(5),
        ..PingOpts::default()
    };
    waits_for("forwarding", || {
        one.run(|| ping(two.pod_ip(V4), &opts))
            .is_ok_and(|report| report.received == 1)
    });
    println!("from start to the first reply: {:.1?}", start.elapsed());
    let memory = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let rss = memory
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    println!("idle memory: {rss}");
    daemon.stop();
}
