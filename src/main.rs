//! The `promptyard` command.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    promptyard::cli::main().await
}
