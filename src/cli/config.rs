//! `overlayd config check | example`.

// stdout is this command's result.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;

use overlayd::config::{self, EXIT_BAD_CONFIG, Overrides};

/// A check found something (DESIGN: exit codes).
const EXIT_CHECK_FAILED: u8 = 5;

/// `overlayd config`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check the configuration and the lease file it names, as the daemon would read them.
    ///
    /// Exit code 0: good. 78: the configuration is bad, or the lease file can not be used. 5: the
    /// daemon would start, and leave a lease or route out.
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

/// Does it.
pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Example => {
            print!("{}", config::example());
            ExitCode::SUCCESS
        }
        Command::Check {
            config,
            json,
            overrides,
        } => check(config.as_deref(), *json, overrides),
    }
}

fn check(path: Option<&std::path::Path>, json: bool, overrides: &Overrides) -> ExitCode {
    match config::run_check(path, overrides, std::env::vars_os()) {
        Ok(report) => {
            if json {
                println!("{:#}", report.to_json());
            } else {
                println!("{report}");
            }
            match &report.leases {
                Ok(_) if report.is_good() => ExitCode::SUCCESS,
                Ok(_) => ExitCode::from(EXIT_CHECK_FAILED),
                Err(_) => ExitCode::from(EXIT_BAD_CONFIG),
            }
        }
        Err(error) => {
            if json {
                println!("{:#}", error.to_json());
            } else {
                eprintln!("{error}");
            }
            ExitCode::from(EXIT_BAD_CONFIG)
        }
    }
}
