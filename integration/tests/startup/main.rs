//! Start-up errors: each ends the daemon with the right exit code, says what is wrong, where, and what to do, and leaves
//! nothing behind: no link, no route, no socket.
#![allow(clippy::unwrap_used)]

mod files;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use encap::Family;
use integration::bed::{
    Backend, Bed, Config, Daemon, Node, PATIENCE, Spec, Underlay, overlayd_bin,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use overlayd::kernel::{RouteSpec, VxlanSpec};
use serde_json::{Value, json};

/// Something failed.
const ERROR: i32 = 1;
/// The configuration is bad.
const CONFIG: i32 = 78;

/// One node, no pods: what start-up needs.
fn bed() -> Bed {
    Bed::with(&Spec {
        nodes: 1,
        pods: false,
        ..Spec::default()
    })
}

/// What a daemon that did not start must not have changed.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    links: Vec<String>,
    routes: Vec<String>,
    udp: Vec<String>,
    socket: bool,
    lock: bool,
}

impl Traces {
    fn of(bed: &Bed, node: &Node, socket: &Path) -> Self {
        let (links, routes) = bed.block_on(async {
            let links = node.netlink().links().await.unwrap();
            let routes = node.netlink().routes().await.unwrap();
            (links, routes)
        });
        let mut udp = Vec::new();
        for table in ["udp", "udp6"] {
            let path = format!("/proc/thread-self/net/{table}");
            let text = node.run(|| fs::read_to_string(&path)).unwrap();
            let local = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
            udp.extend(text.lines().skip(1).filter_map(local));
        }
        let lock = PathBuf::from(format!("{}.lock", socket.display()));
        Traces {
            links: links.into_iter().map(|link| link.name).collect(),
            routes: routes.iter().map(|route| format!("{route:?}")).collect(),
            udp,
            socket: socket.exists(),
            lock: lock.exists(),
        }
    }
}

fn socket_of(config: &Config) -> PathBuf {
    config.get("control.socket").unwrap().into()
}

/// The daemon refuses to start with this exit code and all of these words, and leaves nothing behind.
#[track_caller]
fn refuses(bed: &Bed, config: &Config, code: i32, words: &[&str]) -> String {
    let node = bed.node(1);
    let socket = socket_of(config);
    let before = Traces::of(bed, node, &socket);
    let (ended, log) = Daemon::refused(node, config);
    check(ended, &log, code, words);
    assert_eq!(Traces::of(bed, node, &socket), before, "{log}");
    log
}

#[track_caller]
fn check(ended: i32, log: &str, code: i32, words: &[&str]) {
    assert_eq!(ended, code, "{log}");
    let message = log.lines().filter(|line| line.starts_with("overlayd: "));
    assert_eq!(message.count(), 1, "one message, and no panic: {log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is missing: {log}");
    }
}

fn vxlan(bed: &Bed) -> Config {
    bed.node(1).config(Backend::Vxlan)
}

/// Runs overlayd in the first node, as it is after `prepare` on the thread that starts it.
fn run(bed: &Bed, config: &Config, prepare: impl FnOnce(&mut Command) + Send) -> (i32, String) {
    let file = bed.node(1).dir().join("by-hand.toml");
    fs::write(&file, config.to_string()).unwrap();
    let Output { status, stderr, .. } = bed.node(1).run(|| {
        let mut command = Command::new("timeout");
        // What starts against expectation must not run for ever.
        command.arg(PATIENCE.as_secs().to_string());
        prepare(&mut command);
        command.arg("run").arg("--config").arg(&file);
        command.output().unwrap()
    });
    let log = String::from_utf8(stderr).unwrap();
    (status.code().expect("no signal"), log)
}

#[test]
fn without_a_tun_device_it_says_how_to_get_one() {
    let bed = bed();
    let config = vxlan(&bed);
    let before = Traces::of(&bed, bed.node(1), &socket_of(&config));
    let (code, log) = run(&bed, &config, |command| {
        // A private view of the file system, in which an empty directory lies over /dev/net.
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        mount(none, "/dev/net", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        assert!(!Path::new("/dev/net/tun").exists());
        command.arg(overlayd_bin());
    });
    check(
        code,
        &log,
        ERROR,
        &["/dev/net/tun is missing", "modprobe tun"],
    );
    let after = Traces::of(&bed, bed.node(1), &socket_of(&config));
    assert_eq!(after, before);
    assert!(Path::new("/dev/net/tun").exists(), "the view was private");
}

#[test]
fn without_privilege_it_says_which_one_is_needed() {
    const NOBODY: u32 = 65534;
    let bed = bed();
    let open =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    // All that it needs is within reach of everyone, but for the device.
    open(bed.dir(), 0o755);
    let program = bed.dir().join("overlayd");
    fs::copy(overlayd_bin(), &program).unwrap();
    let public = bed.dir().join("public");
    fs::create_dir(&public).unwrap();
    open(&public, 0o777);
    let as_nobody = |config: &Config| {
        run(&bed, config, |command| {
            command.uid(NOBODY).gid(NOBODY).arg(&program);
        })
    };

    let socket = public.join("overlayd.sock");
    let config = vxlan(&bed).set("control.socket", socket.to_str().unwrap());
    let before = Traces::of(&bed, bed.node(1), &socket);
    let (code, log) = as_nobody(&config);
    check(
        code,
        &log,
        ERROR,
        &["no privilege", "overlay0", "run as root", "CAP_NET_ADMIN"],
    );
    assert_eq!(Traces::of(&bed, bed.node(1), &socket), before);

    // The usual place of the control socket is not theirs either.
    let (code, log) = as_nobody(&vxlan(&bed));
    check(
        code,
        &log,
        ERROR,
        &["control socket", "no permission", "run as root"],
    );
    assert_eq!(log.matches("ermission").count(), 1, "said once: {log}");
}

#[test]
fn a_port_that_a_process_has_is_named() {
    let bed = bed();
    for backend in [Backend::Udp, Backend::Vxlan] {
        let port = if backend == Backend::Udp { 8285 } else { 8472 };
        let node = bed.node(1);
        let _taken = node
            .run(|| UdpSocket::bind((node.public_ip(Family::V4), port)))
            .unwrap();
        let config = node.config(backend);
        let at = format!("10.99.0.1:{port}");
        let sought = format!("ss -ulpn sport = :{port}");
        refuses(
            &bed,
            &config,
            ERROR,
            &[&at, "another process", &sought, "backend.port"],
        );
    }
}

#[test]
fn a_port_that_a_kernel_device_has_is_named_with_the_command_that_frees_it() {
    let bed = bed();
    let node = bed.node(1);
    let spec = VxlanSpec {
        name: "flannel.1".into(),
        vni: 1,
        local: node.public_ip(Family::V4),
        dev: link_index(&bed, "eth0"),
        port: 8472,
        mac: None,
    };
    let left_over = bed.block_on(async {
        let link = node.netlink().add_vxlan(&spec).await.unwrap();
        node.netlink().set_up(link.index).await.unwrap();
        link
    });
    let words = ["8472", "flannel.1", "ip link del flannel.1"];
    refuses(&bed, &vxlan(&bed), ERROR, &words);
    // The advice is right.
    bed.block_on(node.netlink().delete_link(&left_over.name))
        .unwrap();
    Daemon::start(node, &vxlan(&bed)).stop();
}

fn link_index(bed: &Bed, name: &str) -> u32 {
    let link = bed.block_on(bed.node(1).netlink().link(name)).unwrap();
    link.unwrap().index
}

#[test]
fn a_device_name_that_is_taken_or_impossible_is_refused() {
    let bed = bed();
    let node = bed.node(1);
    bed.block_on(node.netlink().add_bridge("overlay0")).unwrap();
    let words = ["`overlay0` is taken", "ip link del overlay0", "device.name"];
    refuses(&bed, &vxlan(&bed), ERROR, &words);
    bed.block_on(node.netlink().delete_link("overlay0"))
        .unwrap();

    let named = |name: &str| vxlan(&bed).set("device.name", name);
    let words = ["device.name", "16 bytes", "at most 15", ".toml:"];
    refuses(&bed, &named("overlay-too-long"), CONFIG, &words);
    for name in ["", "a/b", "a b", "lo", "..", "over%d"] {
        refuses(&bed, &named(name), CONFIG, &["device.name"]);
    }
    refuses(
        &bed,
        &named("eth0"),
        CONFIG,
        &["eth0", "underlay interface"],
    );
    // 15 bytes are not too many.
    Daemon::start(node, &named("overlay-fits-15")).stop();
}

#[test]
fn what_another_overlayd_has_is_refused_one_by_one() {
    let bed = bed();
    let first = Daemon::start(bed.node(1), &vxlan(&bed));
    let other_socket = bed.dir().join("other.sock");
    let other = vxlan(&bed).set("control.socket", other_socket.to_str().unwrap());

    let words = [
        "another overlayd",
        "overlayd.sock",
        "stop it",
        "control.socket",
    ];
    refuses(&bed, &vxlan(&bed), ERROR, &words);
    let words = ["10.99.0.1:8472", "backend.port"];
    refuses(
        &bed,
        &other.clone().set("device.name", "overlay1"),
        ERROR,
        &words,
    );
    let words = ["overlay0", "in use by another process", "device.name"];
    refuses(
        &bed,
        &other.clone().set("backend.port", 9999),
        ERROR,
        &words,
    );
    let words = ["10.244.0.0/16", "overlay1", "overlay0", "ip route del"];
    let same_network = other
        .set("backend.port", 9999)
        .set("device.name", "overlay1");
    refuses(&bed, &same_network, ERROR, &words);

    assert_eq!(first.status()["state"], "ok", "the first has not noticed");
    first.stop();
}

#[test]
fn a_dead_control_socket_is_replaced_and_a_file_in_its_place_is_not() {
    let bed = bed();
    let config = vxlan(&bed);
    let socket = socket_of(&config);
    // Bound and closed: what a killed daemon leaves.
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    Daemon::start(bed.node(1), &config).stop();

    fs::write(&socket, "somebody's notes").unwrap();
    refuses(
        &bed,
        &config,
        ERROR,
        &["overlayd.sock", "not a socket", "remove it"],
    );
    assert_eq!(fs::read_to_string(&socket).unwrap(), "somebody's notes");

    let deep = bed.dir().join("d".repeat(120)).join("overlayd.sock");
    let config = config.set("control.socket", deep.to_str().unwrap());
    let (code, log) = Daemon::refused(bed.node(1), &config);
    assert!(code == ERROR || code == CONFIG, "{log}");
    assert!(log.contains("107"), "{log}");
}

#[test]
fn a_public_ip_of_no_interface_needs_an_interface_to_stand_in_for_it() {
    let bed = bed();
    let node = bed.node(1);
    node.write_leases(&[json!({"Subnet": "10.244.1.0/24", "PublicIP": "203.0.113.9"})]);
    let with_iface = vxlan(&bed).set("node.public-ip", "203.0.113.9");
    let without = with_iface.clone().unset("node.iface");
    let words = [
        "203.0.113.9",
        "on no interface",
        "node.public-ip",
        "NAT",
        "node.iface",
    ];
    refuses(&bed, &without, ERROR, &words);

    let daemon = Daemon::start(node, &with_iface);
    let warnings = daemon.status()["warnings"].to_string();
    assert!(
        warnings.contains("203.0.113.9") && warnings.contains("NAT"),
        "{warnings}"
    );
    let log = daemon.log();
    assert_eq!(
        log.matches("WARN the public IP 203.0.113.9").count(),
        1,
        "{log}"
    );
    let bound = node.run(|| UdpSocket::bind("10.99.0.1:8472"));
    assert!(bound.is_err(), "it listens on the inside address");
    daemon.stop();
}

#[test]
fn an_underlay_that_is_not_there_is_named() {
    let bed = bed();
    let none = vxlan(&bed).set("node.iface", "eth7");
    refuses(&bed, &none, ERROR, &["`eth7`", "node.iface", "lo, eth0"]);
    let words = ["no default route", "node.iface", "node.public-ip"];
    refuses(&bed, &vxlan(&bed).unset("node.iface"), ERROR, &words);
    refuses(
        &bed,
        &vxlan(&bed).set("node.iface", "lo"),
        ERROR,
        &["`lo` has no address"],
    );
    let contradiction = vxlan(&bed).set("node.public-ip", "10.99.0.7");
    refuses(
        &bed,
        &contradiction,
        ERROR,
        &["no lease for this node", "10.99.0.7"],
    );
}

#[test]
fn a_network_whose_route_is_taken_is_refused_with_the_device_that_has_it() {
    let bed = bed();
    let node = bed.node(1);
    let route = RouteSpec {
        protocol: 4,
        ..RouteSpec::new("10.244.0.0/16".parse().unwrap(), link_index(&bed, "eth0"))
    };
    bed.block_on(node.netlink().add_route(&route)).unwrap();
    let words = [
        "10.244.0.0/16",
        "eth0",
        "ip route del 10.244.0.0/16 dev eth0",
    ];
    refuses(&bed, &vxlan(&bed), ERROR, &words);
    bed.block_on(node.netlink().del_route(&route)).unwrap();
    Daemon::start(node, &vxlan(&bed)).stop();

    // The overlay network is the underlay itself.
    node.write_leases(&[json!({"Subnet": "10.99.0.128/25", "PublicIP": "10.99.0.1"})]);
    let overlaps = vxlan(&bed)
        .set("network.network", "10.99.0.0/24")
        .set("network.subnet-len", 25);
    refuses(&bed, &overlaps, ERROR, &["10.99.0.0/24", "eth0"]);
}

#[test]
fn leases_of_others_that_overlap_are_reported_and_the_first_wins() {
    let bed = Bed::new(2, Underlay::V4);
    let again = json!({"Subnet": "10.244.2.0/25", "PublicIP": "10.99.0.9"});
    let mut leases = bed.leases();
    leases.push(again);
    leases.push(json!({"Subnet": "10.99.0.0/24", "PublicIP": "10.99.0.8"}));
    bed.write_leases(&leases);
    let daemon = Daemon::start(bed.node(1), &vxlan(&bed));
    let status = daemon.status();
    assert_eq!(status["peers"].as_array().unwrap().len(), 1, "{status:#}");
    assert_eq!(status["peers"][0]["public_ip"], "10.99.0.2");
    let refused = status["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 2, "{status:#}");
    assert_eq!(refused[0]["subject"], "10.244.2.0/25 at 10.99.0.9");
    let reason = refused[0]["reason"].as_str().unwrap();
    assert!(reason.contains("overlaps 10.244.2.0/24"), "{reason}");
    assert!(
        daemon
            .log()
            .contains("not taken: 10.244.2.0/25 at 10.99.0.9")
    );
    daemon.stop();
}
