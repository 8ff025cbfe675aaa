//! `overlayd dissect`: every byte of captured or given frames, explained. Needs no daemon and no root.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{ColorChoice, ValueEnum};

use super::Exit;
use crate::teach::capture::{self, Capture, Link};
use crate::teach::dissect::{Dissection, Ports, Tunnel, guess_link};
use crate::teach::show::{Palette, Shown, drawing, json, text};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Capture files (pcap, pcapng) or hex text (xxd, hexdump, tcpdump -x, plain); `-` is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Show frame N (from 1), or with --count that many from it on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frame: Option<u64>,
    /// Show at most N frames of each file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// UDP datagrams to this port carry flannel's udp or VXLAN; may be given more than once
    /// (known: 8285=udp, 8472=vxlan, 4789=vxlan)
    #[arg(long = "port", value_name = "N=vxlan|udp", value_parser = parse_port)]
    ports: Vec<(u16, Tunnel)>,
    /// What frames begin with; `auto` goes by the capture file, and guesses for hex text
    #[arg(long, value_enum, default_value_t = LinkChoice::Auto)]
    link: LinkChoice,
    /// One line per frame
    #[arg(long, conflicts_with_all = ["rfc", "json"])]
    brief: bool,
    /// Draw headers as the RFCs do, with the values in them
    #[arg(long, conflicts_with = "json")]
    rfc: bool,
    /// One JSON object per frame and line
    #[arg(long)]
    json: bool,
    /// Colours: on terminals that want them, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

#[derive(Clone, Copy, ValueEnum)]
enum LinkChoice {
    Auto,
    Ethernet,
    Raw,
}

fn parse_port(text: &str) -> Result<(u16, Tunnel), String> {
    let (port, tunnel) = text
        .split_once('=')
        .ok_or("write a port, `=`, and `vxlan` or `udp`, like 4790=vxlan")?;
    let port = port
        .parse()
        .map_err(|_| format!("{port:?} is no port: a number up to 65535"))?;
    match tunnel {
        "vxlan" => Ok((port, Tunnel::Vxlan)),
        "udp" => Ok((port, Tunnel::Udp)),
        _ => Err(format!(
            "{tunnel:?} is no encapsulation that is known here: `vxlan` or `udp`"
        )),
    }
}

pub(super) fn main(args: &Args) -> Exit {
    let stdout = io::stdout();
    let colours = match args.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never,
    };
    let mut ports = Ports::default();
    for &(port, tunnel) in &args.ports {
        ports.insert(port, tunnel);
    }
    let mut task = Task {
        args,
        ports,
        palette: Palette { colours },
        // Lines are written as they come where somebody waits for them.
        out: BufWriter::with_capacity(
            if stdout.is_terminal() { 4096 } else { 1 << 16 },
            stdout.lock(),
        ),
        dissection: Dissection::default(),
    };
    let mut exit = Exit::Ok;
    for path in &args.files {
        match task.file(path) {
            Ok(()) => {}
            Err(Failure::Reader) => return Exit::Ok,
            Err(Failure::Input(error)) => {
                // What was written must come before what is said about it.
                let _ = task.out.flush();
                super::complain(&error);
                exit = Exit::Error;
            }
            Err(Failure::Output(error)) => {
                super::complain(&anyhow::Error::new(error).context("cannot write to stdout"));
                return Exit::Error;
            }
        }
    }
    match task.out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            super::complain(&anyhow::Error::new(error).context("cannot write to stdout"));
            Exit::Error
        }
        _ => exit,
    }
}

enum Failure {
    /// Nothing could be read from a file.
    Input(anyhow::Error),
    /// Whoever read our output has gone away.
    Reader,
    /// The output failed otherwise.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Reader,
            _ => Self::Output(error),
        }
    }
}

struct Task<'a, W: Write> {
    args: &'a Args,
    ports: Ports,
    palette: Palette,
    out: BufWriter<W>,
    dissection: Dissection,
}

impl<W: Write> Task<'_, W> {
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        if path == Path::new("-") {
            if io::stdin().is_terminal() {
                eprintln!("overlayd: reading hex text from the terminal; end it with Ctrl-D");
            }
            return self.input("stdin", io::stdin().lock());
        }
        let name = path.display().to_string();
        let open = || -> anyhow::Result<File> {
            let file = File::open(path)?;
            anyhow::ensure!(!file.metadata()?.is_dir(), "is a directory, not a capture");
            Ok(file)
        };
        let file = open()
            .with_context(|| name.clone())
            .map_err(Failure::Input)?;
        self.input(&name, BufReader::with_capacity(1 << 16, file))
    }

    fn input(&mut self, name: &str, input: impl BufRead) -> Result<(), Failure> {
        let unread = |error: capture::Error| {
            Failure::Input(anyhow::Error::new(error).context(name.to_owned()))
        };
        let mut capture = Capture::open(input).map_err(unread)?;
        let first = self.args.frame.unwrap_or(1);
        let count = self.args.count.or(self.args.frame.map(|_| 1));
        let last = count.map_or(u64::MAX, |count| first.saturating_add(count - 1));
        let file = (self.args.files.len() > 1).then_some(name);
        let mut start = None;
        let mut read = 0;
        while read < last {
            let frame = match capture.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) if read == 0 => return Err(unread(error)),
                Err(error) => {
                    self.out.flush()?;
                    eprintln!("overlayd: {name}: {error}");
                    break;
                }
            };
            read = frame.number;
            let start = *start.get_or_insert(frame.time);
            if read >= first {
                let since_first = match (start, frame.time) {
                    // Frames of several devices may be a little out of order.
                    (Some(start), Some(time)) if time < start => {
                        Some(-(start - time).as_secs_f64())
                    }
                    (Some(start), Some(time)) => Some((time - start).as_secs_f64()),
                    _ => None,
                };
                let link = match self.args.link {
                    LinkChoice::Ethernet => Link::Ethernet,
                    LinkChoice::Raw => Link::Raw,
                    LinkChoice::Auto => frame.link.unwrap_or_else(|| guess_link(frame.bytes)),
                };
                self.dissection
                    .read(frame.bytes, frame.wire_len, link, &self.ports);
                let shown = Shown {
                    file,
                    frame,
                    since_first,
                    dissection: &self.dissection,
                };
                if self.args.json {
                    json::line(&shown, &mut self.out)?;
                } else if self.args.rfc {
                    drawing::drawings(&shown, self.palette, &mut self.out)?;
                } else if self.args.brief {
                    text::brief(&shown, self.palette, &mut self.out)?;
                } else {
                    text::rows(&shown, self.palette, &mut self.out)?;
                }
            }
            let complaints = capture.take_complaints();
            if !complaints.is_empty() {
                self.out.flush()?;
                for complaint in complaints {
                    eprintln!("overlayd: {name}: {complaint}");
                }
            }
        }
        if read == 0 {
            eprintln!("overlayd: {name}: no frame in it");
        } else if read < first {
            let what = anyhow::anyhow!("{name}: there is no frame {first}: the last one is {read}");
            return Err(Failure::Input(what));
        }
        Ok(())
    }
}
