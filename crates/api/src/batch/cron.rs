//! Schedules of CronJobs, in the syntax (and with the complaints) of robfig/cron's standard parser.

struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds {
        low: 1,
        high: 12,
        names: &["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];
const DESCRIPTORS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// The values of one field, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    bits: u64,
    /// Written as `*`.
    pub is_any: bool,
}

impl Field {
    /// Whether the field names a value.
    pub fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & (1 << value) != 0)
    }
}

/// A schedule, without its time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Five fields.
    Fields {
        /// 0–59.
        minute: Field,
        /// 0–23.
        hour: Field,
        /// 1–31.
        day: Field,
        /// 1–12.
        month: Field,
        /// 0–6 from Sunday.
        weekday: Field,
    },
    /// `@every`: so many seconds apart.
    Every(u64),
}

impl Schedule {
    /// Parses a schedule; the time zone that one may start with is for the caller.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(schedule: &str) -> Result<Self, String> {
        if schedule.is_empty() {
            return Err("empty spec string".into());
        }
        let mut rest = schedule;
        if rest.starts_with("TZ=") || rest.starts_with("CRON_TZ=") {
            rest = rest.split_once(' ').map_or("", |(_, rest)| rest).trim();
        }
        if let Some(text) = rest.strip_prefix("@every ") {
            let wrong = || format!("failed to parse duration {rest}: time: invalid duration {text:?}");
            return duration(text).map(Self::Every).ok_or_else(wrong);
        }
        if rest.starts_with('@') {
            let known = DESCRIPTORS.iter().find(|(name, _)| *name == rest);
            rest =
                known.map(|(_, fields)| *fields).ok_or_else(|| format!("unrecognized descriptor: {rest}"))?;
        }
        let texts: Vec<&str> = rest.split_whitespace().collect();
        if texts.len() != FIELDS.len() {
            let count = texts.len();
            return Err(format!("expected exactly 5 fields, found {count}: [{}]", texts.join(" ")));
        }
        let mut fields = [Field::default(); 5];
        for ((field, text), bounds) in fields.iter_mut().zip(texts).zip(&FIELDS) {
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let (bits, is_any) = range(part, bounds)?;
                field.bits |= bits;
                field.is_any |= is_any;
            }
        }
        let [minute, hour, day, month, weekday] = fields;
        Ok(Self::Fields { minute, hour, day, month, weekday })
    }
}

/// Whole seconds of a Go duration such as `1h30m`, at least one.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        seconds += number * factor;
        rest = &rest[digits + unit.len()..];
    }
    // A duration that is too long for Go is too long for us.
    (!text.is_empty() && seconds < 9e9).then_some(seconds.max(1.0) as u64)
}

/// `*`, `5`, `1-5`, each with `/step`: the bits, and whether it is `*`.
fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let steps: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = steps[0].split('-').collect();
    let star = matches!(ends[0], "*" | "?");
    let (low, mut high) = if star {
        (bounds.low, bounds.high)
    } else {
        let low = number(ends[0], bounds)?;
        match ends[..] {
            [_] => (low, low),
            [_, high] => (low, number(high, bounds)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = match steps[..] {
        [_] => 1,
        [_, step] => {
            let step = plain_number(step)?;
            if ends.len() == 1 && !star {
                high = bounds.high;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if low < bounds.low {
        return Err(format!("beginning of range ({low}) below minimum ({}): {text}", bounds.low));
    }
    if high > bounds.high {
        return Err(format!("end of range ({high}) above maximum ({}): {text}", bounds.high));
    }
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let bits = (low..=high).step_by(step as usize).fold(0, |bits, value| bits | 1 << value);
    Ok((bits, star && step == 1))
}

fn number(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    let named = bounds.names.iter().position(|name| !name.is_empty() && *name == lower);
    named.map_or_else(|| plain_number(text), |n| Ok(n as u32))
}

fn plain_number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
        Err(_) => {
            let shown = format!("{text:?}");
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {shown}: invalid syntax"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in
            ["* * * * *", "30 2 * * 1-5", "*/5 0-12/2 1,15 jan SUN", "@hourly", "@every 1h30m", "0 0 ? * *"]
        {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("a b", "expected exactly 5 fields, found 2: [a b]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every 5", "failed to parse duration @every 5: time: invalid duration \"5\""),
        ] {
            assert_eq!(Schedule::parse(bad), Err(why.to_owned()));
        }
    }

    #[test]
    fn fields_name_values() {
        let Ok(Schedule::Fields { minute, hour, day, month, weekday }) =
            Schedule::parse("*/20 8-10,20 */2 feb,7/3 *")
        else {
            panic!("five fields")
        };
        let values = |field: Field| -> Vec<i8> { (0..60).filter(|value| field.has(*value)).collect() };
        assert_eq!(values(minute), [0, 20, 40]);
        assert_eq!(values(hour), [8, 9, 10, 20]);
        assert_eq!((day.has(1), day.has(2), day.is_any), (true, false, false));
        assert_eq!(values(month), [2, 7, 10]);
        assert_eq!((values(weekday).len(), weekday.is_any), (7, true));
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(5400)));
    }
}
