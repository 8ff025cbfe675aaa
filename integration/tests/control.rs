//! Asking a daemon: `overlayd status`, and what the control socket bears.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use encap::Family;
use integration::bed::{Backend, Bed, Daemon, Node, PATIENCE, Underlay, overlayd_bin};
use overlayd::lab::traffic::{PingOpts, ping};
use serde_json::Value;

const V4: Family = Family::V4;

fn reaches(from: &Node, to: IpAddr) -> bool {
    let opts = PingOpts {
        count: 1,
        ..PingOpts::default()
    };
    from.run(|| ping(to, &opts)).unwrap().received == 1
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn cli_at(socket: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(overlayd_bin());
    command.args(arguments).arg("--socket").arg(socket);
    let done = command.output().unwrap();
    Said {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn cli(daemon: &Daemon, arguments: &[&str]) -> Said {
    cli_at(daemon.socket(), arguments)
}

/// A pipe into `head` closes early; what the command has to tidy up must not suffer from it.
#[test]
fn nobody_need_listen_to_stderr() {
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let mut command = Command::new(overlayd_bin());
    command.args(["status", "--socket", "/nonexistent"]);
    let status = command.stderr(OwnedFd::from(near)).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn status_says_how_it_is_and_its_exit_code_too() {
    let bed = Bed::new(2, Underlay::V4);
    let (one, two) = (bed.node(1), bed.node(2));
    let socket = one.dir().join("overlayd.sock");
    let nobody = cli_at(&socket, &["status"]);
    assert_eq!((nobody.code, nobody.out.as_str()), (3, ""));
    assert!(nobody.err.contains("is it running?"), "{}", nobody.err);

    let mut daemons = bed.start(Backend::Vxlan);
    assert!(reaches(one, two.pod_ip(V4)));
    let no_lease: IpAddr = "10.244.200.1".parse().unwrap();
    assert!(!reaches(one, no_lease));
    // The reply is counted a moment after it was delivered.
    daemons[0].wait_for("the reply", |status| {
        status["peers"][0]["received_packets"] == 1
    });
    let text = cli(&daemons[0], &["status"]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    let line = |words: &[&str]| {
        let found = text
            .out
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line has {words:?}: {}", text.out);
    };
    assert!(
        text.out.starts_with("node1: ok"),
        "health first: {}",
        text.out
    );
    line(&["backend", "vxlan", "VNI 1", "8472"]);
    line(&[
        "device",
        "overlay0",
        "1450",
        "10.244.1.0",
        "fd00:10:244:1::",
    ]);
    line(&["underlay", "eth0", "1500"]);
    line(&["lease", "10.244.1.0/24", "10.99.0.1", "0a:58:0a:63:00:01"]);
    // One packet of 84 bytes each way.
    line(&["10.244.2.0/24", "10.99.0.2", " 1 ", "84 B"]);
    line(&["outbound", "no-lease", "1"]);
    line(&["No lease covers the destination"]);
    line(&["->", "is its lease refused?"]);

    let answer = cli(&daemons[0], &["status", "--json"]);
    assert_eq!(answer.code, 0);
    let status: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(status["version"], 1);
    assert_eq!(status["peers"][0]["sent_packets"], 1);
    assert_eq!(status["peers"][0]["sent_bytes"], 84);
    assert_eq!(
        status["drops"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["reason"] == "no-lease")
            .count(),
        1
    );

    // A torn lease file: the last good table stays.
    let file = one.leases_path();
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    daemons[0].wait_for("degraded", |status| status["state"] == "degraded");
    for arguments in [&["status"][..], &["status", "--json"]] {
        let said = cli(&daemons[0], arguments);
        assert_eq!(said.code, 4);
        assert!(
            said.out.contains("leases.json") && said.out.contains("cut off"),
            "{}",
            said.out
        );
    }
    assert!(
        reaches(one, two.pod_ip(V4)),
        "it forwards on the last good table"
    );
    fs::write(&file, &whole).unwrap();
    daemons[0].wait_for("well again", |status| status["state"] == "ok");

    daemons[0].kill();
    assert!(socket.exists());
    assert_eq!(
        cli_at(&socket, &["status"]).code,
        3,
        "a socket that nobody serves"
    );
    assert_eq!(cli_at(&socket, &["status", "--colour"]).code, 2);
}

#[test]
fn bad_control_clients_hurt_nobody() {
    let bed = Bed::new(1, Underlay::V4);
    let node = bed.node(1);
    let daemon = Daemon::start(node, &node.config(Backend::Vxlan));
    let connect = || {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let answer = |request: &[u8]| {
        let mut stream = connect();
        // It may hang up on us in the middle.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for request in [
        &b"\n"[..],
        b"stop\n",
        b"{\"status\":1}\n",
        b"status status\n",
        "st\u{e4}tus\n".as_bytes(),
    ] {
        let said = answer(request);
        let said: Value =
            serde_json::from_str(&said).unwrap_or_else(|_| panic!("{request:?}: {said}"));
        assert!(
            said["error"].as_str().unwrap().contains("unknown request"),
            "{said}"
        );
    }
    // No line at all, no text, a line without end: the client is dropped.
    for request in [&b""[..], b"\xff\xfe\x00\n", &[b'x'; 100_000], &[0; 5000]] {
        assert_eq!(
            answer(request),
            "",
            "{:?}",
            &request[..request.len().min(9)]
        );
    }
    // Two requests on one connection.
    assert_eq!(answer(b"status\nstatus\n").lines().count(), 2);

    // Clients that connect and say nothing, or half a word, and stay: more than are served at a time.
    let mut idle: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
    for stream in &mut idle {
        let _ = stream.write_all(b"sta");
    }
    let start = Instant::now();
    assert_eq!(daemon.status()["state"], "ok");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "status had to wait {took:?}");
    drop(idle);

    // Many at once, all answered.
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| (0..5).all(|_| daemon.status()["version"] == 1)))
            .collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap()));
    });
    daemon.stop();
}
