//! Certificate signing requests: who asks is what the server knows, not what the request says.

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};

use super::Admission;
use crate::authz::Attributes;

/// The requestor as he was authenticated.
pub fn requestor(admission: &Admission, request: &mut Value) -> Result<(), Status> {
    let Some(spec) = request["spec"].as_object_mut() else { return Ok(()) };
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    let user = admission.user;
    spec.insert("username", user.name.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid", user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups", json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra", json!(user.extra));
    }
    Ok(())
}

/// CertificateSigning: a certificate is put into the status by those who may sign for the signer.
pub fn signing(admission: &Admission, request: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(old) = old else { return Ok(()) };
    let failed = |request: &Value| {
        let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
        conditions.filter(|condition| condition["type"] == "Failed").count()
    };
    let same =
        request["status"]["certificate"] == old["status"]["certificate"] && failed(request) == failed(old);
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    if same || may(admission, "sign", signer) {
        return Ok(());
    }
    Err(admission
        .forbidden(request, &format!("user not permitted to sign requests with signerName {signer:?}")))
}

/// CertificateApproval: a request is approved and denied by those who may approve for the signer.
pub fn approval(admission: &Admission, request: &Value, old: Option<&Value>) -> Result<(), Status> {
    let signer = old.unwrap_or(request)["spec"]["signerName"].as_str().unwrap_or_default();
    if may(admission, "approve", signer) {
        return Ok(());
    }
    Err(admission
        .forbidden(request, &format!("user not permitted to approve requests with signerName {signer:?}")))
}

/// Whether a user may do something in the name of a signer: of this one, or of all of its domain.
fn may(admission: &Admission, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, &domain].iter().any(|name| {
        let group = "certificates.k8s.io";
        let asked = Attributes { verb, group, resource: "signers", name, ..Attributes::default() };
        admission.server.decide(admission.user, &asked).allowed
    })
}
