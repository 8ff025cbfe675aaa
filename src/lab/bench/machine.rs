//! What machine it was: figures without it mean nothing.

use std::fs;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

/// A machine, as far as it matters for what packets cost on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub hostname: String,
    /// The processor's name.
    pub cpu: String,
    /// How many CPUs we may use.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel release and version.
    pub kernel: String,
    /// Architecture.
    pub arch: String,
    /// `kvm`, `Microsoft`, ...: the hypervisor where the processor tells of one.
    pub hypervisor: bool,
    /// The frequency governor, where there is one.
    pub governor: Option<String>,
    /// Mitigations of the processor's weaknesses: those that the kernel has on.
    pub mitigations: Vec<String>,
    /// The host's default congestion control (our streams use cubic whatever it is).
    pub congestion: String,
    /// Load average over one minute when the run began.
    pub load: String,
    /// What is the underlay device, and which driver it has.
    pub underlay: String,
}

impl Machine {
    /// This one.
    pub fn here(underlay: String) -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            cpuinfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = read("/proc/meminfo");
        let memory = memory
            .lines()
            .next()
            .and_then(|line| line.split_whitespace().nth(1));
        let release = uname().ok();
        let text = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        Self {
            hostname: text(release.as_ref().map(|u| u.nodename())),
            cpu: field("model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or_default()
                / 1024,
            kernel: format!(
                "{} {}",
                text(release.as_ref().map(|u| u.release())),
                text(release.as_ref().map(|u| u.version()))
            ),
            arch: text(release.as_ref().map(|u| u.machine())),
            hypervisor: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            governor: Some(read(
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            ))
            .filter(|governor| !governor.is_empty()),
            mitigations: mitigations(),
            congestion: read("/proc/sys/net/ipv4/tcp_congestion_control"),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            underlay,
        }
    }
}

fn mitigations() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut active: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Mitigation"))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    active.sort();
    active
}
