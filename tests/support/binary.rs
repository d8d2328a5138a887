//! The built `promptyard`, and signals to its processes.

use std::process::Command;

/// The command without arguments; nothing in this process's environment configures it.
pub fn promptyard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptyard"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PROMPTYARD_")) {
        command.env_remove(name);
    }
    command
}

/// Sends a signal, such as `TERM`, to a process that must exist.
pub fn signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args(["-s", name, &process.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
}
