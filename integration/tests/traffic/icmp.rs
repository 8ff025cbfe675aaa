//! Ping and path.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use overlayd::kernel::NetNs;
use overlayd::lab::traffic::*;

use crate::{Bed, SERVER, ip};

#[test]
fn ping_of_every_kind_of_size() {
    let bed = Bed::new();
    // IPv6 has to learn the path MTU first: routers do not fragment (RFC 8200 section 5).
    let learn = PingOpts {
        count: 1,
        size: 1452,
        ..PingOpts::default()
    };
    assert_eq!(bed.ping(SERVER[1], &learn).mtu(), Some(1400));
    for dst in SERVER {
        for size in [0, 1, 56, 1372, 1373, 1472, 8000, 65_507] {
            let opts = PingOpts {
                count: 2,
                size,
                ..PingOpts::default()
            };
            let report = bed.ping(dst, &opts);
            assert!(report.all_answered(), "{dst} with {size} bytes: {report:?}");
            assert_eq!((report.sent, report.rtts.len()), (2, 2));
            assert!(
                report.errors.is_empty() && report.refusals.is_empty(),
                "{report:?}"
            );
        }
    }
    let loopback = bed.ping("127.0.0.1", &PingOpts::default());
    assert!(
        loopback.all_answered(),
        "one's own requests are no answers: {loopback:?}"
    );
    let too_much = PingOpts {
        size: 65_508,
        ..PingOpts::default()
    };
    let error = bed
        .client
        .run(|| ping(ip(SERVER[0]), &too_much))
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_too_big_ping_hears_the_mtu() {
    let bed = Bed::new();
    for (dst, router, headers) in [(SERVER[0], "10.9.1.1", 28), (SERVER[1], "fd09:1::1", 48)] {
        let probe = |fragmenting, packet: usize| PingOpts {
            count: 2,
            size: packet - headers,
            fragmenting,
            ..PingOpts::default()
        };
        assert!(
            bed.ping(dst, &probe(Fragmenting::Probe, 1400))
                .all_answered()
        );
        // Told by the router, and again, for what it tells is not believed.
        let report = bed.ping(dst, &probe(Fragmenting::Probe, 1401));
        assert_eq!((report.sent, report.received), (2, 0), "{report:?}");
        assert_eq!(report.errors.len(), 2);
        for (number, error) in (0..).zip(&report.errors) {
            assert!(error.is_too_big() && !error.is_unreachable(), "{error}");
            assert_eq!(
                (error.from, error.mtu, error.probe),
                (ip(router), Some(1400), number)
            );
        }
        // By now the kernel has learned it: no probe leaves.
        let report = bed.ping(dst, &probe(Fragmenting::Forbidden, 1401));
        assert_eq!((report.received, report.errors.len()), (0, 0), "{report:?}");
        assert_eq!(report.refusals.len(), 2);
        assert_eq!(
            (report.refusals[0].errno, report.mtu()),
            (Errno::EMSGSIZE as i32, Some(1400))
        );
        // Larger than our own interface.
        let report = bed.ping(dst, &probe(Fragmenting::Probe, 1501));
        assert_eq!(
            (report.refusals.len(), report.mtu()),
            (2, Some(1500)),
            "{report:?}"
        );
        // And what may be fragmented arrives.
        assert!(
            bed.ping(dst, &probe(Fragmenting::Allowed, 3000))
                .all_answered()
        );
    }
}

#[test]
fn errors_on_the_way_are_told_apart() {
    let bed = Bed::new();
    let once = PingOpts {
        count: 1,
        ..PingOpts::default()
    };
    for (dst, router, nowhere, hole) in [
        (SERVER[0], "10.9.1.1", "10.77.0.1", "10.9.4.9"),
        (SERVER[1], "fd09:1::1", "fd77::1", "fd09:4::9"),
    ] {
        let ttl = PingOpts {
            ttl: 1,
            ..once.clone()
        };
        let report = bed.ping(dst, &ttl);
        assert_eq!(report.received, 0);
        assert!(report.errors[0].is_time_exceeded(), "{report:?}");
        assert_eq!(report.errors[0].from, ip(router));
        let report = bed.ping(dst, &PingOpts { ttl: 2, ..ttl });
        assert!(report.all_answered(), "{report:?}");

        let report = bed.ping(nowhere, &once);
        assert!(report.errors[0].is_unreachable(), "{report:?}");
        assert_eq!(
            (report.errors[0].from, report.errors[0].code),
            (ip(router), 0)
        );

        let start = Instant::now();
        let patient = PingOpts {
            count: 3,
            timeout: Duration::from_millis(100),
            ..PingOpts::default()
        };
        let report = bed.ping(hole, &patient);
        assert_eq!(
            (report.sent, report.received, report.errors.len()),
            (3, 0, 0)
        );
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(300) && took < Duration::from_secs(3),
            "{took:?}"
        );
    }
    // No route at all: the kernel does not even try.
    let empty = NetNs::create_unnamed().unwrap();
    let report = empty.run(|| ping(ip(SERVER[0]), &once)).unwrap().unwrap();
    let unreachable = Errno::ENETUNREACH as i32;
    assert_eq!((report.sent, report.refusals[0].errno), (1, unreachable));
    let hops = empty
        .run(|| trace_path(ip(SERVER[0]), &PathOpts::default()))
        .unwrap()
        .unwrap();
    assert_eq!(
        (hops.len(), hops[0].answer),
        (1, Answer::Refused(unreachable))
    );
}

#[test]
fn the_source_address_is_ours_to_choose() {
    let bed = Bed::new();
    let from = |source: &str| PingOpts {
        count: 1,
        source: Some(ip(source)),
        timeout: Duration::from_millis(200),
        ..PingOpts::default()
    };
    assert!(bed.ping("10.9.1.1", &from("10.9.1.2")).all_answered());
    assert!(bed.ping("fd09:1::1", &from("fd09:1::2")).all_answered());
    let error = bed
        .client
        .run(|| ping(ip("10.9.1.1"), &from("10.9.1.3")))
        .unwrap()
        .unwrap_err();
    assert!(
        error.to_string().starts_with("ping from 10.9.1.3: "),
        "{error}"
    );
}

#[test]
fn a_path_names_its_hops() {
    let bed = Bed::new();
    let trace = |dst: &str, opts: &PathOpts| {
        bed.client
            .run(|| trace_path(ip(dst), opts))
            .unwrap()
            .unwrap()
    };
    for (dst, router) in [(SERVER[0], "10.9.1.1"), (SERVER[1], "fd09:1::1")] {
        let hops = trace(dst, &PathOpts::default());
        let seen: Vec<_> = hops
            .iter()
            .map(|hop| (hop.ttl, hop.from.unwrap(), hop.answer))
            .collect();
        assert_eq!(
            seen,
            [
                (1, ip(router), Answer::TimeExceeded),
                (2, ip(dst), Answer::Reply)
            ]
        );
        assert!(hops.iter().all(|hop| hop.rtt.is_some()));
    }
    let hops = trace("10.77.0.1", &PathOpts::default());
    assert!(
        matches!(hops[..], [Hop { answer: Answer::Error(e), .. }] if e.is_unreachable()),
        "{hops:?}"
    );
    let short = PathOpts {
        max_hops: 3,
        tries: 1,
        timeout: Duration::from_millis(100),
        ..PathOpts::default()
    };
    let hops = trace("10.9.4.9", &short);
    let answers: Vec<_> = hops.iter().map(|hop| hop.answer).collect();
    assert_eq!(
        answers,
        [Answer::TimeExceeded, Answer::Silent, Answer::Silent]
    );
}

#[test]
fn probes_are_not_confused_by_each_other() {
    let bed = Bed::new();
    let many = PingOpts {
        count: 200,
        size: 1000,
        ..PingOpts::default()
    };
    let trickle = bed
        .client
        .run(|| Flow::start(ip(SERVER[0]), Duration::from_millis(1)))
        .unwrap()
        .unwrap();
    std::thread::scope(|scope| {
        let pings: Vec<_> = [SERVER[0], SERVER[0], SERVER[1], "10.9.1.1", SERVER[0]]
            .map(|dst| scope.spawn(|| bed.ping(dst, &many)))
            .into();
        // And errors about someone else's packets in between (rate limited, so not waited for).
        let doomed = PingOpts {
            count: 20,
            ttl: 1,
            timeout: Duration::from_millis(10),
            ..PingOpts::default()
        };
        assert!(!bed.ping("10.77.0.1", &doomed).errors.is_empty());
        for ping in pings {
            let report = ping.join().unwrap();
            assert!(
                report.all_answered() && report.errors.is_empty(),
                "{report:?}"
            );
        }
    });
    let report = trickle.stop().unwrap();
    assert_eq!(
        (report.lost, report.duplicates, report.corrupted),
        (0, 0, 0),
        "{report:?}"
    );
}
