//! The routes document: what `overlayd routes` shows and `--json` prints.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::kernel::ROUTE_PROTOCOL;
use crate::kernel::reconcile::{Actual, Desired, Held, Standing};
use crate::lease::sync::Objection;

/// Version of the document. Fields may be added within a version, none renamed or removed.
pub const VERSION: u32 = 1;

/// The whole document.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Routes {
    /// [`VERSION`].
    pub version: u32,
    /// The protocol number that marks our routes.
    pub protocol: u8,
    /// What we want in the kernel's main table.
    pub routes: Vec<Row>,
    /// Peers that there can be no route to.
    pub refused: Vec<Objection>,
}

/// One route that we want.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Row {
    /// The destinations.
    pub prefix: IpNet,
    /// The next hop: a peer's public IP. Without one, into the overlay device.
    pub via: Option<IpAddr>,
    /// The device it leads into.
    pub device: String,
    /// The largest packet in bytes, where the route limits it.
    pub mtu: Option<u32>,
    /// How it stands.
    pub state: State,
    /// What is there instead, as `ip route` would write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// How a route stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Ok,
    /// Just this route is there, set by another program: it does, and we do not touch it.
    Theirs,
    /// It is not there: about to be added, or refused by the kernel (`overlayd status` says why).
    Missing,
    /// Another one is in its place, about to be replaced.
    Differs,
    /// Somebody else's route had its place before us.
    Taken,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Theirs => "theirs",
            State::Missing => "MISSING",
            State::Differs => "DIFFERS",
            State::Taken => "TAKEN",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            State::Ok => "it is there",
            State::Theirs => "set by another program, which does: we leave it alone",
            State::Missing => "it is not there",
            State::Differs => "another one is in its place",
            State::Taken => "somebody else's route had its place before us",
        }
    }
}

impl Routes {
    /// How the routes of `desired` stand in `actual`.
    pub fn new(desired: &Desired, held: &Held, actual: &Actual, refused: &[Objection]) -> Self {
        let index = actual.index();
        let device = desired.device.as_ref().map(|device| device.index);
        let row = |spec| {
            let (state, instead) = match index.standing(spec, device, held) {
                Standing::There => (State::Ok, None),
                Standing::Theirs => (State::Theirs, None),
                Standing::Missing => (State::Missing, None),
                Standing::Differs(there) => (State::Differs, Some(there)),
                Standing::Taken(there) => (State::Taken, Some(there)),
            };
            Row {
                prefix: spec.dst,
                via: spec.via,
                device: actual.name(spec.oif),
                mtu: spec.mtu,
                state,
                instead: instead.map(|there| actual.tell_route(&there)),
            }
        };
        Routes {
            version: VERSION,
            protocol: ROUTE_PROTOCOL,
            routes: desired.routes.iter().map(row).collect(),
            refused: refused.to_vec(),
        }
    }

    /// Is every route as we want it?
    pub fn is_well(&self) -> bool {
        let good = |row: &Row| matches!(row.state, State::Ok | State::Theirs);
        self.refused.is_empty() && self.routes.iter().all(good)
    }

    /// The document for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, to: &mut String) -> std::fmt::Result {
        if self.routes.is_empty() {
            writeln!(to, "no routes are wanted")?;
        } else {
            let width = |of: &dyn Fn(&Row) -> usize, title: usize| {
                self.routes.iter().map(of).max().unwrap_or(0).max(title)
            };
            let via = |row: &Row| row.via.map_or_else(|| "-".into(), |via| via.to_string());
            let mtu = |row: &Row| row.mtu.map_or_else(|| "-".into(), |mtu| mtu.to_string());
            let a = width(&|row| row.prefix.to_string().len(), 6);
            let b = width(&|row| via(row).len(), 3);
            let c = width(&|row| row.device.len(), 6);
            writeln!(
                to,
                "{:a$}  {:b$}  {:c$}  {:>5}  state",
                "prefix", "via", "device", "MTU"
            )?;
            for row in &self.routes {
                let (prefix, via, mtu) = (row.prefix.to_string(), via(row), mtu(row));
                let state = row.state.word();
                writeln!(
                    to,
                    "{prefix:a$}  {via:b$}  {:c$}  {mtu:>5}  {state}",
                    row.device
                )?;
                if let Some(instead) = &row.instead {
                    writeln!(to, "    {}: {instead}", row.state.meaning())?;
                } else if row.state != State::Ok {
                    writeln!(to, "    {}", row.state.meaning())?;
                }
            }
        }
        if !self.refused.is_empty() {
            writeln!(to, "\nno route to")?;
            for objection in &self.refused {
                writeln!(to, "  {}: {}", objection.subject, objection.reason)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_shows_each_route_and_what_is_in_its_place() {
        let row = |prefix: &str, via: Option<&str>, state, instead: Option<&str>| Row {
            prefix: prefix.parse().unwrap(),
            via: via.map(|ip| ip.parse().unwrap()),
            device: if via.is_some() { "eth0" } else { "overlay0" }.into(),
            mtu: None,
            state,
            instead: instead.map(str::to_owned),
        };
        let mut routes = Routes {
            version: VERSION,
            protocol: ROUTE_PROTOCOL,
            routes: vec![
                row("10.244.0.0/16", None, State::Ok, None),
                row("10.244.2.0/24", Some("10.99.0.2"), State::Theirs, None),
            ],
            refused: Vec::new(),
        };
        assert!(routes.is_well());
        let there = Some("10.244.3.0/24 dev eth1 proto 3");
        let taken = row("10.244.3.0/24", Some("10.99.0.3"), State::Taken, there);
        routes.routes.push(taken);
        assert!(!routes.is_well());
        assert_eq!(
            routes.to_text(),
            "prefix         via        device      MTU  state\n\
             10.244.0.0/16  -          overlay0      -  ok\n\
             10.244.2.0/24  10.99.0.2  eth0          -  theirs\n    \
             set by another program, which does: we leave it alone\n\
             10.244.3.0/24  10.99.0.3  eth0          -  TAKEN\n    \
             somebody else's route had its place before us: 10.244.3.0/24 dev eth1 proto 3\n"
        );
    }
}
