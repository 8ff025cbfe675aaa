//! `subnet.env`: the node's subnet and MTU, for scripts and container runtimes to source.
//!
//! The file is flannel's, byte for byte (flannel `pkg/subnet/subnet.go`, `WriteSubnetFile`):
//!
//! ```text
//! FLANNEL_NETWORK=10.244.0.0/16
//! FLANNEL_SUBNET=10.244.5.1/24            the bridge's address: the subnet's first host
//! FLANNEL_IPV6_NETWORK=fc00::/48          the two IPv6 lines only with an IPv6 network
//! FLANNEL_IPV6_SUBNET=fc00:0:0:61::1/64
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=false
//! ```
//!
//! It is read back at start: the subnet of the last run is the one to ask for again.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use super::Lease;

/// A file longer than this is no `subnet.env`.
const LONGEST: u64 = 1 << 16;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay's IPv4 network and this node's subnet of it.
    pub v4: Option<(Ipv4Net, Ipv4Net)>,
    /// The same for IPv6.
    pub v6: Option<(Ipv6Net, Ipv6Net)>,
    /// The overlay device's MTU in bytes.
    pub mtu: u16,
    /// Whether packets that leave the overlay are masqueraded here; if they are, the container runtime need not.
    pub ip_masq: bool,
}

/// The subnets of an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// `FLANNEL_SUBNET`, without its host bits.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_SUBNET`, without its host bits.
    pub ipv6_subnet: Option<Ipv6Net>,
}

impl SubnetEnv {
    /// What the file says of a node with this lease.
    pub fn new(network: fdb::Network, lease: &Lease, mtu: u16, ip_masq: bool) -> Self {
        SubnetEnv {
            v4: network.v4.zip(lease.subnet),
            v6: network.v6.zip(lease.ipv6_subnet),
            mtu,
            ip_masq,
        }
    }

    /// Writes the file: whole or not at all, and on disk before it is seen. Its directory is made if need be; the mode is
    /// flannel's 0644, or what the file had before.
    ///
    /// # Errors
    /// With the path and the kernel's word.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let mut temporary = OsString::from(".");
        temporary.push(path.file_name().unwrap_or_default());
        // One fixed name: what a killed run leaves is taken over, and never a second one beside it.
        let temporary = path.with_file_name(temporary);
        self.replace(path, &temporary).map_err(|cause| WriteError {
            path: path.to_owned(),
            cause,
        })
    }

    fn replace(&self, path: &Path, temporary: &Path) -> io::Result<()> {
        let directory = path.parent().filter(|parent| *parent != Path::new(""));
        let directory = directory.unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mode = fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o777);
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(temporary)?;
        let written = file
            .set_permissions(Permissions::from_mode(mode))
            .and_then(|()| file.write_all(self.to_string().as_bytes()))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(temporary);
        }
        written.and_then(|()| File::open(directory)?.sync_all())
    }
}

/// dockerd's options for a bridge on a node's subnets, as flannel's `mk-docker-opts.sh` makes them: Docker masquerades
/// exactly where we do not. None without an IPv4 subnet, which dockerd needs.
///
/// `--bip=10.244.5.1/24 --mtu=1450 --ip-masq=true`
pub fn docker_opts(
    subnet: Option<Ipv4Net>,
    ipv6_subnet: Option<Ipv6Net>,
    mtu: u16,
    ip_masq: bool,
) -> Option<String> {
    let mut options = format!("--bip={} ", first_v4(subnet?));
    if let Some(subnet) = ipv6_subnet {
        options += &format!("--ipv6 --fixed-cidr-v6={} ", subnet.trunc());
    }
    Some(options + &format!("--mtu={mtu} --ip-masq={}", !ip_masq))
}

/// The subnet's first host address, with the prefix length.
fn first_v4(subnet: Ipv4Net) -> String {
    let first = Ipv4Addr::from_bits(subnet.network().to_bits().wrapping_add(1));
    format!("{first}/{}", subnet.prefix_len())
}

fn first_v6(subnet: Ipv6Net) -> String {
    let first = Ipv6Addr::from_bits(subnet.network().to_bits().wrapping_add(1));
    format!("{first}/{}", subnet.prefix_len())
}

impl fmt::Display for SubnetEnv {
    /// The file's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((network, subnet)) = self.v4 {
            writeln!(f, "FLANNEL_NETWORK={network}")?;
            writeln!(f, "FLANNEL_SUBNET={}", first_v4(subnet))?;
        }
        if let Some((network, subnet)) = self.v6 {
            writeln!(f, "FLANNEL_IPV6_NETWORK={network}")?;
            writeln!(f, "FLANNEL_IPV6_SUBNET={}", first_v6(subnet))?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

/// Reads the subnets of an earlier run. Lines that say nothing of them are passed over: the file may be flannel's, of
/// any version.
///
/// # Errors
/// If the file is there and cannot be read, or holds a subnet that is none.
pub fn read_previous(path: &Path) -> Result<Previous, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Previous::default()),
        Err(error) => Err(format!("{}: {error}", path.display())),
        Ok(_) => parse_previous(&text)
            .map_err(|what| format!("{}: {what}: no subnet is taken from it", path.display())),
    }
}

fn parse_previous(text: &str) -> Result<Previous, String> {
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines
            .filter(|(name, _)| name.trim().trim_start_matches("export ").trim() == key)
            .map(|(_, value)| value.trim().trim_matches(['"', '\'']))
            .next_back()
            .filter(|value| !value.is_empty())
    };
    fn prefix<T: std::str::FromStr>(key: &str, value: Option<&str>) -> Result<Option<T>, String> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| format!("{key}={} is no subnet", text.escape_debug()))
        };
        value.map(parse).transpose()
    }
    let (v4, v6) = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET");
    Ok(Previous {
        subnet: prefix::<Ipv4Net>(v4, value(v4))?.map(|net| net.trunc()),
        ipv6_subnet: prefix::<Ipv6Net>(v6, value(v6))?.map(|net| net.trunc()),
    })
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the subnet file {path}: {cause}; give overlayd access, or set store.subnet-file"
)]
pub struct WriteError {
    path: PathBuf,
    cause: io::Error,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// `shared/reference/flannel-0.20.2/vxlan-dualstack/subnet.h1.env`.
    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\n\
        FLANNEL_SUBNET=10.244.5.1/24\n\
        FLANNEL_IPV6_NETWORK=fc00::/48\n\
        FLANNEL_IPV6_SUBNET=fc00:0:0:61::1/64\n\
        FLANNEL_MTU=1450\n\
        FLANNEL_IPMASQ=false\n";

    fn dual() -> SubnetEnv {
        SubnetEnv {
            v4: Some((
                "10.244.0.0/16".parse().unwrap(),
                "10.244.5.0/24".parse().unwrap(),
            )),
            v6: Some((
                "fc00::/48".parse().unwrap(),
                "fc00:0:0:61::/64".parse().unwrap(),
            )),
            mtu: 1450,
            ip_masq: false,
        }
    }

    #[test]
    fn the_text_is_flannels() {
        assert_eq!(dual().to_string(), DUAL);
        let v4 = SubnetEnv {
            v6: None,
            mtu: 1472,
            ip_masq: true,
            ..dual()
        };
        assert_eq!(
            v4.to_string(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.5.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn a_lease_gives_its_own_families() {
        let network = fdb::Network {
            v4: dual().v4.map(|(network, _)| network),
            v6: dual().v6.map(|(network, _)| network),
        };
        let lease = Lease {
            subnet: dual().v4.map(|(_, subnet)| subnet),
            ..Lease::default()
        };
        let env = SubnetEnv::new(network, &lease, 1450, false);
        assert_eq!(env, SubnetEnv { v6: None, ..dual() });
    }

    #[test]
    fn written_whole_with_flannels_mode_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/flannel/subnet.env");
        // What a killed run left halfway, and a link that somebody else put there.
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, path.with_file_name(".subnet.env")).unwrap();

        dual().write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), DUAL);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let beside: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(beside.len(), 1, "nothing temporary is left");

        let previous = read_previous(&path).unwrap();
        assert_eq!(previous.subnet, dual().v4.map(|(_, subnet)| subnet));
        assert_eq!(previous.ipv6_subnet, dual().v6.map(|(_, subnet)| subnet));

        // Somebody else's mode is kept.
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        dual().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let error = dual().write(directory.path()).unwrap_err().to_string();
        assert!(error.contains("store.subnet-file"), "{error}");
    }

    #[test]
    fn reading_takes_flannels_forms_and_refuses_nonsense() {
        let none = tempfile::tempdir().unwrap().path().join("subnet.env");
        assert_eq!(read_previous(&none).unwrap(), Previous::default());
        let old = "export FLANNEL_SUBNET=\"10.1.74.1/24\"\nFLANNEL_MTU=1472\n# FLANNEL_SUBNET=1\n";
        let previous = parse_previous(old).unwrap();
        assert_eq!(previous.subnet, Some("10.1.74.0/24".parse().unwrap()));
        assert_eq!(parse_previous("").unwrap(), Previous::default());
        assert_eq!(
            parse_previous("FLANNEL_SUBNET=\n").unwrap(),
            Previous::default()
        );
        let error = parse_previous("FLANNEL_SUBNET=10.1.74.1/33\n").unwrap_err();
        assert!(error.contains("10.1.74.1/33"), "{error}");
    }

    #[test]
    fn docker_masquerades_where_we_do_not() {
        let subnet = Some("10.244.5.0/24".parse().unwrap());
        let ipv6 = Some("fc00:0:0:61::/64".parse().unwrap());
        assert_eq!(
            docker_opts(subnet, None, 1450, false).unwrap(),
            "--bip=10.244.5.1/24 --mtu=1450 --ip-masq=true"
        );
        assert_eq!(
            docker_opts(subnet, ipv6, 1450, true).unwrap(),
            "--bip=10.244.5.1/24 --ipv6 --fixed-cidr-v6=fc00:0:0:61::/64 --mtu=1450 --ip-masq=false"
        );
        assert_eq!(docker_opts(None, ipv6, 1450, true), None);
    }
}
