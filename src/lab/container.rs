//! What runs in a lab's pods: two small servers, as two containers of one pod.
//!
//! They are processes of their own that share the network namespace which the pod's holder keeps
//! ([`super::holder`]), and with it one address, one `lo` and one set of ports. Either can die; the address stays, and
//! the other goes on.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::process::CommandExt as _,
    process::Command,
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    holder::{self, MARK, Process},
    state,
};
use crate::kernel::NetNs;

/// How long a client of `web` may take to say or hear something.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest request that is read, in bytes.
const MAX_REQUEST: usize = 2048;
/// The most bytes that are sent on request.
const MAX_BYTES: u64 = 1 << 30;

/// A container of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// TCP port 80: says who asks whom, or sends as many bytes as asked for (`/bytes/1000000`).
    Web,
    /// UDP port 7 (RFC 862): sends every datagram back.
    Echo,
}

/// Which of a pod's processes are not among those that run: its `holder`, its containers by name.
pub fn ended(pod: &str, running: &[Process]) -> Vec<String> {
    let gone = |place: &str| running.iter().all(|process| process.place != place);
    let mut ended = Vec::new();
    if gone(pod) {
        ended.push("holder".to_owned());
    }
    for container in Container::ALL {
        if gone(&format!("{pod}/{container}")) {
            ended.push(container.to_string());
        }
    }
    ended
}

impl Container {
    /// Those of every pod.
    pub const ALL: [Self; 2] = [Self::Web, Self::Echo];

    /// Serves for ever. Which pod it is in it is told by its mark ([`MARK`]); when a person typed it there is none, and
    /// it first becomes the pod's own, that the lab knows, shows and takes down.
    ///
    /// # Errors
    /// When it is in no pod, or its port is taken, mostly by another of its kind.
    pub fn run(self) -> Result<()> {
        if std::env::var_os(MARK).is_none() {
            let mark = format!("{}/{self}", own_pod()?);
            let exe =
                std::env::current_exe().context("cannot find the overlayd that is running")?;
            // The environment that others see of a process is the one that it was started with.
            let error = Command::new(exe)
                .args(["lab", "container", &self.to_string()])
                .env(MARK, mark)
                .exec();
            return Err(error).context("cannot run overlayd anew");
        }
        match self {
            Self::Web => web(),
            Self::Echo => echo(),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Web => "web",
            Self::Echo => "echo",
        })
    }
}

impl FromStr for Container {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|c| c.to_string() == text);
        match found {
            Some(container) => Ok(container),
            None => bail!("the containers of a pod are web and echo, not {text:?}"),
        }
    }
}

/// The lab and the pod that the calling process is in: those of a process that shares its namespace and is known.
fn own_pod() -> Result<String> {
    let here = NetNs::current()?.id()?;
    for lab in state::list()? {
        let shares = |process: &Process| {
            let there = NetNs::of_process(process.pid).and_then(|namespace| namespace.id());
            process.place.contains('/') && there.is_ok_and(|there| there == here)
        };
        if let Some(process) = holder::processes(&lab)?.into_iter().find(shares) {
            return Ok(format!("{lab}/{}", process.pod()));
        }
    }
    bail!(
        "this is no pod of a lab, or a dead one's namespace: type it in a pod that lives (`overlayd lab sh node1/pod1`); \
         `overlayd lab revive` starts all that is dead"
    )
}

/// Of both families, where the kernel has both.
fn listen<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> Result<T> {
    let any = (Ipv6Addr::UNSPECIFIED, port).into();
    bind(any)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Err(error),
            _ => bind((Ipv4Addr::UNSPECIFIED, port).into()),
        })
        .with_context(|| format!("cannot listen on port {port}"))
}

fn web() -> Result<()> {
    let listener = listen(80, TcpListener::bind)?;
    let me = std::env::var(MARK).unwrap_or_default();
    let me = me.split('/').skip(1).collect::<Vec<_>>().join("/");
    loop {
        let (client, from) = listener.accept()?;
        let me = me.clone();
        // A client that goes away in the midst of it is its own business.
        thread::spawn(move || answer(client, from, &me));
    }
}

/// HTTP/1.0 (RFC 1945), as much of it as a browser, curl or a shell needs.
fn answer(mut client: TcpStream, from: SocketAddr, me: &str) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut piece = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match client.read(&mut piece)? {
            0 => break,
            length => request.extend_from_slice(&piece[..length]),
        }
    }
    match asked(&request) {
        Asked::Hello => {
            let (from, to) = (canonical(from), canonical(client.local_addr()?));
            let text = format!("hello {from}, this is {me} at {to}\n");
            client.write_all(&head("200 OK", text.len() as u64))?;
            client.write_all(text.as_bytes())
        }
        Asked::Bytes(count) => {
            client.write_all(&head("200 OK", count))?;
            let chunk = [b'.'; 1 << 14];
            let mut left = count;
            while left > 0 {
                let next = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                client.write_all(&chunk[..next])?;
                left -= next as u64;
            }
            Ok(())
        }
        Asked::Nonsense => {
            let text = "ask for / or for /bytes/N\n";
            client.write_all(&head("404 Not Found", text.len() as u64))?;
            client.write_all(text.as_bytes())
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Hello,
    Bytes(u64),
    Nonsense,
}

fn asked(request: &[u8]) -> Asked {
    let request = String::from_utf8_lossy(request);
    let mut words = request.split_whitespace();
    if words.next() != Some("GET") {
        return Asked::Nonsense;
    }
    let path = words.next().unwrap_or("/");
    match path.strip_prefix("/bytes/").map(str::parse) {
        Some(Ok(count)) if count <= MAX_BYTES => Asked::Bytes(count),
        None if path == "/" => Asked::Hello,
        _ => Asked::Nonsense,
    }
}

fn head(status: &str, length: u64) -> Vec<u8> {
    format!("HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n")
        .into()
}

/// A client over IPv4 by its own address, not as the socket of both families sees it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn echo() -> Result<()> {
    let socket = listen(7, UdpSocket::bind)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error that an earlier answer has brought back is about that answer's receiver, not about us.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        assert_eq!(asked(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Asked::Hello);
        assert_eq!(
            asked(b"GET /bytes/1000 HTTP/1.0\r\n\r\n"),
            Asked::Bytes(1000)
        );
        for nonsense in [
            &b"GET /bytes/-1 HTTP/1.0\r\n\r\n"[..],
            b"GET /bytes/99999999999999999999 HTTP/1.0\r\n\r\n",
            b"GET /etc/passwd HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.0\r\n\r\n",
            b"\xff\xfe",
            b"",
        ] {
            assert_eq!(asked(nonsense), Asked::Nonsense, "{nonsense:?}");
        }
    }

    #[test]
    fn containers_are_known_by_their_names() {
        for container in Container::ALL {
            assert_eq!(
                container.to_string().parse::<Container>().unwrap(),
                container
            );
        }
        assert!("db".parse::<Container>().is_err());
    }
}
