//! The binary's entry point for shims and their helpers: becoming a daemon, making the namespaces, and
//! telling whoever started us that the pod's sandbox stands.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use nix::unistd::{self, ForkResult};

use super::daemon::Daemon;
use super::namespaces;
use super::protocol::ShimConfig;

/// Entry point of the `shim` subcommand. `args` are the arguments behind the subcommand's name; what
/// stands before them on the command line is repeated when the shim re-executes itself.
///
/// Must be called before anything starts a thread (no tokio runtime yet).
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let outcome = match (args.first().and_then(|verb| verb.to_str()), args.get(1)) {
        (Some("run"), Some(config)) => run(Path::new(config), &args),
        (Some("helper"), None) => super::helper::main(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: shim run CONFIG | shim helper")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The part of our command line that re-enters [`shim_main`], and the program itself.
fn reexec_prefix(args: &[OsString]) -> Vec<OsString> {
    let whole: Vec<OsString> = std::env::args_os().collect();
    let mut prefix = vec![OsString::from("/proc/self/exe")];
    prefix.extend_from_slice(&whole[1..whole.len() - args.len()]);
    prefix
}

fn run(config: &Path, args: &[OsString]) -> io::Result<()> {
    let config: ShimConfig = serde_json::from_slice(&std::fs::read(config)?)?;
    let (ready_reader, ready_writer) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: no thread has been started, so the child may do anything the parent may.
    if let ForkResult::Parent { .. } = unsafe { unistd::fork() }? {
        drop(ready_writer);
        return await_ready(ready_reader);
    }
    drop(ready_reader);
    let mut ready = File::from(ready_writer);
    match start(&config, args) {
        Ok(mut daemon) => {
            ready.write_all(b"ok")?;
            drop(ready);
            daemon.run()
        }
        Err(error) => {
            // The parent repeats this on its stderr, where the server reads it.
            let _ = write!(ready, "{error}");
            Err(error)
        }
    }
}

fn await_ready(reader: OwnedFd) -> io::Result<()> {
    let mut answer = String::new();
    File::from(reader).read_to_string(&mut answer)?;
    match answer.as_str() {
        "ok" => Ok(()),
        "" => Err(io::Error::other("the sandbox process died while starting")),
        message => Err(io::Error::other(message.to_owned())),
    }
}

fn start(config: &ShimConfig, args: &[OsString]) -> io::Result<Daemon> {
    unistd::setsid()?;
    config.open_files.map_or(Ok(()), crate::limits::take_open_files)?;
    detach_stdio(&config.dir)?;
    std::env::set_current_dir("/")?;
    nix::sys::prctl::set_child_subreaper(true)?;
    if let Err(error) = crate::cgroup::join(&config.cgroup) {
        eprintln!("stays in the server's cgroup: {error}");
    }
    let holder = namespaces::create(config)?;
    crate::files::write_atomic(&config.dir.join(super::client::HOLDER_FILE), holder.to_string().as_bytes())?;
    let listener = UnixListener::bind(&config.socket)?;
    Daemon::new(config, listener, holder, reexec_prefix(args))
}

/// stdin and stdout become `/dev/null`, stderr the shim's log.
fn detach_stdio(dir: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).open(dir.join("shim.log"))?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&log)?;
    Ok(())
}

/// Gives back what a burst of work needed and idling does not, spare memory and pages of the program: a shim idles for the
/// pod's whole life.
pub(super) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
    if let (Ok(maps), Ok(program)) =
        (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe"))
    {
        for (start, end) in program_pages(&maps, &program) {
            // SAFETY: a private mapping of a file that nobody writes to: what is dropped is read again when it is needed.
            unsafe {
                libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Where constants and code of the program are mapped; what it writes to comes after them.
fn program_pages(maps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mut pages = Vec::new();
    for line in maps.lines().filter(|line| line.ends_with(&program.display().to_string())) {
        let mut words = line.split(' ');
        let range = words.next().and_then(|range| range.split_once('-'));
        let address = |text| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.and_then(|(start, end)| Some((address(start)?, address(end)?))) else {
            break;
        };
        match words.next() {
            Some("r--p") => pages.push((start, end)),
            Some("r-xp") => {
                pages.push((start, end));
                return pages;
            }
            _ => break,
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_written_to_is_given_back() {
        let maps = "00400000-00c06000 r--p 00000000 fe:00 7 /bin/cox\n\
                    00c06000-02f40000 r-xp 00806000 fe:00 7 /bin/cox\n\
                    02f41000-02f4c000 r--p 02b40000 fe:00 7 /bin/cox\n\
                    02f4c000-02f5c000 rw-p 02b4b000 fe:00 7 /bin/cox\n\
                    7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]\n";
        let pages = program_pages(maps, Path::new("/bin/cox"));
        assert_eq!(pages, [(0x0040_0000, 0x00c0_6000), (0x00c0_6000, 0x02f4_0000)]);
        assert!(program_pages(&maps.replace("r-xp", "rw-p"), Path::new("/bin/cox")).is_empty());
    }
}
