//! A thread that forwards goes before other programs while a stream comes in, as far as the configuration says and the kernel
//! lets it, and at no other time.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use encap::Family::V4;
use integration::bed::{Backend, Bed, Daemon, Underlay, feature};
use integration::probe;
use overlayd::lab::traffic::{TcpOpts, TcpServer, tcp_send};

const LOOK: Duration = Duration::from_millis(1);

/// The name and nice value of each of the daemon's threads (`proc_pid_stat(5)`, field 19), relative to this one's.
fn threads(daemon: &Daemon) -> Vec<(String, i32)> {
    let own = overlayd::sys::sched::nice().unwrap();
    let threads = daemon.threads("stat").into_iter();
    threads
        .map(|(name, stat)| {
            // The name in it may hold anything; behind it begins field 3.
            let rest = stat.rsplit_once(") ").unwrap().1;
            let nice = rest.split(' ').nth(16).unwrap();
            (name, nice.parse::<i32>().unwrap() - own)
        })
        .collect()
}

/// By how much the nice value of its one forwarding thread differs from the test's. That of no other thread does.
fn nice(daemon: &Daemon) -> i32 {
    let (forward, others): (Vec<_>, Vec<_>) = threads(daemon)
        .into_iter()
        .partition(|(name, _)| name == "forward");
    assert!(!others.is_empty() && others.iter().all(|(_, nice)| *nice == 0));
    let [(_, nice)] = forward[..] else {
        panic!("{forward:?}")
    };
    nice
}

/// Waits until no daemon's thread goes before others, and does something meanwhile.
fn until_usual(daemons: &[Daemon], meanwhile: impl Fn()) {
    let end = Instant::now() + Duration::from_secs(5);
    while daemons.iter().any(|daemon| nice(daemon) != 0) {
        assert!(Instant::now() < end, "still before others");
        meanwhile();
        thread::sleep(LOOK);
    }
}

/// A stream from the first node's pod to the second's, and the lowest nice value that each daemon had meanwhile.
fn lowest_during_a_stream(bed: &Bed, daemons: &[Daemon]) -> Vec<i32> {
    const BYTES: u64 = 200_000_000;
    let (one, two) = (bed.node(1), bed.node(2));
    let server = probe::within(two.pod(), || TcpServer::bind((two.pod_ip(V4), 0).into()));
    let send = || tcp_send(server.local_addr(), BYTES, &TcpOpts::default());
    let mut lowest = vec![0; daemons.len()];
    thread::scope(|scope| {
        let stream = scope.spawn(|| probe::within(one.pod(), send));
        while !stream.is_finished() {
            for (lowest, daemon) in lowest.iter_mut().zip(daemons) {
                *lowest = nice(daemon).min(*lowest);
            }
            thread::sleep(LOOK);
        }
        let transfer = stream.join().unwrap();
        assert!(transfer.is_intact());
        assert_eq!(transfer.arrived, BYTES);
    });
    lowest
}

/// Datagrams from the second node's pod to the first's, which nobody answers, until no thread goes before others.
fn send_until_usual(bed: &Bed, daemons: &[Daemon]) {
    let to = (bed.node(1).pod_ip(V4), 9);
    let _sink = probe::within(bed.node(1).pod(), || UdpSocket::bind(to));
    let socket = probe::within(bed.node(2).pod(), || UdpSocket::bind("0.0.0.0:0"));
    until_usual(daemons, || {
        socket.send_to(b"x", to).unwrap();
    });
}

/// What the daemon says about a feature: is it on, and a word about it.
fn told(daemon: &Daemon, name: &str) -> (bool, String) {
    let status = daemon.status();
    let feature = feature(&status, name).unwrap();
    let note = feature["note"].as_str().unwrap().to_owned();
    (feature["on"] == true, note)
}

#[test]
fn only_the_receiver_of_a_stream_goes_before_others_and_only_meanwhile() {
    let bed = crate::bed(2, Backend::Vxlan, Underlay::V4);
    // A stream arrives, and its end is noticed, however long empty sockets are left alone meanwhile.
    for (set, expected) in [
        (None, -5),
        (Some((-1, 0)), -1),
        (Some((0, 1000)), 0),
        (Some((-2, 1000)), -2),
    ] {
        let config = |node: u8| {
            let config = bed.node(node).config(Backend::Vxlan);
            match set {
                Some((nice, usecs)) => config
                    .set("datapath.nice", nice)
                    .set("datapath.rx-usecs", usecs),
                None => config,
            }
        };
        let daemons = [1, 2].map(|node| Daemon::start(bed.node(node), &config(node)));
        probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
        assert_eq!(daemons.each_ref().map(nice), [0, 0]);
        assert_eq!(lowest_during_a_stream(&bed, &daemons), [0, expected]);
        // It ends when nothing comes any more, and when packets only go out.
        if expected == -1 {
            send_until_usual(&bed, &daemons);
        } else {
            until_usual(&daemons, || {});
        }
        for daemon in daemons {
            let (on, note) = told(&daemon, "nice");
            assert_eq!(on, expected != 0);
            let end = match expected {
                0 => "datapath.nice is 0".to_owned(),
                _ => format!("and {expected} while streams come in"),
            };
            assert!(note.ends_with(&end), "{note}");
            let usecs = set.map_or(25, |(_, usecs)| usecs);
            let (on, note) = told(&daemon, "rx-usecs");
            assert_eq!(on, usecs != 0);
            assert!(note.contains(&usecs.to_string()), "{note}");
            daemon.stop();
        }
    }
}

/// Without CAP_SYS_NICE, as in many containers: it says so, and forwards.
#[test]
fn a_refused_nice_value_is_told_and_stops_nothing() {
    let bed = crate::bed(2, Backend::Vxlan, Underlay::V4);
    let config = |node: u8| bed.node(node).config(Backend::Vxlan);
    let by = ["setpriv", "--bounding-set=-sys_nice"];
    let without = Daemon::launch_by(&by, bed.node(2), &config(2)).answering(bed.node(2));
    let (on, note) = told(&without, "nice");
    assert!(!on);
    assert!(
        note.contains("by -5 was refused without CAP_SYS_NICE"),
        "{note}"
    );
    let daemons = [Daemon::start(bed.node(1), &config(1)), without];
    probe::ping(bed.node(1).pod(), bed.node(2).pod_ip(V4));
    assert_eq!(lowest_during_a_stream(&bed, &daemons), [0, 0]);
    daemons.into_iter().for_each(Daemon::stop);
}
