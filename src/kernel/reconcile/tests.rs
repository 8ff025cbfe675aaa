use super::*;

const TUN: u32 = 5;
const ETH0: u32 = 2;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn link(index: u32, name: &str, mtu: u32) -> Link {
    Link {
        mtu,
        ..Link::named(index, name)
    }
}

fn address(ifindex: u32, ip: &str) -> Address {
    let ip: IpAddr = ip.parse().unwrap();
    Address {
        ifindex,
        ip,
        prefix_len: if ip.is_ipv4() { 32 } else { 128 },
        scope: 0,
        tentative: false,
    }
}

/// As the kernel tells a route of ours.
fn as_told(spec: &RouteSpec) -> Route {
    Route {
        refuses: None,
        dst: spec.dst,
        oif: Some(spec.oif),
        via: spec.via,
        src: None,
        mtu: spec.mtu,
        expires: None,
        metric: metric(&spec.dst),
        protocol: ROUTE_PROTOCOL,
        scope: 0,
        unicast: true,
    }
}

fn foreign(dst: &str, oif: u32) -> Route {
    Route {
        protocol: 3,
        ..as_told(&RouteSpec::new(net(dst), oif))
    }
}

fn desired() -> Desired {
    let via = |dst: &str, via: &str| RouteSpec {
        via: via.parse().ok(),
        ..RouteSpec::new(net(dst), ETH0)
    };
    Desired {
        device: Some(DeviceSpec {
            name: "overlay0".into(),
            index: TUN,
            mtu: 1450,
            addresses: vec![
                "10.244.1.0".parse().unwrap(),
                "fd00:10:0:1::".parse().unwrap(),
            ],
        }),
        routes: vec![
            RouteSpec::new(net("10.244.0.0/16"), TUN),
            RouteSpec {
                mtu: Some(1430),
                ..RouteSpec::new(net("fd00:10::/48"), TUN)
            },
            via("10.244.2.0/24", "10.99.0.2"),
        ],
        networks: vec![net("10.244.0.0/16"), net("fd00:10::/48")],
    }
}

/// Everything as desired, and what others have.
fn settled() -> Actual {
    let desired = desired();
    Actual {
        links: vec![
            link(1, "lo", 65536),
            link(ETH0, "eth0", 1500),
            link(TUN, "overlay0", 1450),
        ],
        addresses: vec![
            address(1, "127.0.0.1"),
            address(ETH0, "10.99.0.1"),
            address(TUN, "10.244.1.0"),
            address(TUN, "fd00:10:0:1::"),
        ],
        routes: desired
            .routes
            .iter()
            .map(as_told)
            .chain([foreign("0.0.0.0/0", ETH0), foreign("192.168.9.0/24", TUN)])
            .collect(),
    }
}

/// What a run that brought all of it about remembers.
fn held() -> Held {
    let mut held = Held::default();
    held.learn(&desired(), &HashSet::new());
    held
}

/// The repairs in words, and the faults.
fn plan(actual: &Actual, held: &Held) -> (Vec<String>, Vec<String>) {
    let plan = diff(&desired(), actual, held);
    (
        plan.repairs.iter().map(|r| r.tell(actual)).collect(),
        plan.faults.iter().map(|f| f.tell(actual)).collect(),
    )
}

/// Does what the plan says, as the kernel would.
fn carry_out(actual: &mut Actual, plan: &Plan) {
    for repair in &plan.repairs {
        let mut change = |index: u32, f: &dyn Fn(&mut Link)| {
            f(actual.links.iter_mut().find(|l| l.index == index).unwrap());
        };
        match repair {
            Repair::SetMtu(spec) => change(spec.index, &|link| link.mtu = spec.mtu.into()),
            Repair::SetUp(spec) => change(spec.index, &|link| link.up = true),
            Repair::AddAddress(spec, ip) => {
                actual.addresses.push(address(spec.index, &ip.to_string()));
            }
            Repair::DelAddress(spec, gone) => actual
                .addresses
                .retain(|a| (a.ifindex, a.ip) != (spec.index, gone.addr())),
            Repair::AddRoute(spec) => actual.routes.push(as_told(spec)),
            Repair::ReplaceRoute(spec, there) => {
                actual.routes.retain(|route| route != there);
                actual.routes.push(as_told(spec));
            }
            Repair::DelRoute(spec) => actual
                .routes
                .retain(|route| (route.dst, route.oif) != (spec.dst, Some(spec.oif))),
        }
    }
}

#[test]
fn where_all_is_well_nothing_is_done() {
    let fresh = Held::default();
    for held in [&fresh, &held()] {
        assert_eq!(diff(&desired(), &settled(), held), Plan::default());
    }
}

#[test]
fn a_bare_device_gets_all_in_order() {
    let mut actual = settled();
    actual.links[2].mtu = 1500;
    actual.links[2].up = false;
    actual.addresses.truncate(2);
    actual.routes.clear();
    let (repairs, faults) = plan(&actual, &Held::default());
    assert_eq!(
        repairs,
        [
            "set the MTU of overlay0 to 1450",
            "gave overlay0 the address 10.244.1.0",
            "gave overlay0 the address fd00:10:0:1::",
            "brought overlay0 up",
            "added the route 10.244.0.0/16 dev overlay0",
            "added the route fd00:10::/48 dev overlay0 mtu 1430",
            "added the route 10.244.2.0/24 via 10.99.0.2 dev eth0",
        ]
    );
    assert!(faults.is_empty());
}

#[test]
fn each_damage_is_one_repair_and_then_all_is_well() {
    type Damage = fn(&mut Actual);
    let damages: [(&str, Damage, &[&str]); 8] = [
        ("down", |a| a.links[2].up = false, &["brought overlay0 up"]),
        (
            "MTU",
            |a| a.links[2].mtu = 1280,
            &["set the MTU of overlay0 to 1450"],
        ),
        (
            "address",
            |a| a.addresses.truncate(3),
            &["gave overlay0 the address fd00:10:0:1::"],
        ),
        (
            "route gone",
            |a| {
                a.routes.remove(0);
            },
            &["added the route 10.244.0.0/16 dev overlay0"],
        ),
        (
            "route replaced",
            |a| a.routes[0] = foreign("10.244.0.0/16", ETH0),
            &[
                "put the route 10.244.0.0/16 dev overlay0 in the place of 10.244.0.0/16 dev eth0 proto 3",
            ],
        ),
        (
            "route to a peer replaced",
            |a| a.routes[2].via = "10.99.0.77".parse().ok(),
            &[
                "put the route 10.244.2.0/24 via 10.99.0.2 dev eth0 in the place of 10.244.2.0/24 via 10.99.0.77 dev eth0 proto 82",
            ],
        ),
        (
            "route MTU",
            |a| a.routes[1].mtu = Some(1280),
            &[
                "put the route fd00:10::/48 dev overlay0 mtu 1430 in the place of fd00:10::/48 dev overlay0 mtu 1280 proto 82",
            ],
        ),
        (
            "left over",
            |a| {
                a.routes.push(Route {
                    via: "10.99.0.9".parse().ok(),
                    ..as_told(&RouteSpec::new(net("10.244.9.0/24"), ETH0))
                });
            },
            &["removed the left-over route 10.244.9.0/24 via 10.99.0.9 dev eth0"],
        ),
    ];
    for (what, damage, expected) in damages {
        let mut actual = settled();
        damage(&mut actual);
        let (repairs, faults) = plan(&actual, &held());
        assert_eq!(repairs, expected, "{what}");
        assert!(faults.is_empty(), "{what}: {faults:?}");
        let plan = diff(&desired(), &actual, &held());
        carry_out(&mut actual, &plan);
        assert_eq!(
            diff(&desired(), &actual, &held()),
            Plan::default(),
            "{what}"
        );
    }
}

#[test]
fn a_route_that_somebody_had_before_us_is_told_and_left_alone() {
    for (at, oif, told) in [
        (0, ETH0, "ip route del 10.244.0.0/16 dev eth0"),
        (1, ETH0, "ip -6 route del fd00:10::/48 dev eth0"),
        (2, 1, "ip route del 10.244.2.0/24 dev lo"),
    ] {
        let mut actual = settled();
        let prefix = actual.routes[at].dst.to_string();
        actual.routes[at] = foreign(&prefix, oif);
        if at == 1 {
            // A better metric is just as much in the way.
            actual.routes[at].metric = 100;
        }
        let (repairs, faults) = plan(&actual, &Held::default());
        assert!(repairs.is_empty(), "{repairs:?}");
        assert!(faults.len() == 1 && faults[0].contains(told), "{faults:?}");
    }
    // One that refuses packets is in the way as well.
    let mut actual = settled();
    actual.routes[0] = Route {
        oif: None,
        unicast: false,
        ..foreign("10.244.0.0/16", 0)
    };
    let (_, faults) = plan(&actual, &Held::default());
    assert!(
        faults[0].contains("`ip route del 10.244.0.0/16`"),
        "{faults:?}"
    );
}

#[test]
fn what_others_have_is_theirs() {
    let mut actual = settled();
    // A worse metric does not matter; neither do other prefixes, nor routes of our protocol elsewhere (another daemon's).
    actual.routes.extend([
        Route {
            metric: 50,
            ..foreign("10.244.0.0/16", ETH0)
        },
        Route {
            metric: 2048,
            ..foreign("fd00:10::/48", ETH0)
        },
        foreign("10.244.9.0/24", ETH0),
        as_told(&RouteSpec::new(net("10.245.0.0/16"), 77)),
        as_told(&RouteSpec::new(net("10.244.128.0/17"), 77)),
    ]);
    // Set by flanneld, which does not mark its routes.
    actual.routes[2].protocol = 3;
    // Hung on our device while we ran.
    actual.addresses.push(address(TUN, "192.0.2.77"));
    assert_eq!(diff(&desired(), &actual, &held()), Plan::default());
    // On a device that we take over, it is an older lease's.
    let (repairs, _) = plan(&actual, &Held::default());
    assert_eq!(
        repairs,
        ["took the left-over address 192.0.2.77/32 from overlay0"]
    );
}

#[test]
fn what_leads_into_our_device_becomes_ours() {
    let mut actual = settled();
    actual.routes[0].protocol = 3;
    let (repairs, faults) = plan(&actual, &Held::default());
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert!(repairs[0].ends_with("dev overlay0 proto 3") && faults.is_empty());
}

#[test]
fn an_old_address_goes_after_the_new_one_has_come() {
    let mut held = held();
    let mut older = desired();
    older.device.as_mut().unwrap().addresses[0] = "10.244.7.0".parse().unwrap();
    held.learn(&older, &HashSet::new());
    let mut actual = settled();
    actual.addresses[2] = address(TUN, "10.244.7.0");
    let (repairs, _) = plan(&actual, &held);
    assert_eq!(
        repairs,
        [
            "gave overlay0 the address 10.244.1.0",
            "took the left-over address 10.244.7.0/32 from overlay0"
        ]
    );
}

#[test]
fn without_the_device_only_what_leads_elsewhere_is_kept_up() {
    let mut actual = settled();
    actual.links.pop();
    actual.routes.clear();
    let plan = diff(&desired(), &actual, &held());
    assert_eq!(plan.faults, [Fault::DeviceGone]);
    let repairs: Vec<_> = plan.repairs.iter().map(Repair::object).collect();
    assert_eq!(repairs, [Object::Route(net("10.244.2.0/24"))]);
}

#[test]
fn only_what_was_so_before_counts_as_undone() {
    let held = held();
    let mut wish = desired();
    let device = wish.device.as_mut().unwrap();
    let undone = Repair::SetMtu(device.clone());
    assert!(held.had(&undone) && !Held::default().had(&undone));
    device.mtu = 1350;
    assert!(
        !held.had(&Repair::SetMtu(device.clone())),
        "we want another"
    );
    device.index += 1;
    assert!(!held.had(&Repair::SetUp(device.clone())), "another device");
    let route = wish.routes[0].clone();
    assert!(held.had(&Repair::AddRoute(route)));
}

#[test]
fn what_failed_is_not_held_and_what_outlives_the_device_is_known() {
    let mut held = Held::default();
    let failed = HashSet::from([Object::Route(net("10.244.0.0/16"))]);
    held.learn(&desired(), &failed);
    assert!(!held.had(&Repair::AddRoute(desired().routes[0].clone())));
    let outliving: Vec<_> = held.outliving().map(|spec| spec.dst).collect();
    assert_eq!(outliving, [net("10.244.2.0/24")]);
    held.forget_device();
    assert_eq!(held.outliving().count(), 1);
    assert!(!held.had(&Repair::AddRoute(desired().routes[1].clone())));
}
