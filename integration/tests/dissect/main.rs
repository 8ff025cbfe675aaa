//! `overlayd dissect` and `overlayd mtu` as a student types them: held field by field against tshark's reading (`fields`),
//! and against garbled, endless and huge input. Needs no root.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

mod fields;
mod tunnels;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

fn overlayd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"));
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command
}

/// Runs `overlayd dissect` with these arguments and this on stdin.
fn dissect(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = overlayd()
        .arg("dissect")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It need not read all of it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn fixture(backend: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/flannel-0.20.2");
    folder.join(backend).join("underlay.pcap")
}

/// The book's pages about these commands: each command line in them is run in the repository's root, and what it prints is
/// what the page says. tcpdump's is not ours to promise.
#[test]
fn the_book_shows_what_the_commands_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut run = 0;
    for page in ["dissect.md", "mtu.md"] {
        let text = fs::read_to_string(root.join("docs/src").join(page)).unwrap();
        for block in text.split("```text\n").skip(1) {
            let block = block.split_once("```").unwrap().0;
            let Some((command, expected)) = block
                .strip_prefix("$ ")
                .and_then(|block| block.split_once('\n'))
            else {
                continue;
            };
            if command.starts_with("tcpdump") {
                continue;
            }
            let binary = env!("CARGO_BIN_EXE_overlayd-under-test");
            let output = Command::new("sh")
                .args([
                    "-c",
                    &format!("overlayd() {{ {binary} \"$@\"; }}\n{command}"),
                ])
                .current_dir(&root)
                .output()
                .unwrap();
            assert_eq!(
                out(&output).trim_end(),
                expected.trim_end(),
                "{page}: {command}\n{}",
                err(&output)
            );
            run += 1;
        }
    }
    assert!(run >= 5, "{run}");
    let picture = overlayd().args(["mtu", "--svg", "-"]).output().unwrap();
    let shown = fs::read_to_string(root.join("docs/src/goodput.svg")).unwrap();
    assert!(
        out(&picture) == shown,
        "write it anew: overlayd mtu --svg docs/src/goodput.svg"
    );
}

/// The same frame from a capture of either kind, and from each kind of hex text that tools print.
#[test]
fn what_the_tools_write_is_read_the_same() {
    let path = fixture("vxlan");
    let path = path.to_str().unwrap();
    let expected = dissect(&["--frame", "12", path], b"");
    let expected = out(&expected).split_once(": ").unwrap().1;
    let body = |output: &Output| out(output).split_once(": ").unwrap().1.to_owned();
    let folder = tempfile::tempdir().unwrap();
    for format in ["pcapng", "nsecpcap", "pcap"] {
        let converted = folder.path().join(format);
        let status = Command::new("tshark")
            .args(["-r", path, "-F", format, "-w"])
            .arg(&converted)
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let output = dissect(&["--frame", "12", converted.to_str().unwrap()], b"");
        assert_eq!(
            (body(&output).as_str(), err(&output)),
            (expected, ""),
            "{format}"
        );
    }
    let text = Command::new("tshark")
        .args(["-r", path, "-x", "-Y", "frame.number==12"])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let output = dissect(&["-"], &text.stdout);
    assert_eq!((body(&output).as_str(), err(&output)), (expected, ""));
    // tcpdump -x leaves the link header out.
    let text = "12:00:00.000000 IP 10.99.0.1.45418 > 10.99.0.2.8472: OTV, flags [I] (0x08), overlay 0, instance 1\n\
        \t0x0000:  4500 0021 0000 4000 4011 2604 0a63 0001\n\t0x0010:  0a63 0002 c350 0035 000d e3b3 6865 6c6c\n\t0x0020:  6f\n";
    let output = dissect(&["--brief"], text.as_bytes());
    assert_eq!(
        out(&output),
        "frame 1, 33 bytes: 10.99.0.1 > 10.99.0.2 UDP 50000 > 53\n"
    );
}

#[test]
fn what_is_cut_or_garbled_is_said_and_the_rest_is_shown() {
    let file = fs::read(fixture("udp")).unwrap();
    let output = dissect(&["--brief"], &file[..file.len() - 10]);
    // A script must not take a part for the whole.
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output).lines().count(), 142);
    assert!(
        err(&output).contains("the file ends within frame 143"),
        "{}",
        err(&output)
    );

    for (input, complaint) in [
        (&b""[..], "overlayd: stdin: byte 0: the input is empty\n"),
        (
            b"no hex",
            "overlayd: stdin: line 1: no hex digits in pairs, nor a capture file: \"no hex\"\n",
        ),
        (
            &file[..30],
            "overlayd: stdin: byte 30: the file ends within the header of frame 1: 6 of its 16 bytes are there\n",
        ),
    ] {
        let output = dissect(&[], input);
        assert_eq!(
            (output.status.code(), out(&output), err(&output)),
            (Some(1), "", complaint)
        );
    }
    let output = dissect(&["/nonexistent.pcap"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("/nonexistent.pcap: No such file"),
        "{}",
        err(&output)
    );
    let output = dissect(&["--frame", "144", "-"], &file);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        err(&output),
        "overlayd: stdin: there is no frame 144: the last one is 143\n"
    );
    for bad in [
        "--port=0x99=udp",
        "--port=99",
        "--port=99=gre",
        "--frame=0",
        "--link=token-ring",
    ] {
        assert_eq!(dissect(&[bad], b"").status.code(), Some(2), "{bad}");
    }
    // One bad line spoils neither the frame before nor the one behind.
    let output = dissect(&["--brief"], b"45 00 00 14\n4g\n\n60 00\n");
    assert_eq!(
        (output.status.code(), out(&output).lines().count()),
        (Some(0), 2)
    );
    assert!(
        err(&output).contains("line 2: no hex digits in pairs: \"4g\""),
        "{}",
        err(&output)
    );
}

#[test]
fn frames_are_chosen_and_ports_told() {
    let file = fs::read(fixture("vxlan")).unwrap();
    let numbers = |arguments: &[&str]| {
        let output = dissect(&[&["--brief"], arguments].concat(), &file);
        let number = |line: &str| {
            line.split([' ', ','])
                .nth(1)
                .unwrap()
                .parse::<u32>()
                .unwrap()
        };
        out(&output).lines().map(number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&["--frame", "5"]), [5]);
    assert_eq!(numbers(&["--count", "2"]), [1, 2]);
    assert_eq!(numbers(&["--frame", "56", "--count", "9"]), [56, 57]);
    let output = dissect(&["--brief", "--frame", "5", "--port", "8472=udp"], &file);
    // 0x08, VXLAN's flags, is no IP version.
    assert!(
        out(&output).ends_with("| flannel udp: !\n"),
        "{}",
        out(&output)
    );
    // A wrong checksum is marked as well: here the outer IPv4 header's.
    let mut bad = file[..24 + 16 + 42].to_vec();
    let frame = file
        .windows(4)
        .position(|bytes| bytes == [8, 0, 0x45, 0])
        .unwrap()
        - 12;
    bad.splice(24.., file[frame - 16..frame + 148].iter().copied());
    let marked = |file: &[u8]| out(&dissect(&["--brief"], file)).ends_with(" !\n");
    assert!(!marked(&bad));
    bad[24 + 16 + 14 + 8] -= 1;
    assert!(marked(&bad));
    let full = dissect(&["--frame", "5"], &file);
    assert!(out(&full).contains("tshark -d udp.port==8472,vxlan"));
    assert!(out(&full).contains(
        "sum: 84 (IPv4 packet) + 64 overhead (Ethernet 14 + IPv4 20 + UDP 8 + VXLAN 8 + Ethernet 14) = 148 bytes on the wire"
    ));
    let drawn = dissect(&["--frame", "5", "--rfc"], &file);
    assert!(
        out(&drawn).contains("| time to live  |   protocol    |        header checksum        |")
    );
}

/// A terminal of its own for the command: `script` gives it one.
fn on_a_terminal(environment: &[(&str, &str)]) -> String {
    let path = fixture("udp");
    let command = format!(
        "{} dissect --frame 5 {}",
        env!("CARGO_BIN_EXE_overlayd-under-test"),
        path.display()
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("script, of Debian's bsdutils");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let path = fixture("udp");
    let path = path.to_str().unwrap();
    let piped = dissect(&["--frame", "5", path], b"");
    assert!(!out(&piped).contains('\x1b'));
    let forced = dissect(&["--frame", "5", "--color", "always", path], b"");
    assert!(out(&forced).contains("\x1b["));
    assert!(on_a_terminal(&[]).contains("\x1b["));
    assert!(!on_a_terminal(&[("NO_COLOR", "1")]).contains('\x1b'));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let path = fixture("vxlan");
    let mut child = overlayd()
        .arg("dissect")
        .args([path.to_str().unwrap(); 50])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), err(&output)), (Some(0), ""));
}

/// The most memory that a process had, in KiB, from `/proc/PID/status`; `None` when it has ended.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// 100 MB of captured frames through stdin: the memory in use must not follow. The time is reported, not judged.
#[test]
fn a_capture_of_100_megabytes_is_read_in_constant_memory() {
    let file = fs::read(fixture("vxlan")).unwrap();
    let (header, records) = file.split_at(24);
    let rounds = 100_000_000 / records.len() + 1;
    for arguments in [&["--brief"][..], &[], &["--json"]] {
        let mut child = overlayd()
            .arg("dissect")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
            loop {
                match stdout.read(&mut buffer).unwrap() {
                    0 => return bytes,
                    more => bytes += more,
                }
            }
        });
        let start = Instant::now();
        stdin.write_all(header).unwrap();
        let mut early = 0;
        for round in 0..rounds {
            stdin.write_all(records).unwrap();
            if round == rounds / 20 {
                early = peak_memory(pid).unwrap();
            }
        }
        let late = peak_memory(pid).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
        let written = reader.join().unwrap();
        let megabytes = (records.len() * rounds) / 1_000_000;
        println!(
            "dissect {arguments:?}: {megabytes} MB in {:.2} s, {written} bytes of output, {early} KiB at first and {late} KiB at last",
            start.elapsed().as_secs_f64()
        );
        assert!(
            late < early + 1024,
            "{arguments:?}: grew from {early} KiB to {late} KiB"
        );
        assert!(late < 32 * 1024, "{arguments:?}: {late} KiB");
    }
}

#[test]
fn mtu_says_the_same_in_text_in_json_and_in_the_picture() {
    let run = |arguments: &[&str]| overlayd().arg("mtu").args(arguments).output().unwrap();
    let text = run(&[]);
    assert!(text.status.success());
    let json: Value = serde_json::from_slice(&run(&["--json"]).stdout).unwrap();
    assert_eq!(
        (&json["version"], &json["link_mtu"]),
        (&Value::from(1), &Value::from(1500))
    );
    let entries = json["encapsulations"].as_array().unwrap();
    assert_eq!(entries.len(), 13);
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("goodput.svg");
    assert!(run(&["--svg", picture.to_str().unwrap()]).status.success());
    let svg = fs::read_to_string(&picture).unwrap();
    for entry in entries {
        let headers = entry["headers"].as_array().unwrap();
        let sum: u64 = headers
            .iter()
            .map(|part| part["bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(entry["overhead"], sum);
        assert_eq!(entry["mtu"], 1500 - sum);
        assert_eq!(entry["mss"]["ipv4"], 1500 - sum - 40);
        let goodput = format!("{:.2}", entry["goodput"]["ipv4"].as_f64().unwrap() * 100.0);
        let name = entry["name"].as_str().unwrap();
        let over = entry["outer"].as_str().unwrap_or("").replace("ip", "IP");
        let line = out(&text).lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && (over.is_empty() || words.next() == Some(&over))
        });
        let words: Vec<_> = line.unwrap().split_whitespace().collect();
        for wanted in [sum.to_string(), (1500 - sum).to_string(), goodput.clone()] {
            assert!(words.contains(&wanted.as_str()), "{wanted} in {words:?}");
        }
        assert!(svg.contains(&format!(">{goodput} %<")), "{goodput}");
    }
    assert_eq!(run(&["--svg", "-"]).stdout, svg.as_bytes());
    assert_eq!(run(&["--link-mtu", "575"]).status.code(), Some(2));
    let output = run(&["--svg", "/nonexistent/goodput.svg"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("cannot write /nonexistent/goodput.svg"));
}
