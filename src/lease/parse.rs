//! A JSON array of leases, and back.
//!
//! Tolerant as flannel's own reader is: keys in any case, keys it does not know, and the last of
//! equal keys. Strict about every value that would send packets somewhere.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::{Map, Value, json};

use super::{Lease, VtepData};
use crate::config::{Quoted, json_field as field};

/// A VNI has 24 bits (RFC 7348 §5).
const MAX_VNI: u64 = (1 << 24) - 1;

/// Why there are no leases to use.
#[derive(Debug)]
pub struct LeaseError {
    /// The file, where they come from one.
    pub path: Option<PathBuf>,
    /// What is wrong.
    pub wrong: Wrong,
}

/// What is wrong with a lease file.
#[derive(Debug)]
pub enum Wrong {
    /// There is no such file.
    NotFound,
    /// It can not be read.
    Io(io::Error),
    /// It is no JSON: cut off while it was written, or misspelt.
    Syntax(serde_json::Error),
    /// It is JSON, but no array.
    NotAnArray,
    /// One lease has a value that can not be.
    Lease {
        /// Index in the array, from 0.
        index: usize,
        /// What is wrong and what to do, beginning with the field.
        what: String,
    },
}

impl From<Wrong> for LeaseError {
    fn from(wrong: Wrong) -> Self {
        LeaseError { path: None, wrong }
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: ", path.display())?,
            None => f.write_str("leases: ")?,
        }
        match &self.wrong {
            Wrong::NotFound => f.write_str(
                "no such lease file; write one ([] is an empty one), or correct store.path",
            ),
            Wrong::Io(error) => write!(f, "{error}"),
            Wrong::Syntax(error) if error.is_eof() && error.line() <= 1 && error.column() == 0 => {
                f.write_str("the lease file is empty; an empty table is written []")
            }
            Wrong::Syntax(error) if error.is_eof() => {
                write!(
                    f,
                    "cut off: {error}; write it elsewhere and rename it into place"
                )
            }
            Wrong::Syntax(error) => write!(f, "not valid JSON: {error}"),
            Wrong::NotAnArray => f.write_str(
                "expected an array of leases: [{\"Subnet\": ..., \"PublicIP\": ...}, ...]",
            ),
            Wrong::Lease { index, what } => write!(f, "lease {index} (from 0): {what}"),
        }
    }
}

/// `Display` says the cause as well, so none is given apart: a chain of causes would say it twice.
impl std::error::Error for LeaseError {}

/// Reads a JSON array of leases.
///
/// # Errors
/// The first thing wrong. Whether the leases agree with the network and each other is for
/// [`fdb::Rib`] to say.
pub fn parse(json: &[u8]) -> Result<Vec<Lease>, LeaseError> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let value: Value = serde_json::from_slice(json).map_err(Wrong::Syntax)?;
    let Value::Array(items) = value else {
        return Err(Wrong::NotAnArray.into());
    };
    let lease = |(index, item)| lease(item).map_err(|what| Wrong::Lease { index, what }.into());
    items.iter().enumerate().map(lease).collect()
}

fn lease(item: &Value) -> Result<Lease, String> {
    let Value::Object(item) = item else {
        return Err("expected an object such as {\"Subnet\": \"10.244.1.0/24\", \"PublicIP\": \"192.0.2.1\"}".to_owned());
    };
    let mut lease = object_attributes(item)?;
    lease.subnet = subnet(item, "Subnet")?;
    lease.ipv6_subnet = subnet(item, "IPv6Subnet")?;
    if lease.subnet.is_none() && lease.ipv6_subnet.is_none() {
        return Err(
            "no Subnet and no IPv6Subnet; add the node's part of the overlay network".to_owned(),
        );
    }
    Ok(lease)
}

/// Reads a lease's attributes alone, as they stand in etcd: everything but its subnets.
pub(super) fn attributes(json: &[u8]) -> Result<Lease, String> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(item)) => object_attributes(&item),
        Ok(_) => Err("expected an object such as {\"PublicIP\": \"192.0.2.1\"}".to_owned()),
        Err(error) => Err(format!("not valid JSON: {error}")),
    }
}

fn object_attributes(item: &Map<String, Value>) -> Result<Lease, String> {
    let public_ipv6: Option<Ipv6Addr> = address(item, "PublicIPv6")?;
    // flannel has no "none" for PublicIP: an IPv6-only node writes the unspecified address.
    let mut public_ip: Option<Ipv4Addr> = address(item, "PublicIP")?;
    if public_ipv6.is_some() && public_ip == Some(Ipv4Addr::UNSPECIFIED) {
        public_ip = None;
    }
    refuse_public("PublicIP", public_ip.map(IpAddr::V4))?;
    refuse_public("PublicIPv6", public_ipv6.map(IpAddr::V6))?;
    if public_ip.is_none() && public_ipv6.is_none() {
        return Err(
            "no PublicIP and no PublicIPv6; add the node's address on the underlay".to_owned(),
        );
    }
    let backend_type = text(item, "BackendType")?
        .filter(|name| !name.is_empty())
        .map(str::to_owned);
    // Another backend's data (a WireGuard key, say) has another shape; it is not ours to judge.
    let vxlan = backend_type
        .as_deref()
        .is_none_or(|name| name.eq_ignore_ascii_case("vxlan"));
    let data = |key| if vxlan { vtep(item, key) } else { Ok(None) };
    Ok(Lease {
        subnet: None,
        ipv6_subnet: None,
        public_ip,
        public_ipv6,
        backend_data: data("BackendData")?,
        backend_v6_data: data("BackendV6Data")?,
        backend_type,
    })
}

fn text<'a>(item: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match field(item, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{key}: expected a string, found {}", short(other))),
    }
}

fn address<T: FromStr>(item: &Map<String, Value>, key: &str) -> Result<Option<T>, String> {
    let Some(text) = text(item, key)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| match (text.split_once('/'), text.parse::<IpAddr>()) {
        (_, Ok(IpAddr::V4(_))) => format!(
            "{key} {}: this is an IPv4 address; write it as PublicIP",
            Quoted(text)
        ),
        (_, Ok(IpAddr::V6(_))) => format!(
            "{key} {}: this is an IPv6 address; write it as PublicIPv6",
            Quoted(text)
        ),
        (Some((address, _)), _) if address.parse::<IpAddr>().is_ok() => {
            format!(
                "{key} {}: a public IP has no prefix length; write {address}",
                Quoted(text)
            )
        }
        _ => format!("{key} {}: not an IP address", Quoted(text)),
    })
}

fn refuse_public(key: &str, address: Option<IpAddr>) -> Result<(), String> {
    let Some(address) = address else {
        return Ok(());
    };
    crate::config::refuse_public(address).map_err(|what| format!("{key} \"{address}\": {what}"))
}

/// What the two families of prefixes have in common here.
trait Prefix: FromStr + Copy + PartialEq + fmt::Display {
    /// Other family's key, and a usual length.
    const OTHER: (&'static str, u8);
    fn trunc(&self) -> Self;
}

impl Prefix for Ipv4Net {
    const OTHER: (&'static str, u8) = ("IPv6Subnet", 24);
    fn trunc(&self) -> Self {
        Ipv4Net::trunc(self)
    }
}

impl Prefix for Ipv6Net {
    const OTHER: (&'static str, u8) = ("Subnet", 64);
    fn trunc(&self) -> Self {
        Ipv6Net::trunc(self)
    }
}

fn subnet<T: Prefix>(item: &Map<String, Value>, key: &str) -> Result<Option<T>, String> {
    let Some(text) = text(item, key)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let (other, usual) = T::OTHER;
    let Ok(net) = text.parse::<T>() else {
        let cure = if text.parse::<ipnet::IpNet>().is_ok() {
            format!("this is the other family; write it as {other}")
        } else if format!("{text}/{usual}").parse::<T>().is_ok() {
            format!("no prefix length; write it as {text}/{usual}")
        } else {
            format!(
                "not a prefix; write address/length, for example {}",
                if usual == 24 {
                    "10.244.1.0/24"
                } else {
                    "fd00:10:244:1::/64"
                }
            )
        };
        return Err(format!("{key} {}: {cure}", Quoted(text)));
    };
    if net != net.trunc() {
        return Err(format!(
            "{key} \"{net}\": bits are set after the prefix length; write it as {}",
            net.trunc()
        ));
    }
    Ok(Some(net))
}

fn vtep(item: &Map<String, Value>, key: &str) -> Result<Option<VtepData>, String> {
    let data = match field(item, key) {
        None => return Ok(None),
        Some(Value::Object(data)) => data,
        Some(other) => {
            return Err(format!(
                "{key}: expected an object such as {{\"VNI\": 1}}, found {}",
                short(other)
            ));
        }
    };
    let vni = match field(data, "VNI") {
        None => None,
        Some(value) => match value
            .as_u64()
            .filter(|vni| *vni <= MAX_VNI)
            .map(u32::try_from)
        {
            Some(Ok(vni)) => Some(vni),
            _ => {
                return Err(format!(
                    "{key}.VNI {}: use a number from 0 to {MAX_VNI}",
                    short(value)
                ));
            }
        },
    };
    let vtep_mac = match text(data, "VtepMAC")
        .map_err(|what| format!("{key}.{what}"))?
        .filter(|mac| !mac.is_empty())
    {
        None => None,
        Some(text) => {
            let mac: encap::MacAddr = text
                .parse()
                .map_err(|error| format!("{key}.VtepMAC {}: {error}", Quoted(text)))?;
            if mac.is_multicast() || mac == encap::MacAddr::default() {
                return Err(format!(
                    "{key}.VtepMAC \"{mac}\": not the address of one node; leave it out for the default"
                ));
            }
            Some(mac)
        }
    };
    Ok(Some(VtepData { vni, vtep_mac }))
}

/// A foreign value, short enough for a message.
fn short(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        other => Quoted(&other.to_string()).to_string(),
    }
}

/// Writes leases as [`parse`] reads them: one line each, absent fields left out.
pub fn emit(leases: &[Lease]) -> String {
    let lines: Vec<String> = leases
        .iter()
        .map(|lease| format!("  {}", object(lease)))
        .collect();
    if lines.is_empty() {
        "[]\n".to_owned()
    } else {
        format!("[\n{}\n]\n", lines.join(",\n"))
    }
}

fn object(lease: &Lease) -> Value {
    let data = |data: &VtepData| {
        fields([
            ("VNI", data.vni.map(|vni| json!(vni))),
            ("VtepMAC", data.vtep_mac.map(|mac| json!(mac.to_string()))),
        ])
    };
    fields([
        ("Subnet", lease.subnet.map(|net| json!(net.to_string()))),
        (
            "IPv6Subnet",
            lease.ipv6_subnet.map(|net| json!(net.to_string())),
        ),
        ("PublicIP", lease.public_ip.map(|ip| json!(ip.to_string()))),
        (
            "PublicIPv6",
            lease.public_ipv6.map(|ip| json!(ip.to_string())),
        ),
        (
            "BackendType",
            lease.backend_type.as_ref().map(|name| json!(name)),
        ),
        ("BackendData", lease.backend_data.as_ref().map(data)),
        ("BackendV6Data", lease.backend_v6_data.as_ref().map(data)),
    ])
}

fn fields<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let there = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(there.collect())
}

#[cfg(test)]
mod tests;
