//! The book says what the code does: its links lead somewhere, the functions it names are there, its tables are those of
//! the code, and the datagram it takes apart is one that we accept.
//!
//! Tables between `<!-- generated: NAME -->` and `<!-- end -->` are made here. When one differs from the book, write it
//! anew with `UPDATE_DOCS=1 cargo test -p integration --test docs`.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use encap::{Encapsulation, Family, Inner, MacAddr, OwnMacs, RawUdp, Vxlan};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use overlayd::config::flannel::{FLAGS, Meaning};
use overlayd::config::options::OPTIONS;
use overlayd::datapath::DropReason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn book() -> PathBuf {
    root().join("docs/src")
}

/// The pages, and the documents beside them that people read first.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut folders = vec![book()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the book's folder") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 10, "there are pages: {found:?}");
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text without its code blocks, in which brackets mean other things.
fn prose(markdown: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Text and target of each link.
fn links(markdown: &str) -> Vec<(String, String)> {
    let text = prose(markdown);
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while let Some(middle) = rest.find("](") {
        let (before, after) = (&rest[..middle], &rest[middle + 2..]);
        let end = after.find(')').expect("a link ends");
        let label = before.rsplit('[').next().unwrap_or_default();
        found.push((label.to_owned(), after[..end].to_owned()));
        rest = &after[end..];
    }
    found
}

/// What can stand behind `#`: headings as mdBook writes them, and anchors set by hand.
fn anchors(markdown: &str) -> HashSet<String> {
    let text = prose(markdown);
    let headings = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            });
            kept.collect()
        });
    let by_hand = text.split("<a id=\"").skip(1);
    let by_hand = by_hand.filter_map(|rest| rest.split('"').next().map(str::to_owned));
    headings.chain(by_hand).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in documents() {
        let folder = document.parent().expect("a document is in a folder");
        for (label, target) in links(&read(&document)) {
            if target.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = if path.is_empty() {
                document.clone()
            } else {
                folder.join(path)
            };
            let mut complain = |what: &str| {
                wrong.push(format!(
                    "{}: [{label}]({target}): {what}",
                    document.display()
                ));
            };
            if !to.exists() {
                complain("no such file");
            } else if !anchor.is_empty() && !anchors(&read(&to)).contains(anchor) {
                complain("no such heading there");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 100, "only {checked} links were found");
}

/// A link such as [`Fib::build`](fdb/src/fib/mod.rs) names something that is defined in that file.
#[test]
fn every_function_named_is_where_the_book_says() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for document in documents() {
        let folder = document.parent().expect("a document is in a folder");
        for (label, target) in links(&read(&document)) {
            let name = label.trim_matches('`');
            if !target.ends_with(".rs") || label == name || name.contains(['/', '.']) {
                continue;
            }
            checked += 1;
            let source = read(&folder.join(&target));
            for part in name.split("::") {
                let defined = ["fn", "struct", "enum", "trait", "static", "const", "type"]
                    .iter()
                    .flat_map(|keyword| {
                        source
                            .match_indices(&format!("{keyword} {part}"))
                            .collect::<Vec<_>>()
                    })
                    .any(|(at, found)| {
                        let next = source[at + found.len()..].chars().next();
                        !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
                    })
                    || source.contains(&format!("impl {part}"));
                if !defined {
                    wrong.push(format!("{}: {part} is not in {target}", document.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 20, "only {checked} names were found");
}

#[test]
fn every_page_stands_in_the_summary() {
    let summary = book().join("SUMMARY.md");
    let listed: BTreeSet<PathBuf> = links(&read(&summary))
        .into_iter()
        .map(|(_, target)| book().join(target))
        .collect();
    let there: BTreeSet<PathBuf> = documents()
        .into_iter()
        .filter(|path| path.starts_with(book()) && *path != summary)
        .collect();
    assert_eq!(listed, there);
}

/// One row per reason, each with an anchor to link to.
fn drops() -> String {
    let mut table = String::from("| reason | what happened | what to do |\n|---|---|---|\n");
    for reason in DropReason::ALL {
        let (name, meaning, advice) = (reason.name(), reason.meaning(), reason.advice());
        let _ = writeln!(
            table,
            "| <a id=\"{name}\"></a>`{name}` | {meaning} | {advice} |"
        );
    }
    table
}

/// One row per option that works in this version.
fn options() -> String {
    let mut table = String::from("| option | flag | default | reload |\n|---|---|---|---|\n");
    for opt in OPTIONS {
        let default = if opt.default.is_empty() {
            "none"
        } else {
            opt.default
        };
        let reload = if opt.reload { "reload" } else { "" };
        let _ = writeln!(
            table,
            "| `{}` | `--{}` | {default} | {reload} |",
            opt.name(),
            opt.flag
        );
    }
    table
}

/// One row per flag of flanneld.
fn flannel() -> String {
    let mut table =
        String::from("| flanneld's flag | overlayd | flanneld's default |\n|---|---|---|\n");
    for flag in FLAGS.iter().filter(|flag| flag.name != "h") {
        let here = match flag.meaning {
            Meaning::Sets(name) => format!("`{name}`{}", flag.but()),
            Meaning::HealthzIp | Meaning::HealthzPort => "`control.metrics`".to_owned(),
            Meaning::Verbosity => "`log.level`: from 2 on debug, from 10 on trace".to_owned(),
            Meaning::Refused(why) => format!("refused: {why}"),
            Meaning::Idle(why) => format!("no effect: {why}"),
            Meaning::Help | Meaning::Version => "the same".to_owned(),
        };
        let _ = writeln!(table, "| `{}` | {here} | {} |", flag.name, flag.default);
    }
    table
}

/// One row per metric.
fn metrics() -> String {
    let mut table = String::from("| metric | type | what it says |\n|---|---|---|\n");
    for (name, kind, help) in overlayd::observe::metrics::catalogue() {
        let _ = writeln!(table, "| `{name}` | {kind} | {help} |");
    }
    table
}

/// One row per encapsulation and underlay family.
fn mtu() -> String {
    fn row<E: Encapsulation>(table: &mut String, outer: Family) {
        let (family, ip) = match outer {
            Family::V4 => ("IPv4", 20),
            Family::V6 => ("IPv6", 40),
        };
        let overhead = E::overhead(outer);
        let parts = if E::HEADER_LEN == 0 {
            format!("{ip} + 8")
        } else {
            format!("{ip} + 8 + 8 + 14")
        };
        let summed: usize = ip + 8 + E::HEADER_LEN;
        assert_eq!(summed, usize::from(overhead));
        let (left, jumbo) = (1500 - overhead, 9000 - overhead);
        let _ = writeln!(
            table,
            "| {} | {family} | {parts} | {overhead} | {left} | {jumbo} |",
            E::NAME
        );
    }
    let mut table = String::from(
        "| backend | underlay | IP, UDP, VXLAN, inner Ethernet | overhead | MTU, of 1500 | MTU, of 9000 |\n\
         |---|---|---|---|---|---|\n",
    );
    for outer in [Family::V4, Family::V6] {
        row::<RawUdp>(&mut table, outer);
    }
    for outer in [Family::V4, Family::V6] {
        row::<Vxlan>(&mut table, outer);
    }
    table
}

#[test]
fn the_tables_are_those_of_the_code() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    for (page, name, table) in [
        ("status.md", "drops", drops()),
        ("run.md", "options", options()),
        ("one-packet.md", "mtu", mtu()),
        ("replace-flanneld.md", "flannel", flannel()),
        ("metrics.md", "metrics", metrics()),
    ] {
        let path = book().join(page);
        let text = read(&path);
        let begin = format!("<!-- generated: {name} -->\n");
        let (before, rest) = text.split_once(&begin).expect("the table has its place");
        let (stands, after) = rest.split_once("<!-- end -->").expect("the place ends");
        if stands == table {
            continue;
        }
        assert!(
            update,
            "the table of {name} in docs/src/{page} is not that of the code; write it anew with \
             `UPDATE_DOCS=1 cargo test -p integration --test docs` and look at the difference"
        );
        fs::write(&path, format!("{before}{begin}{table}<!-- end -->{after}"))
            .expect("write the page");
    }
}

/// The bytes of the annotated dump in the main chapter: offset, two spaces, bytes, two spaces, what they are.
fn datagram() -> Vec<u8> {
    let page = read(&book().join("one-packet.md"));
    let (_, rest) = page
        .split_once("<!-- datagram -->\n```text\n")
        .expect("the chapter has a datagram");
    let (dump, _) = rest.split_once("```").expect("the dump ends");
    let mut bytes = Vec::new();
    for line in dump.lines() {
        let Some((offset, rest)) = line.split_once("  ") else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        assert_eq!(offset, bytes.len(), "{line}");
        let hex = rest.split("  ").next().unwrap_or_default();
        bytes.extend(
            hex.split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16).expect(line)),
        );
    }
    bytes
}

#[test]
fn the_datagram_in_the_book_is_one_that_we_accept() {
    let frame = datagram();
    assert_eq!(frame.len(), 148);
    let outer = PacketHeaders::from_ethernet_slice(&frame).expect("an Ethernet frame");
    let Some(NetHeaders::Ipv4(ip, _)) = outer.net else {
        panic!("IPv4 outside")
    };
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!(
        (ip.source, ip.destination),
        ([10, 99, 0, 1], [10, 99, 0, 2])
    );
    assert_eq!(ip.total_len, 84 + Vxlan::overhead(Family::V4));
    let Some(TransportHeader::Udp(udp)) = outer.transport else {
        panic!("UDP outside")
    };
    assert_eq!((udp.source_port, udp.destination_port), (8472, 8472));
    // As the chapter says: the sum of the pseudo-header and nothing more.
    let pseudo = [ip.source, ip.destination].concat();
    let pseudo = encap::checksum::sum(&pseudo) + 17 + udp.length;
    assert_eq!(udp.checksum, pseudo);

    let mac = |node| MacAddr([0x0a, 0x58, 10, 99, 0, node]);
    let end = |node| Vxlan {
        vni: 1,
        macs: OwnMacs {
            v4: mac(node),
            v6: mac(node),
        },
        strict: true,
    };
    let datagram = outer.payload.slice();
    end(2).check_header(datagram).expect("a good VXLAN header");
    assert_eq!(end(2).check_link(datagram), Ok(Family::V4));
    let (header, packet) = datagram.split_at(Vxlan::HEADER_LEN);
    assert_eq!(
        end(1).header(Family::V4, mac(2)).as_slice(),
        header,
        "what we would send"
    );
    let inner = Inner::parse_checked(packet).expect("a good inner packet");
    assert_eq!((inner.total_len, packet[8]), (84, 63));
    assert_eq!(
        (inner.src.to_string(), inner.dst.to_string()),
        ("10.244.1.2".into(), "10.244.2.2".into())
    );
}
