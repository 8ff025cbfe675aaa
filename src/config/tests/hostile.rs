//! Files nobody meant: the corpus under `integration/corpus`, and arbitrary bytes.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::super::options::{Kind, OPTIONS};
use super::super::raw::RawConfig;
use super::super::{Config, ConfigError, Overrides, netconf, resolve};

/// Every file of the corpus: `good-*` is taken, `bad-*` is refused with its name in the message.
fn corpus(folder: &str, mut check: impl FnMut(&Path) -> Result<(), String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("integration/corpus")
        .join(folder);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match check(&path) {
            Ok(()) => assert!(name.starts_with("good-"), "{name} was taken"),
            Err(error) => {
                assert!(name.starts_with("bad-"), "{name} was refused: {error}");
                assert!(error.contains(&name), "{name}: {error}");
                assert!(
                    !error.chars().any(|c| c.is_control() && c != '\n'),
                    "{name}: {error:?}"
                );
            }
        }
        seen += 1;
    }
    assert!(seen >= 10, "{seen} files in {}", folder.display());
}

#[test]
fn corpus_of_configurations() {
    corpus("config", |path| {
        let loaded = Config::load(Some(path), &Overrides::default(), std::iter::empty());
        loaded.map(drop).map_err(|error| error.to_string())
    });
}

#[test]
fn corpus_of_net_confs() {
    corpus("netconf", |path| {
        let flags = Overrides::default().set("network.net-conf", path.to_str().unwrap());
        let loaded = resolve::load(
            None,
            Path::new("/nonexistent/overlayd.toml"),
            &flags,
            std::iter::empty(),
        );
        loaded.map(drop).map_err(|error| error.to_string())
    });
}

#[test]
fn corpus_of_leases() {
    corpus("lease", |path| {
        let loaded = crate::lease::file::FileStore::new(path).load();
        loaded.map(drop).map_err(|error| error.to_string())
    });
}

/// What `Config::load` does with a file's bytes.
fn load_bytes(bytes: &[u8]) -> Result<Config, ConfigError> {
    let path = Path::new("/etc/overlayd/overlayd.toml");
    let mut raw = RawConfig::default();
    raw.read_file(path, &resolve::text(path, bytes)?)?;
    resolve::resolve(raw, path, false)
}

/// Any option with a value of its kind, any or extreme.
fn line() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        any::<String>().prop_map(|text| format!("{text:?}")),
        "[0-9a-f.:]{0,12}/[0-9]{0,3}".prop_map(|text| format!("{text:?}")),
        any::<std::net::IpAddr>()
            .prop_flat_map(|ip| (0..=130u8).prop_map(move |len| format!("\"{ip}/{len}\""))),
        any::<std::net::IpAddr>().prop_map(|ip| format!("\"{ip}\"")),
    ];
    (
        0..OPTIONS.len(),
        text,
        any::<i64>(),
        0..70_000i64,
        any::<bool>(),
    )
        .prop_map(|(at, text, wide, near, flag)| {
            let opt = &OPTIONS[at];
            let value = match opt.kind {
                Kind::Text | Kind::List => text,
                Kind::Number | Kind::NumberOrText => if flag { wide } else { near }.to_string(),
                Kind::Bool => flag.to_string(),
            };
            format!("{}.{} = {value}\n", opt.section, opt.key)
        })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = load_bytes(&bytes);
        let _ = netconf::parse(Path::new("net-conf.json"), &bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = load_bytes(text.as_bytes());
    }

    /// What is accepted keeps what the rest of the daemon relies on.
    #[test]
    fn accepted_configurations_keep_their_promises(lines in prop::collection::vec(line(), 0..6)) {
        let mut keys = std::collections::HashSet::new();
        let unique = |line: &&String| keys.insert(line.split(" = ").next().map(str::to_owned));
        let text: String = lines.iter().filter(unique).map(String::as_str).collect();
        if let Ok(config) = load_bytes(text.as_bytes()) {
            prop_assert!(config.network.v4.is_some() || config.network.v6.is_some());
            prop_assert!(config.network.v4.is_none_or(|net| net == net.trunc() && net.prefix_len() < config.subnet_len));
            prop_assert!(config.network.v6.is_none_or(|net| net == net.trunc() && net.prefix_len() < config.ipv6_subnet_len));
            prop_assert!(config.subnet_len <= 30 && config.ipv6_subnet_len <= 126);
            prop_assert!((1..=15).contains(&config.device.name.len()));
            let least = if config.network.v6.is_some() { 1280 } else { 576 };
            prop_assert!(config.device.mtu.is_none_or(|mtu| mtu >= least));
            prop_assert!(config.backend.port() != 0);
        }
    }

    #[test]
    fn arbitrary_net_confs_never_panic(
        network in ".{0,20}", len in any::<i64>(), kind in ".{0,8}", vni in any::<u64>(), flag in any::<bool>()
    ) {
        let json = serde_json::json!({
            "Network": network, "SubnetLen": len, "EnableIPv6": flag, "IPv6Network": network,
            "Backend": {"Type": kind, "VNI": vni, "Port": len, "GBP": flag},
        });
        let conf = netconf::parse(Path::new("net-conf.json"), json.to_string().as_bytes()).unwrap();
        prop_assert!(conf.settings.len() >= 4);
    }
}
