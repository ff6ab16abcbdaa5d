//! What becomes of a signing request: pure decisions over the request and its PKCS#10 body (RFC 2986).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST_LIFETIME: Duration = Duration::from_secs(600);
/// Decided requests stay this long.
const DECIDED_STAYS: Duration = Duration::from_secs(3600);
/// Requests that nobody decides on stay this long.
const PENDING_STAYS: Duration = Duration::from_secs(24 * 3600);

/// The body of a request cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is no PKCS#10 request in PEM.
    #[error("the request is no PEM-encoded PKCS#10 request")]
    Malformed,
    /// Its author does not hold the key.
    #[error("the request is not signed by its own key")]
    Signature,
}

/// What a PKCS#10 request asks for.
#[derive(Debug, Default)]
pub struct Request {
    /// CN.
    pub common_name: String,
    /// Every O.
    pub organizations: Vec<String>,
    /// The subject's other names: of which kind ("DNS", "IP", "email", "URI" or "other"), and what they are.
    pub names: Vec<(&'static str, String)>,
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// The value of the extension subjectAltName, DER; empty without one.
    pub alternative_names: Vec<u8>,
}

/// The extension subjectAltName, 2.5.29.17.
const SUBJECT_ALTERNATIVE_NAME: &str = "2.5.29.17";

impl Request {
    /// Reads a request and proves that its author holds the key.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let (_, pem) = parse_x509_pem(pem).map_err(|_| RequestError::Malformed)?;
        let (_, parsed) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|_| RequestError::Malformed)?;
        parsed.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = &parsed.certification_request_info;
        let texts = |values: Vec<Option<&str>>| values.into_iter().flatten().map(str::to_owned).collect();
        let of = |name: &X509Name<'_>| -> (Vec<String>, Vec<String>) {
            (
                texts(name.iter_common_name().map(|part| part.as_str().ok()).collect()),
                texts(name.iter_organization().map(|part| part.as_str().ok()).collect()),
            )
        };
        let (common_names, organizations) = of(&info.subject);
        let mut request = Self {
            common_name: common_names.into_iter().next().unwrap_or_default(),
            organizations,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let x509_parser::prelude::ParsedCriAttribute::ExtensionRequest(requested) =
                attribute.parsed_attribute()
            else {
                continue;
            };
            for extension in &requested.extensions {
                let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                    continue;
                };
                debug_assert_eq!(extension.oid.to_id_string(), SUBJECT_ALTERNATIVE_NAME);
                request.alternative_names = extension.value.to_vec();
                request.names = names.general_names.iter().map(read).collect();
            }
        }
        Ok(request)
    }
}

fn read(name: &GeneralName<'_>) -> (&'static str, String) {
    match name {
        GeneralName::DNSName(name) => ("DNS", (*name).to_owned()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(four), _) => ("IP", IpAddr::from(four).to_string()),
            (_, Ok(sixteen)) => ("IP", IpAddr::from(sixteen).to_string()),
            _ => ("other", String::new()),
        },
        GeneralName::RFC822Name(address) => ("email", (*address).to_owned()),
        GeneralName::URI(uri) => ("URI", (*uri).to_owned()),
        _ => ("other", String::new()),
    }
}

/// Why a signer does not sign.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// O.
    #[error("subject organization is not system:nodes")]
    Organization,
    /// CN.
    #[error("subject common name does not begin with \"system:node:\"")]
    CommonName,
    /// A name of a kind that the signer does not certify.
    #[error("{0} subjectAltNames are not allowed")]
    Names(&'static str),
    /// Nothing to serve under.
    #[error("DNS or IP subjectAltName is required")]
    NoNames,
    /// A usage the signer does not give.
    #[error("invalid usage for client certificate: {0}")]
    Usage(String),
    /// A usage the signer insists on.
    #[error("missing required usage for client certificate: client auth")]
    NotForClients,
    /// The set of usages is not the signer's.
    #[error("usages did not match {0:?}")]
    Usages(&'static [&'static str]),
}

/// The signers that the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Clients of the API server.
    Client,
    /// Kubelets as clients of the API server.
    KubeletClient,
    /// Kubelets as servers.
    KubeletServing,
}

const KUBELET_CLIENT: &[&str] = &["client auth", "digital signature", "key encipherment"];
const KUBELET_SERVING: &[&str] = &["digital signature", "key encipherment", "server auth"];

impl Signer {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "kubernetes.io/kube-apiserver-client" => Self::Client,
            "kubernetes.io/kube-apiserver-client-kubelet" => Self::KubeletClient,
            "kubernetes.io/kubelet-serving" => Self::KubeletServing,
            _ => return None,
        })
    }

    /// Whether the signer certifies what is asked.
    pub fn check(self, request: &Request, usages: &[String]) -> Result<(), Refusal> {
        match self {
            Self::Client => client_usages(usages)?,
            Self::KubeletClient => {
                node_subject(request)?;
                if let Some((kind, _)) = request.names.first() {
                    return Err(Refusal::Names(kind));
                }
                exactly(usages, KUBELET_CLIENT)?;
            }
            Self::KubeletServing => {
                node_subject(request)?;
                if let Some((kind, _)) = request.names.iter().find(|(kind, _)| !matches!(*kind, "DNS" | "IP"))
                {
                    return Err(Refusal::Names(kind));
                }
                if request.names.is_empty() {
                    return Err(Refusal::NoNames);
                }
                exactly(usages, KUBELET_SERVING)?;
            }
        }
        match request.names.iter().find(|(kind, _)| *kind == "other") {
            Some((kind, _)) => Err(Refusal::Names(kind)),
            None => Ok(()),
        }
    }
}

fn node_subject(request: &Request) -> Result<(), Refusal> {
    if request.organizations != ["system:nodes"] {
        return Err(Refusal::Organization);
    }
    if !request.common_name.starts_with("system:node:") {
        return Err(Refusal::CommonName);
    }
    Ok(())
}

fn client_usages(usages: &[String]) -> Result<(), Refusal> {
    if let Some(other) = usages.iter().find(|usage| !KUBELET_CLIENT.contains(&usage.as_str())) {
        return Err(Refusal::Usage(other.clone()));
    }
    match usages.iter().any(|usage| usage == "client auth") {
        true => Ok(()),
        false => Err(Refusal::NotForClients),
    }
}

/// Key encipherment is of RSA keys alone, and may be missing.
fn exactly(usages: &[String], wanted: &'static [&'static str]) -> Result<(), Refusal> {
    let given = |usage: &&str| usages.iter().any(|given| given == usage);
    let complete = wanted.iter().all(|usage| *usage == "key encipherment" || given(usage));
    match complete && usages.iter().all(|usage| wanted.contains(&usage.as_str())) {
        true => Ok(()),
        false => Err(Refusal::Usages(wanted)),
    }
}

fn has(asked: &CertificateSigningRequest, kinds: &[&str]) -> bool {
    let conditions = asked.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| kinds.contains(&condition.type_.as_str()) && condition.status == "True")
}

fn is_issued(asked: &CertificateSigningRequest) -> bool {
    asked.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|pem| !pem.0.is_empty())
}

/// Whether somebody approved or denied it.
pub fn is_decided(asked: &CertificateSigningRequest) -> bool {
    is_issued(asked) || has(asked, &["Approved", "Denied"])
}

/// The signer that an approved request still waits for.
pub fn awaited_signer(asked: &CertificateSigningRequest) -> Option<Signer> {
    let waits = has(asked, &["Approved"]) && !has(asked, &["Denied", "Failed"]) && !is_issued(asked);
    Signer::of(&asked.spec.signer_name).filter(|_| waits)
}

/// The permissions that approve a request, each with the message of the approval. A kubelet's serving certificate is one for
/// its own node, under the addresses that the node has.
pub fn recognized(
    asked: &CertificateSigningRequest,
    request: &Request,
    machines: &Machines,
) -> Vec<(&'static str, &'static str)> {
    let usages = asked.spec.usages.as_deref().unwrap_or_default();
    let own = asked.spec.username.as_deref() == Some(&request.common_name);
    let Some(signer) = Signer::of(&asked.spec.signer_name) else { return Vec::new() };
    if signer.check(request, usages).is_err() {
        return Vec::new();
    }
    let client = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
    let own_client =
        ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
    let serving =
        ("selfnodeserver", "Auto approving self kubelet server certificate after SubjectAccessReview.");
    match signer {
        Signer::KubeletClient if own => vec![own_client, client],
        Signer::KubeletClient => vec![client],
        Signer::KubeletServing if own && machines.are_own(node_of(asked).unwrap_or_default(), request) => {
            vec![serving]
        }
        Signer::KubeletServing | Signer::Client => Vec::new(),
    }
}

/// The node that a request is for.
pub fn node_of(asked: &CertificateSigningRequest) -> Option<&str> {
    asked.spec.username.as_deref()?.strip_prefix("system:node:")
}

/// Who is reached at which address.
#[derive(Debug, Default)]
pub struct Machines {
    /// The nodes, as they say themselves.
    pub nodes: Vec<Arc<Node>>,
    /// Addresses of services and of the API server.
    pub reserved: Vec<String>,
}

impl Machines {
    /// Whether all names of a request are the node's own. A node says itself what its addresses are: believed without limits,
    /// it would get a certificate for those of the API server or of another node.
    fn are_own(&self, node: &str, request: &Request) -> bool {
        let is_it = |other: &&Arc<Node>| other.metadata.name.as_deref() == Some(node);
        let (own, others): (Vec<_>, Vec<_>) = self.nodes.iter().partition(is_it);
        let has = |nodes: &[&Arc<Node>], name: &str| {
            let addresses =
                nodes.iter().flat_map(|node| node.status.iter().flat_map(|s| s.addresses.iter().flatten()));
            addresses.into_iter().any(|address| address.address == name)
        };
        let of_api_server = node == "localhost" || node.split('.').next() == Some("kubernetes");
        request.names.iter().all(|(kind, name)| match *kind {
            "DNS" => name == node && !own.is_empty() && !of_api_server,
            _ => {
                let local = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
                has(&own, name) && !has(&others, name) && !self.reserved.contains(name) && !local
            }
        })
    }
}

/// How long a certificate lives.
pub fn lifetime(asked_seconds: Option<i32>) -> Duration {
    let asked = asked_seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    asked.unwrap_or(LONGEST_LIFETIME).clamp(SHORTEST_LIFETIME, LONGEST_LIFETIME)
}

/// When a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// It is over.
    Now,
    /// Not before this time has passed.
    After(Duration),
}

/// When a request is deleted: nobody waits for old answers, nor long for none.
pub fn due(asked: &CertificateSigningRequest, now: Timestamp) -> Due {
    let conditions = asked.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let settled = is_issued(asked) || has(asked, &["Denied", "Failed"]);
    let decided = conditions
        .filter(|condition| matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed"))
        .filter_map(|condition| condition.last_update_time.as_ref())
        .map(|time| time.0)
        .max();
    let made = asked.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let (since, stays) = match decided.filter(|_| settled) {
        Some(decided) => (decided, DECIDED_STAYS),
        None => (made, PENDING_STAYS),
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    match stays.checked_sub(age) {
        Some(left) if !left.is_zero() => Due::After(left),
        _ => Due::Now,
    }
}
