//! Go's regular expressions (RE2's syntax) in the syntax of the `regex` crate: patterns of schemas and expressions mean what
//! they mean to upstream.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// How often something can be repeated.
const MOST_REPEATS: u32 = 1000;
/// How far ahead the end of a count or of a class's name is looked for: no longer ones make sense.
const LONGEST_AHEAD: usize = 24;

/// Compiles a pattern of Go's into a program of so many bytes at most.
///
/// # Errors
/// It is none, or too large.
pub fn compile(pattern: &str, most_bytes: usize) -> Result<Regex, Invalid> {
    let translated = Translation::of(pattern).ok_or(Invalid)?;
    RegexBuilder::new(&translated).size_limit(most_bytes).build().map_err(|_| Invalid)
}

/// The classes with names within brackets.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// A pattern is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid regular expression")]
pub struct Invalid;

/// The classes of Perl, which are of ASCII: `\d` and its kin within brackets.
fn perl(class: char) -> Option<&'static str> {
    Some(match class {
        'd' | 'D' => "0-9",
        's' | 'S' => r"\t\n\f\r ",
        'w' | 'W' => "0-9A-Za-z_",
        _ => return None,
    })
}

struct Translation<'p> {
    rest: Peekable<Chars<'p>>,
    out: String,
}

impl<'p> Translation<'p> {
    fn of(pattern: &'p str) -> Option<String> {
        let mut translation =
            Self { rest: pattern.chars().peekable(), out: String::with_capacity(pattern.len()) };
        translation.run()?;
        Some(translation.out)
    }

    fn run(&mut self) -> Option<()> {
        // Whether the last thing repeats what is before it: that cannot be repeated again.
        let mut repeats = false;
        while let Some(c) = self.rest.next() {
            let repeated = std::mem::take(&mut repeats);
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '{' => match self.count() {
                    Some((least, most)) => {
                        if repeated || least > MOST_REPEATS || most.is_some_and(|most| most > MOST_REPEATS) {
                            return None;
                        }
                        repeats = true;
                    }
                    None => self.out.push_str(r"\{"),
                },
                '*' | '+' | '?' => {
                    if repeated {
                        return None;
                    }
                    self.out.push(c);
                    repeats = true;
                }
                c => self.out.push(c),
            }
            if repeats && self.rest.next_if_eq(&'?').is_some() {
                self.out.push('?');
            }
        }
        Some(())
    }

    /// `{n}`, `{n,}` or `{n,m}`; anything else is text.
    fn count(&mut self) -> Option<(u32, Option<u32>)> {
        let ahead = self.ahead('}')?;
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u32>().ok().or((!text.is_empty()).then_some(u32::MAX)),
            false => None,
        };
        let counts = match ahead.split_once(',') {
            None => (number(&ahead)?, number(&ahead)),
            Some((least, "")) => (number(least)?, None),
            Some((least, most)) => (number(least)?, Some(number(most)?)),
        };
        self.skip(ahead.chars().count() + 1);
        self.out.push_str(&format!("{{{ahead}}}"));
        Some(counts)
    }

    /// What stands before the next such sign, if that is near.
    fn ahead(&self, sign: char) -> Option<String> {
        let ahead: String = self.rest.clone().take(LONGEST_AHEAD).collect();
        ahead.split_once(sign).map(|(before, _)| before.to_owned())
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.rest.next();
        }
    }

    /// Groups have names, or flags of which some are only the crate's.
    fn group(&mut self) -> Option<()> {
        self.out.push('(');
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('?') || matches!(ahead.peek(), Some('P' | '<')) {
            return Some(());
        }
        ahead.take_while(|c| !matches!(c, ':' | ')')).all(|c| "imsU-".contains(c)).then_some(())
    }

    fn escape(&mut self) -> Option<()> {
        let c = self.rest.next()?;
        match (c, perl(c)) {
            (_, Some(class)) => {
                let not = if c.is_uppercase() { "^" } else { "" };
                self.out.push_str(&format!("[{not}{class}]"));
            }
            ('b', _) => self.out.push_str(r"(?-u:\b)"),
            ('Q', _) => self.quoted(),
            ('A' | 'B' | 'z', _) => self.out.extend(['\\', c]),
            _ => self.character(c)?,
        }
        Some(())
    }

    /// `\Q…\E`: text as it stands.
    fn quoted(&mut self) {
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                return;
            }
            self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
        }
    }

    /// An escape that stands for a character, or for a class of Unicode.
    fn character(&mut self, c: char) -> Option<()> {
        match c {
            '0'..='7' => {
                // One digit alone would name a group.
                if c != '0' && !self.rest.peek().is_some_and(|c| matches!(c, '0'..='7')) {
                    return None;
                }
                let mut code = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.rest.next_if(|c| c.is_digit(8)) else { break };
                    code = code * 8 + digit.to_digit(8)?;
                }
                self.out.push_str(&format!(r"\x{{{code:x}}}"));
            }
            'x' | 'p' | 'P' if self.rest.next_if_eq(&'{').is_some() => {
                // `\p{^Greek}` is all but Greek.
                let not = c != 'x' && self.rest.next_if_eq(&'^').is_some();
                let c = match (c, not) {
                    ('p', true) => 'P',
                    ('P', true) => 'p',
                    (c, _) => c,
                };
                let name: String = self.rest.by_ref().take_while(|c| *c != '}').collect();
                self.out.push_str(&format!(r"\{c}{{{name}}}"));
            }
            'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'p' | 'P' => self.out.extend(['\\', c]),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => {
                self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            }
            _ => return None,
        }
        Some(())
    }

    fn class(&mut self) -> Option<()> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        if self.rest.next_if_eq(&']').is_some() {
            self.out.push_str(r"\]");
        }
        loop {
            match self.rest.next()? {
                ']' => break,
                '[' if self.rest.peek() == Some(&':') => {
                    let name = self.ahead(']').unwrap_or_default();
                    if name.len() > 2 && name.ends_with(':') {
                        let class = name.trim_matches(':').trim_start_matches('^');
                        POSIX.contains(&class).then_some(())?;
                        self.out.push_str(&format!("[{name}]"));
                        self.skip(name.chars().count() + 1);
                    } else {
                        self.out.push_str(r"\[");
                    }
                }
                '\\' if let Some(class) = self.rest.peek().copied().and_then(perl) => {
                    match self.rest.next()?.is_lowercase() {
                        true => self.out.push_str(class),
                        false => self.out.push_str(&format!("[^{class}]")),
                    }
                }
                first => self.range(first)?,
            }
        }
        self.out.push(']');
        Some(())
    }

    /// A character of a class, or all from it to another.
    fn range(&mut self, first: char) -> Option<()> {
        self.member(first)?;
        let mut ahead = self.rest.clone();
        if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
            self.rest.next();
            self.out.push('-');
            let last = self.rest.next()?;
            self.member(last)?;
        }
        Some(())
    }

    fn member(&mut self, c: char) -> Option<()> {
        match c {
            '\\' => {
                let c = self.rest.next()?;
                self.character(c)?;
            }
            '[' | '&' | '~' | '-' | '^' => self.out.extend(['\\', c]),
            c => self.out.push(c),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(pattern: &str, text: &str) -> Result<bool, Invalid> {
        compile(pattern, 1 << 20).map(|pattern| pattern.is_match(text))
    }

    /// What Go's `regexp` says of each.
    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, found) in [
            (r"^[^()<>@,;:\\\[\]?={} [\t\x7f]+$", "abc", true),
            (r#"^[^()<>@,;:\\"\/[\]?={} \t]+$"#, "a-b", true),
            (r#"^[^()<>@,;:\\"\/[\]?={} \t]+$"#, "a[b", false),
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^\w+$", "é", false),
            (r"^[\w.-]+$", "a.b-c_1", true),
            (r"^[\W]$", "é", true),
            (r"^\s$", "\u{a0}", false),
            (r"^[a-z&&[b]+$", "a&b[", true),
            (r"^[+--]+$", "+,-", true),
            (r"^[a~~b]+$", "a~b", true),
            (r"^[]a]+$", "a]", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^[a-]+$", "a-", true),
            (r"^[-a]+$", "a-", true),
            (r"^\${[a-z]+}$", "${x}", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^{x}$", "{x}", true),
            (r"^a{2,3}?$", "aaa", true),
            (r"^\<a\>$", "<a>", true),
            (r"^\Qa.b[\E+$", "a.b[[", true),
            (r"^\101\x{42}\0$", "AB\0", true),
            (r"\bword\b", "a word.", true),
            (r"\bword\b", "éword", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^(?P<n>a)(?:b)$", "ab", true),
            (r"^\_\-\/\:$", "_-/:", true),
            (r"^[a\--z]+$", "-.a", true),
            (r"^[a-c-e]+$", "b-e", true),
            (r"^[[:]$", ":", true),
            (r"^\pN\p{Greek}\p{^Greek}$", "1αa", true),
            (r"^x{2$", "x{2", true),
            (r"^[\x{1F}-\x{2f}\x41]\p{L}\P{L}$", "!a1", true),
        ] {
            assert_eq!(finds(pattern, text), Ok(found), "{pattern} {text}");
        }
        for pattern in [
            "a**",
            "a+*",
            "a{2}{3}",
            "a{1001}",
            "(?=a)",
            "(a)\\1",
            "(?x) a",
            "\\u0041",
            "[a",
            "(",
            "\\",
            "*a",
            "[b-a]",
            "[a-\\d]",
            "{2}",
            "a{2}*",
            "a??*",
            "[[:foo:]]",
            "\\C",
            "\\Z",
        ] {
            assert_eq!(finds(pattern, ""), Err(Invalid), "{pattern}");
        }
        let open = "{[[:".repeat(100_000);
        assert_eq!(finds(&open, ""), Err(Invalid), "many things that do not end");
    }
}
