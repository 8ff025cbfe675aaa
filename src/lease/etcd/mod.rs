//! The etcd store: one task that owns the [`Machine`], does what it says, and shows others what it knows.
//!
//! ```text
//!   daemon ── want, release ──▶ ┌──────────────────┐ ──▶ one connection to one member of the cluster
//!          ◀── Seen (watch) ─── │ task, Machine     │ ◀── answers, changes
//!                               └──────────────────┘ ──▶ saved table
//! ```
//!
//! A new connection goes to the next endpoint and reads certificates and password anew.

mod client;
mod command;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::Lease;
use super::machine::{Action, Event, Figures, Machine, Note, Settings, Wanted};
use super::saved::{self, NoSaved};
use crate::config::EtcdStore;
use client::{Connection, News};

pub use command::{Listed, Newcomer, Store};

/// The table is shown at most so often: it is made anew from all leases.
const SHOW: Duration = Duration::from_millis(25);
/// And saved at most so often.
const SAVE: Duration = Duration::from_secs(2);
/// What could not be saved is tried again after this time.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// The end waits so long at most for a request that is on its way, and for the disk.
const CLOSE: Duration = Duration::from_secs(2);
/// The clock may have jumped over a suspend: it is looked at this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// What the task knows, as others see it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `<prefix>/config`, from the store or from the saved table.
    pub config: Option<Arc<[u8]>>,
    /// The last one that a daemon here took up: it outlives a bad one, or none, over restarts too.
    pub good: Option<Arc<[u8]>>,
    /// The store is being watched.
    pub reachable: bool,
    /// Since when the leases have not been compared with the store, if it is out of reach.
    pub outage: Option<std::time::Instant>,
    /// When our own lease ends if it is not renewed; a reservation has no end.
    pub ends: Option<std::time::Instant>,
    /// Has the store been read?
    pub from_store: bool,
    /// All leases in order of precedence, our own among them.
    pub leases: Arc<[Lease]>,
    /// Our own, once there is one.
    pub own: Option<Lease>,
    /// What is not as it should be; empty: all is well.
    pub troubles: Vec<Since>,
    /// Keys whose values cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// How many keys are reservations.
    pub reservations: usize,
    /// Counts.
    pub figures: Figures,
    /// The endpoint that is, or was last, connected to.
    pub endpoint: String,
    /// Grows when leases, own or config change.
    pub generation: u64,
}

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Since {
    /// What, and what to do.
    pub what: String,
    /// From when on.
    pub since: std::time::Instant,
}

enum Request {
    Want(Box<Wanted>),
    Good(Arc<[u8]>),
    Release(Answer),
    End,
}

/// A table on its way to the disk: of which generation.
type Saving = JoinHandle<Result<u64, String>>;

/// Where the outcome of a release goes.
type Answer = oneshot::Sender<Result<(), String>>;

/// The daemon's hold on the task.
#[derive(Debug)]
pub struct Handle {
    requests: mpsc::UnboundedSender<Request>,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Request::Want(_) => "Want",
            Request::Good(_) => "Good",
            Request::Release(_) => "Release",
            Request::End => "End",
        })
    }
}

/// Asks the task for something from elsewhere, such as the control socket.
#[derive(Clone, Debug)]
pub struct Releaser(mpsc::UnboundedSender<Request>);

impl Releaser {
    /// Gives the lease back, and waits until etcd has it so.
    ///
    /// # Errors
    /// Why it is not given back.
    pub async fn release(&self) -> Result<(), String> {
        let (answer, outcome) = oneshot::channel();
        // The task ends with the daemon: nothing is left to release then.
        let _ = self.0.send(Request::Release(answer));
        match timeout(CLOSE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err("etcd has not confirmed it: it is tried again until overlayd ends".into()),
        }
    }
}

impl Handle {
    /// Starts the task, with what an earlier run saved.
    pub fn start(store: EtcdStore) -> Self {
        let mut machine = Machine::new(Settings {
            ttl: store.lease_ttl,
            margin: store.renew_margin,
            seed: fastrand::u64(..),
        });
        let mut good = None;
        match saved::load(&store.saved_table, &store.prefix) {
            Ok(saved) => {
                good = saved.config.as_deref().map(Arc::from);
                machine.restore(saved);
            }
            Err(NoSaved::NotFound) => {}
            Err(why) => tracing::warn!("the saved leases {}: {why}", store.saved_table.display()),
        }
        let (requests, inbox) = mpsc::unbounded_channel();
        let (show, seen) = watch::channel(Seen::default());
        let task = Task {
            store,
            machine,
            good,
            releasing: None,
            public: None,
            connection: None,
            attempts: 0,
            shown: u64::MAX,
            saved: 0,
            save_at: None,
            saving: None,
            unsaved: None,
            resave: false,
        };
        let task = tokio::spawn(task.run(inbox, show));
        Handle {
            requests,
            seen,
            task,
        }
    }

    /// Ends the task, and waits until the last known leases are on disk.
    pub async fn close(self) {
        // Whoever could still ask for a release holds a sender: the word ends the task, not their absence.
        let _ = self.requests.send(Request::End);
        let _ = timeout(CLOSE, self.task).await;
    }

    /// Tells that this net-conf was taken up.
    pub fn good(&self, config: &[u8]) {
        let _ = self.requests.send(Request::Good(config.into()));
    }

    /// Tells what this node wants to hold.
    pub fn want(&self, wanted: Wanted) {
        let _ = self.requests.send(Request::Want(Box::new(wanted)));
    }

    /// To ask for a release from elsewhere.
    pub fn releaser(&self) -> Releaser {
        Releaser(self.requests.clone())
    }

    /// What is known now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// To look at what is known from elsewhere.
    pub fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// What is known now; [`Handle::changed`] waits for what is newer.
    pub fn look(&mut self) -> Seen {
        self.seen.borrow_and_update().clone()
    }

    /// Waits until something changes.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until it is so.
    pub async fn until(&mut self, is_so: impl Fn(&Seen) -> bool) -> Seen {
        loop {
            let seen = self.look();
            if is_so(&seen) {
                return seen;
            }
            self.changed().await;
        }
    }
}

/// The machine's clock: it goes on while the host is suspended, and no one can set it (`CLOCK_BOOTTIME`, time(7)).
fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(Duration::ZERO, Duration::from)
}

struct Task {
    store: EtcdStore,
    machine: Machine,
    /// The last net-conf that was taken up.
    good: Option<Arc<[u8]>>,
    /// Who waits for a release.
    releasing: Option<Answer>,
    /// The public IPs of the lease that is wanted.
    public: Option<fdb::Endpoint>,
    connection: Option<Connection>,
    attempts: usize,
    /// The generation that others see.
    shown: u64,
    /// The generation on disk.
    saved: u64,
    save_at: Option<Instant>,
    /// A table on its way to the disk.
    saving: Option<Saving>,
    /// Why the table on disk is not what it should be.
    unsaved: Option<Since>,
    /// What is saved beside the machine's knowledge has changed.
    resave: bool,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Request>, show: watch::Sender<Seen>) {
        let mut last_shown = Instant::now() - SHOW;
        loop {
            let action = self.machine.poll(now());
            while let Some(note) = self.machine.note_to_log() {
                match note {
                    Note::News(text) => tracing::info!("{text}"),
                    Note::Trouble(text) => tracing::warn!("{text}"),
                }
            }
            if last_shown.elapsed() >= SHOW {
                self.show(&show);
                last_shown = Instant::now();
            }
            if self.releasing.is_some() && self.machine.is_released() {
                // Whoever asked may have gone.
                let _ = self.releasing.take().map(|answer| answer.send(Ok(())));
            }
            if let Some(action) = action {
                let event = match self.perform(action).await {
                    Ok(event) => event,
                    Err(why) => self.failed(why),
                };
                self.machine.handle(now(), event);
                continue;
            }
            let wake = self.wake(last_shown);
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(Request::Want(wanted)) => self.want(*wanted),
                    Some(Request::Good(config)) => self.take_for_good(config),
                    Some(Request::Release(answer)) => match self.machine.release() {
                        Ok(()) => self.releasing = Some(answer),
                        Err(why) => drop(answer.send(Err(why))),
                    },
                    Some(Request::End) | None => return self.finish().await,
                },
                news = news(&mut self.connection) => {
                    let event = match news {
                        Ok(News::Changes { revision, changes }) => Event::Changes { revision, changes },
                        Ok(News::Compacted) => Event::Compacted,
                        Err(why) => self.failed(why),
                    };
                    self.machine.handle(now(), event);
                }
                outcome = saved_table(&mut self.saving) => self.was_saved(outcome),
                () = sleep_until(wake) => {
                    if self.save_at.is_some_and(|at| at <= Instant::now()) {
                        self.save();
                    }
                }
            }
        }
    }

    /// What the node wants to hold. A node that has moved has taken the connection's address with it: waiting for the
    /// connection to fail would take seconds.
    fn want(&mut self, wanted: Wanted) {
        let public = wanted.attributes.endpoint();
        if self.public.replace(public).is_some_and(|old| old != public) {
            self.connection = None;
            self.machine.reconnect(now());
        }
        self.machine.want(wanted);
    }

    /// Keeps a net-conf that was taken up for the next start.
    fn take_for_good(&mut self, config: Arc<[u8]>) {
        if self.good.replace(config.clone()).as_ref() != Some(&config) {
            // Shown and saved, though nothing that the machine knows has changed.
            (self.shown, self.resave) = (u64::MAX, true);
        }
    }

    /// When to look again at the latest.
    fn wake(&self, last_shown: Instant) -> Instant {
        let wait = self.machine.timeout().map(|at| at.saturating_sub(now()));
        let mut wake = Instant::now() + wait.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
        if self.shown != self.signature() {
            wake = wake.min(last_shown + SHOW);
        }
        self.save_at.map_or(wake, |at| wake.min(at))
    }

    async fn perform(&mut self, action: Action) -> Result<Event, String> {
        if action == Action::Connect {
            // The old one is closed first.
            self.connection = None;
            let count = self.store.endpoints.len();
            self.attempts += 1;
            let endpoint = self.store.endpoints[(self.attempts - 1) % count].clone();
            let mut connection = Connection::open(&self.store, &endpoint).await?;
            let event = connection.place().await?;
            self.connection = Some(connection);
            return Ok(event);
        }
        let connection = self.connection.as_mut().ok_or("not connected")?;
        match action {
            Action::Connect => Err("already connected".into()),
            Action::List => connection.list().await,
            Action::Watch { from } => connection.start_watch(from).await,
            Action::Grant { ttl } => connection.grant(ttl).await,
            Action::Write(write) => connection.write(&write).await,
        }
    }

    fn failed(&mut self, why: String) -> Event {
        self.connection = None;
        Event::Failed {
            why: format!("etcd at {}: {why}", self.endpoint()),
        }
    }

    fn endpoint(&self) -> &str {
        let count = self.store.endpoints.len();
        &self.store.endpoints[self.attempts.max(1).wrapping_sub(1) % count]
    }

    /// Changes with everything that others should hear of.
    fn signature(&self) -> u64 {
        let trouble = u64::from(self.machine.outage().is_some());
        self.machine.generation() * 4 + trouble * 2 + u64::from(self.machine.is_up())
    }

    fn show(&mut self, show: &watch::Sender<Seen>) {
        let signature = self.signature();
        let (boot, clock) = (now(), std::time::Instant::now());
        let same = self.shown == signature;
        self.shown = signature;
        let ago = |at: Duration| clock.checked_sub(boot.saturating_sub(at)).unwrap_or(clock);
        let troubles = [self.machine.outage(), self.machine.own_trouble()];
        let troubles = troubles.into_iter().flatten().map(|trouble| Since {
            what: trouble.what.clone(),
            since: ago(trouble.since),
        });
        let troubles: Vec<Since> = troubles.chain(self.unsaved.clone()).collect();
        let outage = self.machine.outage().map(|trouble| ago(trouble.since));
        let ends = self.machine.own_ends();
        let ends = ends.map(|at| clock + at.saturating_sub(boot));
        let figures = self.machine.figures();
        let endpoint = self.endpoint().to_owned();
        if same {
            // Counts move without anybody being woken for them.
            show.send_if_modified(|seen| {
                seen.figures = figures;
                seen.troubles = troubles;
                (seen.outage, seen.ends) = (outage, ends);
                false
            });
            return;
        }
        let view = self.machine.view();
        show.send_replace(Seen {
            config: self.machine.config().map(Arc::from),
            good: self.good.clone(),
            reachable: self.machine.is_up(),
            outage,
            ends,
            from_store: self.machine.has_listed(),
            leases: view.leases.into(),
            own: view.own,
            troubles,
            unreadable: view.unreadable,
            reservations: view.reservations,
            figures,
            endpoint,
            generation: self.machine.generation(),
        });
        // What has not been read from the store is what stands on disk.
        let is_saved = self.saved == self.machine.generation() && !self.resave;
        if self.machine.has_listed() && !is_saved {
            self.save_at.get_or_insert(Instant::now() + SAVE);
        }
    }

    /// Begins to save, unless the last table is still on its way to the disk: a slow one must not hold up the news.
    fn save(&mut self) {
        self.save_at = None;
        let is_saved = self.saved == self.machine.generation() && !self.resave;
        if !self.machine.has_listed() || is_saved {
            return;
        }
        if self.saving.is_some() {
            self.save_at = Some(Instant::now() + SAVE);
            return;
        }
        self.resave = false;
        let generation = self.machine.generation();
        let (path, prefix) = (self.store.saved_table.clone(), self.store.prefix.clone());
        let mut table = self.machine.to_save();
        if let Some(good) = &self.good {
            table.config = Some(good.to_vec());
        }
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let saved = saved::save(&path, &prefix, &table);
            saved.map(|()| generation).map_err(|error| {
                format!(
                    "cannot save the leases to {}: {error}; a start without the store would not know them",
                    path.display()
                )
            })
        }));
    }

    /// Takes note of what became of the last table to be saved.
    fn was_saved(&mut self, outcome: Result<u64, String>) {
        let fault = match outcome {
            Ok(generation) => {
                self.saved = generation;
                None
            }
            Err(what) => {
                self.resave = true;
                self.save_at.get_or_insert(Instant::now() + SAVE_AGAIN);
                Some(what)
            }
        };
        let before = std::mem::replace(
            &mut self.unsaved,
            fault.map(|what| Since {
                what,
                since: std::time::Instant::now(),
            }),
        );
        if before.is_some() != self.unsaved.is_some() {
            self.shown = u64::MAX;
        }
        match (&before, &mut self.unsaved) {
            (Some(before), Some(now)) => now.since = before.since,
            (None, Some(now)) => tracing::warn!("{}", now.what),
            (Some(_), None) => tracing::info!("the leases are saved again"),
            (None, None) => {}
        }
    }

    /// Saves what is not on disk yet, and waits for it.
    async fn finish(mut self) {
        if self.saving.is_some() {
            let outcome = saved_table(&mut self.saving).await;
            self.was_saved(outcome);
        }
        self.save();
        if self.saving.is_some() {
            let outcome = saved_table(&mut self.saving).await;
            self.was_saved(outcome);
        }
    }
}

/// Waits for the table that is on its way to the disk; for ever, if none is.
async fn saved_table(saving: &mut Option<Saving>) -> Result<u64, String> {
    let Some(task) = saving else {
        return std::future::pending().await;
    };
    let outcome = task.await;
    *saving = None;
    outcome.unwrap_or_else(|error| Err(error.to_string()))
}

async fn news(connection: &mut Option<Connection>) -> Result<News, String> {
    match connection {
        Some(connection) => connection.news().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// Every file of Rust below this folder.
    fn sources(folder: PathBuf) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let of = |path: PathBuf| match path.is_dir() {
            true => sources(path),
            false => vec![path],
        };
        entries.flat_map(|entry| of(entry.path())).collect()
    }

    /// A lease lives by the time that passes. Whoever sets the clock, by a day forward or back, changes nothing: it is
    /// never asked.
    #[test]
    fn no_clock_is_read_that_people_can_set() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/lease");
        let sources = sources(folder);
        assert!(sources.len() > 10, "{sources:?}");
        // Parted, so that this file does not find itself.
        let clocks = [
            ["System", "Time"],
            ["UNIX_", "EPOCH"],
            ["CLOCK_", "REALTIME"],
            ["gettime", "ofday"],
        ];
        for source in sources {
            let text = fs::read_to_string(&source).unwrap();
            for clock in clocks.map(|parts| parts.concat()) {
                assert!(!text.contains(&clock), "{clock} in {}", source.display());
            }
        }
        let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        let passed = super::now().checked_sub(boot.into());
        assert!(passed.is_some_and(|passed| passed.as_secs() < 60));
    }
}
