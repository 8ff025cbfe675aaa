//! The configuration as written: which option was set to what, and where.
//!
//! Flags, variables and the file all end as [`Setting`]s in one list, highest precedence first.
//! Nothing is interpreted here beyond the option's kind; `resolve` reads the values.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, Quoted, Setting};
use super::flannel;
use super::options::{self, Kind, OPTIONS, Opt, SECTIONS};

/// Variables of ours that belong to other commands, or to `--config`.
const OTHER_VARIABLES: &[&str] = &["OVERLAYD_CONFIG", "OVERLAYD_LAB", "OVERLAYD_LAB_NAME"];

/// A `[[route]]` as written.
#[derive(Clone, Debug)]
pub(crate) struct RawRoute {
    /// Where the route begins.
    pub(crate) origin: Origin,
    /// Destination prefix.
    pub(crate) prefix: Option<Setting>,
    /// A node's public IP.
    pub(crate) via: Option<Setting>,
}

/// All settings, highest precedence first.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawConfig {
    settings: Vec<Setting>,
    /// Static routes, in file order.
    pub(crate) routes: Vec<RawRoute>,
    /// Oddities that do not stop the daemon.
    pub(crate) warnings: Vec<String>,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
    /// The store's net-conf, once it is known.
    pub(crate) store_conf: Option<Vec<u8>>,
}

impl RawConfig {
    /// The setting that counts for an option.
    pub(crate) fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == name)
    }

    /// What the configuration file says of an option, whatever overrides it.
    pub(crate) fn in_file(&self, name: &str) -> Option<&Setting> {
        self.settings
            .iter()
            .find(|setting| setting.key == name && matches!(setting.origin, Origin::File { .. }))
    }

    /// Does a flag or a variable set it?
    pub(crate) fn given(&self, name: &str) -> bool {
        self.settings.iter().any(|setting| {
            setting.key == name && matches!(setting.origin, Origin::Flag | Origin::Env(_))
        })
    }

    /// Is it said in flanneld's words: by one of its variables, or on the command line of `overlayd flannel`?
    pub(crate) fn is_flannels(&self, setting: &Setting) -> bool {
        match &setting.origin {
            Origin::Env(name) => name.starts_with("FLANNELD_"),
            Origin::Flag => self
                .settings
                .iter()
                .any(|setting| setting.origin == Origin::Flannel),
            Origin::File { .. } | Origin::NetConf { .. } | Origin::Flannel => false,
        }
    }

    /// Adds settings of lower precedence than all before.
    pub(crate) fn push(&mut self, setting: Setting) {
        self.settings.push(setting);
    }

    /// Reads `OVERLAYD_*`, then `FLANNELD_*`. Unknown names become warnings: a variable may be
    /// meant for a newer or older version.
    pub(crate) fn read_env(&mut self, env: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for (name, value) in env {
            let Some(name) = name.to_str() else { continue };
            let ours_or_theirs = ["OVERLAYD_", "FLANNELD_"];
            if !ours_or_theirs.iter().any(|prefix| name.starts_with(prefix))
                || OTHER_VARIABLES.contains(&name)
            {
                continue;
            }
            if value.is_empty() {
                continue;
            }
            let Some(text) = value.to_str() else {
                self.problems
                    .push(format!("{name}: the value is not UTF-8"));
                continue;
            };
            if let Some(flag) = flannel::flag_of_variable(name) {
                theirs.push((flag, text.to_owned()));
                continue;
            }
            let Some(opt) = option_of_variable(name) else {
                self.warnings.push(unknown_variable(name));
                continue;
            };
            ours.push(Setting::new(opt, text, Origin::Env(name.to_owned())));
        }
        for one in &ours {
            let other = ours
                .iter()
                .find(|other| other.key == one.key && other.text != one.text);
            if let Some(other) = other {
                self.problems
                    .push(one.problem(format!("{other} says otherwise; unset one of them")));
            }
        }
        self.settings.append(&mut ours);
        let meant = flannel::Meant::of(&theirs);
        self.warnings.extend(meant.warnings);
        self.problems.extend(meant.problems);
        for (opt, text, flag) in meant.settings {
            self.push(Setting::new(opt, text, Origin::Env(flag.variable())));
        }
    }

    /// Reads the configuration file's text.
    ///
    /// # Errors
    /// Only where the text is not TOML; unknown keys and wrong kinds go to `problems`.
    pub(crate) fn read_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        // The byte order mark is no part of the document; spans count from after it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root = DeTable::parse(text).map_err(|error| {
            let place = Origin::at(path, text, error.span().map_or(0, |span| span.start));
            ConfigError::one(format!(
                "{}: not valid TOML: {}",
                place,
                error.message().trim_end()
            ))
        })?;
        let mut file = FileReader {
            raw: self,
            path,
            text,
            problems: Vec::new(),
        };
        file.root(root.get_ref());
        let mut problems = file.problems;
        problems.sort();
        self.problems
            .extend(problems.into_iter().map(|(_, text)| text));
        Ok(())
    }
}

fn option_of_variable(name: &str) -> Option<&'static Opt> {
    OPTIONS
        .iter()
        .find(|opt| opt.variables().iter().any(|own| own == name))
}

fn unknown_variable(name: &str) -> String {
    if name.starts_with("FLANNELD_") {
        return format!("{name} is set, but overlayd has no such option: ignored");
    }
    let known: Vec<String> = OPTIONS.iter().flat_map(Opt::variables).collect();
    // The common prefix would make everything look alike.
    let bare = |name: &str| {
        name.trim_start_matches("OVERLAYD_")
            .to_lowercase()
            .replace('_', "-")
    };
    let bares: Vec<String> = known.iter().map(|name| bare(name)).collect();
    let near = options::nearest(&bare(name), bares.iter().map(String::as_str))
        .and_then(|near| bares.iter().position(|bare| bare == near))
        .map_or(String::new(), |at| format!("; did you mean {}?", known[at]));
    format!("{name} is set, but overlayd has no such option: ignored{near}")
}

pub(crate) fn not_in_this_version(cure: &str) -> String {
    format!("not in this version: {cure}")
}

/// Walks the parsed file; its spans tell where each key and value stands.
struct FileReader<'a> {
    raw: &'a mut RawConfig,
    path: &'a Path,
    text: &'a str,
    /// With the offset of each: the table's order is the alphabet's, a person's is the file's.
    problems: Vec<(usize, String)>,
}

impl FileReader<'_> {
    fn at<T>(&self, spanned: &Spanned<T>) -> Origin {
        Origin::at(self.path, self.text, spanned.span().start)
    }

    fn problem<T>(&mut self, spanned: &Spanned<T>, what: impl std::fmt::Display) {
        let text = format!("{}: {what}", self.at(spanned));
        self.problems.push((spanned.span().start, text));
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            let section = name.get_ref().as_ref();
            match (section, value.get_ref()) {
                ("route", DeValue::Array(routes))
                    if routes.iter().all(|route| route.get_ref().is_table()) =>
                {
                    for route in routes {
                        if let DeValue::Table(table) = route.get_ref() {
                            self.route(self.at(route), table);
                        }
                    }
                }
                ("route", _) => self.problem(
                    name,
                    "a static route is written as [[route]], with prefix and via",
                ),
                (_, DeValue::Table(table))
                    if SECTIONS.iter().any(|(known, _)| *known == section) =>
                {
                    self.section(section, table);
                }
                (_, DeValue::Table(_) | DeValue::Array(_)) => {
                    let names = SECTIONS.iter().map(|(known, _)| *known).chain(["route"]);
                    let cure = match options::nearest(section, names) {
                        Some("route") => "; did you mean [[route]]?".to_owned(),
                        Some(near) => format!("; did you mean [{near}]?"),
                        None => {
                            let all: Vec<_> = SECTIONS
                                .iter()
                                .map(|(known, _)| format!("[{known}]"))
                                .collect();
                            format!("; there are {} and [[route]]", all.join(" "))
                        }
                    };
                    self.problem(name, format!("unknown section {}{cure}", Quoted(section)));
                }
                _ => self.unknown_key(name, ""),
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            match options::find(section, key.get_ref()) {
                None => self.unknown_key(key, section),
                Some(opt) => self.value(opt, value),
            }
        }
    }

    fn value(&mut self, opt: &'static Opt, value: &Spanned<DeValue<'_>>) {
        let text = match (opt.kind, value.get_ref()) {
            (Kind::List, DeValue::Array(items)) => items
                .iter()
                .map(|item| item.get_ref().as_str().filter(|text| !text.contains('\n')))
                .collect::<Option<Vec<_>>>()
                .map(|texts| texts.join("\n"))
                .ok_or("an array of strings, each of one line"),
            (kind, value) => text_of(kind, value),
        };
        match text {
            Ok(text) => {
                let origin = self.at(value);
                self.raw.push(Setting::new(opt, text, origin));
            }
            Err(expected) => {
                let what = format!(
                    "{}: expected {expected}, found {}; write for example {} = {}",
                    opt.name(),
                    value.get_ref().type_str(),
                    opt.key,
                    opt.example
                );
                self.problem(value, what);
            }
        }
    }

    fn route(&mut self, origin: Origin, table: &DeTable<'_>) {
        let mut route = RawRoute {
            origin,
            prefix: None,
            via: None,
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let field = match name {
                "prefix" => &mut route.prefix,
                "via" => &mut route.via,
                _ => {
                    let near = options::nearest(name, ["prefix", "via"]);
                    let cure = near.map_or("; a route has prefix and via".to_owned(), |near| {
                        format!("; did you mean {near}?")
                    });
                    self.problem(
                        key,
                        format!("unknown key {} in [[route]]{cure}", Quoted(name)),
                    );
                    continue;
                }
            };
            match value.get_ref().as_str() {
                Some(text) => {
                    let origin = Origin::at(self.path, self.text, value.span().start);
                    *field = Some(Setting {
                        key: format!("route.{name}"),
                        flag: "",
                        text: text.to_owned(),
                        origin,
                    });
                }
                None => {
                    let what = format!(
                        "route.{name}: expected a string, found {}",
                        value.get_ref().type_str()
                    );
                    self.problem(value, what);
                }
            }
        }
        self.raw.routes.push(route);
    }

    fn unknown_key(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>, section: &str) {
        let name = key.get_ref().as_ref();
        let elsewhere: Vec<_> = OPTIONS.iter().filter(|opt| opt.key == name).collect();
        let place = if section.is_empty() {
            "outside any section".to_owned()
        } else {
            format!("in [{section}]")
        };
        if !elsewhere.is_empty() {
            let homes: Vec<_> = elsewhere
                .iter()
                .map(|opt| format!("[{}]", opt.section))
                .collect();
            self.problem(
                key,
                format!("key {name} {place}: it belongs in {}", homes.join(" or ")),
            );
            return;
        }
        let here = OPTIONS
            .iter()
            .filter(|opt| opt.section == section)
            .map(|opt| opt.key);
        let cure = if let Some(opt) = OPTIONS.iter().find(|opt| opt.flag == name) {
            format!(
                "; the flag --{name} is written {} in [{}]",
                opt.key, opt.section
            )
        } else if let Some(near) = options::nearest(name, here) {
            format!("; did you mean {near}?")
        } else if let Some(near) = options::nearest(name, OPTIONS.iter().map(|opt| opt.key)) {
            let home = OPTIONS
                .iter()
                .find(|opt| opt.key == near)
                .map_or("", |opt| opt.section);
            format!("; did you mean {near} in [{home}]?")
        } else {
            "; `overlayd config example` shows every key".to_owned()
        };
        self.problem(key, format!("unknown key {} {place}{cure}", Quoted(name)));
    }
}

/// The text of a value that has the right kind; otherwise what was expected.
fn text_of(kind: Kind, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (kind, value) {
        (Kind::Text | Kind::NumberOrText | Kind::List, DeValue::String(text)) => {
            Ok(text.to_string())
        }
        (Kind::Number | Kind::NumberOrText, DeValue::Integer(number)) => {
            // Hexadecimal and the like become decimal; what no i128 holds stays as written and is
            // refused as out of range later.
            let decimal = i128::from_str_radix(number.as_str(), number.radix());
            Ok(decimal.map_or_else(|_| number.to_string(), |number| number.to_string()))
        }
        (Kind::Bool, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Kind::Text, _) => Err("a string"),
        (Kind::Number, _) => Err("a number without quotes"),
        (Kind::Bool, _) => Err("true or false"),
        (Kind::NumberOrText, _) => Err("a number or a string"),
        (Kind::List, _) => Err("a string or an array of strings"),
    }
}

/// A path written in a file is relative to that file; one given elsewhere, to the working directory.
pub(crate) fn resolve_path(setting: &Setting) -> PathBuf {
    let written = Path::new(&setting.text);
    let base = match &setting.origin {
        Origin::File { path, .. } | Origin::NetConf { path, .. } => path.parent(),
        Origin::Flag | Origin::Env(_) | Origin::Flannel => None,
    };
    absolute(&base.map_or_else(|| written.to_owned(), |base| base.join(written)))
}

/// The path from the root, so that a later change of directory does not matter.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
