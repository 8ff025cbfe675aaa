//! The node's address on the underlay: gone, back, and another.

use integration::bed::{Backend, Bed, Daemon, Node, Underlay};
use integration::iproute::ip;
use overlayd::config::Engine;
use serde_json::{Value, json};

use super::{V4, V6, both_reach, complains, is_well, reaches, waits_for};

fn leases_with(bed: &Bed, public_ip: &str) -> Vec<Value> {
    let mut leases = bed.leases();
    leases[0]["PublicIP"] = json!(public_ip);
    leases
}

fn readdress(node: &Node, from: &str, to: &str) {
    // In this order: Linux takes the other addresses of a prefix away with the first.
    ip(node.netns(), &format!("addr del {from}/24 dev eth0"));
    ip(node.netns(), &format!("addr add {to}/24 dev eth0"));
}

#[test]
fn an_underlay_address_that_is_gone_is_told_and_all_is_well_when_it_is_back() {
    let bed = Bed::new(2, Underlay::Dual);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    both_reach("start", one, two);
    for (del, add, gone) in [
        (
            "addr del 10.99.0.1/24 dev eth0",
            "addr add 10.99.0.1/24 dev eth0",
            "10.99.0.1",
        ),
        (
            "addr del fd99::1/64 dev eth0",
            "addr add fd99::1/64 dev eth0 nodad",
            "fd99::1",
        ),
    ] {
        ip(one.netns(), del);
        complains(&daemons[0], &[gone]);
        ip(one.netns(), add);
        is_well(&daemons[0]);
        both_reach("it is back", one, two);
    }
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn a_new_address_that_a_lease_knows_is_moved_to_in_place() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    for engine in [Engine::Batched, Engine::Classic] {
        let daemons = bed.start_with(Backend::Vxlan, engine);
        both_reach("start", one, two);
        let index = daemons[0].status()["device"]["index"].clone();
        let (mut here, mut there) = ("10.99.0.1", "10.99.0.11");
        for _ in 0..2 {
            // First the address, then the lease: in between it says what is missing.
            readdress(one, here, there);
            let status = complains(&daemons[0], &["no lease for this node", there]);
            assert_eq!(status["lease"]["public_ip"], here);
            bed.write_leases(&leases_with(&bed, there));
            let status = is_well(&daemons[0]);
            assert_eq!(status["lease"]["public_ip"], there);
            // The MAC that peers send to follows from the address.
            let mac = status["lease"]["vtep_mac"].as_str().unwrap();
            assert_eq!(
                mac,
                if there == "10.99.0.11" {
                    "0a:58:0a:63:00:0b"
                } else {
                    "0a:58:0a:63:00:01"
                }
            );
            both_reach("the move", one, two);
            assert_eq!(status["device"]["index"], index, "the device stayed");
            (here, there) = (there, here);
        }
        daemons.into_iter().for_each(Daemon::stop);
    }
}

#[test]
fn a_lease_of_ours_with_another_subnet_is_taken_up_in_place() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    both_reach("start", one, two);
    let mut leases = bed.leases();
    leases[0]["Subnet"] = json!("10.244.7.0/24");
    ip(one.netns(), "addr add 10.244.7.1/24 dev cni0");
    bed.write_leases(&leases);
    daemons[0].wait_for("the new subnet", |status| {
        status["lease"]["subnet"] == "10.244.7.0/24" && status["state"] == "ok"
    });
    waits_for("the new address", || {
        let addresses = ip(one.netns(), "addr show dev overlay0");
        addresses.contains("10.244.7.0/32") && !addresses.contains("10.244.1.0/32")
    });
    waits_for("IPv4", || {
        super::reaches(two, "10.244.7.1".parse().unwrap())
    });
    assert!(!reaches(two, one.pod_ip(V4)), "its old pods have no lease");
    waits_for("IPv6", || reaches(one, two.pod_ip(V6)));
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn an_address_more_changes_nothing() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let daemons = bed.start(Backend::Vxlan);
    let mut leases = bed.leases();
    leases.insert(
        0,
        json!({"Subnet": "10.244.9.0/24", "PublicIP": "10.99.0.12"}),
    );
    bed.write_leases(&leases);
    daemons[0].wait_for("one peer more", |status| {
        status["peers"].as_array().unwrap().len() == 2
    });
    ip(one.netns(), "addr add 10.99.0.12/24 dev eth0");
    both_reach("an address more", one, two);
    let status = is_well(&daemons[0]);
    assert_eq!(status["lease"]["public_ip"], "10.99.0.1");
    daemons.into_iter().for_each(Daemon::stop);
}
