//! What is noted while a request is answered: what its client is warned of, which becomes `Warning` headers of the answer, and
//! what of its body only messages show.

use std::cell::RefCell;
use std::future::Future;

use http::Response;

use crate::body::Body;
use crate::respond;
use crate::sent::Empties;

/// The notes on a request.
#[derive(Default)]
struct Notes {
    warnings: RefCell<Vec<String>>,
    empties: RefCell<Empties>,
}

tokio::task_local! {
    static NOTES: Notes;
}

/// Answers a request and puts the warnings that arose into the answer's headers.
pub async fn collect(answer: impl Future<Output = Response<Body>>) -> Response<Body> {
    let answering = async {
        let mut response = answer.await;
        let warnings = NOTES.with(|notes| notes.warnings.take());
        respond::warn(&mut response, &warnings);
        response
    };
    NOTES.scope(Notes::default(), answering).await
}

/// Adds a warning to the answer of the request that is being handled; what the server does by itself warns nobody.
pub fn add(warning: String) {
    let _ = NOTES.try_with(|notes| {
        let mut warnings = notes.warnings.borrow_mut();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    });
}

/// What the body of the request that is being handled sent empty; none for what the server does by itself.
pub fn with_empties<T>(read: impl FnOnce(&mut Empties) -> T) -> Option<T> {
    NOTES.try_with(|notes| read(&mut notes.empties.borrow_mut())).ok()
}
