//! Routing: what a place sends and what it forwards, by which device and to which next hop.

use std::io;
use std::net::IpAddr;

use anyhow::Result;

use super::super::explain;
use super::super::fate;
use super::super::tables::{candidates, routing};
use super::super::{Source, Step};
use super::{State, Walk};
use crate::kernel::Route;
use crate::kernel::hooks::{Hook, Rewrite};

/// Said once.
const TEACH_ROUTES: &str = "a route matches if the destination AND the route's mask give the route's network; of those that match, the longest mask wins";

/// A policy rule's priority, the mark that it looks at, and the route of what bears that.
type Marked = (u32, u32, Option<Route>);

impl Walk<'_> {
    /// A program or the kernel of `place` sends: route, OUTPUT, POSTROUTING.
    pub(super) fn emit(&mut self, place: usize, refused: Option<&io::Error>) -> Result<State> {
        if let Some(error) = refused {
            let limit = self.first_limit(place)?;
            let no_route = match error.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => true,
                // What the kernel says of a route that forbids (fib_props, net/ipv4/fib_semantics.c).
                Some(libc::EACCES | libc::EINVAL) => {
                    let dst = self.packet.dst;
                    self.looker.route(place, dst)?.is_none()
                        || self.looker.look(place)?.rule_that_forbids(dst).is_some()
                }
                _ => false,
            };
            let cause = match no_route {
                true => Some(self.no_route(place)?),
                false => None,
            };
            let name = self.world.name(place);
            let v6 = self.packet.dst.is_ipv6();
            let mut legacy = self.after[place].legacy_at(v6, &[Hook::Output]);
            legacy.retain(|table| table.may_drop());
            let loss = fate::refused(
                name,
                self.packet.leg,
                error,
                limit.as_deref(),
                cause,
                &legacy,
            );
            return Ok(self.lost(place, loss));
        }
        let Some((mut oif, mut next)) = self.routed(place, "looks up the route")? else {
            return Ok(self.lose(place));
        };
        self.hooks(place, &[Hook::Output, Hook::Postrouting], Some(oif))?;
        if self.rewrite(place, Rewrite::Destination, Hook::Output) {
            let again = self.routed(place, "looks up the route again")?;
            (oif, next) = again.unwrap_or((oif, next));
        }
        self.rewrite(place, Rewrite::Source, Hook::Postrouting);
        Ok(State::Transmit { place, oif, next })
    }

    /// What limits the length of a packet that a place sends, in words.
    fn first_limit(&mut self, place: usize) -> Result<Option<String>> {
        let (_, dst) = self.current();
        let Some(route) = self.looker.route(place, dst)? else {
            return Ok(None);
        };
        let oif = route.oif.unwrap_or(0);
        self.limit(place, Some(&route), oif).map(Some)
    }

    /// `the MTU 1450 of eth0`, or what the route limits below that.
    pub(super) fn limit(
        &mut self,
        place: usize,
        route: Option<&Route>,
        oif: u32,
    ) -> Result<String> {
        let kernel = self.looker.look(place)?;
        let (name, mtu) = (kernel.name(oif), kernel.link(oif).map(|link| link.mtu));
        let of_route = route.and_then(|route| Some((route.mtu?, route.expires)));
        Ok(match (of_route, mtu) {
            (Some((mtu, Some(seconds))), _) => format!(
                "the path MTU {mtu} that ICMP taught {} (it expires in {seconds} s)",
                self.world.name(place)
            ),
            (Some((mtu, None)), link) if Some(mtu) != link => {
                format!("the MTU {mtu} of the route by {name}")
            }
            (_, Some(mtu)) => format!("the MTU {mtu} of {name}"),
            (_, None) => format!("the MTU of {name}"),
        })
    }

    /// Looks up the route: the device and the next hop. `None`: there is none.
    pub(super) fn routed(&mut self, place: usize, what: &str) -> Result<Option<(u32, IpAddr)>> {
        let (src, dst) = self.current();
        let came = self.last.map(|last| &self.caught[last]);
        let iif = came
            .filter(|caught| caught.place == place && !caught.out)
            .map(|caught| caught.ifindex);
        let ruled = self.looker.ruled(place, src, dst, iif, None)?;
        let follows = ruled.is_some();
        let unmarked = match ruled {
            Some(route) => route,
            None => self.looker.route(place, dst)?,
        };
        let marks = self.marks(place, src, dst, iif)?;
        let (chosen, by_mark) = self.told_by_marks(place, unmarked, &marks);
        let length = self.last.map(|_| self.last_seen().1);
        let kernel = self.looker.look(place)?;
        if let Some(link) = kernel.owner(dst) {
            let (text, oif) = (
                format!(
                    "{dst} is an address of {} here: it stays here, over lo",
                    link.name
                ),
                link.index,
            );
            let lo = kernel
                .links
                .iter()
                .find(|link| link.name == "lo")
                .map_or(oif, |link| link.index);
            self.derive(place, None, Step::Route, Source::Kernel, text, Vec::new());
            return Ok(Some((lo, dst)));
        }
        let all = candidates(&kernel.routes, dst);
        let mut details = explain::routes(kernel, &all, dst, chosen.as_ref());
        let facts = routing(kernel, &all, dst, chosen.as_ref());
        if !std::mem::replace(&mut self.taught_routes, true) {
            details.insert(0, TEACH_ROUTES.to_owned());
        }
        let rules: Vec<_> = kernel
            .rules(dst)
            .iter()
            .map(|rule| rule.priority.to_string())
            .collect();
        if !rules.is_empty() {
            let how = match follows {
                true => {
                    "followed: the kernel itself was asked, for this source and device, without a mark"
                }
                false => "not followed",
            };
            details.push(format!(
                "policy rules stand there beside the standard ones, of priority {} (`ip rule`): {how}",
                rules.join(", ")
            ));
        }
        for (rule, mark, route) in &marks {
            let way = match route.as_ref().and_then(|route| route.oif) {
                Some(oif) => format!("out by {}", kernel.name(oif)),
                None => "nowhere".to_owned(),
            };
            details.push(format!(
                "rule {rule} looks at marks: what bears {mark:#x} goes {way}. Netfilter sets marks, and no table tells whether it did"
            ));
        }
        let Some((route, oif)) = chosen.and_then(|route| route.oif.map(|oif| (route, oif))) else {
            let best = all.first().filter(|best| best.matches);
            let refusing = best.and_then(|best| Some((best.route.refuses?, best.route.dst)));
            let by_rule = kernel.rule_that_forbids(dst).filter(|_| best.is_some());
            let text = match (refusing, by_rule) {
                (Some((word, net)), _) => format!("{what} to {dst}: `{word} {net}` forbids it"),
                (None, Some((rule, does))) => format!("{what} to {dst}: policy rule {rule} {does}"),
                (None, None) => format!("{what} to {dst}: there is none"),
            };
            self.derive(place, None, Step::Route, Source::Kernel, text, details);
            self.amend(|row| row.routing = Some(facts));
            let cause = self.no_route(place)?;
            self.blame(place, Some(cause));
            return Ok(None);
        };
        let link = kernel.link(oif);
        let name = kernel.name(oif);
        let mtu = route.mtu.or(link.map(|link| link.mtu));
        let path = if route.expires.is_some() { "path " } else { "" };
        if let (Some(mtu), Some(seconds)) = (route.mtu, route.expires) {
            details.push(format!(
                "no route, but what ICMP taught {} of this destination: path MTU {mtu}, expires in {seconds} s (`ip route get {dst}`)",
                self.world.name(place)
            ));
        }
        let fits = match (length, mtu) {
            _ if self.outer.is_some() => String::new(),
            (Some(length), Some(mtu)) if length > mtu as usize => {
                format!("; its {length} bytes are more than the {path}MTU of {mtu}")
            }
            (Some(length), Some(mtu)) => format!("; its {length} bytes fit the {path}MTU of {mtu}"),
            _ => String::new(),
        };
        let via = route
            .via
            .map(|via| format!(", next hop {via}"))
            .unwrap_or_default();
        let text = format!("{what} to {dst}: out by {name}{via}{by_mark}{fits}");
        let next = route.via.unwrap_or(dst);
        self.derive(place, None, Step::Route, Source::Kernel, text, details);
        self.amend(|row| row.routing = Some(facts));
        Ok(Some((oif, next)))
    }

    /// Where packets with the marks that policy rules look at would go: priority, mark, route.
    fn marks(
        &mut self,
        place: usize,
        src: IpAddr,
        dst: IpAddr,
        iif: Option<u32>,
    ) -> Result<Vec<Marked>> {
        let rules = self.looker.look(place)?.rules(dst).to_vec();
        let mut found = Vec::new();
        for rule in rules {
            if let Some(mark) = rule.mark {
                let route = self.looker.ruled(place, src, dst, iif, Some(mark))?;
                found.push((rule.priority, mark, route.flatten()));
            }
        }
        Ok(found)
    }

    /// Which route it takes where rules look at marks: the one that leads to where it was seen next. And what to say of it.
    fn told_by_marks(
        &self,
        place: usize,
        unmarked: Option<Route>,
        marks: &[Marked],
    ) -> (Option<Route>, String) {
        let leads = |route: &Option<Route>| route.as_ref().and_then(|route| route.oif);
        let other = marks
            .iter()
            .find(|(.., route)| leads(route) != leads(&unmarked));
        let Some((rule, ..)) = other else {
            return (unmarked, String::new());
        };
        let next = self.earliest().map(|index| self.where_seen(index));
        let seen = next.and_then(|(at, ifindex, out)| (at == place && out).then_some(ifindex));
        if seen.is_some() && seen != leads(&unmarked) {
            let by = marks.iter().find(|(.., route)| leads(route) == seen);
            if let Some((rule, mark, route)) = by {
                let said = format!(
                    ", where it is seen next: netfilter has marked it {mark:#x}, for rule {rule}"
                );
                return (route.clone(), said);
            }
        }
        let said = match seen {
            Some(_) => String::new(),
            None => format!(", unless netfilter has marked it: rule {rule} looks at marks"),
        };
        (unmarked, said)
    }

    /// TTL and length of the header that the kernel looks at, as they were last seen.
    pub(super) fn last_seen(&self) -> (u8, usize) {
        let Some(last) = self.last else {
            return (u8::MAX, 0);
        };
        let sight = &self.caught[last].sight;
        let ip = match (&self.outer, &sight.outer) {
            (Some(_), Some(outer)) => &outer.ip,
            _ => &sight.ip,
        };
        (ip.ttl, ip.length)
    }
}
