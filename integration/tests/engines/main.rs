//! The engines under pressure: every engine, backend and family under every offload setting, mixed traffic, order,
//! fairness, bounded queues, damage, precedence, memory and idleness.
#![allow(clippy::unwrap_used)] // in helpers too: a test fails where it stands

mod damage;
mod kernel_peer;
mod matrix;
mod mixed;
mod order;
mod precedence;
mod queues;
mod spread;

use std::fs;

use integration::bed::{Backend, Bed, Spec, Underlay};
use integration::probe;
use overlayd::kernel::NetNs;
use serde_json::Value;

/// A bed whose pods' links are no wider than the overlay: nobody has to learn a path MTU first.
fn bed(nodes: u8, backend: Backend, underlay: Underlay) -> Bed {
    let outer = match underlay {
        Underlay::V4 => encap::Family::V4,
        Underlay::V6 | Underlay::Dual => encap::Family::V6,
    };
    Bed::with(&Spec {
        nodes,
        underlay,
        pod_mtu: 1500 - backend.overhead(outer),
        ..Spec::default()
    })
}

/// A number of a status document.
fn count(status: &Value, direction: &str, name: &str) -> u64 {
    status[direction][name].as_u64().unwrap()
}

/// A counter of the namespace's own protocols: `table` is `snmp` or `netstat`, `protocol` its line (`Tcp`, `TcpExt`).
fn protocol_counter(namespace: &NetNs, table: &str, protocol: &str, name: &str) -> u64 {
    let text = probe::within(namespace, || {
        fs::read_to_string(format!("/proc/thread-self/net/{table}"))
    });
    let start = format!("{protocol}:");
    let mut lines = text.lines().filter(|line| line.starts_with(&start));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(known, _)| *known == name).unwrap();
    value.parse().unwrap()
}
