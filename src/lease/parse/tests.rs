use std::path::Path;

use encap::MacAddr;
use proptest::prelude::*;

use super::*;

fn one(fields: &str) -> Result<Lease, String> {
    let json =
        format!("[{{\"Subnet\": \"10.244.1.0/24\", \"PublicIP\": \"10.99.0.1\", {fields}}}]");
    parse(json.as_bytes())
        .map(|mut leases| leases.remove(0))
        .map_err(|error| error.to_string())
}

#[track_caller]
fn wrong(json: &str, parts: &[&str]) {
    let error = parse(json.as_bytes())
        .expect_err("must be refused")
        .to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn what_flannel_wrote_to_etcd() {
    // integration/fixtures/flannel-0.20.2: the subnet from the key, the rest from the value.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fixtures/flannel-0.20.2");
    for (backend, macs) in [
        ("udp", 0),
        ("vxlan", 1),
        ("vxlan-dualstack", 2),
        ("host-gw", 0),
    ] {
        let text = std::fs::read_to_string(folder.join(backend).join("etcd.json")).unwrap();
        let mut items = Vec::new();
        for entry in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            let entry = entry.unwrap();
            let Some((_, key)) = entry["key"].as_str().unwrap().split_once("/subnets/") else {
                continue;
            };
            let mut item: Map<String, Value> =
                serde_json::from_str(entry["value"].as_str().unwrap()).unwrap();
            for subnet in key.split('&') {
                let (address, length) = subnet.rsplit_once('-').unwrap();
                let name = if address.contains(':') {
                    "IPv6Subnet"
                } else {
                    "Subnet"
                };
                item.insert(name.to_owned(), json!(format!("{address}/{length}")));
            }
            items.push(Value::Object(item));
        }
        let leases = parse(Value::Array(items).to_string().as_bytes()).unwrap();
        assert_eq!(leases.len(), 2, "{backend}");
        for lease in &leases {
            let data = [lease.backend_data, lease.backend_v6_data];
            assert_eq!(
                data.iter()
                    .flatten()
                    .filter(|data| data.vtep_mac.is_some())
                    .count(),
                macs,
                "{backend}"
            );
            assert_eq!(lease.ipv6_subnet.is_some(), backend == "vxlan-dualstack");
            assert_eq!(lease.backend_type.is_none(), backend == "udp");
        }
    }
}

#[test]
fn fields() {
    let lease =
        one(r#""BackendType": "vxlan", "BackendData": {"VNI": 7, "VtepMAC": "0A:58:0a:63:00:02"}"#)
            .unwrap();
    let mac: MacAddr = "0a:58:0a:63:00:02".parse().unwrap();
    assert_eq!(
        lease.backend_data,
        Some(VtepData {
            vni: Some(7),
            vtep_mac: Some(mac)
        })
    );
    assert_eq!(
        one(r#""BackendType": "", "BackendData": null"#)
            .unwrap()
            .backend_type,
        None
    );
    assert_eq!(
        one(r#""publicip": "10.99.0.9""#).unwrap().public_ip,
        Some(Ipv4Addr::new(10, 99, 0, 1))
    );
    assert_eq!(
        one(r#""publicIPV6": "fd99::1""#).unwrap().public_ipv6,
        Some("fd99::1".parse().unwrap())
    );
    let other = one(r#""BackendType": "extension", "BackendData": "anything""#).unwrap();
    assert_eq!(other.backend_data, None);
    let v6 = parse(
        br#"[{"IPv6Subnet": "fc00:0:0:61::/64", "PublicIP": "0.0.0.0", "PublicIPv6": "fd99::1"}]"#,
    )
    .unwrap();
    assert_eq!(v6[0].public_ip, None, "an IPv6-only flannel node");
}

#[test]
fn mistakes_name_lease_and_field_and_cure() {
    let lease = |fields: &str| {
        format!("[{{\"Subnet\": \"10.244.0.0/24\", \"PublicIP\": \"10.99.0.9\"}}, {{{fields}}}]")
    };
    let bad = |fields: &str, parts: &[&str]| wrong(&lease(fields), parts);
    bad(
        r#""Subnet": "10.244.1.0", "PublicIP": "10.99.0.1""#,
        &[
            "lease 1 ",
            "Subnet \"10.244.1.0\"",
            "write it as 10.244.1.0/24",
        ],
    );
    bad(
        r#""Subnet": "10.244.1.1/24", "PublicIP": "10.99.0.1""#,
        &["lease 1 ", "write it as 10.244.1.0/24"],
    );
    bad(
        r#""Subnet": "10.244.1.0/33", "PublicIP": "10.99.0.1""#,
        &["lease 1 ", "not a prefix"],
    );
    bad(
        r#""Subnet": "fd00::/64", "PublicIP": "10.99.0.1""#,
        &["lease 1 ", "write it as IPv6Subnet"],
    );
    bad(
        r#""IPv6Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1""#,
        &["write it as Subnet"],
    );
    bad(
        r#""IPv6Subnet": "fd00::1", "PublicIP": "10.99.0.1""#,
        &["write it as fd00::1/64"],
    );
    bad(
        r#""Subnet": 10, "PublicIP": "10.99.0.1""#,
        &["Subnet: expected a string, found \"10\""],
    );
    bad(
        r#""PublicIP": "10.99.0.1""#,
        &["no Subnet and no IPv6Subnet"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24""#,
        &["no PublicIP and no PublicIPv6"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIP": "0.0.0.0""#,
        &["PublicIP \"0.0.0.0\"", "unspecified"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIP": "224.0.0.1""#,
        &["multicast"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1/24""#,
        &["write 10.99.0.1"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIP": "fd99::1""#,
        &["write it as PublicIPv6"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIPv6": "10.99.0.1""#,
        &["write it as PublicIP"],
    );
    bad(
        r#""Subnet": "10.244.1.0/24", "PublicIP": "node-a""#,
        &["not an IP address"],
    );
    let data = |data: &str, parts: &[&str]| {
        bad(
            &format!(r#""Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1", {data}"#),
            parts,
        );
    };
    data(r#""BackendData": 7"#, &["BackendData: expected an object"]);
    data(
        r#""BackendData": {"VNI": 16777216}"#,
        &["BackendData.VNI \"16777216\": use a number from 0 to 16777215"],
    );
    data(r#""BackendData": {"VNI": "1"}"#, &["BackendData.VNI"]);
    data(
        r#""BackendV6Data": {"VtepMAC": "0a:58"}"#,
        &["BackendV6Data.VtepMAC \"0a:58\"", "six hexadecimal bytes"],
    );
    data(
        r#""BackendData": {"VtepMAC": 1}"#,
        &["BackendData.VtepMAC: expected a string"],
    );
    data(
        r#""BackendData": {"VtepMAC": "ff:ff:ff:ff:ff:ff"}"#,
        &["not the address of one node"],
    );
    data(r#""BackendType": 1"#, &["BackendType: expected a string"]);
}

#[test]
fn torn_files_say_where() {
    wrong("", &["empty", "[]"]);
    wrong(
        "[{\"Subnet\":\n \"10.2",
        &["cut off", "line 2 column 6", "rename"],
    );
    wrong("[}", &["not valid JSON", "line 1 column 2"]);
    wrong("{}", &["expected an array"]);
    wrong("[1]", &["lease 0 ", "expected an object"]);
    // Cut at every byte, a file never passes for a shorter table.
    let whole = emit(&[
        one("\"BackendData\": {\"VNI\": 1}").unwrap(),
        one("\"PublicIPv6\": \"fd99::1\"").unwrap(),
    ]);
    assert_eq!(parse(whole.as_bytes()).unwrap().len(), 2);
    for end in 0..whole.trim_end().len() {
        assert!(parse(&whole.as_bytes()[..end]).is_err(), "cut at {end}");
    }
}

fn some<T: std::fmt::Debug>(
    strategy: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    prop::option::of(strategy)
}

fn data() -> impl Strategy<Value = VtepData> {
    let mac = any::<[u8; 6]>()
        .prop_map(|[first, b, c, d, e, f]| MacAddr([first & 0xfe | 2, b, c, d, e, f]));
    (some(0..=0xff_ffffu32), some(mac)).prop_map(|(vni, vtep_mac)| VtepData { vni, vtep_mac })
}

fn any_lease() -> impl Strategy<Value = Lease> {
    let v4 =
        (any::<Ipv4Addr>(), 0..=32u8).prop_map(|(ip, len)| Ipv4Net::new(ip, len).unwrap().trunc());
    let v6 =
        (any::<Ipv6Addr>(), 0..=128u8).prop_map(|(ip, len)| Ipv6Net::new(ip, len).unwrap().trunc());
    let usable = |ip: IpAddr| crate::config::refuse_public(ip).is_ok();
    let ip4 = any::<Ipv4Addr>().prop_filter("no node has it", move |ip| usable((*ip).into()));
    let ip6 = any::<Ipv6Addr>().prop_filter("no node has it", move |ip| usable((*ip).into()));
    let either = |pair: &(bool, bool)| pair.0 || pair.1;
    let there = || (any::<bool>(), any::<bool>()).prop_filter("one of them", either);
    let kind = prop::sample::select(vec![None, Some("vxlan".to_owned()), Some("udp".to_owned())]);
    (
        v4,
        v6,
        ip4,
        ip6,
        there(),
        there(),
        kind,
        some(data()),
        some(data()),
    )
        .prop_map(|(v4, v6, ip4, ip6, nets, ips, backend_type, data, data6)| {
            let vxlan = backend_type.as_deref() != Some("udp");
            Lease {
                subnet: nets.0.then_some(v4),
                ipv6_subnet: nets.1.then_some(v6),
                public_ip: ips.0.then_some(ip4),
                public_ipv6: ips.1.then_some(ip6),
                backend_type,
                backend_data: data.filter(|_| vxlan),
                backend_v6_data: data6.filter(|_| vxlan),
            }
        })
}

proptest! {
    #[test]
    fn emit_then_parse_is_the_identity(leases in prop::collection::vec(any_lease(), 0..5)) {
        prop_assert_eq!(parse(emit(&leases).as_bytes()).unwrap(), leases);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn arbitrary_fields_never_panic(key in 0..7usize, text in ".{0,40}", number in any::<f64>(), nested in any::<bool>()) {
        let keys = ["Subnet", "IPv6Subnet", "PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data"];
        let value = if nested { json!({"VNI": number, "VtepMAC": text}) } else { json!(text) };
        let mut item = json!({"Subnet": "10.244.1.0/24", "PublicIP": "10.99.0.1"});
        item[keys[key]] = value;
        // What passes obeys the type's promises.
        if let Ok(leases) = parse(Value::Array(vec![item]).to_string().as_bytes()) {
            prop_assert!(leases[0].subnet.is_none_or(|net| net == net.trunc()));
            prop_assert!(leases[0].public_ip.is_some() || leases[0].public_ipv6.is_some());
        }
    }

    /// A change of one byte gives an error or leases, never a panic.
    #[test]
    fn damaged_tables_never_panic(leases in prop::collection::vec(any_lease(), 1..3), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = emit(&leases).into_bytes();
        let at = at.index(json.len());
        json[at] = byte;
        let _ = parse(&json);
    }
}
