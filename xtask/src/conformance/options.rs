//! What `cargo xtask conformance` is asked for.

use anyhow::Context;

/// How it is called.
pub const USAGE: &str = "cargo xtask conformance [--list] [--focus TEXT] [--sig NAME] [--failed] [--rerun N] \
    [--procs N] [--minutes N] [--release] [--slice MINUTES [--seed N]]";

/// The options, as given.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Only say which specs were chosen.
    pub list: bool,
    /// Only specs with one of these texts in their names.
    pub focus: Vec<String>,
    /// Only specs of these special interest groups, with or without `sig-`.
    pub sig: Vec<String>,
    /// Only what did not pass in the last run.
    pub failed: bool,
    /// Run all of it this often.
    pub rerun: u32,
    /// How many specs run at a time.
    pub procs: u32,
    /// End after so many minutes; what has not run by then is reported so.
    pub minutes: u32,
    /// Test the release build.
    pub release: bool,
    /// Run a part of what is known to pass, of about this many minutes.
    pub slice_minutes: Option<u32>,
    /// Which part.
    pub seed: Option<u64>,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self {
            list: false,
            focus: Vec::new(),
            sig: Vec::new(),
            failed: false,
            rerun: 1,
            procs: 4,
            minutes: 100,
            release: false,
            slice_minutes: None,
            seed: None,
        };
        let mut arguments = arguments.iter();
        while let Some(flag) = arguments.next() {
            let mut value =
                || arguments.next().with_context(|| format!("{flag} wants a value\nusage: {USAGE}"));
            match flag.as_str() {
                "--list" => options.list = true,
                "--failed" => options.failed = true,
                "--release" => options.release = true,
                "--focus" => options.focus.push(value()?.clone()),
                "--sig" => options.sig.push(value()?.trim_start_matches("sig-").to_owned()),
                "--rerun" => options.rerun = value()?.parse().context("--rerun")?,
                "--procs" => options.procs = value()?.parse().context("--procs")?,
                "--minutes" => options.minutes = value()?.parse().context("--minutes")?,
                "--slice" => options.slice_minutes = Some(value()?.parse().context("--slice")?),
                "--seed" => options.seed = Some(value()?.parse().context("--seed")?),
                _ => anyhow::bail!("unknown option {flag}\nusage: {USAGE}"),
            }
        }
        Ok(options)
    }

    /// Whether every spec is wanted.
    pub fn whole(&self) -> bool {
        self.focus.is_empty() && self.sig.is_empty() && !self.failed && self.slice_minutes.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_nonsense_is_refused() {
        let parse =
            |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let options = parse("--sig sig-node --sig storage --focus DNS --procs 2").unwrap();
        assert_eq!((options.sig, options.procs), (vec!["node".to_owned(), "storage".to_owned()], 2));
        assert!(parse("--whole").is_err());
        assert!(parse("--procs").is_err());
        assert!(parse("").unwrap().whole());
    }
}
