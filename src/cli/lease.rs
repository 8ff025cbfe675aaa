//! `overlayd lease`: the leases in the store, and this node's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::ask::{self, refused};
use super::{Exit, Socket, complain, say};
use crate::config::{Config, Store, StoreFlags};
use crate::lease::etcd::{self, Newcomer};
use crate::lease::file::FileStore;
use crate::lease::schema::Subnets;
use crate::lease::{Lease, store, subnet_env};
use crate::observe::client::{self, AskError};
use crate::observe::status::{Holder, Status};

/// Version of the JSON that these commands print.
const VERSION: u32 = 1;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Where the store is.
#[derive(clap::Args)]
struct Place {
    /// The configuration file that names the store, where neither a flag nor a variable (FLANNELD_ETCD_ENDPOINTS too)
    /// does [default: /etc/overlayd/overlayd.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "OVERLAYD_CONFIG")]
    config: Option<PathBuf>,
    // One that is of etcd means etcd.
    #[command(flatten)]
    flags: StoreFlags,
}

#[derive(Subcommand)]
enum Command {
    /// All leases in the store
    Ls {
        #[command(flatten)]
        place: Place,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// This node's lease, as the running daemon has it
    Show {
        #[command(flatten)]
        socket: Socket,
        /// Print it as JSON
        #[arg(long, conflicts_with = "docker_opts")]
        json: bool,
        /// Print dockerd's options for a bridge in it
        #[arg(long)]
        docker_opts: bool,
    },
    /// Which node holds an overlay address, by the running daemon's tables
    Who {
        /// The address
        ip: IpAddr,
        #[command(flatten)]
        socket: Socket,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a subnet for a node for ever: its lease does not end any more
    Reserve {
        /// The subnet, such as 10.244.7.0/24; of a dual-stack lease both, parted by a comma, or, where a node holds them
        /// already, either
        subnet: String,
        /// For the node with this address; without it, for the node that holds the subnet now
        #[arg(long, value_name = "ADDRESS")]
        public_ip: Option<Ipv4Addr>,
        /// The node's IPv6 address, where nodes have one
        #[arg(long, value_name = "ADDRESS")]
        public_ipv6: Option<Ipv6Addr>,
        #[command(flatten)]
        place: Place,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a lease back: this node's, by its daemon, or the one of a subnet
    Release {
        /// The subnet of a node that is gone, of a dual-stack lease either or both, parted by a comma; without it, this
        /// node's
        subnet: Option<String>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        socket: Socket,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(args: Args) -> Exit {
    let done = match args.command {
        Command::Ls { place, json } => ls(&place, json),
        Command::Show {
            socket,
            json,
            docker_opts,
        } => return show(&socket, json, docker_opts),
        Command::Who { ip, socket, json } => return who(&socket, ip, json),
        Command::Reserve {
            subnet,
            public_ip,
            public_ipv6,
            place,
            json,
        } => {
            let public = fdb::Endpoint {
                v4: public_ip,
                v6: public_ipv6,
            };
            reserve(&place, &subnet, public, json)
        }
        Command::Release {
            subnet: None,
            socket,
            json,
            ..
        } => return release_own(&socket, json),
        Command::Release {
            subnet: Some(subnet),
            place,
            json,
            ..
        } => release(&place, &subnet, json),
    };
    done.unwrap_or_else(|failed| failed.complain())
}

/// Why a command did not do what it should.
enum Failed {
    Config(String),
    Other(anyhow::Error),
}

impl Failed {
    fn complain(&self) -> Exit {
        match self {
            Failed::Config(error) => {
                tell!("overlayd: {error}");
                Exit::Config
            }
            Failed::Other(error) => {
                complain(error);
                Exit::Error
            }
        }
    }
}

impl From<String> for Failed {
    fn from(error: String) -> Self {
        Failed::Other(anyhow::anyhow!(error))
    }
}

fn store(place: &Place) -> Result<Store, Failed> {
    Config::load_store(place.config.as_deref(), &place.flags.0, std::env::vars_os())
        .map_err(|error| Failed::Config(error.to_string()))
}

/// Runs `f` on the etcd store that flags, variables or the configuration name.
fn on_etcd<T>(
    place: &Place,
    f: impl AsyncFnOnce(&mut etcd::Store) -> Result<T, String>,
) -> Result<T, Failed> {
    let store = store(place)?;
    let Store::Etcd(store) = &store else {
        return Err("the leases stand in a file: change the file instead"
            .to_owned()
            .into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::Other(error.into()))?;
    let done = runtime.block_on(async {
        let mut store = etcd::Store::open(store).await?;
        f(&mut store).await
    });
    Ok(done?)
}

fn ls(place: &Place, json: bool) -> Result<Exit, Failed> {
    let listed = match &store(place)? {
        Store::File { path } => {
            let leases = FileStore::new(path)
                .load()
                .map_err(|error| error.to_string())?;
            leases
                .into_iter()
                .map(|lease| (Subnets::of(&lease).key(), Ok(lease), None))
                .collect()
        }
        Store::Etcd(_) => {
            let listed = on_etcd(place, async |store| store.list().await)?;
            let row = |one: etcd::Listed| {
                let end = one.left.map_or(End::Never, End::In);
                (one.key, one.lease, Some(end))
            };
            listed.into_iter().map(row).collect::<Vec<_>>()
        }
    };
    if json {
        let leases: Vec<Value> = listed
            .iter()
            .map(|(key, lease, end)| as_json(key, lease, *end))
            .collect();
        say(format_args!(
            "{:#}",
            json!({"version": VERSION, "leases": leases})
        ));
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["lease", "public IP", "backend", "ends"].map(str::to_owned)];
    rows.extend(listed.iter().map(|(key, lease, end)| {
        let end = match end {
            None => "-".to_owned(),
            Some(End::Never) => "never (reserved)".to_owned(),
            Some(End::In(left)) => format!("in {}", hours(*left)),
        };
        match lease {
            Ok(lease) => {
                let backend = lease.backend_type.clone().unwrap_or_else(|| "-".into());
                [
                    Subnets::of(lease).to_string(),
                    lease.endpoint().to_string(),
                    backend,
                    end,
                ]
            }
            Err(why) => [
                key.escape_debug().to_string(),
                format!("unreadable: {why}"),
                "-".into(),
                end,
            ],
        }
    }));
    say(columns(&rows));
    Ok(Exit::Ok)
}

#[derive(Clone, Copy)]
enum End {
    Never,
    In(Duration),
}

fn as_json(key: &str, lease: &Result<Lease, String>, end: Option<End>) -> Value {
    let mut object = json!({"key": key});
    match lease {
        Ok(lease) => {
            object["subnet"] = json!(lease.subnet);
            object["ipv6_subnet"] = json!(lease.ipv6_subnet);
            object["public_ip"] = json!(lease.public_ip);
            object["public_ipv6"] = json!(lease.public_ipv6);
            object["backend"] = json!(lease.backend_type);
        }
        Err(why) => object["unreadable"] = json!(why),
    }
    match end {
        None => {}
        Some(End::Never) => object["reserved"] = json!(true),
        Some(End::In(left)) => object["ends_in_seconds"] = json!(left.as_secs()),
    }
    object
}

fn show(socket: &Socket, json: bool, docker_opts: bool) -> Exit {
    let status: Status = match ask::document(socket, "status") {
        Ok((_, status)) => status,
        Err(exit) => return exit,
    };
    if docker_opts {
        let (lease, mtu) = (&status.lease, status.device.mtu);
        return match subnet_env::docker_opts(lease.subnet, lease.ipv6_subnet, mtu, status.ip_masq) {
            Some(options) => {
                say(options);
                Exit::Ok
            }
            None => {
                tell!(
                    "overlayd: dockerd's --bip is an IPv4 address, and this node's lease has no IPv4 subnet"
                );
                Exit::Error
            }
        };
    }
    if json {
        say(format_args!(
            "{:#}",
            json!({"version": VERSION, "lease": status.lease, "store": status.store})
        ));
        return Exit::Ok;
    }
    let lease = &status.lease;
    let subnets = [
        lease.subnet.map(IpNet::V4),
        lease.ipv6_subnet.map(IpNet::V6),
    ];
    let public = [
        lease.public_ip.map(IpAddr::V4),
        lease.public_ipv6.map(IpAddr::V6),
    ];
    let list = |items: Vec<String>| items.join(" ");
    say(format_args!(
        "{} at {}",
        list(subnets.iter().flatten().map(IpNet::to_string).collect()),
        list(public.iter().flatten().map(IpAddr::to_string).collect())
    ));
    Exit::Ok
}

fn who(socket: &Socket, ip: IpAddr, json: bool) -> Exit {
    let who = match client::who(&socket.socket, ip) {
        Ok(who) => who,
        Err(error) => return refused(&error),
    };
    match &who.holder {
        _ if json => say(format_args!("{:#}", json!(who))),
        Holder::Local => say(format_args!("{ip} is this node's")),
        Holder::None => say(format_args!("{ip} is nobody's: no lease covers it")),
        Holder::Peer { to, .. } => say(format_args!("{ip} is at {}", to.ip())),
    }
    match who.holder {
        Holder::None => Exit::Failed,
        Holder::Local | Holder::Peer { .. } => Exit::Ok,
    }
}

fn reserve(place: &Place, subnet: &str, public: fdb::Endpoint, json: bool) -> Result<Exit, Failed> {
    let subnets = parse(subnet)?;
    let node = match public.ips().next() {
        None => None,
        Some(_) => Some(newcomer(place, public)?),
    };
    let lease = on_etcd(place, async |store| store.reserve(subnets, node).await)?;
    match json {
        true => say(format_args!(
            "{:#}",
            json!({"version": VERSION, "reserved": lease.to_string()})
        )),
        false => say(format_args!("reserved {lease}")),
    }
    Ok(Exit::Ok)
}

/// The node with these public IPs, as the overlay's configuration in the store has it.
fn newcomer(place: &Place, public: fdb::Endpoint) -> Result<Newcomer, Failed> {
    let conf = on_etcd(place, async |store| store.net_conf().await)?.ok_or_else(|| {
        "etcd has no configuration of the overlay yet: write <prefix>/config first".to_owned()
    })?;
    let flags = place.flags.0.clone().set("store.type", "etcd");
    let overrides = flags.with_store_conf(Some(&conf));
    let config = Config::load(place.config.as_deref(), &overrides, std::env::vars_os())
        .map_err(|error| Failed::Config(error.to_string()))?;
    Ok(Newcomer {
        attributes: store::attributes(&config, public),
        pool: config.pool,
    })
}

fn release(place: &Place, subnet: &str, json: bool) -> Result<Exit, Failed> {
    let subnets = parse(subnet)?;
    let released = on_etcd(place, async |store| store.release(subnets).await)?;
    match json {
        true => say(format_args!(
            "{:#}",
            json!({"version": VERSION, "released": released.to_string()})
        )),
        false => say(format_args!("released {released}")),
    }
    Ok(Exit::Ok)
}

fn release_own(socket: &Socket, json: bool) -> Exit {
    match client::ask(&socket.socket, "release") {
        Ok(mut answer) => {
            answer["version"] = json!(VERSION);
            match json {
                true => say(format_args!("{answer:#}")),
                false => say(format_args!(
                    "released {}: other nodes send this one nothing any more, and its daemon takes no lease until it is restarted",
                    answer["released"].as_str().unwrap_or_default()
                )),
            }
            Exit::Ok
        }
        Err(AskError::Broken { why, .. }) => {
            tell!("overlayd: the lease was not given back: {why}");
            Exit::Error
        }
        Err(error) => refused(&error),
    }
}

/// A subnet, or one of each family parted by a comma.
fn parse(text: &str) -> Result<Subnets, String> {
    let mut subnets = Subnets::default();
    for part in text.split(',') {
        match part.parse::<IpNet>() {
            Ok(net) if net != net.trunc() => {
                return Err(format!(
                    "{part}: bits are set after the prefix length; write {}",
                    net.trunc()
                ));
            }
            Ok(IpNet::V4(net)) if subnets.v4.is_none() => subnets.v4 = Some(net),
            Ok(IpNet::V6(net)) if subnets.v6.is_none() => subnets.v6 = Some(net),
            Ok(_) => return Err(format!("{text}: one subnet of each family at most")),
            Err(_) => {
                return Err(format!(
                    "{part} is no subnet; write for example 10.244.7.0/24"
                ));
            }
        }
    }
    Ok(subnets)
}

fn hours(left: Duration) -> String {
    let seconds = left.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// Rows under each other, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widest = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(widest);
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_as_typed() {
        let both = parse("10.244.7.0/24,fc00:0:0:7::/64").unwrap();
        assert_eq!(both.key(), "10.244.7.0-24&fc00:0:0:7::-64");
        for (bad, word) in [
            ("10.244.7.1/24", "10.244.7.0/24"),
            ("x", "no subnet"),
            ("10.244.7.0/24,10.244.8.0/24", "one subnet of each family"),
            ("", "no subnet"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
