//! flanneld's command lines, and what becomes of them.

use super::*;
use crate::config::{Config, EtcdStore, Password, Store};

fn command(args: &str) -> Box<Command> {
    match parse(args.split_whitespace().map(OsString::from)) {
        Ok(Asked::Run(command) | Asked::PrintConfig(command)) => command,
        other => panic!("{args}: {other:?}"),
    }
}

fn config(args: &str, env: &[(&str, &str)]) -> Config {
    let env = env.iter().map(|(k, v)| (k.into(), v.into()));
    let command = command(args);
    let none = Path::new("/nonexistent/overlayd.toml");
    resolve::load(None, none, &command.overrides, env)
        .unwrap_or_else(|error| panic!("{args}: {error}"))
}

fn etcd(config: &Config) -> &EtcdStore {
    match &config.store {
        Store::Etcd(etcd) => etcd,
        store => panic!("{store:?}"),
    }
}

fn wrong(args: &str, words: &str) {
    match parse(args.split_whitespace().map(OsString::from)) {
        Err(error) => assert!(error.to_string().contains(words), "{args}: {error}"),
        other => panic!("{args}: {other:?}"),
    }
}

#[test]
fn without_flags_it_is_flanneld_by_default() {
    let config = config("", &[]);
    assert_eq!(
        etcd(&config).endpoints,
        ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
    );
    assert_eq!(etcd(&config).prefix, "/coreos.com/network");
    assert_eq!(etcd(&config).renew_margin.as_secs(), 3600);
    assert_eq!(
        config.subnet_file.as_deref(),
        Some(Path::new("/run/flannel/subnet.env"))
    );
    assert!(!config.firewall.ip_masq && config.firewall.forward_rules);
    assert_eq!(config.firewall.resync.as_secs(), 5);
    assert_eq!(config.control.metrics, None);
    assert!(config.device.flannel_name);
}

#[test]
fn every_form_of_a_flag_that_go_takes() {
    for args in [
        "-ip-masq",
        "--ip-masq",
        "-ip-masq=true",
        "--ip-masq=T",
        "-ip-masq=1",
    ] {
        assert!(config(args, &[]).firewall.ip_masq, "{args}");
    }
    assert!(!config("-ip-masq=False", &[]).firewall.ip_masq);
    for args in ["-iface eth1 --iface=eth0", "--iface eth1 -iface=eth0"] {
        assert_eq!(config(args, &[]).node.iface, ["eth1", "eth0"], "{args}");
    }
    // A switch takes no value after a space: this is a stray word, as in Go.
    wrong("-ip-masq true", "begin it with a dash");
    wrong("-etcd-prefix", "a value must follow");
    wrong("-etcd-prefx=/x", "did you mean -etcd-prefix?");
    wrong("-ip-masq=yes", "neither true nor false");
}

#[test]
fn each_flag_means_its_option() {
    let all = config(
        "-etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 -etcd-prefix=/x -etcd-keyfile=/k \
         -etcd-certfile=/c -etcd-cafile=/ca -etcd-username=u -etcd-password=p -iface-regex=^10\\. \
         -iface-regex ^eth{1,2} -iface-can-reach=192.0.2.1 -subnet-file=/s -public-ip=192.0.2.9 \
         -public-ipv6=2001:db8::9 -subnet-lease-renew-margin=90 -healthz-ip=127.0.0.1 -healthz-port=8471 \
         -iptables-resync=7 -iptables-forward-rules=false -v=5 -kube-subnet-mgr=false",
        &[],
    );
    assert_eq!(
        *etcd(&all),
        EtcdStore {
            endpoints: vec![
                "https://10.0.0.1:2379".into(),
                "https://10.0.0.2:2379".into()
            ],
            prefix: "/x".into(),
            ca_file: Some("/ca".into()),
            cert_file: Some("/c".into()),
            key_file: Some("/k".into()),
            username: Some("u".into()),
            password: Some(Password::Text("p".into())),
            renew_margin: std::time::Duration::from_secs(90 * 60),
            lease_ttl: std::time::Duration::from_secs(24 * 3600),
            saved_table: "/var/lib/overlayd/leases.saved".into(),
        }
    );
    assert!(!format!("{all:?}").contains("Text(\"p\")"));
    assert_eq!(all.node.iface_regex, ["^10\\.", "^eth{1,2}"]);
    assert_eq!(all.node.can_reach, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(all.node.public_ip, Some("192.0.2.9".parse().unwrap()));
    assert_eq!(all.node.public_ipv6, Some("2001:db8::9".parse().unwrap()));
    assert_eq!(all.subnet_file.as_deref(), Some(Path::new("/s")));
    assert_eq!(all.control.metrics, Some("127.0.0.1:8471".parse().unwrap()));
    assert_eq!(all.firewall.resync.as_secs(), 7);
    assert!(!all.firewall.forward_rules);
    assert_eq!(all.log.level, "debug");
}

#[test]
fn flags_beat_our_variables_and_those_flannels() {
    let env = [
        ("FLANNELD_IFACE", "theirs0"),
        ("FLANNELD_IP_MASQ", "True"),
        ("FLANNELD_HEALTHZ_PORT", "8471"),
        ("FLANNELD_ETCD_ENDPOINTS", "http://10.0.0.1:2379"),
    ];
    let theirs = config("", &env);
    assert_eq!(theirs.node.iface, ["theirs0"]);
    assert!(theirs.firewall.ip_masq);
    assert_eq!(
        theirs.control.metrics,
        Some("0.0.0.0:8471".parse().unwrap())
    );
    assert_eq!(etcd(&theirs).endpoints, ["http://10.0.0.1:2379"]);

    let ours: Vec<_> = [
        ("OVERLAYD_IFACE", "ours0"),
        ("OVERLAYD_METRICS", "127.0.0.1:1"),
    ]
    .into_iter()
    .chain(env)
    .collect();
    let both = config("-ip-masq=false", &ours);
    assert_eq!(both.node.iface, ["ours0"]);
    assert_eq!(both.control.metrics, Some("127.0.0.1:1".parse().unwrap()));
    assert!(!both.firewall.ip_masq);
    assert_eq!(config("-iface=flag0", &ours).node.iface, ["flag0"]);
}

#[test]
fn the_file_stands_between_the_variables_and_flanneld_s_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("overlayd.toml");
    std::fs::write(
        &file,
        "[store]\nprefix = '/file'\nsubnet-file = '/file.env'\n[node]\niface = ['a0', 'b0']\n",
    )
    .unwrap();
    let args = format!("-config {} -etcd-prefix=/flag", file.display());
    let command = command(&args);
    let config = Config::load(
        command.config.as_deref(),
        &command.overrides,
        [("FLANNELD_IFACE".into(), "env0".into())],
    )
    .unwrap();
    assert_eq!(etcd(&config).prefix, "/flag");
    assert_eq!(config.subnet_file.as_deref(), Some(Path::new("/file.env")));
    assert_eq!(config.node.iface, ["env0"]);
}

#[test]
fn kubernetes_is_refused_and_idle_flags_say_so() {
    wrong("-kube-subnet-mgr", "keep flanneld on such a cluster");
    wrong("--kube-subnet-mgr=true", "Kubernetes");
    let idle = command("-kube-api-url=http://x -set-node-network-unavailable -vmodule=a=1");
    assert_eq!(idle.warnings.len(), 3, "{:?}", idle.warnings);
    let env = [("FLANNELD_KUBE_SUBNET_MGR".into(), "true".into())];
    let none = Path::new("/nonexistent/overlayd.toml");
    let error = resolve::load(None, none, &Overrides::default(), env).unwrap_err();
    assert!(error.to_string().contains("keep flanneld"), "{error}");
    wrong("-healthz-port=8471 -healthz-ip=here", "-healthz-ip");
    wrong("-v=loud", "a number from 0");
}

#[test]
fn help_and_version_in_every_spelling() {
    for args in ["-h", "--help", "-help", "-iface x -help"] {
        let asked = parse(args.split_whitespace().map(OsString::from));
        assert!(matches!(asked, Ok(Asked::Help)), "{args}");
    }
    let asked = parse(["--version".into()]);
    assert!(matches!(asked, Ok(Asked::Version)));
    let help = help();
    for flag in FLAGS.iter().filter(|flag| flag.name != "h") {
        assert!(help.contains(&format!("  -{}", flag.name)), "{}", flag.name);
    }
}

#[test]
fn the_table_of_options_names_the_same_variables() {
    for flag in FLAGS {
        if let Some(opt) = flag.option() {
            assert_eq!(opt.flannel, flag.variable(), "{}", flag.name);
        } else {
            assert!(!matches!(flag.meaning, Meaning::Sets(_)), "{}", flag.name);
        }
    }
    for opt in OPTIONS.iter().filter(|opt| !opt.flannel.is_empty()) {
        assert!(flag_of_variable(opt.flannel).is_some(), "{}", opt.name());
    }
}

#[test]
fn flannels_device_names() {
    let args = "-store file -network 10.244.0.0/16 -leases /x.json";
    assert_eq!(config(args, &[]).device.name, "flannel.1");
    let vni = format!("{args} --vni 7");
    assert_eq!(config(&vni, &[]).device.name, "flannel.7");
    let udp = format!("{args} --backend udp");
    assert_eq!(config(&udp, &[]).device.name, "flannel0");
    let named = format!("{args} --device mine0");
    assert_eq!(config(&named, &[]).device.name, "mine0");
}

#[test]
fn the_printed_file_does_the_same() {
    let args = "-iface=eth0 -iface=192.0.2.7 -iface-regex ^10\\.\"1 -ip-masq -etcd-cafile=ca.pem -healthz-port=8471 -v=3";
    let (command, before) = (command(args), config(args, &[]));
    let printed = print_config(&command, []).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("overlayd.toml");
    std::fs::write(&file, &printed).unwrap();
    let after = Config::load(Some(&file), &Overrides::default(), [])
        .unwrap_or_else(|error| panic!("{printed}\n{error}"));
    assert_eq!(after, before, "{printed}");
    assert!(printed.contains("# flanneld's default"));

    let secret = self::command("-etcd-password=hunter2");
    assert!(!print_config(&secret, []).unwrap().contains("hunter2"));
}

#[test]
fn what_has_no_effect_stands_in_the_printed_file() {
    let idle = command("-kube-api-url=http://x -vmodule=a=1 -net-config-path=/nonexistent.json");
    let env = [("FLANNELD_KUBECONFIG_FILE".into(), "/k".into())];
    let printed = print_config(&idle, env).unwrap();
    for name in [
        "kube-api-url",
        "vmodule",
        "net-config-path",
        "kubeconfig-file",
    ] {
        let told = |line: &&str| {
            line.starts_with("# ") && line.contains(name) && line.contains("no effect")
        };
        assert!(printed.lines().any(|line| told(&line)), "{name}: {printed}");
    }
    assert!(!printed.contains("\nnet-conf"), "{printed}");
    let file = command("-store=file -network=10.244.0.0/16 -net-config-path=/nonexistent.json");
    print_config(&file, []).unwrap_err();
}

#[test]
fn a_net_conf_beside_etcd_is_passed_over_as_flanneld_does_and_otherwise_refused() {
    let none = Path::new("/nonexistent/overlayd.toml");
    let etcd = Overrides::default().set("store.type", "etcd");
    let theirs = [("FLANNELD_NET_CONFIG_PATH".into(), "/n.json".into())];
    let config = resolve::load(None, none, &etcd, theirs).unwrap();
    assert!(config.warnings[0].contains("no effect"), "{config:?}");
    let ours = [("OVERLAYD_NET_CONF".into(), "/n.json".into())];
    let error = resolve::load(None, none, &etcd, ours).unwrap_err();
    assert!(error.to_string().contains("take this out"), "{error}");
    let error = resolve::load(None, none, &etcd.set("network.net-conf", "/n.json"), []);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("--net-conf") && error.contains("<prefix>/config"),
        "{error}"
    );
}

#[test]
fn a_stray_flag_is_known_for_flanneld_s() {
    for (args, flag) in [
        (&["--iface=eth0", "-ip-masq"][..], Some("-ip-masq")),
        (&["--kube-subnet-mgr"], Some("--kube-subnet-mgr")),
        (&["--etcd-cafile=x"], Some("--etcd-cafile=x")),
        (&["--ip-masq", "--iface=eth0", "--colour"], None),
        (&["-h"], None),
    ] {
        assert_eq!(stray(args.iter().copied()), flag);
    }
}
