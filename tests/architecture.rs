//! The import rule of ARCHITECTURE.md: a module imports only from rows below its own.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read the sources must fail"
)]

use std::{collections::BTreeSet, fs, path::Path};

/// The rows, lowest first; modules of one row are strangers to each other.
const ROWS: &[&[&str]] = &[
    &["job", "shutdown"],
    &["config", "metrics"],
    &["broker", "store", "prompt", "batching", "telemetry"],
    &["cache", "engine"],
    &["routing", "api"],
    &["worker"],
    &["fleet"],
    &["cli"],
];

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|modules| modules.contains(&module))
}

/// The modules of this crate that a source file names after `crate::` or within `use crate::{…}`.
fn imports(source: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut word, mut is_head) = (0_i32, String::new(), true);
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && is_head && (c.is_alphanumeric() || c == '_') {
                    word.push(c);
                } else if !word.is_empty() {
                    found.insert(std::mem::take(&mut word));
                    is_head = false;
                }
                if depth == 0 && c == ',' {
                    is_head = true;
                }
            }
            found.extend((!word.is_empty()).then_some(word));
        } else {
            found.insert(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every import of every module points to a lower row.
#[test]
fn imports_point_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let own = row(module)
            .unwrap_or_else(|| panic!("module {module} has no row; give it one in this test"));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            checked += 1;
            match row(&import) {
                _ if import == module => {}
                Some(other) if other < own => {}
                _ => wrong.push(format!("{} imports {import}", relative.display())),
            }
        }
    }
    assert!(
        checked > 100,
        "only {checked} imports were found: the reader is broken"
    );
    assert!(
        wrong.is_empty(),
        "imports against the rows:\n{}",
        wrong.join("\n")
    );
}

/// The reader of imports finds nested groups, so the rule cannot pass by blindness.
#[test]
fn the_reader_sees_nested_imports() {
    let source = "use crate::{\n    broker::{Broker, letters::{WireMessage}},\n    job::Tier,\n    store,\n};\nfn f() { crate::cli::x() }";
    let found: Vec<_> = imports(source).into_iter().collect();
    assert_eq!(found, ["broker", "cli", "job", "store"]);
}
