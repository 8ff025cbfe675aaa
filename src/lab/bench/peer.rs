//! Two real hosts: `overlayd bench serve` on the one that receives, `overlayd bench --peer` on the one that sends.
//!
//! One TCP connection, one JSON document per line, a question and its answer at a time. The first question carries the
//! key that `serve` has shown: whoever has it may make devices and addresses on that host (those of the bench, nothing
//! else; scripts are the server's own), so it is to be kept like a password and ends with `serve`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socket2::{SockRef, TcpKeepalive};

use super::Plan;
use super::bed::Bed;
use super::host::{End, Host, Ports, Record, Scripts, Site};
use super::load::{Job, Outcome};
use super::machine::Machine;
use super::plan::{Row, Setting};
use super::side::Side;
use crate::kernel::{NetNs, Netlink};
use crate::lab::traffic::Cancel;

/// Where `serve` listens.
pub const PORT: u16 = 9286;
/// Version of the questions and answers.
const VERSION: u32 = 2;
/// The longest line either side takes, in bytes.
const LONGEST: u64 = 1 << 20;
/// How long an answer may take: longer than any measurement.
const PATIENCE: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(100);
/// How long whoever connects may take to say what for.
const GREETING: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    Hello {
        key: String,
        version: u32,
        /// The processors that the server's side is to keep to; all if empty.
        #[serde(default)]
        cpus: Vec<usize>,
    },
    Machine,
    Offloads(Setting),
    Up(Row),
    Down,
    Status,
    Start {
        job: Job,
        /// Count the daemon's system calls.
        calls: bool,
    },
    Finish(u32),
}

/// A connection to a server.
pub(super) struct Client {
    reader: BufReader<Patient>,
}

impl Client {
    fn ask<T: DeserializeOwned>(&mut self, question: &Question) -> Result<T> {
        let connection = self.reader.get_mut();
        connection.until = Some(Instant::now() + PATIENCE);
        write_line(&mut connection.stream, &serde_json::to_value(question)?)
            .context("bench serve has gone")?;
        let answer = read_line(&mut self.reader)?.context("bench serve has gone")?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            bail!("the other host: {error}");
        }
        Ok(serde_json::from_value(answer["ok"].clone())?)
    }

    pub(super) fn machine(&mut self) -> Result<Machine> {
        self.ask(&Question::Machine)
    }

    pub(super) fn set_offloads(&mut self, setting: Setting) -> Result<()> {
        self.ask(&Question::Offloads(setting))
    }

    pub(super) fn up(&mut self, row: &Row) -> Result<End> {
        self.ask(&Question::Up(row.clone()))
    }

    pub(super) fn down(&mut self) -> Result<()> {
        self.ask(&Question::Down)
    }

    pub(super) fn status(&mut self) -> Result<Option<Value>> {
        self.ask(&Question::Status)
    }

    pub(super) fn start(&mut self, job: Job, calls: bool) -> Result<(u32, u16)> {
        self.ask(&Question::Start { job, calls })
    }

    pub(super) fn finish(&mut self, job: u32) -> Result<Outcome> {
        self.ask(&Question::Finish(job))
    }
}

/// Connects to a server, and makes this host the sending one.
pub(super) fn connect(
    host: &str,
    key: &str,
    exe: &Path,
    plan: &Plan,
    cancel: &Cancel,
) -> Result<(Host, Side, Bed)> {
    let attempt = || format!("cannot reach bench serve at {host}");
    let addresses = if host.contains(':') {
        host.to_socket_addrs()
    } else {
        (host, PORT).to_socket_addrs()
    };
    let address = addresses.with_context(attempt)?.find(|a| a.is_ipv4());
    let address = address.with_context(|| format!("{host} has no IPv4 address"))?;
    let stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).with_context(attempt)?;
    let (public, peer) = ends(&stream)?;
    let mut client = Client {
        reader: BufReader::new(Patient::new(stream, cancel)?),
    };
    let () = client.ask(&Question::Hello {
        key: key.to_owned(),
        version: VERSION,
        cpus: plan.pin.b.clone(),
    })?;
    let bed = Bed::claim()?;
    let site = site(1, (public, peer), &bed, exe, &plan.scripts, cancel)?;
    let host = real_host(site, &plan.pin.a)?;
    Ok((host, Side::There(client), bed))
}

/// Serves one bench after the other, until `cancel` is set. `told` hears what happens.
///
/// # Errors
/// When the address cannot be listened on, or the bench needs what is not there.
pub fn serve(
    listen: &str,
    key: &str,
    exe: &Path,
    scripts: &Scripts,
    cancel: &Cancel,
    told: &dyn Fn(&str),
) -> Result<()> {
    let listener =
        TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    listener.set_nonblocking(true)?;
    // What one that was killed has left goes at once, whether anybody comes or not.
    super::bed::sweep();
    told(&format!("listening on {}", listener.local_addr()?));
    while !cancel.is_set() {
        match listener.accept() {
            Ok((stream, from)) => {
                told(&format!("{from} has come"));
                let served = serve_one(&stream, key, exe, scripts, cancel);
                match served {
                    Ok(()) => told(&format!("{from} has gone; nothing is left")),
                    Err(error) => told(&format!("{from}: {error:#}")),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn serve_one(
    stream: &TcpStream,
    key: &str,
    exe: &Path,
    scripts: &Scripts,
    cancel: &Cancel,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(Patient::new(stream.try_clone()?, cancel)?);
    // Whoever has nothing to say keeps others waiting.
    reader.get_mut().until = Some(Instant::now() + GREETING);
    let first = read_line(&mut reader)?.context("no word")?;
    let cpus = match welcome(first, key) {
        Ok(cpus) => cpus,
        Err(error) => {
            write_line(&mut writer, &json!({"error": error.to_string()}))?;
            return Err(error);
        }
    };
    reader.get_mut().until = None;
    let bed = Bed::claim()?;
    let site = site(2, ends(stream)?, &bed, exe, scripts, cancel)?;
    let mut host = real_host(site, &cpus)?;
    write_line(&mut writer, &json!({"ok": null}))?;
    while let Some(line) = read_line(&mut reader)? {
        let answer = serde_json::from_value(line)
            .map_err(anyhow::Error::from)
            .and_then(|question| answer(&mut host, question));
        let answer = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({"error": format!("{error:#}")}),
        };
        write_line(&mut writer, &answer)?;
    }
    Ok(())
}

/// Lets whoever has the key in. On which processors its loads are to run here.
fn welcome(first: Value, key: &str) -> Result<Vec<usize>> {
    match serde_json::from_value(first) {
        Ok(Question::Hello { version, .. }) if version != VERSION => {
            bail!("another version of overlayd: use the same on both hosts")
        }
        Ok(Question::Hello {
            key: given, cpus, ..
        }) if given == key => Ok(cpus),
        Ok(Question::Hello { .. }) => bail!("the key is not the one that bench serve has shown"),
        _ => bail!("this is no overlayd bench"),
    }
}

fn answer(host: &mut Host, question: Question) -> Result<Value> {
    Ok(match question {
        Question::Hello { .. } => bail!("that has been said"),
        Question::Machine => serde_json::to_value(host.machine())?,
        Question::Offloads(setting) => host.set_offloads(setting).map(|_| Value::Null)?,
        Question::Up(row) => serde_json::to_value(host.up(&row)?)?,
        Question::Down => host.down().map(|()| Value::Null)?,
        Question::Status => serde_json::to_value(host.status())?,
        Question::Start { job, calls } => serde_json::to_value(host.start(job, calls)?)?,
        Question::Finish(job) => serde_json::to_value(host.finish(job)?)?,
    })
}

/// A host that is not the bench's alone: what it changes there is kept for a next one, in case this one is killed.
fn real_host(site: Site, cpus: &[usize]) -> Result<Host> {
    let host = Host::new(Site {
        cpus: cpus.to_vec(),
        ..site
    })?;
    Record::keep(&host)?;
    Ok(host)
}

/// A host that is a real one: in the namespace we are in, on the device that the connection goes over.
fn site(
    number: u8,
    (public, peer): (Ipv4Addr, Ipv4Addr),
    bed: &Bed,
    exe: &Path,
    scripts: &Scripts,
    cancel: &Cancel,
) -> Result<Site> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let device = runtime.block_on(async { Netlink::open()?.iface_of(public.into()).await })?;
    let device = device.with_context(|| format!("no device has the address {public}"))?;
    Ok(Site {
        number,
        node: NetNs::current()?,
        pod: None,
        device: device.name,
        public,
        peer,
        dir: bed.host_dir(number)?,
        exe: exe.to_owned(),
        mark: bed.mark().to_owned(),
        ports: Ports::apart(),
        scripts: scripts.clone(),
        cpus: Vec::new(),
        cancel: cancel.clone(),
    })
}

fn ends(stream: &TcpStream) -> Result<(Ipv4Addr, Ipv4Addr)> {
    match (stream.local_addr()?.ip(), stream.peer_addr()?.ip()) {
        (IpAddr::V4(own), IpAddr::V4(other)) => Ok((own, other)),
        _ => Err(anyhow!("the bench goes over IPv4 between the hosts")),
    }
}

/// A connection whose reader waits for the other side, for a signal, and until a point in time.
struct Patient {
    stream: TcpStream,
    cancel: Cancel,
    until: Option<Instant>,
}

impl Patient {
    fn new(stream: TcpStream, cancel: &Cancel) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        // A host that vanished is noticed after a minute.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self {
            stream,
            cancel: cancel.clone(),
            until: None,
        })
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.is_set() {
                // Not `Interrupted`, which readers take as a reason to try again.
                return Err(io::Error::other("cancelled"));
            }
            if self.until.is_some_and(|until| Instant::now() > until) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no word from the other side",
                ));
            }
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

fn write_line(to: &mut TcpStream, value: &Value) -> io::Result<()> {
    to.write_all(format!("{value}\n").as_bytes())
}

/// `None`: the other side has gone.
fn read_line(from: &mut impl BufRead) -> Result<Option<Value>> {
    let mut line = String::new();
    let len = from.take(LONGEST).read_line(&mut line)?;
    if len == 0 {
        return Ok(None);
    }
    if !line.ends_with('\n') {
        bail!("a line without an end");
    }
    Ok(Some(serde_json::from_str(&line)?))
}
