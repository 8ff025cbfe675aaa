//! Going before other programs while a stream comes in.
//!
//! A thread that writes superpackets to the device wakes their reader with each of them. Where both share a processor, the
//! reader, which waited, takes it at once, finds one superpacket, answers it, and sleeps again: two changes of program
//! and an answer for each. A little more weight than the reader's lets the thread finish its batch first; the reader then
//! finds all of it, and answers once.
//!
//! Only for streams: before a program that *sends*, the same weight makes every packet a batch of its own.

use std::io;
use std::thread;

use crate::sys::sched;

/// Turns in a row that must be of the other kind before the nice value is changed: it is a system call.
const TURNS: u8 = 8;

/// The nice value of one forwarding thread.
#[derive(Debug)]
pub struct Precedence {
    usual: i32,
    streaming: i32,
    /// Is it `streaming` now?
    raised: bool,
    /// Turns of the other kind since the last one that fits.
    against: u8,
}

impl Precedence {
    /// For the calling thread: `nice` while streams come in, unless that is more than it has anyway.
    pub fn new(nice: i32) -> Self {
        let usual = sched::nice().unwrap_or(0);
        Precedence {
            usual,
            streaming: nice.min(usual),
            raised: false,
            against: 0,
        }
    }

    /// The thread took its turn: with superpackets of streams that came in, or with nothing but what goes out, single packets
    /// and answers.
    pub fn turned(&mut self, stream: bool) {
        if stream == self.raised {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against < TURNS {
            return;
        }
        self.against = 0;
        self.raised = stream;
        if self.streaming != self.usual {
            let nice = if stream { self.streaming } else { self.usual };
            // Whether the kernel allows it was asked at start; without, it is as before.
            let _ = sched::set_nice(nice);
        }
    }
}

/// Does the kernel let a thread of this process have this nice value? Tried by one that does nothing else.
///
/// # Errors
/// EACCES without CAP_SYS_NICE; EAGAIN if there can be no more threads.
pub fn probe(nice: i32) -> io::Result<()> {
    let tried = thread::Builder::new().spawn(move || {
        let usual = sched::nice()?;
        sched::set_nice(nice.min(usual))
    })?;
    tried
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that tried panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, whose nice value may change: towards 19, for which nobody needs a privilege.
    fn alone(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_nice_value_is_that_of_one_thread() {
        let before = sched::nice().unwrap();
        alone(move || {
            sched::set_nice(before + 1).unwrap();
            assert_eq!(sched::nice().unwrap(), before + 1);
        });
        assert_eq!(sched::nice().unwrap(), before);
    }

    #[test]
    fn changes_after_some_turns_of_the_other_kind_in_a_row() {
        alone(|| {
            let base = sched::nice().unwrap();
            let mut precedence = Precedence {
                usual: base,
                streaming: base + 1,
                raised: false,
                against: 0,
            };
            let mut raised_after = |turns: &[bool]| {
                for stream in turns {
                    precedence.turned(*stream);
                }
                precedence.raised
            };
            assert!(!raised_after(&[true; 7]));
            assert!(!raised_after(&[false]), "not in a row");
            assert!(!raised_after(&[true; 7]));
            assert_eq!(sched::nice().unwrap(), base);
            assert!(raised_after(&[true]));
            assert_eq!(sched::nice().unwrap(), base + 1);
            assert!(raised_after(&[true; 100]));
            assert!(raised_after(&[false; 7]));
            assert!(raised_after(&[true]));
            // Back needs the privilege, so only what was wanted is looked at.
            assert!(!raised_after(&[false; 8]));
        });
    }

    #[test]
    fn never_less_than_the_thread_has_anyway() {
        alone(|| {
            let base = sched::nice().unwrap();
            let mut precedence = Precedence::new(19);
            (0..20).for_each(|_| precedence.turned(true));
            assert_eq!(sched::nice().unwrap(), base);
            probe(19).unwrap();
        });
    }
}
