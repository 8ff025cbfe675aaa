//! Every option, defined once.
//!
//! From one row come the key in the file, the flag, the environment variables, the help text and
//! the line in `overlayd config example`.
//!
//! Names of environment variables follow from the row:
//! - `OVERLAYD_` and the flag's name: `--public-ip` is `OVERLAYD_PUBLIC_IP`;
//! - `OVERLAYD_` and section and key: `backend.type` is `OVERLAYD_BACKEND_TYPE` too;
//! - `FLANNELD_` names stand in the row, where flannel has a flag of the same meaning.
//!
//! A variable set to the empty string counts as not set.

/// What an option's value looks like in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// An integer.
    Number,
    /// `true` or `false`.
    Bool,
    /// An integer or a string (`queues = 1`, `queues = "auto"`).
    NumberOrText,
    /// A string, or an array of strings; the flag may be repeated. Held as one text, a line for each.
    List,
}

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// Section of the file, without brackets.
    pub section: &'static str,
    /// Key in that section.
    pub key: &'static str,
    /// Flag of `overlayd run`, without the dashes. Empty: the option is not in this version.
    pub flag: &'static str,
    /// flannel's variable of the same meaning, or empty.
    pub flannel: &'static str,
    pub(crate) kind: Kind,
    /// A value as it would be written in the file.
    pub example: &'static str,
    /// What holds when nobody sets it, in words; empty: nothing.
    pub default: &'static str,
    /// One or two plain sentences.
    pub help: &'static str,
    /// True where a running daemon takes a new value up on reload.
    pub reload: bool,
}

impl Opt {
    /// `section.key`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Does it say where the leases stand, and how to get at them?
    pub(crate) fn is_place(&self) -> bool {
        const OF_THE_NODE: &[&str] = &["renew-margin", "subnet-file", "lease-ttl", "saved-table"];
        self.section == "store" && !OF_THE_NODE.contains(&self.key)
    }

    /// Does it say how to get at etcd?
    pub(crate) fn is_place_in_etcd(&self) -> bool {
        self.is_place() && !["type", "path"].contains(&self.key)
    }

    /// The variables of ours that set it: the flag's form first.
    pub fn variables(&self) -> Vec<String> {
        let upper = |s: &str| s.to_ascii_uppercase().replace('-', "_");
        let long = format!("OVERLAYD_{}_{}", upper(self.section), upper(self.key));
        if self.flag.is_empty() {
            return vec![long];
        }
        let short = format!("OVERLAYD_{}", upper(self.flag));
        if short == long {
            vec![short]
        } else {
            vec![short, long]
        }
    }
}

/// Sections in the order of the example file, each with its heading.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    (
        "network",
        "The overlay network; the same on all nodes (flannel: net-conf.json).",
    ),
    (
        "backend",
        "How packets travel between nodes; the same on all nodes.",
    ),
    ("node", "This node."),
    (
        "firewall",
        "What overlayd adds to the host's packet filter, and takes away again at its end.",
    ),
    (
        "device",
        "The TUN device that packets enter and leave through.",
    ),
    ("datapath", "How packets are carried."),
    (
        "store",
        "Where the leases stand: which node holds which subnet.",
    ),
    ("control", "How to talk to the running daemon."),
    ("log", "Logs go to stderr."),
];

/// A row without flannel's name, for an option that works now and needs a restart.
const fn row(
    section: &'static str,
    key: &'static str,
    flag: &'static str,
    kind: Kind,
    example: &'static str,
    default: &'static str,
    help: &'static str,
) -> Opt {
    Opt {
        section,
        key,
        flag,
        flannel: "",
        kind,
        example,
        default,
        help,
        reload: false,
    }
}

/// The same option under flannel's name too.
const fn flannel(name: &'static str, mut opt: Opt) -> Opt {
    opt.flannel = name;
    opt
}

/// The same option, taken up on reload.
const fn reload(mut opt: Opt) -> Opt {
    opt.reload = true;
    opt
}

/// The table.
#[rustfmt::skip]
pub static OPTIONS: &[Opt] = &[
    row("network", "network", "network", Kind::Text, r#""10.244.0.0/16""#, "no IPv4 inside",
        "IPv4 network of the overlay. This or ipv6-network must be set."),
    row("network", "ipv6-network", "ipv6-network", Kind::Text, r#""fd00:10:244::/48""#, "no IPv6 inside",
        "IPv6 network of the overlay."),
    row("network", "subnet-len", "subnet-len", Kind::Number, "24", "24, or 2 more than a network longer than /22",
        "Prefix length of one node's IPv4 subnet, as in flannel's net-conf. Leases may differ from it."),
    row("network", "ipv6-subnet-len", "ipv6-subnet-len", Kind::Number, "64", "64, or 2 more than a network longer than /62",
        "Prefix length of one node's IPv6 subnet. Leases may differ from it."),
    row("network", "subnet-min", "subnet-min", Kind::Text, r#""10.244.1.0""#, "the second subnet",
        "etcd: first IPv4 subnet that a node may take."),
    row("network", "subnet-max", "subnet-max", Kind::Text, r#""10.244.255.0""#, "the last subnet",
        "etcd: last IPv4 subnet that a node may take."),
    row("network", "ipv6-subnet-min", "ipv6-subnet-min", Kind::Text, r#""fd00:10:244:1::""#, "the second subnet",
        "etcd: first IPv6 subnet that a node may take."),
    row("network", "ipv6-subnet-max", "ipv6-subnet-max", Kind::Text, r#""fd00:10:244:ffff::""#, "the last subnet",
        "etcd: last IPv6 subnet that a node may take."),
    flannel("FLANNELD_NET_CONFIG_PATH",
        row("network", "net-conf", "net-conf", Kind::Text, r#""/etc/kube-flannel/net-conf.json""#, "none",
        "flannel's net-conf.json: network and backend are read from it. What is also set here must agree.")),

    row("backend", "type", "backend", Kind::Text, r#""vxlan""#, "vxlan; udp where net-conf names none",
        "How packets travel: vxlan, udp (raw IP in UDP), host-gw (routes through the nodes, one segment only), alloc (the lease is all)."),
    row("backend", "vni", "vni", Kind::Number, "1", "1",
        "VXLAN network identifier, 0 to 16777215."),
    row("backend", "port", "port", Kind::Number, "8472", "8472 for vxlan, 8285 for udp",
        "UDP port that every node listens on."),
    row("backend", "mode", "mode", Kind::Text, r#""tun""#, "tun",
        "tun: IP packets, the leases decide."),
    row("backend", "strict", "strict", Kind::Bool, "false", "false",
        "Drop VXLAN packets that have a reserved bit set; they are accepted and counted otherwise."),
    row("backend", "direct-routing", "direct-routing", Kind::Bool, "false", "false",
        "VXLAN: nodes on the same segment are routed to without encapsulation, as with flannel's DirectRouting."),

    row("node", "name", "node-name", Kind::Text, r#""node-a""#, "the hostname",
        "Name of this node in status and logs."),
    flannel("FLANNELD_IFACE",
        row("node", "iface", "iface", Kind::List, r#""eth0""#, "the default route's interface",
        "Underlay interface, by name or address; its address is the public IP unless that is given. Of a list, the first that is there.")),
    flannel("FLANNELD_IFACE_REGEX",
        row("node", "iface-regex", "iface-regex", Kind::List, r#"['^10\.1\.', '^en']"#, "none",
        "If none of iface is there: the first interface with an address, or else a name, that a pattern matches; one pattern after the other.")),
    flannel("FLANNELD_IFACE_CAN_REACH",
        row("node", "iface-can-reach", "iface-can-reach", Kind::Text, r#""192.0.2.1""#, "none",
        "Without iface and iface-regex: the interface that the route to this address leads through.")),
    flannel("FLANNELD_PUBLIC_IP",
        row("node", "public-ip", "public-ip", Kind::Text, r#""192.0.2.10""#, "iface's IPv4 address",
        "Underlay IPv4 address that peers send to; this node's lease is the one that carries it.")),
    flannel("FLANNELD_PUBLIC_IPV6",
        row("node", "public-ipv6", "public-ipv6", Kind::Text, r#""2001:db8::10""#, "iface's IPv6 address",
        "Underlay IPv6 address that peers send to.")),

    flannel("FLANNELD_IP_MASQ",
        row("firewall", "ip-masq", "ip-masq", Kind::Bool, "false", "false",
        "Masquerade what leaves the overlay for elsewhere, in nftables tables of our own.")),
    flannel("FLANNELD_IPTABLES_FORWARD_RULES",
        row("firewall", "forward-rules", "forward-rules", Kind::Bool, "false", "false",
        "Where there is a filter table with a FORWARD chain (iptables, Docker): accept there what is forwarded from and to the overlay.")),
    flannel("FLANNELD_IPTABLES_RESYNC",
        row("firewall", "resync", "firewall-resync", Kind::Number, "5", "5",
        "Seconds after which these rules are looked at again even if nothing was heard of a change.")),

    row("device", "name", "device", Kind::Text, r#""overlay0""#, "overlay0",
        "Name of the TUN device, at most 15 bytes."),
    row("device", "flannel-name", "flannel-name", Kind::Bool, "true", "false",
        "Where no name is set: flannel's, which is flannel0 with udp and flannel.VNI with vxlan."),
    row("device", "mtu", "mtu", Kind::Number, "1450", "underlay MTU minus the encapsulation's overhead",
        "Largest inner packet in bytes, 576 to 65535 (at least 1280 with IPv6 inside)."),

    row("datapath", "engine", "engine", Kind::Text, r#""auto""#, "auto",
        "How packets are read and sent: batched (superpackets and trains), classic (one per system call), auto (batched)."),
    row("datapath", "queues", "queues", Kind::NumberOrText, "1", "1",
        "Device queues, each with a thread and sockets of its own, at most 16: a number, or auto (one per processor). batched only."),
    row("datapath", "busy-poll", "busy-poll", Kind::Number, "0", "0",
        "Microseconds that a forwarding thread looks for packets before it sleeps, at most 1000000. Shorter round trips for a processor each. batched only."),
    row("datapath", "nice", "nice", Kind::Number, "-5", "-5",
        "By how much a forwarding thread's nice value changes while streams come in, -20 to 0: their reader then gets several superpackets at once. batched only."),
    row("datapath", "rx-usecs", "rx-usecs", Kind::Number, "25", "25",
        "Microseconds that a forwarding thread leaves empty sockets alone while streams come in, at most 1000: fewer wakes, larger batches. batched only."),
    row("datapath", "injection", "injection", Kind::Text, r#""auto""#, "auto",
        "Superpackets leave whole where kernel and underlay device can cut them: auto (with vxlan), on, off. They bypass netfilter's output hooks. batched only."),
    row("datapath", "zerocopy", "zerocopy", Kind::Text, r#""auto""#, "auto",
        "The kernel reads large VXLAN sends where they lie: auto (until it says that it copied after all), on, off. batched only."),
    reload(row("datapath", "ecn", "ecn", Kind::Text, r#""auto""#, "auto",
        "Outer ECN field: copy (RFC 6040), clear (for peers that do not carry it back), auto (clear with udp, whose peers may be flanneld; copy with vxlan).")),
    reload(row("datapath", "dscp", "dscp", Kind::Text, r#""pipe""#, "pipe",
        "Inner DSCP after the overlay: pipe keeps it, uniform copies it out and back in (RFC 2983).")),
    row("datapath", "df", "df", Kind::Text, r#""unset""#, "unset",
        "Don't Fragment bit of the outer IPv4 header: unset, set."),
    reload(row("datapath", "accept-node-source", "accept-node-source", Kind::Bool, "false", "false",
        "Also accept inner packets whose source is the sending peer's own public IP.")),
    reload(row("datapath", "icmp-rate", "icmp-rate", Kind::Number, "1000", "1000",
        "ICMP errors we send, at most, per second; 0 sends none.")),
    row("datapath", "udp6-zero-checksum", "udp6-zero-checksum", Kind::Bool, "false", "false",
        "Accept a zero outer UDP checksum over IPv6 (RFC 6935)."),

    row("store", "type", "store", Kind::Text, r#""file""#, "file",
        "Kind of lease store: file, or etcd (which flannel's nodes share)."),
    row("store", "path", "leases", Kind::Text, r#""leases.json""#, "leases.json beside the configuration file",
        "file: the lease file, relative to the file that names it. Its directory is watched: replace it by rename."),
    flannel("FLANNELD_ETCD_ENDPOINTS",
        row("store", "endpoints", "etcd-endpoints", Kind::List, r#"["http://127.0.0.1:2379"]"#, "http://127.0.0.1:2379",
        "etcd: its members, one of which must answer.")),
    flannel("FLANNELD_ETCD_PREFIX",
        row("store", "prefix", "etcd-prefix", Kind::Text, r#""/coreos.com/network""#, "/coreos.com/network",
        "etcd: what all keys begin with.")),
    flannel("FLANNELD_ETCD_CAFILE",
        row("store", "ca-file", "etcd-ca-file", Kind::Text, r#""ca.pem""#, "none",
        "etcd: the certificate authority that its members are checked against; makes it TLS.")),
    flannel("FLANNELD_ETCD_CERTFILE",
        row("store", "cert-file", "etcd-cert-file", Kind::Text, r#""cert.pem""#, "none",
        "etcd: the certificate that this node shows.")),
    flannel("FLANNELD_ETCD_KEYFILE",
        row("store", "key-file", "etcd-key-file", Kind::Text, r#""key.pem""#, "none",
        "etcd: that certificate's key.")),
    flannel("FLANNELD_ETCD_USERNAME",
        row("store", "username", "etcd-username", Kind::Text, r#""overlay""#, "none",
        "etcd: the user.")),
    row("store", "password-file", "etcd-password-file", Kind::Text, r#""password""#, "none",
        "etcd: a file that holds the user's password, its first line."),
    flannel("FLANNELD_ETCD_PASSWORD",
        row("store", "password", "etcd-password", Kind::Text, r#""secret""#, "none",
        "etcd: the user's password. Better in password-file: others may see flags and variables.")),
    flannel("FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        row("store", "renew-margin", "lease-renew-margin", Kind::Number, "60", "60",
        "etcd: minutes before its end at which this node's lease is renewed, 1 to 1439.")),
    flannel("FLANNELD_SUBNET_FILE",
        row("store", "subnet-file", "subnet-file", Kind::Text, r#""/run/flannel/subnet.env""#, "none is written",
        "Where this node's subnet and MTU are written for container runtimes, as flannel does.")),
    row("store", "lease-ttl", "lease-ttl", Kind::Number, "86400", "86400",
        "etcd: seconds that this node's lease lives without renewal, 5 to 2592000; flannel's are 24 hours."),
    row("store", "saved-table", "saved-table", Kind::Text, r#""/var/lib/overlayd/leases.saved""#, "/var/lib/overlayd/leases.saved",
        "etcd: the file that keeps the last known leases, for a start without the store."),

    row("control", "socket", "socket", Kind::Text, r#""/run/overlayd/overlayd.sock""#, "/run/overlayd/overlayd.sock",
        "Unix socket that `overlayd status` and the other reading commands ask."),

    row("control", "metrics", "metrics", Kind::Text, r#""127.0.0.1:9285""#, "none",
        "Address and port for HTTP: /metrics (Prometheus), /healthz, /readyz. Everybody who reaches it may read."),

    reload(row("log", "level", "log-level", Kind::Text, r#""info""#, "info",
        "error, warn, info, debug or trace; or filters such as \"info,overlayd::lease=debug\".")),
    row("log", "format", "log-format", Kind::Text, r#""text""#, "text",
        "text or json (one object per line)."),
];

/// The option `section.key`.
pub fn find(section: &str, key: &str) -> Option<&'static Opt> {
    OPTIONS
        .iter()
        .find(|opt| opt.section == section && opt.key == key)
}

/// The option named `section.key` in one string.
pub fn named(name: &str) -> Option<&'static Opt> {
    name.split_once('.')
        .and_then(|(section, key)| find(section, key))
}

/// The candidate nearest to a misspelt word, if one is near enough to be meant.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_options_share_a_name() {
        let mut keys = HashSet::new();
        let mut flags = HashSet::from(["config", "help", "version", "json"]);
        let mut variables =
            HashSet::from(["OVERLAYD_CONFIG".to_owned(), "OVERLAYD_LAB".to_owned()]);
        for opt in OPTIONS {
            assert!(keys.insert(opt.name()), "{} stands twice", opt.name());
            assert!(
                SECTIONS.iter().any(|(name, _)| *name == opt.section),
                "{}",
                opt.name()
            );
            assert!(flags.insert(opt.flag), "--{} stands twice", opt.flag);
            for variable in opt.variables() {
                assert!(
                    variables.insert(variable.clone()),
                    "{variable} stands twice"
                );
            }
            if !opt.flannel.is_empty() {
                assert!(variables.insert(opt.flannel.to_owned()));
            }
        }
    }

    #[test]
    fn nearest_finds_what_was_meant_and_nothing_else() {
        let keys = ["subnet-len", "network", "port", "public-ip"];
        assert_eq!(nearest("subnet_len", keys), Some("subnet-len"));
        assert_eq!(nearest("netwrok", keys), Some("network"));
        assert_eq!(nearest("Port", keys), Some("port"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
    }
}
