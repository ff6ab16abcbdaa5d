//! The CRI log format: `<RFC3339 with nanoseconds> <stream> <F|P> <text>`. A line longer than
//! [`MAX_LINE_BYTES`] is cut into partial (`P`) entries; the last piece is full (`F`), unless the stream ends without a
//! newline.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest text of one entry.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 10;

/// Which stream an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Stdout,
    Stderr,
}

impl StreamKind {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A container's log file, shared by its streams.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens (or creates) the file for appending, with the directories above it.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Opens the path anew: the old file was renamed by whoever rotates logs.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path)?;
        Ok(())
    }

    /// Appends one chunk of finished entries. A full disk loses output rather than the container.
    pub fn append(&mut self, entries: &[u8]) {
        if let Err(error) = self.file.write_all(entries) {
            eprintln!("cannot write log {}: {error}", self.path.display());
        }
    }
}

/// Cuts one stream's bytes into entries.
pub(crate) struct LineSplitter {
    kind: StreamKind,
    partial: Vec<u8>,
}

impl LineSplitter {
    pub fn new(kind: StreamKind) -> Self {
        Self { kind, partial: Vec::new() }
    }

    /// Takes bytes as they came at `now`, and appends the entries they complete to `out`.
    pub fn push(&mut self, mut bytes: &[u8], now: SystemTime, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.partial.extend_from_slice(&window[..end]);
                self.emit(b'F', now, out);
                bytes = &bytes[end + 1..];
            } else {
                self.partial.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                if self.partial.len() == MAX_LINE_BYTES {
                    // A newline right behind a full buffer ends this entry, not an empty next one.
                    match bytes.first() {
                        Some(b'\n') => {
                            self.emit(b'F', now, out);
                            bytes = &bytes[1..];
                        }
                        _ => self.emit(b'P', now, out),
                    }
                }
            }
        }
    }

    /// The stream ended: what is left is a line without its end.
    pub fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(b'P', now, out);
        }
    }

    fn emit(&mut self, tag: u8, now: SystemTime, out: &mut Vec<u8>) {
        write_timestamp(now, out);
        out.push(b' ');
        out.extend_from_slice(self.kind.name().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(&self.partial);
        out.push(b'\n');
        self.partial.clear();
        self.partial.shrink_to(1024);
    }
}

/// Writes `2026-01-02T03:04:05.000000006Z`.
fn write_timestamp(at: SystemTime, out: &mut Vec<u8>) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:09}Z",
        second % 60,
        since.subsec_nanos()
    );
}

/// Days since 1970-01-01 to a date of the proleptic Gregorian calendar, counting years from March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(pieces: &[&[u8]], expected: &str) {
        let at = UNIX_EPOCH + Duration::new(1_709_210_096, 7);
        let mut splitter = LineSplitter::new(StreamKind::Stdout);
        let mut out = Vec::new();
        for piece in pieces {
            splitter.push(piece, at, &mut out);
        }
        splitter.finish(at, &mut out);
        let text = String::from_utf8(out).unwrap().replace("2024-02-29T12:34:56.000000007Z stdout ", "");
        assert_eq!(text, expected);
    }

    #[test]
    fn lines_are_cut_where_they_end_and_where_they_are_too_long() {
        check(&[b"a\nb", b"c\n"], "F a\nF bc\n");
        check(&[b"\n"], "F \n");
        check(&[b"no newline"], "P no newline\n");
        let long = vec![b'x'; MAX_LINE_BYTES];
        let x = "x".repeat(MAX_LINE_BYTES);
        check(&[&long, b"y\n"], &format!("P {x}\nF y\n"));
        check(&[&[&long[..], b"\n"].concat()], &format!("F {x}\n"));
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(20_818), (2026, 12, 31));
    }
}
