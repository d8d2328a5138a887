//! Printing of results, for people or as JSON.

use std::process::ExitCode;

use comfy_table::CellAlignment;
use serde_json::Value;

use crate::console::{table, terminal::print_line};

/// Prints a result as JSON or as text.
pub(super) fn print(
    as_json: bool,
    json: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> anyhow::Result<ExitCode> {
    print_line(&if as_json { json().to_string() } else { text() })?;
    Ok(ExitCode::SUCCESS)
}

/// A table whose columns are right-aligned, except the first.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = table::table(&header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A share as a percentage with one decimal.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
