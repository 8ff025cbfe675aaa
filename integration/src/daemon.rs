//! The daemon under test: built once, started in a node, asked, signalled, stopped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlayd::kernel::NetNs;
use overlayd::observe::client;
use serde_json::Value;

use crate::bed::Node;
use crate::config::Config;
use crate::iproute::ip;

/// How long a daemon may take to start, to stop, or to take up a change.
pub const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// The `overlayd` command of this very build: a binary of this package, which cargo builds before it
/// runs the tests, beside them. The environment's `OVERLAYD_UNDER_TEST` names another, such as a release build.
///
/// # Panics
/// If it is not there.
pub fn overlayd_bin() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("OVERLAYD_UNDER_TEST") {
            return named.into();
        }
        // target/<profile>/deps/<test>
        let test = std::env::current_exe().expect("the test's own path");
        let profile = test
            .ancestors()
            .nth(2)
            .expect("a test lies in target/<profile>/deps");
        let binary = profile.join("overlayd-under-test");
        assert!(
            binary.exists(),
            "{} is missing: run the tests with cargo test",
            binary.display()
        );
        binary
    })
}

/// A daemon in a node. Dropped, it is killed; if a test failed, its log is shown.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    ended: Option<ExitStatus>,
    node: String,
    netns: NetNs,
    device: String,
    socket: PathBuf,
    config: PathBuf,
    // Open, so that it can still be read when its directory is gone.
    log: File,
}

/// Does the kernel deliver to the daemon's IPv6 addresses? It makes an address's local route a moment after the address, from
/// a work queue (net/ipv6/addrconf.c, `addrconf_dad_work`), and until then routes on what comes for it.
fn is_settled(node: &Node, status: &Value) -> bool {
    let addresses = status["device"]["addresses"].as_array();
    let addresses = addresses.into_iter().flatten().filter_map(Value::as_str);
    let mut v6 = addresses.filter(|address| address.contains(':')).peekable();
    if v6.peek().is_none() {
        return true;
    }
    let local = ip(node.netns(), "-6 route show table local type local");
    v6.all(|address| local.contains(&format!("local {address} ")))
}

/// The line of a status document about what the kernel does for the engine under `name`, if there is one.
///
/// # Panics
/// If the document has no such lines at all.
pub fn feature<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let features = status["features"].as_array().expect("a list of features");
    features.iter().find(|feature| feature["name"] == name)
}

impl Daemon {
    /// Starts a daemon in `node` and waits until it answers.
    ///
    /// # Panics
    /// If it exits, or does not answer within five seconds; with its log.
    pub fn start(node: &Node, config: &Config) -> Self {
        Self::launch(node, config).answering(node)
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn answering(mut self, node: &Node) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            let exited = self.exited();
            match client::status(&self.socket) {
                // The one that answers may be another on the same socket.
                Ok(status) if status["pid"] == self.pid() => {
                    let enough = Instant::now() + Duration::from_secs(1);
                    while !is_settled(node, &status) && Instant::now() < enough {
                        sleep(LOOK);
                    }
                    return self;
                }
                answer => {
                    assert!(
                        exited.is_none(),
                        "overlayd in {} ended at start: {exited:?}",
                        node.name()
                    );
                    assert!(
                        Instant::now() < end,
                        "overlayd in {} does not answer: {answer:?}",
                        node.name()
                    );
                }
            }
            sleep(LOOK);
        }
    }

    /// Starts a daemon and does not wait for it.
    ///
    /// # Panics
    /// If it cannot be started at all.
    pub fn launch(node: &Node, config: &Config) -> Self {
        Self::launch_with(node, config, &[])
    }

    /// The same, by a command that becomes what it is given, such as `setpriv --bounding-set=-sys_nice`.
    ///
    /// # Panics
    /// If it cannot be started at all.
    pub fn launch_by(by: &[&str], node: &Node, config: &Config) -> Self {
        Self::spawn(by, node, config, &[])
    }

    /// The same, with these variables in its environment.
    ///
    /// # Panics
    /// If it cannot be started at all.
    pub fn launch_with(node: &Node, config: &Config, env: &[(&str, &str)]) -> Self {
        Self::spawn(&[], node, config, env)
    }

    fn spawn(by: &[&str], node: &Node, config: &Config, env: &[(&str, &str)]) -> Self {
        let mut words = by
            .iter()
            .map(OsStr::new)
            .chain([overlayd_bin().as_os_str()]);
        let place = |ending: &str| {
            let path = (0..).map(|n| node.dir().join(format!("overlayd-{n}.{ending}")));
            let mut free = path.filter(|path| !path.exists());
            free.next().expect("there are numbers enough")
        };
        let (toml, log) = (place("toml"), place("log"));
        fs::write(&toml, config.to_string()).expect("write the configuration");
        let stderr = File::create(&log).expect("create the log");
        let log = File::open(&log).expect("open the log");
        let mut command = Command::new(words.next().expect("overlayd at least"));
        command.args(words).arg("run").arg("--config").arg(&toml);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("OVERLAYD_") || text.starts_with("FLANNELD_") {
                command.env_remove(&name);
            }
        }
        command.envs(env.iter().copied());
        let child = node.netns().spawn(command).expect("start overlayd");
        Daemon {
            child,
            ended: None,
            node: node.name(),
            netns: node.netns().clone(),
            device: config.get("device.name").unwrap_or("overlay0").to_owned(),
            socket: config
                .get("control.socket")
                .unwrap_or("/run/overlayd/overlayd.sock")
                .into(),
            config: toml,
            log,
        }
    }

    /// Starts a daemon that is to refuse its work: the exit code and the log.
    ///
    /// # Panics
    /// If it runs for five seconds, or ends by a signal.
    pub fn refused(node: &Node, config: &Config) -> (i32, String) {
        let mut daemon = Self::launch(node, config);
        let status = daemon.wait_exit(PATIENCE);
        let code = status.code().expect("it ends by itself, not by a signal");
        (code, daemon.log())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name of each of its threads, and what the kernel has in that thread's `file` (`/proc/PID/task/TID/`).
    pub fn threads(&self, file: &str) -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let read = |task: &Path, file| fs::read_to_string(task.join(file));
        // A thread may end before it is read.
        let tasks = tasks.into_iter().flatten().flatten();
        tasks
            .filter_map(|task| {
                let task = task.path();
                let name = read(&task, "comm").ok()?.trim().to_owned();
                Some((name, read(&task, file).ok()?))
            })
            .collect()
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its configuration file: rewrite it and [`Daemon::reload`].
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        let (mut log, mut text) = (&self.log, String::new());
        log.rewind()
            .and_then(|()| log.read_to_string(&mut text))
            .expect("read the log");
        text
    }

    /// Its status document.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn status(&self) -> Value {
        client::status(&self.socket)
            .unwrap_or_else(|error| panic!("overlayd in {}: {error}", self.node))
    }

    /// Waits until the status is as wanted, and returns it.
    ///
    /// # Panics
    /// If it is not within five seconds.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(
                Instant::now() < end,
                "overlayd in {}: not so within {PATIENCE:?}: {what}; status: {status:#}",
                self.node
            );
            sleep(LOOK);
        }
    }

    /// How many packets it dropped under this reason, both directions together.
    pub fn drops(&self, reason: &str) -> u64 {
        let status = self.status();
        drops(&status)
            .filter(|(name, _)| name == reason)
            .map(|(_, count)| count)
            .sum()
    }

    /// Every packet taken in has ended in exactly one place, and none was dropped but for the `expected` reasons. (The
    /// kernel itself probes for neighbours on every device: `not-unicast` is always expected.)
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_balanced(&self, expected: &[&str]) {
        let status = self.wait_for("nothing is queued", |status| {
            ["outbound", "inbound"]
                .iter()
                .all(|direction| status[direction]["queued"] == 0)
        });
        for direction in ["outbound", "inbound"] {
            let count = |key: &str| status[direction][key].as_u64().expect("a count");
            let ended = ["forwarded", "answered", "flooded", "dropped", "queued"].map(count);
            assert_eq!(
                count("in"),
                ended.iter().sum::<u64>(),
                "{direction} of {}: {status:#}",
                self.node
            );
        }
        for (reason, count) in drops(&status) {
            assert!(
                reason == "not-unicast" || expected.contains(&reason.as_str()),
                "{} dropped {count} packets: {reason}",
                self.node
            );
        }
    }

    /// Sends SIGHUP. The configuration file is [`Daemon::config_path`].
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "overlayd in {} is gone", self.node);
        let pid = i32::try_from(self.pid()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("signal overlayd");
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait for overlayd");
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not come in time.
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "overlayd in {} still runs after {within:?}",
                self.node
            );
            sleep(LOOK);
        }
    }

    /// Stops it with SIGTERM.
    ///
    /// # Panics
    /// If it does not exit with code 0 in time, or leaves its device or its control socket behind.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(PATIENCE);
        assert_eq!(status.code(), Some(0), "overlayd in {}", self.node);
        assert!(
            !self.has_device(),
            "overlayd in {} left its device behind",
            self.node
        );
        assert!(
            !self.socket.exists(),
            "overlayd in {} left its control socket behind",
            self.node
        );
    }

    /// Is its device there?
    ///
    /// # Panics
    /// If the node's namespace cannot be entered.
    pub fn has_device(&self) -> bool {
        let device = self.device.as_str();
        self.netns
            .run(|| nix::net::if_::if_nametoindex(device).is_ok())
            .expect("enter the node")
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            // Only fails for a child that has been waited for.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

/// The reasons and numbers of drops in a status document.
fn drops(status: &Value) -> impl Iterator<Item = (String, u64)> {
    let drops = status["drops"].as_array().expect("drops are a list");
    drops.iter().map(|drop| {
        let reason = drop["reason"].as_str().expect("a drop has a reason");
        let count = drop["packets"].as_u64().expect("a drop has a count");
        (reason.to_owned(), count)
    })
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- overlayd in {} ---\n{}", self.node, self.log());
        }
    }
}
