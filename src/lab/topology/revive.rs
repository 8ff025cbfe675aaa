//! Starts again what has died of a lab: processes of pods, whole pods, daemons.

use anyhow::{Context as _, Result};

use super::{
    ETCD, Lab, Store,
    daemons::running,
    on_runtime,
    stage::{self, Act},
    wire::Wire,
};
use crate::lab::{holder, state::Locked};

impl Lab {
    /// Starts what should run and does not. A pod of which something is left gets back what is missing, in the
    /// namespace that it has; one of which nothing is left is built anew, in a namespace of its own, as far as the lab
    /// is built. Somebody's shell that has outlived its pod stays in the old namespace, with no cable to anything.
    ///
    /// Returns the places of the processes that were started, [`holder::Process::place`].
    ///
    /// # Errors
    /// When something does not start.
    pub fn revive(&mut self) -> Result<Vec<String>> {
        let locked = Locked::open(&self.spec.name)?;
        let _locked = locked.with_context(|| format!("lab {:?} is gone", self.spec.name))?;
        let there: Vec<String> = holder::processes(&self.spec.name)?
            .into_iter()
            .map(|process| process.place)
            .collect();
        let mut revived = self.revive_pods(&there)?;
        if self.spec.store == Store::Etcd && running(&self.spec.name, ETCD)?.is_none() {
            self.start_etcd(&|| Ok(()))?;
            revived.push(ETCD.to_owned());
        }
        if self.spec.runs_daemons() {
            for number in 1..=self.spec.nodes {
                let place = self.node(number)?.name.clone();
                if running(&self.spec.name, &place)?.is_none() {
                    self.start_daemon(number)?;
                    revived.push(place);
                }
            }
        }
        Ok(revived)
    }

    fn revive_pods(&mut self, there: &[String]) -> Result<Vec<String>> {
        let nodes = std::mem::take(&mut self.nodes);
        let (spec, exe, children) = (&self.spec, self.exe.as_path(), &mut self.children);
        let (nodes, revived) = on_runtime(|| async move {
            let mut wire = Wire::new(spec, exe, children);
            let mut revived = Vec::new();
            for node in &nodes {
                wire.resume(node)?;
                for pod in node.pods() {
                    revived.extend(wire.populate(&pod.place, pod.netns(), there)?);
                }
                for pod in node.dead_pods() {
                    wire.unplug(&node.name, &pod.veth).await?;
                    for step in stage::steps_of_pod(spec, node, pod) {
                        wire.take(&step).await?;
                        if step.act == Act::Pod {
                            revived.push(pod.place.clone());
                        }
                    }
                }
            }
            let plans = spec.node_plans().into_iter();
            let nodes = plans.map(|plan| wire.node(plan)).collect::<Result<_>>()?;
            Ok((nodes, revived))
        })?;
        self.nodes = nodes;
        Ok(revived)
    }
}
