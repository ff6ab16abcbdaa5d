//! What a client is warned of while its request is answered: `Warning` headers of the answer.

use std::cell::RefCell;
use std::future::Future;

use axum::body::Body;
use http::Response;

use crate::respond;

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

/// Answers a request and puts the warnings that arose into the answer's headers.
pub async fn collect(answer: impl Future<Output = Response<Body>>) -> Response<Body> {
    let answering = async {
        let mut response = answer.await;
        let warnings = WARNINGS.with(std::cell::RefCell::take);
        respond::warn(&mut response, &warnings);
        response
    };
    WARNINGS.scope(RefCell::default(), answering).await
}

/// Adds a warning to the answer of the request that is being handled; what the server does by itself warns nobody.
pub fn add(warning: String) {
    let _ = WARNINGS.try_with(|warnings| {
        let mut warnings = warnings.borrow_mut();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    });
}
