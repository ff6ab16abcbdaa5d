//! The audit log, from a request to the lines of the file.

use std::time::Duration;

use coxswain_meta::json::{Value, json};
use http::Method;

use super::Fixture;
use crate::{AccessConfig, AuditConfig, AuditDelivery, AuditMode, AuditWebhookConfig, LogConfig};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: None, resources: [{group: "", resources: [endpoints]}]}
- {level: RequestResponse, omitStages: [RequestReceived], resources: [{group: "", resources: [configmaps]}]}
- {level: Metadata, omitStages: [RequestReceived]}
"#;

#[tokio::test]
async fn what_the_policy_names_is_written_down() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.log");
    let delivery = AuditDelivery { buffer_size: 100, ..delivery(AuditMode::Blocking) };
    let log = LogConfig { path: path.clone(), max_age_days: 0, max_backups: 0, max_size_bytes: 0, delivery };
    let audit = Some(AuditConfig { policy: POLICY.as_bytes().to_vec(), log: Some(log), webhook: None });
    let server = Fixture::start_with(AccessConfig { audit, ..AccessConfig::default() }).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    server.post(maps, json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    server.get("/api/v1/namespaces/default/endpoints").await;
    server.of("ann", &[]).get("/api/v1/namespaces/default/secrets/s").await;
    server
        .as_stranger(Method::GET, "/api/v1/nodes", &[("authorization", "Bearer x".into())], Value::Null)
        .await;
    let as_bob = [("impersonate-user", "bob".to_owned())];
    let admin = server.server.as_user(crate::UserInfo::new("tester", &["system:masters"]));
    let request =
        http::Request::get("/api/v1/namespaces").header(as_bob[0].0, &as_bob[0].1).body(String::new());
    let _ = tower::ServiceExt::oneshot(admin, request.expect("a request")).await;
    let events = lines(&path, 4).await;
    let [made, refused, stranger, as_bob] = &events[..] else { panic!("{events:#?}") };
    let of = |event: &Value, pointers: &[&str]| {
        pointers.iter().map(|p| event.pointer(p).cloned().unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(
        of(
            made,
            &[
                "/kind",
                "/stage",
                "/verb",
                "/user/username",
                "/objectRef/name",
                "/responseStatus/code",
                "/requestObject/data/k"
            ]
        ),
        [
            json!("Event"),
            json!("ResponseComplete"),
            json!("create"),
            json!("tester"),
            json!("a"),
            json!(201),
            json!("v")
        ]
    );
    assert_eq!(made["responseObject"]["data"]["k"], "v");
    assert_eq!(made["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(
        of(
            refused,
            &[
                "/level",
                "/objectRef/resource",
                "/responseStatus/code",
                "/annotations/authorization.k8s.io~1decision"
            ]
        ),
        [json!("Metadata"), json!("secrets"), json!(403), json!("forbid")]
    );
    assert_eq!(of(stranger, &["/stage", "/responseStatus/code"]), [json!("ResponseStarted"), json!(401)]);
    assert_eq!(
        of(as_bob, &["/impersonatedUser/username", "/responseStatus/code"]),
        [json!("bob"), json!(403)]
    );
}

/// The events of the file, once there are so many: a thread writes them.
async fn lines(path: &std::path::Path, count: usize) -> Vec<Value> {
    for _ in 0..10_000 {
        let text = tokio::task::spawn_blocking({
            let path = path.to_owned();
            move || std::fs::read_to_string(path).unwrap_or_default()
        });
        let text = text.await.expect("a file");
        if text.lines().count() >= count && text.ends_with('\n') {
            return text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        }
    }
    panic!("{count} events do not come")
}

fn delivery(mode: AuditMode) -> AuditDelivery {
    AuditDelivery { mode, buffer_size: 1, batch_size: 1, throttle: None, max_wait: Duration::ZERO }
}

/// The webhook of a file, with as little patience as there can be.
fn told(file: &tempfile::NamedTempFile, mode: AuditMode) -> AuditWebhookConfig {
    AuditWebhookConfig {
        file: file.path().to_owned(),
        delivery: delivery(mode),
        initial_backoff: Duration::from_millis(1),
    }
}

async fn audited(policy: &str, webhook: AuditWebhookConfig) -> Fixture {
    let audit = Some(AuditConfig { policy: policy.as_bytes().to_vec(), log: None, webhook: Some(webhook) });
    Fixture::start_with(AccessConfig { audit, ..AccessConfig::default() }).await
}

/// How many events were lost.
async fn rejected(server: &Fixture) -> u64 {
    let request = http::Request::get("/metrics").body(String::new()).expect("a request");
    let answer = tower::ServiceExt::oneshot(server.client.clone(), request).await.expect("an answer");
    let text = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("apiserver_audit_requests_rejected_total "));
    line.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
}

#[tokio::test]
async fn events_are_sent_in_batches_and_again_where_that_fails() {
    let (sender, mut batches) = tokio::sync::mpsc::unbounded_channel();
    let (address, bundle) = super::webhook::start(move |_, list| {
        let _ = sender.send(list);
        Value::Null
    })
    .await;
    let file = super::access::kubeconfig(address, &bundle);
    let delivery = AuditDelivery {
        buffer_size: 100,
        batch_size: 2,
        max_wait: Duration::from_millis(50),
        ..delivery(AuditMode::Batch)
    };
    let webhook = AuditWebhookConfig { delivery, ..told(&file, AuditMode::Batch) };
    let server = audited(POLICY, webhook).await;
    for name in ["a", "b", "c"] {
        server.get(&format!("/api/v1/namespaces/{name}")).await;
    }
    let mut uris = Vec::new();
    while uris.len() < 3 {
        let list = batches.recv().await.expect("a batch");
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
        let items = list["items"].as_array().expect("events");
        assert!(items.len() <= 2, "{list}");
        uris.extend(items.iter().map(|event| event["requestURI"].as_str().unwrap_or_default().to_owned()));
    }
    // Batches do not wait for each other.
    uris.sort();
    assert_eq!(uris, ["/api/v1/namespaces/a", "/api/v1/namespaces/b", "/api/v1/namespaces/c"]);
}

#[tokio::test]
async fn events_that_nobody_takes_are_counted() {
    let (_, bundle) = super::webhook::start(|_, _| Value::Null).await;
    let file = super::access::kubeconfig("127.0.0.1:1".parse().expect("an address"), &bundle);
    let server = audited(POLICY, told(&file, AuditMode::Batch)).await;
    let counted = tokio::time::timeout(Duration::from_secs(60), async {
        while rejected(&server).await < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    counted.await.expect("lost events are counted");
}

/// Every stage of reads, and nothing of the pages that the test itself looks at.
const EVERY_STAGE: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, verbs: [get, watch], \
    resources: [{group: \"\"}]}]";

#[tokio::test]
async fn answers_wait_for_their_events() {
    let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let (address, bundle) = super::webhook::start(move |_, mut list| {
        let _ = sender.send(list["items"].take());
        Value::Null
    })
    .await;
    let file = super::access::kubeconfig(address, &bundle);
    for mode in [AuditMode::Blocking, AuditMode::BlockingStrict] {
        let server = audited(EVERY_STAGE, told(&file, mode)).await;
        assert_eq!(server.get("/api/v1/namespaces/default").await.0, 200);
        let mut stages = Vec::new();
        // Without waiting: they have been sent before the answer was.
        while let Ok(events) = sent.try_recv() {
            assert_eq!(events.as_array().map(Vec::len), Some(1), "{events}");
            stages.push(events[0]["stage"].clone());
        }
        assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
        // Nobody waits for the end of a watch, but it is told all the same.
        assert_eq!(server.get("/api/v1/namespaces?watch=true&timeoutSeconds=1").await.0, 200);
        for stage in ["RequestReceived", "ResponseStarted", "ResponseComplete"] {
            assert_eq!(sent.recv().await.expect("an event")[0]["stage"], stage);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_sent_fails_where_that_is_wanted() {
    let (_, bundle) = super::webhook::start(|_, _| Value::Null).await;
    let file = super::access::kubeconfig("127.0.0.1:1".parse().expect("an address"), &bundle);
    let server = audited(EVERY_STAGE, told(&file, AuditMode::Blocking)).await;
    assert_eq!(server.get("/api/v1/namespaces/default").await.0, 200);
    assert_eq!(rejected(&server).await, 2);
    let server = audited(EVERY_STAGE, told(&file, AuditMode::BlockingStrict)).await;
    let request = http::Request::get("/api/v1/namespaces/default?a=1&b=2").body(String::new());
    let answer = tower::ServiceExt::oneshot(server.client.clone(), request.expect("a request")).await;
    let (head, body) = answer.expect("an answer").into_parts();
    let body = http_body_util::BodyExt::collect(body).await.expect("a body").to_bytes();
    assert_eq!(head.status, 500);
    assert_eq!(
        body,
        "Internal Server Error: \"/api/v1/namespaces/default?a=1&amp;b=2\": failed to store audit event\n"
    );
    assert_eq!(rejected(&server).await, 1, "nothing happened that could be told besides");
    let omitted = EVERY_STAGE.replace("{level", "{omitStages: [RequestReceived], level");
    let server = audited(&omitted, told(&file, AuditMode::BlockingStrict)).await;
    assert_eq!(server.get("/api/v1/namespaces/default").await.0, 200, "only what comes is strict");
}
