//! What clients do to harm: requests that never end, connections without a purpose, bodies that are too much. The server
//! cuts them off, answers others meanwhile, and does not grow.
#![allow(missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use coxswain_testkit::{Api, Cluster, Options, Request, is_root};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;

/// What is slow is cut off before this; the server's own bounds are 10, 20 and 30 s.
const BOUND: Duration = Duration::from_secs(90);
const CONNECTIONS: usize = 10_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LARGE: usize = 100 << 20;
/// What the server may come to hold besides, for all connections, or for all bodies.
const GROWTH_KIB: u64 = 320 << 10;

type Step = fn(&Cluster) -> anyhow::Result<()>;

#[test]
fn those_who_mean_harm_get_nowhere() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let arguments = vec!["--request-timeout=20s".to_owned()];
    let cluster = Cluster::start(Options { no_node: true, arguments, ..Options::default() })?;
    let steps: [(&str, Step); 4] = [
        ("what never ends is cut off", endless),
        ("documents too deep and labels too long are refused", shapeless),
        ("bodies of 100 MB are refused and not kept", heavy),
        ("10,000 connections without a purpose hold nobody up", idle),
    ];
    for (name, step) in steps {
        step(&cluster).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        eprintln!("ok: {name}");
    }
    Ok(())
}

/// The server's memory, KiB.
fn memory(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.server_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn answers(api: &Api) -> anyhow::Result<Duration> {
    let start = Instant::now();
    api.get("/api/v1/namespaces/default")?;
    Ok(start.elapsed())
}

/// Sends a piece again and again, with a pause between, until the server ends the connection; gives what it said and when.
fn trickle(
    mut stream: impl Read + Write,
    socket: &TcpStream,
    piece: &[u8],
) -> anyhow::Result<(String, Duration)> {
    let (start, mut said) = (Instant::now(), Vec::new());
    // A read that waits is the pause.
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    while start.elapsed() < BOUND {
        let mut some = [0; 1024];
        match stream.read(&mut some) {
            Ok(0) => return Ok((String::from_utf8_lossy(&said).into_owned(), start.elapsed())),
            Ok(count) => said.extend_from_slice(&some[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // Whether it could be sent, the next read tells.
                let _ = stream.write_all(piece).and_then(|()| stream.flush());
            }
            Err(_) => return Ok((String::from_utf8_lossy(&said).into_owned(), start.elapsed())),
        }
    }
    anyhow::bail!("it still goes on after {BOUND:?}; it said {:?}", String::from_utf8_lossy(&said))
}

fn endless(cluster: &Cluster) -> anyhow::Result<()> {
    let api = cluster.api()?;
    let tls = |protocol: &str, first: &[u8], piece: &[u8]| {
        let mut stream = api.stream(protocol)?;
        stream.write_all(first)?;
        stream.flush()?;
        let socket = stream.sock.try_clone()?;
        trickle(stream, &socket, piece)
    };
    let handshake = |first: &[u8]| {
        let mut socket = api.socket()?;
        socket.write_all(first)?;
        trickle(socket.try_clone()?, &socket, b"")
    };
    let head = b"GET /version HTTP/1.1\r\nHost: server\r\n";
    let body = b"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews HTTP/1.1\r\nHost: server\r\n\
        Content-Type: application/json\r\nContent-Length: 10000\r\n\r\n{";
    let chunked = b"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews HTTP/1.1\r\nHost: server\r\n\
        Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    std::thread::scope(|scope| {
        let (tls, handshake) = (&tls, &handshake);
        let attempts = [
            ("a handshake of nothing", scope.spawn(move || handshake(b""))),
            // The beginning of a ClientHello that says it has 512 bytes.
            ("a handshake that does not end", scope.spawn(move || handshake(b"\x16\x03\x01\x02\x00\x01"))),
            ("no request", scope.spawn(move || tls("http/1.1", b"", b""))),
            ("no request after a handshake for HTTP/2", scope.spawn(move || tls("h2", b"", b""))),
            ("no request after the preface of HTTP/2", scope.spawn(move || tls("h2", preface, b""))),
            ("headers that do not end", scope.spawn(move || tls("http/1.1", head, b"X-More: 1\r\n"))),
            ("a body that does not end", scope.spawn(move || tls("http/1.1", body, b" "))),
            ("chunks that do not end", scope.spawn(move || tls("http/1.1", chunked, b"1\r\n \r\n"))),
        ];
        for (name, attempt) in attempts {
            let ended = attempt.join().unwrap_or_else(|_| panic!("{name}: a panic"));
            let (said, after) = ended.context(name)?;
            let first = said.lines().next().unwrap_or_default();
            eprintln!("    {name}: ended after {:.0} s, {first:?}", after.as_secs_f64());
        }
        Ok(())
    })
}

fn shapeless(cluster: &Cluster) -> anyhow::Result<()> {
    let (api, before) = (cluster.api()?, memory(cluster)?);
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(1_000_000), close.repeat(1_000_000));
    let label =
        |key: &str, value: &str| json!({"metadata": {"name": "a", "labels": {key: value}}}).to_string();
    let long = "x".repeat(1 << 20);
    let (json, yaml, protobuf) =
        ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf");
    let bad = [
        ("nested lists", json, deep("[", "]")),
        ("nested objects", json, format!("{}1", "{\"a\":".repeat(500_000))),
        ("nested YAML", yaml, deep("[", "]")),
        ("YAML of many levels", yaml, "- ".repeat(1_000_000)),
        ("YAML of references", yaml, bombs()),
        ("no protobuf", protobuf, format!("k8s\0{}", "\n\u{7f}".repeat(1_000_000))),
        ("a label's value", json, label("a", &long)),
        ("a label's key", json, label(&long, "a")),
    ];
    for (name, media_type, body) in bad {
        let response = api.send(&Request::with_body("POST", MAPS, media_type, body))?;
        anyhow::ensure!(
            (400..500).contains(&response.code),
            "{name}: {} {:.300}",
            response.code,
            response.text()
        );
        eprintln!("    {name}: {}", response.code);
    }
    eprintln!("    memory: {} KiB, before {before} KiB", memory(cluster)?);
    Ok(())
}

/// A document of a few lines that would be a billion words.
fn bombs() -> String {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h", "i", "j"].iter().zip("abcdefghi".chars()) {
        text.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(", ")));
    }
    text
}

fn heavy(cluster: &Cluster) -> anyhow::Result<()> {
    let (api, before) = (cluster.api()?, memory(cluster)?);
    let announced = || -> anyhow::Result<String> {
        let body = vec![b' '; LARGE];
        // Who still sends when he is answered may not come to read it.
        let answer = api.send(&Request::with_body("POST", MAPS, "application/json", body));
        Ok(answer.map_or_else(|_| String::new(), |answer| format!("{} {}", answer.code, answer.text())))
    };
    let chunked = || -> anyhow::Result<String> {
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n\
             Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let mut stream = api.stream("http/1.1")?;
        stream.write_all(head.as_bytes())?;
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 1 << 16], b"\r\n"].concat();
        // A server may end the connection before it has everything.
        let _ = (0..LARGE >> 16).try_for_each(|_| stream.write_all(&chunk));
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        Ok(String::from_utf8_lossy(&said).trim_start_matches("HTTP/1.1 ").to_owned())
    };
    let mut peak = 0;
    std::thread::scope(|scope| {
        let attempts = [scope.spawn(announced), scope.spawn(chunked)];
        while attempts.iter().any(|attempt| !attempt.is_finished()) {
            peak = peak.max(memory(cluster)?);
            answers(&api)?;
        }
        for attempt in attempts {
            let said = attempt.join().unwrap_or_else(|_| panic!("a panic"))?;
            anyhow::ensure!(said.is_empty() || said.starts_with("413"), "{said:.300}");
            eprintln!("    {}", said.lines().next().unwrap_or("cut off"));
        }
        Ok::<_, anyhow::Error>(())
    })?;
    eprintln!("    memory: {peak} KiB at the most, before {before} KiB");
    anyhow::ensure!(peak < before + GROWTH_KIB / 4, "it grew from {before} to {peak} KiB");
    Ok(())
}

/// Connections after their handshake; those that came first may have ended before the last is there.
fn handshakes(api: &Api, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let some =
        || (0..count / 4).map(|_| Ok(api.stream("http/1.1")?.sock)).collect::<anyhow::Result<Vec<_>>>();
    std::thread::scope(|scope| {
        let shaking: Vec<_> = (0..4).map(|_| scope.spawn(some)).collect();
        let shaken = shaking.into_iter().map(|one| one.join().unwrap_or_else(|_| panic!("a panic")));
        let all = shaken.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    })
}

fn idle(cluster: &Cluster) -> anyhow::Result<()> {
    let (api, before) = (cluster.api()?, memory(cluster)?);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = CONNECTIONS.min(usize::try_from(limit)?.saturating_sub(500));
    if count < CONNECTIONS {
        eprintln!("    only {count} connections: this process may have {limit} files");
    }
    let files = || -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", cluster.server_pid()?))?.count())
    };
    for secured in [false, true] {
        let connections = match secured {
            false => api.sockets(count)?,
            true => handshakes(&api, count)?,
        };
        let (open, now, took) = (files()?, memory(cluster)?, answers(&api)?);
        let kind = if secured { "after their handshake" } else { "before their handshake" };
        eprintln!(
            "    {open} files open of {count} connections {kind}; memory {now} KiB, before {before} KiB; others wait {took:?}"
        );
        anyhow::ensure!(now < before + GROWTH_KIB, "it grew from {before} to {now} KiB");
        let start = Instant::now();
        while files()? > 500 {
            anyhow::ensure!(start.elapsed() < BOUND, "{} files are still open", files()?);
            answers(&api)?;
        }
        eprintln!("    the server has ended them; memory {} KiB", memory(cluster)?);
        drop(connections);
    }
    Ok(())
}
