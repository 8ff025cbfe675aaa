//! The `overlayd` command.

fn main() -> std::process::ExitCode {
    overlayd::cli::main()
}
