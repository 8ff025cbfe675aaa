//! How a lab is: what of it is there, what runs.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::Result;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::{
    ETCD, known,
    plan::{ETCD_PREFIX, INTRUDER, Layer, NodePlan, PodPlan, Scenario, Spec},
};
use crate::{
    kernel::NetNs,
    lab::{container::Container, holder, state},
    observe::client,
};

/// How a lab is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `up` has come to its end.
    pub complete: bool,
    /// What it consists of.
    pub spec: Spec,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// The host on the underlay that is no node, if the lab's scenario has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intruder: Option<IntruderStatus>,
    /// The router between the segments of the underlay, if it has two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterStatus>,
    /// Where the leases stand, if in etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdStatus>,
}

/// How the router of an underlay of two segments is ([`super::Layer::L3`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouterStatus {
    /// The name of its namespace.
    pub namespace: String,
    /// Its namespace is there.
    pub present: bool,
    /// Its addresses, the first segment's first.
    pub ips: Vec<IpAddr>,
}

/// How a lab's etcd is ([`super::Store::Etcd`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EtcdStatus {
    /// The name of its namespace.
    pub namespace: String,
    /// Its namespace is there.
    pub present: bool,
    /// Its addresses on the underlay.
    pub ips: Vec<IpAddr>,
    /// Where nodes reach it.
    pub endpoint: String,
    /// Its process id, if it runs.
    pub pid: Option<u32>,
    /// Its log.
    pub log: PathBuf,
    /// The command that shows all that is in it.
    pub ask: String,
}

/// How the stranger on the underlay is ([`super::Scenario::Spoof`]). What runs there is nobody's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntruderStatus {
    /// The name of its namespace.
    pub namespace: String,
    /// Its namespace is there.
    pub present: bool,
    /// Its address on the underlay.
    pub ip: Ipv4Addr,
}

/// How a node of a lab is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// `node1`
    pub name: String,
    /// The name of its namespace.
    pub namespace: String,
    /// Its namespace is there.
    pub present: bool,
    /// Its addresses on the underlay.
    pub public_ips: Vec<IpAddr>,
    /// The process id of its overlayd, if it runs.
    pub daemon: Option<u32>,
    /// How its overlayd says it is: `ok`, `degraded`. Nothing, if it does not answer.
    pub state: Option<String>,
    /// Why it is not well, or why it does not answer.
    pub reasons: Vec<String>,
    /// Leases that it has not taken, and why: other nodes that it cannot reach.
    pub refused: Vec<String>,
    /// The control socket of its overlayd.
    pub socket: PathBuf,
    /// The log of its overlayd.
    pub log: PathBuf,
    /// Its pods.
    pub pods: Vec<PodStatus>,
}

/// How a pod of a lab is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodStatus {
    /// `pod1`
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The process id of its holder, if it runs.
    pub holder: Option<u32>,
    /// Its containers.
    pub containers: Vec<ContainerStatus>,
}

/// How a container of a pod is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerStatus {
    /// `web`
    pub name: String,
    /// Its process id, if it runs.
    pub pid: Option<u32>,
}

impl NodeStatus {
    /// Its overlayd answers, and says that all is as configured.
    pub fn is_well(&self) -> bool {
        self.state.as_deref() == Some("ok")
    }

    fn ask(&mut self) {
        match client::status(&self.socket) {
            Ok(answer) => {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let reasons = answer["reasons"].as_array().into_iter().flatten();
                self.reasons = reasons.filter_map(text).collect();
                self.state = text(&answer["state"]);
                let refused = answer["refused"].as_array().into_iter().flatten();
                let both = |one: &Value| Some((text(&one["subject"])?, text(&one["reason"])?));
                let refused = refused.filter_map(both);
                self.refused = refused
                    .map(|(subject, reason)| format!("refused {subject}: {reason}"))
                    .collect();
            }
            Err(error) => self.reasons = vec![error.to_string()],
        }
    }
}

impl PodStatus {
    /// Nothing of it runs, so its namespace is gone.
    pub fn is_dead(&self) -> bool {
        self.holder.is_none() && self.containers.iter().all(|c| c.pid.is_none())
    }

    /// All its processes run.
    pub fn is_whole(&self) -> bool {
        self.holder.is_some() && self.containers.iter().all(|c| c.pid.is_some())
    }
}

impl Status {
    /// Everything that should run does.
    pub fn is_whole(&self) -> bool {
        let daemon = |node: &NodeStatus| !self.spec.runs_daemons() || node.daemon.is_some();
        let node = |node: &NodeStatus| {
            node.present && daemon(node) && node.pods.iter().all(PodStatus::is_whole)
        };
        let router = self.router.as_ref().is_none_or(|router| router.present);
        let etcd = self.etcd.as_ref().is_none_or(|etcd| etcd.pid.is_some());
        self.complete && router && etcd && self.nodes.iter().all(node)
    }

    /// Everything that should run does, and every overlayd is well.
    pub fn is_well(&self) -> bool {
        let daemons = self.spec.runs_daemons();
        self.is_whole() && (!daemons || self.nodes.iter().all(NodeStatus::is_well))
    }
}

/// How a lab is, whole or not.
///
/// # Errors
/// When there is no such lab.
pub fn status(name: &str) -> Result<Status> {
    let state = known(name)?;
    let namespaces = NetNs::list_named()?;
    let processes = holder::processes(name)?;
    let pid = |place: &str| processes.iter().find(|p| p.place == place).map(|p| p.pid);
    let v4 = |ip: Ipv4Addr| IpAddr::V4(ip);
    let pod = |plan: &PodPlan| PodStatus {
        name: plan.name.clone(),
        ips: [Some(v4(plan.ip)), plan.ipv6.map(Into::into)]
            .into_iter()
            .flatten()
            .collect(),
        holder: pid(&plan.place),
        containers: Container::ALL
            .into_iter()
            .map(|container| ContainerStatus {
                pid: pid(&format!("{}/{container}", plan.place)),
                name: container.to_string(),
            })
            .collect(),
    };
    let node = |plan: NodePlan| NodeStatus {
        present: namespaces.contains(&plan.namespace),
        public_ips: [plan.public_ip.map(v4), plan.public_ipv6.map(Into::into)]
            .into_iter()
            .flatten()
            .collect(),
        daemon: pid(&plan.name),
        state: None,
        reasons: Vec::new(),
        refused: Vec::new(),
        socket: state::dir(name).join(&plan.name).join("overlayd.sock"),
        log: state::dir(name).join(&plan.name).join("overlayd.log"),
        pods: plan.pods.iter().map(pod).collect(),
        name: plan.name,
        namespace: plan.namespace,
    };
    let mut nodes: Vec<_> = state.spec.node_plans().into_iter().map(node).collect();
    for node in nodes.iter_mut().filter(|node| node.daemon.is_some()) {
        node.ask();
    }
    let intruder = (state.spec.scenario == Some(Scenario::Spoof)).then(|| {
        let namespace = state.spec.intruder_namespace();
        IntruderStatus {
            present: namespaces.contains(&namespace),
            ip: INTRUDER,
            namespace,
        }
    });
    let ips = |nets: [Option<IpNet>; 2]| nets.into_iter().flatten().map(|net| net.addr());
    let router = (state.spec.layer == Layer::L3).then(|| {
        let namespace = state.spec.router_namespace();
        let segments = state.spec.segments().into_iter();
        RouterStatus {
            present: namespaces.contains(&namespace),
            ips: segments.flat_map(|segment| ips(segment.router())).collect(),
            namespace,
        }
    });
    let etcd = state.spec.etcd_endpoint().map(|endpoint| {
        let namespace = state.spec.etcd_namespace();
        EtcdStatus {
            present: namespaces.contains(&namespace),
            ips: ips(state.spec.etcd_addresses()).collect(),
            endpoint,
            pid: pid(ETCD),
            log: state::dir(name).join(ETCD).join("etcd.log"),
            ask: format!("ip netns exec {namespace} etcdctl get --prefix {ETCD_PREFIX}"),
            namespace,
        }
    });
    Ok(Status {
        name: name.to_owned(),
        complete: state.complete,
        nodes,
        intruder,
        router,
        etcd,
        spec: state.spec,
    })
}
