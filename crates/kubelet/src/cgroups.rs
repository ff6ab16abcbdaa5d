//! The pods' cgroups below `kubepods`: where they are on cgroup v1, v2 and hybrid systems, making and removing them.

use std::io;
use std::path::{Path, PathBuf};

use crate::spec::resources::{CPU_PERIOD, PodCgroup, Qos};

const MOUNT: &str = "/sys/fs/cgroup";
/// Controllers whose values the kubelet sets, on v1.
const SET: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies of the machine.
enum Layout {
    /// One hierarchy with all controllers.
    Unified(PathBuf),
    /// A hierarchy a controller: the directories, by controller.
    Split(Vec<(String, PathBuf)>),
    /// None that can be written.
    None,
}

/// The pods' cgroups.
pub struct Cgroups {
    layout: Layout,
    root: String,
}

impl Cgroups {
    /// Looks at what the machine has; `root` is the cgroup above `kubepods`.
    pub fn detect(root: &str) -> Self {
        let root = root.trim_matches('/').to_owned();
        Self { layout: detect_in(Path::new(MOUNT)), root }
    }

    fn kubepods(&self) -> String {
        if self.root.is_empty() { "kubepods".to_owned() } else { format!("{}/kubepods", self.root) }
    }

    fn class(&self, qos: Qos) -> String {
        match qos {
            Qos::Guaranteed => self.kubepods(),
            Qos::Burstable => format!("{}/burstable", self.kubepods()),
            Qos::BestEffort => format!("{}/besteffort", self.kubepods()),
        }
    }

    /// The cgroup of a pod, as the runtime is told.
    pub fn parent(&self, uid: &str, qos: Qos) -> String {
        format!("/{}/pod{uid}", self.class(qos))
    }

    /// Makes a pod's cgroup and sets its values.
    pub fn create(&self, uid: &str, pod: &PodCgroup) -> io::Result<()> {
        let relative = self.parent(uid, pod.qos);
        let relative = relative.trim_start_matches('/');
        match &self.layout {
            Layout::None => Ok(()),
            Layout::Unified(mount) => {
                delegate(mount, relative)?;
                let dir = mount.join(relative);
                set(&dir, "cpu.weight", weight(pod.cpu_shares).to_string())?;
                let quota = pod.cpu_quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                set(&dir, "cpu.max", format!("{quota} {CPU_PERIOD}"))?;
                set(&dir, "memory.max", pod.memory_bytes.map_or_else(|| "max".to_owned(), |b| b.to_string()))
            }
            Layout::Split(hierarchies) => {
                for (controller, mount) in hierarchies.iter().filter(|(c, _)| SET.contains(&c.as_str())) {
                    let dir = mount.join(relative);
                    std::fs::create_dir_all(&dir)?;
                    match controller.as_str() {
                        "cpu" => {
                            set(&dir, "cpu.shares", pod.cpu_shares.to_string())?;
                            set(&dir, "cpu.cfs_period_us", CPU_PERIOD.to_string())?;
                            set(&dir, "cpu.cfs_quota_us", pod.cpu_quota.unwrap_or(-1).to_string())?;
                        }
                        "memory" => {
                            set(&dir, "memory.limit_in_bytes", pod.memory_bytes.unwrap_or(-1).to_string())?;
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Removes all cgroups below `kubepods`, and the root if it is not the machine's.
    pub fn remove_all(&self) -> io::Result<()> {
        let top = if self.root.is_empty() { "kubepods" } else { self.root.as_str() };
        self.mounts().iter().try_for_each(|mount| remove_tree(&mount.join(top)))
    }

    fn mounts(&self) -> Vec<&PathBuf> {
        match &self.layout {
            Layout::None => Vec::new(),
            Layout::Unified(mount) => vec![mount],
            Layout::Split(hierarchies) => hierarchies.iter().map(|(_, mount)| mount).collect(),
        }
    }

    /// Removes a pod's cgroup from every hierarchy, with the empty ones below it.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let relative = self.parent(uid, qos);
            for mount in self.mounts() {
                remove_tree(&mount.join(relative.trim_start_matches('/')))?;
            }
        }
        Ok(())
    }
}

fn detect_in(mount: &Path) -> Layout {
    if mount.join("cgroup.controllers").exists() {
        return Layout::Unified(mount.to_owned());
    }
    let Ok(entries) = std::fs::read_dir(mount) else { return Layout::None };
    let mut hierarchies = Vec::new();
    let mut real = std::collections::HashSet::new();
    for entry in entries.flatten() {
        let Some(path) = entry.path().canonicalize().ok().filter(|path| path.is_dir()) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        // Several names may lead to one hierarchy (`cpu`, `cpuacct`, `cpu,cpuacct`): the settable name counts.
        let known = SET.contains(&name.as_str());
        if real.insert(path.clone()) {
            hierarchies.push((name, path));
        } else if known && let Some(entry) = hierarchies.iter_mut().find(|(_, p)| *p == path) {
            entry.0 = name;
        }
    }
    if hierarchies.is_empty() { Layout::None } else { Layout::Split(hierarchies) }
}

/// v2: every cgroup on the way must hand its controllers down.
fn delegate(mount: &Path, relative: &str) -> io::Result<()> {
    let mut dir = mount.to_owned();
    for part in relative.split('/') {
        let available = std::fs::read_to_string(dir.join("cgroup.controllers"))?;
        let wanted = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];
        for controller in available.split_whitespace().filter(|c| wanted.contains(c)) {
            // One at a time, because one that cannot be handed down would take the others with it.
            let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir.push(part);
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Writes a value where the controller is there.
fn set(dir: &Path, file: &str, value: String) -> io::Result<()> {
    match std::fs::write(dir.join(file), value) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(())
        }
        result => result,
    }
}

/// CPU shares (2..262144) as a v2 weight (1..10000).
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart_and_aliases_counted_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        for name in ["cpu,cpuacct", "memory", "freezer"] {
            std::fs::create_dir(path.join(name)).expect("a hierarchy");
        }
        std::os::unix::fs::symlink("cpu,cpuacct", path.join("cpu")).expect("an alias");
        let Layout::Split(found) = detect_in(path) else { panic!("v1 expected") };
        let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["cpu", "freezer", "memory"]);
        let cgroups = Cgroups { layout: Layout::Split(found), root: String::new() };
        let pod =
            PodCgroup { qos: Qos::Burstable, cpu_shares: 512, cpu_quota: None, memory_bytes: Some(1024) };
        cgroups.create("u", &pod).expect("a cgroup");
        let made = path.join("memory/kubepods/burstable/podu");
        assert_eq!(std::fs::read_to_string(made.join("memory.limit_in_bytes")).expect("a value"), "1024");
        assert_eq!(cgroups.parent("u", Qos::Guaranteed), "/kubepods/podu");
        std::fs::write(path.join("cgroup.controllers"), "cpu").expect("a file");
        assert!(matches!(detect_in(path), Layout::Unified(_)));
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
