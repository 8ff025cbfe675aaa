//! The etcd of a lab whose leases stand in one: a single member in a namespace of its own, a host of the underlay that
//! is no node. Its data lies in the lab's directory, and goes with it.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{ETCD, ETCD_PORT, ETCD_PREFIX, Lab, Leased, Stop, daemons, on_runtime};
use crate::{lab::holder, observe::client, observe::status::Status};

/// How long etcd may take until it answers, and nodes until they have a lease.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Where the program is.
///
/// # Errors
/// When it is not installed.
pub(super) fn program() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/usr/local/bin".into());
    let found = env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    found.context(
        "there is no etcd on this machine: install it (Debian and Ubuntu: `apt install etcd-server etcd-client`), or build \
         the lab with --store file",
    )
}

impl Lab {
    /// The log of its etcd.
    pub fn etcd_log(&self) -> PathBuf {
        self.etcd_dir().join("etcd.log")
    }

    fn etcd_dir(&self) -> PathBuf {
        self.dir().join(ETCD)
    }

    fn etcd_endpoint(&self) -> Result<String> {
        let endpoint = self.spec.etcd_endpoint();
        endpoint.with_context(|| format!("lab {:?} has no etcd", self.spec.name))
    }

    /// Starts etcd, on the data that it has if it has run before, and waits until it answers.
    pub(super) fn start_etcd(&mut self, stop: Stop<'_>) -> Result<()> {
        let (dir, log) = (self.etcd_dir(), self.etcd_log());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let endpoint = self.etcd_endpoint()?;
        // For etcdctl, which asks there unless it is told otherwise.
        let here = format!("http://127.0.0.1:{ETCD_PORT}");
        let peers = "http://127.0.0.1:2380";
        let mut command = holder::marked(&program()?, &self.spec.name, ETCD);
        command
            .args(["--name", "lab", "--logger", "zap", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &format!("{endpoint},{here}")])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", peers])
            .args(["--initial-advertise-peer-urls", peers])
            .args(["--initial-cluster", &format!("lab={peers}")])
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = self.place(ETCD)?.spawn(command)?;
        let pid = child.id();
        self.children.push(child);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.ask_etcd(async |mut client| client.status().await) {
            stop()?;
            self.reap();
            let what = if !self.children.iter().any(|child| child.id() == pid) {
                "ended while starting".to_owned()
            } else if Instant::now() > deadline {
                let patience = PATIENCE.as_secs();
                format!("does not answer within {patience} s ({error:#})")
            } else {
                thread::sleep(POLL);
                continue;
            };
            let tail = daemons::tail(&log).unwrap_or_default();
            bail!(
                "etcd {what}. The end of its log ({}):\n{tail}",
                log.display()
            );
        }
        Ok(stop()?)
    }

    /// Writes what all nodes read there: flannel's net-conf.json.
    pub(super) fn configure_etcd(&self) -> Result<()> {
        let (key, conf) = (format!("{ETCD_PREFIX}/config"), self.spec.net_conf());
        self.ask_etcd(async move |mut client| client.put(key, conf, None).await)
            .context("cannot write the network's configuration to etcd")?;
        Ok(())
    }

    /// One request, from etcd's own namespace.
    fn ask_etcd<T: Send>(
        &self,
        ask: impl AsyncFnOnce(etcd_client::Client) -> Result<T, etcd_client::Error> + Send,
    ) -> Result<T> {
        let endpoint = self.etcd_endpoint()?;
        self.place(ETCD)?.run(|| {
            on_runtime(|| async {
                let client = etcd_client::Client::connect([endpoint], None).await?;
                Ok(ask(client).await?)
            })
        })?
    }

    /// The subnets that the nodes have taken, as their daemons say.
    pub(super) fn leased(&mut self, stop: Stop<'_>) -> Result<Vec<Leased>> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        for node in &self.nodes {
            loop {
                stop()?;
                let answer = client::status(&self.socket(node.number))?;
                let status: Status = serde_json::from_value(answer)?;
                let lease = &status.lease;
                if let Some(subnet) = lease.subnet {
                    all.push(Leased {
                        subnet,
                        ipv6_subnet: lease.ipv6_subnet.filter(|_| self.spec.ipv6),
                    });
                    break;
                }
                if Instant::now() > deadline {
                    return Err(anyhow!(
                        "overlayd on {} has taken no subnet; its log is {}",
                        node.name,
                        self.log(node.number).display()
                    ));
                }
                thread::sleep(POLL);
            }
        }
        Ok(all)
    }
}
