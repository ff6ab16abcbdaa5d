//! Health: `/livez`, `/readyz` and the older `/healthz`, whole or check by check.
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>

use std::sync::atomic::Ordering;
use std::time::Duration;

use coxswain_meta::Status;
use futures::future::join_all;
use http::{Response, StatusCode};

use crate::Server;
use crate::body::Body;
use crate::request::Query;
use crate::respond::{self, Outcome};

/// etcd has so long to answer; upstream's.
const ETCD_PATIENCE: Duration = Duration::from_secs(2);

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Ping,
    /// The newest write was taken.
    Datastore,
    /// And etcd answers; its readiness is the same, under the other name that upstream has for it.
    Etcd,
    EtcdReadiness,
    Bootstrap,
    Shutdown,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Datastore => "datastore",
            Self::Etcd => "etcd",
            Self::EtcdReadiness => "etcd-readiness",
            Self::Bootstrap => "poststarthook/bootstrap",
            Self::Shutdown => "shutdown",
        }
    }

    async fn run(self, server: &Server) -> Result<(), String> {
        let (right, why) = match self {
            Self::Ping => return Ok(()),
            Self::Datastore => (!server.store.is_refusing_writes(), "the newest write was refused"),
            Self::Etcd | Self::EtcdReadiness => {
                return match tokio::time::timeout(ETCD_PATIENCE, server.store.sync()).await {
                    Ok(answer) => answer.map_err(|error| format!("error getting data from etcd: {error}")),
                    Err(_) => Err("error getting data from etcd: context deadline exceeded".to_owned()),
                };
            }
            Self::Bootstrap => (server.ready.load(Ordering::Acquire), "not finished"),
            Self::Shutdown => (!server.shutdown.is_cancelled(), "process is shutting down"),
        };
        if right { Ok(()) } else { Err(why.to_owned()) }
    }
}

/// The checks of an endpoint; etcd's are those of servers on one.
fn checks(endpoint: &str, on_etcd: bool) -> Option<Vec<Check>> {
    use Check::{Bootstrap, Datastore, Etcd, EtcdReadiness, Ping, Shutdown};
    let mut checks = match endpoint {
        // A restart makes no room on a disk, and heals no network.
        "livez" => vec![Ping],
        "healthz" => vec![Ping, Datastore, Etcd, Bootstrap],
        "readyz" => vec![Ping, Datastore, Etcd, EtcdReadiness, Bootstrap, Shutdown],
        _ => return None,
    };
    checks.retain(|check| on_etcd || !matches!(check, Etcd | EtcdReadiness));
    Some(checks)
}

/// Answers a health path; none for others.
pub async fn answer(server: &Server, path: &str, query: &Query) -> Option<Outcome> {
    let (endpoint, one) = path
        .trim_start_matches('/')
        .split_once('/')
        .map_or_else(|| (path.trim_start_matches('/'), None), |(endpoint, check)| (endpoint, Some(check)));
    let checks = checks(endpoint, server.store.is_shared())?;
    let answer = match one {
        None => Ok(all(server, endpoint, &checks, query).await),
        Some(name) => match checks.iter().find(|check| check.name() == name) {
            Some(check) => Ok(single(check.run(server).await)),
            None => Err(Status::unknown_path()),
        },
    };
    Some(answer)
}

fn single(found: Result<(), String>) -> Response<Body> {
    match found {
        Ok(()) => respond::text(StatusCode::OK, "ok"),
        Err(why) => {
            respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
        }
    }
}

async fn all(server: &Server, endpoint: &str, checks: &[Check], query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut told, mut failed) = (String::new(), false);
    let look = async |check: &Check| {
        let name = check.name();
        if excluded.contains(&name) { (name, None) } else { (name, Some(check.run(server).await)) }
    };
    for (name, found) in join_all(checks.iter().map(look)).await {
        let line = match found {
            None => format!("[+]{name} excluded: ok\n"),
            Some(Ok(())) => format!("[+]{name} ok\n"),
            Some(Err(why)) => {
                failed = true;
                tracing::info!(check = name, why, "a health check fails");
                // Why is for those who ask the check itself.
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        told.push_str(&line);
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|check| check.name() == **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        told.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.join(", ")
        ));
    }
    if failed {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{told}{endpoint} check failed\n"));
    }
    match query.all("verbose").next() {
        Some(_) => respond::text(StatusCode::OK, format!("{told}{endpoint} check passed\n")),
        None => respond::text(StatusCode::OK, "ok"),
    }
}
