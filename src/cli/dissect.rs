//! `overlayd dissect`: every byte of captured or given frames, explained. Needs no daemon and no root.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ColorChoice, ValueEnum};
use crossbeam::channel::{self, Receiver, Sender};

use super::Exit;
use crate::teach::capture::{self, Capture, Frame, Link};
use crate::teach::dissect::{Dissection, Ports, Tunnel, guess_link};
use crate::teach::show::{Palette, Shown, drawing, json, text};

/// The most threads that show frames of one file.
const MOST_THREADS: usize = 4;
/// Bytes of frames that one of them shows at a time. What it makes of them is some twenty times as long.
const BATCH: usize = 1 << 15;
/// How many batches may be on their way.
const AHEAD: usize = MOST_THREADS;

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
    /// UDP datagrams to this port carry this encapsulation: udp (flannel's), vxlan, gpe (VXLAN-GPE), geneve or wireguard;
    /// may be given more than once (known: 8285=udp, 8472=vxlan, 4789=vxlan, 4790=gpe, 6081=geneve, 51820=wireguard)
    #[arg(long = "port", value_name = "N=KIND", value_parser = parse_port)]
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

/// What `--port` knows.
const TUNNELS: [&str; 5] = ["udp", "vxlan", "gpe", "geneve", "wireguard"];

fn parse_port(text: &str) -> Result<(u16, Tunnel), String> {
    let (port, tunnel) = text.split_once('=').ok_or_else(|| {
        format!(
            "write a port, `=`, and {}, like 9000=vxlan",
            TUNNELS.join(" or ")
        )
    })?;
    let port = port
        .parse()
        .map_err(|_| format!("{port:?} is no port: a number up to 65535"))?;
    let tunnel = match tunnel {
        "udp" => Tunnel::Udp,
        "vxlan" => Tunnel::Vxlan,
        "gpe" => Tunnel::Gpe,
        "geneve" => Tunnel::Geneve,
        "wireguard" => Tunnel::WireGuard,
        _ => {
            let known = TUNNELS.join(" or ");
            return Err(format!(
                "{tunnel:?} is no encapsulation in UDP that is known here: {known}"
            ));
        }
    };
    Ok((port, tunnel))
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
    let form = match args {
        Args { json: true, .. } => Form::Json,
        Args { rfc: true, .. } => Form::Rfc,
        Args { brief: true, .. } => Form::Brief,
        _ => Form::Rows,
    };
    let mut task = Task {
        args,
        view: View {
            form,
            ports,
            palette: Palette { colours },
        },
        // Lines are written as they come where somebody waits for them.
        out: BufWriter::with_capacity(
            if stdout.is_terminal() { 4096 } else { 1 << 16 },
            stdout.lock(),
        ),
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
    /// A file could not be read, or not to its end.
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

#[derive(Clone, Copy)]
enum Form {
    Rows,
    Brief,
    Rfc,
    Json,
}

/// How frames are shown.
struct View {
    form: Form,
    ports: Ports,
    palette: Palette,
}

/// Frames one after the other, as one thread shows them.
#[derive(Default)]
struct Batch {
    heads: Vec<Head>,
    bytes: Vec<u8>,
}

/// What is known of a frame beside its bytes.
struct Head {
    number: u64,
    time: Option<Duration>,
    link: Link,
    len: usize,
    wire_len: usize,
    since_first: Option<f64>,
}

impl View {
    fn show(
        &self,
        file: Option<&str>,
        batch: &Batch,
        dissection: &mut Dissection,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut bytes = batch.bytes.as_slice();
        for head in &batch.heads {
            let (own, rest) = bytes.split_at(head.len);
            bytes = rest;
            dissection.read(own, head.wire_len, head.link, &self.ports);
            let shown = Shown {
                file,
                frame: Frame {
                    number: head.number,
                    time: head.time,
                    link: Some(head.link),
                    bytes: own,
                    wire_len: head.wire_len,
                },
                since_first: head.since_first,
                dissection,
            };
            match self.form {
                Form::Json => json::line(&shown, out)?,
                Form::Rfc => drawing::drawings(&shown, self.palette, out)?,
                Form::Brief => text::brief(&shown, self.palette, out)?,
                Form::Rows => text::rows(&shown, self.palette, out)?,
            }
        }
        Ok(())
    }
}

/// Shows batches, with threads of their own where there may be many, and writes what comes of them in their order.
struct Line<'a, W: Write> {
    view: &'a View,
    file: Option<&'a str>,
    out: &'a mut BufWriter<W>,
    dissection: Dissection,
    /// Buffers of what was written, to be filled again: fresh ones of their size cost more than what is put in them.
    spare: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    /// To the threads, each batch with the way back.
    jobs: Option<Sender<(Batch, Sender<Vec<u8>>)>>,
    /// What comes back, in order.
    pending: VecDeque<Receiver<Vec<u8>>>,
}

impl<W: Write> Line<'_, W> {
    fn show(&mut self, batch: &mut Batch) -> io::Result<()> {
        let batch = std::mem::take(batch);
        let Some(jobs) = &self.jobs else {
            let Self { view, file, .. } = *self;
            let mut text = self.spare.1.try_recv().unwrap_or_default();
            view.show(file, &batch, &mut self.dissection, &mut text)?;
            return self.write(text);
        };
        let (done, result) = channel::bounded(1);
        // They listen for as long as there are jobs to come.
        let _ = jobs.send((batch, done));
        self.pending.push_back(result);
        self.write_down_to(AHEAD)
    }

    fn write_down_to(&mut self, left: usize) -> io::Result<()> {
        while self.pending.len() > left {
            let result = self.pending.pop_front().and_then(|next| next.recv().ok());
            self.write(result.unwrap_or_default())?;
        }
        Ok(())
    }

    fn write(&mut self, mut text: Vec<u8>) -> io::Result<()> {
        self.out.write_all(&text)?;
        text.clear();
        // One too many is let go.
        let _ = self.spare.0.try_send(text);
        Ok(())
    }

    /// All that was given is written.
    fn flush(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.show(batch)?;
        self.write_down_to(0)?;
        self.out.flush()
    }
}

struct Task<'a, W: Write> {
    args: &'a Args,
    view: View,
    out: BufWriter<W>,
}

impl<W: Write> Task<'_, W> {
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        if path == Path::new("-") {
            if io::stdin().is_terminal() {
                tell!("overlayd: reading hex text from the terminal; end it with Ctrl-D");
            }
            return self.input("stdin", io::stdin().lock(), 1, 1);
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
        let threads = thread::available_parallelism().map_or(1, usize::from);
        self.input(
            &name,
            BufReader::with_capacity(1 << 16, file),
            threads.min(MOST_THREADS),
            BATCH,
        )
    }

    /// Shows the frames of a file by so many threads, so many bytes of them at a time.
    fn input(
        &mut self,
        name: &str,
        input: impl BufRead,
        threads: usize,
        size: usize,
    ) -> Result<(), Failure> {
        let file = (self.args.files.len() > 1).then_some(name);
        let (view, out) = (&self.view, &mut self.out);
        let mut line = Line {
            view,
            file,
            out,
            dissection: Dissection::default(),
            spare: channel::bounded(AHEAD),
            jobs: None,
            pending: VecDeque::new(),
        };
        if threads < 2 {
            return frames(self.args, name, input, &mut line, size);
        }
        let (jobs, work) = channel::bounded::<(Batch, Sender<Vec<u8>>)>(AHEAD);
        line.jobs = Some(jobs);
        thread::scope(|scope| {
            for _ in 0..threads {
                let (work, spare) = (work.clone(), line.spare.1.clone());
                scope.spawn(move || {
                    let mut dissection = Dissection::default();
                    for (batch, done) in work {
                        let mut text = spare.try_recv().unwrap_or_default();
                        // Writing to memory does not fail, and whoever no longer waits for it needs it no more.
                        let _ = view.show(file, &batch, &mut dissection, &mut text);
                        let _ = done.send(text);
                    }
                });
            }
            // With the line the jobs end, and with these the threads.
            let mut line = line;
            frames(self.args, name, input, &mut line, size)
        })
    }
}

/// Reads the frames that are wanted and gives them to the line, in batches of so many bytes.
fn frames<W: Write>(
    args: &Args,
    name: &str,
    input: impl BufRead,
    line: &mut Line<'_, W>,
    size: usize,
) -> Result<(), Failure> {
    let unread =
        |error: capture::Error| Failure::Input(anyhow::Error::new(error).context(name.to_owned()));
    let mut capture = Capture::open(input).map_err(unread)?;
    let first = args.frame.unwrap_or(1);
    let count = args.count.or(args.frame.map(|_| 1));
    let last = count.map_or(u64::MAX, |count| first.saturating_add(count - 1));
    let mut batch = Batch::default();
    let mut start = None;
    let mut read = 0;
    while read < last {
        let frame = match capture.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) if read == 0 => return Err(unread(error)),
            Err(error) => {
                line.flush(&mut batch)?;
                return Err(unread(error));
            }
        };
        read = frame.number;
        let start = *start.get_or_insert(frame.time);
        if read >= first {
            let since_first = match (start, frame.time) {
                // Frames of several devices may be a little out of order.
                (Some(start), Some(time)) if time < start => Some(-(start - time).as_secs_f64()),
                (Some(start), Some(time)) => Some((time - start).as_secs_f64()),
                _ => None,
            };
            let link = match args.link {
                LinkChoice::Ethernet => Link::Ethernet,
                LinkChoice::Raw => Link::Raw,
                LinkChoice::Auto => frame.link.unwrap_or_else(|| guess_link(frame.bytes)),
            };
            batch.bytes.extend_from_slice(frame.bytes);
            batch.heads.push(Head {
                number: frame.number,
                time: frame.time,
                link,
                len: frame.bytes.len(),
                wire_len: frame.wire_len,
                since_first,
            });
            if batch.bytes.len() + size_of_val(batch.heads.as_slice()) >= size {
                line.show(&mut batch)?;
            }
        }
        let complaints = capture.take_complaints();
        if !complaints.is_empty() {
            line.flush(&mut batch)?;
            for complaint in complaints {
                tell!("overlayd: {name}: {complaint}");
            }
        }
    }
    line.show(&mut batch)?;
    line.write_down_to(0)?;
    if read == 0 {
        tell!("overlayd: {name}: no frame in it");
    } else if read < first {
        let what = anyhow::anyhow!("{name}: there is no frame {first}: the last one is {read}");
        return Err(Failure::Input(what));
    }
    Ok(())
}
