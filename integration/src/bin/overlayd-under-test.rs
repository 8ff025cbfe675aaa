//! The `overlayd` command, built as a binary of this package, so that its tests always find the one just built.

fn main() -> std::process::ExitCode {
    overlayd::cli::main()
}
