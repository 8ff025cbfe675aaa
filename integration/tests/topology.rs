//! Labs are built, found again, and taken away without a trace, at whatever moment they are stopped. Needs root.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use overlayd::{
    kernel::{NetNs, Netlink},
    lab::{
        holder, state,
        topology::{self, Backend, Interrupted, Lab, Spec, Underlay},
    },
};

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
}

fn name(word: &str) -> String {
    format!("kernel-{word}-{}", std::process::id())
}

fn spec(word: &str) -> Spec {
    Spec {
        name: name(word),
        nodes: 2,
        daemons: false,
        ..Spec::default()
    }
}

fn up(spec: Spec) -> Lab {
    Lab::up(spec, exe(), &|| false).unwrap()
}

/// Nothing of the lab is left: no process, no namespace, no mount, no file.
#[track_caller]
fn assert_no_trace(lab: &str) {
    assert_eq!(holder::processes(lab).unwrap(), []);
    let prefix = format!("{lab}-");
    let names = NetNs::list_named().unwrap();
    assert!(!names.iter().any(|n| n.starts_with(&prefix)), "{names:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&format!("/{prefix}")), "{mounts}");
    assert!(!state::dir(lab).exists());
}

/// What `from` sends to a socket at `to` arrives there, from the address that the answer goes to.
fn carries(from: &NetNs, to: &NetNs, to_ip: IpAddr) -> Result<IpAddr, ErrorKind> {
    let server = to.run(|| UdpSocket::bind((to_ip, 0)).unwrap()).unwrap();
    let any: SocketAddr = if to_ip.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    }
    .parse()
    .unwrap();
    let client = from.run(|| UdpSocket::bind(any).unwrap()).unwrap();
    for socket in [&server, &client] {
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
    }
    let mut buffer = [0; 64];
    client
        .send_to(b"there", server.local_addr().unwrap())
        .map_err(|e| e.kind())?;
    let (length, peer) = server.recv_from(&mut buffer).map_err(|e| e.kind())?;
    assert_eq!(&buffer[..length], b"there");
    server.send_to(b"and back", peer).map_err(|e| e.kind())?;
    let (length, answered) = client.recv_from(&mut buffer).map_err(|e| e.kind())?;
    assert_eq!(
        (&buffer[..length], answered.ip()),
        (b"and back".as_slice(), to_ip)
    );
    Ok(peer.ip())
}

#[test]
fn pods_and_nodes_are_wired_and_go_without_a_trace() {
    let lab = up(spec("wired"));
    let spec = lab.spec().clone();
    let [one, two] = lab.nodes() else {
        panic!("two nodes")
    };
    let (pod1, pod2) = (&one.pods()[0], &one.pods()[1]);
    // At once: nothing waits for address detection or for a bridge to learn.
    let (ip6, far6) = (pod1.ipv6.unwrap(), pod2.ipv6.unwrap());
    assert_eq!(
        carries(pod1.netns(), pod2.netns(), pod2.ip.into()),
        Ok(pod1.ip.into())
    );
    assert_eq!(
        carries(pod1.netns(), pod2.netns(), far6.into()),
        Ok(ip6.into())
    );
    assert_eq!(
        carries(pod1.netns(), one.netns(), one.gateway.into()),
        Ok(pod1.ip.into())
    );
    assert_eq!(
        carries(one.netns(), pod2.netns(), pod2.ip.into()),
        Ok(one.gateway.into())
    );
    let (public, public6) = (two.public_ip.unwrap(), two.public_ipv6.unwrap());
    assert_eq!(
        carries(one.netns(), two.netns(), public.into()),
        Ok(one.public_ip.unwrap().into())
    );
    assert_eq!(
        carries(one.netns(), two.netns(), public6.into()),
        Ok(one.public_ipv6.unwrap().into())
    );
    // Without a daemon nothing leads to the other node's pods.
    let far = &two.pods()[0];
    assert!(carries(pod1.netns(), far.netns(), far.ip.into()).is_err());

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let links = |ns: &NetNs| {
        let links =
            runtime.block_on(async { Netlink::open_in(ns).unwrap().links().await.unwrap() });
        let mut links: Vec<_> = links
            .into_iter()
            .filter(|l| l.up)
            .map(|l| (l.name, l.mtu))
            .collect();
        links.sort();
        links
    };
    let entry = |name: &str, mtu: u32| (name.to_owned(), mtu);
    let node = [entry("cni0", 1450), entry("eth0", 1500), entry("lo", 65536)];
    let pods = [entry("veth-pod1", 1450), entry("veth-pod2", 1450)];
    assert_eq!(links(one.netns()), [node.as_slice(), &pods].concat());
    assert_eq!(
        links(pod1.netns()),
        [entry("eth0", 1450), entry("lo", 65536)]
    );
    let underlay = [
        entry("node1", 1500),
        entry("node2", 1500),
        entry("underlay0", 1500),
    ];
    assert_eq!(links(&lab.place("underlay").unwrap()), underlay);

    let status = topology::status(&spec.name).unwrap();
    assert!(status.is_whole(), "{status:?}");
    assert_eq!(status.nodes[0].pods[0].holder, Some(pod1.pid()));
    assert_eq!(
        lab.place("node2/pod1").unwrap().id().unwrap(),
        far.netns().id().unwrap()
    );
    let error = lab.place("node3").unwrap_err().to_string();
    assert!(error.contains("it has node1 to node2"), "{error}");

    lab.close().unwrap();
    assert_no_trace(&spec.name);
    assert!(topology::status(&spec.name).is_err());
    assert!(!Lab::down(&spec.name).unwrap());
}

#[test]
fn families_and_sizes_follow_the_spec() {
    let lab = up(Spec {
        underlay: Underlay::V6,
        ipv6: false,
        backend: Backend::Udp,
        mtu: 1400,
        pods: 1,
        ..spec("v6only")
    });
    let [one, two] = lab.nodes() else {
        panic!("two nodes")
    };
    assert!(carries(one.netns(), two.netns(), two.public_ipv6.unwrap().into()).is_ok());
    let pod = &one.pods()[0];
    assert_eq!(
        carries(pod.netns(), one.netns(), one.gateway.into()),
        Ok(pod.ip.into())
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (eth, addresses) = runtime.block_on(async {
        let netlink = Netlink::open_in(one.netns()).unwrap();
        (
            netlink.link("cni0").await.unwrap().unwrap(),
            netlink.addresses().await.unwrap(),
        )
    });
    assert_eq!(eth.mtu, 1352);
    assert!(
        !addresses
            .iter()
            .any(|a| a.ip.to_string().starts_with("10.99.")),
        "{addresses:?}"
    );
    assert!(
        !addresses
            .iter()
            .any(|a| a.ip.to_string().starts_with("fd00:")),
        "{addresses:?}"
    );
}

#[test]
fn two_labs_do_not_meet() {
    let (first, second) = (name("first"), name("second"));
    let labs: Vec<Lab> = thread::scope(|scope| {
        let threads: Vec<_> = ["first", "second"]
            .map(|w| scope.spawn(move || up(spec(w))))
            .into_iter()
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let pods: Vec<_> = labs
        .iter()
        .map(|lab| lab.nodes()[0].pods()[0].netns().id().unwrap())
        .collect();
    assert_ne!(pods[0], pods[1]);
    let mut labs = labs.into_iter();
    labs.next().unwrap().close().unwrap();
    assert_no_trace(&first);
    assert!(topology::status(&second).unwrap().is_whole());
    drop(labs);
    assert_no_trace(&second);
}

#[test]
fn names_that_are_taken_are_left_alone() {
    let lab = up(spec("taken"));
    let name = lab.spec().name.clone();
    let error = Lab::up(spec("taken"), exe(), &|| false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("overlayd lab down --name {name}")),
        "{error}"
    );
    assert!(
        topology::status(&name).unwrap().is_whole(),
        "the failed one has touched nothing"
    );
    lab.close().unwrap();

    // A namespace that somebody else has made.
    let foreign = format!("{name}-node2");
    NetNs::create_named(&foreign).unwrap();
    let error = Lab::up(spec("taken"), exe(), &|| false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("ip netns del {foreign}")),
        "{error}"
    );
    assert!(NetNs::list_named().unwrap().contains(&foreign));
    assert!(NetNs::delete_named(&foreign).unwrap());
    assert_no_trace(&name);
}

#[test]
fn a_lab_that_was_kept_is_found_again() {
    let lab = up(spec("kept"));
    let name = lab.spec().name.clone();
    let pod = lab.nodes()[1].pods()[1].netns().id().unwrap();
    lab.keep();
    let lab = Lab::load(&name, exe()).unwrap();
    assert_eq!(lab.nodes()[1].pods()[1].netns().id().unwrap(), pod);
    drop(lab);
    let lab = Lab::load(&name, exe()).unwrap();

    // A pod's processes die, the holder first: told, and still removed.
    drop(lab);
    let of_pod = || -> Vec<u32> {
        let mut all = holder::processes(&name).unwrap();
        all.retain(|process| process.pod() == "node1/pod1");
        all.sort_by_key(|process| process.place.len());
        all.into_iter().map(|process| process.pid).collect()
    };
    let end = |pid: u32| {
        let victim = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
        nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL).unwrap();
        while Path::new(&format!("/proc/{pid}/ns/net")).exists() {
            thread::sleep(Duration::from_millis(5));
        }
    };
    assert_eq!(of_pod().len(), 3);
    end(of_pod()[0]);
    let status = topology::status(&name).unwrap();
    assert!(!status.is_whole());
    assert_eq!(status.nodes[0].pods[0].holder, None);
    // Its containers still hold the namespace.
    let lab = Lab::load(&name, exe()).unwrap();
    assert!(lab.place("node1/pod1").is_ok());
    drop(lab);
    of_pod().into_iter().for_each(end);
    // It is dead; the others are there.
    let mut lab = Lab::load(&name, exe()).unwrap();
    let error = lab.place("node1/pod1").unwrap_err().to_string();
    assert!(error.contains("node1/pod1 is dead"), "{error}");
    let dead: Vec<_> = lab.nodes()[0].dead_pods().map(|pod| pod.number).collect();
    assert_eq!((dead, lab.nodes()[0].pods().len()), (vec![1], 1));
    assert!(lab.place("node1/pod2").is_ok());
    assert_eq!(lab.revive().unwrap(), ["node1/pod1"]);
    assert!(lab.place("node1/pod1").is_ok() && topology::status(&name).unwrap().is_whole());
    drop(lab);
    of_pod().into_iter().for_each(end);
    assert!(Lab::down(&name).unwrap());
    assert_no_trace(&name);
    let error = Lab::load(&name, exe()).unwrap_err().to_string();
    assert!(error.starts_with("there is no lab"), "{error}");
}

#[test]
fn a_state_that_makes_no_sense_does_not_save_a_lab() {
    for torn in ["", "{\"version\": 1,", "{\"version\": 9}"] {
        let lab = up(spec("torn"));
        let name = lab.spec().name.clone();
        lab.keep();
        std::fs::write(state::dir(&name).join("state.json"), torn).unwrap();
        let error = format!("{:#}", Lab::load(&name, exe()).unwrap_err());
        assert!(error.contains("state.json makes no sense"), "{error}");
        assert!(Lab::down(&name).unwrap());
        assert_no_trace(&name);
    }
}

#[test]
fn an_interrupt_before_any_step_rolls_everything_back() {
    let spec = spec("cancel");
    for steps in 0.. {
        let asked = AtomicUsize::new(0);
        let cancel = || asked.fetch_add(1, Ordering::Relaxed) >= steps;
        match Lab::up(spec.clone(), exe(), &cancel) {
            Ok(lab) => {
                assert!(steps > 8, "asked at every step: {steps}");
                lab.close().unwrap();
                break;
            }
            Err(error) => assert!(error.is::<Interrupted>(), "{error:#}"),
        }
        assert_no_trace(&spec.name);
    }
    assert_no_trace(&spec.name);
}

/// Builds a lab in a process that may be killed, by itself before a given step.
fn build_in_a_process(lab: &str, kill_at: usize, daemons: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab-builder"));
    command.arg(lab).arg(exe());
    command.args([kill_at.to_string(), daemons.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn down_removes_what_a_builder_killed_at_any_step_has_left() {
    let lab = name("killed");
    for step in 1.. {
        let status = build_in_a_process(&lab, step, false).status().unwrap();
        if status.success() {
            assert!(step > 8, "killed at every step: {step}");
            assert!(topology::status(&lab).unwrap().is_whole());
            assert!(Lab::down(&lab).unwrap());
            break;
        }
        assert_eq!(status.signal(), Some(9));
        if state::dir(&lab).exists() {
            let error = Lab::load(&lab, exe()).unwrap_err().to_string();
            assert!(error.contains("is not whole"), "{error}");
            let again = Lab::up(
                Spec {
                    name: lab.clone(),
                    ..spec("x")
                },
                exe(),
                &|| false,
            )
            .unwrap_err();
            assert!(again.to_string().contains("lab down"), "{again}");
        }
        assert!(!topology::status(&lab).is_ok_and(|s| s.is_whole()));
        Lab::down(&lab).unwrap();
        assert_no_trace(&lab);
    }
    assert_no_trace(&lab);
}

#[test]
fn down_removes_what_a_builder_killed_at_any_time_has_left() {
    let lab = name("killed-when");
    for milliseconds in (0..120).step_by(8) {
        let mut builder = build_in_a_process(&lab, usize::MAX, true).spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        builder.kill().unwrap();
        builder.wait().unwrap();
        Lab::down(&lab).unwrap();
        assert_no_trace(&lab);
    }
}

#[test]
fn a_lab_under_construction_is_not_taken_down_by_another() {
    let spec = spec("busy");
    let seen = AtomicUsize::new(0);
    let cancel = || {
        let built = state::dir(&spec.name).join("state.json").exists();
        if built && seen.load(Ordering::Relaxed) < 3 {
            let error = Lab::down(&spec.name).unwrap_err().to_string();
            assert!(error.contains("just being built"), "{error}");
            seen.fetch_add(1, Ordering::Relaxed);
        }
        false
    };
    Lab::up(spec.clone(), exe(), &cancel)
        .unwrap()
        .close()
        .unwrap();
    assert_eq!(seen.into_inner(), 3);
    assert_no_trace(&spec.name);
}

#[test]
fn daemons_join_the_nodes() {
    for backend in [Backend::Udp, Backend::Vxlan] {
        let lab = up(Spec {
            backend,
            daemons: true,
            pods: 1,
            ..spec(&format!("{backend}"))
        });
        let name = lab.spec().name.clone();
        let (near, far) = (&lab.nodes()[0].pods()[0], &lab.nodes()[1].pods()[0]);
        assert_eq!(
            carries(near.netns(), far.netns(), far.ip.into()),
            Ok(near.ip.into())
        );
        assert_eq!(
            carries(near.netns(), far.netns(), far.ipv6.unwrap().into()),
            Ok(near.ipv6.unwrap().into())
        );
        assert!(topology::status(&name).unwrap().is_whole());
        lab.close().unwrap();
        assert_no_trace(&name);
    }
}

#[test]
fn a_daemon_stops_and_starts() {
    let mut lab = up(Spec {
        pods: 0,
        ..spec("again")
    });
    assert!(!lab.stop_daemon(1).unwrap());
    for _ in 0..2 {
        lab.start_daemon(1).unwrap();
        assert!(
            topology::status(&lab.spec().name).unwrap().nodes[0]
                .daemon
                .is_some()
        );
        assert!(lab.stop_daemon(1).unwrap());
        assert!(
            topology::status(&lab.spec().name).unwrap().nodes[0]
                .daemon
                .is_none()
        );
    }
    assert!(lab.start_daemon(3).is_err());
}

#[test]
fn a_daemon_that_does_not_start_is_shown_and_everything_removed() {
    let spec = Spec {
        daemons: true,
        config: "[log]\nformat = \"perhaps\"\n".into(),
        ..spec("broken")
    };
    let error = Lab::up(spec.clone(), exe(), &|| false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("overlayd on node1 ended while starting"),
        "{error}"
    );
    assert!(error.contains("perhaps"), "the end of the log: {error}");
    assert_no_trace(&spec.name);
}
