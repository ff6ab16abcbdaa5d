//! The pod's namespaces and who holds them: the shim itself, or, where a PID or user namespace is
//! shared, a pause process below it (the shim stays in the host's, where logs and cgroups are).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{self, ForkResult, Pid};

use super::protocol::{ShimConfig, UserMapping};

/// Makes the namespaces; returns the process whose `/proc/<pid>/ns` has them.
pub(super) fn create(config: &ShimConfig) -> io::Result<Pid> {
    if !config.shared_pid && config.user_namespace.is_none() {
        unshare(flags(config))?;
        configure(config)?;
        return Ok(unistd::getpid());
    }
    create_pause(config)
}

fn flags(config: &ShimConfig) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.private_network);
    flags.set(CloneFlags::CLONE_NEWIPC, config.private_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, config.hostname.is_some());
    flags
}

/// Forks a setup process that enters the namespaces and leaves a pause process in them. The setup
/// process ends at once, so the pause process becomes ours (we are a subreaper).
fn create_pause(config: &ShimConfig) -> io::Result<Pid> {
    let (from_setup, to_parent) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (from_parent, to_setup) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the shim is single-threaded.
    match unsafe { unistd::fork() }? {
        ForkResult::Child => {
            drop((from_setup, to_setup));
            let outcome = set_up_pause(config, &to_parent, &from_parent);
            if let Err(error) = &outcome {
                let _ = write!(File::from(to_parent), "E{error}");
            }
            std::process::exit(i32::from(outcome.is_err()));
        }
        ForkResult::Parent { child } => {
            drop((to_parent, from_parent));
            await_pause(config, child, File::from(from_setup), File::from(to_setup))
        }
    }
}

fn await_pause(config: &ShimConfig, child: Pid, mut from: File, mut to: File) -> io::Result<Pid> {
    let mut word = [0u8; 1];
    from.read_exact(&mut word)?;
    if word[0] == b'U' {
        if let Some(mapping) = &config.user_namespace {
            write_mapping(child, mapping)?;
        }
        to.write_all(b"m")?;
        from.read_exact(&mut word)?;
    }
    let mut rest = String::new();
    from.read_to_string(&mut rest)?;
    nix::sys::wait::waitpid(child, None)?;
    match (word[0], rest.parse()) {
        (b'P', Ok(pid)) => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::other(format!("cannot make the pod's namespaces: {rest}"))),
    }
}

fn write_mapping(pid: Pid, mapping: &UserMapping) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/uid_map"), &mapping.uids)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), &mapping.gids)
}

fn set_up_pause(config: &ShimConfig, to: &OwnedFd, from: &OwnedFd) -> io::Result<()> {
    if config.user_namespace.is_some() {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        unistd::write(to, b"U")?;
        unistd::read(from, &mut [0u8; 1])?;
        unistd::setgid(unistd::Gid::from_raw(0))?;
        unistd::setuid(unistd::Uid::from_raw(0))?;
        // Containers' first processes, root of this namespace only, open ours by /proc/<pid>/ns.
        nix::sys::prctl::set_dumpable(true)?;
    }
    unshare(flags(config))?;
    configure(config)?;
    if config.shared_pid {
        unshare(CloneFlags::CLONE_NEWPID)?;
    }
    // SAFETY: the setup process is single-threaded.
    match unsafe { unistd::fork() }? {
        ForkResult::Child => pause(),
        ForkResult::Parent { child } => {
            unistd::write(to, format!("P{child}").as_bytes())?;
            Ok(())
        }
    }
}

/// What a pod's first process does: nothing, but reap. Ends by a signal only.
fn pause() -> ! {
    // A pause process must not keep our listeners, logs or pipes open.
    // SAFETY: nothing of this process uses a descriptor from here on.
    unsafe {
        libc::close_range(0, u32::MAX, 0);
    }
    // With SIGCHLD ignored the kernel reaps for us.
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: no handler function is installed.
    let _ = unsafe { sigaction(Signal::SIGCHLD, &ignore) };
    loop {
        unistd::pause();
    }
}

/// Host name, loopback and kernel parameters, from inside the namespaces.
fn configure(config: &ShimConfig) -> io::Result<()> {
    if let Some(hostname) = &config.hostname {
        unistd::sethostname(hostname)?;
    }
    if config.private_network {
        loopback_up()?;
    }
    for (name, value) in &config.sysctls {
        std::fs::write(sysctl_path(name), value)
            .map_err(|error| io::Error::other(format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}

/// `/proc/sys` path of a parameter; both `net.ipv4.x` and `net/ipv4/x` are in use.
fn sysctl_path(name: &str) -> String {
    let separator = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    let path = match separator {
        Some(b'.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    format!("/proc/sys/{path}")
}

fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    nix::errno::Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::sysctl_path;

    #[test]
    fn both_spellings_of_a_parameter_name_one_file() {
        assert_eq!(sysctl_path("net.ipv4.ip_local_port_range"), "/proc/sys/net/ipv4/ip_local_port_range");
        assert_eq!(sysctl_path("net/ipv4/tcp_syncookies"), "/proc/sys/net/ipv4/tcp_syncookies");
        assert_eq!(
            sysctl_path("net.ipv4.conf.eno2/100.rp_filter"),
            "/proc/sys/net/ipv4/conf/eno2.100/rp_filter"
        );
    }
}
