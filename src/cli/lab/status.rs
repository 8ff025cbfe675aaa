//! `overlayd lab status`: what of a lab is there.

use std::net::IpAddr;

use anyhow::Result;

use super::paint::Paint;
use super::up::wrapped;
use super::{Exit, name_option, say, shape_of};
use crate::lab::topology::{self, NodeStatus, PodStatus, Stage, Status};

/// Version of what `lab status --json` prints.
const VERSION: u32 = 1;
/// Columns of a daemon's reasons.
const WIDTH: usize = 90;

pub(super) fn main(name: &str, json: bool) -> Result<Exit> {
    let status = topology::status(name)?;
    let exit = if status.is_well() {
        Exit::Ok
    } else {
        Exit::Degraded
    };
    if json {
        let mut value = serde_json::to_value(&status)?;
        value["version"] = VERSION.into();
        value["whole"] = status.is_whole().into();
        value["well"] = status.is_well().into();
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
        say_node(&status, node, paint);
        for pod in &node.pods {
            let place = format!("{}/{}", node.name, pod.name);
            let mark = paint.verdict(pod.is_whole());
            row(&mark, &place, &join(&pod.ips), &inside(pod));
        }
    }
    if let Some(intruder) = &status.intruder {
        let mark = paint.verdict(intruder.present);
        let what = if intruder.present {
            "a host on the underlay that is no node"
        } else {
            "its namespace is gone"
        };
        row(&mark, "intruder", &intruder.ip.to_string(), what);
    }
    if let Some(router) = &status.router {
        let mark = paint.verdict(router.present);
        let what = if router.present {
            "forwards between the segments"
        } else {
            "its namespace is gone"
        };
        row(&mark, "router", &join(&router.ips), what);
    }
    if let Some(etcd) = &status.etcd {
        let what = match etcd.pid {
            Some(pid) => format!("etcd at {}, pid {pid}", etcd.endpoint),
            None => format!("no etcd: its log is {}", etcd.log.display()),
        };
        let mark = paint.verdict(etcd.pid.is_some());
        row(&mark, "etcd", &join(&etcd.ips), &what);
        say(format!("       {}", etcd.ask));
    }
    let option = name_option(name);
    if status.complete && !status.is_whole() {
        tell!("\n`overlayd lab revive{option}` starts again what has died");
    } else if status.spec.stage < Stage::Overlay {
        tell!("\n`overlayd lab next{option}` builds the next stage");
    }
    Ok(exit)
}

fn row(mark: &str, place: &str, addresses: &str, text: &str) {
    say(format!(" {mark} {place:12} {addresses:36} {text}"));
}

fn say_node(status: &Status, node: &NodeStatus, paint: Paint) {
    let wanted = status.spec.runs_daemons();
    let daemon = match (node.daemon, &node.state) {
        (Some(pid), Some(state)) => format!("overlayd {state}, pid {pid}"),
        (Some(pid), None) => format!("overlayd does not answer, pid {pid}"),
        (None, _) if wanted => format!("no overlayd: its log is {}", node.log.display()),
        (None, _) if status.spec.daemons => "no overlayd yet".to_owned(),
        (None, _) => "no overlayd".to_owned(),
    };
    let present = if node.present {
        ""
    } else {
        ", its namespace is gone"
    };
    let mark = match &node.state {
        _ if !node.present => paint.verdict(false),
        Some(_) if !node.is_well() || !node.refused.is_empty() => paint.doubt(),
        None if wanted => paint.verdict(false),
        _ => paint.verdict(true),
    };
    let text = format!("{daemon}{present}");
    row(&mark, &node.name, &join(&node.public_ips), &text);
    for line in node
        .reasons
        .iter()
        .chain(&node.refused)
        .flat_map(|reason| wrapped(reason, WIDTH))
    {
        say(format!("       {line}"));
    }
}

fn inside(pod: &PodStatus) -> String {
    if pod.is_dead() {
        return "dead: its processes have ended, its namespace is gone".to_owned();
    }
    let process = |name: &str, pid: Option<u32>| match pid {
        Some(pid) => format!("{name} {pid}"),
        None => format!("no {name}"),
    };
    let containers = pod.containers.iter();
    let all = std::iter::once(process("holder", pod.holder))
        .chain(containers.map(|container| process(&container.name, container.pid)));
    all.collect::<Vec<_>>().join(", ")
}

fn join(ips: &[IpAddr]) -> String {
    let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
    ips.join(" ")
}
