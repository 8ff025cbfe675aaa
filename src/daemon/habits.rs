//! What flanneld does for its host besides forwarding: the subnet file, rules in the packet filter; and what is told over
//! HTTP.
//!
//! None of it keeps packets from being forwarded: what goes wrong here is said in status, and tried again with the next look
//! at the packet filter.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use encap::Encapsulation;
use ipnet::IpNet;

use super::Sizes;
use super::node::Node;
use super::serve::Daemon;
use crate::config::Config;
use crate::kernel::masquerade::{PacketFilter, Wanted};
use crate::lease::Lease;
use crate::lease::subnet_env::SubnetEnv;
use crate::observe::http::Report;
use crate::observe::metrics::{self, Figures};

/// What was told to the host.
pub(super) struct Habits {
    filter: PacketFilter,
    /// The subnet file as it was written last.
    written: Option<SubnetEnv>,
}

/// Of each IP version, the overlay network and our subnet of it.
fn nets(config: &Config, own: &Lease) -> Vec<(IpNet, IpNet)> {
    let v4 = config.network.v4.zip(own.subnet);
    let v6 = config.network.v6.zip(own.ipv6_subnet);
    let v4 = v4.map(|(network, subnet)| (network.into(), subnet.into()));
    let v6 = v6.map(|(network, subnet)| (network.into(), subnet.into()));
    v4.into_iter().chain(v6).collect()
}

impl Habits {
    /// Puts the rules into the packet filter.
    ///
    /// # Errors
    /// If rules are wanted and the kernel refuses them.
    pub(super) fn start(config: &Config, own: &Lease) -> anyhow::Result<Self> {
        let wanted = Wanted {
            device: config.device.name.clone(),
            nets: nets(config, own),
            masquerade: config.firewall.ip_masq,
            forward: config.firewall.forward_rules,
        };
        let filter = PacketFilter::start(wanted, config.firewall.resync).map_err(|error| {
            anyhow::anyhow!(
                "{error}: the kernel needs nf_tables with NAT (modules nf_tables, nft_chain_nat, nft_masq) for ip-masq and forward-rules: load them, or turn these off"
            )
        })?;
        Ok(Habits {
            filter,
            written: None,
        })
    }

    /// Waits until the packet filter may not be as it shall.
    pub(super) async fn disturbed(&mut self) {
        self.filter.disturbed().await;
    }
}

impl<E: Encapsulation> Daemon<E> {
    /// Looks at the packet filter again, and puts back what somebody took.
    pub(super) fn mend_filter(&mut self) {
        let fault = match self.habits.filter.restore() {
            Ok(false) => None,
            Ok(true) => {
                self.node.count_filter_repair();
                tracing::info!("rules of ours in the packet filter were changed: put back");
                None
            }
            Err(error) => Some(format!("the packet filter is not as it shall be: {error}")),
        };
        self.node.set_filter_fault(fault);
        if self.node.has_subnet_fault() {
            self.tell_subnet();
        }
    }

    /// Tells the host of our lease as it is now: in the packet filter, and in the subnet file.
    pub(super) fn tell_host(&mut self) {
        let nets = nets(&self.config, &self.own);
        if let Err(error) = self.habits.filter.set(nets) {
            let fault = format!("the packet filter is not as it shall be: {error}");
            self.node.set_filter_fault(Some(fault));
        }
        self.tell_subnet();
    }

    fn tell_subnet(&mut self) {
        let Some(path) = &self.config.subnet_file else {
            return;
        };
        let (config, own) = (&self.config, &self.own);
        let ip_masq = config.firewall.ip_masq;
        let mtu = Sizes::of::<E>(config, &self.site).device;
        let env = SubnetEnv::new(config.network, own, mtu, ip_masq);
        if self.habits.written == Some(env) {
            return;
        }
        let outcome = env.write(path).map_err(|error| error.to_string());
        if outcome.is_ok() {
            self.habits.written = Some(env);
        }
        self.node.set_subnet_fault(outcome.err());
    }
}

impl Node {
    fn count_filter_repair(&self) {
        self.filter_repairs.fetch_add(1, Relaxed);
    }

    /// Says it once in the log, and in status for as long as it is so.
    fn set_filter_fault(&self, fault: Option<String>) {
        replace_fault(&mut self.view().faults.filter, fault);
    }

    fn set_subnet_fault(&self, fault: Option<String>) {
        replace_fault(&mut self.view().faults.subnet, fault);
    }

    fn has_subnet_fault(&self) -> bool {
        self.view().faults.subnet.is_some()
    }

    /// What is told over HTTP.
    pub(super) async fn report(self: Arc<Self>) -> Report {
        let status = self.status().await;
        Report {
            metrics: metrics::render(&Figures {
                status: &status,
                tally: &self.tally,
                filter_repairs: self.filter_repairs.load(Relaxed),
            }),
            reasons: status.reasons,
        }
    }
}

/// A fault that is new is said in the log.
fn replace_fault(known: &mut Option<String>, fault: Option<String>) {
    if let Some(fault) = fault
        .as_ref()
        .filter(|fault| known.as_ref() != Some(*fault))
    {
        tracing::error!("{fault}");
    }
    *known = fault;
}
