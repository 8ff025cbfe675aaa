//! `overlayd config check | example`.

use std::path::{Path, PathBuf};

use super::{Exit, say};
use crate::config::{self, Overrides};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check the configuration and the leases it names, in a file or in etcd, as the daemon would read them.
    ///
    /// Exit code 0: good; an etcd that does not answer is named, and does not change that. 78: the
    /// configuration is bad, or the lease file can not be used. 5: the daemon would start, and leave
    /// a lease or route out.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE", env = "OVERLAYD_CONFIG")]
        config: Option<PathBuf>,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
        /// What flags of `overlayd run` would change.
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Print a configuration file with every option and what it means.
    Example,
}

pub(super) fn main(args: Args) -> Exit {
    match args.command {
        Command::Example => {
            say(config::example().trim_end());
            Exit::Ok
        }
        Command::Check {
            config,
            json,
            overrides,
        } => check(config.as_deref(), json, &overrides),
    }
}

fn check(path: Option<&Path>, json: bool, overrides: &Overrides) -> Exit {
    match config::run_check(path, overrides, std::env::vars_os()) {
        Ok(report) => {
            if json {
                say(format_args!("{:#}", report.to_json()));
            } else {
                say(&report);
            }
            match &report.leases {
                Ok(_) if report.is_good() => Exit::Ok,
                Ok(_) => Exit::Failed,
                Err(_) => Exit::Config,
            }
        }
        Err(error) => {
            if json {
                say(format_args!("{:#}", error.to_json()));
            } else {
                tell!("{error}");
            }
            Exit::Config
        }
    }
}
