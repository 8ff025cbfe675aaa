//! flannel's net-conf.json: the network-wide part of the configuration.
//!
//! Source: flannel `pkg/subnet/config.go` (`Config`, `ParseConfig`) and `pkg/backend/*`. As Go's
//! decoder does, keys are matched without regard to case, the last of equal keys counts, and keys
//! of other tools are passed over.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{ConfigError, Origin, Quoted, Setting};
use super::options;

/// What net-conf.json says, as settings of ours.
#[derive(Debug, Default)]
pub(crate) struct NetConf {
    pub(crate) settings: Vec<Setting>,
    pub(crate) warnings: Vec<String>,
    pub(crate) problems: Vec<String>,
    /// flannel's meaning of a net-conf.json without `Backend`.
    pub(crate) implies_udp: bool,
}

/// Reads net-conf.json's bytes.
///
/// # Errors
/// Where the text is no JSON object. What is wrong with single keys goes to `problems`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<NetConf, ConfigError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let fail = |what: String| ConfigError::one(format!("{}: {what}", path.display()));
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| fail(format!("not valid JSON: {error}")))?;
    let Value::Object(root) = value else {
        return Err(fail(
            "expected an object such as {\"Network\": \"10.244.0.0/16\"}".to_owned(),
        ));
    };
    let mut reader = Reader {
        path,
        out: NetConf::default(),
    };
    reader.root(&root);
    Ok(reader.out)
}

/// The value under a key, spelt in any case; the exact spelling first.
pub(crate) fn field<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let found = object.get(key).or_else(|| {
        object
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

const ROOT_KEYS: &[&str] = &[
    "Network",
    "SubnetLen",
    "IPv6Network",
    "IPv6SubnetLen",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
];
const BACKEND_KEYS: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "DirectRouting",
    "Learning",
    "GBP",
];

struct Reader<'a> {
    path: &'a Path,
    out: NetConf,
}

impl Reader<'_> {
    fn root(&mut self, root: &Map<String, Value>) {
        self.warn_unknown(root, ROOT_KEYS, "");
        // flannel: IPv4 is on and IPv6 off unless said otherwise; the other family's keys are then
        // not looked at.
        if self.flag(root, "EnableIPv4", "EnableIPv4").unwrap_or(true) {
            self.take(root, "Network", "Network", "network.network");
            self.take_len(root, "SubnetLen", "network.subnet-len");
            self.take(root, "SubnetMin", "SubnetMin", "network.subnet-min");
            self.take(root, "SubnetMax", "SubnetMax", "network.subnet-max");
        }
        if self.flag(root, "EnableIPv6", "EnableIPv6").unwrap_or(false) {
            if field(root, "IPv6Network").is_none() {
                self.problem("EnableIPv6", "true, but there is no IPv6Network; add it");
            }
            self.take(root, "IPv6Network", "IPv6Network", "network.ipv6-network");
            self.take_len(root, "IPv6SubnetLen", "network.ipv6-subnet-len");
            self.take(
                root,
                "IPv6SubnetMin",
                "IPv6SubnetMin",
                "network.ipv6-subnet-min",
            );
            self.take(
                root,
                "IPv6SubnetMax",
                "IPv6SubnetMax",
                "network.ipv6-subnet-max",
            );
        } else if field(root, "IPv6Network").is_some() {
            self.warn("IPv6Network", "has no effect while EnableIPv6 is not true");
        }
        match field(root, "Backend") {
            None => self.out.implies_udp = true,
            Some(Value::Object(backend)) => self.backend(backend),
            Some(_) => self.problem(
                "Backend",
                "expected an object such as {\"Type\": \"vxlan\"}",
            ),
        }
    }

    fn backend(&mut self, backend: &Map<String, Value>) {
        if field(backend, "Type").is_none() {
            self.problem(
                "Backend",
                "no Type; add \"Type\": \"vxlan\", \"udp\" or \"host-gw\"",
            );
        }
        self.warn_unknown(backend, BACKEND_KEYS, "Backend.");
        self.take(backend, "Type", "Backend.Type", "backend.type");
        self.take(backend, "VNI", "Backend.VNI", "backend.vni");
        self.take(backend, "Port", "Backend.Port", "backend.port");
        if field(backend, "MTU").is_some() {
            // flannel means the underlay's MTU here; ours is the device's.
            self.problem("Backend.MTU", "not in this version: take it out, and set mtu under [device] of the TOML file to it less the encapsulation's overhead");
        }
        if let Some(on) = self.flag(backend, "DirectRouting", "Backend.DirectRouting") {
            self.push(
                "backend.direct-routing",
                on.to_string(),
                "Backend.DirectRouting",
            );
        }
        if self.flag(backend, "Learning", "Backend.Learning") == Some(true) {
            self.warn("Backend.Learning", "has no effect: the leases decide");
        }
        if self.flag(backend, "GBP", "Backend.GBP") == Some(true) {
            self.problem("Backend.GBP", "not in this version: take it out");
        }
    }

    fn take(&mut self, object: &Map<String, Value>, key: &str, place: &'static str, ours: &str) {
        let text = match field(object, key) {
            None => return,
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return self.problem(place, "expected a string or a number"),
        };
        self.push(ours, text, place);
    }

    fn push(&mut self, ours: &str, text: String, place: &'static str) {
        if let Some(opt) = options::named(ours) {
            let origin = Origin::NetConf {
                path: self.path.to_owned(),
                key: place,
            };
            self.out.settings.push(Setting::new(opt, text, origin));
        }
    }

    /// A prefix length; flannel takes 0 as not set.
    fn take_len(&mut self, root: &Map<String, Value>, key: &'static str, ours: &str) {
        if field(root, key).and_then(Value::as_u64) != Some(0) {
            self.take(root, key, key, ours);
        }
    }

    fn flag(&mut self, object: &Map<String, Value>, key: &str, place: &str) -> Option<bool> {
        let value = field(object, key)?;
        if value.as_bool().is_none() {
            self.problem(place, "expected true or false");
        }
        value.as_bool()
    }

    fn warn_unknown(&mut self, object: &Map<String, Value>, known: &[&str], inside: &str) {
        for key in object
            .keys()
            .filter(|key| !known.iter().any(|known| known.eq_ignore_ascii_case(key)))
        {
            let near = known.iter().copied().find(|known| {
                strsim::jaro_winkler(&known.to_lowercase(), &key.to_lowercase()) > 0.8
            });
            let cure = near.map_or(String::new(), |near| {
                format!("; did you mean {inside}{near}?")
            });
            self.out.warnings.push(format!(
                "{}: unknown key {}: ignored{cure}",
                self.path.display(),
                Quoted(key)
            ));
        }
    }

    fn warn(&mut self, key: &str, what: &str) {
        self.out
            .warnings
            .push(format!("{}: {key} {what}", self.path.display()));
    }

    fn problem(&mut self, key: &str, what: &str) {
        self.out
            .problems
            .push(format!("{}: {key}: {what}", self.path.display()));
    }
}
