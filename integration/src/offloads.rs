//! What the underlay's devices leave to others: the four settings that measurements compare, set with ethtool(8).

use overlayd::kernel::NetNs;

use crate::bed::Bed;
use crate::probe;

/// How able the underlay's devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As veths come: superpackets cross whole, their checksums are never computed.
    Default,
    /// As a network card that cannot cut tunnelled superpackets.
    NoTunnel,
    /// No superpackets, sent or made of what comes.
    NoSegmentation,
    /// No superpackets sent, but made of what comes (GRO), as on most real cards.
    NoSegmentationGro,
}

impl Offloads {
    /// All of them, the default first.
    pub const ALL: [Offloads; 4] = [
        Offloads::Default,
        Offloads::NoTunnel,
        Offloads::NoSegmentation,
        Offloads::NoSegmentationGro,
    ];

    /// ethtool's names of the features, and whether they are on.
    fn features(self) -> [(&'static str, bool); 6] {
        let segmentation = matches!(self, Offloads::Default | Offloads::NoTunnel);
        let tunnel = self == Offloads::Default;
        [
            ("tcp-segmentation-offload", segmentation),
            ("generic-segmentation-offload", segmentation),
            ("tx-udp-segmentation", segmentation),
            ("tx-udp_tnl-segmentation", tunnel),
            ("tx-udp_tnl-csum-segmentation", tunnel),
            (
                "generic-receive-offload",
                self == Offloads::NoSegmentationGro,
            ),
        ]
    }

    /// Sets both ends of every node's cable to the underlay.
    ///
    /// # Panics
    /// If a feature does not become what was asked for.
    pub fn apply(self, bed: &Bed) {
        for node in bed.nodes() {
            self.set(node.netns(), "eth0");
            self.set(bed.underlay(), &node.name());
        }
    }

    fn set(self, namespace: &NetNs, device: &str) {
        let on = |on| if on { "on" } else { "off" };
        let mut wanted = self
            .features()
            .map(|(name, is_on)| format!("{name} {}", on(is_on)));
        probe::command(
            namespace,
            &format!("ethtool -K {device} {}", wanted.join(" ")),
        );
        let shown = probe::command(namespace, &format!("ethtool -k {device}"));
        wanted
            .iter_mut()
            .for_each(|feature| *feature = feature.replacen(' ', ": ", 1));
        for feature in wanted {
            let is_so = shown.lines().any(|line| line.trim() == feature);
            assert!(
                is_so,
                "{self:?} on {device} in {namespace}: not {feature}:\n{shown}"
            );
        }
    }
}
