//! Cgroups as far as the runtime touches them beside libcontainer: finding the hierarchies (v1, v2 and
//! hybrid), killing and removing what is left of a container, counting out-of-memory kills, and writing
//! changed limits. Reading statistics is `stats.rs`' job.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = "/sys/fs/cgroup";

/// How the host mounts its controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One hierarchy with all controllers.
    Unified,
    /// A hierarchy a controller (with or without an almost empty cgroup2 mount beside them).
    Split,
}

/// What this host has.
pub(crate) fn layout() -> Layout {
    if Path::new(ROOT).join("cgroup.controllers").exists() { Layout::Unified } else { Layout::Split }
}

/// Directory of `cgroup` (absolute within its hierarchy) under `controller`.
pub(crate) fn controller_dir(controller: &str, cgroup: &str) -> PathBuf {
    let relative = cgroup.trim_start_matches('/');
    match layout() {
        Layout::Unified => Path::new(ROOT).join(relative),
        Layout::Split => Path::new(ROOT).join(controller).join(relative),
    }
}

/// Every directory `cgroup` has, one a hierarchy.
fn all_dirs(cgroup: &str) -> Vec<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    match layout() {
        Layout::Unified => vec![Path::new(ROOT).join(relative)],
        Layout::Split => crate::files::entries(Path::new(ROOT))
            .into_iter()
            .filter(|mount| !mount.is_symlink())
            .map(|mount| mount.join(relative))
            .collect(),
    }
}

/// The hierarchies [`join`] is about.
fn joined_controllers() -> &'static [&'static str] {
    match layout() {
        Layout::Unified => &[""],
        Layout::Split => &["memory", "cpu", "cpuacct", "pids"],
    }
}

/// Moves this process out of `cgroup`, and removes that unless others are in it.
pub(crate) fn leave(cgroup: &str) {
    for controller in joined_controllers() {
        // Where that fails the cgroup stays until its next user's end.
        let _ = std::fs::write(controller_dir(controller, "").join("cgroup.procs"), "0");
    }
    remove(cgroup);
}

/// Moves this process into `cgroup`, making it; controllers the host does not mount are passed over.
pub(crate) fn join(cgroup: &str) -> io::Result<()> {
    for controller in joined_controllers() {
        let dir = controller_dir(controller, cgroup);
        if !dir.parent().is_some_and(Path::exists) {
            continue;
        }
        // Another shim's end may remove the directory in between: once more is enough then.
        for attempt in 0..3 {
            std::fs::create_dir_all(&dir)?;
            match std::fs::write(dir.join("cgroup.procs"), "0") {
                Err(error) if attempt < 2 && error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

/// Sends SIGKILL to all that runs in `cgroup`; returns how many processes there were.
pub(crate) fn kill_all(cgroup: &str) -> usize {
    signal_all(cgroup, Signal::SIGKILL)
}

/// Sends `signal` to all that runs in `cgroup`.
pub(crate) fn signal_all(cgroup: &str, signal: Signal) -> usize {
    let mut pids: Vec<i32> = all_dirs(cgroup)
        .iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .filter(|&pid| pid > 1)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    for &pid in &pids {
        // Gone in the meantime is what we want.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    pids.len()
}

/// Removes `cgroup` and the cgroups below it where nothing runs any more.
pub(crate) fn remove(cgroup: &str) {
    if cgroup.trim_matches('/').is_empty() {
        return;
    }
    for dir in all_dirs(cgroup) {
        remove_dir(&dir);
    }
}

fn remove_dir(dir: &Path) {
    for child in crate::files::entries(dir) {
        if child.is_dir() && !child.is_symlink() {
            remove_dir(&child);
        }
    }
    // Busy ones are removed by a later caller.
    let _ = std::fs::remove_dir(dir);
}

/// How often the kernel killed something in `cgroup` for want of memory.
pub(crate) fn oom_kills(cgroup: &str) -> u64 {
    let file = match layout() {
        Layout::Unified => "memory.events",
        Layout::Split => "memory.oom_control",
    };
    let text = std::fs::read_to_string(controller_dir("memory", cgroup).join(file)).unwrap_or_default();
    field(&text, "oom_kill").unwrap_or(0)
}

/// The number behind `name` in a file of `name number` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Whether huge pages can be limited here.
pub(crate) fn limits_huge_pages() -> bool {
    match layout() {
        Layout::Unified => std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "hugetlb")),
        Layout::Split => Path::new(ROOT).join("hugetlb").is_dir(),
    }
}

/// Whether swap can be limited here.
pub(crate) fn limits_swap() -> bool {
    match layout() {
        // The root has no such file; every cgroup below has, or none.
        Layout::Unified => {
            crate::files::entries(Path::new(ROOT)).iter().any(|dir| dir.join("memory.swap.max").exists())
        }
        Layout::Split => Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists(),
    }
}

/// Writes one control file of an existing cgroup.
pub(crate) fn write(controller: &str, cgroup: &str, file: &str, value: &str) -> io::Result<()> {
    std::fs::write(controller_dir(controller, cgroup).join(file), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_whole_names() {
        let text = "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }
}
