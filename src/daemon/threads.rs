//! The forwarding threads: plain OS threads, started together and stopped together.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::anyhow;
use tokio::sync::mpsc;

use crate::datapath::stop::Stop;

/// A thread's work, until it is told to stop.
pub(super) type Work = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Threads that forward.
pub(super) struct Threads {
    stop: Arc<Stop>,
    running: Vec<JoinHandle<io::Result<()>>>,
    ended: mpsc::UnboundedReceiver<()>,
}

/// Says that a thread has ended, by whatever way.
struct Farewell(mpsc::UnboundedSender<()>);

impl Drop for Farewell {
    fn drop(&mut self) {
        // Nobody listens any more if all are being stopped.
        let _ = self.0.send(());
    }
}

impl Threads {
    /// Starts a thread for each piece of work, which heeds `stop`.
    pub(super) fn start(
        stop: Arc<Stop>,
        works: impl IntoIterator<Item = (String, Work)>,
    ) -> io::Result<Self> {
        let (sender, ended) = mpsc::unbounded_channel();
        let mut threads = Threads {
            stop,
            running: Vec::new(),
            ended,
        };
        for (name, work) in works {
            let farewell = Farewell(sender.clone());
            let run = move || {
                let _farewell = farewell;
                work()
            };
            match thread::Builder::new().name(name).spawn(run) {
                Ok(thread) => threads.running.push(thread),
                Err(error) => {
                    // Those that run already are not to go on alone.
                    let _ = threads.join();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// Waits until one of them has ended, which none should.
    pub(super) async fn one_ended(&mut self) {
        self.ended.recv().await;
    }

    /// Stops all and waits for them: the first error that one of them ended with.
    pub(super) fn join(self) -> anyhow::Result<io::Result<()>> {
        self.stop.give()?;
        let mut outcome = Ok(());
        for thread in self.running {
            let ended = thread
                .join()
                .map_err(|_| anyhow!("a forwarding thread panicked"))?;
            outcome = outcome.and(ended);
        }
        Ok(outcome)
    }
}
