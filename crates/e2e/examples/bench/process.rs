//! CPU time and memory of the server's processes, where they run on this machine.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use crate::figure;

/// Some processes.
#[derive(Default)]
pub struct Processes(Vec<u32>);

impl FromStr for Processes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let pids = text.split(',').map(str::parse).collect::<Result<_, _>>();
        pids.map(Self).with_context(|| format!("{text} names no processes"))
    }
}

impl Processes {
    /// User and system time so far, of all threads together.
    pub fn cpu(&self) -> Duration {
        let ticks = |pid: &u32| -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name may hold blanks; what follows its parenthesis does not.
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum()
        };
        Duration::from_millis(10 * self.0.iter().map(ticks).sum::<u64>())
    }

    /// Prints the CPU time an operation since `before`.
    pub fn cost(&self, name: &str, before: Duration, operations: usize) {
        if !self.0.is_empty() && operations > 0 {
            let spent = self.cpu().saturating_sub(before).as_micros() as f64;
            figure(&format!("{name}_server_cpu_us"), format!("{:.1}", spent / operations as f64));
        }
    }

    /// Prints the resident memory.
    pub fn resident(&self, name: &str) {
        let kib = |pid: &u32| -> Option<u64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        if !self.0.is_empty() {
            let total: u64 = self.0.iter().filter_map(kib).sum();
            figure(&format!("{name}_mb"), format!("{:.1}", total as f64 * 1024.0 / 1e6));
        }
    }
}
