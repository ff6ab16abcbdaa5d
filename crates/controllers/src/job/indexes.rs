//! Sets of completion indexes as a job's status writes them: `1,3-5,7`.

use std::fmt;

/// Ordered intervals, first and last index each, with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads the indexes below `completions`; what is no interval is left out.
    pub fn parse(text: &str, completions: u32) -> Self {
        let interval = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            (first < completions && first <= last).then(|| (first, last.min(completions - 1)))
        };
        Self::join(text.split(',').filter_map(interval).collect())
    }

    fn join(mut intervals: Vec<(u32, u32)>) -> Self {
        intervals.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// The union with single indexes.
    pub fn with(&self, indexes: impl IntoIterator<Item = u32>) -> Self {
        let single = indexes.into_iter().map(|index| (index, index));
        Self::join(self.0.iter().copied().chain(single).collect())
    }

    /// The union of two sets.
    pub fn union(&self, other: &Self) -> Self {
        Self::join(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many indexes there are.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an index is among them.
    pub fn contains(&self, index: u32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes two sets share.
    pub fn shared(&self, other: &Self) -> u32 {
        let overlap = |a: &(u32, u32), b: &(u32, u32)| (a.1.min(b.1) + 1).saturating_sub(a.0.max(b.0));
        self.0.iter().map(|a| other.0.iter().map(|b| overlap(a, b)).sum::<u32>()).sum()
    }

    /// The first `count` indexes below `completions` that are not among them.
    pub fn missing(&self, count: usize, completions: u32) -> Vec<u32> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|(_, last)| last + 1));
        let ends = self.0.iter().map(|(first, _)| *first).chain(std::iter::once(completions));
        starts.zip(ends).flat_map(|(from, to)| from..to.min(completions)).take(count).collect()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_upstream_writes_them() {
        for (text, completions, written) in [
            ("", 9, ""),
            ("1,3-5,7", 9, "1,3-5,7"),
            ("1,2,3", 9, "1-3"),
            ("0-1,4", 9, "0,1,4"),
            ("0-8", 4, "0-3"),
            ("x,2-y,3", 9, "3"),
            ("5", 5, ""),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), written, "{text}");
        }
    }

    #[test]
    fn sets_are_counted_joined_and_searched() {
        let set = Indexes::parse("1,3-5", 10);
        assert_eq!((set.total(), set.contains(4), set.contains(2)), (4, true, false));
        assert_eq!(set.with([2, 9]).to_string(), "1-5,9");
        assert_eq!(set.missing(4, 10), [0, 2, 6, 7]);
        assert_eq!(set.missing(9, 3), [0, 2]);
        assert_eq!(Indexes::default().missing(2, 5), [0, 1]);
        assert_eq!(set.shared(&Indexes::parse("0-3,5-9", 10)), 3);
    }
}
