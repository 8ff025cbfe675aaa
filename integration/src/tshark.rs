//! tshark's reading of a capture file: a third opinion beside ours and etherparse's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Which layer's value of a field that comes more than once, as in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Those of all layers, joined by commas.
    All,
    /// That of the innermost layer.
    Innermost,
}

/// Is there a tshark to ask?
pub fn is_installed() -> bool {
    Command::new("tshark").arg("--version").output().is_ok()
}

/// The values of `fields` in each frame of `file`, empty where a frame has no such field.
///
/// UDP datagrams of `port` are taken for `protocol` (`ip` or `vxlan`). Checksums are verified, TCP streams are not
/// re-assembled, and their numbers not made relative.
///
/// # Errors
/// If tshark does not run, or fails: an unknown field, no capture file.
pub fn fields(
    file: &Path,
    (port, protocol): (u16, &str),
    layer: Layer,
    fields: &[&str],
) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    command
        .arg("-d")
        .arg(format!("udp.port=={port},{protocol}"));
    for preference in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        "tcp.desegment_tcp_streams:FALSE",
        "tcp.relative_sequence_numbers:FALSE",
    ] {
        command.arg("-o").arg(preference);
    }
    let occurrence = match layer {
        Layer::All => "occurrence=a",
        Layer::Innermost => "occurrence=l",
    };
    command.args(["-T", "fields", "-E", occurrence]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().context("cannot run tshark")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark failed: {errors}");
    let columns = |line: &str| line.split('\t').map(str::to_owned).collect();
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(columns)
        .collect())
}
