//! Plain-text tables and lists.

use std::process::ExitCode;

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value;

use super::terminal::{eprint_line, print_line};

/// A table without borders.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// How a command lists rows.
#[derive(Debug)]
pub struct Listing<const N: usize> {
    /// Column titles.
    pub header: [&'static str; N],
    /// Message instead of an empty table.
    pub empty: &'static str,
}

impl<const N: usize> Listing<N> {
    /// Prints rows as JSON lines or as a table.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print<T>(
        &self,
        rows: &[T],
        as_json: bool,
        to_json: impl Fn(&T) -> Value,
        cells: impl Fn(&T) -> [String; N],
    ) -> anyhow::Result<ExitCode> {
        if as_json {
            for row in rows {
                print_line(&to_json(row).to_string())?;
            }
        } else if rows.is_empty() {
            eprint_line(self.empty);
        } else {
            let mut table = table(&self.header);
            table.add_rows(rows.iter().map(cells));
            print_line(&table.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
