//! The daemon's configuration file, as tests write it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// A configuration file: what [`super::bed::Node::config`] says, and what a test changes of it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    sections: BTreeMap<String, BTreeMap<String, Value>>,
    routes: Vec<(String, String)>,
}

impl Config {
    /// Sets `section.key` to a string, number or boolean.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (section, key) = key.split_once('.').expect("a key is section.key");
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.into());
        self
    }

    /// Takes `section.key` out.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        let (section, key) = key.split_once('.').expect("a key is section.key");
        if let Some(section) = self.sections.get_mut(section) {
            section.remove(key);
        }
        self
    }

    /// Adds a static route.
    #[must_use]
    pub fn route(mut self, prefix: &str, via: &str) -> Self {
        self.routes.push((prefix.to_owned(), via.to_owned()));
        self
    }

    /// What `section.key` is set to, if that is a string.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (section, key) = key.split_once('.')?;
        self.sections.get(section)?.get(key)?.as_str()
    }
}

impl fmt::Display for Config {
    /// As TOML: its strings, numbers and booleans are written as JSON's are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (section, keys) in &self.sections {
            writeln!(f, "[{section}]")?;
            for (key, value) in keys {
                writeln!(f, "{key} = {value}")?;
            }
        }
        for (prefix, via) in &self.routes {
            writeln!(f, "[[route]]\nprefix = \"{prefix}\"\nvia = \"{via}\"")?;
        }
        Ok(())
    }
}
