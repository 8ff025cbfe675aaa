//! Leases that change, and lease files that break, while traffic to another node flows and must not notice.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use encap::Family::V4;
use integration::bed::{Backend, Bed, Daemon, Underlay, overlayd_bin};
use integration::probe;
use overlayd::lab::traffic::{Flow, PingOpts, PingReport, ping};
use serde_json::{Value, json};

/// Three nodes. A flow runs from node 1's pod to node 2's, while node 3's lease changes.
struct Three {
    bed: Bed,
    daemons: Vec<Daemon>,
    flow: Option<Flow>,
}

/// ICMP Destination Unreachable, Network Unreachable (RFC 792).
const NET_UNREACHABLE: (u8, u8) = (3, 0);

impl Three {
    fn new() -> Self {
        let bed = Bed::new(3, Underlay::V4);
        let daemons = bed.start(Backend::Vxlan);
        probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
        let mut three = Three {
            bed,
            daemons,
            flow: None,
        };
        three.start_flow();
        three
    }

    fn start_flow(&mut self) {
        let (from, to) = (self.bed.node(1), self.bed.node(2).pod_ip(V4));
        let flow = from.run_in_pod(|| Flow::start(to, Duration::from_millis(2)));
        self.flow = Some(flow.unwrap());
    }

    /// Node 1's daemon, which is the one that is watched.
    fn one(&self) -> &Daemon {
        &self.daemons[0]
    }

    /// Gives node 1 these leases and waits until it has so many peers.
    fn give(&self, leases: &[Value], peers: usize) -> Value {
        self.bed.node(1).write_leases(leases);
        self.wait_for_peers(peers)
    }

    fn wait_for_peers(&self, peers: usize) -> Value {
        self.one().wait_for(&format!("{peers} peers"), |status| {
            status["state"] == "ok" && status["peers"].as_array().unwrap().len() == peers
        })
    }

    /// One short-tempered ping from node 1's pod to node 3's.
    fn ping_3(&self) -> PingReport {
        let opts = PingOpts {
            count: 1,
            timeout: Duration::from_millis(200),
            ..PingOpts::default()
        };
        let to = self.bed.node(3).pod_ip(V4);
        self.bed.node(1).run_in_pod(|| ping(to, &opts)).unwrap()
    }

    fn assert_3_answers(&self) {
        let report = self.ping_3();
        assert!(report.all_answered(), "{report:?}");
    }

    /// No lease: the sender hears so at once, from the overlay address of its own node.
    fn assert_3_is_unreachable(&self) {
        let report = self.ping_3();
        let heard: Vec<_> = report
            .errors
            .iter()
            .map(|e| (e.from, (e.kind, e.code)))
            .collect();
        assert_eq!(
            heard,
            [(self.bed.node(1).base_ip(V4), NET_UNREACHABLE)],
            "{report:?}"
        );
    }

    /// Ends the flow: it has lost nothing, and the counters of its peer have counted all of it.
    fn finish(mut self) {
        let report = self.flow.take().unwrap().stop().unwrap();
        assert!(report.sent > 100, "{report:?}");
        assert_eq!(
            (report.lost, report.refused, report.corrupted),
            (0, 0, 0),
            "{report:?}"
        );
        assert_eq!(report.errors, []);
        let status = self.one().status();
        let peer = peer(&status, "10.244.2.0/24").unwrap();
        for direction in ["sent_packets", "received_packets"] {
            assert!(
                peer[direction].as_u64() >= Some(report.sent),
                "{direction}: {peer:#}"
            );
        }
        // Pings to node 3 while there was no lease for it.
        self.one().assert_balanced(&["no-lease"]);
        self.daemons.into_iter().for_each(Daemon::stop);
    }
}

/// The peer with this subnet, in a status document.
fn peer<'a>(status: &'a Value, subnet: &str) -> Option<&'a Value> {
    let peers = status["peers"].as_array().unwrap();
    peers.iter().find(|peer| peer["subnet"] == subnet)
}

#[test]
fn a_lease_is_added_changed_and_removed_and_other_peers_lose_nothing() {
    let three = Three::new();
    let mut leases = three.bed.leases();
    let device = three.one().status()["device"]["index"].clone();

    // Removed and added.
    three.assert_3_answers();
    three.give(&leases[..2], 1);
    three.assert_3_is_unreachable();
    three.give(&leases, 2);
    three.assert_3_answers();

    // A new public IP. Node 3 has the address, finds its lease there, and moves.
    let new_ip: IpAddr = "10.99.0.13".parse().unwrap();
    three.add_address_to_node_3(new_ip);
    leases[2]["PublicIP"] = json!(new_ip);
    three.bed.node(2).write_leases(&leases);
    three.bed.node(3).write_leases(&leases);
    three.daemons[2].wait_for("it has moved", |status| {
        status["lease"]["public_ip"] == json!(new_ip) && status["state"] == "ok"
    });
    // Nobody listens at the old address: what comes back for it is an error on the socket that the flow uses too.
    assert_eq!(three.ping_3().received, 0);
    let status = three.give_and_wait(&leases, |peer| peer["public_ip"] == json!(new_ip));
    assert_eq!(status["peers"].as_array().unwrap().len(), 2);
    three.assert_3_answers();

    // A new VTEP MAC.
    let new_mac = "0e:00:00:00:00:03";
    leases[2]["BackendData"] = json!({"VNI": 1, "VtepMAC": new_mac});
    three.bed.node(3).write_leases(&leases);
    three.daemons[2].wait_for("it takes the new MAC for its own", |status| {
        status["lease"]["vtep_mac"] == new_mac
    });
    assert_eq!(three.ping_3().received, 0);
    assert_eq!(three.daemons[2].drops("wrong-mac"), 1);
    three.give_and_wait(&leases, |peer| peer["vtep_mac"] == new_mac);
    three.assert_3_answers();

    // Gone for good.
    three.give(&leases[..2], 1);
    three.assert_3_is_unreachable();

    assert_eq!(three.one().status()["device"]["index"], device);
    three.finish();
}

impl Three {
    fn add_address_to_node_3(&self, ip: IpAddr) {
        let netlink = self.bed.node(3).netlink();
        self.bed.block_on(async {
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            netlink.add_address(eth0, ip.into(), true).await.unwrap();
        });
    }

    /// Gives node 1 these leases and waits until its peer node 3 is as wanted.
    fn give_and_wait(&self, leases: &[Value], is_so: impl Fn(&Value) -> bool) -> Value {
        self.bed.node(1).write_leases(leases);
        self.one()
            .wait_for("node 3 is as its new lease says", |status| {
                peer(status, "10.244.3.0/24").is_some_and(&is_so)
            })
    }
}

#[test]
fn a_broken_lease_file_leaves_the_last_good_table_in_force() {
    let three = Three::new();
    let leases = three.bed.leases();
    let good = serde_json::to_vec_pretty(&leases).unwrap();
    let path = three.bed.node(1).leases_path();
    let write = |bytes: &[u8]| fs::write(&path, bytes).unwrap();

    type Break<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str);
    let ways: [Break; 6] = [
        (
            "half-written",
            Box::new(|| write(&good[..good.len() / 2])),
            "cut off",
        ),
        ("empty", Box::new(|| write(b"")), "empty"),
        (
            "missing",
            Box::new(|| fs::remove_file(&path).unwrap()),
            "no such lease file",
        ),
        ("not JSON", Box::new(|| write(b"\x00\xff leases")), "JSON"),
        (
            "not a file",
            Box::new(|| swap_for_directory(&path)),
            "regular file",
        ),
        (
            "of other nodes",
            Box::new(|| three.bed.node(1).write_leases(&leases[1..])),
            "10.99.0.1",
        ),
    ];
    for (what, break_it, word) in ways {
        break_it();
        let status = three
            .one()
            .wait_for(what, |status| status["state"] == "degraded");
        let reason = status["reasons"][0].as_str().unwrap();
        assert!(reason.contains(word), "{what}: {reason}");
        assert_eq!(status["peers"].as_array().unwrap().len(), 2, "{what}");
        three.assert_3_answers();
        assert_eq!(exit_code_of_status(three.one()), 4, "{what}");

        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        }
        three.give(&leases, 2);
        assert_eq!(exit_code_of_status(three.one()), 0, "after {what}");
    }
    three.finish();
}

fn swap_for_directory(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

fn exit_code_of_status(daemon: &Daemon) -> i32 {
    let mut command = Command::new(overlayd_bin());
    command.arg("status").arg("--socket").arg(daemon.socket());
    let output = command.output().unwrap();
    output.status.code().unwrap()
}

#[test]
fn the_lease_file_may_be_replaced_in_any_way() {
    let three = Three::new();
    let leases = three.bed.leases();
    let (all, two) = (leases.as_slice(), &leases[..2]);
    let text = |leases: &[Value]| serde_json::to_vec(leases).unwrap();
    let path = three.bed.node(1).leases_path();

    // Written in place; removed and made again; moved in from elsewhere.
    fs::write(&path, text(two)).unwrap();
    three.wait_for_peers(1);
    fs::remove_file(&path).unwrap();
    fs::write(&path, text(all)).unwrap();
    three.wait_for_peers(2);
    let elsewhere = three.bed.dir().join("leases.json");
    fs::write(&elsewhere, text(two)).unwrap();
    fs::rename(&elsewhere, &path).unwrap();
    three.wait_for_peers(1);

    // The way of a Kubernetes ConfigMap: leases.json -> ..data/leases.json, and ..data -> a directory of a version.
    let node_dir = three.bed.node(1).dir().to_owned();
    for (version, leases) in [("..1", all), ("..2", two), ("..3", all)] {
        let dir = node_dir.join(version);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("leases.json"), text(leases)).unwrap();
    }
    let swap = |version: &str| {
        let new = node_dir.join("..data_tmp");
        symlink(version, &new).unwrap();
        fs::rename(&new, node_dir.join("..data")).unwrap();
    };
    swap("..1");
    let link = node_dir.join(".link");
    symlink("..data/leases.json", &link).unwrap();
    fs::rename(&link, &path).unwrap();
    three.wait_for_peers(2);
    swap("..2");
    three.wait_for_peers(1);
    swap("..3");
    three.wait_for_peers(2);
    // The old version is removed afterwards; the one in force is written to through both links.
    fs::remove_dir_all(node_dir.join("..2")).unwrap();
    fs::write(&path, text(two)).unwrap();
    three.wait_for_peers(1);
    three.finish();
}
