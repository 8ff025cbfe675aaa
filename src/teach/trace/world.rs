//! The places that a trace can look into, and what names and addresses mean there.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use ipnet::Ipv4Net;

use super::tables::runtime;
use crate::kernel::{NetNs, Netlink};
use crate::lab::topology::{DEFAULT_NAME, Lab, Layer, Node, Pod, PodPlan, Stage};
use crate::lab::{container, holder, state};

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A lab's pod: its node's and its own number.
    Pod(u8, u8),
    /// A lab's node.
    Node(u8),
    /// The lab's underlay.
    Underlay,
    /// The router between the segments of the lab's underlay.
    Router,
    /// This host.
    Host,
    /// A network namespace that hangs on this host, as a pod's does.
    Guest,
}

/// A network namespace that can be looked into.
#[derive(Clone, Debug)]
pub struct Place {
    /// `node1/pod2`
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Itself.
    pub namespace: NetNs,
    /// The control socket of the overlayd that runs there, or should.
    pub socket: Option<PathBuf>,
    /// Of a lab's pod: which of its processes have ended, its holder or containers. What is left keeps the namespace.
    pub ended: Vec<String>,
}

/// One end of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which place it is, if it is one of ours.
    pub place: Option<usize>,
    /// The address. Of the source, `None`: the one that its kernel takes.
    pub ip: Option<IpAddr>,
}

/// Where packets can be traced.
#[derive(Clone, Debug)]
pub struct World {
    /// The lab's name; `None` on a host.
    pub lab: Option<String>,
    /// The places, this host or the underlay first.
    pub places: Vec<Place>,
    /// Where the marked packet starts.
    pub source: End,
    /// Where it is to go.
    pub destination: End,
    /// The underlay's devices that belong to its second segment, behind the router.
    pub beyond: Vec<String>,
    /// What a lab that is still being built lacks for a packet between these ends.
    pub unbuilt: Option<Unbuilt>,
    /// Daemons should run at its nodes.
    pub daemons: bool,
    /// The destination is a pod that is dead, with this name: no namespace of it is left.
    pub dead: Option<String>,
}

/// What a lab is not built to yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbuilt {
    /// To which stage it is built.
    pub stage: Stage,
    /// Which one is wanted.
    pub wanted: Stage,
    /// The command that builds the next one.
    pub command: String,
}

impl std::fmt::Display for Unbuilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brings = match self.wanted {
            Stage::Isolated => "nodes and pods",
            Stage::Veth => "a cable and an address for each pod",
            Stage::Bridge => "a bridge on each node, the pods' cables plugged into it",
            Stage::Routed => "default routes in the pods, nodes that forward",
            Stage::Overlay => "overlayd on every node, and the way to the other nodes' pods",
        };
        write!(
            f,
            "the lab is built to stage {} only; stage {} brings {brings}: `{}`",
            self.stage, self.wanted, self.command
        )?;
        let between = Stage::ALL.into_iter();
        let steps = between.filter(|stage| *stage > self.stage && *stage <= self.wanted);
        let steps: Vec<_> = steps.map(|stage| stage.to_string()).collect();
        match steps.len() {
            0 | 1 => Ok(()),
            n => write!(f, ", {n} times ({})", steps.join(", ")),
        }
    }
}

/// What the two ends are called.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    /// Where the packet starts: a name or an address.
    pub source: &'a str,
    /// Where it is to go: a name or an address.
    pub destination: &'a str,
    /// Names stand for their IPv6 addresses.
    pub ipv6: bool,
    /// A foreign source address for the packet.
    pub spoof: Option<IpAddr>,
}

impl Names<'_> {
    /// Do addresses that were given want IPv6? Where only names were given, the flag says.
    fn wants_ipv6(&self) -> bool {
        let given = [self.destination, self.source].into_iter();
        let mut given = given.filter_map(|text| text.parse::<IpAddr>().ok());
        let first = given.next().or(self.spoof);
        first.map_or(self.ipv6, |ip| ip.is_ipv6())
    }
}

impl World {
    /// The places of a lab.
    ///
    /// # Errors
    /// When a name or the source address is none of the lab's.
    pub fn of_lab(lab: &Lab, names: &Names<'_>) -> Result<Self> {
        let ipv6 = names.wants_ipv6();
        let mut places = vec![Place {
            name: "underlay".into(),
            role: Role::Underlay,
            namespace: lab.place("underlay")?,
            socket: None,
            ended: Vec::new(),
        }];
        let running = holder::processes(&lab.spec().name)?;
        if lab.spec().layer == Layer::L3 {
            places.push(Place {
                name: "router".into(),
                role: Role::Router,
                namespace: lab.place("router")?,
                socket: None,
                ended: Vec::new(),
            });
        }
        for node in lab.nodes() {
            places.push(Place {
                name: node.name.clone(),
                role: Role::Node(node.number),
                namespace: node.netns().clone(),
                socket: Some(lab.socket(node.number)),
                ended: Vec::new(),
            });
            places.extend(node.pods().iter().map(|pod| Place {
                name: pod.place.clone(),
                role: Role::Pod(node.number, pod.number),
                namespace: pod.netns().clone(),
                socket: None,
                ended: container::ended(&pod.place, &running),
            }));
        }
        let find = |text: &str| lab_end(lab, &places, text, ipv6);
        if let Some(pod) = dead(lab, names.source) {
            bail!(
                "{} is dead: all its processes have ended, and its network namespace with them, so nothing starts there (`{}` builds it anew)",
                pod.place,
                state::command(&lab.spec().name, "revive")
            );
        }
        let source = find(names.source)?;
        let Some(start) = source.place else {
            bail!(
                "{} is no address of lab {:?}, so nobody there can send from it: name a pod or a node, and add `--spoof {0}` to have it pretend",
                names.source,
                lab.spec().name
            );
        };
        let dead = dead(lab, names.destination);
        let destination = match &dead {
            Some(pod) => End {
                place: None,
                ip: Some(dead_ip(pod, names.destination, ipv6)?),
            },
            None => find(names.destination)?,
        };
        let spoofed = names.spoof.map(|ip| find(&ip.to_string())).transpose()?;
        let (name, stage) = (&lab.spec().name, lab.spec().stage);
        let named = match name.as_str() {
            DEFAULT_NAME => String::new(),
            name => format!(" --name {name}"),
        };
        let mut roles = vec![places[start].role];
        let dead_role = dead
            .as_ref()
            .and_then(|pod| Some(Role::Pod(node_of(lab, pod)?, pod.number)));
        roles.extend(
            destination
                .place
                .map(|place| places[place].role)
                .or(dead_role),
        );
        let wanted = wanted(lab, &roles, destination.ip);
        let unbuilt = (stage < wanted).then(|| Unbuilt {
            stage,
            wanted,
            command: format!("overlayd lab next{named} --explain"),
        });
        let world = Self {
            lab: Some(name.clone()),
            beyond: beyond(lab),
            unbuilt,
            daemons: lab.spec().runs_daemons(),
            dead: dead.map(|pod| pod.place),
            source: End {
                place: Some(start),
                // A program on a node that names no source gets the one that the kernel takes.
                ip: source.ip.filter(|_| {
                    names.source != places[start].name
                        || matches!(places[start].role, Role::Pod(..))
                }),
            },
            destination,
            places,
        };
        Ok(world.without_strangers(spoofed.and_then(|end| end.place)))
    }

    /// Pods that have no part in it are left out: a lab may have tens of thousands. Where the destination is nobody's, a
    /// rule may send the packet on to anybody: then a few are kept.
    fn without_strangers(mut self, spoofed: Option<usize>) -> Self {
        const FEW: usize = 40;
        if self.destination.place.is_none() && self.places.len() <= FEW {
            return self;
        }
        let ends = [self.source.place, self.destination.place, spoofed];
        let mut kept = Vec::new();
        for (index, place) in self.places.iter().enumerate() {
            if !matches!(place.role, Role::Pod(..)) || ends.contains(&Some(index)) {
                kept.push(index);
            }
        }
        let moved = |end: &mut End| {
            end.place = end
                .place
                .and_then(|old| kept.iter().position(|k| *k == old));
        };
        moved(&mut self.source);
        moved(&mut self.destination);
        self.places = kept.iter().map(|k| self.places[*k].clone()).collect();
        self
    }

    /// This host, and the namespaces of its processes that hang on it and hold one of the two addresses, as pods do.
    ///
    /// # Errors
    /// When an end is no address, or the source is none of this host.
    pub fn of_host(socket: &Path, names: &Names<'_>) -> Result<Self> {
        let address = |text: &str| -> Result<IpAddr> {
            text.parse().ok().with_context(|| {
                format!("{text:?} is no IP address, and names are known only in a lab (`overlayd lab up` builds one)")
            })
        };
        let (from, to) = (address(names.source)?, address(names.destination)?);
        let mut places = vec![Place {
            name: "this host".into(),
            role: Role::Host,
            namespace: NetNs::current()?,
            socket: Some(socket.to_owned()),
            ended: Vec::new(),
        }];
        let runtime = runtime()?;
        runtime.block_on(add_guests(&mut places, &[from, to]))?;
        let holder = |ip: IpAddr| -> Result<Option<usize>> {
            for (index, place) in places.iter().enumerate() {
                if runtime.block_on(holds(&place.namespace, &[ip]))? {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        };
        let Some(start) = holder(from)? else {
            bail!(
                "{from} is no address of this host, nor of a network namespace that hangs on it: the packet must start here"
            );
        };
        let destination = holder(to)?;
        Ok(Self {
            lab: None,
            beyond: Vec::new(),
            unbuilt: None,
            daemons: true,
            dead: None,
            source: End {
                place: Some(start),
                ip: Some(from),
            },
            destination: End {
                place: destination,
                ip: Some(to),
            },
            places,
        })
    }

    /// Why a packet could not even be prepared, where it is that its sender does not have the address.
    pub(super) fn without_address(
        &self,
        place: usize,
        ip: Option<IpAddr>,
        error: anyhow::Error,
    ) -> anyhow::Error {
        let errno = error.downcast_ref::<std::io::Error>();
        let errno = errno.and_then(std::io::Error::raw_os_error);
        let (Some(libc::EADDRNOTAVAIL), Some(ip)) = (errno, ip) else {
            return error;
        };
        let first = match self.places[place].role {
            Role::Pod(..) => Stage::Veth,
            _ => Stage::Bridge,
        };
        let unbuilt = self.unbuilt.clone().filter(|unbuilt| unbuilt.stage < first);
        let why = match unbuilt {
            Some(unbuilt) => Unbuilt {
                wanted: first,
                ..unbuilt
            }
            .to_string(),
            None => "`ip address`, there, shows what it has".to_owned(),
        };
        anyhow::anyhow!("{} does not have the address {ip}: {why}", self.name(place))
    }

    /// A packet to a group of addresses goes many ways, if it goes at all.
    ///
    /// # Errors
    /// When `dst` is an address of a group, or no address at all.
    pub(super) fn refuse_groups(&self, dst: IpAddr) -> Result<()> {
        let what = match dst {
            _ if dst.is_multicast() => "a multicast address".to_owned(),
            _ if dst.is_unspecified() => "the unspecified address".to_owned(),
            IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address".to_owned(),
            IpAddr::V4(ip) => match self.broadcasting(ip)? {
                Some(place) => format!("the broadcast address of a network of {place}"),
                None => return Ok(()),
            },
            IpAddr::V6(_) => return Ok(()),
        };
        bail!(
            "{dst} is {what}: a trace follows one packet to one place, so name an address of a pod or a node"
        );
    }

    /// A place with a network that has this broadcast address (RFC 919; networks of two addresses have none, RFC 3021).
    fn broadcasting(&self, ip: Ipv4Addr) -> Result<Option<&str>> {
        let runtime = runtime()?;
        for place in &self.places {
            let addresses = runtime
                .block_on(async { Netlink::open_in(&place.namespace)?.addresses().await })?;
            let mut nets = addresses.iter().filter_map(|address| match address.ip {
                IpAddr::V4(own) if address.prefix_len < 31 => {
                    Ipv4Net::new(own, address.prefix_len).ok()
                }
                _ => None,
            });
            if nets.any(|net| net.broadcast() == ip) {
                return Ok(Some(&place.name));
            }
        }
        Ok(None)
    }

    /// The lab is still there: all its names, and what runs in it.
    pub(super) fn stands(&self) -> bool {
        let Some(lab) = &self.lab else { return true };
        self.is_named() && holder::processes(lab).is_ok_and(|there| !there.is_empty())
    }

    /// The names of its namespaces stand for the same as before.
    pub(super) fn is_named(&self) -> bool {
        let named = |place: &&Place| matches!(place.role, Role::Underlay | Role::Node(_));
        let same = |place: &Place| -> std::io::Result<bool> {
            let now = NetNs::open(place.namespace.to_string())?;
            Ok(now.id()? == place.namespace.id()?)
        };
        let mut places = self.places.iter().filter(named);
        places.all(|place| same(place).unwrap_or(false))
    }

    /// What starts a daemon again.
    pub(super) fn restart(&self) -> String {
        match &self.lab {
            Some(lab) => format!("`{}` starts it again", state::command(lab, "revive")),
            None => {
                let socket = self.places.iter().find_map(|place| place.socket.as_ref());
                let asked = socket
                    .map(|socket| format!("nobody answers at the socket {}: ", socket.display()));
                asked.unwrap_or_default()
                    + "if it listens at another, name that (--socket); if it does not run, start it (`overlayd run`), and look into its log"
            }
        }
    }

    /// The name of a place.
    pub fn name(&self, place: usize) -> &str {
        &self.places[place].name
    }
}

/// The second segment's bridge, and what is plugged into it.
fn beyond(lab: &Lab) -> Vec<String> {
    let Some(segment) = lab.spec().segments().into_iter().nth(1) else {
        return Vec::new();
    };
    let nodes = lab.nodes().iter().filter(|node| node.segment == segment);
    let nodes = nodes.map(|node| node.name.clone());
    let own = [segment.bridge, "router-eth1"].map(str::to_owned);
    own.into_iter().chain(nodes).collect()
}

/// To which stage a lab has to be built for a packet between these places to be answered.
fn wanted(lab: &Lab, ends: &[Role], dst: Option<IpAddr>) -> Stage {
    let node = |number| lab.nodes().iter().find(|node| node.number == number);
    let is_public = |number: u8| {
        let ips = node(number).map(|node| {
            [
                node.public_ip.map(IpAddr::from),
                node.public_ipv6.map(IpAddr::from),
            ]
        });
        dst.is_some() && ips.into_iter().flatten().any(|ip| ip == dst)
    };
    let is_gateway = |number: u8| {
        let ips = node(number).map(|node| {
            [
                Some(node.gateway.into()),
                node.ipv6_gateway.map(IpAddr::from),
            ]
        });
        dst.is_some() && ips.into_iter().flatten().any(|ip| ip == dst)
    };
    match *ends {
        [Role::Pod(from, one), Role::Pod(to, other)] if from == to => match one == other {
            true => Stage::Veth,
            false => Stage::Bridge,
        },
        [Role::Pod(from, _), Role::Node(to)] if from == to && is_public(to) => Stage::Routed,
        [Role::Pod(from, _), Role::Node(to)] if from == to && is_gateway(to) => Stage::Bridge,
        [Role::Node(from), Role::Pod(to, _)] if from == to => Stage::Bridge,
        [Role::Node(_), Role::Node(to)] if is_public(to) => Stage::Isolated,
        _ => Stage::Overlay,
    }
}

fn lab_end(lab: &Lab, places: &[Place], text: &str, ipv6: bool) -> Result<End> {
    let at = |role: Role| places.iter().position(|place| place.role == role);
    if let Ok(ip) = text.parse::<IpAddr>() {
        let holder = lab.nodes().iter().find_map(|node| {
            let pod = node.pods().iter().find(|pod| pod_ips(pod).contains(&ip));
            match pod {
                Some(pod) => Some(Role::Pod(node.number, pod.number)),
                None => node_ips(node)
                    .contains(&ip)
                    .then_some(Role::Node(node.number)),
            }
        });
        return Ok(End {
            place: holder.and_then(at),
            ip: Some(ip),
        });
    }
    // It knows how to say what there is.
    lab.place(text)?;
    for node in lab.nodes() {
        let (place, ips) = if node.name == text {
            (Role::Node(node.number), node_ips(node))
        } else if let Some(pod) = node.pods().iter().find(|pod| pod.place == text) {
            (Role::Pod(node.number, pod.number), pod_ips(pod))
        } else {
            continue;
        };
        let ip = ips.into_iter().find(|ip| ip.is_ipv6() == ipv6);
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let ip = ip.with_context(|| format!("{text} has no {family} address"))?;
        return Ok(End {
            place: at(place),
            ip: Some(ip),
        });
    }
    bail!("a packet starts and ends at a node or a pod: {text} is on its way");
}

/// The pod of this name or address, if all its processes have ended.
fn dead(lab: &Lab, text: &str) -> Option<PodPlan> {
    let ip: Option<IpAddr> = text.parse().ok();
    let mut gone = lab.nodes().iter().flat_map(Node::dead_pods);
    let meant = gone.find(|pod| {
        let v6 = pod.ipv6.map(IpAddr::from);
        pod.place == text || ip.is_some() && (ip == Some(pod.ip.into()) || ip == v6)
    });
    meant.cloned()
}

/// The address that a dead pod had: the one given, or that of its name.
fn dead_ip(pod: &PodPlan, text: &str, ipv6: bool) -> Result<IpAddr> {
    match text.parse() {
        Ok(ip) => Ok(ip),
        Err(_) if ipv6 => pod
            .ipv6
            .map(IpAddr::from)
            .with_context(|| format!("{text} has no IPv6 address")),
        Err(_) => Ok(pod.ip.into()),
    }
}

fn node_of(lab: &Lab, pod: &PodPlan) -> Option<u8> {
    let mut nodes = lab.nodes().iter();
    let node = nodes.find(|node| node.dead_pods().any(|dead| dead.place == pod.place))?;
    Some(node.number)
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let v6 = pod.ipv6.map(IpAddr::from);
    [Some(pod.ip.into()), v6].into_iter().flatten().collect()
}

/// A node's addresses; the first of each family is what its name stands for.
fn node_ips(node: &Node) -> Vec<IpAddr> {
    [
        node.public_ip.map(IpAddr::from),
        node.public_ipv6.map(IpAddr::from),
        Some(node.gateway.into()),
        node.ipv6_gateway.map(IpAddr::from),
        Some(node.subnet.network().into()),
        node.ipv6_subnet.map(|net| net.network().into()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn holds(namespace: &NetNs, ips: &[IpAddr]) -> Result<bool> {
    let addresses = Netlink::open_in(namespace)?.addresses().await?;
    Ok(addresses.iter().any(|address| ips.contains(&address.ip)))
}

/// Namespaces of processes of this machine that a cable (veth) connects with the first place.
async fn add_guests(places: &mut Vec<Place>, ips: &[IpAddr]) -> Result<()> {
    let here = Netlink::open_in(&places[0].namespace)?;
    let ends: HashSet<i32> = here
        .links()
        .await?
        .iter()
        .filter_map(|link| link.lower_ns)
        .collect();
    let mut known = HashSet::from([places[0].namespace.id()?]);
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ends meanwhile cannot be looked at.
        let Ok(namespace) = NetNs::of_process(pid) else {
            continue;
        };
        if !known.insert(namespace.id()?) {
            continue;
        }
        let connected = here
            .id_of(&namespace)
            .await?
            .is_some_and(|id| ends.contains(&id));
        if connected && holds(&namespace, ips).await? {
            let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            places.push(Place {
                name: format!("namespace of pid {pid} ({})", program.trim_end()),
                role: Role::Guest,
                namespace,
                socket: None,
                ended: Vec::new(),
            });
        }
    }
    Ok(())
}
