//! Health and metrics, asked by a plain HTTP client as a monitoring system would.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use encap::Family;
use integration::bed::{Backend, Bed, Daemon, Node, Underlay};
use integration::etcd::Etcd;
use integration::probe;
use overlayd::observe::metrics;

/// A free port in the node, and an address for it there.
fn free(node: &Node) -> String {
    let listener = node.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Status line and body.
fn get(node: &Node, at: &str, path: &str) -> (String, String) {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = node.run(ask).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Samples by name and labels. Every line must be one, or a comment.
fn parse(text: &str) -> HashMap<String, u64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        (
            name.to_owned(),
            value.parse().unwrap_or_else(|_| panic!("{line}")),
        )
    });
    samples.collect()
}

#[test]
fn metrics_are_the_counters_of_status_and_health_is_told() {
    let bed = Bed::new(2, Underlay::V4);
    let one = bed.node(1);
    let at = free(one);
    let daemon = Daemon::start(
        one,
        &one.config(Backend::Vxlan)
            .set("control.metrics", at.as_str()),
    );
    let two = bed.node(2);
    let _other = Daemon::start(two, &two.config(Backend::Vxlan));
    probe::ping(one.pod(), two.pod_ip(Family::V4));

    assert_eq!(get(one, &at, "/healthz").0, "HTTP/1.1 200 OK");
    let (ready, body) = get(one, &at, "/readyz");
    assert_eq!((&*ready, &*body), ("HTTP/1.1 200 OK", "forwarding\n"));
    assert!(get(one, &at, "/").0.contains("404"));

    // An answer is good for a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (status, text) = get(one, &at, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let samples = parse(&text);
    let of_status = daemon.status();
    let peer = two.public_ip(Family::V4);
    for (name, value) in [
        (
            format!("overlayd_peer_packets_total{{peer=\"{peer}\",direction=\"sent\"}}"),
            &of_status["peers"][0]["sent_packets"],
        ),
        (
            "overlayd_forwarded_bytes_total{direction=\"inbound\"}".to_owned(),
            &of_status["inbound"]["forwarded_bytes"],
        ),
        (
            "overlayd_device_mtu_bytes".to_owned(),
            &of_status["device"]["mtu"],
        ),
    ] {
        let sample = samples
            .get(&name)
            .unwrap_or_else(|| panic!("{name}: {text}"));
        assert_eq!(Some(*sample), value.as_u64(), "{name}");
    }
    assert!(samples["overlayd_packets_forwarded_total{direction=\"outbound\"}"] > 0);
    assert_eq!(samples["overlayd_degraded"], 0);
    assert_eq!(samples["overlayd_store_leases"], 2);
    // What has no value in this store aside, every metric is there.
    for (name, ..) in metrics::catalogue() {
        let absent = ["overlayd_store_age_seconds", "overlayd_lease_left_seconds"];
        let is_it = |sample: &String| sample.split('{').next() == Some(&*name);
        assert!(
            absent.contains(&&*name) || samples.keys().any(is_it),
            "{name}: {text}"
        );
    }

    // A bad lease file: degraded, in words, and still ready, since packets go on.
    std::fs::write(one.dir().join("leases.json"), "[").unwrap();
    daemon.wait_for("degraded", |status| status["state"] == "degraded");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (ready, body) = get(one, &at, "/readyz");
    assert_eq!(ready, "HTTP/1.1 200 OK");
    assert!(body.contains("degraded: "), "{body}");
    let samples = parse(&get(one, &at, "/metrics").1);
    assert_eq!(samples["overlayd_degraded"], 1);
    assert_eq!(samples["overlayd_store_reachable"], 0);
    assert!(samples["overlayd_store_faults_total"] >= 1);
    daemon.stop();
    let gone = one.run(|| TcpStream::connect(&*at));
    assert!(gone.is_err(), "nobody listens any more");
}

/// Before the lease is had, while it is, and while etcd is away.
#[test]
fn a_store_in_etcd_has_figures() {
    let bed = Bed::new(1, Underlay::V4);
    let one = bed.node(1);
    let mut etcd = Etcd::start(&bed);
    let at = free(one);
    let config = etcd.config(one).set("control.metrics", at.as_str());
    let daemon = Daemon::launch(one, &config);
    let say = |path: &str| {
        // An answer is good for a second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        get(one, &at, path)
    };
    let (ready, _) = say("/readyz");
    assert!(ready.contains("503"), "no configuration in etcd: {ready}");
    let error = overlayd::observe::client::status(daemon.socket()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("does not forward yet") && error.contains("etcd http://10.99.0.254"),
        "{error}"
    );
    etcd.configure(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let peer = r#"{"PublicIP":"10.99.0.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    etcd.put("10.244.77.0-24", peer);
    let is_ok = |status: &serde_json::Value| status["state"] == "ok";
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !overlayd::observe::client::status(daemon.socket()).is_ok_and(|status| is_ok(&status)) {
        assert!(std::time::Instant::now() < end, "it does not forward");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let samples = parse(&say("/metrics").1);
    for (name, least) in [
        ("overlayd_store_reachable", 1),
        ("overlayd_store_leases", 2),
        ("overlayd_store_reads_total", 1),
        ("overlayd_store_watch_events_total", 1),
        ("overlayd_lease_left_seconds", 86_000),
    ] {
        let value = samples[name];
        assert!(value >= least, "{name} is {value}");
    }
    assert!(!samples.contains_key("overlayd_store_age_seconds"));

    etcd.kill();
    daemon.wait_for("etcd is missed", |status| status["state"] == "degraded");
    let samples = parse(&say("/metrics").1);
    assert_eq!(samples["overlayd_store_reachable"], 0);
    assert!(samples["overlayd_store_faults_total"] >= 1);
    assert!(samples.contains_key("overlayd_store_age_seconds"));
    let (ready, body) = say("/readyz");
    assert_eq!(ready, "HTTP/1.1 200 OK");
    assert!(body.contains("degraded: "), "{body}");

    etcd.run();
    daemon.wait_for("etcd is back", is_ok);
    assert_eq!(parse(&say("/metrics").1)["overlayd_store_reachable"], 1);
    daemon.stop();
}

#[test]
fn a_port_that_is_taken_is_said() {
    let bed = Bed::new(1, Underlay::V4);
    let one = bed.node(1);
    let taken = one.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let config = one
        .config(Backend::Vxlan)
        .set("control.metrics", at.as_str());
    let (code, log) = Daemon::refused(one, &config);
    assert_eq!(code, 1);
    assert!(
        log.contains(&at) && log.contains("control.metrics"),
        "{log}"
    );
}
