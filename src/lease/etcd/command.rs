//! What people do to the leases in etcd: look, reserve, release.

use std::time::Duration;

use super::client::Connection;
use crate::config::EtcdStore;
use crate::lease::Lease;
use crate::lease::machine::{Event, Kv, Put, Write};
use crate::lease::schema::{self, Subnets};

/// The store, for a command.
pub struct Store {
    connection: Connection,
}

/// One key, as a command shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The key's last part.
    pub key: String,
    /// Its lease, or why the value cannot be read.
    pub lease: Result<Lease, String>,
    /// How long it still lives without renewal; a reservation: for ever.
    pub left: Option<Duration>,
    /// When it was made, in revisions of the store.
    pub create_revision: i64,
    /// When it was last written.
    pub mod_revision: i64,
}

impl Store {
    /// Connects to the first member that answers.
    ///
    /// # Errors
    /// What the last one said.
    pub async fn open(store: &EtcdStore) -> Result<Self, String> {
        let mut last = "no endpoint".to_owned();
        for endpoint in &store.endpoints {
            let opened = async {
                let mut connection = Connection::open(store, endpoint).await?;
                connection.place().await.map(|_| connection)
            };
            match opened.await {
                Ok(connection) => return Ok(Store { connection }),
                Err(why) => last = format!("etcd at {endpoint}: {why}"),
            }
        }
        Err(last)
    }

    /// The overlay's net-conf.
    ///
    /// # Errors
    /// What the store said.
    pub async fn net_conf(&mut self) -> Result<Option<Vec<u8>>, String> {
        match self.connection.place().await? {
            Event::Connected { config, .. } => Ok(config),
            _ => Ok(None),
        }
    }

    async fn kvs(&mut self) -> Result<Vec<Kv>, String> {
        match self.connection.list().await? {
            Event::Listed { mut kvs, .. } => {
                kvs.sort_by_key(|kv| kv.create_revision);
                Ok(kvs)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// All leases, in order of precedence.
    ///
    /// # Errors
    /// What the store said.
    pub async fn list(&mut self) -> Result<Vec<Listed>, String> {
        let kvs = self.kvs().await?;
        let ids = kvs.iter().map(|kv| kv.lease).filter(|id| *id != 0);
        let left = self.connection.times_to_live(&ids.collect()).await?;
        let listed = kvs.into_iter().map(|kv| Listed {
            lease: schema::decode(&kv.key, &kv.value),
            left: left.get(&kv.lease).copied(),
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
        });
        Ok(listed.collect())
    }

    /// Makes a lease one that does not end: of the node that holds the subnets, or of `node`'s public IPs.
    ///
    /// # Errors
    /// If the subnets are another node's, or the store refuses.
    pub async fn reserve(
        &mut self,
        subnets: Subnets,
        node: Option<Lease>,
    ) -> Result<Lease, String> {
        let there = self
            .kvs()
            .await?
            .into_iter()
            .find(|kv| kv.key == subnets.key());
        let lease = match (&there, node) {
            (Some(kv), node) => {
                let lease = schema::decode(&kv.key, &kv.value)?;
                if let Some(node) = node.filter(|node| !lease.is_of(&node.endpoint())) {
                    return Err(format!(
                        "{} is held by {}, not by {}: release it first",
                        kv.key,
                        lease.endpoint(),
                        node.endpoint()
                    ));
                }
                lease
            }
            (None, Some(node)) => Lease {
                subnet: subnets.v4,
                ipv6_subnet: subnets.v6,
                ..node
            },
            (None, None) => {
                return Err(format!(
                    "nobody holds {}: say for which node to reserve it with --public-ip",
                    subnets.key()
                ));
            }
        };
        let value = there.as_ref().map_or_else(
            || schema::encode(&lease).into_bytes(),
            |kv| kv.value.clone(),
        );
        let put = Put { value, lease: 0 };
        self.write(
            subnets.key(),
            there.map_or(0, |kv| kv.mod_revision),
            Some(put),
        )
        .await?;
        Ok(lease)
    }

    /// Removes a lease or reservation.
    ///
    /// # Errors
    /// If there is none, or the store refuses.
    pub async fn release(&mut self, subnets: Subnets) -> Result<(), String> {
        let there = self
            .kvs()
            .await?
            .into_iter()
            .find(|kv| kv.key == subnets.key());
        match there {
            None => Err(format!("nobody holds {}", subnets.key())),
            Some(kv) => self.write(kv.key, kv.mod_revision, None).await,
        }
    }

    /// The subnets under a key that carries one of these public IPs.
    ///
    /// # Errors
    /// What the store said.
    pub async fn held_by(&mut self, node: &fdb::Endpoint) -> Result<Option<Subnets>, String> {
        let kvs = self.kvs().await?;
        let mut leases = kvs
            .iter()
            .filter_map(|kv| schema::decode(&kv.key, &kv.value).ok());
        Ok(leases
            .find(|lease| lease.is_of(node))
            .map(|lease| Subnets::of(&lease)))
    }

    async fn write(&mut self, key: String, expect: i64, put: Option<Put>) -> Result<(), String> {
        match self
            .connection
            .write(&Write {
                key: key.clone(),
                expect,
                put,
            })
            .await?
        {
            Event::Written { .. } => Ok(()),
            Event::Refused { why } => Err(format!("the store refuses: {why}")),
            _ => Err(format!(
                "{key} was changed by another meanwhile: look again"
            )),
        }
    }
}
