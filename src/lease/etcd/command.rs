//! What people do to the leases in etcd: look, reserve, release.

use std::net::IpAddr;
use std::time::Duration;

use super::client::Connection;
use crate::config::EtcdStore;
use crate::lease::Lease;
use crate::lease::machine::{Event, Kv, Put, Write, subnets_overlap};
use crate::lease::pool::Pool;
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

    /// All keys with their leases, or why a value cannot be read, in order of precedence.
    ///
    /// # Errors
    /// What the store said.
    pub async fn leases(&mut self) -> Result<Vec<(String, Result<Lease, String>)>, String> {
        let kvs = self.kvs().await?.into_iter();
        let leases = kvs.map(|kv| (schema::decode(&kv.key, &kv.value), kv.key));
        Ok(leases.map(|(lease, key)| (key, lease)).collect())
    }

    /// All leases and when they end, in order of precedence.
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
    /// That the key is as it was seen, or still not there, is a condition of the write. That nobody takes a subnet
    /// meanwhile that overlaps it under another key is not: then the older key counts.
    ///
    /// # Errors
    /// If the subnets or the node's public IPs are another's, no node could hold them, or the store refuses.
    pub async fn reserve(
        &mut self,
        subnets: Subnets,
        node: Option<Newcomer>,
    ) -> Result<Lease, String> {
        let kvs = self.kvs().await?;
        let (key, expect, lease, value) = match (named(&kvs, &subnets)?, node) {
            (Some(kv), node) => {
                let lease = schema::decode(&kv.key, &kv.value)?;
                let node = node.map(|node| node.attributes.endpoint());
                if let Some(node) = node.filter(|node| !lease.is_of(node)) {
                    return Err(format!(
                        "{} is held by {}, not by {node}: release it first",
                        Subnets::of(&lease),
                        lease.endpoint(),
                    ));
                }
                (kv.key.clone(), kv.mod_revision, lease, kv.value.clone())
            }
            (None, Some(node)) => {
                node.check(&kvs, &subnets)?;
                let lease = Lease {
                    subnet: subnets.v4,
                    ipv6_subnet: subnets.v6,
                    ..node.attributes
                };
                let value = schema::encode(&lease).into_bytes();
                (subnets.key(), 0, lease, value)
            }
            (None, None) => {
                return Err(format!(
                    "nobody holds {subnets}: say for which node to reserve it with --public-ip"
                ));
            }
        };
        let mut others = kvs.iter().filter(|kv| kv.key != key);
        if let Some(other) = others.find(|kv| overlaps(kv, &Subnets::of(&lease))) {
            return Err(format!(
                "{} overlaps {}, {}: release that first, or reserve another subnet",
                Subnets::of(&lease),
                other.key,
                holder(other)
            ));
        }
        self.write(key, expect, Some(Put { value, lease: 0 }))
            .await?;
        Ok(lease)
    }

    /// Removes a lease or reservation, and says which it was.
    ///
    /// # Errors
    /// If there is none, or the store refuses.
    pub async fn release(&mut self, subnets: Subnets) -> Result<Subnets, String> {
        let kvs = self.kvs().await?;
        let kv = named(&kvs, &subnets)?.ok_or_else(|| format!("nobody holds {subnets}"))?;
        self.write(kv.key.clone(), kv.mod_revision, None).await?;
        Ok(Subnets::parse(&kv.key).unwrap_or(subnets))
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

/// A node that a subnet is reserved for before it holds any.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// What its lease will say, but for the subnets.
    pub attributes: Lease,
    /// What nodes may take.
    pub pool: Pool,
}

impl Newcomer {
    /// Could the node hold these subnets, given what the others hold?
    fn check(&self, kvs: &[Kv], subnets: &Subnets) -> Result<(), String> {
        self.pool.check_reservation(subnets)?;
        let node = self.attributes.endpoint();
        let leases = kvs
            .iter()
            .filter_map(|kv| schema::decode(&kv.key, &kv.value).ok());
        let leases: Vec<Lease> = leases.collect();
        if let Some(lease) = leases.iter().find(|lease| lease.is_of(&node)) {
            return Err(format!(
                "{} holds {} already, and a node takes one: reserve that, or release it first",
                lease.endpoint(),
                Subnets::of(lease)
            ));
        }
        let covered = |ip: &IpAddr| subnets.iter().any(|net| net.contains(ip));
        let mut ips = leases.iter().flat_map(|lease| lease.endpoint().ips());
        if let Some(ip) = node.ips().find(covered).or_else(|| ips.find(covered)) {
            return Err(format!(
                "{subnets} covers {ip}, which is a node's public IP: no node takes it"
            ));
        }
        Ok(())
    }
}

/// The key that has these subnets; of one subnet alone, the dual-stack key that has it too.
fn named<'a>(kvs: &'a [Kv], subnets: &Subnets) -> Result<Option<&'a Kv>, String> {
    let exact = |kv: &&Kv| Subnets::parse(&kv.key).is_ok_and(|theirs| theirs == *subnets);
    if let Some(kv) = kvs.iter().find(exact) {
        return Ok(Some(kv));
    }
    let has = |kv: &&Kv| {
        let theirs = Subnets::parse(&kv.key);
        theirs.is_ok_and(|theirs| {
            subnets
                .iter()
                .all(|net| theirs.iter().any(|one| one == net))
        })
    };
    let mut having = kvs.iter().filter(has);
    match (having.next(), having.next()) {
        (Some(one), Some(other)) => Err(format!(
            "both {} and {} have {subnets}: give both subnets of the one that is meant, parted by a comma",
            one.key, other.key
        )),
        (found, _) => Ok(found),
    }
}

fn overlaps(kv: &Kv, subnets: &Subnets) -> bool {
    Subnets::parse(&kv.key).is_ok_and(|theirs| subnets_overlap(&theirs, subnets))
}

/// Who holds a key, in words.
fn holder(kv: &Kv) -> String {
    match schema::decode(&kv.key, &kv.value) {
        Ok(lease) => format!("held by {}", lease.endpoint()),
        Err(_) => "whose value is unreadable".to_owned(),
    }
}
