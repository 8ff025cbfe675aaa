//! `overlayd lab status`: what of a lab is there.

use std::net::IpAddr;

use anyhow::Result;

use super::paint::Paint;
use super::{Exit, say, shape_of};
use crate::lab::topology::{self, Stage};
use crate::observe::client;

/// Version of what `lab status --json` prints.
const VERSION: u32 = 1;

pub(super) fn main(name: &str, json: bool) -> Result<Exit> {
    let status = topology::status(name)?;
    let exit = if status.is_whole() {
        Exit::Ok
    } else {
        Exit::Degraded
    };
    if json {
        let mut value = serde_json::to_value(&status)?;
        value["version"] = VERSION.into();
        value["whole"] = status.is_whole().into();
        say(format_args!("{value:#}"));
        return Ok(exit);
    }
    let paint = Paint::stdout();
    let built = if status.complete {
        ""
    } else {
        "; its `up` is still at work or was killed"
    };
    let mut headline = format!("lab {:?}: {}", status.name, shape_of(&status.spec));
    if status.spec.stage < Stage::Overlay {
        headline += &format!(", built to stage {}", status.spec.stage);
    }
    if let Some(scenario) = status.spec.scenario {
        headline += &format!(", scenario {scenario}");
    }
    say(paint.bold(&format!("{headline}{built}\n")));
    for node in &status.nodes {
        let daemon = match node.daemon {
            Some(pid) => {
                let state = client::status(&node.socket).map_or_else(
                    |error| error.to_string(),
                    |answer| answer["state"].as_str().unwrap_or("unknown").to_owned(),
                );
                format!("overlayd {state}, pid {pid}")
            }
            None if status.spec.runs_daemons() => {
                format!("no overlayd: its log is {}", node.log.display())
            }
            None => "no overlayd".to_owned(),
        };
        let good = node.present && (node.daemon.is_some() || !status.spec.runs_daemons());
        let present = if node.present {
            ""
        } else {
            ", its namespace is gone"
        };
        say(format!(
            " {} {:12} {:36} {daemon}{present}",
            paint.verdict(good),
            node.name,
            join(&node.public_ips)
        ));
        for pod in &node.pods {
            let process = |name: &str, pid: Option<u32>| match pid {
                Some(pid) => format!("{name} {pid}"),
                None => format!("no {name}"),
            };
            let containers = pod.containers.iter();
            let inside = std::iter::once(process("holder", pod.holder))
                .chain(containers.map(|container| process(&container.name, container.pid)));
            let inside = inside.collect::<Vec<_>>().join(", ");
            let place = format!("{}/{}", node.name, pod.name);
            say(format!(
                " {} {place:12} {:36} {inside}",
                paint.verdict(pod.is_whole()),
                join(&pod.ips)
            ));
        }
    }
    Ok(exit)
}

fn join(ips: &[IpAddr]) -> String {
    let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
    ips.join(" ")
}
