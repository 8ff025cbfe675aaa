//! The book's pages about the lab, typed as a reader types them: each `console` block is run, line by line and in the
//! order of the page, and must print what the page shows.
//!
//! What no two runs share (process ids, times, ports, made-up MAC addresses) is put in one form on both sides before
//! they are compared. `UPDATE_DOCS=1` writes what was printed into the pages: look at the difference.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Class, exe, text};

/// Pages whose commands belong to one lab each, called `lab` in the book.
const PAGES: [&str; 9] = [
    "status.md",
    "lab.md",
    "pods.md",
    "scenarios.md",
    "leases.md",
    "trust.md",
    "run.md",
    "metrics.md",
    "interworking.md",
];

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/src")
        .join(name)
}

/// A page's commands run with this name in place of the book's.
struct Reader {
    class: Class,
    bin: tempfile::TempDir,
}

impl Reader {
    fn new(page: &str) -> Self {
        let word = page.trim_end_matches(".md");
        let bin = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(exe(), bin.path().join("overlayd")).unwrap();
        Self {
            class: Class::named(&format!("book-{word}")),
            bin,
        }
    }

    /// What a terminal shows of the command.
    fn types(&self, command: &str) -> String {
        let name = &self.class.name;
        let command = command.replace("/lab/lab/", &format!("/lab/{name}/"));
        let path = format!(
            "{}:{}",
            self.bin.path().display(),
            std::env::var("PATH").unwrap()
        );
        let done = Command::new("timeout")
            .args(["60", "bash", "-c", &format!("exec 2>&1\n{command}")])
            .env("PATH", path)
            .env("OVERLAYD_LAB_NAME", name)
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.bin.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = text(&done.stdout).replace(&format!(" --name {name}"), "");
        let said = said.replace(name.as_str(), "lab");
        // `ip` looks through /run/netns, where other tests' namespaces come and go under its eyes.
        let stray = |line: &&str| *line != "Error: Peer netns reference is invalid.";
        let lines: Vec<_> = said
            .trim_end()
            .lines()
            .map(str::trim_end)
            .filter(stray)
            .collect();
        lines.join("\n")
    }
}

/// The line without what chance decides.
fn normal(line: &str) -> String {
    let mut before = String::new();
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let counted =
            ["pid", "holder", "web", "echo", "up", "after", "index"].contains(&before.as_str());
        let changed = if counted && digits(word.trim_end_matches([',', ')'])) {
            "#".to_owned()
        } else if word.strip_suffix("ms").is_some_and(digits) {
            "#ms".to_owned()
        } else if is_mac(word) && !word.starts_with("0a:58") && word != "ff:ff:ff:ff:ff:ff" {
            "MAC".to_owned()
        } else {
            pieces(word)
        };
        before = word.to_owned();
        words.push(changed);
    }
    words.join(" ")
}

fn is_mac(word: &str) -> bool {
    word.len() == 17
        && word
            .split(':')
            .all(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok())
}

/// A word whose decimal fractions, ports and numbers of links are made alike.
fn pieces(word: &str) -> String {
    // 12:34:56.789012, 10.244.1.2:54321, eth0@if7, time=0.123
    if let Some((device, _)) = word.split_once("@if") {
        return format!("{device}@if#:");
    }
    if word
        .strip_suffix(':')
        .is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
    {
        return "#:".to_owned();
    }
    word.split(['=', '/', '>', ','])
        .map(|piece| {
            let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
            let fraction = piece.split_once('.').is_some_and(|(a, b)| {
                a.chars().all(|c| c.is_ascii_digit() || c == ':') && digits(b)
            });
            let port = piece.rsplit_once([':', '.']).is_some_and(|(_, port)| {
                digits(port)
                    && port.len() == 5
                    && port.parse::<u32>().is_ok_and(|port| port >= 32_768)
            });
            match piece.rsplit_once([':', '.']) {
                _ if fraction => "#".to_owned(),
                Some((host, _)) if port => format!("{host}:#"),
                _ => piece.to_owned(),
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}

fn same(shown: &str, printed: &str) -> bool {
    let lines = |text: &str| -> Vec<String> { text.trim_end().lines().map(normal).collect() };
    lines(shown) == lines(printed)
}

fn read_page(name: &str) {
    let path = page(name);
    let book = std::fs::read_to_string(&path).unwrap();
    let reader = Reader::new(name);
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut rewritten = String::new();
    let mut run = 0;
    let mut rest = book.as_str();
    while let Some((before, after)) = rest.split_once("```console\n") {
        let (block, after) = after.split_once("```").expect("a block ends");
        rewritten += before;
        rewritten += "```console\n";
        let commands: Vec<&str> = block.split("$ ").collect();
        assert_eq!(
            commands[0], "",
            "{name}: a block begins with a command: {block}"
        );
        for typed in block
            .split_inclusive('\n')
            .fold(Vec::<String>::new(), |mut all, line| {
                match all.last_mut() {
                    Some(last) if !line.starts_with("$ ") => last.push_str(line),
                    _ => all.push(line.to_owned()),
                }
                all
            })
        {
            // A command goes on in the next line after a backslash.
            let mut end = 0;
            for line in typed.split_inclusive('\n') {
                end += line.len();
                if !line.trim_end().ends_with('\\') {
                    break;
                }
            }
            let (command, shown) = typed.split_at(end);
            let printed = reader.types(command.trim_start_matches("$ "));
            if !update {
                assert!(
                    same(shown, &printed),
                    "docs/src/{name}: {command}shows:\n{shown}\nbut it prints:\n{printed}\n\n(UPDATE_DOCS=1 writes it anew)"
                );
            }
            rewritten += command;
            let kept = if same(shown, &printed) {
                shown.trim_end()
            } else {
                printed.as_str()
            };
            if !kept.is_empty() {
                rewritten += kept;
                rewritten.push('\n');
            }
            run += 1;
        }
        rewritten += "```";
        rest = after;
    }
    rewritten += rest;
    picture(&reader, update);
    assert!(run >= 3, "{name}: {run} commands");
    if update {
        std::fs::write(&path, rewritten).unwrap();
    }
}

/// A picture that a page's commands have drawn is the one in the book.
fn picture(reader: &Reader, update: bool) {
    let Ok(drawn) = std::fs::read_to_string(reader.bin.path().join("lab.svg")) else {
        return;
    };
    let drawn = drawn.replace(&reader.class.name, "lab");
    let path = page("lab.svg");
    if update {
        std::fs::write(&path, drawn).unwrap();
    } else {
        let shown = std::fs::read_to_string(&path).unwrap();
        assert!(
            drawn == shown,
            "docs/src/lab.svg is another picture (UPDATE_DOCS=1 writes it anew)"
        );
    }
}

#[test]
fn the_pages_show_what_the_commands_print() {
    for name in PAGES {
        read_page(name);
    }
}

/// So that nobody takes for checked what is not: `console` is the mark of what this test types.
#[test]
fn every_console_block_is_on_a_page_that_is_typed() {
    let mut marked = Vec::new();
    for entry in std::fs::read_dir(page("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md")
            && std::fs::read_to_string(page(&name))
                .unwrap()
                .contains("```console")
        {
            marked.push(name);
        }
    }
    let mut pages = PAGES.map(str::to_owned);
    marked.sort();
    pages.sort();
    assert_eq!(marked, pages);
}

/// The prompts of the main chapter, and where they are.
const PROMPTS: [(&str, &str); 5] = [
    ("pod1$ ", "node1/pod1"),
    ("node1# ", "node1"),
    ("node2# ", "node2"),
    ("underlay# ", "underlay"),
    ("$ ", ""),
];

/// The command of a line that has a prompt, as one types it outside.
fn prompted(line: &str) -> Option<String> {
    let found = PROMPTS
        .iter()
        .find_map(|(prompt, place)| Some((line.strip_prefix(prompt)?, *place)));
    let (command, place) = found?;
    Some(match place {
        "" => command.to_owned(),
        place => format!(
            "overlayd lab sh {place} bash -c '{}'",
            command.replace('\'', r"'\''")
        ),
    })
}

/// The main chapter shows of each command the lines that it is about: these are printed, in this order.
#[test]
fn the_main_chapter_shows_what_its_commands_print() {
    let chapter = std::fs::read_to_string(page("one-packet.md")).unwrap();
    let reader = Reader::new("one-packet.md");
    reader.types("overlayd lab up --nodes 2 --pods 1; sleep 1");
    let mut run = 0;
    for block in chapter.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block ends");
        let mut printed = String::new();
        let mut left = printed.lines();
        for line in block.lines() {
            if let Some(command) = prompted(line) {
                printed = reader.types(&command);
                left = printed.lines();
                run += 1;
            } else if run > 0
                && !line.is_empty()
                && block
                    .lines()
                    .next()
                    .is_some_and(|first| prompted(first).is_some())
            {
                let found = left.any(|candidate| same(line, candidate));
                assert!(
                    found,
                    "docs/src/one-packet.md shows {line:?}, but this was printed:\n{printed}"
                );
            }
        }
    }
    assert!(run >= 20, "{run} commands");
}

#[test]
fn only_what_chance_decides_is_made_alike() {
    assert!(same("overlayd ok, pid 123", "overlayd ok, pid 99999"));
    assert!(same(
        "time=0.129 ms after 0.04 s",
        "time=0.5 ms after 1.99 s"
    ));
    assert!(same(
        "hello 10.244.1.2:41000, this",
        "hello 10.244.1.2:54322, this"
    ));
    assert!(same("5: eth0@if9: <UP>", "12: eth0@if3: <UP>"));
    assert!(same(
        "link/ether b2:e5:11:15:e7:60 brd",
        "link/ether 00:e5:11:15:e7:60 brd"
    ));
    for (one, other) in [
        ("ttl=62 time=0.1 ms", "ttl=63 time=0.1 ms"),
        ("10.244.1.2", "10.244.1.3"),
        (
            "this is node1/pod1/web at 10.244.1.2:80",
            "this is node1/pod1/web at 10.244.1.2:81",
        ),
        (
            "link/ether 0a:58:0a:f4:01:02",
            "link/ether 0a:58:0a:f4:01:03",
        ),
        ("mtu 1450", "mtu 1500"),
        ("a", "a\nb"),
        ("wrong-vni 1", "wrong-vni 2"),
    ] {
        assert!(!same(one, other), "{one} and {other}");
    }
}
