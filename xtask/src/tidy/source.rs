//! The rules of one source file. A small scanner blanks out comments and literals, so that rules see code only.

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 80;
/// Crates that may hold `unsafe`, each block with its reason.
const MAY_BE_UNSAFE: [&str; 2] = ["crates/runtime/", "crates/network/"];
const UNFINISHED: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

/// What is wrong in a file.
pub fn complaints(name: &str, text: &str) -> Vec<String> {
    let file = File::new(name, text);
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{name}: does not start with a `//!` line that says what it is for"));
    }
    let count = text.lines().count();
    if count >= FILE_LINES {
        found.push(format!("{name}: {count} lines; files stay under {FILE_LINES}"));
    }
    found.extend(file.long_functions());
    found.extend(file.unsafe_code());
    found.extend(file.words());
    found
}

struct File<'a> {
    name: &'a str,
    /// The lines as they are.
    lines: Vec<&'a str>,
    /// The lines with comments and the insides of literals blanked out.
    code: Vec<String>,
    /// The first line of the tests at the end of the file.
    tests_from: usize,
    is_test: bool,
}

impl<'a> File<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let code: Vec<String> = blanked(text).lines().map(str::to_owned).collect();
        // Whole files of tests are modules or folders whose names say so; e2e is nothing else.
        let is_test = name.contains("/tests/")
            || name.ends_with("tests.rs")
            || name.ends_with("/testing.rs")
            || name.starts_with("crates/e2e/");
        let module = code.iter().position(|line| line.trim_start().starts_with("#[cfg(test)]"));
        let inline = module.filter(|at| code.get(at + 1).is_some_and(|line| line.trim_end().ends_with('{')));
        let tests_from = if is_test { 0 } else { inline.unwrap_or(lines.len()) };
        Self { name, lines, code, tests_from, is_test }
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.name, line + 1)
    }

    /// Functions outside tests that are too long.
    fn long_functions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for start in 0..self.tests_from {
            let Some(name) = function_name(&self.code[start]) else { continue };
            let Some(end) = self.end_of_block(start) else { continue };
            let length = end - start + 1;
            if length >= FUNCTION_LINES {
                found.push(self.at(
                    start,
                    &format!("fn {name} has {length} lines; functions stay under {FUNCTION_LINES}"),
                ));
            }
        }
        found
    }

    /// The line on which the block that begins on or after `start` ends.
    fn end_of_block(&self, start: usize) -> Option<usize> {
        let mut depth = 0usize;
        for (number, line) in self.code.iter().enumerate().skip(start) {
            for character in line.chars() {
                match character {
                    ';' if depth == 0 => return None,
                    '{' => depth += 1,
                    '}' if depth == 1 => return Some(number),
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
        None
    }

    fn unsafe_code(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, line) in self.code.iter().enumerate() {
            if !has_word(line, "unsafe") {
                continue;
            }
            if !MAY_BE_UNSAFE.iter().any(|allowed| self.name.starts_with(allowed)) {
                found.push(self.at(number, "`unsafe` only in runtime and network"));
            } else if line.contains("unsafe {") && !self.has_reason(number) {
                found.push(self.at(number, "`unsafe` without a SAFETY comment"));
            }
        }
        found
    }

    /// Whether a SAFETY comment is on the line or in the lines just above it.
    fn has_reason(&self, number: usize) -> bool {
        self.lines[number.saturating_sub(8)..=number].iter().any(|line| line.contains("SAFETY:"))
    }

    fn words(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, line) in self.code.iter().enumerate() {
            for word in UNFINISHED {
                if line.contains(word) {
                    found.push(self.at(number, &format!("`{word}` is not finished code")));
                }
            }
            let in_tests = number >= self.tests_from;
            if !in_tests && line.contains(".unwrap()") {
                found.push(
                    self.at(number, "`unwrap` outside tests: return the error, or `expect` with the reason"),
                );
            }
            if !in_tests && line.contains(".expect(\"\")") {
                found.push(self.at(number, "`expect` without a reason"));
            }
            let sleeps = line.contains("tokio::time::sleep(") || line.trim_start().starts_with("sleep(");
            if in_tests && sleeps && !self.is_race_or_loop(number) {
                found.push(self.at(number, "a bare sleep in a test: wait for the condition"));
            }
        }
        found
    }

    /// A sleep in a polling helper or raced against something is not bare: a loop or a `select!` is just above it.
    fn is_race_or_loop(&self, number: usize) -> bool {
        let above = &self.code[number.saturating_sub(12)..=number];
        self.is_test_or_inline()
            && above.iter().any(|line| {
                ["loop", "while", "select!", "for"]
                    .iter()
                    .any(|word| has_word(line, word) || line.contains(word) && word.ends_with('!'))
            })
    }

    fn is_test_or_inline(&self) -> bool {
        self.is_test || self.tests_from < self.lines.len()
    }
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = rest.strip_prefix("fn ").or_else(|| {
        let (before, after) = rest.split_once(" fn ")?;
        let modifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern"];
        before
            .split_whitespace()
            .all(|word| modifiers.contains(&word) || word.starts_with('"'))
            .then_some(after)
    })?;
    rest.split(['(', '<']).next()
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// What the scanner is in.
#[derive(Clone, Copy)]
enum Inside {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    RawText(usize),
}

/// The text with comments and the insides of string and character literals as blanks; lines stay.
fn blanked(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut inside = Inside::Code;
    let mut at = 0;
    while at < characters.len() {
        let (next, taken, shown) = step(inside, &characters[at..]);
        for (offset, &character) in characters[at..at + taken].iter().enumerate() {
            out.push(if character == '\n' || (shown && offset < taken) { character } else { ' ' });
        }
        inside = next;
        at += taken;
    }
    out
}

/// The state after what begins here, how many characters that takes, and whether they are code.
fn step(inside: Inside, rest: &[char]) -> (Inside, usize, bool) {
    let starts = |text: &str| rest.iter().copied().take(text.chars().count()).eq(text.chars());
    match inside {
        Inside::Code if starts("//") => (Inside::LineComment, 2, false),
        Inside::Code if starts("/*") => (Inside::BlockComment(1), 2, false),
        Inside::Code if starts("\"") => (Inside::Text, 1, true),
        Inside::Code => match raw_text(rest) {
            Some(hashes) => (Inside::RawText(hashes), hashes + 2, true),
            None => (Inside::Code, character_literal(rest), true),
        },
        Inside::LineComment => (if rest[0] == '\n' { Inside::Code } else { inside }, 1, false),
        Inside::BlockComment(1) if starts("*/") => (Inside::Code, 2, false),
        Inside::BlockComment(depth) if starts("*/") => (Inside::BlockComment(depth - 1), 2, false),
        Inside::BlockComment(depth) if starts("/*") => (Inside::BlockComment(depth + 1), 2, false),
        Inside::Text if starts("\\") => (Inside::Text, 2.min(rest.len()), false),
        Inside::Text if starts("\"") => (Inside::Code, 1, true),
        Inside::RawText(hashes) if starts(&format!("\"{}", "#".repeat(hashes))) => {
            (Inside::Code, hashes + 1, true)
        }
        Inside::BlockComment(_) | Inside::Text | Inside::RawText(_) => (inside, 1, false),
    }
}

/// The hashes of a raw string that begins here.
fn raw_text(rest: &[char]) -> Option<usize> {
    let hashes = rest.strip_prefix(&['r'])?.iter().take_while(|&&character| character == '#').count();
    (rest.get(hashes + 1) == Some(&'"')).then_some(hashes)
}

/// How many characters to take as code: a character literal whole, so that a quote in it begins nothing.
fn character_literal(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, '\'', ..] => 4,
        ['\'', '"' | '{' | '}' | ';', '\'', ..] => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        let found = complaints(name, text);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found} is not about {expected}");
        }
    }

    #[test]
    fn each_rule_finds_what_it_is_about() {
        check("crates/a/src/a.rs", "fn main() {}\n", &["`//!`"]);
        let long = format!("//! A.\nfn long() {{\n{}}}\n", "    a();\n".repeat(80));
        check("crates/a/src/a.rs", &long, &["fn long has 82 lines"]);
        check("crates/a/src/a.rs", &format!("//! A.\n{}", "// more\n".repeat(800)), &["801 lines"]);
        check("crates/a/src/a.rs", "//! A.\nfn a() { b().unwrap(); todo!() }\n", &["todo!", "unwrap"]);
        check("crates/a/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", &["only in runtime"]);
        check("crates/runtime/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", &["SAFETY"]);
        check("crates/runtime/src/a.rs", "//! A.\n// SAFETY: it is.\nfn a() { unsafe { b() } }\n", &[]);
        check(
            "crates/a/tests/a.rs",
            "//! A.\nfn a() { b().unwrap(); tokio::time::sleep(c).await; }\n",
            &["bare sleep"],
        );
    }

    #[test]
    fn words_in_comments_and_literals_are_no_code() {
        let text = "//! A.\n// unsafe, todo!\nconst A: &str = \"unsafe \\\" todo!\";\nconst B: &str = r#\"dbg! \"unsafe\" \"#;\nconst C: char = '\"';\n";
        check("crates/a/src/a.rs", text, &[]);
        check(
            "crates/a/src/a.rs",
            "//! A.\n#[cfg(test)]\nmod tests {\n    fn a() { b().unwrap() }\n}\n",
            &[],
        );
    }
}
