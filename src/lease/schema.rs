//! What flannel keeps in etcd: keys and values, byte for byte.
//!
//! ```text
//! <prefix>/config                                      net-conf.json
//! <prefix>/subnets/10.1.2.0-24                         {"PublicIP":"192.0.2.1","PublicIPv6":null}
//! <prefix>/subnets/10.1.2.0-24&fc00:0:0:1::-64         the same of a dual-stack node
//! ```
//!
//! Source: flannel `pkg/subnet/subnet.go` (`MakeSubnetKey`, `ParseSubnetKey`), `pkg/lease/lease.go`
//! (`LeaseAttrs`), `pkg/backend/vxlan/vxlan.go` (`vxlanLeaseAttrs`). A key that is attached to an etcd
//! lease is given up by its node in time; one that is not is a reservation.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::{Lease, VtepData, parse};
use crate::config::Quoted;

/// What flannel omits and means: etcd leases without a `BackendType` are of this backend.
const DEFAULT_BACKEND: &str = "udp";

/// The subnets that one key names: of either family, or of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnets {
    /// Before the `&`.
    pub v4: Option<Ipv4Net>,
    /// After it.
    pub v6: Option<Ipv6Net>,
}

impl Subnets {
    /// Those of a lease.
    pub fn of(lease: &Lease) -> Self {
        Subnets {
            v4: lease.subnet,
            v6: lease.ipv6_subnet,
        }
    }

    /// The last part of the key. An IPv6-only node has `0.0.0.0-0` in the place of its IPv4 subnet.
    pub fn key(&self) -> String {
        let v4 = self.v4.unwrap_or_default();
        let mut key = format!("{}-{}", v4.addr(), v4.prefix_len());
        if let Some(v6) = self.v6 {
            key.push_str(&format!("&{}-{}", v6.addr(), v6.prefix_len()));
        }
        key
    }

    /// Reads the last part of a key.
    ///
    /// # Errors
    /// What is wrong with it, for the log.
    pub fn parse(key: &str) -> Result<Self, String> {
        let wrong = || format!("the key {} names no subnet", Quoted(key));
        if key.contains('/') {
            return Err(wrong());
        }
        let (v4, v6) = match key.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (key, None),
        };
        let v4: Ipv4Net = v4.replacen('-', "/", 1).parse().map_err(|_| wrong())?;
        let v6: Option<Ipv6Net> = match v6 {
            Some(v6) => Some(v6.replacen('-', "/", 1).parse().map_err(|_| wrong())?),
            None => None,
        };
        let subnets = Subnets {
            v4: Some(v4).filter(|v4| *v4 != Ipv4Net::default()),
            v6: v6.filter(|v6| *v6 != Ipv6Net::default()),
        };
        let clean = v4 == v4.trunc() && v6.is_none_or(|v6| v6 == v6.trunc());
        match subnets.iter().next() {
            Some(_) if clean => Ok(subnets),
            _ => Err(wrong()),
        }
    }

    /// Each subnet there is, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        let v4 = self.v4.map(IpNet::V4).into_iter();
        v4.chain(self.v6.map(IpNet::V6))
    }
}

/// As people write them to the commands: `10.1.2.0/24`, or of both families `10.1.2.0/24,fc00:0:0:61::/64`.
impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, net) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{net}")?;
        }
        Ok(())
    }
}

/// Reads the lease under a key, of which the last part is given.
///
/// # Errors
/// What is wrong, for the log.
pub fn decode(key: &str, value: &[u8]) -> Result<Lease, String> {
    let subnets = Subnets::parse(key)?;
    let mut lease = parse::attributes(value)?;
    lease.subnet = subnets.v4;
    lease.ipv6_subnet = subnets.v6;
    let backend = lease.backend_type.take();
    lease.backend_type = backend.or_else(|| Some(DEFAULT_BACKEND.into()));
    Ok(lease)
}

/// The value of a lease: flannel's JSON, its fields in flannel's order.
pub fn encode(lease: &Lease) -> String {
    let attributes = Attributes {
        public_ip: lease.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: lease.public_ipv6,
        backend_type: lease
            .backend_type
            .as_deref()
            .filter(|name| *name != DEFAULT_BACKEND),
        backend_data: lease.backend_data.map(Vtep::from),
        backend_v6_data: lease.backend_v6_data.map(Vtep::from),
    };
    // Neither strings nor numbers can fail to be JSON.
    serde_json::to_string(&attributes).unwrap_or_default()
}

#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "Option::is_none")]
    backend_type: Option<&'a str>,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Vtep>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<Vtep>,
}

#[derive(Serialize)]
struct Vtep {
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC", skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

impl From<VtepData> for Vtep {
    fn from(data: VtepData) -> Self {
        Vtep {
            vni: data.vni,
            mac: data.vtep_mac.map(|mac| mac.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_as_flannel_makes_them() {
        for (key, v4, v6) in [
            ("10.1.2.0-24", Some("10.1.2.0/24"), None),
            (
                "10.244.5.0-24&fc00:0:0:61::-64",
                Some("10.244.5.0/24"),
                Some("fc00:0:0:61::/64"),
            ),
            ("0.0.0.0-0&fc00:0:0:61::-64", None, Some("fc00:0:0:61::/64")),
        ] {
            let subnets = Subnets::parse(key).unwrap();
            assert_eq!(subnets.v4.map(|net| net.to_string()).as_deref(), v4);
            assert_eq!(subnets.v6.map(|net| net.to_string()).as_deref(), v6);
            assert_eq!(subnets.key(), key);
        }
        for bad in [
            "",
            "10.1.2.0",
            "10.1.2.0/24",
            "10.1.2.1-24",
            "10.1.2.0-33",
            "0.0.0.0-0",
            "10.1.2.0-24&",
            "10.1.2.0-24&fc00::1-64",
            "10.1.2.0-24-24",
            "config",
            "10.1.2.0-24&fc00::-64&fc00::-64",
        ] {
            Subnets::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn the_oldest_form_of_vxlan() {
        let value = r#"{"PublicIP":"10.99.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"1a:5f:29:49:23:bd"}}"#;
        let lease = decode("10.244.29.0-24", value.as_bytes()).unwrap();
        let data = lease.backend_data.unwrap();
        assert_eq!(data.vni, None);
        assert_eq!(data.vtep_mac.unwrap().to_string(), "1a:5f:29:49:23:bd");
    }

    #[test]
    fn no_backend_type_means_udp_and_is_written_so() {
        let value = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#;
        let lease = decode("10.244.66.0-24", value.as_bytes()).unwrap();
        assert!(lease.is_backend("udp", "vxlan"));
        assert_eq!(encode(&lease), value);
    }

    #[test]
    fn a_node_on_ipv6_alone() {
        let lease = decode(
            "0.0.0.0-0&fc00:0:0:61::-64",
            br#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1"}"#,
        )
        .unwrap();
        assert_eq!((lease.public_ip, lease.subnet), (None, None));
        assert_eq!(
            encode(&lease),
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1"}"#
        );
    }

    proptest! {
        #[test]
        fn a_key_reads_back(v4 in any::<Option<(u32, u8)>>(), v6 in any::<Option<(u128, u8)>>()) {
            let subnets = Subnets {
                v4: v4.map(|(bits, len)| Ipv4Net::new(bits.into(), 1 + len % 32).unwrap().trunc()),
                v6: v6.map(|(bits, len)| Ipv6Net::new(bits.into(), 1 + len % 128).unwrap().trunc()),
            };
            prop_assume!(subnets.iter().next().is_some());
            prop_assert_eq!(Subnets::parse(&subnets.key()).unwrap(), subnets);
        }

        #[test]
        fn no_key_and_no_value_makes_it_panic(key in ".*", value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&key, &value);
            let _ = decode("10.1.2.0-24", &value);
        }
    }
}
