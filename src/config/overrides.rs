//! The flags of `overlayd run`, one for each option of the table.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::error::{Origin, Setting};
use super::options::{self, Kind, OPTIONS, Opt};

/// What was given on the command line. Add it to a clap command with `#[command(flatten)]`.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    values: Vec<(&'static Opt, String)>,
    /// What holds where nothing else says otherwise.
    defaults: Vec<(&'static Opt, String)>,
    /// The store's net-conf, once it is known.
    pub(crate) store_conf: Option<Vec<u8>>,
}

impl Overrides {
    /// Sets `section.key` as its flag would.
    ///
    /// # Panics
    /// Where there is no such option: a mistake of the program, not of the user.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        match options::named(name) {
            Some(opt) => self.put(opt, value.into()),
            None => panic!("there is no option {name}"),
        }
        self
    }

    /// With the net-conf that the store holds (etcd's `<prefix>/config`): without it the network and the
    /// backend of an overlay on etcd are not known.
    #[must_use]
    pub fn with_store_conf(mut self, conf: Option<&[u8]>) -> Self {
        self.store_conf = conf.map(<[u8]>::to_vec);
        self
    }

    /// Sets what `section.key` is where neither flag, variable nor file says otherwise.
    pub(crate) fn set_default(&mut self, opt: &'static Opt, value: impl Into<String>) {
        self.defaults.push((opt, value.into()));
    }

    pub(crate) fn defaults(&self) -> impl Iterator<Item = Setting> + '_ {
        self.defaults
            .iter()
            .map(|(opt, value)| Setting::new(opt, value, Origin::Flannel))
    }

    pub(crate) fn put(&mut self, opt: &'static Opt, value: String) {
        self.values.retain(|(known, _)| !std::ptr::eq(*known, opt));
        self.values.push((opt, value));
    }

    fn take(&mut self, options: impl Iterator<Item = &'static Opt>, matches: &ArgMatches) {
        for opt in options {
            if let Some(values) = matches.get_many::<String>(opt.flag) {
                let values: Vec<_> = values.map(String::as_str).collect();
                self.put(opt, values.join("\n"));
            }
        }
    }

    pub(crate) fn settings(&self) -> impl Iterator<Item = Setting> + '_ {
        self.values
            .iter()
            .map(|(opt, value)| Setting::new(opt, value, Origin::Flag))
    }
}

fn arg(opt: &'static Opt) -> Arg {
    let mut help = opt.help.to_owned();
    if !opt.default.is_empty() {
        help = format!("{help} [default: {}]", opt.default);
    }
    let arg = Arg::new(opt.flag)
        .long(opt.flag)
        .help(help)
        .help_heading(opt.section);
    let arg = arg.allow_hyphen_values(true);
    match opt.kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false"),
        Kind::Number => arg.value_name("N"),
        Kind::Text | Kind::NumberOrText => arg.value_name("VALUE"),
        Kind::List => arg.value_name("VALUE").action(clap::ArgAction::Append),
    }
}

impl Args for Overrides {
    fn augment_args(command: Command) -> Command {
        command.args(OPTIONS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Overrides::default();
        overrides.update_from_arg_matches(matches)?;
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.take(OPTIONS.iter(), matches);
        Ok(())
    }
}

/// The flags among those of `overlayd run` that say where the leases stand, for commands that ask the store themselves.
#[derive(Clone, Debug, Default)]
pub struct StoreFlags(pub Overrides);

impl StoreFlags {
    fn options() -> impl Iterator<Item = &'static Opt> {
        OPTIONS.iter().filter(|opt| opt.is_place())
    }
}

impl Args for StoreFlags {
    fn augment_args(command: Command) -> Command {
        command.args(StoreFlags::options().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StoreFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = StoreFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.take(StoreFlags::options(), matches);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Vec<String>, clap::Error> {
        let command = Overrides::augment_args(Command::new("run").no_binary_name(true));
        let matches = command.try_get_matches_from(args)?;
        let overrides = Overrides::from_arg_matches(&matches)?;
        Ok(overrides
            .settings()
            .map(|setting| setting.to_string())
            .collect())
    }

    #[test]
    fn flags_become_settings() {
        assert_eq!(parse(&["--vni", "7"]).unwrap(), ["--vni 7"]);
        assert_eq!(parse(&["--strict"]).unwrap(), ["--strict true"]);
        assert_eq!(parse(&["--strict=false"]).unwrap(), ["--strict false"]);
        assert_eq!(parse(&["--mtu", "-1"]).unwrap(), ["--mtu -1"]);
        assert!(parse(&["--vnii", "7"]).is_err());
        assert!(parse(&[]).unwrap().is_empty());
    }

    #[test]
    fn clap_finds_no_fault_with_the_table() {
        Overrides::augment_args(Command::new("run")).debug_assert();
        StoreFlags::augment_args(Command::new("ls")).debug_assert();
        // Each of them is an option that there is.
        assert_eq!(StoreFlags::options().count(), 10);
    }
}
