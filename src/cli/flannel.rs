//! `overlayd flannel`: the daemon in flanneld's place, with flanneld's flags and variables.

use std::ffi::OsString;

use super::{Exit, run, say};
use crate::config::flannel::{self, Asked};
use crate::config::{Config, ConfigError};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Args {
    /// flanneld's flags; `overlayd flannel -help` explains them
    #[arg(
        value_name = "FLAG",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        num_args = 0..
    )]
    flags: Vec<OsString>,
}

pub(super) fn main(args: Args) -> Exit {
    match flannel::parse(args.flags) {
        Err(error) => {
            tell!("overlayd flannel: {error}");
            Exit::Usage
        }
        Ok(Asked::Help) => {
            say(flannel::help().trim_end());
            Exit::Ok
        }
        Ok(Asked::Version) => {
            say(format_args!("overlayd {}", env!("CARGO_PKG_VERSION")));
            Exit::Ok
        }
        Ok(Asked::PrintConfig(command)) => {
            match flannel::print_config(&command, std::env::vars_os()) {
                Ok(config) => {
                    say(config.trim_end());
                    Exit::Ok
                }
                Err(error) => {
                    tell!("overlayd flannel: {error}");
                    Exit::Config
                }
            }
        }
        Ok(Asked::Run(command)) => run::run(move |net_conf| -> Result<Config, ConfigError> {
            let path = command.config.as_deref();
            let overrides = command.overrides.clone().with_store_conf(net_conf);
            let mut config = Config::load(path, &overrides, std::env::vars_os())?;
            config.warnings.extend(command.warnings.iter().cloned());
            Ok(config)
        }),
    }
}
