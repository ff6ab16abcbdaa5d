//! `cox`: Kubernetes in one binary. This file only chooses the entry point.

mod access;
mod agent;
mod backup;
mod client;
mod config;
mod datastore;
mod demo;
mod election;
mod files;
mod image;
mod join;
mod node;
mod notepad;
mod pki;
mod registries;
mod removal;
mod secrets;
mod server;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Kubernetes in one binary.
#[derive(Parser)]
#[command(name = "cox", version, args_override_self = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane, and a node unless --no-node.
    Server(Box<config::ServerArgs>),
    /// Run a node of a cluster whose control plane is elsewhere.
    Agent(Box<config::AgentArgs>),
    /// Make, list and remove the tokens that nodes join with.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Write everything the control plane keeps to a file, while it runs.
    Backup(backup::BackupArgs),
    /// Make a cluster of what `cox backup` wrote, in a directory or an etcd that has none.
    Restore(backup::BackupArgs),
    /// Renew the key that Secrets are sealed with.
    #[command(subcommand)]
    Secrets(Box<secrets::SecretsCommand>),
    /// Run a throwaway cluster with a demo app; Ctrl-C removes every trace of it.
    Demo(demo::DemoArgs),
    /// Import, list and remove the images of a node.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// The demo app: a small notepad over HTTP. Demo images run it.
    #[command(hide = true)]
    Notepad(notepad::NotepadArgs),
}

/// A document is hundreds of small blocks, made on one thread and dropped on another, and a burst of them is to be given back:
/// the system's allocator takes longer for the first and keeps the second.
#[global_allocator]
static ALLOCATOR: coxswain_runtime::Allocator = coxswain_runtime::Allocator;

fn main() -> ExitCode {
    // A pod's shim starts containers by fork: it must not find threads, so it is not a subcommand like the others.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "shim") {
        // mimalloc turns huge pages off for every process it is in. Containers would inherit that.
        let _ = nix::sys::prctl::set_thp_disable(false);
        return coxswain_runtime::shim_main(std::env::args_os().skip(2));
    }
    let arguments = match config::with_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let cli = Cli::parse_from(arguments);
    let outcome = match cli.command {
        Command::Server(args) => {
            log_to_stderr("info");
            serve(server::run(*args))
        }
        Command::Agent(args) => {
            log_to_stderr("info");
            serve(agent::run(*args))
        }
        Command::Token(command) => run(1, token::run(command)),
        Command::Demo(args) => {
            // Watches whose pods are on their way out are refused at its end, as they should be.
            log_to_stderr("warn,kube_runtime::watcher=error");
            serve(demo::run(args))
        }
        Command::Backup(args) => run(1, backup::backup(args)),
        Command::Restore(args) => run(1, backup::restore(args)),
        Command::Image(command) => run(1, image::run(command)),
        Command::Secrets(command) => run(1, secrets::run(*command)),
        Command::Notepad(args) => notepad::run(&args),
    };
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("cox: {error:#}");
    ExitCode::FAILURE
}

fn log_to_stderr(level: &str) {
    let filter =
        EnvFilter::try_from_env("COX_LOG").unwrap_or_else(|_| EnvFilter::new(format!("{level},nlink=error")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Many clients are many connections.
fn serve(task: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    if let Err(error) = coxswain_runtime::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    run(2, task)
}

fn run(workers: usize, task: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let ended = runtime.block_on(task);
    // A blocking call that hangs, such as on a dead mount, does not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    ended
}
