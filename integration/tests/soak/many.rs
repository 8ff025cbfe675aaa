//! Ten thousand leases in a real etcd: a cold start among them, and a hundred changes a second.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use encap::Family::V4;
use etcd_client::{Client, PutOptions};
use integration::bed::{Bed, Underlay, overlayd_bin};
use integration::etcd::{Etcd, PREFIX};
use integration::probe;
use overlayd::kernel::NetNs;
use overlayd::lab::traffic::{self, PingOpts};
use overlayd::observe::client;
use overlayd::observe::status::Holder;
use tokio::task::JoinSet;

use super::*;

const LEASES: u16 = 10_000;
/// Requests to etcd that are on their way at once.
const AT_ONCE: usize = 64;
const PER_SECOND: u32 = 100;
const SECONDS: u32 = 60;
/// Every so many changes one is timed.
const TIMED: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Another node's lease: 10.128.0.0/24 and following, at a public IP that depends on how often it has moved.
fn lease(number: u16, moved: u8) -> (Ipv4Addr, Ipv4Addr, String) {
    let [high, low] = number.to_be_bytes();
    let public = Ipv4Addr::new(172, 16 + moved, high, low);
    let value = format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:58:ac:{:02x}:{high:02x}:{low:02x}"}}}}"#,
        16 + moved
    );
    (Ipv4Addr::new(10, 128 + high, low, 0), public, value)
}

fn path(subnet: Ipv4Addr) -> String {
    format!("{PREFIX}/subnets/{subnet}-24")
}

/// Speaks to etcd from its own namespace.
fn with_client<F: Future>(etcd: &Etcd, f: impl FnOnce(Client) -> F + Send)
where
    F::Output: Send,
{
    let endpoint = etcd.endpoint();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build()
    };
    probe::within(etcd.netns(), move || {
        runtime()?.block_on(async move {
            let client = Client::connect([endpoint], None).await;
            f(client.map_err(std::io::Error::other)?).await;
            Ok(())
        })
    });
}

/// Writes all leases, each with an etcd lease of its own, as ten thousand nodes would.
fn fill(etcd: &Etcd) {
    with_client(etcd, async |client| {
        let mut tasks = JoinSet::new();
        for number in 0..LEASES {
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await.unwrap().unwrap();
            }
            let mut client = client.clone();
            tasks.spawn(async move {
                let id = client.lease_grant(86_400, None).await.unwrap().id();
                let (subnet, _, value) = lease(number, 0);
                let options = PutOptions::new().with_lease(id);
                client
                    .put(path(subnet), value, Some(options))
                    .await
                    .unwrap();
            });
        }
        tasks.join_all().await;
    });
}

/// A change on its way: an address in the subnet, where it leads from now on, and when it was put.
type Change = (Ipv4Addr, Ipv4Addr, Instant);

/// Moves nodes at a steady pace; each is told as it is put.
fn churn(etcd: &Etcd, told: mpsc::Sender<Change>) {
    with_client(etcd, async move |client| {
        let mut tasks = JoinSet::new();
        let mut next = tokio::time::Instant::now();
        for turn in 0..PER_SECOND * SECONDS {
            tokio::time::sleep_until(next).await;
            next += Duration::from_secs(1) / PER_SECOND;
            // Scattered: 7919 and the number of leases have no common divisor.
            let number = u16::try_from(turn * 7919 % u32::from(LEASES)).unwrap();
            let (subnet, public, value) = lease(number, 1);
            told.send((subnet, public, Instant::now())).unwrap();
            let mut client = client.clone();
            tasks.spawn(async move {
                let options = PutOptions::new().with_ignore_lease();
                client
                    .put(path(subnet), value, Some(options))
                    .await
                    .unwrap();
            });
            while tasks.try_join_next().is_some() {}
        }
        tasks.join_all().await;
    });
}

/// Pings in the background.
fn pings(from: &NetNs, to: IpAddr, seconds: u32) -> JoinHandle<Vec<Duration>> {
    let from = from.clone();
    let opts = PingOpts {
        count: seconds * 100,
        interval: Duration::from_millis(10),
        ..PingOpts::default()
    };
    std::thread::spawn(move || {
        let report = probe::within(&from, || traffic::ping(to, &opts));
        assert!(report.all_answered(), "{report:?}");
        report.rtts
    })
}

#[test]
#[ignore = "soak: ten thousand leases, two minutes"]
fn ten_thousand_leases() {
    let bed = Bed::new(2, Underlay::V4);
    let etcd = Etcd::start(&bed);
    etcd.configure(VXLAN);
    for node in bed.nodes() {
        let (net, ip) = (node.subnet(V4).to_string(), node.public_ip(V4));
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
        etcd.lease(&net.replace('/', "-"), &value);
    }
    let start = Instant::now();
    fill(&etcd);
    println!("{LEASES} leases written in {:.1?}", start.elapsed());

    // A cold start: no saved table, everything from etcd.
    let peers = usize::from(LEASES) + 1;
    let mut daemons = Vec::new();
    for node in bed.nodes() {
        let start = Instant::now();
        let daemon = Daemon::launch(node, &etcd.config(node));
        let (last, ..) = lease(LEASES - 1, 0);
        until("forwarding", PATIENCE, || {
            let who = client::who(daemon.socket(), last.into());
            who.is_ok_and(|who| matches!(who.holder, Holder::Peer { .. }))
        });
        let took = start.elapsed();
        // The table is saved two seconds later: that is part of it.
        sleep(Duration::from_secs(4));
        let peak = memory(&daemon, "VmHWM");
        until("well", PATIENCE, || is_well(&daemon, peers));
        println!("cold start: forwarding after {took:.2?}, at most {peak} KiB of memory");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(peak < 64 << 10, "{peak} KiB");
        daemons.push(daemon);
    }
    let listed = Instant::now();
    let config = daemons[0].config_path();
    let said = probe::within(bed.node(1).netns(), || {
        let mut command = Command::new(overlayd_bin());
        command
            .args(["lease", "ls", "--config"])
            .arg(config)
            .output()
    });
    assert_eq!(said.stdout.split(|byte| *byte == b'\n').count(), peers + 3);
    println!("overlayd lease ls: {:.1?}", listed.elapsed());

    let (pod, to) = (bed.node(1).pod(), bed.node(2).pod_ip(V4));
    let quiet = pings(pod, to, 15).join().unwrap();
    let (told, changes) = mpsc::channel();
    let busy = pings(pod, to, SECONDS);
    let used = processor_time(&daemons[0]);
    let mut resident = vec![memory(&daemons[0], "VmRSS")];
    let (mut waits, mut changed) = (Vec::new(), 0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&etcd, told));
        let mut timed = Vec::new();
        let socket = daemons[0].socket();
        for (number, (address, public, put)) in changes.iter().enumerate() {
            // To ask for all would take more of the daemon's time than the changes do.
            if number % TIMED == 0 {
                timed.push(scope.spawn(move || {
                    let is_there = || match client::who(socket, address.into()) {
                        Ok(who) => {
                            matches!(who.holder, Holder::Peer { to, .. } if to.ip() == public)
                        }
                        Err(error) => panic!("{error}"),
                    };
                    until("it is known", PATIENCE, is_there);
                    put.elapsed()
                }));
            }
            if number % 500 == 0 {
                resident.push(memory(&daemons[0], "VmRSS"));
            }
            changed += 1;
        }
        waits.extend(timed.into_iter().map(|timed| timed.join().unwrap()));
    });
    let busy = busy.join().unwrap();
    let share = (processor_time(&daemons[0]) - used).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "{changed} changes in {:.1?}, {} timed",
        begun.elapsed(),
        waits.len()
    );
    let (quiet, busy, known) = (quantiles(quiet), quantiles(busy), quantiles(waits));
    println!("round trip without changes: p50, p99, worst {quiet:.0?}");
    println!("round trip with changes:    p50, p99, worst {busy:.0?}");
    println!("a change is known after:    p50, p99, worst {known:.0?}");
    println!("resident memory, KiB: {resident:?}");
    println!("the daemon takes {:.0} % of a processor", share * 100.0);
    assert!(known.1 < Duration::from_secs(1), "{known:?}");
    // The median shows the lookups; the rest shows who else wants the processors.
    assert!(busy.0 < quiet.0 * 2, "{quiet:?} {busy:?}");
    // The first change makes room for two tables at once; from then on it must not grow.
    let (first, last) = (resident[2], resident[resident.len() - 1]);
    assert!(last < first + first / 5, "{resident:?}");
    assert!(etcd.subnets().len() == usize::from(LEASES) + 2);
    for daemon in &daemons {
        assert!(is_well(daemon, peers));
    }
}
