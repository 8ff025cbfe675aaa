//! What a value must be. Each function takes the text as written and returns the value, or what is
//! wrong and what to do instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

type Checked<T> = Result<T, String>;

/// A VNI has 24 bits (RFC 7348 §5).
pub(crate) const MAX_VNI: u32 = (1 << 24) - 1;
/// `IFNAMSIZ` of `linux/if.h` without the terminating zero.
const MAX_DEVICE_NAME: usize = 15;
/// RFC 791 §3.1: every host takes 576 bytes.
const MIN_MTU: u16 = 576;
/// RFC 8200 §5: a link that carries IPv6 takes 1280 bytes.
pub(crate) const MIN_MTU_V6: u16 = 1280;

/// A decimal number within a range; `unit` says what the range is of.
pub(crate) fn number<T>(text: &str, range: RangeInclusive<T>, unit: &str) -> Checked<T>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    let cure = || format!("use {unit} from {} to {}", range.start(), range.end());
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("not a number; {}", cure()));
    }
    match text.parse::<T>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!("out of range; {}", cure())),
    }
}

/// `true` or `false`.
pub(crate) fn boolean(text: &str) -> Checked<bool> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("neither true nor false; use one of them".to_owned()),
    }
}

/// One of some words.
pub(crate) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Checked<T> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("unknown; use {}", all.join(" or "))
        })
}

/// A prefix of either family without host bits.
pub(crate) fn prefix(text: &str) -> Checked<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("no prefix length; write for example {text}/24"),
            Ok(IpAddr::V6(_)) => format!("no prefix length; write for example {text}/64"),
            Err(_) => "not a prefix; write address/length, for example 10.244.0.0/16".to_owned(),
        });
    };
    let address: IpAddr = address
        .parse()
        .map_err(|_| "not a prefix: what stands before the slash is no IP address; write for example 10.244.0.0/16".to_owned())?;
    let longest = if address.is_ipv4() { 32u8 } else { 128 };
    let length = number(length, 0..=longest, "a prefix length")
        .map_err(|wrong| format!("the prefix length is {wrong}"))?;
    let net =
        IpNet::new(address, length).map_err(|_| "the prefix length is out of range".to_owned())?;
    if net.addr() != net.network() {
        return Err(format!(
            "bits are set after the prefix length; write {}",
            net.trunc()
        ));
    }
    Ok(net)
}

/// Networks that no overlay can have, with their names.
const SPECIAL: &[(&str, &str)] = &[
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("::1/128", "loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

fn refuse_special(net: IpNet) -> Checked<()> {
    if net.prefix_len() == 0 {
        return Err(
            "this is the default route; use a network of your own, for example 10.244.0.0/16"
                .to_owned(),
        );
    }
    for (special, name) in SPECIAL {
        let hit = special.parse::<IpNet>().is_ok_and(|special| {
            special.contains(&net.network()) || net.contains(&special.network())
        });
        if hit {
            return Err(format!(
                "overlaps the {name} addresses {special}; use a private network, for example 10.244.0.0/16 or fd00:10:244::/48"
            ));
        }
    }
    Ok(())
}

/// The overlay's IPv4 network.
pub(crate) fn network_v4(text: &str) -> Checked<Ipv4Net> {
    match prefix(text)? {
        IpNet::V4(net) => {
            refuse_special(net.into())?;
            // One network must hold at least two subnets of at least two addresses.
            if net.prefix_len() > 29 {
                return Err(
                    "too small to be split into subnets; use a prefix length of at most 29"
                        .to_owned(),
                );
            }
            Ok(net)
        }
        IpNet::V6(_) => Err("this is an IPv6 network; set it as ipv6-network".to_owned()),
    }
}

/// The overlay's IPv6 network.
pub(crate) fn network_v6(text: &str) -> Checked<Ipv6Net> {
    match prefix(text)? {
        IpNet::V6(net) => {
            refuse_special(net.into())?;
            if net.prefix_len() > 125 {
                return Err(
                    "too small to be split into subnets; use a prefix length of at most 125"
                        .to_owned(),
                );
            }
            Ok(net)
        }
        IpNet::V4(_) => Err("this is an IPv4 network; set it as network".to_owned()),
    }
}

/// The prefix length of one node's subnet.
pub(crate) fn subnet_len(text: &str, network_len: u8, longest: u8) -> Checked<u8> {
    number(
        text,
        network_len + 1..=longest,
        "a prefix length longer than the network's,",
    )
}

/// flannel's default (`pkg/subnet/config.go`): the usual length where the network has room for
/// four of that size, otherwise a quarter of the network.
pub(crate) fn default_subnet_len(network_len: u8, usual: u8, longest: u8) -> u8 {
    if network_len + 2 <= usual {
        usual
    } else {
        (network_len + 2).min(longest)
    }
}

/// A UDP port.
pub(crate) fn port(text: &str) -> Checked<u16> {
    number(text, 1..=u16::MAX, "a UDP port")
}

/// The device's MTU.
pub(crate) fn mtu(text: &str, ipv6: bool) -> Checked<u16> {
    let mtu = number(text, MIN_MTU..=u16::MAX, "an MTU")?;
    if ipv6 && mtu < MIN_MTU_V6 {
        return Err(format!(
            "too small for IPv6, which needs {MIN_MTU_V6} (RFC 8200); raise it, or leave ipv6-network out"
        ));
    }
    Ok(mtu)
}

/// A name that Linux takes for an interface (`dev_valid_name` of `net/core/dev.c`).
pub(crate) fn interface(text: &str) -> Checked<String> {
    if text.is_empty() {
        return Err("empty; give a name such as overlay0".to_owned());
    }
    if text.len() > MAX_DEVICE_NAME {
        return Err(format!(
            "{} bytes long; Linux takes at most {MAX_DEVICE_NAME}",
            text.len()
        ));
    }
    if text == "." || text == ".." {
        return Err("a path, not a name; give a name such as overlay0".to_owned());
    }
    if let Some(bad) = text
        .chars()
        .find(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
    {
        return Err(format!(
            "Linux takes no {bad:?} in an interface's name; leave it out"
        ));
    }
    Ok(text.to_owned())
}

/// A name for a device that we make.
pub(crate) fn device(text: &str) -> Checked<String> {
    let name = interface(text)?;
    if name.contains('%') {
        return Err("Linux would take the % as a template; leave it out".to_owned());
    }
    if matches!(name.as_str(), "lo" | "all" | "default") {
        return Err(
            "a name with a meaning of its own in Linux; choose another such as overlay0".to_owned(),
        );
    }
    Ok(name)
}

/// An underlay interface: its name, or an address that it has.
pub(crate) fn underlay_interface(text: &str) -> Checked<String> {
    match text.parse::<IpAddr>() {
        Ok(address) => refuse_public(address).map(|()| address.to_string()),
        Err(_) => interface(text),
    }
}

/// A pattern of interfaces' addresses or names.
pub(crate) fn pattern(text: &str) -> Checked<String> {
    match regex::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default();
            Err(format!("not a regular expression: {last}"))
        }
    }
}

/// The lines of a list, each of which must be right.
pub(crate) fn list<T>(text: &str, parse: impl Fn(&str) -> Checked<T>) -> Checked<Vec<T>> {
    text.split('\n').map(parse).collect()
}

/// A URL of etcd, with or without its scheme.
pub(crate) fn endpoint(text: &str) -> Checked<String> {
    let address = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .unwrap_or(text);
    let blank = |c: char| c.is_whitespace() || c.is_control();
    if address.is_empty() || address.contains("://") || address.contains(blank) {
        return Err("not an endpoint; write for example http://127.0.0.1:2379".to_owned());
    }
    Ok(text.to_owned())
}

/// An address and a port to listen at.
pub(crate) fn listen(text: &str) -> Checked<SocketAddr> {
    let not = || "not an address and a port; write for example 127.0.0.1:9285".to_owned();
    let at: SocketAddr = text.parse().map_err(|_| not())?;
    if at.port() == 0 {
        return Err(not());
    }
    Ok(at)
}

/// What all keys in etcd begin with; slashes at its end are not part of it.
pub(crate) fn key_prefix(text: &str) -> Checked<String> {
    let prefix = text.trim_end_matches('/');
    if prefix.is_empty() || prefix.contains(char::is_control) {
        return Err("not a prefix of keys; write for example /coreos.com/network".to_owned());
    }
    Ok(prefix.to_owned())
}

/// Why an address can not be a public IP: nobody could send to it from another host.
pub(crate) fn refuse_public(address: IpAddr) -> Checked<()> {
    let kind = match address {
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            "link-local, which other links do not reach"
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 clothes",
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        _ => return Ok(()),
    };
    Err(format!(
        "{kind}; give the address at which other nodes reach this one"
    ))
}

/// The node's IPv4 address on the underlay.
pub(crate) fn public_v4(text: &str) -> Checked<Ipv4Addr> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => refuse_public(address.into()).map(|()| address),
        Ok(IpAddr::V6(_)) => Err("this is an IPv6 address; set it as public-ipv6".to_owned()),
        Err(_) => Err(not_an_address(text, "192.0.2.10")),
    }
}

/// The node's IPv6 address on the underlay.
pub(crate) fn public_v6(text: &str) -> Checked<Ipv6Addr> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => refuse_public(address.into()).map(|()| address),
        Ok(IpAddr::V4(_)) => Err("this is an IPv4 address; set it as public-ip".to_owned()),
        Err(_) => Err(not_an_address(text, "2001:db8::10")),
    }
}

fn not_an_address(text: &str, example: &str) -> String {
    match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => {
            format!("a public IP has no prefix length; write {address}")
        }
        _ => format!("not an IP address; write for example {example}"),
    }
}

/// A name for people to read.
pub(crate) fn node_name(text: &str) -> Checked<String> {
    if text.is_empty() || text.len() > 253 {
        return Err("a node's name has 1 to 253 bytes".to_owned());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("white space in the name; leave it out".to_owned());
    }
    Ok(text.to_owned())
}

/// A level, or filters as `tracing_subscriber::EnvFilter` reads them.
pub(crate) fn log_level(text: &str) -> Checked<String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    // A lone word that is no level would be taken as a module's name and silence the rest.
    let lone_word = !text.contains(['=', ',', '[', ':']);
    if lone_word && !LEVELS.contains(&text.to_lowercase().as_str()) {
        return Err("unknown level; use error, warn, info, debug or trace".to_owned());
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "not a filter ({error}); write for example info,overlayd::lease=debug"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: std::fmt::Debug>(result: Checked<T>, part: &str) {
        let message = result.expect_err("must be refused");
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }

    #[test]
    fn networks() {
        assert_eq!(
            network_v4("10.244.0.0/16").unwrap().to_string(),
            "10.244.0.0/16"
        );
        wrong(network_v4("10.244.1.0/16"), "write 10.244.0.0/16");
        wrong(network_v4("10.244.0.0/33"), "from 0 to 32");
        wrong(network_v4("10.244.0.0/"), "not a number");
        wrong(network_v4("10.244.0.0"), "10.244.0.0/24");
        wrong(network_v4("10.244/16"), "no IP address");
        wrong(network_v4("fd00::/48"), "ipv6-network");
        wrong(network_v4("0.0.0.0/0"), "default route");
        wrong(network_v4("127.0.0.0/8"), "loopback");
        wrong(network_v4("127.4.0.0/16"), "loopback");
        wrong(network_v4("64.0.0.0/2"), "loopback");
        wrong(network_v4("239.1.0.0/16"), "multicast");
        wrong(network_v4("169.254.0.0/16"), "link-local");
        wrong(network_v4("10.244.0.0/30"), "at most 29");
        assert_eq!(
            network_v6("fd00:10::/48").unwrap().to_string(),
            "fd00:10::/48"
        );
        wrong(network_v6("fd00:10::1/48"), "write fd00:10::/48");
        wrong(network_v6("::/0"), "default route");
        wrong(network_v6("fe80::/64"), "link-local");
        wrong(network_v6("ff00::/8"), "multicast");
        wrong(network_v6("fd00::/129"), "from 0 to 128");
        wrong(network_v6("10.244.0.0/16"), "set it as network");
    }

    #[test]
    fn subnet_lengths_follow_flannel() {
        // (network, SubnetLen) as `CheckNetworkConfig` of flannel's pkg/subnet/config.go chooses.
        for (network, subnet) in [
            (8, 24),
            (16, 24),
            (22, 24),
            (23, 25),
            (24, 26),
            (28, 30),
            (29, 30),
        ] {
            assert_eq!(default_subnet_len(network, 24, 30), subnet, "/{network}");
        }
        for (network, subnet) in [(48, 64), (62, 64), (63, 65), (120, 122), (124, 126)] {
            assert_eq!(default_subnet_len(network, 64, 126), subnet, "/{network}");
        }
        assert_eq!(subnet_len("17", 16, 30), Ok(17));
        wrong(subnet_len("16", 16, 30), "from 17 to 30");
        wrong(subnet_len("31", 16, 30), "from 17 to 30");
    }

    #[test]
    fn numbers() {
        assert_eq!(number("16777215", 0..=MAX_VNI, "a VNI"), Ok(16_777_215));
        wrong(
            number("16777216", 0..=MAX_VNI, "a VNI"),
            "from 0 to 16777215",
        );
        wrong(number("-1", 0..=MAX_VNI, "a VNI"), "out of range");
        wrong(
            number(&"9".repeat(400), 0..=MAX_VNI, "a VNI"),
            "out of range",
        );
        wrong(number("+1", 0..=MAX_VNI, "a VNI"), "not a number");
        wrong(number("", 0..=MAX_VNI, "a VNI"), "not a number");
        wrong(port("0"), "from 1 to 65535");
        wrong(port("65536"), "from 1 to 65535");
        assert_eq!(mtu("576", false), Ok(576));
        wrong(mtu("575", false), "from 576");
        wrong(mtu("1279", true), "1280");
        assert_eq!(mtu("1280", true), Ok(1280));
        wrong(mtu("65536", false), "to 65535");
    }

    #[test]
    fn names_of_devices() {
        assert_eq!(device("overlay0"), Ok("overlay0".to_owned()));
        assert_eq!(device("123456789012345").map(|name| name.len()), Ok(15));
        wrong(device("1234567890123456"), "16 bytes");
        wrong(device("größe1234567890"), "bytes");
        wrong(device(""), "empty");
        wrong(device("a/b"), "'/'");
        wrong(device("a b"), "' '");
        wrong(device("a\0b"), "'\\0'");
        wrong(device("."), "path");
        wrong(device(".."), "path");
        wrong(device("tun%d"), "%");
        wrong(device("all"), "meaning");
        assert_eq!(underlay_interface("eth0"), Ok("eth0".to_owned()));
        assert_eq!(underlay_interface("192.0.2.1"), Ok("192.0.2.1".to_owned()));
        wrong(underlay_interface("127.0.0.1"), "loopback");
        assert_eq!(pattern("^eth[0-9]+$"), Ok("^eth[0-9]+$".to_owned()));
        wrong(pattern("eth["), "unclosed character class");
    }

    #[test]
    fn endpoints_and_listeners() {
        assert!(endpoint("http://127.0.0.1:2379").is_ok() && endpoint("etcd-1:2379").is_ok());
        wrong(endpoint("ftp://127.0.0.1"), "not an endpoint");
        wrong(endpoint("https://"), "not an endpoint");
        assert!(listen("[::1]:9285").is_ok());
        wrong(listen("9285"), "127.0.0.1:9285");
        wrong(listen("127.0.0.1:0"), "127.0.0.1:9285");
    }

    #[test]
    fn public_addresses() {
        assert_eq!(public_v4("192.0.2.1"), Ok(Ipv4Addr::new(192, 0, 2, 1)));
        wrong(public_v4("192.0.2.1/24"), "write 192.0.2.1");
        wrong(public_v4("0.0.0.0"), "unspecified");
        wrong(public_v4("127.0.0.1"), "loopback");
        wrong(public_v4("224.0.0.1"), "multicast");
        wrong(public_v4("255.255.255.255"), "broadcast");
        wrong(public_v4("fd99::1"), "public-ipv6");
        wrong(public_v4("node-a"), "not an IP address");
        wrong(public_v6("fe80::1"), "link-local");
        wrong(public_v6("10.0.0.1"), "public-ip");
    }

    #[test]
    fn log_levels() {
        assert!(log_level("info").is_ok());
        assert!(log_level("warn,overlayd::lease=debug").is_ok());
        wrong(log_level("inof"), "unknown level");
        wrong(log_level("overlayd=loud"), "not a filter");
    }
}
