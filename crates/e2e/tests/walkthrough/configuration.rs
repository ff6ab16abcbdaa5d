//! Step 6: ConfigMap and Secret by environment and by file, and what a change of them reaches.

use std::net::SocketAddr;

use coxswain_e2e::pods::wait_ready;
use coxswain_testkit::{Request, eventually};

use crate::{LONG, Walk, example, manifest};

pub fn comes_up(walk: &Walk) -> anyhow::Result<String> {
    walk.apply(example("config.yaml"))?;
    walk.apply(manifest("reader.yaml"))?;
    wait_ready(&walk.api, "titled", 1, LONG)?;
    wait_ready(&walk.api, "reader", 1, LONG)?;
    Ok("the pods titled and reader are ready".to_owned())
}

pub fn reaches_the_pods(walk: &Walk) -> anyhow::Result<String> {
    let pods = wait_ready(&walk.api, "titled", 1, LONG)?;
    let address = pods["default/titled"]["status"]["podIP"].as_str().unwrap_or_default();
    let address: SocketAddr = format!("{address}:8083").parse()?;
    let page = walk.cluster.http(address, &Request::get("/"))?.text();
    anyhow::ensure!(page.starts_with("My notes\n"), "{page}");
    let expected = [
        ("echo $TITLE", "My notes\n"),
        ("echo $DB_PASSWORD", "s3cret-and-long\n"),
        ("echo $username", "admin\n"),
        ("cat /etc/settings/settings.json", "{\"theme\": \"dark\"}\n"),
        ("cat /etc/db/password", "s3cret-and-long"),
        ("touch /etc/db/new 2>/dev/null || echo read-only", "read-only\n"),
    ];
    for (command, output) in expected {
        let found = walk.in_reader(&["sh", "-c", command])?;
        anyhow::ensure!(found == output, "{command}: {found:?} instead of {output:?}");
    }
    let change = r#"{"data":{"title":"Our notes","settings.json":"{\"theme\": \"light\"}\n"}}"#;
    walk.cluster.kubectl(&["patch", "configmap", "notepad-settings", "--type=merge", "-p", change])?;
    eventually("the change in the mounted file", LONG, || {
        let found = walk.in_reader(&["cat", "/etc/settings/settings.json"])?;
        anyhow::ensure!(found == "{\"theme\": \"light\"}\n", "{found:?}");
        Ok(())
    })?;
    let title = walk.in_reader(&["sh", "-c", "echo $TITLE"])?;
    anyhow::ensure!(title == "My notes\n", "the environment of a process does not change: {title:?}");
    let secret = walk.cluster.kubectl(&["describe", "secret", "notepad-db"])?;
    anyhow::ensure!(!secret.contains("s3cret") && secret.contains("15 bytes"), "{secret}");
    Ok("files and environment as written; the change reached the file, not the environment".to_owned())
}
