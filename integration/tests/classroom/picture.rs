//! `overlayd lab graph` draws what the kernels say, not what was planned.

use super::{Class, text};

#[test]
fn the_picture_is_of_the_lab_as_it_stands() {
    let class = Class::up("graph", &["--nodes", "2", "--pods", "1"]);
    let draw = || {
        let done = class.lab("graph", &["--svg", "-"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout).to_owned()
    };
    let before = draw();
    for part in [
        ">node2<",
        ">10.99.0.2/24<",
        ">fd00:10:244:2::2/64<",
        ">10.244.0.0/16 → overlay0<",
        ">fd00:10:244::/48 → overlay0 mtu 1430<",
        ">10.244.1.0/24 at 10.99.0.1<",
        ">fd00:10:244:1::/64 at fd99::1<",
        ">10.99.0.0/24 → eth0<",
        ">veth-pod1<",
    ] {
        assert!(before.contains(part), "{part} is not in {before}");
    }
    assert!(!before.contains(">off<"));
    assert!(before.contains(">port node2  MTU 1500<"));

    class.run(
        "node1/pod1",
        "ip link set eth0 mtu 1400; ip addr add 10.244.1.77/24 dev eth0",
    );
    class.run(
        "node2",
        "ip link set veth-pod1 nomaster; ip link set veth-pod1 down",
    );
    class.run("underlay", "ip link set node2 mtu 1400");
    class.run(
        "node2",
        "ip route add unreachable 10.244.1.0/24; ip route add 192.0.2.0/24 via 10.99.0.1",
    );
    let after = draw();
    for route in [">unreachable 10.244.1.0/24<", ">192.0.2.0/24 → 10.99.0.1<"] {
        assert!(after.contains(route), "{route} is not in {after}");
    }
    // However many there are, the box stays a box.
    class.run(
        "node2",
        "for n in $(seq 20); do ip route add 198.18.$n.0/24 dev eth0; done",
    );
    let many = draw();
    assert!(many.contains(">and ") && many.contains(" more<"), "{many}");
    class.run(
        "node2",
        "for n in $(seq 20); do ip route del 198.18.$n.0/24 dev eth0; done",
    );
    assert!(after.contains(">port node2  MTU 1400<"), "{after}");
    assert!(after.contains(">MTU 1400<") && after.contains(">10.244.1.77/24<"));
    assert!(after.contains(">off<"), "{after}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.svg");
    let done = class.lab("graph", &["--svg", file.to_str().unwrap()]);
    assert!(done.status.success() && done.stdout.is_empty());
    assert_eq!(
        std::fs::read_to_string(&file).unwrap().trim_end(),
        after.trim_end()
    );
    let nowhere = dir.path().join("no/such.svg");
    let done = class.lab("graph", &["--svg", nowhere.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stderr).contains("cannot write"),
        "{}",
        text(&done.stderr)
    );
}

#[test]
fn a_lab_in_the_making_is_drawn_as_far_as_it_is() {
    let class = Class::up(
        "making",
        &["--nodes", "1", "--pods", "2", "--stage", "veth"],
    );
    let done = class.lab("graph", &["--svg", "-"]);
    let svg = text(&done.stdout);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(svg.contains(">pod2 eth0<") && !svg.contains(">cni0<") && !svg.contains(">overlay0<"));
    // What is still to come is no failure, and the title does not promise it.
    assert!(svg.contains("built to stage veth (2 of 5)") && !svg.contains("vxlan"));
    assert!(svg.contains(">not yet: `overlayd lab next`<") && !svg.contains(">off<"));
    assert_eq!(svg.matches("stroke-dasharray").count(), 1, "{svg}");
}

#[test]
fn a_stranger_on_the_underlay_is_drawn_and_shown() {
    let class = Class::up("stranger", &["--scenario", "spoof", "--pods", "1"]);
    let done = class.lab("graph", &["--svg", "-"]);
    let svg = text(&done.stdout);
    for part in [
        ">intruder<",
        ">port intruder  MTU 1500<",
        ">10.99.0.254/24<",
        "scenario spoof",
    ] {
        assert!(svg.contains(part), "{part} is not in {svg}");
    }
    let status = class.lab("status", &[]);
    assert!(
        text(&status.stdout).contains(" ✓ intruder     10.99.0.254 "),
        "{status:?}"
    );
    assert_eq!(class.status()["intruder"]["ip"], "10.99.0.254");
}
