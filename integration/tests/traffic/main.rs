//! The lab's probes against the kernel itself: a client, a router and a server in namespaces of their own. Needs root.
//!
//! ```text
//! client  10.9.1.2  ── mtu 1500 ──  10.9.1.1  router  10.9.2.1  ── mtu 1400 ──  10.9.2.2  server
//!         fd09:1::2                 fd09:1::1         fd09:2::1                 fd09:2::2
//!                                             10.9.4.9 and fd09:4::9: neighbours that swallow everything
//! ```

#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

mod icmp;
mod time;
mod transfer;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlayd::kernel::{NetNs, Netlink, RouteSpec, sysctl};
use overlayd::lab::traffic::{PingOpts, PingReport, ping};

struct Bed {
    client: NetNs,
    router: NetNs,
    server: NetNs,
    hole: NetNs,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

impl Bed {
    fn new() -> Self {
        let make = |router: bool| {
            let ns = NetNs::create_unnamed().expect("these tests need root");
            ns.run(|| {
                // No waiting for duplicate address detection of addresses that are ours alone.
                sysctl::write("net.ipv6.conf.default.accept_dad", "0").unwrap();
                if router {
                    sysctl::write("net.ipv4.ip_forward", "1").unwrap();
                    sysctl::write("net.ipv6.conf.all.forwarding", "1").unwrap();
                }
            })
            .unwrap();
            ns
        };
        let bed = Self {
            client: make(false),
            router: make(true),
            server: make(false),
            hole: make(false),
        };
        block_on(bed.wire());
        bed.settle();
        bed
    }

    /// Waits until packets flow: the kernel notices carriers, and neighbours each other, in its own time.
    fn settle(&self) {
        let quick = PingOpts {
            count: 1,
            timeout: Duration::from_millis(50),
            ..PingOpts::default()
        };
        let start = Instant::now();
        for dst in SERVER.into_iter().chain(["10.9.1.1", "fd09:1::1"]) {
            while !self.ping(dst, &quick).all_answered() {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "{dst} does not answer"
                );
            }
        }
    }

    async fn wire(&self) {
        let (client, router, server) = (
            Netlink::open_in(&self.client).unwrap(),
            Netlink::open_in(&self.router).unwrap(),
            Netlink::open_in(&self.server).unwrap(),
        );
        router
            .add_veth("left", "eth0", Some(&self.client))
            .await
            .unwrap();
        router
            .add_veth("right", "eth0", Some(&self.server))
            .await
            .unwrap();
        router
            .add_veth("hole", "eth0", Some(&self.hole))
            .await
            .unwrap();
        let hole = Netlink::open_in(&self.hole).unwrap();
        let end = hole.link("eth0").await.unwrap().unwrap();
        hole.set_up(end.index).await.unwrap();
        for (netlink, name, mtu, v4, v6) in [
            (&client, "lo", 65_536, "127.0.0.1/8", "::1/128"),
            (&server, "lo", 65_536, "127.0.0.1/8", "::1/128"),
            (&client, "eth0", 1500, "10.9.1.2/24", "fd09:1::2/64"),
            (&router, "left", 1500, "10.9.1.1/24", "fd09:1::1/64"),
            (&router, "right", 1400, "10.9.2.1/24", "fd09:2::1/64"),
            (&server, "eth0", 1400, "10.9.2.2/24", "fd09:2::2/64"),
            (&router, "hole", 1500, "10.9.4.1/24", "fd09:4::1/64"),
        ] {
            let index = netlink.link(name).await.unwrap().unwrap().index;
            netlink.set_mtu(index, mtu).await.unwrap();
            netlink.set_up(index).await.unwrap();
            for address in [v4, v6] {
                let added = netlink
                    .add_address(index, address.parse().unwrap(), true)
                    .await;
                // The kernel gives a loopback its own addresses when it comes up.
                assert!(added.is_ok() || name == "lo", "{added:?}");
            }
        }
        // Their Ethernet addresses are known, but they hold no IP address and forward nothing.
        let index = router.link("hole").await.unwrap().unwrap().index;
        for nobody in ["10.9.4.9", "fd09:4::9"] {
            router
                .add_neighbour(index, ip(nobody), end.mac.unwrap())
                .await
                .unwrap();
        }
        for (netlink, v4, v6) in [
            (&client, "10.9.1.1", "fd09:1::1"),
            (&server, "10.9.2.1", "fd09:2::1"),
        ] {
            let index = netlink.link("eth0").await.unwrap().unwrap().index;
            for (dst, via) in [("0.0.0.0/0", v4), ("::/0", v6)] {
                let mut route = RouteSpec::new(dst.parse().unwrap(), index);
                route.via = Some(ip(via));
                netlink.add_route(&route).await.unwrap();
            }
        }
    }

    /// Pings from the client.
    fn ping(&self, dst: &str, opts: &PingOpts) -> PingReport {
        self.client.run(|| ping(ip(dst), opts)).unwrap().unwrap()
    }
}

const SERVER: [&str; 2] = ["10.9.2.2", "fd09:2::2"];
