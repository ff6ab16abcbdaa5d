//! What `cox server` and `cox agent` are told: flags, environment and a YAML file are one configuration.
//!
//! A flag beats the environment, the environment beats the file, the file beats the default. A key of the file is a
//! flag's name without the dashes in front.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use k8s_openapi::api::core::v1::Taint;
use serde_yaml::Value;

use crate::access::AccessArgs;
use crate::datastore::DatastoreArgs;
use crate::join::JoinToken;

/// What server and agent are told alike: where things are kept, and who this machine is.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// A YAML file whose keys are the names of these flags.
    #[arg(long, env = "COX_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The directory that holds everything kept on this machine.
    #[arg(long, env = "COX_DATA_DIR", value_name = "DIR", default_value = "/var/lib/coxswain")]
    pub data_dir: PathBuf,

    /// The address of this node; found by the default route where it is not given.
    #[arg(long, env = "COX_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,

    /// The name of this node; the host's where it is not given.
    #[arg(long, env = "COX_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Labels the node is registered with.
    #[arg(long, env = "COX_NODE_LABELS", value_name = "KEY=VALUE,…", value_delimiter = ',', value_parser = label)]
    pub node_labels: Vec<(String, String)>,

    /// Taints the node is registered with.
    #[arg(long, env = "COX_REGISTER_WITH_TAINTS", value_name = "KEY=VALUE:EFFECT,…", value_delimiter = ',', value_parser = taint)]
    pub register_with_taints: Vec<Taint>,

    /// Registries' mirrors, authorities and credentials: a YAML file.
    #[arg(long, env = "COX_REGISTRY_CONFIG", value_name = "FILE")]
    pub registry_config: Option<PathBuf>,
}

/// The flags of `cox server`.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// What an agent is told too.
    #[command(flatten)]
    pub node: NodeArgs,

    /// The address the API server listens on.
    #[arg(long, env = "COX_BIND_ADDRESS", value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,

    /// The port the API server listens on.
    #[arg(long, env = "COX_SECURE_PORT", value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,

    /// Leave the node out: an API server with its controllers.
    #[arg(long, env = "COX_NO_NODE", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    pub no_node: bool,

    /// Leave scheduler and controllers out: with --no-node, the bare API server.
    #[arg(long, env = "COX_NO_CONTROLLERS", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    pub no_controllers: bool,

    /// Where the cluster is kept.
    #[command(flatten)]
    pub datastore: DatastoreArgs,

    /// Who may come in.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// The flags of `cox agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// What a server is told too.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Where the cluster's API server is: `https://HOST:PORT`.
    #[arg(long, env = "COX_SERVER", value_name = "URL")]
    pub server: http::Uri,

    /// What `cox token create` printed; not needed once the node has joined.
    #[arg(long, env = "COX_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<JoinToken>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn taint(text: &str) -> Result<Taint, String> {
    let (key, effect) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no effect"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("{effect:?} is not an effect: NoSchedule, PreferNoSchedule, NoExecute"));
    }
    let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value.to_owned())));
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

/// The command line with the keys of the configuration file put in front of its flags.
pub fn with_file(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let Some(command) = arguments.get(1).and_then(|command| command.to_str()) else { return Ok(arguments) };
    if !["server", "agent"].contains(&command) {
        return Ok(arguments);
    }
    let Some(file) = file_named(&arguments[2..]).or_else(|| std::env::var_os("COX_CONFIG")) else {
        return Ok(arguments);
    };
    let shown = file.to_string_lossy().into_owned();
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("reading the configuration {shown}"))?;
    let keys = flags_of(command, &text).with_context(|| format!("in the configuration {shown}"))?;
    Ok(arguments[..2].iter().cloned().chain(keys).chain(arguments[2..].iter().cloned()).collect())
}

fn file_named(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => return arguments.next().cloned(),
            Some(text) => {
                if let Some(file) = text.strip_prefix("--config=") {
                    return Some(file.into());
                }
            }
            None => {}
        }
    }
    None
}

/// The keys of a file as flags, without those that the environment sets.
fn flags_of(command: &str, text: &str) -> anyhow::Result<Vec<OsString>> {
    let keys: std::collections::BTreeMap<String, Value> = serde_yaml::from_str(text)?;
    let all = crate::Cli::command();
    let command =
        all.find_subcommand(command).with_context(|| format!("the command `{command}` is missing"))?;
    let mut flags = Vec::new();
    for (key, value) in keys {
        let known =
            command.get_arguments().find(|argument| argument.get_long() == Some(&key) && key != "config");
        let known = known.with_context(|| format!("unknown key {key:?}"))?;
        if known.get_env().is_some_and(|name| std::env::var_os(name).is_some()) {
            continue;
        }
        let value = match value {
            Value::String(text) => text,
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Sequence(texts) if texts.iter().all(Value::is_string) => {
                texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
            }
            _ => anyhow::bail!("key {key:?} takes a text, a number, a boolean or a list of texts"),
        };
        flags.push(format!("--{key}={value}").into());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_flag_beats_the_file_and_an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "secure-port: 7443\nno-node: true\nnode-name: from-file\n").unwrap();
        let config = format!("--config={}", file.display());
        let parse = |more: &[&str]| {
            let arguments = ["cox", "server", &config].iter().chain(more).map(OsString::from).collect();
            let crate::Command::Server(args) = crate::Cli::parse_from(with_file(arguments).unwrap()).command
            else {
                panic!()
            };
            args
        };
        let args = parse(&["--node-name=from-flag"]);
        assert_eq!(
            (args.secure_port, args.no_node, args.node.node_name.as_deref()),
            (7443, true, Some("from-flag"))
        );
        std::fs::write(&file, "secure-prot: 7443\n").unwrap();
        let arguments = ["cox", "server", &config].map(OsString::from).to_vec();
        assert!(format!("{:#}", with_file(arguments).unwrap_err()).contains("unknown key \"secure-prot\""));
    }
}
