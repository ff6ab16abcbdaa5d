//! Requests made with rcgen, and what becomes of them.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequestCondition, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, SanType};
use x509_parser::pem::parse_x509_pem;

use super::plan::{Refusal, Signer, awaited_signer, due, is_decided, lifetime, recognized};
use super::*;

fn body(common_name: &str, organization: &str, names: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.subject_alt_names = names;
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    request.pem().unwrap().into_bytes()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn asked(body: Vec<u8>, signer: &str, username: &str, usages: &[&str]) -> CertificateSigningRequest {
    CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(body),
            signer_name: signer.into(),
            usages: Some(texts(usages)),
            username: Some(username.into()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    }
}

#[test]
fn kubelets_are_recognized_and_nobody_else() {
    const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    let node = || body("system:node:a", "system:nodes", Vec::new());
    let usages = &["digital signature", "client auth"];
    let found = |body: Vec<u8>, signer: &str, user: &str, usages: &[&str]| {
        let asked = asked(body, signer, user, usages);
        let request = Request::parse(&asked.spec.request.0).unwrap();
        recognized(&asked, &request, &machines(&[("a", "10.0.0.1")]))
            .iter()
            .map(|(subresource, _)| *subresource)
            .collect::<Vec<_>>()
    };
    assert_eq!(found(node(), KUBELET, "system:bootstrap:x", usages), ["nodeclient"]);
    assert_eq!(found(node(), KUBELET, "system:node:a", usages), ["selfnodeclient", "nodeclient"]);
    let nothing: [&str; 0] = [];
    assert_eq!(found(node(), KUBELET, "u", &["digital signature", "server auth"]), nothing);
    assert_eq!(found(node(), "kubernetes.io/kube-apiserver-client", "u", usages), nothing);
    assert_eq!(found(body("system:node:a", "system:masters", Vec::new()), KUBELET, "u", usages), nothing);
    assert_eq!(found(body("root", "system:nodes", Vec::new()), KUBELET, "u", usages), nothing);
    let named = vec![SanType::DnsName("a".try_into().unwrap())];
    assert_eq!(found(body("system:node:a", "system:nodes", named), KUBELET, "u", usages), nothing);
}

fn reached_by(name: &str, address: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    let address = NodeAddress { address: address.into(), type_: "InternalIP".into() };
    node.status = Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() });
    node
}

#[test]
fn a_kubelet_serves_under_the_addresses_of_its_node() {
    let usages = &["digital signature", "server auth"];
    let found = |user: &str, address: [u8; 4], nodes: &[(&str, &str)]| {
        let names = vec![SanType::DnsName("a".try_into().unwrap()), SanType::IpAddress(address.into())];
        let body = body("system:node:a", "system:nodes", names);
        let asked = asked(body, "kubernetes.io/kubelet-serving", user, usages);
        recognized(&asked, &Request::parse(&asked.spec.request.0).unwrap(), &machines(nodes)).len()
    };
    let node = ("a", "10.0.0.1");
    assert_eq!(found("system:node:a", [10, 0, 0, 1], &[node]), 1);
    assert_eq!(found("system:node:a", [10, 0, 0, 2], &[node]), 0);
    assert_eq!(found("system:node:b", [10, 0, 0, 1], &[node]), 0);
    assert_eq!(found("system:node:a", [10, 0, 0, 1], &[]), 0);
    assert_eq!(found("system:node:a", [10, 0, 0, 1], &[node, ("b", "10.0.0.1")]), 0, "another node's");
    assert_eq!(found("system:node:a", [10, 43, 0, 1], &[("a", "10.43.0.1")]), 0, "the API server's");
    assert_eq!(found("system:node:a", [127, 0, 0, 1], &[("a", "127.0.0.1")]), 0);
}

fn machines(nodes: &[(&str, &str)]) -> Machines {
    let nodes = nodes.iter().map(|(name, address)| Arc::new(reached_by(name, address))).collect();
    Machines { nodes, reserved: vec!["10.43.0.1".into()] }
}

#[test]
fn signers_sign_what_is_theirs() {
    let check = |signer: Signer, body: Vec<u8>, usages: &[&str]| {
        signer.check(&Request::parse(&body).unwrap(), &texts(usages))
    };
    let node = |names| body("system:node:a", "system:nodes", names);
    let name = || vec![SanType::DnsName("a".try_into().unwrap())];
    let serving = &["digital signature", "key encipherment", "server auth"];
    assert_eq!(check(Signer::KubeletServing, node(name()), serving), Ok(()));
    assert_eq!(check(Signer::KubeletServing, node(Vec::new()), serving), Err(Refusal::NoNames));
    let mail = vec![SanType::Rfc822Name("a@b".try_into().unwrap())];
    assert_eq!(check(Signer::KubeletServing, node(mail), serving), Err(Refusal::Names("email")));
    let client = |usages: &[&str]| check(Signer::Client, body("anybody", "dev", Vec::new()), usages);
    assert_eq!(client(&["client auth"]), Ok(()));
    assert_eq!(client(&["digital signature"]), Err(Refusal::NotForClients));
    assert_eq!(client(&["client auth", "cert sign"]), Err(Refusal::Usage("cert sign".into())));
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let pem = String::from_utf8(body("a", "b", Vec::new())).unwrap();
    let (_, parsed) = parse_x509_pem(pem.as_bytes()).unwrap();
    let mut der = parsed.contents;
    let at = der.windows(1).position(|byte| byte == b"a").unwrap();
    der[at] = b'z';
    let text = serde_json::to_value(ByteString(der)).unwrap();
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        text.as_str().unwrap()
    );
    assert!(matches!(Request::parse(forged.as_bytes()), Err(plan::RequestError::Signature)));
    assert!(matches!(Request::parse(b"nothing"), Err(plan::RequestError::Malformed)));
}

#[test]
fn a_certificate_says_what_the_request_asked_and_verifies() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let certificate = params.self_signed(&key).unwrap();
    let authority = Authority::new(&certificate.pem(), &key.serialize_der()).unwrap();
    let names = vec![SanType::DnsName("a".try_into().unwrap()), SanType::IpAddress([10, 0, 0, 1].into())];
    let request = Request::parse(&body("system:node:a", "system:nodes", names)).unwrap();
    let now = Timestamp::now();
    let usages = texts(&["digital signature", "server auth"]);
    let pem = authority.issue(&request, &usages, now, lifetime(Some(3600))).unwrap();
    let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
    let issued = pem.parse_x509().unwrap();
    let (_, ca) = parse_x509_pem(certificate.pem().as_bytes()).map(|(rest, pem)| (rest.len(), pem)).unwrap();
    let ca = ca.parse_x509().unwrap();
    issued.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(issued.issuer().as_raw(), ca.subject().as_raw());
    assert_eq!(issued.subject().to_string(), "CN=system:node:a, O=system:nodes");
    assert_eq!(issued.validity().not_after.timestamp(), now.as_second() + 3600);
    assert!(issued.key_usage().unwrap().unwrap().value.digital_signature());
    let purposes = issued.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && !purposes.client_auth);
    assert!(!issued.basic_constraints().unwrap().unwrap().value.ca);
    let names = &issued.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 2);
    // Nothing outlives the authority.
    assert!(matches!(
        authority.issue(&request, &usages, Timestamp::MAX, lifetime(None)),
        Err(AuthorityError::Expired)
    ));
}

#[test]
fn requests_go_when_nobody_waits_for_them() {
    let now: Timestamp = "2030-01-02T00:00:00Z".parse().unwrap();
    let mut request = asked(Vec::new(), "kubernetes.io/kube-apiserver-client", "u", &[]);
    let ago = |seconds: i64| {
        Some(Time(now.saturating_sub(k8s_openapi::jiff::SignedDuration::from_secs(seconds)).unwrap()))
    };
    request.metadata.creation_timestamp = ago(23 * 3600);
    assert_eq!(due(&request, now), Due::After(std::time::Duration::from_secs(3600)));
    assert!(!is_decided(&request) && awaited_signer(&request).is_none());
    let approved = CertificateSigningRequestCondition {
        type_: "Approved".into(),
        status: "True".into(),
        last_update_time: ago(7200),
        ..CertificateSigningRequestCondition::default()
    };
    request.status =
        Some(CertificateSigningRequestStatus { conditions: Some(vec![approved]), certificate: None });
    assert_eq!(awaited_signer(&request), Some(Signer::Client));
    assert_ne!(due(&request, now), Due::Now);
    request.status.as_mut().unwrap().certificate = Some(ByteString(b"pem".to_vec()));
    assert!(awaited_signer(&request).is_none());
    assert_eq!(due(&request, now), Due::Now);
}
