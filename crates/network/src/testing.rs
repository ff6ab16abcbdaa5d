//! What the tests of this crate share.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value as Json, json};

/// A client that sees lists of these objects, and never a change.
pub fn frozen(lists: BTreeMap<&'static str, Vec<Json>>) -> kube::Client {
    let lists = Arc::new(lists);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (lists, path) = (lists.clone(), request.uri().to_string());
        async move {
            if path.contains("watch=") {
                std::future::pending::<()>().await;
            }
            let kind = path.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            let items = lists.get(kind).cloned().unwrap_or_default();
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                list.to_string().into_bytes(),
            )))
        }
    });
    kube::Client::new(service, "default")
}
