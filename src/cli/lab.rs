//! `overlayd lab`: a multi-node overlay on this machine.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::Uid;

use super::{Exit, complain, on_signal, say};
use crate::lab::demo::{self, Step, Tale};
use crate::lab::holder;
use crate::lab::topology::{self, Backend, DEFAULT_NAME, Interrupted, Lab, Spec, Underlay};
use crate::observe::client;

/// Version of what `lab status --json` prints.
const STATUS_VERSION: u32 = 1;
/// The name of the demo's lab: it must not meet one that stands.
const DEMO_NAME: &str = "demo";
/// What a shell exits with when it cannot find a command.
const NOT_FOUND: u8 = 127;

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub(super) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Build a lab: nodes and pods in network namespaces, overlayd on every node
    Up {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        shape: Shape,
    },
    /// Build a lab, show what an overlay does and measure it, take the lab down
    Demo {
        /// The lab's name: its namespaces' names begin with it
        #[arg(long, default_value = DEMO_NAME)]
        name: String,
        #[command(flatten)]
        shape: Shape,
        /// Print the story as JSON, at the end
        #[arg(long)]
        json: bool,
    },
    /// Show a lab's nodes, pods and daemons
    Status {
        #[command(flatten)]
        name: Name,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command inside a node or a pod
    #[command(
        after_help = "Without a command: $SHELL. Inside, `overlayd status` asks the node's daemon, and OVERLAYD_CONFIG \
                      names its configuration.\n\n\
                      Examples:\n  overlayd lab sh node1/pod2\n  overlayd lab sh node1 overlayd status"
    )]
    Sh {
        #[command(flatten)]
        name: Name,
        /// Where: node1, node1/pod2, or underlay
        #[arg(value_name = "NODE[/POD]")]
        place: String,
        /// The command and its arguments
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CMD"
        )]
        command: Vec<String>,
    },
    /// Take a lab down, or clean up after one that was killed
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Hold the network namespace it is started in (a pod's holder; started by `lab up`)
    #[command(hide = true)]
    Hold,
}

#[derive(Args)]
struct Name {
    /// The lab's name: its namespaces' names begin with it
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// What a lab shall consist of.
#[derive(Args)]
struct Shape {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=250))]
    nodes: u8,
    /// How many pods on each node
    #[arg(long, value_name = "N", default_value_t = 2)]
    pods: u8,
    /// The encapsulation between the nodes
    #[arg(long, value_enum, default_value_t = BackendArg::Vxlan)]
    backend: BackendArg,
    /// MTU of the underlay, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    underlay_mtu: u16,
    /// IP families of the underlay [default: dual, or v4 with --no-ipv6]
    #[arg(long, value_enum)]
    underlay: Option<UnderlayArg>,
    /// Pods without IPv6 addresses
    #[arg(long)]
    no_ipv6: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendArg {
    /// Raw IP packets in UDP, port 8285
    Udp,
    /// VXLAN, UDP port 8472
    Vxlan,
}

#[derive(Clone, Copy, ValueEnum)]
enum UnderlayArg {
    /// IPv4 only
    V4,
    /// IPv6 only
    V6,
    /// Both
    Dual,
}

impl Shape {
    fn spec(&self, name: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            nodes: self.nodes,
            pods: self.pods,
            backend: match self.backend {
                BackendArg::Udp => Backend::Udp,
                BackendArg::Vxlan => Backend::Vxlan,
            },
            ipv6: !self.no_ipv6,
            underlay: match (self.underlay, self.no_ipv6) {
                (Some(UnderlayArg::V4), _) | (None, true) => Underlay::V4,
                (Some(UnderlayArg::V6), _) => Underlay::V6,
                (Some(UnderlayArg::Dual), _) | (None, false) => Underlay::Dual,
            },
            mtu: self.underlay_mtu,
            ..Spec::default()
        }
    }
}

pub(super) fn main(args: LabArgs) -> Exit {
    if !matches!(args.command, LabCommand::Hold) && !Uid::effective().is_root() {
        eprintln!("overlayd: a lab needs root, to make and enter network namespaces: use sudo");
        return Exit::Error;
    }
    let done = match args.command {
        LabCommand::Up { name, shape } => {
            let spec = shape.spec(&name.name);
            unless_interrupted(up(spec.clone()), &spec)
        }
        LabCommand::Demo { name, shape, json } => {
            let spec = shape.spec(&name);
            unless_interrupted(run_demo(spec.clone(), json), &spec)
        }
        LabCommand::Status { name, json } => status(&name.name, json),
        LabCommand::Sh {
            name,
            place,
            command,
        } => sh(&name.name, &place, &command),
        LabCommand::Down { name } => down(&name.name),
        LabCommand::Hold => holder::run(),
    };
    done.unwrap_or_else(|error| {
        complain(&error);
        Exit::Error
    })
}

/// An interrupted `up` or `demo` has taken its lab away; this makes sure of it.
fn unless_interrupted(done: Result<Exit>, spec: &Spec) -> Result<Exit> {
    match done {
        Err(error) if error.is::<Interrupted>() => {
            let left = demo::leftovers(spec)?;
            if left.is_empty() {
                eprintln!(
                    "overlayd: interrupted; nothing is left of lab {:?}",
                    spec.name
                );
            } else {
                let option = name_option(&spec.name);
                eprintln!(
                    "overlayd: interrupted; still there: {} (`overlayd lab down{option}` removes it)",
                    left.join(", ")
                );
            }
            Ok(Exit::Interrupted)
        }
        other => other,
    }
}

fn up(spec: Spec) -> Result<Exit> {
    let (exe, cancel, start) = (exe()?, on_signal()?, Instant::now());
    Lab::check(&spec)?;
    eprintln!("building lab {:?}: {} ...", spec.name, shape_of(&spec));
    let lab = Lab::up(spec, &exe, &|| cancel.is_set())?;
    say(demo::draw(lab.spec()));
    let option = name_option(&lab.spec().name);
    eprintln!(
        "up after {:.2} s. Now for example:",
        start.elapsed().as_secs_f64()
    );
    let shell = if lab.spec().pods == 0 {
        (format!("sh{option} node1"), "a shell in a node")
    } else {
        (format!("sh{option} node1/pod1"), "a shell in a pod")
    };
    let hints = [
        shell,
        (
            format!("sh{option} node1 overlayd status"),
            "what the daemon of a node says",
        ),
        (format!("status{option}"), "all nodes and pods"),
        (format!("down{option}"), "the end"),
    ];
    let width = hints.iter().map(|(command, _)| command.len()).max();
    let width = width.unwrap_or_default() + 2;
    for (command, what) in hints {
        eprintln!("  overlayd lab {command:width$}{what}");
    }
    lab.keep();
    Ok(Exit::Ok)
}

fn run_demo(spec: Spec, json: bool) -> Result<Exit> {
    let (exe, cancel) = (exe()?, on_signal()?);
    let (out, err) = (Paint::stdout(), Paint::stderr());
    demo::check(&spec)?;
    if !json {
        say(out.bold(&format!("overlayd lab demo: {}", shape_of(&spec))));
    }
    let mut tell = |tale: Tale<'_>| match tale {
        _ if json => {}
        Tale::Progress { at, what } => eprintln!(
            "{}",
            err.dim(&format!("{:6.2} s  {what}", at.as_secs_f64()))
        ),
        Tale::Topology(drawing) => say(format!("\n{drawing}")),
        Tale::Begin { number, title } => err.pending(&format!("   {number}  {title} ...")),
        Tale::End(step) => {
            err.pending("");
            say(told(step, out));
        }
    };
    let report = demo::run(spec, &exe, &cancel, &mut tell)?;
    if json {
        say(format_args!("{:#}", serde_json::to_value(&report)?));
    } else {
        for left in &report.leftovers {
            say(format!("{} still there: {left}", out.verdict(false)));
        }
        let passed = report.steps.iter().filter(|step| step.passed).count();
        say(format!(
            "\n{} {} of {} steps passed, {}, in {:.1} s",
            out.verdict(report.passed),
            out.bold(&passed.to_string()),
            report.steps.len(),
            if report.leftovers.is_empty() {
                "nothing left behind"
            } else {
                "NOT EVERYTHING REMOVED"
            },
            report.seconds
        ));
    }
    Ok(if report.passed {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// A step as it is read.
fn told(step: &Step, paint: Paint) -> String {
    let mut text = format!(
        " {} {}  {}  {}\n      {}\n",
        paint.verdict(step.passed),
        step.number,
        paint.bold(step.title),
        paint.dim(&time(step.seconds)),
        paint.dim(&step.about)
    );
    for line in &step.lines {
        let mark = match line.passed {
            Some(false) => paint.verdict(false),
            Some(true) => paint.verdict(true),
            None => " ".to_owned(),
        };
        text += format!("      {mark} {}", line.text).trim_end();
        text.push('\n');
    }
    text
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.1} s")
    }
}

fn status(name: &str, json: bool) -> Result<Exit> {
    let status = topology::status(name)?;
    let exit = if status.is_whole() {
        Exit::Ok
    } else {
        Exit::Degraded
    };
    if json {
        let mut value = serde_json::to_value(&status)?;
        value["version"] = STATUS_VERSION.into();
        value["whole"] = status.is_whole().into();
        say(format_args!("{value:#}"));
        return Ok(exit);
    }
    let paint = Paint::stdout();
    let built = if status.complete {
        ""
    } else {
        "; its `up` is still at work or was killed"
    };
    say(paint.bold(&format!(
        "lab {:?}: {}{built}\n",
        status.name,
        shape_of(&status.spec)
    )));
    for node in &status.nodes {
        let daemon = match node.daemon {
            Some(pid) => {
                let state = client::status(&node.socket).map_or_else(
                    |error| error.to_string(),
                    |answer| answer["state"].as_str().unwrap_or("unknown").to_owned(),
                );
                format!("overlayd {state}, pid {pid}")
            }
            None if status.spec.daemons => {
                format!("no overlayd: its log is {}", node.log.display())
            }
            None => "no overlayd".to_owned(),
        };
        let good = node.present && (node.daemon.is_some() || !status.spec.daemons);
        let present = if node.present {
            ""
        } else {
            ", its namespace is gone"
        };
        say(format!(
            " {} {:12} {:36} {daemon}{present}",
            paint.verdict(good),
            node.name,
            join(&node.public_ips)
        ));
        for pod in &node.pods {
            let held = match pod.holder {
                Some(pid) => format!("held by pid {pid}"),
                None => "its holder is gone".to_owned(),
            };
            let place = format!("{}/{}", node.name, pod.name);
            say(format!(
                " {} {place:12} {:36} {held}",
                paint.verdict(pod.holder.is_some()),
                join(&pod.ips)
            ));
        }
    }
    Ok(exit)
}

fn join(ips: &[std::net::IpAddr]) -> String {
    let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
    ips.join(" ")
}

/// Becomes the command, inside the place: so its signals, its terminal and its exit code are its own.
fn sh(name: &str, place: &str, command: &[String]) -> Result<Exit> {
    let exe = exe()?;
    let lab = Lab::load(name, &exe)?;
    let namespace = lab.place(place)?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => {
            eprintln!("overlayd: a shell in {place} of lab {name:?}; `exit` leaves it");
            (shell, &[][..])
        }
    };
    let node = place.split('/').next().unwrap_or(place);
    let number = lab.nodes().iter().find(|n| n.name == node);
    let files = number.map(|n| (lab.socket(n.number), lab.config(n.number)));
    // Replacing the process ends all its threads but the one that does it, which is inside.
    let error = namespace.run(|| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).env("PATH", path_with(&exe));
        // Debian's and Ubuntu's shells show it in the prompt.
        command.env("debian_chroot", place);
        match files {
            Some((socket, config)) => command
                .env("OVERLAYD_SOCKET", socket)
                .env("OVERLAYD_CONFIG", config),
            None => command
                .env_remove("OVERLAYD_SOCKET")
                .env_remove("OVERLAYD_CONFIG"),
        };
        command.exec()
    })?;
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    complain(&anyhow::Error::new(error).context(format!("cannot run {program}")));
    if missing {
        // As shells do, so that it is not taken for the command's own exit code.
        std::process::exit(NOT_FOUND.into());
    }
    Ok(Exit::Error)
}

/// $PATH, with this overlayd's own directory first: inside a lab its commands are those of the one that built it.
fn path_with(exe: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let own = exe.parent().map(Path::to_owned);
    // A directory with a colon in its name cannot be told apart: then the old value has to do.
    std::env::join_paths(own.into_iter().chain(std::env::split_paths(&old))).unwrap_or(old)
}

fn down(name: &str) -> Result<Exit> {
    let start = Instant::now();
    // Known only while the namespaces are there to compare with.
    let guests = topology::guests(name).unwrap_or_default();
    if Lab::down(name)? {
        for guest in guests.iter().filter(|guest| guest.still_runs()) {
            eprintln!(
                "pid {} ({}) still runs in {}: it keeps that namespace alive until it ends",
                guest.pid, guest.command, guest.place
            );
        }
        eprintln!(
            "lab {name:?} is gone, after {:.2} s",
            start.elapsed().as_secs_f64()
        );
    } else {
        eprintln!("there is no lab {name:?}: nothing to do");
    }
    Ok(Exit::Ok)
}

fn shape_of(spec: &Spec) -> String {
    let s = |n: u8| if n == 1 { "" } else { "s" };
    let pods = match spec.nodes {
        1 => format!("{} pod{}", spec.pods, s(spec.pods)),
        _ => format!("{} pod{} each", spec.pods, s(spec.pods)),
    };
    let inside = if spec.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
    let outside = match spec.underlay {
        Underlay::V4 => "IPv4",
        Underlay::V6 => "IPv6",
        Underlay::Dual => "IPv4 and IPv6",
    };
    let inside = if inside == outside {
        String::new()
    } else {
        format!("{inside} in ")
    };
    let (nodes, backend) = (spec.nodes, spec.backend);
    format!(
        "{nodes} node{} with {pods}, {backend}, {inside}{outside}",
        s(nodes)
    )
}

fn name_option(name: &str) -> String {
    if name == DEFAULT_NAME {
        String::new()
    } else {
        format!(" --name {name}")
    }
}

fn exe() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the overlayd that is running (is /proc mounted?)")
}

/// Colours, where someone sees them.
#[derive(Clone, Copy)]
struct Paint {
    terminal: bool,
    colour: bool,
}

impl Paint {
    fn stdout() -> Self {
        Self::on(std::io::stdout().is_terminal())
    }

    fn stderr() -> Self {
        Self::on(std::io::stderr().is_terminal())
    }

    fn on(terminal: bool) -> Self {
        // https://no-color.org: set to anything but nothing.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            terminal,
            colour: terminal && !refused,
        }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn verdict(self, passed: bool) -> String {
        if passed {
            self.paint("32", "✓")
        } else {
            self.paint("31;1", "✗")
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line that the next one overwrites; only where that works.
    fn pending(self, text: &str) {
        if self.terminal && std::io::stdout().is_terminal() {
            eprint!("\r\x1b[K{}", self.dim(text));
        }
    }
}
