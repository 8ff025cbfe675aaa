//! One connection to one member of an etcd cluster: the machine's actions as requests.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, KeyValue, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::timeout;

use crate::config::{EtcdStore, Password};
use crate::lease::machine::{Change, Event, Kv, Put, Write};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A member that does not answer a ping for this long after the last is gone. etcd suffers one every 5 seconds.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Keys in one answer; the rest comes with the next.
const PAGE: i64 = 2000;
/// Questions that are on their way together, where each lease needs one.
const AT_ONCE: usize = 64;

/// A failure of the connection, in words.
pub(super) type Failed = String;

/// A connection.
pub(super) struct Connection {
    client: Client,
    prefix: String,
    pub(super) watch: Option<WatchStream>,
}

/// What a watch brings.
pub(super) enum News {
    Changes { revision: i64, changes: Vec<Change> },
    Compacted,
}

impl Connection {
    /// Connects to one member. Certificates and password are read anew each time: they may have been renewed.
    pub(super) async fn open(store: &EtcdStore, endpoint: &str) -> Result<Self, Failed> {
        let options = options(store, endpoint)?;
        let client = within(Client::connect([endpoint], Some(options))).await?;
        Ok(Connection {
            client,
            prefix: store.prefix.clone(),
            watch: None,
        })
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// Where the store stands, and its net-conf.
    pub(super) async fn place(&mut self) -> Result<Event, Failed> {
        let key = self.config_key();
        let answer = within(self.client.get(key, None)).await?;
        let header = answer.header().ok_or("an answer without a header")?;
        Ok(Event::Connected {
            cluster: header.cluster_id(),
            revision: header.revision(),
            config: answer.kvs().first().map(|kv| kv.value().to_vec()),
        })
    }

    /// All leases of one revision.
    pub(super) async fn list(&mut self) -> Result<Event, Failed> {
        let prefix = self.subnets();
        let end = after(&prefix);
        let (mut from, mut revision) = (prefix.clone().into_bytes(), 0);
        let mut kvs = Vec::new();
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_revision(revision);
            let answer = within(self.client.get(from, Some(options))).await?;
            if revision == 0 {
                revision = answer
                    .header()
                    .ok_or("an answer without a header")?
                    .revision();
            }
            kvs.extend(answer.kvs().iter().filter_map(|kv| self.lease_key(kv)));
            match answer.kvs().last().filter(|_| answer.more()) {
                None => return Ok(Event::Listed { revision, kvs }),
                Some(last) => {
                    from = last.key().to_vec();
                    from.push(0);
                }
            }
        }
    }

    /// Begins to watch.
    pub(super) async fn start_watch(&mut self, from: i64) -> Result<Event, Failed> {
        let prefix = format!("{}/", self.prefix);
        let options = WatchOptions::new()
            .with_range(after(&prefix))
            .with_start_revision(from)
            .with_progress_notify();
        let watch = within(self.client.watch(prefix, Some(options))).await?;
        self.watch = Some(watch);
        Ok(Event::Watching)
    }

    /// What the watch brings next. Can be cancelled without loss.
    pub(super) async fn news(&mut self) -> Result<News, Failed> {
        let Some(watch) = &mut self.watch else {
            return std::future::pending().await;
        };
        loop {
            let message = watch.message().await.map_err(|error| words(&error))?;
            let message = message.ok_or("the watch ended")?;
            if message.compact_revision() > 0 {
                self.watch = None;
                return Ok(News::Compacted);
            }
            if message.canceled() {
                return Err(format!(
                    "the watch was cancelled: {}",
                    message.cancel_reason()
                ));
            }
            if message.created() {
                continue;
            }
            let revision = message.header().map_or(0, |header| header.revision());
            let config = format!("{}/config", self.prefix);
            let subnets = format!("{}/subnets/", self.prefix);
            let changes = message.events().iter().filter_map(|event| {
                let kv = event.kv()?;
                let deleted = event.event_type() == EventType::Delete;
                if kv.key() == config.as_bytes() {
                    return Some(Change::Config((!deleted).then(|| kv.value().to_vec())));
                }
                let key = tail(&subnets, kv.key())?;
                Some(match deleted {
                    true => Change::Delete {
                        key,
                        revision: kv.mod_revision(),
                    },
                    false => Change::Put(as_kv(key, kv)),
                })
            });
            return Ok(News::Changes {
                revision,
                changes: changes.collect(),
            });
        }
    }

    /// A new etcd lease.
    pub(super) async fn grant(&mut self, ttl: Duration) -> Result<Event, Failed> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        match timeout(PATIENCE, self.client.lease_grant(ttl, None)).await {
            Ok(Ok(answer)) => Ok(Event::Granted { lease: answer.id() }),
            other => refused_or_failed(other),
        }
    }

    /// Compares and swaps.
    pub(super) async fn write(&mut self, write: &Write) -> Result<Event, Failed> {
        let key = self.subnets() + &write.key;
        let condition = Compare::mod_revision(key.clone(), CompareOp::Equal, write.expect);
        let done = match &write.put {
            Some(Put { value, lease }) => {
                let options = PutOptions::new().with_lease(*lease);
                TxnOp::put(key.clone(), value.clone(), Some(options))
            }
            None => TxnOp::delete(key.clone(), None),
        };
        let txn = Txn::new()
            .when([condition])
            .and_then([done])
            .or_else([TxnOp::get(key, None)]);
        match timeout(PATIENCE, self.client.txn(txn)).await {
            Ok(Ok(answer)) if answer.succeeded() => Ok(Event::Written {
                revision: answer.header().map_or(0, |header| header.revision()),
            }),
            Ok(Ok(answer)) => {
                let now = answer
                    .op_responses()
                    .into_iter()
                    .find_map(|response| match response {
                        TxnOpResponse::Get(get) => {
                            get.kvs().first().and_then(|kv| self.lease_key(kv))
                        }
                        _ => None,
                    });
                Ok(Event::Lost { now })
            }
            other => refused_or_failed(other),
        }
    }

    /// How long each of these etcd leases still lives.
    pub(super) async fn times_to_live(
        &self,
        leases: &BTreeSet<i64>,
    ) -> Result<HashMap<i64, Duration>, Failed> {
        let ask = |&lease: &i64| {
            let mut client = self.client.clone();
            async move {
                let answer = within(client.lease_time_to_live(lease, None)).await?;
                let left = u64::try_from(answer.ttl()).unwrap_or(0);
                Ok((lease, Duration::from_secs(left)))
            }
        };
        let answers = stream::iter(leases.iter().map(ask));
        answers.buffer_unordered(AT_ONCE).try_collect().await
    }

    fn lease_key(&self, kv: &KeyValue) -> Option<Kv> {
        tail(&self.subnets(), kv.key()).map(|key| as_kv(key, kv))
    }
}

fn as_kv(key: String, kv: &KeyValue) -> Kv {
    Kv {
        key,
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
    }
}

/// The key's part behind the prefix. What is no text is shown with replacements: it names no subnet either way.
fn tail(prefix: &str, key: &[u8]) -> Option<String> {
    let tail = key.strip_prefix(prefix.as_bytes())?;
    Some(String::from_utf8_lossy(tail).into_owned())
}

/// The first key behind all that begin with this prefix, which ends in a slash.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

async fn within<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    match timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// A write that the store refuses is not the connection's fault.
fn refused_or_failed<T>(
    outcome: Result<Result<T, Error>, tokio::time::error::Elapsed>,
) -> Result<Event, Failed> {
    match outcome {
        Ok(Err(error @ Error::GRpcStatus(_))) if !is_connections_fault(&error) => {
            Ok(Event::Refused { why: words(&error) })
        }
        Ok(Err(error)) => Err(words(&error)),
        _ => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// gRPC's codes (`google.golang.org/grpc/codes`) for what another connection may mend: lost, late, no leader, or a
/// token that ran out.
fn is_connections_fault(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else {
        return true;
    };
    let code = i32::from(status.code());
    let (cancelled, unknown, late, unavailable, unauthenticated) = (1, 2, 4, 14, 16);
    [cancelled, unknown, late, unavailable, unauthenticated].contains(&code)
}

/// An error with its causes, which gRPC hides in its sources.
pub(super) fn words(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut cause = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn options(store: &EtcdStore, endpoint: &str) -> Result<ConnectOptions, Failed> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(PATIENCE)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(true)
        // A member without a leader would keep us waiting for news that it does not get.
        .with_require_leader(true);
    if let Some(name) = &store.username {
        let password = match &store.password {
            None => String::new(),
            Some(Password::Text(text)) => text.clone(),
            Some(Password::File(path)) => {
                let text = read(path)?;
                let line = text.split(|byte| matches!(byte, b'\n' | b'\r')).next();
                String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
            }
        };
        options = options.with_user(name, password);
    }
    let wants_tls = store.ca_file.is_some() || store.cert_file.is_some();
    if endpoint.starts_with("http://") {
        return Ok(options);
    }
    if wants_tls || endpoint.starts_with("https://") {
        let mut tls = TlsOptions::new();
        if let Some(path) = &store.ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(read(path)?));
        }
        if let (Some(cert), Some(key)) = (&store.cert_file, &store.key_file) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    fs::read(path).map_err(|error: io::Error| format!("{}: {error}", path.display()))
}
