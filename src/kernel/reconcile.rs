//! What shall be against what is: the overlay device, its addresses, and our routes.
//!
//! [`diff`] compares without touching anything; [`Netlink::repair`] does one thing that it found. Who calls them, when,
//! and how often one thing may be repaired, is the daemon's business ([`Ledger`]).
//!
//! What is ours, and what is not:
//!
//! - the overlay device is ours, with its MTU and with the addresses that we gave it. Further addresses and routes that
//!   others hang on it while we run are theirs; what a device that is taken over from an earlier run still has is not
//!   wanted any more;
//! - a route is ours if it carries [`ROUTE_PROTOCOL`] and leads into our device, or through a node to a part of the
//!   overlay network, or was set by this very run. Such a route that is not wanted is left over and goes. One into
//!   another device is another overlayd's, which runs: a dead one's went with its device;
//! - a prefix that somebody else's route held before us is theirs: that is told and left alone. One that we held and
//!   somebody replaced is taken back.

mod ledger;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub use ledger::Ledger;

use super::{Address, Link, Netlink, ROUTE_PROTOCOL, Result, Route, RouteSpec, tolerate};

/// The priority that Linux gives to IPv6 routes without one (IP6_RT_PRIO_USER, include/uapi/linux/ipv6_route.h); of
/// IPv4 routes it is 0.
const IPV6_METRIC: u32 = 1024;

/// How the overlay device shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name.
    pub name: String,
    /// Its index: a device of the same name with another index is another device.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its overlay addresses, each a prefix of its own.
    pub addresses: Vec<IpAddr>,
}

/// What shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The overlay device, up; a backend that does not encapsulate has none.
    pub device: Option<DeviceSpec>,
    /// Our routes, one for each prefix.
    pub routes: Vec<RouteSpec>,
    /// The overlay networks: routes of our protocol in them are ours, whichever run set them.
    pub networks: Vec<IpNet>,
}

/// What is: the namespace's links, addresses, and the routes of its main table.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses, of both families.
    pub addresses: Vec<Address>,
    /// The routes, of both families.
    pub routes: Vec<Route>,
}

/// What was brought about by this run, as far as is known.
#[derive(Clone, Debug, Default)]
pub struct Held {
    device: Option<u32>,
    mtu: Option<u16>,
    up: bool,
    addresses: HashSet<IpAddr>,
    routes: HashMap<IpNet, RouteSpec>,
}

/// One thing that shall be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// The device.
    Device,
    /// Its MTU.
    Mtu,
    /// That it is up.
    Up,
    /// An address of the device.
    Address(IpAddr),
    /// The route to this prefix.
    Route(IpNet),
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Set the device's MTU.
    SetMtu(DeviceSpec),
    /// Give the device an address.
    AddAddress(DeviceSpec, IpAddr),
    /// Take an address of an older lease from the device.
    DelAddress(DeviceSpec, IpNet),
    /// Bring the device up.
    SetUp(DeviceSpec),
    /// Remove a route of ours that is not wanted.
    DelRoute(RouteSpec),
    /// Add a route.
    AddRoute(RouteSpec),
    /// Put a route in the place of the one that is there.
    ReplaceRoute(RouteSpec, Route),
}

/// What cannot be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device is not there.
    DeviceGone,
    /// Somebody else has a route for just this prefix, and had it before us.
    Taken(RouteSpec, Route),
}

/// What there is to do, in order, and what there is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done in this order.
    pub repairs: Vec<Repair>,
    /// To be told.
    pub faults: Vec<Fault>,
}

/// How a route of ours stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    There,
    /// Somebody else has set just the route that we want.
    Theirs,
    /// It is not there.
    Missing,
    /// Another route of ours, or one that replaced ours, is in its place.
    Differs(Route),
    /// Somebody else's route is in its place, and was so before us.
    Taken(Route),
}

/// The routes that are there, by prefix.
pub struct Index<'a>(HashMap<IpNet, Vec<&'a Route>>);

impl Actual {
    /// The link of this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The routes by prefix.
    pub fn index(&self) -> Index<'_> {
        let mut by_prefix: HashMap<IpNet, Vec<&Route>> = HashMap::new();
        for route in &self.routes {
            by_prefix.entry(route.dst).or_default().push(route);
        }
        Index(by_prefix)
    }
}

/// Does `there` lead where `spec` says, by whomever it was set?
fn leads_alike(spec: &RouteSpec, there: &Route) -> bool {
    there.unicast && (there.oif, there.via) == (Some(spec.oif), spec.via) && there.mtu == spec.mtu
}

/// The priority that our route has.
fn metric(prefix: &IpNet) -> u32 {
    match prefix {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => IPV6_METRIC,
    }
}

impl Index<'_> {
    /// How a route of ours stands. `device` is the overlay device's index, if there is one.
    pub fn standing(&self, spec: &RouteSpec, device: Option<u32>, held: &Held) -> Standing {
        let all = self.0.get(&spec.dst).map_or(&[][..], Vec::as_slice);
        // Of equal prefixes the lowest metric wins; those behind ours do not matter.
        let in_the_way = |route: &&&Route| route.metric <= metric(&spec.dst);
        let mut others: Vec<&Route> = Vec::new();
        for there in all.iter().filter(in_the_way) {
            if leads_alike(spec, there) {
                if there.protocol == spec.protocol {
                    // A better one of somebody else's, before it, would still be in the way.
                    if others.iter().all(|other| other.metric >= there.metric) {
                        return Standing::There;
                    }
                    continue;
                }
                // What leads into our own device is nobody else's business.
                if Some(spec.oif) != device {
                    return Standing::Theirs;
                }
            }
            others.push(there);
        }
        let Some(first) = others.into_iter().min_by_key(|route| route.metric) else {
            return Standing::Missing;
        };
        let same_place = first.metric == metric(&spec.dst);
        let ours = first.protocol == ROUTE_PROTOCOL && first.via.is_some()
            || first.oif.is_some() && first.oif == device
            || held.routes.contains_key(&spec.dst);
        if same_place && ours {
            Standing::Differs(first.clone())
        } else {
            Standing::Taken(first.clone())
        }
    }
}

/// What is to be done so that `actual` becomes `desired`, given what this run brought about before.
///
/// The device comes first, since routes need it up and with its addresses: Linux takes the IPv4 routes of a device that
/// goes down, and its IPv6 addresses too, and brings none of them back.
pub fn diff(desired: &Desired, actual: &Actual, held: &Held) -> Plan {
    let mut plan = Plan::default();
    let mut device = None;
    if let Some(spec) = &desired.device {
        match actual.link(spec.index) {
            None => plan.faults.push(Fault::DeviceGone),
            Some(link) => {
                device = Some(spec.index);
                plan.device(spec, link, actual, held);
            }
        }
    }
    plan.leftovers(desired, actual, held);
    let index = actual.index();
    for spec in &desired.routes {
        // Nothing leads into a device that is not there.
        if device.is_none() && desired.device.as_ref().is_some_and(|d| d.index == spec.oif) {
            continue;
        }
        match index.standing(spec, device, held) {
            Standing::There | Standing::Theirs => {}
            Standing::Missing => plan.repairs.push(Repair::AddRoute(spec.clone())),
            Standing::Differs(there) => {
                plan.repairs.push(Repair::ReplaceRoute(spec.clone(), there))
            }
            Standing::Taken(there) => plan.faults.push(Fault::Taken(spec.clone(), there)),
        }
    }
    plan
}

impl Plan {
    fn device(&mut self, spec: &DeviceSpec, link: &Link, actual: &Actual, held: &Held) {
        if link.mtu != u32::from(spec.mtu) {
            self.repairs.push(Repair::SetMtu(spec.clone()));
        }
        let there: Vec<_> = actual
            .addresses
            .iter()
            .filter(|address| address.ifindex == spec.index && address.scope == 0)
            .filter_map(|address| IpNet::new(address.ip, address.prefix_len).ok())
            .collect();
        // Added before others go: a device that loses its last address loses its routes as well.
        for ip in &spec.addresses {
            if !there.contains(&IpNet::from(*ip)) {
                self.repairs.push(Repair::AddAddress(spec.clone(), *ip));
            }
        }
        let taken_over = held.device != Some(spec.index);
        for address in there {
            let wanted = spec.addresses.iter().any(|ip| IpNet::from(*ip) == address);
            if !wanted && (taken_over || held.addresses.contains(&address.addr())) {
                self.repairs.push(Repair::DelAddress(spec.clone(), address));
            }
        }
        if !link.up {
            self.repairs.push(Repair::SetUp(spec.clone()));
        }
    }

    fn leftovers(&mut self, desired: &Desired, actual: &Actual, held: &Held) {
        let wanted: HashSet<IpNet> = desired.routes.iter().map(|spec| spec.dst).collect();
        let device = desired.device.as_ref().map(|device| device.index);
        for there in &actual.routes {
            let Some(oif) = there.oif else { continue };
            let ours = Some(oif) == device
                || held.routes.get(&there.dst).is_some_and(|s| s.oif == oif)
                || there.via.is_some()
                    && desired.networks.iter().any(|net| net.contains(&there.dst));
            if ours && there.protocol == ROUTE_PROTOCOL && !wanted.contains(&there.dst) {
                self.repairs.push(Repair::DelRoute(RouteSpec {
                    via: there.via,
                    ..RouteSpec::new(there.dst, oif)
                }));
            }
        }
    }
}

impl Held {
    /// Was just this brought about before, so that somebody else undid it?
    pub fn had(&self, repair: &Repair) -> bool {
        let same_device = |spec: &DeviceSpec| self.device == Some(spec.index);
        match repair {
            Repair::SetMtu(spec) => same_device(spec) && self.mtu == Some(spec.mtu),
            Repair::SetUp(spec) => same_device(spec) && self.up,
            Repair::AddAddress(spec, ip) => same_device(spec) && self.addresses.contains(ip),
            Repair::AddRoute(spec) | Repair::ReplaceRoute(spec, _) => {
                self.routes.get(&spec.dst) == Some(spec)
            }
            Repair::DelAddress(..) | Repair::DelRoute(_) => false,
        }
    }

    /// From now on what `desired` says is so, but for the objects that `fails` names. What was to be undone and could
    /// not be is remembered as well.
    pub fn learn(&mut self, desired: &Desired, fails: &HashSet<Object>) {
        match &desired.device {
            Some(spec) if !fails.contains(&Object::Device) => {
                self.device = Some(spec.index);
                self.up |= !fails.contains(&Object::Up);
                if !fails.contains(&Object::Mtu) {
                    self.mtu = Some(spec.mtu);
                }
                self.addresses.retain(|ip| {
                    spec.addresses.contains(ip) || fails.contains(&Object::Address(*ip))
                });
                let good = spec.addresses.iter().copied();
                self.addresses
                    .extend(good.filter(|ip| !fails.contains(&Object::Address(*ip))));
            }
            _ => self.forget_device(),
        }
        self.routes
            .retain(|prefix, _| fails.contains(&Object::Route(*prefix)));
        for spec in &desired.routes {
            if !fails.contains(&Object::Route(spec.dst)) {
                self.routes.insert(spec.dst, spec.clone());
            }
        }
    }

    /// The device is another one now.
    pub fn forget_device(&mut self) {
        if let Some(index) = self.device.take() {
            self.routes.retain(|_, spec| spec.oif != index);
        }
        (self.mtu, self.up) = (None, false);
        self.addresses.clear();
    }

    /// The routes that lead elsewhere than into the device, and so do not go with it.
    pub fn outliving(&self) -> impl Iterator<Item = &RouteSpec> {
        let device = self.device;
        self.routes
            .values()
            .filter(move |spec| Some(spec.oif) != device)
    }
}

impl Repair {
    /// What it mends.
    pub fn object(&self) -> Object {
        match self {
            Repair::SetMtu(_) => Object::Mtu,
            Repair::SetUp(_) => Object::Up,
            Repair::AddAddress(_, ip) => Object::Address(*ip),
            Repair::DelAddress(_, address) => Object::Address(address.addr()),
            Repair::AddRoute(spec) | Repair::ReplaceRoute(spec, _) | Repair::DelRoute(spec) => {
                Object::Route(spec.dst)
            }
        }
    }
}

impl Netlink {
    /// The namespace's links, addresses and routes, as they are now.
    ///
    /// # Errors
    /// When the kernel refuses a question.
    pub async fn actual(&self) -> Result<Actual> {
        Ok(Actual {
            links: self.links().await?,
            addresses: self.addresses().await?,
            routes: self.routes().await?,
        })
    }

    /// Does one thing. What is so by now is no error.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub async fn repair(&self, repair: &Repair) -> Result<()> {
        match repair {
            Repair::SetMtu(spec) => self.set_mtu(spec.index, spec.mtu.into()).await,
            Repair::SetUp(spec) => self.set_up(spec.index).await,
            Repair::AddAddress(spec, ip) => {
                let added = self.add_address(spec.index, IpNet::from(*ip), true).await;
                tolerate(added, super::Error::is_exists)
            }
            Repair::DelAddress(spec, address) => {
                let gone = self.del_address(spec.index, *address).await;
                tolerate(gone, super::Error::is_not_found)
            }
            Repair::AddRoute(spec) => self.add_route(spec).await,
            Repair::ReplaceRoute(spec, _) => self.replace_route(spec).await,
            Repair::DelRoute(spec) => {
                tolerate(self.del_route(spec).await, super::Error::is_not_found)
            }
        }
    }
}
