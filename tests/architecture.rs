//! The import rules of ARCHITECTURE.md: a module imports only from rows below its own, router and
//! worker meet only through the broker, and no files import each other in a circle.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read the sources must fail"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The rows, lowest first; modules of one row do not import each other.
const ROWS: &[&[&str]] = &[
    &["clock", "job", "shutdown"],
    &["config", "metrics", "scoring"],
    &["broker", "store", "prompt", "batching", "telemetry"],
    &["cache", "engine", "affinity"],
    &["router", "api", "worker"],
    &["fleet"],
    &["console"],
    &["bench"],
    &["cli"],
];

/// Every import of every module, its tests included, points to a lower row.
#[test]
fn imports_point_downwards() {
    let imports = module_imports(&Sources::read(Tests::Kept));
    let row = |module: &str| {
        ROWS.iter()
            .position(|modules| modules.contains(&module))
            .unwrap_or_else(|| panic!("module {module} has no row; give it one in this test"))
    };
    assert!(imports.len() > 100, "the reader finds too few imports");
    let wrong: Vec<_> = imports
        .iter()
        .filter(|import| row(&import.to) >= row(&import.from))
        .map(|import| format!("{} imports {}", import.file, import.to))
        .collect();
    assert!(
        wrong.is_empty(),
        "imports against the rows:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn router_and_worker_meet_only_through_the_broker() {
    for import in module_imports(&Sources::read(Tests::Kept)) {
        let ends = (import.from.as_str(), import.to.as_str());
        assert!(
            !matches!(ends, ("router", "worker") | ("worker", "router")),
            "{} imports {}",
            import.file,
            import.to
        );
    }
}

#[test]
fn scoring_imports_only_job() {
    for import in module_imports(&Sources::read(Tests::Kept)) {
        assert!(
            import.from != "scoring" || import.to == "job",
            "{} imports {}",
            import.file,
            import.to
        );
    }
}

/// No files import each other, directly or in a longer loop. Tests within a file do not count, nor
/// does a parent that only re-exports what its children define.
#[test]
fn no_file_circles() {
    let circles = Sources::read(Tests::Dropped).circles();
    let found: Vec<_> = circles
        .iter()
        .map(|circle| {
            format!(
                "{}\n  {}",
                circle.files.join(" "),
                circle.imports.join("\n  ")
            )
        })
        .collect();
    assert!(
        found.is_empty(),
        "{} circles of files:\n{}",
        found.len(),
        found.join("\n")
    );
}

/// The reader follows groups, aliases, inline paths, child modules and re-exports.
#[test]
fn the_reader_finds_every_kind_of_import() {
    let sources = Sources::of(
        &[
            ("lib.rs", "mod a; mod b;"),
            (
                "a/mod.rs",
                "mod one; mod two; pub use one::{One, Uno as First};",
            ),
            (
                "a/one.rs",
                "use crate::{b::{self, Deep}, a::two}; fn f() { two::g(); b::h() }",
            ),
            (
                "a/two.rs",
                r#"// use crate::b::Commented;
                /* crate::b::nested /* */ */
                const T: (&str, char) = ("crate::b::x", '"');
                fn g<'a>() -> super::First { r" \" ; '{'; todo!() }
                #[cfg(test)] mod tests { use crate::b::Tested; }"#,
            ),
            ("b.rs", "pub struct Deep;"),
        ],
        Tests::Dropped,
    );
    let found: Vec<_> = sources
        .imports()
        .into_iter()
        .flat_map(|(from, to)| to.into_iter().map(move |to| format!("{from} > {to}")))
        .collect();
    assert_eq!(
        found,
        [
            "a/one.rs > a/two.rs",
            "a/one.rs > b.rs",
            "a/two.rs > a/one.rs"
        ]
    );
    assert_eq!(sources.circles()[0].files, ["a/one.rs", "a/two.rs"]);
}

/// Whether code under `#[cfg(test)]` is read.
#[derive(Clone, Copy, PartialEq)]
enum Tests {
    Kept,
    Dropped,
}

/// An import from one top-level module into another.
struct ModuleImport {
    file: String,
    from: String,
    to: String,
}

fn module_imports(sources: &Sources) -> Vec<ModuleImport> {
    let module = |file: &str| {
        file.split('/')
            .next()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned()
    };
    let mut found = Vec::new();
    for (file, targets) in sources.imports() {
        let from = module(&file);
        let modules: BTreeSet<_> = targets.iter().map(|target| module(target)).collect();
        for to in modules {
            if to != from && to != "lib" && !matches!(from.as_str(), "lib" | "main") {
                let file = file.clone();
                let from = from.clone();
                found.push(ModuleImport { file, from, to });
            }
        }
    }
    found
}

/// Files that import each other, and the imports among them.
struct Circle {
    files: Vec<String>,
    imports: Vec<String>,
}

/// One file: its module path, the names it imports, and every path it mentions, made absolute.
struct Source {
    module: Vec<String>,
    names: BTreeMap<String, Vec<String>>,
    mentions: Vec<Vec<String>>,
}

struct Sources {
    files: BTreeMap<String, Source>,
    /// Module path to file name.
    modules: BTreeMap<Vec<String>, String>,
}

impl Sources {
    fn read(tests: Tests) -> Self {
        fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                    found.push((name.replace('\\', "/"), fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        walk(&root, &root, &mut files);
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        Self::of(&files, tests)
    }

    fn of(files: &[(&str, &str)], tests: Tests) -> Self {
        let mut modules = BTreeMap::new();
        for (name, _) in files.iter().filter(|(name, _)| *name != "main.rs") {
            modules.insert(module_path(name), (*name).to_owned());
        }
        let mut sources = BTreeMap::new();
        let mut test_files = BTreeSet::new();
        for (name, text) in files {
            let mut tokens = tokens(text);
            if tests == Tests::Dropped {
                test_files.extend(drop_tests(&mut tokens, name));
            }
            sources.insert((*name).to_owned(), Source::read(name, &tokens, &modules));
        }
        sources.retain(|name, _| !test_files.contains(name));
        Self {
            files: sources,
            modules,
        }
    }

    /// The file that defines what an absolute path names; none for a module or a foreign path.
    fn resolve(&self, path: &[String], depth: usize) -> Option<&str> {
        if depth > 16 {
            return None;
        }
        let mut length = path.len();
        while !self.modules.contains_key(&path[..length]) {
            length = length.checked_sub(1)?;
        }
        let file = &self.modules[&path[..length]];
        let name = path.get(length)?;
        match self
            .files
            .get(file)
            .and_then(|source| source.names.get(name))
        {
            Some(target) if target[..] != path[..=length] => {
                let target: Vec<_> = target.iter().chain(&path[length + 1..]).cloned().collect();
                self.resolve(&target, depth + 1)
            }
            _ => Some(file),
        }
    }

    /// For every file, the other files whose items it uses.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.files
            .iter()
            .map(|(file, source)| {
                let targets = source
                    .mentions
                    .iter()
                    .filter_map(|path| self.resolve(path, 0))
                    .filter(|target| target != file && self.files.contains_key(*target))
                    .map(str::to_owned)
                    .collect();
                (file.clone(), targets)
            })
            .collect()
    }

    /// The strongly connected components of two files or more.
    fn circles(&self) -> Vec<Circle> {
        let imports = self.imports();
        let reach: BTreeMap<&String, BTreeSet<&String>> = imports
            .keys()
            .map(|start| {
                let mut seen = BTreeSet::new();
                let mut open = vec![start];
                while let Some(file) = open.pop() {
                    open.extend(imports[file].iter().filter(|next| seen.insert(*next)));
                }
                (start, seen)
            })
            .collect();
        let mut done = BTreeSet::<&String>::new();
        let mut circles = Vec::new();
        for (file, reached) in &reach {
            if !reached.contains(file) || done.contains(file) {
                continue;
            }
            let files: Vec<String> = reached
                .iter()
                .filter(|other| reach[*other].contains(file))
                .map(|other| (*other).clone())
                .collect();
            done.extend(reached.iter().filter(|other| files.contains(other)));
            let imports = files
                .iter()
                .flat_map(|from| imports[from].iter().map(move |to| (from, to)))
                .filter(|(_, to)| files.contains(to))
                .map(|(from, to)| format!("{from} imports {to}"))
                .collect();
            circles.push(Circle { files, imports });
        }
        circles
    }
}

/// `a/mod.rs` and `a.rs` are module `a`; `lib.rs` is the root.
fn module_path(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let segments = path.split('/').filter(|segment| *segment != "lib");
    segments.map(str::to_owned).collect()
}

impl Source {
    fn read(file: &str, tokens: &[String], modules: &BTreeMap<Vec<String>, String>) -> Self {
        let mut source = Self {
            module: module_path(file),
            names: BTreeMap::new(),
            mentions: Vec::new(),
        };
        let (mut uses, mut paths) = (Vec::new(), Vec::new());
        // The modules written in the file around the present token, with their depth of braces.
        let (mut inline, mut depth) = (Vec::<(String, usize)>::new(), 0);
        let mut at = 0;
        while at < tokens.len() {
            let token = tokens[at].as_str();
            let next = tokens.get(at + 1).map_or("", String::as_str);
            let scope = || {
                let inline = inline.iter().map(|(name, _)| name.clone());
                source
                    .module
                    .iter()
                    .cloned()
                    .chain(inline)
                    .collect::<Vec<_>>()
            };
            match token {
                "mod" if tokens.get(at + 2).is_some_and(|open| open == "{") => {
                    inline.push((next.to_owned(), depth));
                    at += 1;
                }
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    inline.pop_if(|(_, opened)| *opened == depth);
                }
                "use" => {
                    let is_public = at > 0 && matches!(tokens[at - 1].as_str(), "pub" | ")");
                    let mut tree = Vec::new();
                    at = use_tree(tokens, at + 1, &[], &mut tree);
                    for (path, name) in tree {
                        uses.push((scope(), path, name, is_public, inline.is_empty()));
                    }
                }
                _ if next == "::" && is_word(token) && (at == 0 || tokens[at - 1] != "::") => {
                    let mut path = vec![token.to_owned()];
                    while tokens.get(at + 1).is_some_and(|token| token == "::")
                        && tokens.get(at + 2).is_some_and(|token| is_word(token))
                    {
                        path.push(tokens[at + 2].clone());
                        at += 2;
                    }
                    paths.push((scope(), path));
                }
                _ => {}
            }
            at += 1;
        }
        for (scope, path, name, is_public, is_of_file) in uses {
            let Some(path) = absolute(&scope, &path, modules) else {
                continue;
            };
            let count = tokens.iter().filter(|token| **token == name).count();
            // A re-export that the file does not use is no import.
            if !is_public || count > 1 {
                source.mentions.push(path.clone());
            }
            if is_of_file {
                source.names.insert(name, path);
            }
        }
        for (scope, mut path) in paths {
            if let Some(imported) = source.names.get(&path[0]) {
                path.splice(..1, imported.iter().cloned());
                source.mentions.push(path);
            } else {
                source.mentions.extend(absolute(&scope, &path, modules));
            }
        }
        source
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// A path within this crate as seen from its root; none for a foreign one.
fn absolute(
    scope: &[String],
    path: &[String],
    modules: &BTreeMap<Vec<String>, String>,
) -> Option<Vec<String>> {
    let mut base = scope.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        child => {
            base.push(child.to_owned());
            let is_child = modules.contains_key(&base);
            base.pop();
            if !is_child {
                return None;
            }
        }
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// Reads one branch of a `use` from `at`; returns where it ends: at `,`, `}` or `;`.
fn use_tree(
    tokens: &[String],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, String)>,
) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens[at].as_str() {
            "{" => loop {
                at = use_tree(tokens, at + 1, &path, found);
                if tokens[at] == "}" {
                    // The `}` of the group; the branch ends behind it.
                    return at + 1;
                }
            },
            "as" => {
                found.push((path, tokens[at + 1].clone()));
                return at + 2;
            }
            "," | "}" | ";" => {
                if path.len() > prefix.len() {
                    if path.len() > 1 {
                        path.pop_if(|last| last == "self");
                    }
                    let name = path.last().cloned().unwrap_or_default();
                    found.push((path, name));
                }
                return at;
            }
            "::" => {}
            segment => path.push(segment.to_owned()),
        }
        at += 1;
    }
}

/// The words and signs of a source, without comments and with every literal as `""`.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let is = |at: usize, c: char| chars.get(at) == Some(&c);
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        match chars[at] {
            '/' if is(at + 1, '/') => {
                while at < chars.len() && !is(at, '\n') {
                    at += 1;
                }
            }
            '/' if is(at + 1, '*') => {
                let mut depth = 0;
                loop {
                    match (chars[at], chars.get(at + 1)) {
                        ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
                        ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            'r' if is(at + 1, '"') || (is(at + 1, '#') && (is(at + 2, '"') || is(at + 2, '#'))) => {
                let marks = chars[at + 1..].iter().take_while(|c| **c == '#').count();
                let end: Vec<char> = std::iter::once('"')
                    .chain(std::iter::repeat_n('#', marks))
                    .collect();
                at += marks + 2;
                while !chars[at..].starts_with(&end) {
                    at += 1;
                }
                at += end.len();
                tokens.push("\"\"".to_owned());
            }
            '"' => {
                at += 1;
                while !is(at, '"') {
                    at += if is(at, '\\') { 2 } else { 1 };
                }
                at += 1;
                let text: String = chars[start..at].iter().collect();
                tokens.push(text);
            }
            // A character; a lifetime has no second quote there.
            '\'' if is(at + 1, '\\') || is(at + 2, '\'') => {
                at += if is(at + 1, '\\') { 3 } else { 2 };
                while !is(at, '\'') {
                    at += 1;
                }
                at += 1;
            }
            ':' if is(at + 1, ':') => {
                at += 2;
                tokens.push("::".to_owned());
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                    at += 1;
                }
                tokens.push(chars[start..at].iter().collect());
            }
            c => {
                at += 1;
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
            }
        }
    }
    tokens
}

/// Removes every item under `#[cfg(test)]`; returns the files of the modules declared so.
fn drop_tests(tokens: &mut Vec<String>, file: &str) -> Vec<String> {
    let mut files = Vec::new();
    let is_attribute = |tokens: &[String], at: usize| {
        tokens[at..]
            .iter()
            .map(String::as_str)
            .take(7)
            .eq(["#", "[", "cfg", "(", "test", ")", "]"])
    };
    let mut at = 0;
    while at < tokens.len() {
        if !is_attribute(tokens, at) {
            at += 1;
            continue;
        }
        let (mut end, mut depth) = (at + 7, 0_i32);
        let mut path = None;
        loop {
            match tokens[end].as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                "path" if tokens[end + 1] == "=" => {
                    path = Some(tokens[end + 2].trim_matches('"').to_owned());
                }
                "mod" if tokens[end + 2] == ";" => {
                    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let name = &tokens[end + 1];
                    match &path {
                        Some(path) => files.push(format!("{folder}/{path}")),
                        None => {
                            let mut module = module_path(file);
                            module.push(name.clone());
                            files.push(format!("{}.rs", module.join("/")));
                        }
                    }
                }
                _ => {}
            }
            end += 1;
            let last = tokens[end - 1].as_str();
            if depth < 0 || (depth == 0 && matches!(last, "}" | ";")) {
                break;
            }
        }
        tokens.drain(at..end);
    }
    files
}
