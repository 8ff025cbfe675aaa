//! What netfilter may have dropped: chains and rules that the packet passed, and tables that cannot be read.

use super::super::explain;
use super::super::sight::Kind;
use super::super::tables::Counts;
use super::super::{Evidence, Loss};
use super::{Case, Layer, Passed};

/// The chain or rule, among those passed, that dropped: one whose counter rose, or, if `counted` is false, one that may.
pub(super) fn by_chain(case: &Case<'_>, counted: bool) -> Option<Loss> {
    let (what, sure) = dropped_by_chains(case.place, case.passed, case.before, case.after)?;
    if counted && !sure {
        return None;
    }
    let rejected = case
        .caught
        .iter()
        .any(|caught| matches!(caught.sight.kind, Kind::Error(..)));
    let (it, was) = (case.it(), case.it_was());
    let how = if sure {
        format!("{what} dropped {it}, as its counter says")
    } else if let Some((tables, _)) = legacy(case.place, case.passed, case.after) {
        format!("{what} may have dropped {it}, or a rule of {tables}, which cannot be seen")
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
                "`nft -a list ruleset`, in {}; a `counter` in the rule would make it sure; accept the packet before it",
                case.name
            )
        },
    })
}

/// Among the chains passed: what dropped the packet, and whether a counter says so.
pub(in crate::teach::trace) fn dropped_by_chains(
    place: usize,
    passed: &Passed,
    before: &Counts,
    after: &Counts,
) -> Option<(String, bool)> {
    let mut suspect = None;
    for passage in passed.hooks.iter().filter(|hook| hook.place == place) {
        let chains = after.chains.iter();
        for chain in chains.filter(|chain| explain::sees(chain, passage)) {
            let name = explain::chain_name(chain);
            for rule in chain.rules.iter().filter(|rule| rule.drops) {
                let text = explain::rule_name(chain, rule);
                if after.rule_rise(before, chain, rule.handle) > 0 {
                    return Some((text, true));
                }
                // One that counts, and did not, is innocent.
                if rule.packets.is_none() {
                    suspect.get_or_insert((text, false));
                }
            }
            if chain.drops {
                suspect.get_or_insert((format!("the policy drop of {name}"), false));
            }
        }
    }
    suspect
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
