//! The configuration as text.

use super::sections::Config;

impl Config {
    /// The configuration as TOML with a comment for each field and every secret masked.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for name in Self::SECTIONS {
            let section = self.section(name).expect("SECTIONS names sections");
            text.push_str(&format!("[{name}]\n"));
            for field in section.fields() {
                text.push_str(&format!("# {} ({})\n", field.doc.trim(), field.expected));
                match section.show(field.name) {
                    Some(value) => text.push_str(&format!("{} = {value}\n", field.name)),
                    None => text.push_str(&format!("# {} is not set\n", field.name)),
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fmt::Write as _, fs, path::Path};

    use super::*;

    /// Every setting as a page of documentation.
    fn markdown() -> String {
        let config = Config::default();
        let mut page = String::from(PREAMBLE);
        for name in Config::SECTIONS {
            let section = config.section(name).expect("SECTIONS names sections");
            let cell = |text: &str| text.trim().replace('|', "\\|");
            let doc = section.doc().trim();
            write!(page, "\n## `[{name}]`\n\n{doc}\n\n").expect("strings grow");
            page.push_str("| setting | default | accepts | meaning |\n|---|---|---|---|\n");
            for field in section.fields() {
                let default = section.show(field.name);
                let default = default.map_or("–".to_owned(), |value| format!("`{value}`"));
                let (accepts, doc) = (cell(field.expected), cell(field.doc));
                let row = format!("| `{}` | {default} | {accepts} | {doc} |\n", field.name);
                page.push_str(&row);
            }
        }
        page
    }

    const PREAMBLE: &str = "# Settings\n
<!-- Written by a test from the declarations in src/config/sections.rs:
     UPDATE_DOCS=1 cargo test --lib config::show -->\n
Defaults < file (`--config promptyard.toml`) < environment < flags (`--set section.name=value`). The
variable of `router.threshold` is `PROMPTYARD_ROUTER_THRESHOLD`; the same name with `_FILE` at its end
names a file that holds the value, as secret stores provide it. Unknown names are errors.
`promptyard config check` reports every error at once; `promptyard config show` prints the settings in
effect, without secrets, as a file that can be loaded. Units end a name: `_ms`, `_s`, `_bytes`,
`_tokens`.\n";

    #[test]
    fn the_settings_page_matches_the_declarations() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
        let page = markdown();
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, &page).expect("docs/ is writable");
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == page,
            "docs/settings.md is outdated: UPDATE_DOCS=1 cargo test --lib config::show"
        );
    }
}
