//! How deep an expression is, read off its text: what is taken apart by recursion needs a stack as deep.

/// Nested expressions are refused from here on, and so are longer rows of operators, as cel-go does it. Rows of `&&` and `||`
/// it balances.
const MOST: usize = 250;
/// What a level takes of the stack, to parse it and to evaluate it.
const LEVEL_BYTES: usize = 8 << 10;
/// What the rest takes.
const SPARE_BYTES: usize = 128 << 10;

/// The depth of an expression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Expressions within each other.
    nested: usize,
    /// The longest row of operators and members.
    row: usize,
    /// Levels of its tree, rather too many than too few.
    levels: usize,
}

/// What is open: brackets, or the expression itself.
#[derive(Default)]
struct Open {
    /// Operators of the row so far.
    row: usize,
    /// Operators so far, those of other rows among them.
    operators: usize,
    /// Question marks that wait for their colon.
    questions: usize,
    /// Branches of conditions that are in each other.
    branches: usize,
}

impl Open {
    /// The sign before an operand makes no level for cel-go, and the rest of an operator is none of its own.
    fn operator(&mut self, behind_operand: bool) {
        self.row += usize::from(behind_operand);
        self.operators += 1;
    }
}

impl Depth {
    /// Reads the text of an expression, which need not be right.
    pub fn of(source: &str) -> Self {
        let mut depth = Self::default();
        let mut open = vec![Open::default()];
        // Whether a token here would stand behind an operand.
        let mut behind_operand = false;
        for token in Tokens(source) {
            let innermost = open.len() - 1;
            let level = &mut open[innermost];
            match token {
                Token::Operand => {}
                Token::Open => {
                    level.operator(behind_operand);
                    open.push(Open::default());
                }
                Token::Close if innermost > 0 => drop(open.pop()),
                Token::Close => {}
                Token::Question if behind_operand => {
                    level.questions += 1;
                    level.operators += 1;
                    level.row = 0;
                }
                // It marks an optional member or entry.
                Token::Question => {}
                Token::Colon if level.questions > 0 => {
                    level.questions -= 1;
                    level.branches += 1;
                    level.row = 0;
                }
                Token::Colon | Token::Comma => *level = Open::default(),
                Token::Logic => {
                    level.row = 0;
                    level.operators += 1;
                }
                Token::Operator => level.operator(behind_operand),
            }
            behind_operand = matches!(token, Token::Operand | Token::Close);
            depth.row = depth.row.max(open[open.len() - 1].row);
            depth.nested = depth.nested.max(open.iter().map(|open| 1 + open.branches).sum());
            depth.levels = depth.levels.max(open.iter().map(|open| 1 + open.operators).sum());
            if depth.nested > MOST {
                break;
            }
        }
        depth
    }

    /// What cel-go says of an expression that is too deep for it.
    pub fn fault(self) -> Option<&'static str> {
        match self {
            _ if self.nested > MOST => Some("ERROR: <input>:-1:0: expression recursion limit exceeded: 250"),
            _ if self.row > MOST => Some("ERROR: <input>:-1:0: max recursion depth exceeded"),
            _ => None,
        }
    }

    /// Does what recurses through the expression, on a stack that is deep enough.
    pub fn dive<T>(self, work: impl FnOnce() -> T) -> T {
        let bytes = self.levels * LEVEL_BYTES + SPARE_BYTES;
        stacker::maybe_grow(bytes, 2 * bytes, work)
    }
}

/// What of a text decides on its depth.
#[derive(Clone, Copy)]
enum Token {
    Operand,
    Open,
    Close,
    Comma,
    Question,
    Colon,
    /// Half of `&&` or `||`.
    Logic,
    /// A character of any other operator, and the dot before a member.
    Operator,
}

/// The tokens of the text that is left.
struct Tokens<'a>(&'a str);

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        loop {
            self.0 = self.0.trim_start();
            if !self.0.starts_with("//") {
                break;
            }
            self.0 = self.0.find('\n').map_or("", |end| &self.0[end..]);
        }
        let first = self.0.chars().next()?;
        let (token, end) = match first {
            '"' | '\'' => (Token::Operand, end_of_text(self.0, false)),
            _ if is_word(first) => {
                let end = self.0.find(|c| !is_word(c)).unwrap_or(self.0.len());
                match (&self.0[..end], &self.0[end..]) {
                    ("in", _) => (Token::Operator, end),
                    // A text follows in which backslashes stand for themselves.
                    (word, rest) if word.ends_with(['r', 'R']) && rest.starts_with(['"', '\'']) => {
                        (Token::Operand, end + end_of_text(rest, true))
                    }
                    _ => (Token::Operand, end),
                }
            }
            '(' | '[' | '{' => (Token::Open, 1),
            ')' | ']' | '}' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '?' => (Token::Question, 1),
            ':' => (Token::Colon, 1),
            '&' | '|' => (Token::Logic, 1),
            _ => (Token::Operator, first.len_utf8()),
        };
        self.0 = &self.0[end..];
        Some(token)
    }
}

/// Where a text ends that begins with its quotation mark, which may be three.
fn end_of_text(text: &str, raw: bool) -> usize {
    let mark = &text[..1];
    let three = mark.repeat(3);
    let mark = if text.starts_with(&three) { three.as_str() } else { mark };
    let mut at = mark.len();
    while at < text.len() {
        if text[at..].starts_with(mark) {
            return at + mark.len();
        }
        let mut rest = text[at..].chars();
        let escapes = rest.next() == Some('\\') && !raw;
        let escaped = if escapes { rest.next() } else { None };
        at += text[at..].chars().next().map_or(1, char::len_utf8) + escaped.map_or(0, char::len_utf8);
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_for_upstream_is_refused_in_its_words() {
        let nested = "ERROR: <input>:-1:0: expression recursion limit exceeded: 250";
        let long = "ERROR: <input>:-1:0: max recursion depth exceeded";
        let around = |open: &str, inner: &str, close: &str, count: usize| {
            format!("{}{inner}{}", open.repeat(count), close.repeat(count))
        };
        for (source, fault) in [
            (around("(", "true", ")", 249), None),
            (around("(", "true", ")", 250), Some(nested)),
            (around("size(", "'a'", ")", 300), Some(nested)),
            (around("true?true:", "true", "", 120), None),
            (around("true?true:", "true", "", 251), Some(nested)),
            (around("!", "true", "", 300), None),
            (around("- ", "1", "", 300), None),
            (around("", "true", "||true", 2000), None),
            (around("", "1", "+1", 240), None),
            (around("", "1", "+1", 300), Some(long)),
            (around("", "self", ".a", 300), Some(long)),
            (around("", "1 < 2", " == true", 300), Some(long)),
            // Texts and comments have no depth, and what is beside each other adds none.
            (format!("self == '{}'", "(\\'".repeat(300)), None),
            (format!("self == r'''{}'''", "('".repeat(300)), None),
            (format!("self // {}", "(".repeat(300)), None),
            (format!("[{}]", vec!["a.b.c + 1"; 300].join(", ")), None),
            (format!("{{{}}}", vec!["1: a.b.c"; 300].join(", ")), None),
        ] {
            assert_eq!(Depth::of(&source).fault(), fault, "{source}");
        }
    }
}
