//! Flows through an outage, and probes cancelled.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use overlayd::kernel::Netlink;
use overlayd::lab::traffic::*;

use crate::{Bed, SERVER, block_on, ip};

#[test]
fn a_flow_counts_what_an_outage_costs() {
    let bed = Bed::new();
    let echo = bed
        .server
        .run(|| UdpEcho::bind("10.9.2.2:0".parse().unwrap()))
        .unwrap()
        .unwrap();
    let every = Duration::from_millis(2);
    let start = || {
        let pings = Flow::start(ip(SERVER[0]), every)?;
        Ok::<_, io::Error>((pings, Flow::start_udp(echo.local_addr(), every)?))
    };
    let (pings, datagrams) = bed.client.run(start).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    for report in [pings.stop().unwrap(), datagrams.stop().unwrap()] {
        assert_eq!(
            (report.lost, report.duplicates, report.corrupted),
            (0, 0, 0),
            "{report:?}"
        );
        assert!((50..=160).contains(&report.sent), "{report:?}");
        assert!(
            report.longest_gap < Duration::from_millis(250),
            "{report:?}"
        );
    }

    let (pings, datagrams) = bed.client.run(start).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    block_on(async {
        let router = Netlink::open_in(&bed.router).unwrap();
        let right = router.link("right").await.unwrap().unwrap().index;
        router.set_down(right).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        router.set_up(right).await.unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    for report in [pings.stop().unwrap(), datagrams.stop().unwrap()] {
        assert!(report.lost >= 50 && report.received >= 50, "{report:?}");
        assert_eq!(report.sent, report.received + report.lost);
        assert!(
            report.longest_gap >= Duration::from_millis(300),
            "{report:?}"
        );
        let first = report.lost_at[0];
        assert!(
            first >= Duration::from_millis(80) && first < Duration::from_millis(400),
            "{first:?}"
        );
    }
}

#[test]
fn everything_ends_when_cancelled() {
    let bed = Bed::new();
    let cancel = Cancel::default();
    let long = Duration::from_secs(300);
    let cancelled = |work: &(dyn Fn() -> io::Error + Sync)| {
        let error = bed.client.run(work).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
    };
    let silent = bed
        .server
        .run(|| UdpSocket::bind("10.9.2.2:0"))
        .unwrap()
        .unwrap();
    let quiet = bed
        .server
        .run(|| TcpListener::bind("10.9.2.2:0"))
        .unwrap()
        .unwrap();
    let (silent, quiet) = (
        silent.local_addr().unwrap(),
        quiet.local_addr().map(|a| (a, quiet)).unwrap(),
    );
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let opts = PingOpts {
                timeout: long,
                cancel: cancel.clone(),
                ..PingOpts::default()
            };
            cancelled(&|| ping(ip("10.9.4.9"), &opts).unwrap_err());
        });
        scope.spawn(|| {
            let opts = PathOpts {
                timeout: long,
                cancel: cancel.clone(),
                ..PathOpts::default()
            };
            cancelled(&|| trace_path(ip("10.9.4.9"), &opts).unwrap_err());
        });
        scope.spawn(|| {
            let opts = UdpOpts {
                timeout: long,
                overall: long,
                cancel: cancel.clone(),
                ..UdpOpts::default()
            };
            cancelled(&|| udp_probe(silent, [1, 2], &opts).unwrap_err());
        });
        scope.spawn(|| {
            let opts = TcpOpts {
                connect: long,
                overall: long,
                cancel: cancel.clone(),
                ..TcpOpts::default()
            };
            cancelled(&|| tcp_send((ip("10.9.4.9"), 1).into(), 1, &opts).unwrap_err());
            cancelled(&|| tcp_fetch(quiet.0, 1, &opts).unwrap_err());
        });
        std::thread::sleep(Duration::from_millis(100));
        cancel.set();
    });
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}
