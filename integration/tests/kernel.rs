//! The kernel room on real namespaces, checked against what iproute2 says of them. Needs root.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

use std::{
    io::ErrorKind,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use ipnet::IpNet;
use overlayd::kernel::{Family, NetNs, Netlink, ROUTE_PROTOCOL, RouteSpec, VxlanSpec, sysctl};
use serde_json::Value;

/// A named namespace of this test run alone, deleted when it goes out of scope.
struct Named(String, NetNs);

impl Named {
    fn new(word: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kernel-{word}-{}-{number}", std::process::id());
        let ns = NetNs::create_named(&name).expect("these tests need root");
        Self(name, ns)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        NetNs::delete_named(&self.0).unwrap();
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// What `ip` (or `bridge`) says inside the namespace; `None` where iproute2 is not installed.
fn iproute2(program: &str, ns: &NetNs, args: &str) -> Option<Value> {
    if !has(program) {
        return None;
    }
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    let output = ns
        .run(|| {
            Command::new(program)
                .args(["-d", "-j"])
                .args(args)
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn named_namespaces_are_those_of_iproute2() {
    let ns = Named::new("named");
    let name = ns.0.clone();
    assert!(NetNs::list_named().unwrap().contains(&name));
    let error = NetNs::create_named(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(
        error.to_string(),
        format!("add network namespace {name}: File exists")
    );
    // Shared, so that other mount namespaces see it come and go.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let run = mounts
        .lines()
        .filter(|l| l.split(' ').nth(4) == Some("/run/netns"))
        .collect::<Vec<_>>();
    assert_eq!(run.len(), 1, "mounted once, not once per name: {run:?}");
    assert!(run[0].contains("shared:"), "{run:?}");

    if has("ip") {
        let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(
            listed.lines().any(|l| l.split(' ').next() == Some(&name)),
            "{listed}"
        );
        assert!(
            Command::new("ip")
                .args(["netns", "exec", &name, "true"])
                .status()
                .unwrap()
                .success()
        );
        // What `ip` deletes is gone for us, what `ip` makes is there for us.
        assert!(
            Command::new("ip")
                .args(["netns", "del", &name])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(NetNs::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!NetNs::delete_named(&name).unwrap());
        assert!(
            Command::new("ip")
                .args(["netns", "add", &name])
                .status()
                .unwrap()
                .success()
        );
        assert!(NetNs::open(&name).is_ok());
    }
    assert!(NetNs::delete_named(&name).unwrap());
    assert!(!Path::new("/run/netns").join(&name).exists());

    // What a killed `ip netns add` leaves is no namespace, and can be taken away.
    std::fs::write(Path::new("/run/netns").join(&name), "").unwrap();
    let error = NetNs::open(&name).unwrap_err();
    assert!(
        error.to_string().contains("is not a network namespace"),
        "{error}"
    );
    assert!(NetNs::delete_named(&name).unwrap());
}

#[test]
fn a_thread_enters_and_nobody_else_does() {
    let ns = NetNs::create_unnamed().expect("these tests need root");
    let here = NetNs::current().unwrap().id().unwrap();
    let there = ns.id().unwrap();
    assert_ne!(here, there);
    assert_eq!(
        ns.run(|| NetNs::current().unwrap().id().unwrap()).unwrap(),
        there
    );
    assert_eq!(NetNs::current().unwrap().id().unwrap(), here);
    // Borrowed data goes in and comes out.
    let mut text = String::from("from ");
    ns.run(|| text.push_str("inside")).unwrap();
    assert_eq!(text, "from inside");
    let panicked = std::panic::catch_unwind(|| ns.run(|| panic!("on purpose")));
    assert_eq!(
        panicked.unwrap_err().downcast_ref::<&str>(),
        Some(&"on purpose")
    );

    let mut command = Command::new("sleep");
    command.arg("30");
    let mut child = ns.spawn(command).unwrap();
    assert_eq!(NetNs::of_process(child.id()).unwrap().id().unwrap(), there);
    child.kill().unwrap();
    child.wait().unwrap();
    let error = ns.spawn(Command::new("/no/such/program")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "start /no/such/program: No such file or directory"
    );

    // A namespace's settings are its own.
    ns.run(|| sysctl::write("net.ipv4.ip_forward", "1").unwrap())
        .unwrap();
    assert_eq!(
        ns.run(|| sysctl::read("net.ipv4.ip_forward").unwrap())
            .unwrap(),
        "1"
    );
    let fresh = NetNs::create_unnamed().unwrap();
    assert_eq!(
        fresh
            .run(|| sysctl::read("net.ipv4.ip_forward").unwrap())
            .unwrap(),
        "0"
    );
}

#[tokio::test]
async fn links_addresses_and_routes_are_as_ip_shows_them() {
    let (a, b) = (Named::new("a"), Named::new("b"));
    let (here, there) = (
        Netlink::open_in(&a.1).unwrap(),
        Netlink::open_in(&b.1).unwrap(),
    );

    let veth = here.add_veth("eth0", "eth0", Some(&b.1)).await.unwrap();
    assert_eq!(veth.kind.as_deref(), Some("veth"));
    assert!(
        here.add_veth("eth0", "x", None)
            .await
            .unwrap_err()
            .is_exists()
    );
    let far = there.link("eth0").await.unwrap().unwrap();
    assert_eq!((veth.lower, far.lower), (Some(far.index), Some(veth.index)));
    assert!(!far.up);
    for (netlink, index) in [(&here, veth.index), (&there, far.index)] {
        netlink.set_mtu(index, 1400).await.unwrap();
        netlink.set_up(index).await.unwrap();
    }
    here.set_mac(veth.index, [0x0a, 0x58, 1, 2, 3, 4])
        .await
        .unwrap();
    there
        .add_address(far.index, net("10.9.0.2/24"), false)
        .await
        .unwrap();
    here.add_address(veth.index, net("10.9.0.1/24"), false)
        .await
        .unwrap();
    here.add_address(veth.index, net("fd09::1/64"), true)
        .await
        .unwrap();
    let error = here
        .add_address(veth.index, net("10.9.0.1/24"), false)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "add address 10.9.0.1/24 dev eth0: File exists"
    );

    let link = here.link_by_index(veth.index).await.unwrap().unwrap();
    assert_eq!((link.mtu, link.up, link.running), (1400, true, true));
    assert_eq!(link.mac, Some([0x0a, 0x58, 1, 2, 3, 4]));
    let v6 = here
        .addresses()
        .await
        .unwrap()
        .into_iter()
        .find(|a| a.ip == ip("fd09::1"))
        .unwrap();
    assert_eq!((v6.prefix_len, v6.scope, v6.tentative), (64, 0, false));
    assert_eq!(
        here.iface_of(ip("10.9.0.1")).await.unwrap().unwrap().name,
        "eth0"
    );
    assert_eq!(here.iface_of(ip("10.9.0.9")).await.unwrap(), None);
    assert_eq!(here.link("nothing").await.unwrap(), None);
    assert_eq!(
        here.link("a-name-that-is-much-too-long").await.unwrap(),
        None
    );

    // Routes: the overlay's, with an MTU of its own; the default route of the lower metric.
    let overlay = RouteSpec {
        mtu: Some(1300),
        src: Some(ip("10.9.0.1")),
        ..RouteSpec::new(net("10.244.0.0/16"), veth.index)
    };
    here.add_route(&overlay).await.unwrap();
    let error = here.add_route(&overlay).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "add route 10.244.0.0/16 dev eth0: File exists"
    );
    here.replace_route(&overlay).await.unwrap();
    let v6_overlay = RouteSpec {
        mtu: Some(1280),
        ..RouteSpec::new(net("fd00:10:244::/48"), veth.index)
    };
    here.add_route(&v6_overlay).await.unwrap();
    assert_eq!(here.default_route_iface(Family::V4).await.unwrap(), None);
    for (dst, via) in [("0.0.0.0/0", "10.9.0.2"), ("::/0", "fd09::2")] {
        let default = RouteSpec {
            via: Some(ip(via)),
            ..RouteSpec::new(net(dst), veth.index)
        };
        here.add_route(&default).await.unwrap();
    }
    assert_eq!(
        here.default_route_iface(Family::V4)
            .await
            .unwrap()
            .unwrap()
            .name,
        "eth0"
    );
    assert_eq!(
        here.default_route_iface(Family::V6)
            .await
            .unwrap()
            .unwrap()
            .name,
        "eth0"
    );

    let routes = here.routes().await.unwrap();
    let found = routes.iter().find(|r| r.dst == overlay.dst).unwrap();
    assert_eq!(
        (found.mtu, found.src, found.scope),
        (Some(1300), overlay.src, 253)
    );
    assert_eq!(
        (found.protocol, found.oif, found.via),
        (ROUTE_PROTOCOL, Some(veth.index), None)
    );
    assert_eq!(
        routes.iter().find(|r| r.dst == v6_overlay.dst).unwrap().mtu,
        Some(1280)
    );
    assert!(
        routes.iter().all(|r| r.dst != net("255.255.255.255/32")),
        "only the main table: {routes:?}"
    );
    let way = here.route_to(ip("10.244.7.7")).await.unwrap().unwrap();
    assert_eq!(way.oif, Some(veth.index));
    assert_eq!(there.route_to(ip("10.244.7.7")).await.unwrap(), None);

    if let Some(shown) = iproute2("ip", &a.1, "route show 10.244.0.0/16") {
        let route = &shown[0];
        assert_eq!(
            (&route["dev"], &route["scope"]),
            (&"eth0".into(), &"link".into()),
            "{route}"
        );
        assert_eq!(
            (&route["protocol"], &route["prefsrc"]),
            (&"82".into(), &"10.9.0.1".into())
        );
        assert_eq!(route["metrics"][0]["mtu"], 1300, "{route}");
    }
    if let Some(shown) = iproute2("ip", &a.1, "address show dev eth0") {
        let link = &shown[0];
        assert_eq!(
            (&link["mtu"], &link["address"]),
            (&1400.into(), &"0a:58:01:02:03:04".into())
        );
        let v6 = link["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .find(|a| a["local"] == "fd09::1");
        assert_eq!(v6.unwrap()["nodad"], true, "{link}");
        let v4 = link["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .find(|a| a["local"] == "10.9.0.1");
        assert_eq!(v4.unwrap()["broadcast"], "10.9.0.255", "{link}");
    }

    here.del_route(&overlay).await.unwrap();
    assert!(here.del_route(&overlay).await.unwrap_err().is_not_found());
    here.del_address(veth.index, net("10.9.0.1/24"))
        .await
        .unwrap();
    assert!(here.iface_of(ip("10.9.0.1")).await.unwrap().is_none());
    assert!(here.delete_link("eth0").await.unwrap());
    assert!(!here.delete_link("eth0").await.unwrap());
    assert_eq!(
        there.link("eth0").await.unwrap(),
        None,
        "the other end goes too"
    );
    let error = here.set_mtu(veth.index, 1500).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("link #{}: set mtu 1500: No such device", veth.index)
    );
    let error = here.add_bridge("a-name-too-long-").await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("add link a-name-too-long- type bridge: "),
        "{error}"
    );
}

#[tokio::test]
async fn bridge_ports_and_moves() {
    let (a, b) = (Named::new("bridge"), Named::new("moved"));
    let netlink = Netlink::open_in(&a.1).unwrap();
    let bridge = netlink.add_bridge("cni0").await.unwrap();
    assert!(bridge.up);
    let port = netlink.add_veth("veth-pod1", "inside", None).await.unwrap();
    netlink.set_master(port.index, bridge.index).await.unwrap();
    let inside = netlink.link("inside").await.unwrap().unwrap();
    netlink.move_to_ns(inside.index, &b.1).await.unwrap();
    assert_eq!(netlink.link("inside").await.unwrap(), None);
    assert!(
        Netlink::open_in(&b.1)
            .unwrap()
            .link("inside")
            .await
            .unwrap()
            .is_some()
    );
    let links = netlink.links().await.unwrap();
    let found = links.iter().find(|l| l.name == "veth-pod1").unwrap();
    assert_eq!(found.master, Some(bridge.index));
    if let Some(shown) = iproute2("ip", &a.1, "link show dev veth-pod1") {
        assert_eq!(shown[0]["master"], "cni0", "{shown}");
    }
}

#[tokio::test]
async fn a_kernel_vxlan_device_is_flannels_and_is_found_by_its_port() {
    let ns = Named::new("vxlan");
    let netlink = Netlink::open_in(&ns.1).unwrap();
    let underlay = netlink.add_bridge("under0").await.unwrap();
    netlink.set_up(underlay.index).await.unwrap();
    netlink
        .add_address(underlay.index, net("10.99.0.1/24"), false)
        .await
        .unwrap();
    let spec = VxlanSpec {
        name: "flannel.1".into(),
        vni: 1,
        local: ip("10.99.0.1"),
        dev: underlay.index,
        port: 8472,
        mac: Some([0x0a, 0x58, 10, 99, 0, 1]),
    };
    let vxlan = netlink.add_vxlan(&spec).await.unwrap();
    assert_eq!(vxlan.kind.as_deref(), Some("vxlan"));
    assert_eq!(
        netlink.vxlan_on_port(8472).await.unwrap(),
        None,
        "down: it holds no port"
    );
    netlink.set_up(vxlan.index).await.unwrap();
    let holder = netlink.vxlan_on_port(8472).await.unwrap().unwrap();
    assert_eq!(holder.name, "flannel.1");
    let info = holder.vxlan.unwrap();
    assert_eq!(
        (info.vni, info.port, info.local),
        (Some(1), 8472, Some(ip("10.99.0.1")))
    );
    assert_eq!(netlink.vxlan_on_port(4789).await.unwrap(), None);

    netlink
        .add_address(vxlan.index, net("10.244.1.0/32"), false)
        .await
        .unwrap();
    let mac = [0x0a, 0x58, 10, 99, 0, 2];
    netlink
        .add_neighbour(vxlan.index, ip("10.244.2.0"), mac)
        .await
        .unwrap();
    netlink
        .add_fdb(vxlan.index, mac, ip("10.99.0.2"))
        .await
        .unwrap();
    netlink
        .add_fdb(vxlan.index, mac, ip("10.99.0.3"))
        .await
        .unwrap();
    let route = RouteSpec {
        via: Some(ip("10.244.2.0")),
        onlink: true,
        ..RouteSpec::new(net("10.244.2.0/24"), vxlan.index)
    };
    netlink.add_route(&route).await.unwrap();

    if let Some(shown) = iproute2("ip", &ns.1, "link show dev flannel.1") {
        let data = &shown[0]["linkinfo"]["info_data"];
        assert_eq!(
            (&data["id"], &data["port"], &data["link"]),
            (&1.into(), &8472.into(), &"under0".into())
        );
        assert_eq!(
            (&data["learning"], &data["udp_csum"]),
            (&false.into(), &true.into()),
            "{data}"
        );
        assert_eq!(data["local"], "10.99.0.1");
    }
    if let Some(shown) = iproute2("ip", &ns.1, "neigh show dev flannel.1") {
        assert_eq!(shown[0]["dst"], "10.244.2.0");
        assert_eq!(
            (&shown[0]["lladdr"], &shown[0]["state"][0]),
            (&"0a:58:0a:63:00:02".into(), &"PERMANENT".into())
        );
    }
    if let Some(shown) = iproute2("bridge", &ns.1, "fdb show dev flannel.1") {
        let entries = shown
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["mac"] == "0a:58:0a:63:00:02");
        let remotes: Vec<_> = entries.map(|e| e["dst"].as_str().unwrap()).collect();
        assert_eq!(remotes, ["10.99.0.3"], "replaced: {shown}");
    }
    if let Some(shown) = iproute2("ip", &ns.1, "route show 10.244.2.0/24") {
        assert_eq!(
            (&shown[0]["gateway"], &shown[0]["flags"][0]),
            (&"10.244.2.0".into(), &"onlink".into())
        );
    }
}
