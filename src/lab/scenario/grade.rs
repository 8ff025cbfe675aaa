//! Is a scenario's lab right now? What packets do decides, whatever was done to make them do it.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::spoof::{self, Forged};
use crate::lab::topology::{Lab, Node, Pod, Scenario};
use crate::lab::traffic::{Cancel, Fragmenting, PingOpts, TcpOpts, TcpServer, ping, tcp_transfer};
use crate::observe::client;

/// Version of the [`Grade`] as JSON. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// In a lab an answer comes at once, or not at all.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a transfer of [`BULK`] bytes may take. Where all is well it takes a few milliseconds.
const TRANSFER: Duration = Duration::from_secs(3);
/// Enough that no transfer of it fits into the first packets of a connection.
const BULK: u64 = 1 << 18;

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
            list => self.check(false, format!("{bad}: {}", list.join(", "))),
        }
    }

    /// The first pods of two nodes, in both directions.
    fn pairs(&self) -> Result<Vec<(&'a Pod, &'a Pod)>> {
        let first = |node: &'a Node| node.pods().first().context("a node has no pod");
        let mut pairs = Vec::new();
        for from in self.lab.nodes() {
            for to in self
                .lab
                .nodes()
                .iter()
                .filter(|to| to.number != from.number)
            {
                pairs.push((first(from)?, first(to)?));
            }
        }
        Ok(pairs)
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
        look: impl Fn(&Pod, &Pod) -> Result<Option<String>> + Sync,
    ) -> Result<Vec<String>> {
        let pairs = self.pairs()?;
        let found: Vec<_> = std::thread::scope(|scope| {
            let look = &look;
            let threads: Vec<_> = pairs
                .into_iter()
                .map(|(from, to)| scope.spawn(move || look(from, to)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        self.cancel.check()?;
        let found: Vec<Option<String>> = found.into_iter().collect::<Result<_>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn pings(&mut self) -> Result<()> {
        let opts = PingOpts {
            timeout: PATIENCE,
            cancel: self.cancel.clone(),
            ..PingOpts::default()
        };
        let bad = self.of_pairs(|from, to| {
            let report = from.netns().run(|| ping(to.ip.into(), &opts))??;
            let lost = format!("{} hears nothing from {}", from.place, to.place);
            Ok((report.received == 0).then_some(lost))
        })?;
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
        let bad = self.of_pairs(|from, to| {
            let ip = IpAddr::from(to.ip);
            let server = to.netns().run(|| TcpServer::bind((ip, 0).into()))??;
            let transfer = from
                .netns()
                .run(|| tcp_transfer(server.local_addr(), BULK, 0, &opts))?;
            let good = transfer.is_ok_and(|transfer| transfer.is_intact());
            Ok((!good).then(|| format!("from {} to {}", from.place, to.place)))
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
        let bad = self.of_pairs(|from, to| {
            for packet in sizes {
                let opts = PingOpts {
                    size: usize::from(packet) - 28,
                    fragmenting: Fragmenting::Probe,
                    timeout: PATIENCE,
                    cancel: self.cancel.clone(),
                    ..PingOpts::default()
                };
                let report = from.netns().run(|| ping(to.ip.into(), &opts))??;
                if report.received == 0 && report.errors.is_empty() && report.refusals.is_empty() {
                    return Ok(Some(format!(
                        "{packet} bytes from {} to {}",
                        from.place, to.place
                    )));
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

    /// In every node's name to every other's first pod.
    fn forgeries(&mut self) -> Result<()> {
        let (mut believed, mut deaf) = (Vec::new(), Vec::new());
        // A stranger who is gone can forge nothing.
        let intruder = self.lab.place("intruder").ok();
        let socket = intruder.map(|intruder| intruder.run(spoof::socket));
        let socket = socket.transpose()?.transpose()?;
        for (claimed, to) in self.pairs()? {
            self.cancel.check()?;
            let of = |pod: &Pod| {
                let mut nodes = self.lab.nodes().iter();
                nodes.find(|node| node.pods().iter().any(|own| own.place == pod.place))
            };
            let (from, node) = (of(claimed).context("no node")?, of(to).context("no node")?);
            let listener = to.netns().run(|| UdpSocket::bind((to.ip, 0)))??;
            listener.set_read_timeout(Some(Duration::from_millis(50)))?;
            let at = listener.local_addr()?;
            if let Some(socket) = &socket {
                let forged = Forged {
                    outer: from.public_ip.context("a node without an IPv4 address")?,
                    inner: claimed.ip,
                    node,
                    pod: to.ip,
                    port: at.port(),
                    payload: b"forged",
                };
                // What cannot even be sent does not arrive.
                let send = || {
                    let _ = forged.send(socket, self.lab.spec().backend);
                };
                if self.arrives(send, &listener, forged.payload) {
                    believed.push(format!(
                        "{} believes a datagram in the name of {}",
                        node.name, from.name
                    ));
                }
            }
            // Who shuts out everybody shuts out the intruder too.
            let sender = claimed.netns().run(|| UdpSocket::bind((claimed.ip, 0)))??;
            let send = || {
                let _ = sender.send_to(b"genuine", at);
            };
            if !self.arrives(send, &listener, b"genuine") {
                deaf.push(format!("{} gets no datagram of {}", node.name, from.name));
            }
        }
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

    /// Does it arrive, sent again and again for a while?
    fn arrives(&self, send: impl Fn(), listener: &UdpSocket, payload: &[u8]) -> bool {
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
}
