//! The commands, one file each.
//!
//! stdout is for results, stderr for talk. Exit codes are a contract: see [`Exit`].

/// Says a line on stderr. Whoever stops listening does not end the command by it.
macro_rules! tell {
    ($($words:tt)*) => {
        $crate::cli::talk(format_args!($($words)*))
    };
}

mod ask;
mod bench;
mod config;
mod dissect;
mod flannel;
mod lab;
mod lease;
mod mtu;
mod peers;
mod routes;
mod run;
mod status;
mod trace;

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use clap::error::{ContextKind, ContextValue, ErrorKind as ErrorKindOfClap};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::lab::traffic::Cancel;

/// A line on stderr, if anybody listens.
fn talk(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{words}");
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// Something failed.
    Error = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The daemon cannot be reached.
    Unreachable = 3,
    /// The daemon forwards, but is degraded; or it waits for its store and does not forward yet.
    Degraded = 4,
    /// A check or test failed.
    Failed = 5,
    /// The configuration is bad (EX_CONFIG of sysexits.h).
    Config = 78,
    /// Interrupted by SIGINT, as shells report it.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Joins hosts into one flat overlay network: packets from a TUN device, over UDP, to the node that has
/// the lease for their destination.
#[derive(Parser)]
#[command(name = "overlayd", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run(run::Args),
    /// Run the daemon in flanneld's place, with flanneld's flags and FLANNELD_* variables
    Flannel(flannel::Args),
    /// Show a running daemon's health, device, lease, peers and drops
    Status(ask::Args),
    /// The leases in the store, and this node's own
    Lease(lease::Args),
    /// The other nodes, as the running daemon knows them
    Peers(ask::Args),
    /// Show the routes that a running daemon wants in the kernel, and how each stands
    Routes(ask::Args),
    /// Check a configuration, or print an example
    Config(config::Args),
    /// A multi-node overlay in network namespaces on this machine: build one, look inside, see it work
    Lab(lab::LabArgs),
    /// How fast: overlayd beside bare veth and kernel VXLAN, in one run
    Bench(Box<bench::BenchArgs>),
    /// Every byte of captured or given frames, explained
    Dissect(dissect::Args),
    /// What each encapsulation costs: header budget, MTU, MSS and goodput
    Mtu(mtu::Args),
    /// One packet's way, hop by hop: what each table decided, where it was seen, where it was lost and why
    Trace(trace::Args),
}

/// Where the daemon listens for commands.
#[derive(clap::Args)]
struct Socket {
    /// The daemon's control socket
    #[arg(
        long,
        value_name = "PATH",
        env = "OVERLAYD_SOCKET",
        default_value = "/run/overlayd/overlayd.sock"
    )]
    socket: PathBuf,
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(error).into(),
    };
    let exit = match cli.command {
        Command::Run(args) => run::main(args),
        Command::Flannel(args) => flannel::main(args),
        Command::Status(args) => status::main(&args),
        Command::Lease(args) => lease::main(args),
        Command::Peers(args) => peers::main(&args),
        Command::Routes(args) => routes::main(&args),
        Command::Config(args) => config::main(args),
        Command::Lab(args) => lab::main(args),
        Command::Bench(args) => bench::main(*args),
        Command::Dissect(args) => dissect::main(&args),
        Command::Mtu(args) => mtu::main(&args),
        Command::Trace(args) => trace::main(&args),
    };
    match exit {
        Exit::Ok if UNWRITTEN.load(Ordering::Relaxed) => Exit::Error,
        exit => exit,
    }
    .into()
}

/// Answers a command line that makes no sense, or asks for help or the version.
fn refused(mut error: clap::Error) -> Exit {
    // Commands that this program starts itself are for nobody to type.
    if let Some(ContextValue::Strings(similar)) = error.remove(ContextKind::SuggestedSubcommand) {
        let hidden = |name: &String| is_hidden(&Cli::command(), name);
        let shown: Vec<_> = similar.into_iter().filter(|name| !hidden(name)).collect();
        if !shown.is_empty() {
            error.insert(
                ContextKind::SuggestedSubcommand,
                ContextValue::Strings(shown),
            );
        }
    }
    let is_answer = !error.use_stderr();
    let unknown = error.kind() == ErrorKindOfClap::UnknownArgument;
    let printed = error.print();
    if let Some(flag) = unknown.then(flannels_flag).flatten() {
        tell!("\n{flag} is a flag of flanneld's: `overlayd flannel` takes those");
    }
    match printed {
        Err(cause) if is_answer && cause.kind() != ErrorKind::BrokenPipe => {
            unwritten(cause);
            Exit::Error
        }
        _ if is_answer => Exit::Ok,
        _ => Exit::Usage,
    }
}

/// The flag of flanneld's that `overlayd run` was given.
fn flannels_flag() -> Option<String> {
    let mut args = std::env::args_os().skip(1);
    args.next().filter(|command| command == "run")?;
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let flag = crate::config::flannel::stray(args.iter().map(String::as_str))?;
    // The value may be a password.
    flag.split('=').next().map(str::to_owned)
}

/// Is there a hidden command of this name, at any depth?
fn is_hidden(command: &clap::Command, name: &str) -> bool {
    let mut inside = command.get_subcommands();
    inside.any(|inner| inner.is_hide_set() && inner.get_name() == name || is_hidden(inner, name))
}

/// A result could not be printed, so the command has failed, whatever else it did.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Prints a result. A reader that has gone away (`| head`) is no error; that it cannot be written otherwise is said once,
/// and shown by the exit code.
fn say(result: impl Display) {
    match writeln!(std::io::stdout(), "{result}") {
        Err(cause) if cause.kind() != ErrorKind::BrokenPipe => unwritten(cause),
        _ => {}
    }
}

fn unwritten(cause: std::io::Error) {
    if !UNWRITTEN.swap(true, Ordering::Relaxed) {
        complain(&anyhow::Error::new(cause).context("cannot write to stdout"));
    }
}

/// Says on stderr what went wrong, causes included.
fn complain(error: &anyhow::Error) {
    tell!("overlayd: {error:#}");
}

/// The variable that names the lab where no `--name` does.
const LAB_NAME: &str = "OVERLAYD_LAB_NAME";

/// A flag that SIGINT, SIGTERM and SIGHUP set. From here on they no longer end the process: whoever built something
/// gets to take it away.
fn on_signal() -> Result<Cancel> {
    let cancel = Cancel::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let streams = {
        use tokio::signal::unix::{SignalKind, signal};
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    let flag = cancel.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let (mut interrupt, mut terminate, mut hangup) = streams;
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.set();
                }
            });
        })?;
    Ok(cancel)
}
