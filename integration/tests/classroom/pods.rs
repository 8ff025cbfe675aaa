//! A pod is two processes that share a network namespace held by a third.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::lab::topology::Lab;
use overlayd::lab::traffic::{UdpOpts, udp_probe};

use super::{Class, text};

fn end(pid: u32) {
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Path::new(&format!("/proc/{pid}/ns/net")).exists() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5));
    }
}

/// A datagram to the container `echo` comes back, seen from inside a place.
fn echo(class: &Class, from: &str, to: &str) -> bool {
    let lab = Lab::load(&class.name, super::exe()).unwrap();
    let from = lab.place(from).unwrap();
    let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), 7).into();
    let report = from
        .run(|| udp_probe(to, [2], &UdpOpts::default()))
        .unwrap();
    report.is_ok_and(|report| report.all_intact())
}

#[test]
fn killing_one_process_of_a_pod_leaves_address_and_sibling_alive() {
    let class = Class::up("pod", &["--nodes", "1", "--pods", "2", "--no-ipv6"]);
    let pids = ["", "/web", "/echo"].map(|name| class.pid(&format!("node1/pod1{name}")).unwrap());
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert!(
        pids.iter().all(|pid| namespace(*pid) == namespace(pids[0])),
        "one namespace for all three"
    );
    assert_ne!(
        namespace(pids[0]),
        namespace(class.pid("node1/pod2").unwrap())
    );

    let hello = class.run("node1/pod2", "curl -s http://10.244.1.2/");
    assert!(hello.starts_with("hello 10.244.1.3:"), "{hello}");
    assert!(
        hello.contains("this is node1/pod1/web at 10.244.1.2:80"),
        "{hello}"
    );
    // Containers of a pod reach each other at 127.0.0.1: they share its lo as well.
    assert!(
        class
            .run("node1/pod1", "curl -s http://127.0.0.1/")
            .contains("node1/pod1/web at 127.0.0.1:80")
    );
    assert!(echo(&class, "node1/pod1", "127.0.0.1") && echo(&class, "node1/pod2", "10.244.1.2"));

    end(pids[1]);
    assert!(
        class.answers("node1/pod2", "10.244.1.2"),
        "the address lives"
    );
    assert!(
        echo(&class, "node1/pod2", "10.244.1.2"),
        "the sibling lives"
    );
    // Refused is an answer: there is a host, and nobody at the port.
    let refused = class.sh("node1/pod2", "curl -s -m 2 http://10.244.1.2/");
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let shown = class.lab("status", &[]);
    assert_eq!(shown.status.code(), Some(4));
    assert!(text(&shown.stdout).contains("✗ node1/pod1") && text(&shown.stdout).contains("no web"));

    // Without the holder whoever is left still holds the namespace.
    end(pids[0]);
    assert!(echo(&class, "node1/pod2", "10.244.1.2"));
    assert_eq!(
        class.status()["nodes"][0]["pods"][0]["containers"][1]["pid"],
        pids[2]
    );
    end(pids[2]);
    assert!(
        !class.answers("node1/pod2", "10.244.1.2"),
        "the last took it along"
    );
}

#[test]
fn a_container_can_be_started_again_by_hand() {
    let class = Class::up("again", &["--nodes", "1", "--pods", "1", "--no-ipv6"]);
    end(class.pid("node1/pod1/web").unwrap());
    let exe = super::exe().display().to_string();
    let command = format!(
        "timeout 20 {exe} lab container web & sleep 0.3; curl -s --retry 20 --retry-delay 0 --retry-connrefused http://10.244.1.2/; kill %1 2>/dev/null; kill $!"
    );
    let said = class.sh("node1/pod1", &command);
    assert!(
        text(&said.stdout).starts_with("hello 10.244.1.2:"),
        "{said:?}"
    );
    let taken = class.sh("node1/pod1", &format!("timeout 5 {exe} lab container echo"));
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        text(&taken.stderr).contains("cannot listen on port 7"),
        "{taken:?}"
    );
}
