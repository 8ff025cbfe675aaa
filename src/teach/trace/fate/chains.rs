//! What netfilter may have dropped: chains and rules that the packet passed, and tables that cannot be read.

use super::super::explain;
use super::super::sight::Kind;
use super::super::tables::Counts;
use super::super::{Evidence, Loss};
use super::{Case, Layer, Passed, RuleKey};
use crate::kernel::hooks::Fit;

/// Of the chains passed, what dropped the packet, or may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::teach::trace) struct Culprit {
    /// What it may be, in words, in the order in which the packet met it.
    names: Vec<String>,
    /// By how much the counter of the only one rose.
    rise: u64,
    /// It is certain: a counter says so, and no other can have been it.
    pub(in crate::teach::trace) sure: bool,
    /// At which of the hooks passed the last of them stands; its chain there and its handle, if it is a rule.
    pub(in crate::teach::trace) last: (usize, Option<(RuleKey, String)>),
}

/// The chain or rule, among those passed, that dropped: one whose counter rose, or, if `counted` is false, one that may.
pub(super) fn by_chain(case: &Case<'_>, counted: bool) -> Option<Loss> {
    let culprit = culprit(case.place, case.passed, case.after, case.pieces)?;
    let (sure, names) = (culprit.sure, &culprit.names);
    if counted && !sure {
        return None;
    }
    let rejected = case
        .caught
        .iter()
        .any(|caught| matches!(caught.sight.kind, Kind::Error(..)));
    let (it, was) = (case.it(), case.it_was());
    let what = names.join("; ");
    let how = if sure {
        format!("{what} dropped {it}, as its counter says")
    } else if let Some((tables, _)) = legacy(case.place, case.passed, case.after) {
        format!("{what} may have dropped {it}, or a rule of {tables}, which cannot be seen")
    } else if names.len() > 1 {
        format!(
            "one of {} dropped {it}, and no counter tells for certain which: {what}",
            names.len()
        )
    } else if culprit.rise > case.pieces {
        format!(
            "most likely {what} dropped {it}: its counter rose, but by {}, for other packets too",
            culprit.rise
        )
    } else if culprit.rise > 0 {
        format!(
            "most likely {what} dropped {it}: its counter rose, and what it asks for is not all read here"
        )
    } else {
        format!("{what} is all that stands between where {was} seen last and where {was} not")
    };
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: "filtered".into(),
        by: "kernel",
        evidence: if sure {
            Evidence::Observed
        } else {
            Evidence::Derived
        },
        meaning: if rejected && sure {
            format!("{how}, and told the sender")
        } else {
            how
        },
        advice: if sure {
            format!(
                "`nft -a list ruleset`, in {}, shows the rule; accept the packet before it",
                case.name
            )
        } else {
            format!(
                "`nft -a list ruleset`, in {}; a `counter` in each rule that drops would make it sure; accept the packet before it",
                case.name
            )
        },
    })
}

/// One that may have dropped.
struct Suspect {
    name: String,
    /// It certainly matches what came by.
    fits: bool,
    /// Only a verdict map may lead to it.
    mapped: bool,
    rise: u64,
    at: (usize, Option<(RuleKey, String)>),
}

/// Among the chains passed: what dropped the packet, which is in so many pieces.
pub(in crate::teach::trace) fn culprit(
    place: usize,
    passed: &Passed,
    after: &Counts,
    pieces: u64,
) -> Option<Culprit> {
    let suspects = suspects(place, passed, after);
    let first = suspects.first()?;
    let alone = suspects.len() == 1;
    // One that matches for certain, and has counted just this packet, let nothing through to those behind it.
    let counted = (1..=pieces).contains(&first.rise);
    let sure = counted && !first.mapped && (alone || first.fits);
    let named = if sure { 1 } else { suspects.len() };
    let rise = if named == 1 { first.rise } else { 0 };
    let mut named: Vec<_> = suspects.into_iter().take(named).collect();
    let last = named.last()?.at.clone();
    named.dedup_by(|a, b| a.name == b.name);
    Some(Culprit {
        names: named.into_iter().map(|suspect| suspect.name).collect(),
        rise,
        sure,
        last,
    })
}

fn suspects(place: usize, passed: &Passed, after: &Counts) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    let here = passed.hooks.iter().enumerate();
    for (index, passage) in here.filter(|(_, hook)| hook.place == place) {
        let chains = after.chains.iter();
        for chain in chains.filter(|chain| explain::sees(chain, passage)) {
            for rule in chain.rules.iter().filter(|rule| rule.drops) {
                let fit = rule.fits(&passage.views);
                let rise = passage.rise(chain, rule);
                // One that counts, and did not, is innocent; of those that a map may lead to, only what counted is accused.
                let innocent = rise == 0 && (rule.packets.is_some() || rule.mapped.is_some());
                if fit == Fit::No || innocent {
                    continue;
                }
                let mut name = explain::rule_name(chain, rule);
                if rule.mapped.is_some() {
                    name += " (a verdict map may lead there)";
                }
                let key = (chain.family, chain.table.clone(), rule.handle);
                suspects.push(Suspect {
                    name,
                    fits: fit == Fit::Yes,
                    mapped: rule.mapped.is_some(),
                    rise,
                    at: (index, Some((key, chain.name.clone()))),
                });
            }
            if chain.drops {
                suspects.push(Suspect {
                    name: format!("the policy drop of {}", explain::chain_name(chain)),
                    fits: false,
                    mapped: false,
                    rise: 0,
                    at: (index, None),
                });
            }
        }
    }
    suspects
}

/// The tables of legacy iptables, among those passed, that may have dropped the packet; and the command that shows them.
pub(in crate::teach::trace) fn legacy(
    place: usize,
    passed: &Passed,
    counts: &Counts,
) -> Option<(String, &'static str)> {
    let mut found = Vec::new();
    for passage in passed.hooks.iter().filter(|hook| hook.place == place) {
        if let Layer::Ip { v6 } | Layer::BridgedIp { v6 } = passage.layer {
            found.extend(counts.legacy_at(v6, &[passage.hook]));
        }
    }
    found.retain(|table| table.may_drop());
    let command = found.first()?.command();
    Some((explain::legacy_names(&found), command))
}

/// Tables that cannot be read, where nothing else tells of the loss.
pub(super) fn by_legacy(case: &Case<'_>) -> Option<Loss> {
    let (tables, command) = legacy(case.place, case.passed, case.after)?;
    Some(Loss {
        leg: case.leg,
        place: case.name.to_owned(),
        device: None,
        reason: "filtered".into(),
        by: "kernel",
        evidence: Evidence::Derived,
        meaning: format!(
            "most likely by a rule of {tables}: these stand between where {was} seen last and where {was} not, and their rules cannot be seen",
            was = case.it_was()
        ),
        advice: format!(
            "`{command} -c`, in {}, shows the rules and their counters; accept the packet there",
            case.name
        ),
    })
}
