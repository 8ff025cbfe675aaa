//! What configurations mean, and what people are told.

mod changes;
mod hostile;
mod mistakes;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::options::OPTIONS;
use super::*;

const NETWORK: &str = "[network]\nnetwork = \"10.244.0.0/16\"\n";

/// Loads a file of this text under these flags and variables.
struct Case {
    dir: TempDir,
    overrides: Overrides,
    env: Vec<(OsString, OsString)>,
}

impl Case {
    fn new(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("overlayd.toml"), text).unwrap();
        Case {
            dir,
            overrides: Overrides::default(),
            env: Vec::new(),
        }
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.overrides = self.overrides.set(name, value);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("overlayd.toml")
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(Some(&self.path()), &self.overrides, self.env.clone())
    }

    fn good(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The error, without the directory, has these parts.
    fn bad(&self, parts: &[&str]) {
        let error = self.load().expect_err("must be refused").to_string();
        for part in parts {
            assert!(error.contains(part), "this does not say {part:?}:\n{error}");
        }
    }
}

#[test]
fn defaults() {
    let case = Case::new(NETWORK);
    let config = case.good();
    assert_eq!(config.network.v4.unwrap().to_string(), "10.244.0.0/16");
    assert_eq!(config.network.v6, None);
    assert_eq!((config.subnet_len, config.ipv6_subnet_len), (24, 64));
    assert_eq!(
        config.backend,
        Backend::Vxlan(VxlanBackend {
            vni: 1,
            port: 8472,
            strict: false,
            direct_routing: false
        })
    );
    assert_eq!(
        config.device,
        Device {
            name: "overlay0".to_owned(),
            flannel_name: false,
            mtu: None
        }
    );
    assert_eq!(
        config.store,
        Store::File {
            path: case.dir.path().join("leases.json")
        }
    );
    assert_eq!(config.control.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(
        config.log,
        Log {
            level: "info".to_owned(),
            format: LogFormat::Text
        }
    );
    assert!(!config.node.name.is_empty());
    let Datapath {
        engine,
        injection,
        queues,
        busy_poll,
        nice,
        rx_delay,
        zerocopy,
        ecn,
        dscp,
        df,
        accept_node_source,
        icmp_rate,
        udp6_zero_checksum,
    } = config.datapath;
    assert_eq!(
        (engine, queues, ecn, dscp, df),
        (Engine::Batched, 1, Ecn::Auto, Dscp::Pipe, Df::Unset)
    );
    assert_eq!(injection, Injection::Auto);
    assert_eq!((busy_poll, nice), (Duration::ZERO, -5));
    assert_eq!(rx_delay, Duration::from_micros(25));
    assert_eq!(zerocopy, Zerocopy::Auto);
    assert_eq!(
        (accept_node_source, icmp_rate, udp6_zero_checksum),
        (false, 1000, false)
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn everything_written() {
    let config = Case::new(
        r#"
        [network]
        network = "10.0.0.0/8"
        ipv6-network = "fd00::/40"
        subnet-len = 20
        ipv6-subnet-len = 56
        [backend]
        type = "vxlan"
        vni = 0xABCDEF
        port = 4789
        mode = "tun"
        strict = true
        [node]
        name = "node-a"
        iface = "eth0"
        public-ip = "192.0.2.10"
        public-ipv6 = "2001:db8::10"
        [device]
        name = "flannel.1"
        mtu = 1_400
        [datapath]
        engine = "classic"
        queues = 3
        busy-poll = 50
        nice = -20
        rx-usecs = 1000
        zerocopy = "on"
        ecn = "clear"
        dscp = "uniform"
        df = "set"
        accept-node-source = true
        icmp-rate = 0
        udp6-zero-checksum = true
        [store]
        type = "file"
        path = "/var/lib/leases.json"
        [control]
        socket = "run/sock"
        [log]
        level = "info,overlayd::lease=debug"
        format = "json"
        [[route]]
        prefix = "10.20.0.0/16"
        via = "192.0.2.11"
        [[route]]
        prefix = "fd55::/64"
        via = "2001:db8::11"
        "#,
    );
    let dir = config.dir.path().to_owned();
    let config = config.good();
    assert_eq!(
        config.backend,
        Backend::Vxlan(VxlanBackend {
            vni: 0xab_cdef,
            port: 4789,
            strict: true,
            direct_routing: false
        })
    );
    assert_eq!((config.subnet_len, config.ipv6_subnet_len), (20, 56));
    assert_eq!(
        config.device,
        Device {
            name: "flannel.1".to_owned(),
            flannel_name: false,
            mtu: Some(1400)
        }
    );
    assert_eq!(
        config.store,
        Store::File {
            path: "/var/lib/leases.json".into()
        }
    );
    assert_eq!(config.control.socket, dir.join("run/sock"));
    assert_eq!(config.datapath.queues, 3);
    assert_eq!(config.datapath.busy_poll, Duration::from_micros(50));
    assert_eq!(config.datapath.nice, -20);
    assert_eq!(config.datapath.rx_delay, Duration::from_millis(1));
    assert_eq!(config.datapath.zerocopy, Zerocopy::On);
    assert_eq!(config.datapath.ecn, Ecn::Clear);
    assert_eq!(config.datapath.dscp, Dscp::Uniform);
    assert_eq!(config.datapath.df, Df::Set);
    assert!(config.datapath.accept_node_source && config.datapath.udp6_zero_checksum);
    assert_eq!(config.datapath.icmp_rate, 0);
    assert_eq!(
        config.node.public_ipv6,
        Some("2001:db8::10".parse().unwrap())
    );
    assert_eq!(config.log.format, LogFormat::Json);
    let routes: Vec<_> = config
        .routes
        .iter()
        .map(|route| format!("{} via {}", route.prefix, route.via))
        .collect();
    assert_eq!(
        routes,
        ["10.20.0.0/16 via 192.0.2.11", "fd55::/64 via 2001:db8::11"]
    );
}

#[test]
fn flag_before_our_variable_before_flannels_before_file_before_default() {
    let iface = |case: &Case| case.good().node.iface;
    let case = Case::new(NETWORK);
    assert!(iface(&case).is_empty());
    let case = Case::new(&format!("{NETWORK}[node]\niface = \"file0\"\n"));
    assert_eq!(iface(&case), ["file0"]);
    let case = case.env("FLANNELD_IFACE", "flannel0");
    assert_eq!(iface(&case), ["flannel0"]);
    let case = case.env("OVERLAYD_IFACE", "ours0");
    assert_eq!(iface(&case), ["ours0"]);
    let case = case.flag("node.iface", "flag0");
    assert_eq!(iface(&case), ["flag0"]);
}

#[test]
fn variables() {
    let case = Case::new(NETWORK)
        .env("FLANNELD_PUBLIC_IP", "192.0.2.1")
        .env("FLANNELD_PUBLIC_IPV6", "2001:db8::1")
        .env("OVERLAYD_BACKEND_TYPE", "udp")
        .env("OVERLAYD_PORT", "9999")
        .env("OVERLAYD_DEVICE", "")
        .env("OVERLAYD_LAB", "lab")
        .env("OVERLAYD_CONFIG", "/nowhere")
        .env("OVERLAYD_SOCKET", "/run/x.sock")
        .env("FLANNELD_CHARGE", "true")
        .env("OVERLAYD_PROT", "1")
        .env("PATH", "/bin");
    let config = case.good();
    assert_eq!(config.node.public_ip, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(
        config.node.public_ipv6,
        Some("2001:db8::1".parse().unwrap())
    );
    assert_eq!(config.backend, Backend::Udp(UdpBackend { port: 9999 }));
    assert_eq!(
        config.device.name, "overlay0",
        "an empty variable is not set"
    );
    assert_eq!(config.control.socket, Path::new("/run/x.sock"));
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("FLANNELD_CHARGE"));
    assert!(
        config.warnings[1].contains("did you mean OVERLAYD_PORT?"),
        "{}",
        config.warnings[1]
    );

    Case::new(NETWORK)
        .env("OVERLAYD_VNI", "1")
        .env("OVERLAYD_BACKEND_VNI", "2")
        .bad(&["OVERLAYD_VNI=1", "OVERLAYD_BACKEND_VNI=2", "unset one"]);
    Case::new(NETWORK)
        .env("OVERLAYD_VNI", "x")
        .bad(&["OVERLAYD_VNI=\"x\": not a number"]);

    use std::os::unix::ffi::OsStringExt;
    let mut case = Case::new(NETWORK);
    case.env
        .push(("OVERLAYD_IFACE".into(), OsString::from_vec(vec![0xff])));
    case.env.push((OsString::from_vec(vec![0xff]), "x".into()));
    case.bad(&["OVERLAYD_IFACE: the value is not UTF-8"]);
}

#[test]
fn files() {
    let none = || std::iter::empty::<(OsString, OsString)>();
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("none.toml");
    let flags = Overrides::default().set("network.network", "10.1.0.0/16");

    let error = Config::load(Some(&missing), &flags, none())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("none.toml") && error.contains("config example"),
        "{error}"
    );
    // The default file may be missing, where the flags say enough.
    let config = resolve::load(None, &missing, &flags, none()).unwrap();
    assert_eq!(
        config.store,
        Store::File {
            path: dir.path().join("leases.json")
        }
    );
    let error = resolve::load(None, &missing, &Overrides::default(), none())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not exist, and no flag names a network"),
        "{error}"
    );
    // It may not be unreadable.
    assert!(resolve::load(None, dir.path(), &flags, none()).is_err());

    // A path in a flag is relative to the working directory, one in the file to the file.
    let flags = flags.set("store.path", "here.json");
    let config = resolve::load(None, &missing, &flags, none()).unwrap();
    assert_eq!(
        config.store,
        Store::File {
            path: std::env::current_dir().unwrap().join("here.json")
        }
    );

    fs::write(&missing, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = Config::load(Some(&missing), &flags, none())
        .unwrap_err()
        .to_string();
    assert!(error.contains("longer than"), "{error}");
    fs::write(&missing, b"# one\n# \xff\n").unwrap();
    let error = Config::load(Some(&missing), &flags, none())
        .unwrap_err()
        .to_string();
    assert!(error.contains("none.toml:2: not UTF-8"), "{error}");
}

#[test]
fn net_conf_stands_beside_the_file() {
    let with = |json: &str, toml: &str| {
        Case::new(&format!("[network]\nnet-conf = 'net-conf.json'\n{toml}"))
            .file("net-conf.json", json)
    };
    // flannel's documentation, keys in any case.
    let config = with(
        r#"{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0",
            "EnableIPv6": true, "ipv6network": "fc00::/48", "IPv6SubnetLen": 64,
            "Backend": {"Type": "udp", "port": 7890}}"#,
        "",
    )
    .good();
    assert_eq!(config.network.v4.unwrap().to_string(), "10.0.0.0/8");
    assert_eq!(config.network.v6.unwrap().to_string(), "fc00::/48");
    assert_eq!((config.subnet_len, config.ipv6_subnet_len), (20, 64));
    assert_eq!(config.backend, Backend::Udp(UdpBackend { port: 7890 }));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    // No Backend means udp, unless somebody says otherwise.
    let bare = r#"{"Network": "10.244.0.0/16"}"#;
    assert_eq!(with(bare, "").good().backend.name(), "udp");
    assert_eq!(
        with(bare, "[backend]\ntype = 'vxlan'\n")
            .good()
            .backend
            .name(),
        "vxlan"
    );

    // Agreement is one of meaning; a flag may say otherwise.
    let v6 = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:0::/48"}"#;
    let config = with(v6, "ipv6-network = 'fd00::/48'\n").good();
    assert_eq!(config.network.v4, None);
    with(bare, "network = '10.0.0.0/8'\n").bad(&[
        "overlayd.toml:3:11: network.network = \"10.0.0.0/8\"",
        "net-conf.json: Network = \"10.244.0.0/16\" says otherwise",
    ]);
    with(
        r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": 4096}}"#,
        "[backend]\nvni = 1\n",
    )
    .bad(&["backend.vni = 1", "Backend.VNI = 4096 says otherwise"]);
    let config = with(bare, "").flag("network.network", "10.7.0.0/16").good();
    assert_eq!(config.network.v4.unwrap().to_string(), "10.7.0.0/16");

    // Warnings and refusals.
    let config = with(
        r#"{"Network": "10.1.0.0/16", "Netwrok": 1, "cniVersion": "1", "IPv6Network": "fd00::/48",
            "Backend": {"Type": "vxlan", "DirectRouting": true}}"#,
        "",
    )
    .good();
    let warnings = config.warnings.join("\n");
    for part in [
        "did you mean Network?",
        "\"cniVersion\"",
        "EnableIPv6 is not true",
    ] {
        assert!(warnings.contains(part), "{warnings}");
    }
    assert!(config.backend.vxlan().unwrap().direct_routing);
    let direct =
        r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    with(direct, "[backend]\ndirect-routing = false\n").bad(&["Backend.DirectRouting"]);
    let routed = r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    assert_eq!(with(routed, "").good().backend, Backend::HostGw);
    with(r#"{"Network": "10.1.0.1/16"}"#, "").bad(&[
        "net-conf.json: Network = \"10.1.0.1/16\"",
        "write 10.1.0.0/16",
    ]);
    with(
        r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1500}}"#,
        "",
    )
    .bad(&["Backend.MTU", "[device]"]);
    with(
        r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard"}}"#,
        "",
    )
    .bad(&["Backend.Type = \"wireguard\""]);
    with(r#"{"Network": "10.1.0.0/16", "Backend": {}}"#, "").bad(&["no Type"]);
    with(r#"{"Network": "10.1.0.0/16", "EnableIPv6": true}"#, "").bad(&["IPv6Network; add it"]);
    with(r#"{"Network": "10.1.0.0/16", "EnableIPv6": "yes"}"#, "")
        .bad(&["EnableIPv6: expected true or false"]);
    with(r#"{"Network": ["10.1.0.0/16"]}"#, "").bad(&["Network: expected a string"]);
    with("{\"Network\": ", "").bad(&["net-conf.json: not valid JSON", "line 1"]);
    with("{}", "").bad(&["names no network"]);
    Case::new("[network]\nnet-conf = 'nowhere.json'\n")
        .bad(&["overlayd.toml:2:12: network.net-conf", "No such file"]);
}

#[test]
fn the_example_is_valid_and_names_every_option() {
    let text = example();
    assert!(text.lines().all(|line| line.len() <= 110), "{text}");
    let config = Case::new(&text).good();
    assert!(config.warnings.is_empty());

    // With every example switched on, each key is known and each value of the right kind.
    let all: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(code) if code.contains(" = ") || code == "[[route]]" => code,
            _ => line,
        })
        .collect();
    let net_conf = r#"net-conf = "/etc/kube-flannel/net-conf.json""#;
    assert!(all.contains(&net_conf));
    let all = all.join("\n").replace(net_conf, "");
    let config = Case::new(&all).good();
    assert_eq!(config.routes.len(), 1);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    for opt in OPTIONS {
        assert!(
            text.contains(&format!("\n# (--{}", opt.flag)),
            "{} is not explained",
            opt.name()
        );
    }
}

#[test]
fn check_reports_what_the_daemon_would_make_of_the_leases() {
    let run = |case: &Case| {
        run_check(
            Some(&case.path()),
            &Overrides::default(),
            std::iter::empty(),
        )
        .unwrap()
    };
    let case = Case::new(&format!(
        "{NETWORK}[node]\npublic-ip = '10.99.0.1'\n[[route]]\nprefix='10.9.0.0/16'\nvia='10.99.0.9'\n"
    ));

    let report = run(&case);
    assert!(!report.is_good());
    assert!(
        report.to_string().contains("no such lease file"),
        "{report}"
    );

    let case = case.file(
        "leases.json",
        r#"[{"Subnet": "10.244.7.0/24", "PublicIP": "10.99.0.7", "BackendType": "host-gw"},
            {"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1"},
            {"Subnet": "10.244.1.0/25", "PublicIP": "10.99.0.2"}]"#,
    );
    let report = run(&case);
    let verdict = report.leases.as_ref().unwrap();
    assert_eq!(
        (verdict.total, verdict.accepted, verdict.own),
        (3, 1, Some(1))
    );
    assert_eq!(verdict.skipped, [(0, "host-gw".to_owned())]);
    assert_eq!(
        verdict
            .refused_leases
            .iter()
            .map(|(index, _)| *index)
            .collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(verdict.refused_routes.len(), 1);
    assert!(!report.is_good());
    let json = report.to_json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["leases"]["refused"][0]["index"], 2);
    assert_eq!(json["backend"]["vni"], 1);

    let good = Case::new(NETWORK).file("leases.json", "[]");
    assert!(run(&good).is_good());
    assert_eq!(run(&good).to_json()["ok"], true);
}
