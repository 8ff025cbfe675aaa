//! The `overlayd` command.

fn main() {}
