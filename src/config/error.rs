//! Where a setting came from, and what a person is told when it is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

use super::options::Opt;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable of this name.
    Env(String),
    /// The configuration file; line and column count from 1.
    File {
        /// The file as the user named it.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// flannel's net-conf.json.
    NetConf {
        /// The file.
        path: PathBuf,
        /// The key in flannel's spelling, such as `Backend.VNI`.
        key: &'static str,
    },
    /// What flanneld would take, run without a word about it.
    Flannel,
}

impl Origin {
    /// The place in a file at a byte offset.
    pub(crate) fn at(path: &Path, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("command line"),
            Origin::Env(name) => f.write_str(name),
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Origin::NetConf { path, key } => write!(f, "{}: {key}", path.display()),
            Origin::Flannel => f.write_str("flanneld's default"),
        }
    }
}

/// One option as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `section.key`.
    pub key: String,
    /// The flag's name without dashes, for [`Origin::Flag`].
    pub flag: &'static str,
    /// The value as text.
    pub text: String,
    /// Where it stands.
    pub origin: Origin,
}

impl Setting {
    pub(crate) fn new(opt: &'static Opt, text: impl Into<String>, origin: Origin) -> Self {
        Setting {
            key: opt.name(),
            flag: opt.flag,
            text: text.into(),
            origin,
        }
    }

    /// A problem with this setting: what is wrong, and what to do.
    pub(crate) fn problem(&self, what: impl fmt::Display) -> String {
        format!("{self}: {what}")
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Numbers and truth values as they stand in the file.
        let digits = self.text.strip_prefix('-').unwrap_or(&self.text);
        let bare = self.text.len() < 20 && digits.bytes().all(|b| b.is_ascii_alphanumeric());
        let bare = bare && (digits.parse::<u64>().is_ok() || self.text.parse::<bool>().is_ok());
        let value = if bare {
            self.text.clone()
        } else {
            Quoted(&self.text).to_string()
        };
        match &self.origin {
            Origin::Flag => write!(f, "--{} {value}", self.flag),
            Origin::Env(name) => write!(f, "{name}={value}"),
            place @ Origin::File { .. } => write!(f, "{place}: {} = {value}", self.key),
            place @ Origin::NetConf { .. } => write!(f, "{place} = {value}"),
            Origin::Flannel => write!(f, "{}: {} = {value}", self.origin, self.key),
        }
    }
}

/// Foreign text made fit for a terminal: control characters escaped, long text cut.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 80;
        let mut chars = self.0.chars();
        let shown: String = chars.by_ref().take(LONGEST).collect();
        let more = if chars.next().is_some() { "..." } else { "" };
        write!(f, "\"{}{more}\"", shown.escape_debug())
    }
}

/// All that is wrong with a configuration. Prints one problem per line: where, what, what to do;
/// then the warnings, which may tell why (a misspelt variable, say).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) problems: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl ConfigError {
    pub(crate) fn one(problem: impl Into<String>) -> Self {
        ConfigError {
            problems: vec![problem.into()],
            warnings: Vec::new(),
        }
    }

    /// The problems, at least one.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Oddities met on the way.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))?;
        self.warnings
            .iter()
            .try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_lines_and_columns() {
        let text = "a\nbü = 3\n";
        let place = |offset| match Origin::at(Path::new("f"), text, offset) {
            Origin::File { line, column, .. } => (line, column),
            _ => panic!("not a place in a file"),
        };
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(2), (2, 1));
        assert_eq!(place(5), (2, 3));
        assert_eq!(
            place(4),
            (3, 1),
            "an offset inside a character counts as the end"
        );
        assert_eq!(place(99), (3, 1));
    }

    #[test]
    fn quoted_text_can_not_garble_a_terminal() {
        assert_eq!(Quoted("a\u{1b}[2J\n").to_string(), "\"a\\u{1b}[2J\\n\"");
        assert!(Quoted(&"x".repeat(1000)).to_string().len() < 100);
    }
}
