//! The engines, put together: device, sockets and stages, and what the kernel does for them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use encap::{Encapsulation, Sums};
use fdb::{Endpoint, Snapshot};

use super::threads::Work;
use crate::config::{Backend, Config, Df, Engine, Injection as Wish};
use crate::datapath::Forwarding;
use crate::datapath::batched::{Batched, Common, Egress, Ingress, Lane, Pace};
use crate::datapath::classic::Classic;
use crate::datapath::counters::Tally;
use crate::datapath::inbound::{Inbound, Takes};
use crate::datapath::join::Joiner;
use crate::datapath::outbound::Outbound;
use crate::datapath::precedence;
use crate::datapath::stop::Stop;
use crate::inject::{self, Injector, Paths};
use crate::kernel::Netlink;
use crate::kernel::host::Site;
use crate::observe::status::Feature;
use crate::tap;
use crate::underlay::Underlay;
use crate::underlay::receiver::Receiver;
use crate::underlay::sender::Sender;
use crate::underlay::zerocopy;

/// The device as an engine wants it.
pub(super) enum Opened {
    Classic(tap::Queue),
    Batched(tap::offload::Device),
}

impl Opened {
    pub(super) fn open(engine: Engine, name: &str, queues: u16) -> Result<Self, tap::OpenError> {
        match engine {
            Engine::Classic => tap::classic::open(name).map(Opened::Classic),
            Engine::Batched => tap::offload::open(name, queues).map(Opened::Batched),
        }
    }

    /// The same device once more, for other threads.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Opened::Classic(queue) => queue.try_clone().map(Opened::Classic),
            Opened::Batched(device) => device.try_clone().map(Opened::Batched),
        }
    }
}

/// What every engine's threads are made of.
pub(super) struct Plan<'a> {
    pub(super) stop: Arc<Stop>,
    /// What is counted, for each queue.
    pub(super) tally: &'a Tally,
    pub(super) port: u16,
    pub(super) sums: Sums,
    /// How forwarding threads share the processor with other programs.
    pub(super) pace: Pace,
}

impl Plan<'_> {
    fn outbound(&self) -> Outbound {
        Outbound::new(self.port, self.sums)
    }

    fn inbound<E: Encapsulation>(&self, encapsulation: &E, takes: Takes) -> Inbound<E> {
        Inbound::new(encapsulation.clone(), self.port, takes, self.sums)
    }

    pub(super) fn classic<E: Encapsulation>(
        &self,
        queue: tap::Queue,
        underlay: Underlay,
        snapshot: &Snapshot<Forwarding>,
        encapsulation: &E,
    ) -> Vec<(String, Work)> {
        let engine = Classic::new(
            queue,
            underlay,
            self.stop.clone(),
            snapshot.reader(),
            self.tally.queues()[0].clone(),
            self.outbound(),
            self.inbound(encapsulation, Takes::Finished),
        );
        vec![("forward".into(), Box::new(move || engine.run()))]
    }

    pub(super) fn batched<E: Encapsulation>(
        &self,
        device: tap::offload::Device,
        sockets: Vec<(Sender, Receiver, Option<Lane>)>,
        snapshot: &Snapshot<Forwarding>,
        encapsulation: &E,
    ) -> io::Result<Vec<(String, Work)>> {
        let takes = device.takes;
        let mut works: Vec<(String, Work)> = Vec::new();
        let queues = device.queues.into_iter().zip(self.tally.queues());
        for ((queue, counters), (sender, receiver, lane)) in queues.zip(sockets) {
            let common = Common {
                device: Arc::new(queue),
                stop: self.stop.clone(),
                counters: counters.clone(),
            };
            let ingress = Ingress::new(
                common.clone(),
                receiver,
                snapshot.reader(),
                self.inbound(encapsulation, takes),
                Joiner::new(self.sums, takes == Takes::TcpAndUdp, self.port),
            );
            let egress = Egress::new(
                common,
                sender,
                lane,
                snapshot.reader(),
                self.outbound(),
                E::HEADER_LEN,
            );
            let engine = Batched::new(egress, ingress, self.pace)?;
            works.push(("forward".into(), Box::new(move || engine.run())));
        }
        Ok(works)
    }
}

/// The injection of superpackets, and the ways to the peers.
pub(super) struct Injection {
    injector: Arc<Injector>,
    paths: Paths,
}

impl Injection {
    /// Sets it up as the configuration wants it, or says why not. That is no error: superpackets are split then.
    pub(super) async fn open<E: Encapsulation>(
        config: &Config,
        netlink: &Netlink,
        device: &str,
        site: &Site,
    ) -> Result<Self, String> {
        match (config.datapath.injection, &config.backend) {
            (Wish::Off, _) => return Err("datapath.injection is off".into()),
            // On one machine a superpacket would reach flanneld whole, which cannot take it.
            (Wish::Auto, Backend::Udp(_)) => {
                return Err("the udp backend's peers may be flanneld; datapath.injection = \"on\" if none is".into());
            }
            _ => {}
        }
        let spec = inject::Spec {
            name: inject::device_name(device),
            underlay: site.iface.index,
            sources: site.bound,
            port: config.backend.port(),
            header_len: E::HEADER_LEN,
            dont_fragment: config.datapath.df == Df::Set,
        };
        let injector = Injector::open(netlink, &spec).await;
        let injector = injector.map_err(|error| error.to_string())?;
        let paths = Paths::watch(spec.underlay, spec.sources).await;
        Ok(Injection {
            injector: Arc::new(injector),
            paths: paths.map_err(|error| error.to_string())?,
        })
    }
}

/// May the forwarding threads go before other programs?
fn precedence(by: i32) -> Feature {
    if by == 0 {
        return Feature::new("nice", false, "datapath.nice is 0");
    }
    match precedence::probe(by) {
        Ok((usual, streaming)) => {
            let note = format!("{usual}, and {streaming} while streams come in");
            Feature::new("nice", streaming != usual, &note)
        }
        Err(error) => {
            tracing::debug!("the forwarding threads keep their nice value: {error}");
            let cure = match error.kind() {
                io::ErrorKind::PermissionDenied => " without CAP_SYS_NICE",
                _ => "",
            };
            let note = format!(
                "a change by {by} was refused{cure} ({error}): streams come in slower where programs share a processor"
            );
            Feature::new("nice", false, &note)
        }
    }
}

/// Are empty sockets left alone while streams come in?
fn moderation(pace: Pace) -> Feature {
    let usecs = pace.rx_delay.as_micros();
    let note = match usecs {
        _ if pace.rests() => {
            format!("{usecs}: empty sockets are left alone for so long while streams come in")
        }
        0 => "datapath.rx-usecs is 0".into(),
        _ => "datapath.busy-poll is set".into(),
    };
    Feature::new("rx-usecs", pace.rests(), &note)
}

/// What the kernel does for an engine, and what it does not: found out at start, some of it while running.
pub(super) struct Extras {
    fixed: Vec<Feature>,
    segmentation: Option<Arc<AtomicBool>>,
    zerocopy: Option<Arc<zerocopy::Report>>,
    injection: Option<Result<Injection, String>>,
}

impl Default for Extras {
    /// An engine that asks nothing of it.
    fn default() -> Self {
        Extras {
            fixed: Vec::new(),
            segmentation: None,
            zerocopy: None,
            injection: None,
        }
    }
}

impl Extras {
    pub(super) fn new(
        device: &tap::offload::Device,
        sender: &Sender,
        receiver: &Receiver,
        injection: Result<Injection, String>,
        pace: Pace,
    ) -> Self {
        let takes = device.takes;
        if let Err(reason) = &injection {
            tracing::debug!("superpackets are split, not injected: {reason}");
        }
        let mut fixed = vec![
            Feature::new(
                "tun-superpackets",
                takes != Takes::Finished,
                match takes {
                    Takes::Finished => "the kernel splits for us (TUNSETOFFLOAD was refused)",
                    Takes::Tcp => "TCP; UDP needs Linux 6.2",
                    Takes::TcpAndUdp => "TCP and UDP",
                },
            ),
            Feature::new(
                "udp-gro",
                receiver.coalescing(),
                "the kernel joins datagrams that we receive (Linux 5.0)",
            ),
            precedence(pace.nice),
            moderation(pace),
        ];
        if device.queues.len() > 1 {
            let queues = device.queues.len();
            let note = format!("{queues}, each with a thread; the kernel keeps a flow on one");
            fixed.push(Feature::new("tun-queues", true, &note));
        }
        Extras {
            fixed,
            segmentation: Some(sender.segmentation()),
            zerocopy: sender.zerocopy(),
            injection: Some(injection),
        }
    }

    /// The way by which superpackets leave whole, if there is one.
    pub(super) fn lane(&self) -> Option<Lane> {
        let injection = self.injection.as_ref()?.as_ref().ok()?;
        let view = injection.paths.reader();
        Some(Lane::new(injection.injector.clone(), view))
    }

    /// From now on these are the peers.
    pub(super) fn set_peers(&self, peers: impl Iterator<Item = Endpoint>) {
        if let Some(Ok(injection)) = &self.injection {
            let ips: Vec<_> = peers.flat_map(|peer| peer.ips()).collect();
            injection.paths.set_peers(ips);
        }
    }

    /// As they are now.
    pub(super) fn features(&self) -> Vec<Feature> {
        let mut all = self.fixed.clone();
        if let Some(segmentation) = &self.segmentation {
            all.push(Feature::new(
                "udp-gso",
                segmentation.load(Relaxed),
                "the kernel cuts trains of datagrams that we send (Linux 4.18)",
            ));
        }
        all.extend(self.zerocopy.iter().flat_map(|report| report.features()));
        match &self.injection {
            None => {}
            Some(Err(reason)) => all.push(Feature::new("injection", false, reason)),
            Some(Ok(injection)) => {
                let view = injection.paths.view();
                let features = view.features();
                let name = injection.injector.name();
                let pays = features.tunnel_csum && (features.tcp4 || features.tcp6);
                let refused = injection.injector.refused();
                let note = match &refused {
                    _ if !pays => "the underlay device does not segment tunnelled superpackets (tx-udp_tnl-csum-segmentation): they are split here".into(),
                    Some(error) => format!(
                        "{name} takes no superpackets ({error}), so they are split here; it is asked again once a second, and a restart makes it anew"
                    ),
                    None => format!(
                        "superpackets leave whole through {name} (peers whose way is known: {})",
                        view.len()
                    ),
                };
                let whole = pays && refused.is_none();
                all.push(Feature::new("injection", whole, &note));
            }
        }
        all
    }
}
