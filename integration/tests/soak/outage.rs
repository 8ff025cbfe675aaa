//! etcd is away for a long time while packets flow.

use std::net::SocketAddr;

use encap::Family::V4;
use integration::bed::{Bed, Node, Underlay};
use integration::etcd::Etcd;
use overlayd::lab::traffic::{Flow, FlowReport, UdpEcho};

use super::*;

/// From one numbered datagram to the next, each way.
const INTERVAL: Duration = Duration::from_millis(5);
/// The outage is looked at in so many parts.
const PARTS: u32 = 10;

/// Ten minutes, or `SOAK_SECONDS`: no packet is lost, processor time stays as it is, and the log does not grow.
#[test]
#[ignore = "soak: ten minutes"]
fn etcd_is_away_for_ten_minutes() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(600, |text| text.parse().unwrap());
    let part = Duration::from_secs(seconds) / PARTS;
    let bed = Bed::new(2, Underlay::V4);
    let mut etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    for node in bed.nodes() {
        let (net, ip) = (node.subnet(V4).to_string(), node.public_ip(V4));
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
        etcd.lease(&net.replace('/', "-"), &value);
    }
    let launch = |node| Daemon::launch(node, &etcd.config(node));
    let daemons: Vec<Daemon> = bed.nodes().iter().map(launch).collect();
    for daemon in &daemons {
        until("well", Duration::from_secs(30), || is_well(daemon, 1));
    }
    let echo = |node: &Node| {
        let address = SocketAddr::new(node.pod_ip(V4), 7);
        node.run_in_pod(|| UdpEcho::bind(address)).unwrap()
    };
    let (one, two) = (bed.node(1), bed.node(2));
    let _echoes = (echo(one), echo(two));
    let flow = |from: &Node, to: &Node| {
        let to = SocketAddr::new(to.pod_ip(V4), 7);
        from.run_in_pod(|| Flow::start_udp(to, INTERVAL)).unwrap()
    };
    let lines = || -> Vec<usize> {
        let count = |daemon: &Daemon| daemon.log().lines().count();
        daemons.iter().map(count).collect()
    };
    let before = lines();
    let mut shares = Vec::new();
    let mut sent = 0;
    let mut watch = |what: &str| {
        let flows = [flow(one, two), flow(two, one)];
        let (start, used) = (Instant::now(), daemons.iter().map(processor_time));
        let used: Vec<Duration> = used.collect();
        sleep(part);
        let spent = daemons.iter().zip(used).map(|(daemon, used)| {
            (processor_time(daemon) - used).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
        });
        let spent: Vec<f64> = spent.collect();
        let reports: Vec<FlowReport> = flows.map(|flow| flow.stop().unwrap()).into();
        let lost: u64 = reports.iter().map(|report| report.lost).sum();
        sent += reports.iter().map(|report| report.sent).sum::<u64>();
        println!(
            "{what}: processor {spent:.2?} %, log lines {:?}, lost {lost}, sent so far {sent}",
            lines()
        );
        for report in &reports {
            assert_eq!(
                (report.lost, report.refused, report.corrupted),
                (0, 0, 0),
                "{report:?}"
            );
        }
        shares.push(spent.into_iter().sum::<f64>());
    };
    watch("etcd is there");
    etcd.kill();
    for n in 1..=PARTS {
        watch(&format!("away, part {n} of {PARTS} ({part:?} each)"));
    }
    let during = lines();
    for daemon in &daemons {
        assert_eq!(daemon.status()["state"], "degraded");
    }
    etcd.run();
    let healed = daemons
        .iter()
        .map(|daemon| until("well again", Duration::from_secs(30), || is_well(daemon, 1)));
    println!("well again {:?} after etcd's return", healed.max().unwrap());
    watch("etcd is back");
    for (before, during) in before.iter().zip(&during) {
        assert!(during - before <= 3, "{} lines", during - before);
    }
    // Half a percent of a processor is the measure's own grain, and the neighbours'.
    let (first, rest) = (shares[0], &shares[1..]);
    assert!(
        rest.iter().all(|share| *share < first * 1.5 + 0.5),
        "{shares:?}"
    );
}
