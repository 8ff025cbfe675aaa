//! Repairs the kernel's state until it is as it shall be, counts what others undid, and does not fight over it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::kernel::reconcile::{Actual, Desired, Fault, Held, Ledger, Object, Plan, Repair, diff};
use crate::kernel::{Netlink, RouteSpec};

/// Announcements of the kernel come in crowds: how long the first waits for the others.
pub(super) const SETTLE: Duration = Duration::from_millis(30);
/// From one look to the next at least, however much is announced.
pub(super) const PAUSE: Duration = Duration::from_millis(150);
/// How often the host is looked at without being told to: what the kernel does not announce, and what it refused.
pub(super) const POLL: Duration = Duration::from_secs(5);

/// One repair may make room for another (a device that is up can have routes), but this often it is enough.
const ROUNDS: usize = 4;
/// Repairs that are logged one by one for one look; more are only counted.
const MOST_LINES: usize = 8;
/// Repairs that status lists.
const MOST_RECENT: usize = 8;

/// What the kernel's state was brought to, over time.
#[derive(Default)]
pub(super) struct Reconciler {
    held: Arc<Held>,
    desired: Arc<Desired>,
    ledger: Ledger,
    report: Report,
}

/// What there is to say about it.
#[derive(Clone, Default)]
pub(super) struct Report {
    /// What this run brought about.
    pub(super) held: Arc<Held>,
    /// What shall be.
    pub(super) desired: Arc<Desired>,
    /// What cannot be mended, or is left alone, and why.
    pub(super) faults: Vec<(Object, String)>,
    /// How often something was mended that others had undone.
    pub(super) repairs: u64,
    /// The last of these, the newest last.
    pub(super) recent: VecDeque<(Instant, String)>,
    /// When to look again because something is left alone until then.
    pub(super) again: Option<Instant>,
}

impl Report {
    /// Is it a fault of the device or of what leads into it, without which nothing is carried?
    pub(super) fn of_device(&self) -> impl Iterator<Item = &String> {
        let device = self.desired.device.as_ref().map(|device| device.index);
        let into_device: HashSet<_> = self
            .desired
            .routes
            .iter()
            .filter(|spec| Some(spec.oif) == device)
            .map(|spec| spec.dst)
            .collect();
        let concerns = move |object: &Object| match object {
            Object::Route(prefix) => into_device.contains(prefix),
            _ => true,
        };
        let faults = self.faults.iter();
        faults.filter_map(move |(object, fault)| concerns(object).then_some(fault))
    }
}

impl Reconciler {
    pub(super) fn report(&self) -> Report {
        Report {
            held: self.held.clone(),
            desired: self.desired.clone(),
            ..self.report.clone()
        }
    }

    /// Makes the host as `desired` says, as far as that can be done; `actual` is how it is. Says whether the device is
    /// there.
    pub(super) async fn run(
        &mut self,
        netlink: &Netlink,
        desired: Desired,
        mut actual: Actual,
    ) -> bool {
        let changed = *self.desired != desired;
        self.desired = Arc::new(desired);
        let desired = self.desired.clone();
        let mut faults = Vec::new();
        let mut lines = Vec::new();
        let mut is_there = true;
        for round in 0..ROUNDS {
            if round > 0 {
                actual = match netlink.actual().await {
                    Ok(actual) => actual,
                    Err(error) => {
                        tracing::warn!("{error}");
                        break;
                    }
                };
            }
            let plan = diff(&desired, &actual, &self.held);
            is_there = !plan.faults.contains(&Fault::DeviceGone);
            let mut fails: HashSet<Object> = HashSet::new();
            faults = told(&plan, &actual);
            let mut done = 0;
            for repair in &plan.repairs {
                match self.repair(netlink, repair, &actual).await {
                    Done::Now(line) => {
                        lines.push(line);
                        done += 1;
                    }
                    Done::Not(fault) => {
                        fails.insert(repair.object());
                        faults.extend(fault.map(|fault| (repair.object(), fault)));
                    }
                }
            }
            if done > 0 || changed || !faults.is_empty() {
                fails.extend(faults.iter().map(|(object, _)| *object));
                Arc::make_mut(&mut self.held).learn(&desired, &fails);
            }
            if done == 0 {
                break;
            }
        }
        log(&lines);
        self.conclude(faults);
        is_there
    }

    async fn repair(&mut self, netlink: &Netlink, repair: &Repair, actual: &Actual) -> Done {
        let (object, undone, now) = (repair.object(), self.held.had(repair), Instant::now());
        if undone && !self.ledger.allows(object, now) {
            return Done::Not(None);
        }
        match netlink.repair(repair).await {
            Err(error) => Done::Not(Some(error.to_string())),
            Ok(()) => {
                let what = repair.tell(actual);
                if undone {
                    self.count(object, what.clone(), now);
                }
                let level = match repair {
                    _ if undone => Level::WARN,
                    Repair::DelRoute(_) | Repair::DelAddress(..) => Level::INFO,
                    _ => Level::DEBUG,
                };
                Done::Now(Line { what, level })
            }
        }
    }

    fn count(&mut self, object: Object, what: String, now: Instant) {
        self.ledger.note(object, now);
        let Report {
            repairs, recent, ..
        } = &mut self.report;
        *repairs += 1;
        recent.push_back((now, what));
        if recent.len() > MOST_RECENT {
            recent.pop_front();
        }
    }

    /// May a device that somebody removed be made again now?
    pub(super) fn may_reopen(&self) -> bool {
        self.ledger.allows(Object::Device, Instant::now())
    }

    /// The device was made again, because somebody had removed it.
    pub(super) fn reopened(&mut self, name: &str) {
        Arc::make_mut(&mut self.held).forget_device();
        let what = format!("made the device {name} again, which somebody had removed");
        tracing::warn!("repaired: {what}");
        self.count(Object::Device, what, Instant::now());
    }

    fn conclude(&mut self, mut faults: Vec<(Object, String)>) {
        let now = Instant::now();
        let contested = self.ledger.contested(now);
        let paused = contested.iter().filter(|(_, until)| *until > now);
        self.report.again = paused.map(|(_, until)| *until).min();
        for (object, until) in contested {
            let left = until.saturating_duration_since(now);
            let what = if left.is_zero() {
                "it is being watched".to_owned()
            } else {
                format!("it is left alone for {} s", left.as_secs() + 1)
            };
            faults.push((
                object,
                format!(
                    "somebody keeps undoing {object}, more than 10 times a minute: {what}; find the other program (`ip monitor` shows what it does) and stop one of the two"
                ),
            ));
        }
        let known: HashSet<_> = self
            .report
            .faults
            .iter()
            .map(|(o, text)| (o, kind(text)))
            .collect();
        let new = faults
            .iter()
            .filter(|(o, text)| !known.contains(&(o, kind(text))));
        for (_, fault) in new.take(MOST_LINES) {
            tracing::error!("{fault}");
        }
        self.report.faults = faults;
    }

    /// Takes away what does not go with the device: routes to peers.
    pub(super) async fn withdraw(&mut self, netlink: &Netlink) {
        let routes: Vec<RouteSpec> = self.held.outliving().cloned().collect();
        for route in routes {
            match netlink.repair(&Repair::DelRoute(route)).await {
                Ok(()) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }
}

/// What became of one repair.
enum Done {
    Now(Line),
    /// Refused, or left alone because somebody keeps undoing it.
    Not(Option<String>),
}

struct Line {
    what: String,
    level: Level,
}

/// What is told of a fault once, though numbers in it change.
fn kind(fault: &str) -> &str {
    fault.split(": it is ").next().unwrap_or(fault)
}

fn told(plan: &Plan, actual: &Actual) -> Vec<(Object, String)> {
    plan.faults
        .iter()
        .map(|fault| {
            let object = match fault {
                Fault::DeviceGone => Object::Device,
                Fault::Taken(spec, _) => Object::Route(spec.dst),
            };
            (object, fault.tell(actual))
        })
        .collect()
}

fn log(lines: &[Line]) {
    for Line { what, level } in lines.iter().take(MOST_LINES) {
        match *level {
            Level::WARN => tracing::warn!("repaired what somebody undid: {what}"),
            Level::INFO => tracing::info!("{what}"),
            _ => tracing::debug!("{what}"),
        }
    }
    let rest = lines.iter().skip(MOST_LINES);
    let told = rest.filter(|line| line.level != Level::DEBUG).count();
    if told > 0 {
        tracing::info!("and {told} more of the kind");
    }
}
