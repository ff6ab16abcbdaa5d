//! Images for real: archives of both kinds, compressed both ways, and pulls from a registry.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use coxswain_cri::v1::*;
use coxswain_runtime::image::ImageStore;
use serde_json::{Value, json};
use support::{Fixture, can_run, shell};

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes)))
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image in three layers: a shell (plain), files (gzip), and whiteouts over them (zstd).
struct Image {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists()).unwrap();
        let shell = std::fs::read(busybox).unwrap();
        let tars = [
            tar(&[("bin/sh", &shell), ("bin/ls", &shell), ("bin/sleep", &shell)]),
            tar(&[
                ("d/old", b"old"),
                ("d/kept", b"kept"),
                ("gone", b"gone"),
                ("dir/a", b"a"),
                ("dir/b", b"b"),
            ]),
            tar(&[
                (".wh.gone", b""),
                ("d/.wh.old", b""),
                ("d/new", b"new"),
                ("dir/.wh..wh..opq", b""),
                ("dir/c", b"c"),
            ]),
        ];
        let diff_ids: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/sleep", "1000"], "User": "1000:1000", "StopSignal": "SIGINT"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let [shell, files, whiteouts] = tars;
        Self { layers: vec![shell, gzip(&files), zstd(&whiteouts)], config: config.to_string().into_bytes() }
    }

    fn id(&self) -> String {
        sha256(&self.config)
    }

    fn manifest(&self) -> Vec<u8> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(layer), "size": layer.len()})
            })
            .collect();
        let config = json!({
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.id(), "size": self.config.len(),
        });
        let media = "application/vnd.oci.image.manifest.v1+json";
        json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers})
            .to_string()
            .into_bytes()
    }

    fn docker_archive(&self, tag: &str) -> Vec<u8> {
        let names = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
        let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
        let mut entries: Vec<(&str, &[u8])> =
            names.into_iter().zip(self.layers.iter().map(Vec::as_slice)).collect();
        entries.push(("config.json", &self.config));
        entries.push(("manifest.json", manifest.as_bytes()));
        tar(&entries)
    }

    fn oci_archive(&self, name: &str) -> Vec<u8> {
        let manifest = self.manifest();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(&manifest), "size": manifest.len(),
            "annotations": {"io.containerd.image.name": name},
        }]})
        .to_string();
        let path = |bytes: &[u8]| format!("blobs/{}", sha256(bytes).replace(':', "/"));
        let blobs: Vec<(String, &[u8])> = self
            .layers
            .iter()
            .chain([&self.config, &manifest])
            .map(|blob| (path(blob), blob.as_slice()))
            .collect();
        let mut entries: Vec<(&str, &[u8])> =
            blobs.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
        entries.push(("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#));
        entries.push(("index.json", index.as_bytes()));
        tar(&entries)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_become_containers_with_whiteouts_applied() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let image = Image::new();
    let store = fixture.store();
    let records = store.import(image.docker_archive("app:1").as_slice()).unwrap();
    assert_eq!(records[0].id, image.id());
    assert_eq!(records[0].repo_tags, ["docker.io/library/app:1"]);
    let records = store.import(gzip(&image.oci_archive("registry.local/app:2")).as_slice()).unwrap();
    assert_eq!(records[0].repo_tags, ["docker.io/library/app:1", "registry.local/app:2"]);
    assert_eq!(records[0].repo_digests, [format!("registry.local/app@{}", sha256(&image.manifest()))]);

    let request = ImageStatusRequest { image: Some(spec("app:1")), verbose: false };
    let found = fixture.images.image_status(request).await.unwrap().into_inner().image.unwrap();
    assert_eq!((found.id.as_str(), found.uid), (image.id().as_str(), Some(Int64Value { value: 1000 })));

    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let mut config = shell("c", "ls d dir; ls /gone || echo not there");
    config.image = Some(spec("registry.local/app:2"));
    let container = fixture.create(&sandbox, config).await;
    fixture.start(&container).await;
    fixture.exited(&container).await;
    let log: Vec<String> = fixture
        .log("pod", "c")
        .iter()
        .filter_map(|l| l.strip_prefix("stdout F ").map(str::to_owned))
        .collect();
    assert_eq!(log, ["d:", "kept", "new", "", "dir:", "c", "not there"]);

    // While a container uses its layers, they outlive the image.
    fixture.images.remove_image(RemoveImageRequest { image: Some(spec(&image.id())) }).await.unwrap();
    let layers = || std::fs::read_dir(fixture.root().join("layers")).unwrap().count();
    assert_eq!(layers(), 6);
    let removed = RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    fixture.runtime.clone().remove_pod_sandbox(removed).await.unwrap();
    store.remove("never-there").unwrap();
    assert_eq!(layers(), 0);
    fixture.finish().await;
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let mut image = Image::new();
    image.layers[1] = gzip(&tar(&[("other", b"x")]));
    let error = store.import(image.docker_archive("app:1").as_slice()).unwrap_err();
    assert!(error.to_string().contains("digest mismatch"), "{error}");
    assert!(store.list().unwrap().is_empty());
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.into(), ..Default::default() }
}

/// A registry in memory that wants `user:secret`, and cuts large blobs off once.
struct Registry {
    content: HashMap<String, Vec<u8>>,
    cut: Mutex<bool>,
}

impl Registry {
    async fn start(image: &Image) -> String {
        let manifest = image.manifest();
        let entry = |arch: &str, digest: &str| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
                "platform": {"os": "linux", "architecture": arch}})
        };
        let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry("s390x", &sha256(b"other")), entry(here, &sha256(&manifest))]})
        .to_string()
        .into_bytes();
        let mut content = HashMap::new();
        for blob in image.layers.iter().chain([&image.config]) {
            content.insert(format!("/v2/team/app/blobs/{}", sha256(blob)), blob.clone());
        }
        content.insert(format!("/v2/team/app/manifests/{}", sha256(&manifest)), manifest);
        content.insert("/v2/team/app/manifests/v1".into(), index);
        let registry = Arc::new(Self { content, cut: Mutex::new(false) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            axum::serve(listener, Router::new().fallback(Self::answer).with_state(registry)).await.unwrap();
        });
        address.to_string()
    }

    async fn answer(State(registry): State<Arc<Self>>, uri: Uri, headers: HeaderMap) -> Response {
        // user:secret
        if headers.get("authorization").is_none_or(|value| value != "Basic dXNlcjpzZWNyZXQ=") {
            return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"test\"")])
                .into_response();
        }
        if uri.path() == "/v2/" {
            return StatusCode::OK.into_response();
        }
        let Some(bytes) = registry.content.get(uri.path()) else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such","detail":""}]}"#;
            return (StatusCode::NOT_FOUND, body).into_response();
        };
        let digest = [("docker-content-digest", sha256(bytes))];
        if let Some(range) = headers.get("range") {
            let from =
                range.to_str().unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>();
            return (StatusCode::PARTIAL_CONTENT, digest, bytes[from.unwrap()..].to_vec()).into_response();
        }
        let mut cut = registry.cut.lock().unwrap();
        if bytes.len() > 100_000 && !*cut {
            *cut = true;
            let half = futures::stream::iter([
                Ok(bytes::Bytes::copy_from_slice(&bytes[..50_000])),
                Err(std::io::Error::other("cut")),
            ]);
            return (digest, axum::body::Body::from_stream(half)).into_response();
        }
        (digest, bytes.clone()).into_response()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_authenticate_resume_and_verify() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let image = Image::new();
    let host = Registry::start(&image).await;
    let pull = |name: String, password: &str| PullImageRequest {
        image: Some(spec(&name)),
        auth: Some(AuthConfig { username: "user".into(), password: password.into(), ..Default::default() }),
        sandbox_config: None,
    };
    let error = fixture.images.pull_image(pull(format!("{host}/team/app:v1"), "wrong")).await.unwrap_err();
    assert!(error.message().contains("pull access denied"), "{error}");
    let error = fixture.images.pull_image(pull(format!("{host}/team/app:v9"), "secret")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");

    let pulled = fixture.images.pull_image(pull(format!("{host}/team/app:v1"), "secret")).await.unwrap();
    assert_eq!(pulled.into_inner().image_ref, image.id());
    let images =
        fixture.images.list_images(ListImagesRequest { filter: None }).await.unwrap().into_inner().images;
    assert_eq!(images[0].repo_tags, [format!("{host}/team/app:v1")]);
    assert!(images[0].repo_digests[0].starts_with(&format!("{host}/team/app@sha256:")));
    let usage = fixture.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 100_000);
    fixture.finish().await;
}
