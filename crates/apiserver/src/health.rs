//! Health: `/livez`, `/readyz` and the older `/healthz`, whole or check by check.
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>

use std::sync::atomic::Ordering;

use coxswain_meta::Status;
use http::{Response, StatusCode};

use crate::Server;
use crate::body::Body;
use crate::request::Query;
use crate::respond::{self, Outcome};

type Check = fn(&Server) -> Result<(), &'static str>;

const PING: (&str, Check) = ("ping", |_| Ok(()));
const DATASTORE: (&str, Check) = ("datastore", |server| match server.store.is_refusing_writes() {
    true => Err("the newest write was refused"),
    false => Ok(()),
});
const BOOTSTRAP: (&str, Check) =
    ("poststarthook/bootstrap", |server| match server.ready.load(Ordering::Acquire) {
        true => Ok(()),
        false => Err("not finished"),
    });
const SHUTDOWN: (&str, Check) = ("shutdown", |server| match server.shutdown.is_cancelled() {
    true => Err("process is shutting down"),
    false => Ok(()),
});

/// The checks of an endpoint.
fn checks(endpoint: &str) -> Option<&'static [(&'static str, Check)]> {
    match endpoint {
        // A restart makes no room on a disk.
        "livez" => Some(&[PING]),
        "healthz" => Some(&[PING, DATASTORE, BOOTSTRAP]),
        "readyz" => Some(&[PING, DATASTORE, BOOTSTRAP, SHUTDOWN]),
        _ => None,
    }
}

/// Answers a health path; none for others.
pub fn answer(server: &Server, path: &str, query: &Query) -> Option<Outcome> {
    let (endpoint, one) = path
        .trim_start_matches('/')
        .split_once('/')
        .map_or_else(|| (path.trim_start_matches('/'), None), |(endpoint, check)| (endpoint, Some(check)));
    let checks = checks(endpoint)?;
    let answer = match one {
        None => Ok(all(server, endpoint, checks, query)),
        Some(name) => match checks.iter().find(|(known, _)| *known == name) {
            Some((_, check)) => Ok(single(check(server))),
            None => Err(Status::unknown_path()),
        },
    };
    Some(answer)
}

fn single(found: Result<(), &'static str>) -> Response<Body> {
    match found {
        Ok(()) => respond::text(StatusCode::OK, "ok"),
        Err(why) => {
            respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
        }
    }
}

fn all(server: &Server, endpoint: &str, checks: &[(&'static str, Check)], query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut told, mut failed) = (String::new(), false);
    for (name, check) in checks {
        let line = if excluded.contains(name) {
            format!("[+]{name} excluded: ok\n")
        } else if check(server).is_ok() {
            format!("[+]{name} ok\n")
        } else {
            failed = true;
            // Why is for those who ask the check itself.
            format!("[-]{name} failed: reason withheld\n")
        };
        told.push_str(&line);
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|(known, _)| known == *name))
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
