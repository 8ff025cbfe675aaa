//! Repairs and faults in words, for the log and for status.

use std::fmt;

use ipnet::IpNet;

use super::{Actual, Fault, Object, Repair};
use crate::kernel::{Route, RouteSpec};

impl Actual {
    /// A link's name, or its number where it is gone.
    pub fn name(&self, index: u32) -> String {
        self.link(index)
            .map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }

    /// A route of ours as `ip route` would write it: `10.244.2.0/24 via 10.99.0.2 dev eth0`.
    pub fn tell_spec(&self, spec: &RouteSpec) -> String {
        let via = spec
            .via
            .map(|via| format!(" via {via}"))
            .unwrap_or_default();
        let mtu = spec
            .mtu
            .map(|mtu| format!(" mtu {mtu}"))
            .unwrap_or_default();
        format!("{}{via} dev {}{mtu}", spec.dst, self.name(spec.oif))
    }

    /// A route that is there, in the same way, with its origin.
    pub fn tell_route(&self, route: &Route) -> String {
        let via = route
            .via
            .map(|via| format!(" via {via}"))
            .unwrap_or_default();
        let dev = match route.oif {
            Some(oif) if route.unicast => format!(" dev {}", self.name(oif)),
            // A blackhole, say; those of IPv6 carry the loopback device.
            _ => " that refuses".into(),
        };
        let mtu = route
            .mtu
            .map(|mtu| format!(" mtu {mtu}"))
            .unwrap_or_default();
        format!("{}{via}{dev}{mtu} proto {}", route.dst, route.protocol)
    }

    /// The command that removes somebody's route.
    fn removal(&self, route: &Route) -> String {
        let family = match route.dst {
            IpNet::V4(_) => "",
            IpNet::V6(_) => "-6 ",
        };
        let dev = route.oif.filter(|_| route.unicast);
        let dev = dev.map(|oif| format!(" dev {}", self.name(oif)));
        format!(
            "ip {family}route del {}{}",
            route.dst,
            dev.unwrap_or_default()
        )
    }
}

impl Repair {
    /// In the past tense. `actual` has the names.
    pub fn tell(&self, actual: &Actual) -> String {
        match self {
            Repair::SetMtu(spec) => format!("set the MTU of {} to {}", spec.name, spec.mtu),
            Repair::SetUp(spec) => format!("brought {} up", spec.name),
            Repair::AddAddress(spec, ip) => format!("gave {} the address {ip}", spec.name),
            Repair::DelAddress(spec, address) => {
                format!("took the left-over address {address} from {}", spec.name)
            }
            Repair::AddRoute(spec) => format!("added the route {}", actual.tell_spec(spec)),
            Repair::ReplaceRoute(spec, there) => format!(
                "put the route {} in the place of {}",
                actual.tell_spec(spec),
                actual.tell_route(there)
            ),
            Repair::DelRoute(spec) => {
                format!("removed the left-over route {}", actual.tell_spec(spec))
            }
        }
    }
}

impl Fault {
    /// In one sentence, with what to do. `actual` has the names.
    pub fn tell(&self, actual: &Actual) -> String {
        match self {
            Fault::DeviceGone => "the overlay device is gone".into(),
            Fault::Taken(spec, there) => {
                let what = match spec.via {
                    None => format!("cannot lead {} into {}", spec.dst, actual.name(spec.oif)),
                    Some(via) => format!("cannot lead {} to {via}", spec.dst),
                };
                format!(
                    "{what}: there is a route for just this prefix, {}; remove it with `{}`, or choose another prefix",
                    actual.tell_route(there),
                    actual.removal(there)
                )
            }
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Device => f.write_str("the device"),
            Object::Mtu => f.write_str("the device's MTU"),
            Object::Up => f.write_str("the device's being up"),
            Object::Address(ip) => write!(f, "the device's address {ip}"),
            Object::Route(prefix) => write!(f, "the route {prefix}"),
        }
    }
}
