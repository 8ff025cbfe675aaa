//! The other host: in this process, or behind a connection to `overlayd bench serve`.

use anyhow::Result;

use super::host::{End, Host};
use super::load::{Job, Outcome};
use super::machine::Machine;
use super::peer::Client;
use super::plan::{Row, Setting};

/// The receiving host.
pub(super) enum Side {
    /// In a namespace of ours.
    Here(Box<Host>),
    /// On another machine.
    There(Client),
}

impl Side {
    /// On another machine?
    pub(super) fn is_apart(&self) -> bool {
        matches!(self, Self::There(_))
    }

    pub(super) fn machine(&mut self) -> Result<Machine> {
        match self {
            Self::Here(host) => Ok(host.machine()),
            Self::There(client) => client.machine(),
        }
    }

    pub(super) fn set_offloads(&mut self, setting: Setting) -> Result<()> {
        match self {
            Self::Here(host) => host.set_offloads(setting).map(drop),
            Self::There(client) => client.set_offloads(setting),
        }
    }

    pub(super) fn up(&mut self, row: &Row) -> Result<End> {
        match self {
            Self::Here(host) => host.up(row),
            Self::There(client) => client.up(row),
        }
    }

    pub(super) fn down(&mut self) -> Result<()> {
        match self {
            Self::Here(host) => host.down(),
            Self::There(client) => client.down(),
        }
    }

    pub(super) fn status(&mut self) -> Option<serde_json::Value> {
        match self {
            Self::Here(host) => host.status(),
            Self::There(client) => client.status().ok().flatten(),
        }
    }

    /// As [`Host::daemon_ended`]; of another machine nobody knows.
    pub(super) fn daemon_ended(&mut self) -> bool {
        match self {
            Self::Here(host) => host.daemon_ended(),
            Self::There(_) => false,
        }
    }

    pub(super) fn start(&mut self, job: Job, calls: bool) -> Result<(u32, u16)> {
        match self {
            Self::Here(host) => host.start(job, calls),
            Self::There(client) => client.start(job, calls),
        }
    }

    pub(super) fn finish(&mut self, job: u32) -> Result<Outcome> {
        match self {
            Self::Here(host) => host.finish(job),
            Self::There(client) => client.finish(job),
        }
    }
}
