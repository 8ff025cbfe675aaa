//! `overlayd routes`: which routes the daemon wants in the kernel, and how each stands.

use std::fs;
use std::path::Path;

use super::{Exit, ask, say};
use crate::kernel::ROUTE_PROTOCOL;
use crate::observe::routes::Routes;

pub(super) fn main(args: &ask::Args) -> Exit {
    let (answer, routes): (_, Routes) = match ask::document(&args.socket, "routes") {
        Ok(answer) => answer,
        Err(exit) => return exit,
    };
    if args.json {
        say(format_args!("{answer:#}"));
    } else {
        say(routes.to_text().trim_end());
        if !routes.routes.is_empty() && !is_named() {
            tell!(
                "\n`ip route` shows these as `proto {ROUTE_PROTOCOL}`; to see `proto overlayd`: \
                 mkdir -p /etc/iproute2/rt_protos.d && echo '{ROUTE_PROTOCOL} overlayd' > /etc/iproute2/rt_protos.d/overlayd.conf"
            );
        }
    }
    if routes.is_well() {
        Exit::Ok
    } else {
        Exit::Degraded
    }
}

/// Does iproute2 have a name for our protocol?
fn is_named() -> bool {
    let names = |text: &str| {
        let mut words = text.lines().map(str::split_whitespace);
        words.any(|mut words| words.next() == Some(&ROUTE_PROTOCOL.to_string()))
    };
    let reads = |path: &Path| fs::read_to_string(path).is_ok_and(|text| names(&text));
    let folders = ["/etc/iproute2", "/usr/share/iproute2", "/usr/lib/iproute2"];
    folders.iter().map(Path::new).any(|folder| {
        let more = fs::read_dir(folder.join("rt_protos.d"));
        reads(&folder.join("rt_protos"))
            || more.is_ok_and(|more| more.flatten().any(|entry| reads(&entry.path())))
    })
}
