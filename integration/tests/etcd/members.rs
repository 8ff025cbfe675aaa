//! The cluster's members change.

use encap::Family::V4;
use integration::bed::{Bed, Underlay};
use integration::etcd::Etcd;
use overlayd::lab::traffic::Flow;

use super::*;

/// The member that the daemon is connected to, as far as it is well.
fn member<'a>(daemon: &Daemon, members: &'a [Etcd]) -> Option<&'a Etcd> {
    let status = daemon.status();
    let place = status["store"]["place"].as_str().unwrap();
    let is_it = |member: &&Etcd| place.starts_with(&member.endpoint());
    let well = status["state"] == "ok" && status["store"]["reachable"] == true;
    members.iter().find(is_it).filter(|_| well)
}

/// The daemon's member is removed from the cluster, another one joins, and then the next one dies: the lease stays, no
/// packet is lost, and news still arrive.
#[test]
fn members_go_and_come() {
    let bed = Bed::new(2, Underlay::V4);
    let mut members = Etcd::cluster(&bed);
    members[0].configure(VXLAN);
    lease_pods(&bed, &members[0]);
    let endpoints: Vec<String> = (250..254)
        .map(|host| format!("http://10.99.0.{host}:2379"))
        .collect();
    let launch = |node| {
        let config = members[0].config(node);
        Daemon::launch(node, &config.set("store.endpoints", endpoints.clone()))
    };
    let daemons: Vec<Daemon> = bed.nodes().iter().map(launch).collect();
    daemons.iter().for_each(|daemon| {
        await_daemon(daemon);
    });
    until("whole", || whole(&daemons).then_some(()));
    let own = key(&subnet(&daemons[0]));
    let made = members[0].made(&own);
    let to = bed.node(2).pod_ip(V4);
    let flow = bed
        .node(1)
        .run_in_pod(|| Flow::start(to, Duration::from_millis(5)))
        .unwrap();

    let position = |members: &[Etcd]| {
        until("connected to one", || {
            let endpoint = member(&daemons[0], members)?.endpoint();
            members.iter().position(|one| one.endpoint() == endpoint)
        })
    };
    let at = position(&members);
    let removed = members.swap_remove(at);
    members[0].remove(&removed);
    let at = position(&members);
    members.push(members[at].add(&bed, "four", 250));
    let at = position(&members);
    let mut dead = members.swap_remove(at);
    dead.kill();
    position(&members);

    members[0].put(
        "10.244.200.0-24",
        r#"{"PublicIP":"10.99.0.77","BackendType":"vxlan"}"#,
    );
    for daemon in &daemons {
        until("news", || {
            peers(daemon).contains("10.244.200.0/24").then_some(())
        });
    }
    assert_eq!(members[0].made(&own), made, "the same lease all the time");
    assert_eq!(key(&subnet(&daemons[0])), own);
    let report = flow.stop().unwrap();
    assert!(report.sent > 100, "{report:?}");
    assert_eq!((report.lost, report.refused), (0, 0), "{report:?}");
}
