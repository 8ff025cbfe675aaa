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
    // The kernel takes a namespace apart when it has time.
    let deadline = Instant::now() + Duration::from_secs(20);
    while class.answers("node1/pod2", "10.244.1.2") {
        assert!(Instant::now() < deadline, "the last took it along");
    }
}

/// Kills all processes of a pod.
fn kill_pod(class: &Class, place: &str) {
    for name in ["", "/web", "/echo"] {
        end(class.pid(&format!("{place}{name}")).unwrap());
    }
}

#[test]
fn a_dead_pod_stops_nobody_else_and_can_be_revived() {
    let class = Class::up("dead", &["--nodes", "2", "--pods", "1"]);
    kill_pod(&class, "node1/pod1");
    end(class.pid("node2").unwrap());

    // What does not touch it goes on.
    class.run("node2/pod1", "true");
    class.run("node1", "true");
    let drawn = class.lab("graph", &["--svg", "-"]);
    assert!(drawn.status.success(), "{drawn:?}");
    let svg = text(&drawn.stdout);
    assert!(svg.contains(">dead<") && svg.contains(">`overlayd lab revive`<"));
    let shown = class.lab("status", &[]);
    assert_eq!(shown.status.code(), Some(4));
    let said = text(&shown.stdout);
    let row = said.lines().find(|row| row.starts_with(" ✗ node1/pod1 "));
    assert!(row.unwrap().contains(" dead: "), "{said}");
    assert!(said.contains(" ✓ node2/pod1 "), "{said}");
    let revive = format!("`overlayd lab revive --name {}`", class.name);
    assert!(text(&shown.stderr).contains(&revive), "{shown:?}");
    // What does says so, and what to do.
    let refused = class.sh("node1/pod1", "true");
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains("node1/pod1 is dead") && said.contains(&revive),
        "{said}"
    );

    let revived = class.lab("revive", &[]);
    let said = text(&revived.stderr);
    assert_eq!(
        said, "node1/pod1 lives again\nnode2 lives again\n",
        "{revived:?}"
    );
    assert_eq!(class.lab("status", &[]).status.code(), Some(0));
    for ip in ["10.244.1.2", "fd00:10:244:1::2"] {
        assert!(class.answers("node2/pod1", ip), "{ip}");
    }
    assert!(echo(&class, "node2/pod1", "10.244.1.2"));

    // Of one that is not quite dead only what is missing is started.
    let echo_pid = class.pid("node1/pod1/echo").unwrap();
    end(class.pid("node1/pod1").unwrap());
    end(class.pid("node1/pod1/web").unwrap());
    assert!(class.lab("revive", &[]).status.success());
    assert_eq!(class.lab("status", &[]).status.code(), Some(0));
    assert_eq!(class.pid("node1/pod1/echo"), Some(echo_pid));
    let hello = class.run(
        "node2/pod1",
        "curl -s --retry 20 --retry-delay 0 --retry-connrefused http://10.244.1.2/",
    );
    assert!(hello.contains("this is node1/pod1/web at "), "{hello}");
    let nothing = class.lab("revive", &[]);
    assert!(text(&nothing.stderr).contains("nothing is dead"));
}

#[test]
fn a_pod_is_revived_as_far_as_its_lab_is_built() {
    let class = Class::up(
        "early",
        &["--nodes", "1", "--pods", "2", "--stage", "bridge"],
    );
    kill_pod(&class, "node1/pod1");
    let refused = class.lab("next", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("lab revive"), "{refused:?}");
    assert!(class.lab("revive", &[]).status.success());
    assert!(class.answers("node1/pod2", "10.244.1.2"));
    assert_eq!(
        class.run("node1/pod1", "ip route show default"),
        "",
        "not routed yet"
    );
    assert!(class.lab("next", &[]).status.success());
    assert!(class.answers("node1/pod1", "10.99.0.1"));
}

#[test]
fn a_container_started_by_hand_is_one_of_the_labs() {
    let class = Class::up("again", &["--nodes", "1", "--pods", "1", "--no-ipv6"]);
    end(class.pid("node1/pod1/web").unwrap());
    let exe = super::exe().display().to_string();
    let mut typed = std::process::Command::new(super::exe());
    typed.args(["lab", "sh", "--name", &class.name, "node1/pod1"]);
    let mut typed = typed
        .args([&exe, "lab", "container", "web"])
        .spawn()
        .unwrap();
    let said = class.run(
        "node1/pod1",
        "curl -s --retry 50 --retry-delay 0 --retry-connrefused http://10.244.1.2/",
    );
    assert!(said.starts_with("hello 10.244.1.2:"), "{said}");
    assert!(said.contains("this is node1/pod1/web at "), "{said}");
    assert_eq!(class.pid("node1/pod1/web"), Some(typed.id()));
    assert_eq!(class.lab("status", &[]).status.code(), Some(0));

    // Not in a node, whose addresses are not a pod's.
    let refused = class.sh("node1", &format!("timeout 5 {exe} lab container web"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("this is no pod of a lab"),
        "{refused:?}"
    );
    let taken = class.sh("node1/pod1", &format!("timeout 5 {exe} lab container echo"));
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        text(&taken.stderr).contains("cannot listen on port 7"),
        "{taken:?}"
    );

    let down = class.lab("down", &[]);
    assert!(!text(&down.stderr).contains("still runs"), "{down:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while typed.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it outlives its lab");
        sleep(Duration::from_millis(5));
    }
}
