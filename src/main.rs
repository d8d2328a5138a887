//! The `promptyard` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    promptyard::cli::main()
}
