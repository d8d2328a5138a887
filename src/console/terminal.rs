//! Lines on standard output and standard error.

use std::io::{self, Write};

/// Writes a line to standard output.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Writes a line to standard error; failing to write it is ignored.
pub fn eprint_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
