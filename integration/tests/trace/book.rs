//! The book's page about `trace` shows what the command prints: its commands are run in a lab. Marks and the Ethernet
//! addresses that the kernel makes up are other ones every time.
//!
//! When the page differs, write it anew with `UPDATE_DOCS=1 cargo test -p integration --test trace book`.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Up, err, out};

/// The text without what differs from run to run.
fn lasting(text: &str) -> String {
    let mut kept = String::new();
    for (number, word) in text.split(' ').enumerate() {
        if number > 0 {
            kept.push(' ');
        }
        let bare = word.trim_end();
        let is_mac =
            bare.len() == 17 && bare.split(':').count() == 6 && !bare.starts_with("0a:58:");
        kept.push_str(match bare.starts_with("\"trace-") {
            true => "\"trace-...\",",
            false if is_mac => "MAC",
            false => bare,
        });
        kept.push_str(&word[bare.len()..]);
    }
    kept.trim_end().to_owned()
}

fn run(lab: &Up, command: &str) -> String {
    let binary = env!("CARGO_BIN_EXE_overlayd-under-test");
    // The page's reader has a lab of the usual name; ours must not meet one that stands.
    let shell = format!(
        "overlayd() {{ command=$1; shift; {binary} \"$command\" --name {} \"$@\"; }}\n{command}",
        lab.0
    );
    let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
    assert!(!output.stdout.is_empty(), "{command}: {}", err(&output));
    out(&output).trim_end().replace(&lab.0, "lab")
}

#[test]
fn the_book_shows_what_trace_prints() {
    let lab = Up::new("book", &[]);
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src");
    let (page, picture) = (docs.join("trace.md"), docs.join("trace.svg"));
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let text = fs::read_to_string(&page).unwrap();
    let mut parts = text.split("```text\n$ ");
    let mut anew = parts.next().unwrap().to_owned();
    let mut count = 0;
    for part in parts {
        let (block, rest) = part.split_once("```\n").unwrap();
        let (command, expected) = block.split_once('\n').unwrap();
        let printed = run(&lab, command);
        if !update {
            assert_eq!(lasting(&printed), lasting(expected), "{command}");
        }
        // What is the same but for marks and addresses stays as it stands.
        let kept = if lasting(&printed) == lasting(expected) {
            expected.trim_end()
        } else {
            &printed
        };
        anew += &format!("```text\n$ {command}\n{kept}\n```\n{rest}");
        count += 1;
    }
    assert!(count >= 4, "{count}");
    let drawn = run(&lab, "overlayd trace node1/pod1 node2/pod1 --svg -") + "\n";
    if update {
        fs::write(&page, anew).unwrap();
        fs::write(&picture, drawn).unwrap();
    } else {
        assert_eq!(fs::read_to_string(&picture).unwrap(), drawn);
    }
}
