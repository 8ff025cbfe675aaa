//! Makes a bed of one node with a daemon, says so in one line (`up: PREFIX PID`), and waits to be killed.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use integration::bed::{Backend, Bed, Underlay};

fn main() -> io::Result<()> {
    let bed = Bed::new(1, Underlay::V4);
    let daemons = bed.start(Backend::Udp);
    writeln!(io::stdout(), "up: {} {}", bed.prefix(), daemons[0].pid())?;
    thread::sleep(Duration::from_secs(30));
    Ok(())
}
