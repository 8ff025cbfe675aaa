//! Commands in the book that no test types: they say why, are understood, and what they need is named.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions; their helpers are meant too

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The book's pages: name and text.
fn pages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("docs/src")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    assert!(found.len() > 15);
    found
}

/// The lines of a page's code blocks of this kind.
fn block_lines<'p>(page: &'p str, kind: &str) -> Vec<&'p str> {
    let begin = format!("```{kind}\n");
    let blocks = page
        .split(begin.as_str())
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block ends").0);
    blocks.flat_map(str::lines).collect()
}

/// The command of a line, if it has one: behind a prompt or `sudo`, or one of ours.
fn command(line: &str) -> Option<&str> {
    let prompts = ["$ ", "# ", "node1# ", "node2# ", "host-a$ ", "host-b$ "];
    let prompted = prompts.iter().find_map(|prompt| line.strip_prefix(prompt));
    let bare = ["sudo ", "cargo ", "overlayd bench", "overlayd mtu"]
        .iter()
        .any(|start| line.starts_with(start));
    let command = prompted.or_else(|| bare.then_some(line))?;
    let command = command.split_once("  #").map_or(command, |(left, _)| left);
    let command = command.split_once(" > ").map_or(command, |(left, _)| left);
    Some(command.trim_start_matches("sudo ").trim())
}

/// Pages whose `text` blocks are typed by another test than the one of `console` blocks: the classroom's, dissect's and
/// trace's.
const TYPED: [&str; 4] = ["one-packet.md", "dissect.md", "mtu.md", "trace.md"];

#[test]
fn a_page_says_why_its_commands_are_not_typed() {
    let mut untyped = 0;
    for (name, text) in pages() {
        let commands: Vec<_> = block_lines(&text, "text")
            .into_iter()
            .filter_map(command)
            .filter(|command| !command.starts_with("apt "))
            .collect();
        if commands.is_empty() || TYPED.contains(&name.as_str()) {
            continue;
        }
        untyped += 1;
        assert!(
            text.contains("no test types"),
            "{name} does not say why no test types {commands:?}"
        );
    }
    assert!(untyped >= 4, "{untyped}");
}

/// `--help` at the end of a command line: the program judges all before it, and does nothing.
#[test]
fn commands_that_are_not_typed_are_understood() {
    let (mut ours, mut others) = (0, 0);
    let manifests = ["Cargo.toml", "encap/Cargo.toml", "fdb/Cargo.toml"]
        .map(|path| fs::read_to_string(root().join(path)).unwrap());
    let script = fs::read_to_string(root().join("docs/measure")).unwrap();
    for (name, text) in pages() {
        for command in block_lines(&text, "text").into_iter().filter_map(command) {
            let words: Vec<_> = command.split_whitespace().collect();
            match words[..] {
                ["overlayd", "bench" | "mtu", ..] => {
                    let done = Command::new(env!("CARGO_BIN_EXE_overlayd-under-test"))
                        .args(words[1..].iter().filter(|word| !word.starts_with('[')))
                        .arg("--help")
                        .current_dir(root())
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&done.stderr);
                    assert!(done.status.success(), "{name}: {command}: {said}");
                    ours += 1;
                }
                ["cargo", "bench", "--bench", bench, ..] => {
                    let named = format!("name = \"{bench}\"");
                    let there = manifests.iter().any(|text| text.contains(&named));
                    assert!(there, "{name}: {command}: no such bench");
                    others += 1;
                }
                ["docs/measure", what, ..] => {
                    assert!(
                        script.contains(&format!("\n{what}() ")),
                        "{name}: {command}"
                    );
                    others += 1;
                }
                _ => {}
            }
        }
    }
    assert!(ours >= 8 && others >= 3, "{ours}, {others}");
}

/// What the pages type, and the package that has it.
const TOOLS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ss", "iproute2"),
    ("ping", "iputils-ping"),
    ("sysctl", "procps"),
    ("curl", "curl"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("traceroute", "traceroute"),
    ("tshark", "tshark"),
    ("iperf3", "iperf3"),
    ("ethtool", "ethtool"),
];

/// Those that every Debian has, in packages marked essential or of priority required, and parts of the shell.
const EVERYWHERE: &[&str] = &[
    "for", "cd", "do", "done", "rm", "ls", "awk", "bash", "cat", "cp", "echo", "cut", "exec",
    "grep", "head", "kill", "mkdir", "mv", "od", "printf", "sed", "seq", "sh", "sleep", "sort",
    "tail", "timeout", "true", "wait", "ps",
];

#[test]
fn what_the_pages_type_is_among_what_one_needs() {
    let pages = pages();
    let (_, lab) = pages.iter().find(|(name, _)| name == "lab.md").unwrap();
    let (_, need) = lab.split_once("## What you need").unwrap();
    let (need, _) = need.split_once("\n## ").unwrap();
    let mut seen = 0;
    for (name, text) in &pages {
        for line in block_lines(text, "console") {
            let Some(typed) = line.strip_prefix("$ ") else {
                continue;
            };
            // The words that begin a command: the first, and those behind a pipe or a place of `lab sh`.
            for part in typed.split(['|', ';']) {
                let mut words = part.split_whitespace().skip_while(|word| {
                    ["overlayd", "lab", "sh", "timeout", "sudo", "!"].contains(word)
                        || word.parse::<f32>().is_ok()
                        || word.starts_with("node")
                        || *word == "underlay"
                });
                let Some(word) = words.next() else { continue };
                let package = TOOLS.iter().find(|(tool, _)| *tool == word);
                if let Some((_, package)) = package {
                    assert!(need.contains(package), "{name} types {word}, of {package}");
                    seen += 1;
                } else if part.trim_start().starts_with(word) {
                    let known = EVERYWHERE.contains(&word)
                        || word.contains([
                            '=', '$', '\'', '"', '(', '/', '-', '>', '<', '{', '}', '&',
                        ]);
                    assert!(
                        known,
                        "{name} types {word:?}: which package has it? ({typed})"
                    );
                }
            }
        }
    }
    assert!(seen > 40, "{seen}");
    for (tool, package) in TOOLS {
        assert!(need.contains(package), "{tool} is in {package}");
    }
}
