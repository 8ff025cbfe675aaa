//! A real etcd in a namespace, and its operator.

use std::fs::File;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use overlayd::kernel::NetNs;
use serde_json::Value;
use tempfile::TempDir;

use crate::bed::{Bed, Config, Node};
use crate::probe;

/// What all keys begin with, as flannel has it.
pub const PREFIX: &str = "/coreos.com/network";
/// How long etcd may take to start or to do what it is told.
const PATIENCE: Duration = Duration::from_secs(30);

/// A member of an etcd cluster, mostly its only one. Dropped, it is killed, and its data goes.
#[derive(Debug)]
pub struct Etcd {
    netns: NetNs,
    name: String,
    address: String,
    /// Names and peer URLs of all that it starts with.
    cluster: String,
    /// Does it join a cluster that is there?
    joins: bool,
    tls: Option<Tls>,
    user: Option<String>,
    directory: TempDir,
    child: Option<Child>,
}

/// The files of a server with TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate authority.
    pub ca: String,
    /// The server's certificate, and its key.
    pub cert: (String, String),
    /// Must clients show a certificate of the same authority?
    pub clients: bool,
}

impl Etcd {
    /// Starts etcd on the bed's underlay, at 10.99.0.254, without TLS.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(bed: &Bed) -> Self {
        Self::start_with(bed, None)
    }

    /// The same, with TLS perhaps.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_with(bed: &Bed, tls: Option<Tls>) -> Self {
        let mut etcd = Self::prepare(bed, "one", 254);
        etcd.tls = tls;
        etcd.run();
        etcd
    }

    /// Starts a cluster of three members, at 10.99.0.251 to 253.
    ///
    /// # Panics
    /// If it does not start.
    pub fn cluster(bed: &Bed) -> Vec<Self> {
        let prepare = |(name, host)| Self::prepare(bed, name, host);
        let mut members: Vec<Self> = [("one", 251), ("two", 252), ("three", 253)]
            .map(prepare)
            .into();
        let all: Vec<String> = members
            .iter()
            .map(|member| member.cluster.clone())
            .collect();
        for member in &mut members {
            member.cluster = all.join(",");
            member.launch();
        }
        members.iter().for_each(Self::await_answer);
        members
    }

    /// Adds a member at 10.99.0.`host` to the cluster of this one.
    ///
    /// # Panics
    /// If the cluster does not take it.
    pub fn add(&self, bed: &Bed, name: &str, host: u8) -> Self {
        let mut member = Self::prepare(bed, name, host);
        let peer = format!("--peer-urls=http://{}:2380", member.address);
        self.ctl_in_time(&["member", "add", name, &peer]);
        let text = self.ctl(&["member", "list"]);
        // `ID, started, NAME, PEER URLS, CLIENT URLS, false`; the new one has no name yet.
        let others = text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(", ").collect();
            (!fields[2].is_empty()).then(|| format!("{}={}", fields[2], fields[3]))
        });
        let all: Vec<String> = others.chain([member.cluster.clone()]).collect();
        (member.cluster, member.joins) = (all.join(","), true);
        member.run();
        member
    }

    /// Takes another member out of the cluster of this one. It ends by itself.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn remove(&self, member: &Etcd) {
        let text = self.ctl(&["member", "list"]);
        let name = format!(", {}, ", member.name);
        let line = text.lines().find(|line| line.contains(&name));
        let id = line.and_then(|line| line.split(',').next());
        self.ctl_in_time(&["member", "remove", id.expect("it is a member")]);
    }

    fn prepare(bed: &Bed, name: &str, host: u8) -> Self {
        let netns = bed.underlay().clone();
        let address = format!("10.99.0.{host}");
        let there = probe::command(&netns, "ip -4 -o addr show dev br0");
        if !there.contains(&format!("{address}/")) {
            probe::command(&netns, &format!("ip addr add {address}/24 dev br0"));
            probe::command(&netns, "ip link set lo up");
        }
        Etcd {
            netns,
            name: name.to_owned(),
            cluster: format!("{name}=http://{address}:2380"),
            address,
            joins: false,
            tls: None,
            user: None,
            directory: tempfile::Builder::new()
                .prefix(bed.prefix())
                .tempdir()
                .expect("a directory for etcd"),
            child: None,
        }
    }

    /// Its address on the underlay.
    ///
    /// # Panics
    /// Never: it is one.
    pub fn ip(&self) -> IpAddr {
        self.address.parse().expect("an address")
    }

    /// Its namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:2379", self.address)
    }

    /// Starts it again, on its old data.
    ///
    /// # Panics
    /// If it does not answer in time.
    pub fn run(&mut self) {
        self.launch();
        self.await_answer();
    }

    fn launch(&mut self) {
        let log = File::create(self.directory.path().join("log")).expect("etcd's log");
        let (client, peer) = (self.endpoint(), format!("http://{}:2380", self.address));
        let state = if self.joins { "existing" } else { "new" };
        let mut command = Command::new("/usr/bin/etcd");
        command
            .args([
                "--name",
                &self.name,
                "--log-level",
                "error",
                "--logger",
                "zap",
            ])
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &self.cluster])
            .args(["--initial-cluster-state", state])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(tls) = &self.tls {
            command.args(["--cert-file", &tls.cert.0, "--key-file", &tls.cert.1]);
            if tls.clients {
                command.args(["--client-cert-auth", "--trusted-ca-file", &tls.ca]);
            }
        }
        self.child = Some(self.netns.spawn(command).expect("start etcd"));
    }

    fn await_answer(&self) {
        let end = Instant::now() + PATIENCE;
        while let Err(why) = self.try_ctl(&["get", "is-it-there"]) {
            assert!(Instant::now() < end, "etcd does not answer: {why}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Ends it as a crash would; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only for one that has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// From now on the operator is this user, `name:password`.
    pub fn log_in(&mut self, user: &str) {
        self.user = Some(user.to_owned());
    }

    /// Runs etcdctl there.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args)
            .unwrap_or_else(|error| panic!("etcdctl {args:?}: {error}"))
    }

    /// The same, again and again: for some seconds after one change of members etcd refuses the next.
    fn ctl_in_time(&self, args: &[&str]) {
        let end = Instant::now() + PATIENCE;
        while let Err(why) = self.try_ctl(args) {
            assert!(Instant::now() < end, "etcdctl {args:?}: {why}");
            sleep(Duration::from_millis(200));
        }
    }

    fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("/usr/bin/etcdctl");
        command.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &self.endpoint(),
            "--command-timeout",
            "20s",
        ]);
        if let Some(tls) = &self.tls {
            command.args([
                "--cacert",
                &tls.ca,
                "--cert",
                &tls.cert.0,
                "--key",
                &tls.cert.1,
            ]);
        }
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        command.args(args);
        let done = probe::within(&self.netns, || command.output());
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    }

    /// Writes `<prefix>/config`.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn configure(&self, net_conf: &str) {
        self.ctl(&["put", &format!("{PREFIX}/config"), net_conf]);
    }

    /// Writes a key under `<prefix>/subnets/`, without a lease.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", &format!("{PREFIX}/subnets/{key}"), value]);
    }

    /// Writes a key under `<prefix>/subnets/`, with a lease of a day, as flanneld and overlayd do.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn lease(&self, key: &str, value: &str) {
        // `lease 694d7f0c granted with TTL(86400s)`
        let said = self.ctl(&["lease", "grant", "86400"]);
        let id = said.split(' ').nth(1).expect("etcdctl names the lease");
        let key = format!("{PREFIX}/subnets/{key}");
        self.ctl(&["put", &format!("--lease={id}"), &key, value]);
    }

    /// In which revision a key under `<prefix>/subnets/` was made: it changes when the key has been gone.
    ///
    /// # Panics
    /// If there is no such key.
    pub fn made(&self, key: &str) -> i64 {
        let text = self.ctl(&["get", &format!("{PREFIX}/subnets/{key}"), "-w", "json"]);
        let answer: Value = serde_json::from_str(&text).expect("etcdctl writes JSON");
        answer["kvs"][0]["create_revision"]
            .as_i64()
            .expect("the key is there")
    }

    /// Deletes a key under `<prefix>/subnets/`.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn delete(&self, key: &str) {
        self.ctl(&["del", &format!("{PREFIX}/subnets/{key}")]);
    }

    /// The keys under `<prefix>/subnets/` and their values, in the keys' order.
    ///
    /// # Panics
    /// If etcd does not answer.
    pub fn subnets(&self) -> Vec<(String, String)> {
        let prefix = format!("{PREFIX}/subnets/");
        let text = self.ctl(&["get", "--prefix", &prefix]);
        let lines: Vec<&str> = text.lines().collect();
        let pairs = lines.chunks_exact(2);
        pairs
            .map(|pair| (pair[0][prefix.len()..].to_owned(), pair[1].to_owned()))
            .collect()
    }

    /// The store's revision.
    ///
    /// # Panics
    /// If etcd does not answer.
    pub fn revision(&self) -> i64 {
        let text = self.ctl(&["get", "nothing", "-w", "json"]);
        let answer: Value = serde_json::from_str(&text).expect("etcdctl writes JSON");
        answer["header"]["revision"].as_i64().expect("a revision")
    }

    /// The configuration of a daemon in `node` that uses this etcd.
    pub fn config(&self, node: &Node) -> Config {
        let path = |name: &str| node.dir().join(name).to_string_lossy().into_owned();
        let config = Config::default()
            .set("node.name", node.name())
            .set("node.iface", "eth0")
            .set("device.name", "overlay0")
            .set("store.type", "etcd")
            .set("store.endpoints", self.endpoint())
            .set("store.saved-table", path("leases.saved"))
            .set("control.socket", path("overlayd.sock"));
        match &self.tls {
            Some(tls) => config.set("store.ca-file", tls.ca.clone()),
            None => config,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
