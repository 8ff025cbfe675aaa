//! `overlayd flannel`: flanneld's command line on a real node, and the subnet file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Daemon, Node, Underlay, overlayd_bin};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::observe::client;
use serde_json::{Value, json};

use super::shell;

/// The command, without what the machine's variables would say.
pub(super) fn overlayd(args: &[&str]) -> Command {
    let mut command = Command::new(overlayd_bin());
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("OVERLAYD_") || text.starts_with("FLANNELD_") {
            command.env_remove(&name);
        }
    }
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = overlayd(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// The node's lease, IPv4 only, under this public IP.
fn lease_at(node: &Node, public: &str) -> Value {
    let mut lease = node.lease();
    lease["IPv6Subnet"] = Value::Null;
    lease["PublicIP"] = json!(public);
    lease
}

/// `overlayd flannel` in a node, on its lease file. Dropped, it is killed.
pub(super) struct Flannel {
    child: Child,
    pub(super) socket: PathBuf,
}

impl Flannel {
    fn start(node: &Node, args: &[&str], env: &[(&str, &str)]) -> Self {
        let leases = node.leases_path();
        let leases = leases.to_str().unwrap();
        let on_file = [
            "--store=file",
            "--network=10.244.0.0/16",
            "--leases",
            leases,
        ];
        Self::launch(node, &[args, &on_file].concat(), env)
    }

    /// The same, on the store that the arguments name.
    pub(super) fn launch(node: &Node, args: &[&str], env: &[(&str, &str)]) -> Self {
        let socket = node.dir().join("flannel.sock");
        let mut command = overlayd(&["flannel"]);
        command
            .args(args)
            .arg("--socket")
            .arg(&socket)
            .envs(env.iter().copied());
        let child = node.netns().spawn(command).unwrap();
        Flannel { child, socket }
    }

    pub(super) fn status(&mut self) -> Value {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(status) = client::status(&self.socket) {
                return status;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it ended");
            assert!(Instant::now() < end, "it does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Flannel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn flannels_flags_make_flannels_device_and_subnet_file() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    let public = node.public_ip(Family::V4).to_string();
    node.write_leases(&[lease_at(node, &public)]);
    let env = node.dir().join("run/subnet.env");
    let file = format!("-subnet-file={}", env.display());
    let mut flannel = Flannel::start(node, &["-iface=eth0", "-ip-masq", &file], &[]);
    let status = flannel.status();
    assert_eq!(status["device"]["name"], "flannel.1");
    let subnet = format!("{}/24", node.gateway(Family::V4));
    assert_eq!(
        fs::read_to_string(&env).unwrap(),
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
    );
    let rules = shell(node.netns(), "nft list ruleset");
    assert!(rules.contains("table ip overlayd-flannel.1"), "{rules}");
    flannel.stop();
    assert_eq!(shell(node.netns(), "nft list ruleset"), "");
    assert!(env.exists(), "the next start reads it");
}

#[test]
fn variables_work_as_flags_do_and_udp_has_its_device() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    let public = node.public_ip(Family::V4).to_string();
    node.write_leases(&[lease_at(node, &public)]);
    let env = node.dir().join("subnet.env");
    let variables = [
        ("FLANNELD_IFACE", "eth0"),
        ("FLANNELD_SUBNET_FILE", env.to_str().unwrap()),
        ("FLANNELD_IP_MASQ", "false"),
    ];
    let mut flannel = Flannel::start(node, &["--backend=udp"], &variables);
    assert_eq!(flannel.status()["device"]["name"], "flannel0");
    let text = fs::read_to_string(&env).unwrap();
    assert!(
        text.ends_with("FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"),
        "{text}"
    );
    flannel.stop();
}

/// What flanneld 0.20.2 wrote, from the lease and the network that it had.
#[test]
fn the_subnet_file_is_the_recorded_one() {
    let bed = Bed::new(1, Underlay::Dual);
    let node = bed.node(1);
    let reference = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/flannel-0.20.2"
    ));
    for (name, backend, networks, lease) in [
        (
            "udp",
            Backend::Udp,
            [Some("10.244.0.0/16"), None],
            ["10.244.66.0/24", ""],
        ),
        (
            "vxlan",
            Backend::Vxlan,
            [Some("10.244.0.0/16"), None],
            ["10.244.14.0/24", ""],
        ),
        (
            "vxlan-dualstack",
            Backend::Vxlan,
            [Some("10.244.0.0/16"), Some("fc00::/48")],
            ["10.244.5.0/24", "fc00:0:0:61::/64"],
        ),
    ] {
        let env = node.dir().join(name);
        let mut own = node.lease();
        own["Subnet"] = json!(lease[0]);
        own["IPv6Subnet"] = match lease[1] {
            "" => Value::Null,
            subnet => json!(subnet),
        };
        node.write_leases(&[own]);
        let mut config = node.config(backend).unset("network.ipv6-network");
        for (key, network) in ["network.network", "network.ipv6-network"]
            .iter()
            .zip(networks)
        {
            if let Some(network) = network {
                config = config.set(key, network);
            }
        }
        let config = config.set("store.subnet-file", env.to_str().unwrap());
        let daemon = Daemon::start(node, &config);
        let (written, recorded) = (
            fs::read(&env).unwrap(),
            fs::read(reference.join(name).join("subnet.h1.env")).unwrap(),
        );
        assert_eq!(
            String::from_utf8(written).unwrap(),
            String::from_utf8(recorded).unwrap(),
            "{name}"
        );
        daemon.stop();
    }
}

#[test]
fn a_subnet_file_that_cannot_be_written_keeps_nothing_from_being_forwarded() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    // Something is in the way, and then is not.
    let way = node.dir().join("way");
    fs::write(&way, "").unwrap();
    let env = way.join("subnet.env");
    let config = node
        .config(Backend::Vxlan)
        .set("store.subnet-file", env.to_str().unwrap())
        .set("firewall.ip-masq", true)
        .set("firewall.resync", 1);
    let daemon = Daemon::start(node, &config);
    let status = daemon.status();
    assert_eq!(status["state"], "degraded");
    let reason = status["reasons"][0].as_str().unwrap();
    assert!(reason.contains("store.subnet-file"), "{reason}");
    fs::remove_file(&way).unwrap();
    daemon.wait_for("it is written", |status| status["state"] == "ok");
    assert!(env.exists());
    daemon.stop();
}

/// The interface that each set of flags means, on a node with two.
#[test]
fn the_underlay_interface_is_flannels_choice() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    let second: IpNet = "10.77.0.1/24".parse().unwrap();
    shell(
        node.netns(),
        "ip link add eth1 type veth peer name far1 && ip link set far1 up && ip link set eth1 up && \
         ip addr add 10.77.0.1/24 dev eth1 && \
         ip route add 192.0.2.0/24 via 10.77.0.9",
    );
    let first = node.public_ip(Family::V4).to_string();
    let second = second.addr().to_string();
    let subnet = format!("-subnet-file={}", node.dir().join("x.env").display());
    for (flags, iface) in [
        (&["-iface=eth9", "-iface=eth1", "-iface=eth0"][..], "eth1"),
        (&["-iface=10.77.0.1"], "eth1"),
        (&["-iface=eth0", "-iface-regex=^10\\.77"], "eth0"),
        (&["-iface=eth9", "-iface-regex", "^10\\.77"], "eth1"),
        (&["-iface-regex=^eth1$"], "eth1"),
        (&["-iface-can-reach=192.0.2.7"], "eth1"),
        (&["-public-ip=10.77.0.1"], "eth1"),
        // A public IP that is on no interface stands outside of a NAT.
        (&["-iface=eth1", "-public-ip=203.0.113.5"], "eth1"),
    ] {
        let public = match (iface, flags.last()) {
            (_, Some(&"-public-ip=203.0.113.5")) => "203.0.113.5",
            ("eth1", _) => &second,
            _ => &first,
        };
        node.write_leases(&[lease_at(node, public)]);
        let args: Vec<&str> = flags.iter().copied().chain([&*subnet]).collect();
        let mut flannel = Flannel::start(node, &args, &[]);
        let status = flannel.status();
        assert_eq!(status["device"]["underlay"], iface, "{flags:?}");
        assert_eq!(status["lease"]["public_ip"], public, "{flags:?}");
        flannel.stop();
    }
}

#[test]
fn a_kernel_device_of_flannel_that_holds_the_port_is_named() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    shell(
        node.netns(),
        "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 local 10.99.0.1 nolearning && ip link set flannel.1 up",
    );
    let (code, log) = Daemon::refused(node, &node.config(Backend::Vxlan));
    assert_eq!(code, 1);
    assert!(log.contains("`ip link del flannel.1`"), "{log}");
}

#[test]
fn what_flanneld_can_and_we_cannot_is_said() {
    let (code, _, said) = run(&["flannel", "-kube-subnet-mgr", "-iface=eth0"]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("Kubernetes") && said.contains("keep flanneld"),
        "{said}"
    );
    let (code, _, said) = run(&["flannel", "--etcd-endpoint=x"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("did you mean -etcd-endpoints?"), "{said}");
    for flag in ["-ip-masq", "--kube-subnet-mgr"] {
        let (code, _, said) = run(&["run", flag]);
        assert_eq!(code, Some(2));
        assert!(said.contains("`overlayd flannel`"), "{said}");
    }
    let (code, help, _) = run(&["flannel", "-help"]);
    assert_eq!(code, Some(0));
    assert!(help.contains("-iptables-forward-rules"), "{help}");
    let (code, version, _) = run(&["flannel", "--version"]);
    assert_eq!(
        (code, &*version),
        (
            Some(0),
            concat!("overlayd ", env!("CARGO_PKG_VERSION"), "\n")
        )
    );
}

#[test]
fn the_printed_configuration_is_a_good_one() {
    let bed = Bed::new(1, Underlay::V4);
    let (code, printed, said) = run(&[
        "flannel",
        "-etcd-endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379",
        "-iface=eth0",
        "-ip-masq",
        "--print-config",
    ]);
    assert_eq!(code, Some(0), "{said}");
    let file = bed.dir().join("printed.toml");
    fs::write(&file, &printed).unwrap();
    let (code, _, said) = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}\n{printed}");
    assert!(
        printed.contains("endpoints = [\"http://10.0.0.1:2379\", \"http://10.0.0.2:2379\"]"),
        "{printed}"
    );
}
