//! Is a scenario's lab right now? What packets do decides, whatever was done to make them do it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::spoof::{self, Forged};
use crate::lab::topology::{Lab, Node, Pod, Scenario};
use crate::lab::traffic::{Cancel, Fragmenting, PingOpts, TcpOpts, TcpServer, ping, tcp_transfer};
use crate::observe::{client, status::Status};

/// Version of the [`Grade`] as JSON. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// In a lab an answer comes at once, or not at all.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a transfer of [`BULK`] bytes may take. Where all is well it takes a few milliseconds.
const TRANSFER: Duration = Duration::from_secs(3);
/// Enough that no transfer of it fits into the first packets of a connection.
const BULK: u64 = 1 << 18;
/// How many things that are wrong are named; the others are counted.
const LISTED: usize = 6;
/// How many pairs of pods are looked at at the same time, each by a thread.
const AT_ONCE: usize = 64;

/// How a lab was found.
#[derive(Clone, Debug, Serialize)]
pub struct Grade {
    /// [`VERSION`].
    pub version: u32,
    /// The lab.
    pub lab: String,
    /// What was wrong with it.
    pub scenario: Scenario,
    /// All checks passed.
    pub solved: bool,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// It is as it should be.
    pub passed: bool,
    /// What was seen.
    pub text: String,
}

/// Grades the lab of a scenario; tells of each check as it is done.
///
/// # Errors
/// When no scenario is played in it, or the check itself cannot be made.
pub fn grade(lab: &Lab, cancel: &Cancel, tell: &mut dyn FnMut(&Check)) -> Result<Grade> {
    let spec = lab.spec();
    let Some(scenario) = spec.scenario else {
        bail!(
            "no scenario is played in lab {:?}: `overlayd lab up --scenario NAME` builds one",
            spec.name
        );
    };
    let mut grader = Grader {
        lab,
        cancel,
        checks: Vec::new(),
        tell,
    };
    grader.daemons();
    grader.pings()?;
    match scenario {
        Scenario::Mtu => {
            grader.transfers()?;
            grader.large_packets()?;
            grader.put_back();
        }
        Scenario::NoLease => {}
        Scenario::Spoof => grader.forgeries()?,
    }
    let checks = grader.checks;
    Ok(Grade {
        version: VERSION,
        lab: spec.name.clone(),
        scenario,
        solved: checks.iter().all(|check| check.passed),
        checks,
    })
}

/// Two pods of two nodes, and their addresses of one family.
#[derive(Clone, Copy)]
struct Pair<'a> {
    nodes: (&'a Node, &'a Node),
    from: &'a Pod,
    to: &'a Pod,
    /// The sender's.
    own: IpAddr,
    /// The receiver's.
    ip: IpAddr,
}

impl Pair<'_> {
    /// What tells the families apart, where a message needs to.
    fn family(&self) -> &'static str {
        if self.ip.is_ipv6() { " by IPv6" } else { "" }
    }
}

struct Grader<'a> {
    lab: &'a Lab,
    cancel: &'a Cancel,
    checks: Vec<Check>,
    tell: &'a mut dyn FnMut(&Check),
}

impl<'a> Grader<'a> {
    fn check(&mut self, passed: bool, text: String) {
        let check = Check { passed, text };
        (self.tell)(&check);
        self.checks.push(check);
    }

    /// One check of many things: good if nothing is on the list, else what is.
    fn verdict(&mut self, good: &str, bad: &str, list: &[String]) {
        match list {
            [] => self.check(true, good.to_owned()),
            list => {
                let shown = list.iter().take(LISTED).cloned();
                let more = list.len().saturating_sub(LISTED);
                let more = (more > 0).then(|| format!("and {more} more"));
                let shown: Vec<_> = shown.chain(more).collect();
                self.check(false, format!("{bad}: {}", shown.join(", ")));
            }
        }
    }

    /// From every node to every other; each pod sends to one pod there and hears from one, in each of its families.
    fn pairs(&self) -> Vec<Pair<'a>> {
        let mut pairs = Vec::new();
        for from in self.lab.nodes() {
            let others = self.lab.nodes().iter();
            for to in others.filter(|to| to.number != from.number) {
                let most = from.pods().len().max(to.pods().len());
                let senders = from.pods().iter().cycle();
                for (sender, receiver) in senders.zip(to.pods().iter().cycle()).take(most) {
                    let v6 = sender.ipv6.zip(receiver.ipv6);
                    let v6 = v6.map(|(own, ip)| (IpAddr::from(own), IpAddr::from(ip)));
                    let families = [Some((sender.ip.into(), receiver.ip.into())), v6];
                    pairs.extend(families.into_iter().flatten().map(|(own, ip)| Pair {
                        nodes: (from, to),
                        from: sender,
                        to: receiver,
                        own,
                        ip,
                    }));
                }
            }
        }
        pairs
    }

    fn daemons(&mut self) {
        let mut bad = Vec::new();
        for node in self.lab.nodes() {
            match client::status(&self.lab.socket(node.number)) {
                Ok(status) if status["state"] == "ok" => {}
                Ok(_) => bad.push(format!("{} is degraded", node.name)),
                Err(_) => bad.push(format!("{} does not answer", node.name)),
            }
        }
        self.verdict(
            "overlayd is well on every node",
            "overlayd is not well",
            &bad,
        );
    }

    /// Looks at all pairs at the same time, since what hangs takes its time; returns what is wrong with them.
    fn of_pairs(
        &self,
        look: impl Fn(&Pair<'_>) -> Result<Option<String>> + Sync,
    ) -> Result<Vec<String>> {
        let (pairs, look) = (self.pairs(), &look);
        let mut wrong: Vec<String> = Vec::new();
        for pairs in pairs.chunks(AT_ONCE) {
            let found: Vec<_> = std::thread::scope(|scope| {
                let looks = pairs.iter().map(|pair| scope.spawn(move || look(pair)));
                let threads: Vec<_> = looks.collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            });
            self.cancel.check()?;
            let found: Vec<Option<String>> = found.into_iter().collect::<Result<_>>()?;
            wrong.extend(found.into_iter().flatten());
        }
        // Pods of the same nodes may have the same to say.
        let mut said = HashSet::new();
        wrong.retain(|text| said.insert(text.clone()));
        Ok(wrong)
    }

    /// Who is dead answers nobody.
    fn dead(&self) -> Vec<String> {
        let pods = self.lab.nodes().iter().flat_map(Node::dead_pods);
        pods.map(|pod| format!("{} is dead", pod.place)).collect()
    }

    fn pings(&mut self) -> Result<()> {
        let opts = PingOpts {
            timeout: PATIENCE,
            cancel: self.cancel.clone(),
            ..PingOpts::default()
        };
        let mut bad = self.dead();
        bad.extend(self.of_pairs(|pair| {
            let report = pair.from.netns().run(|| ping(pair.ip, &opts))??;
            let (from, to, by) = (&pair.from.place, &pair.to.place, pair.family());
            let lost = format!("{from} hears nothing from {to}{by}");
            Ok((report.received == 0).then_some(lost))
        })?);
        self.verdict(
            "pods of all nodes answer each other's pings",
            "pings are lost",
            &bad,
        );
        Ok(())
    }

    fn transfers(&mut self) -> Result<()> {
        let opts = TcpOpts {
            connect: PATIENCE,
            overall: TRANSFER,
            cancel: self.cancel.clone(),
            ..TcpOpts::default()
        };
        let bad = self.of_pairs(|pair| {
            let (from, to) = (pair.from, pair.to);
            let server = to.netns().run(|| TcpServer::bind((pair.ip, 0).into()))??;
            let transfer = from
                .netns()
                .run(|| tcp_transfer(server.local_addr(), BULK, 0, &opts))?;
            let good = transfer.is_ok_and(|transfer| transfer.is_intact());
            let by = pair.family();
            Ok((!good).then(|| format!("from {} to {}{by}", from.place, to.place)))
        })?;
        self.verdict(
            "TCP carries data from every node to every other",
            "TCP stalls",
            &bad,
        );
        Ok(())
    }

    /// A packet that may not be cut arrives, or its sender is told: nothing vanishes.
    fn large_packets(&mut self) -> Result<()> {
        let overlay = self.lab.spec().overlay_mtu();
        // As large as an interface of any pod may let through, and between what fits and what should.
        let sizes = [self.lab.spec().mtu, overlay, overlay - super::NARROWER / 2];
        let bad = self.of_pairs(|pair| {
            // Of ICMP and of IP.
            let headers = 8 + if pair.ip.is_ipv6() { 40 } else { 20 };
            for packet in sizes {
                let opts = PingOpts {
                    size: usize::from(packet) - headers,
                    fragmenting: Fragmenting::Probe,
                    timeout: PATIENCE,
                    cancel: self.cancel.clone(),
                    ..PingOpts::default()
                };
                let report = pair.from.netns().run(|| ping(pair.ip, &opts))??;
                if report.received == 0 && report.errors.is_empty() && report.refusals.is_empty() {
                    let (from, to, by) = (&pair.from.place, &pair.to.place, pair.family());
                    return Ok(Some(format!("{packet} bytes from {from} to {to}{by}")));
                }
            }
            Ok(None)
        })?;
        let good = "a packet that may not be cut arrives, or its sender is told why not";
        self.verdict(
            good,
            "packets that may not be cut vanish, and nobody is told",
            &bad,
        );
        Ok(())
    }

    /// Where it is not mended, and somebody set an MTU that overlayd has put back: says so, since nothing else does.
    fn put_back(&mut self) {
        if self.checks.iter().all(|check| check.passed) {
            return;
        }
        let nodes = self.lab.nodes().iter().filter(|node| {
            let status = client::status(&self.lab.socket(node.number)).ok();
            let status = status.and_then(|status| serde_json::from_value::<Status>(status).ok());
            status.is_some_and(|status| {
                let ours = format!("set the MTU of {} to ", status.device.name);
                let mut repairs = status.repairs.recent.iter();
                repairs.any(|repair| repair.what.starts_with(&ours))
            })
        });
        let nodes: Vec<_> = nodes.map(|node| node.name.clone()).collect();
        if !nodes.is_empty() {
            self.check(
                false,
                format!(
                    "overlayd has put the MTU of its device back, on {}: the device is its own, so that the number belongs into its configuration (device.mtu), or on eth0, which it follows",
                    nodes.join(", ")
                ),
            );
        }
    }

    /// In every pod's name to pods of every other node.
    fn forgeries(&mut self) -> Result<()> {
        // A stranger who is gone can forge nothing.
        let intruder = self.lab.place("intruder").ok();
        let socket = intruder.map(|intruder| intruder.run(spoof::socket));
        let socket = socket.transpose()?.transpose()?;
        let backend = self.lab.spec().backend;
        let listen = |pair: &Pair<'_>| -> Result<UdpSocket> {
            let listener = pair.to.netns().run(|| UdpSocket::bind((pair.ip, 0)))??;
            listener.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(listener)
        };
        let believed = self.of_pairs(|pair| {
            let (Some(socket), (claimed, node)) = (&socket, pair.nodes) else {
                return Ok(None);
            };
            let listener = listen(pair)?;
            let forged = Forged {
                outer: claimed
                    .public_ip
                    .context("a node without an IPv4 address")?,
                inner: pair.own,
                node,
                pod: SocketAddr::new(pair.ip, listener.local_addr()?.port()),
                payload: b"forged",
            };
            // What cannot even be sent does not arrive.
            let send = || {
                let _ = forged.send(socket, backend);
            };
            let (node, of, by) = (&node.name, &claimed.name, pair.family());
            let text = format!("{node} believes a datagram in the name of {of}{by}");
            Ok(arrives(send, &listener, forged.payload).then_some(text))
        })?;
        // Who shuts out everybody shuts out the intruder too.
        let deaf = self.of_pairs(|pair| {
            let listener = listen(pair)?;
            let at = listener.local_addr()?;
            let sender = pair.from.netns().run(|| UdpSocket::bind((pair.own, 0)))??;
            let send = || {
                let _ = sender.send_to(b"genuine", at);
            };
            let (from, to) = pair.nodes;
            let text = format!(
                "{} gets no datagram of {}{}",
                to.name,
                from.name,
                pair.family()
            );
            Ok((!arrives(send, &listener, b"genuine")).then_some(text))
        })?;
        let good = if socket.is_some() {
            "nothing that the intruder forges reaches a pod"
        } else {
            "there is no intruder any more who could forge anything"
        };
        self.verdict(good, "forged packets reach pods", &believed);
        let good = "what pods really send by UDP arrives";
        self.verdict(good, "what pods really send by UDP is lost", &deaf);
        Ok(())
    }
}

/// Does it arrive, sent again and again for a while?
fn arrives(send: impl Fn(), listener: &UdpSocket, payload: &[u8]) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut buffer = [0; 64];
    while Instant::now() < until {
        send();
        if matches!(listener.recv_from(&mut buffer), Ok((length, _)) if buffer[..length] == *payload)
        {
            return true;
        }
    }
    false
}
