//! Kernel settings under `/proc/sys`. Those of the network are the calling thread's namespace's own.

use std::{fs, io, path::PathBuf};

use super::{Error, Result};

/// Reads a setting, without the newline at its end.
///
/// The key is written as for sysctl(8): `net.ipv4.ip_forward`. In a key with dots a `/` stands for a dot inside a name
/// (`net.ipv4.conf.eth0/100.rp_filter`); a key whose first separator is a `/` is taken as a path.
///
/// # Errors
/// When the kernel has no such setting, or the key is malformed.
pub fn read(key: &str) -> Result<String> {
    let value = path(key)
        .and_then(fs::read_to_string)
        .map_err(|e| Error::new(format!("read sysctl {key}"), e))?;
    Ok(value.trim_end().to_owned())
}

/// Writes a setting. The key is as for [`read`].
///
/// # Errors
/// When the kernel has no such setting or refuses the value, or without CAP_NET_ADMIN.
pub fn write(key: &str, value: &str) -> Result<()> {
    path(key)
        .and_then(|path| fs::write(path, value))
        .map_err(|e| Error::new(format!("set sysctl {key} to {value}"), e))
}

/// The key of a device's own setting: `conf("ipv4", "eth0.100", "rp_filter")` is `net.ipv4.conf.eth0/100.rp_filter`.
pub fn conf(family: &str, device: &str, setting: &str) -> String {
    format!("net.{family}.conf.{}.{setting}", device.replace('.', "/"))
}

fn path(key: &str) -> io::Result<PathBuf> {
    let swap = key
        .find(['.', '/'])
        .is_some_and(|first| key.as_bytes()[first] == b'.');
    let relative: String = if swap {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    } else {
        key.to_owned()
    };
    // Keys are built from device names, which a person may have chosen: none may lead out of /proc/sys.
    if relative
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a sysctl key",
        ));
    }
    Ok(PathBuf::from("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_sysctl_8() {
        let as_path = |key| path(key).unwrap().to_string_lossy().into_owned();
        assert_eq!(
            as_path("net.ipv4.ip_forward"),
            "/proc/sys/net/ipv4/ip_forward"
        );
        assert_eq!(
            as_path("net/ipv4/conf/eth0.100/mtu"),
            "/proc/sys/net/ipv4/conf/eth0.100/mtu"
        );
        assert_eq!(
            as_path(&conf("ipv4", "eth0.100", "rp_filter")),
            "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"
        );
    }

    #[test]
    fn no_key_leads_out_of_proc_sys() {
        for key in [
            "",
            "/etc/passwd",
            "net/../../etc/passwd",
            "net.ipv4.conf.//.x",
            "a..b",
        ] {
            assert!(path(key).is_err(), "{key:?} gave {:?}", path(key));
        }
        for device in ["..", ".", "../../x", "a/../b"] {
            let key = conf("ipv4", device, "rp_filter");
            assert!(
                path(&key).is_err() || path(&key).unwrap().starts_with("/proc/sys/net/ipv4/conf"),
                "{key}"
            );
        }
    }

    #[test]
    fn reading_names_the_key_that_is_not_there() {
        assert!(read("net.ipv4.ip_forward").is_ok());
        let error = read("net.ipv4.no_such_thing").unwrap_err();
        assert_eq!(
            error.to_string(),
            "read sysctl net.ipv4.no_such_thing: No such file or directory"
        );
        assert!(error.is_not_found());
    }
}
