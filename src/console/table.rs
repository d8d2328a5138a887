//! Tables for people.

use comfy_table::{Table, presets::NOTHING};

/// A table without lines, as other command-line tools print them.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}
