//! `overlayd run`: the daemon, in the foreground.

use std::path::PathBuf;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::{Exit, complain};
use crate::config::{Config, ConfigError, Log, LogFormat, Overrides};
use crate::daemon::{self, SetLogLevel, Surroundings};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The configuration file [default: /etc/overlayd/overlayd.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "OVERLAYD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn main(args: Args) -> Exit {
    run(move |net_conf| {
        let overrides = args.overrides.clone().with_store_conf(net_conf);
        Config::load(args.config.as_deref(), &overrides, std::env::vars_os())
    })
}

/// Runs the daemon on the configuration that `load` reads, now and on each SIGHUP, given the net-conf that the store
/// holds.
pub(super) fn run(load: impl Fn(Option<&[u8]>) -> Result<Config, ConfigError> + 'static) -> Exit {
    let config = match load(None) {
        Ok(config) => config,
        Err(error) => {
            tell!("overlayd: {error}");
            return Exit::Config;
        }
    };
    let outcome = start_logging(&config.log).and_then(|set_log_level| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let surroundings = Surroundings {
            reload: Box::new(load),
            set_log_level,
        };
        runtime.block_on(daemon::run(config, surroundings))
    });
    match outcome {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(&error);
            Exit::Error
        }
    }
}

/// Logs to stderr; what is returned changes the level.
fn start_logging(log: &Log) -> anyhow::Result<SetLogLevel> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&log.level)?);
    let lines = fmt::layer::<Registry>()
        .with_writer(std::io::stderr)
        .with_target(false);
    let lines = match log.format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    Ok(Box::new(move |level| {
        let changed = EnvFilter::try_new(level).map(|filter| handle.reload(filter));
        if !matches!(changed, Ok(Ok(()))) {
            tracing::warn!("the log level could not be changed to {level:?}");
        }
    }))
}
