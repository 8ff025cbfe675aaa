//! Colours, for those who see them.

use std::io::IsTerminal as _;

/// Colours, where someone sees them.
#[derive(Clone, Copy)]
pub(super) struct Paint {
    terminal: bool,
    colour: bool,
}

impl Paint {
    pub(super) fn stdout() -> Self {
        Self::on(std::io::stdout().is_terminal())
    }

    pub(super) fn stderr() -> Self {
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

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn verdict(self, passed: bool) -> String {
        if passed {
            self.paint("32", "✓")
        } else {
            self.paint("31;1", "✗")
        }
    }

    /// Neither good nor lost.
    pub(super) fn doubt(self) -> String {
        self.paint("33;1", "!")
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line that the next one overwrites; only where that works.
    pub(super) fn pending(self, text: &str) {
        if self.terminal && std::io::stdout().is_terminal() {
            eprint!("\r\x1b[K{}", self.dim(text));
        }
    }
}
