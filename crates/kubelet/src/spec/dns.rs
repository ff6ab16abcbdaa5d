//! Host name, resolver and hosts file of a pod. Pure, but for the node's own files that are passed in as text.

use k8s_openapi::api::core::v1::Pod;

use crate::KubeletConfig;
use crate::model::PodId;
use crate::pod::containers::{host_network, spec};

/// Servers, search domains and options of a resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, `name` or `name:value`.
    pub options: Vec<String>,
}

/// Reads a `resolv.conf`.
pub fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search") => resolver.searches = rest(words).into_iter().filter(|s| s != ".").collect(),
            Some("options") => resolver.options = rest(words),
            _ => {}
        }
    }
    resolver
}

/// The pod's resolver; `node` is the node's own.
pub fn resolver(config: &KubeletConfig, pod: &Pod, node: Resolver) -> Resolver {
    let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    } && !config.cluster_dns.is_empty();
    let mut resolver = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let domain = &config.cluster_domain;
        let namespace = PodId::of(pod).namespace;
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        Resolver {
            servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
            searches: own.into_iter().chain(node.searches).collect(),
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        node
    };
    add_own(pod, &mut resolver);
    let mut seen = std::collections::HashSet::new();
    resolver.servers.retain(|server| seen.insert(server.clone()));
    resolver.servers.truncate(3);
    seen.clear();
    resolver.searches.retain(|search| seen.insert(search.clone()));
    resolver.searches.truncate(32);
    resolver
}

/// `dnsConfig`.
fn add_own(pod: &Pod, resolver: &mut Resolver) {
    let Some(own) = &spec(pod).dns_config else { return };
    resolver.servers.extend(own.nameservers.iter().flatten().cloned());
    resolver.searches.extend(own.searches.iter().flatten().cloned());
    for option in own.options.iter().flatten() {
        let name = option.name.as_deref().unwrap_or_default();
        resolver.options.retain(|old| old.split(':').next() != Some(name));
        resolver.options.push(match option.value.as_deref().filter(|value| !value.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
}

/// Host name and domain of a pod; a name that is too long is cut.
pub fn hostname(config: &KubeletConfig, pod: &Pod) -> (String, Option<String>) {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), None);
    }
    let id = PodId::of(pod);
    let mut name = spec.hostname.clone().filter(|name| !name.is_empty()).unwrap_or(id.name);
    name.truncate(63);
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    (name, subdomain.map(|s| format!("{s}.{}.svc.{}", id.namespace, config.cluster_domain)))
}

/// The host name the pod's processes see (`setHostnameAsFQDN`).
pub fn visible_hostname(config: &KubeletConfig, pod: &Pod) -> String {
    if host_network(pod) {
        return config.hostname.clone();
    }
    match hostname(config, pod) {
        (name, Some(domain)) if spec(pod).set_hostname_as_fqdn == Some(true) => format!("{name}.{domain}"),
        (name, _) => name,
    }
}

/// `/etc/hosts` of a pod; a pod on the host's network gets the node's own text.
pub fn hosts_file(config: &KubeletConfig, pod: &Pod, ips: &[String], node: &str) -> String {
    let mut text = if host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{node}")
    } else {
        let own = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                   fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
        let (name, domain) = hostname(config, pod);
        let names = domain.map_or(name.clone(), |domain| format!("{name}.{domain}\t{name}"));
        let lines: String = ips.iter().map(|ip| format!("{ip}\t{names}\n")).collect();
        format!("# Kubernetes-managed hosts file.\n{own}{lines}")
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}
