//! CPU time and memory of the server's processes, where they run on this machine.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;

use crate::figure;

/// Some processes.
#[derive(Default)]
pub struct Processes(Mutex<Vec<u32>>);

/// The processes that a text names, such as `12,34`.
pub fn pids(text: &str) -> anyhow::Result<Vec<u32>> {
    let pids = text.split(',').map(str::parse).collect::<Result<_, _>>();
    pids.with_context(|| format!("{text} names no processes"))
}

impl Processes {
    fn pids(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches these from now on.
    pub fn set(&self, pids: Vec<u32>) {
        *self.pids() = pids;
    }

    /// User and system time so far of each, of all its threads together.
    pub fn cpu(&self) -> Vec<Duration> {
        let ticks = |pid: &u32| -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name may hold blanks; what follows its parenthesis does not.
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum()
        };
        self.pids().iter().map(|pid| Duration::from_millis(10 * ticks(pid))).collect()
    }

    /// Prints the CPU time an operation since `before`: of all together, and of each where there are several.
    pub fn cost(&self, name: &str, before: &[Duration], operations: usize) {
        let now = self.cpu();
        let each = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before).as_micros() as f64);
        let each: Vec<f64> = each.map(|spent| spent / operations.max(1) as f64).collect();
        if each.is_empty() {
            return;
        }
        let shares: Vec<String> = each.iter().map(|spent| format!("{spent:.1}")).collect();
        let shares = if each.len() > 1 { format!(" ({})", shares.join(" + ")) } else { String::new() };
        figure(&format!("{name}_server_cpu_us"), format!("{:.1}{shares}", each.iter().sum::<f64>()));
    }

    /// Prints the resident memory.
    pub fn resident(&self, name: &str) {
        let kib = |pid: &u32| -> Option<u64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let pids = self.pids();
        if !pids.is_empty() {
            let total: u64 = pids.iter().filter_map(kib).sum();
            figure(&format!("{name}_mb"), format!("{:.1}", total as f64 * 1024.0 / 1e6));
        }
    }
}
