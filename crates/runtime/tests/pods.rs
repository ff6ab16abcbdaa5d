//! Pods for real: sandboxes, containers, logs, exits, exec, stopping, and servers that come and go.
#![allow(missing_docs)]

mod support;

use coxswain_cri::v1::*;
use support::{Fixture, can_run, shell};

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_the_sandbox_and_their_fate_is_reported() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let first = fixture.shell(&sandbox, "first", "hostname; echo oops >&2; exec sleep 1000").await;
    let second = fixture.shell(&sandbox, "second", "cat /etc/resolv.conf; exit 3").await;

    let status = fixture.exited(&second).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    assert_eq!(fixture.log("pod", "second"), ["stdout F nameserver 10.43.0.10"]);
    let mut log = fixture.log("pod", "first");
    log.sort();
    assert_eq!(log, ["stderr F oops", "stdout F pod"]);

    for namespace in ["net", "ipc", "uts"] {
        let third = fixture.shell(&sandbox, namespace, &format!("ls -l /proc/self/ns/{namespace}")).await;
        fixture.exited(&third).await;
        let inside = fixture.exec(&first, &format!("ls -l /proc/self/ns/{namespace}")).await;
        let there = String::from_utf8(inside.stdout).unwrap();
        let here = fixture.log("pod", namespace).join("");
        let inode = |text: &str| text.split_once('[').map(|(_, rest)| rest.trim().to_owned());
        assert!(inode(&there).is_some());
        assert_eq!(inode(&there), inode(&here), "{namespace}");
    }
    fixture.finish().await;
}
