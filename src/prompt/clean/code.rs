//! Detects program code, diffs and the like outside of fences.
//!
//! A message with bare code stays unchanged: spaces and blank lines of code may be significant, and its
//! end cannot be found reliably.

/// First words of lines of code.
const STARTS: &[&str] = &[
    "#!/",
    "#include",
    "#define",
    "#import",
    "#pragma",
    "$ ",
    "%%",
    "+++ ",
    "--- a/",
    "/*",
    "//",
    "<!--",
    "<?",
    "=begin",
    ">>> ",
    "@@ ",
    "@import",
    "async ",
    "await ",
    "case ",
    "catch (",
    "class ",
    "cmake_",
    "const ",
    "CREATE TABLE",
    "create table",
    "def ",
    "defmodule ",
    "diff --git",
    "docker ",
    "echo ",
    "elif ",
    "else:",
    "else {",
    "enum ",
    "except ",
    "except:",
    "export ",
    "extern ",
    "finally:",
    "fn ",
    "for (",
    "foreach",
    "from ",
    "func ",
    "function ",
    "git ",
    "if (",
    "impl ",
    "import ",
    "INSERT INTO",
    "insert into",
    "int ",
    "interface ",
    "let ",
    "mod ",
    "module ",
    "namespace ",
    "npm ",
    "package ",
    "pip ",
    "private ",
    "protected ",
    "pub ",
    "public ",
    "raise ",
    "require(",
    "require ",
    "return",
    "SELECT ",
    "select ",
    "static ",
    "struct ",
    "sudo ",
    "switch (",
    "template<",
    "throw ",
    "trait ",
    "try:",
    "try {",
    "type ",
    "typedef ",
    "UPDATE ",
    "use ",
    "using ",
    "var ",
    "void ",
    "while (",
    "while ",
    "with ",
    "yield ",
    "#[",
    "CMD ",
    "RUN ",
    "FROM ",
    "COPY ",
];
/// Starts that do not occur in prose: one such line is enough.
const CERTAIN: &[&str] = &[
    "#!/",
    "#include",
    "#define",
    "+++ b/",
    "--- a/",
    "<?php",
    "@@ -",
    "diff --git",
    ">>> ",
    "template<",
    "impl<",
];
/// Ends of lines of code.
const ENDS: &[&str] = &[
    ";", "{", "}", "};", "});", "})", ");", "},", "(", "[", "],", "->", "=>", "*/", "\\", "):",
    "|>", "&&", "||", "end", "fi", "done",
];
/// Signs within lines of code.
const WITHIN: &[&str] = &[
    " = ", " == ", " != ", " += ", " => ", " -> ", "::", "&&", "||", "();", "()", "](", "</", "/>",
    ":=", "<-", "self.", "this.", "->", "++", "print(", "printf", "console.",
];

/// True if any block of lines looks like code.
pub fn holds_code(text: &str) -> bool {
    let mut block = Block::default();
    for line in text.lines() {
        if line.trim().is_empty() {
            if block.is_code() {
                return true;
            }
            block = Block::default();
        } else if block.add(line) {
            return true;
        }
    }
    block.is_code()
}

/// Evidence from a block of consecutive lines.
#[derive(Debug, Default)]
struct Block {
    lines: usize,
    likely: usize,
    strong: usize,
}

impl Block {
    /// Adds a line; returns true if it is certainly code.
    fn add(&mut self, line: &str) -> bool {
        let trimmed = line.trim();
        if CERTAIN.iter().any(|start| trimmed.starts_with(start)) {
            return true;
        }
        let starts = STARTS.iter().any(|start| trimmed.starts_with(start));
        let ends = ENDS.iter().any(|end| trimmed.ends_with(end)) || is_header(trimmed, starts);
        let within = WITHIN.iter().any(|part| trimmed.contains(part));
        let is_indented = line.starts_with("    ") || line.starts_with('\t');
        let signs = [starts, ends, within, is_indented]
            .into_iter()
            .filter(|sign| *sign)
            .count();
        // Bullets and table rows of prose contain such signs, too.
        let is_prose = trimmed.starts_with(['-', '*', '|', '>']) && !ends;
        self.lines += 1;
        self.likely += usize::from(signs >= 1 && !is_prose);
        self.strong += usize::from(signs >= 2 && !is_prose);
        false
    }

    fn is_code(&self) -> bool {
        self.strong >= 2
            || self.lines >= 2 && self.likely * 2 >= self.lines && self.likely >= 2
            || self.lines == 1 && self.strong == 1
    }
}

/// A line such as `def f(x):` or `for x in y:`.
fn is_header(line: &str, starts: bool) -> bool {
    let keywords = [
        "for ", "if ", "while ", "with ", "class ", "def ", "elif ", "match ",
    ];
    line.ends_with(':') && (starts || line.contains('(')) && {
        keywords.iter().any(|keyword| line.starts_with(keyword))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_code_is_seen() {
        for code in [
            "def f(x):\n    return x  +  1",
            "for (let i = 0; i < 3; i++) {\n  run(i);\n}",
            "x = 1\ny = 2",
            "Explain:\n\n#include <stdio.h>\nint main() { return 0; }",
            "SELECT id,  name\nFROM users\nWHERE a = 1;",
            "diff --git a/x b/x\n@@ -1 +1 @@\n-a\n+b  ",
            "What does this print?\n\nprint( 'a'   'b' )\nx = f( 2 )",
            "    indented = 1\n    code = 2",
            "fn main() {\n    println!(\"{}\", 1);\n}",
            "if x:\n\ty = 1\n\tz = 2",
        ] {
            assert!(holds_code(code), "{code}");
        }
    }

    #[test]
    fn prose_and_lists_are_not_code() {
        for prose in [
            "The river is long. It ends in the sea.\nMany towns lie on it.",
            "- bread\n- milk\n- salt (1 kg)",
            "| a | b |\n|---|---|\n| 1 | 2 |",
            "# Title\n\nFrom here the road goes north. Use the bridge.",
            "With love,\nAda",
        ] {
            assert!(!holds_code(prose), "{prose}");
        }
    }
}
