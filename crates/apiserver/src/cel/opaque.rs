//! Values that only Kubernetes' functions look into: quantities, addresses, URLs, and the authorizer.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use cel_core::{MessageValue, Value as Cel};
use coxswain_meta::Quantity;
use http::Uri;

use super::formats::Semver;
use crate::authn::UserInfo;
use crate::authz::Attributes;
use crate::webhook::Asked;

/// A network: its address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(pub IpAddr, pub u8);

impl Cidr {
    /// Reads `10.0.0.0/8`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse().ok()?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        (length <= most).then_some(Self(address, length))
    }

    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => address.into(),
        }
    }

    fn mask(self) -> u128 {
        if self.1 == 0 { 0 } else { u128::MAX << (128 - u32::from(self.1)) }
    }

    /// Whether an address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.is_ipv4() == address.is_ipv4()
            && Self::bits(self.0) & self.mask() == Self::bits(address) & self.mask()
    }

    /// The network without the bits of hosts.
    pub fn masked(self) -> Self {
        let bits = Self::bits(self.0) & self.mask();
        let address = match self.0 {
            IpAddr::V4(_) => IpAddr::V4(((bits >> 96) as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(bits.into()),
        };
        Self(address, self.1)
    }
}

/// A value of a type that CEL does not know.
#[derive(Clone, Debug)]
pub enum Opaque {
    /// A resource quantity.
    Quantity(Quantity),
    /// An address.
    Ip(IpAddr),
    /// A network.
    Cidr(Cidr),
    /// A URL as it was written, and its parts.
    Url(String, Uri),
    /// A format of text by its name.
    Format(&'static str),
    /// A semantic version.
    Semver(Semver),
    /// Asks what the user may do.
    Authorizer(Authorizer),
    /// An answer of the authorizer: whether it is allowed, and why.
    Decision(bool, String),
}

impl Opaque {
    /// As a value.
    pub fn into_cel(self) -> Cel {
        Cel::Message(Box::new(self))
    }

    /// How many bytes of an address count; one for all that has no size.
    pub fn size(&self) -> u64 {
        match self {
            Opaque::Ip(address) => {
                if address.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            Opaque::Cidr(network) => u64::from(network.1).div_ceil(8),
            _ => 1,
        }
    }

    /// The opaque value in a value.
    pub fn of(value: &Cel) -> Option<&Opaque> {
        match value {
            Cel::Message(message) => message.as_any().downcast_ref(),
            _ => None,
        }
    }
}

impl MessageValue for Opaque {
    fn type_name(&self) -> &str {
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(_) => "net.CIDR",
            Opaque::Url(..) => "kubernetes.URL",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Authorizer(_) => "kubernetes.authorization.Authorizer",
            Opaque::Decision(..) => "kubernetes.authorization.Decision",
        }
    }

    fn eq_message(&self, other: &dyn MessageValue) -> bool {
        match (self, other.as_any().downcast_ref::<Opaque>()) {
            (Opaque::Quantity(a), Some(Opaque::Quantity(b))) => a == b,
            (Opaque::Ip(a), Some(Opaque::Ip(b))) => a == b,
            (Opaque::Cidr(a), Some(Opaque::Cidr(b))) => a == b,
            (Opaque::Url(a, _), Some(Opaque::Url(b, _))) => a == b,
            (Opaque::Format(a), Some(Opaque::Format(b))) => a == b,
            (Opaque::Semver(a), Some(Opaque::Semver(b))) => a == b,
            _ => false,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn clone_boxed(&self) -> Box<dyn MessageValue> {
        Box::new(self.clone())
    }
}

type Decide = dyn Fn(&Authorizer) -> (bool, String) + Send + Sync;

/// What an expression asks about the user of the request; the fields are filled by its calls.
#[derive(Clone)]
pub struct Authorizer {
    decide: Arc<Decide>,
    /// Namespace and name of the service account that is asked about instead of the user.
    pub account: Option<(String, String)>,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub verb: String,
    pub field_selector: String,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorizer({} {}/{})", self.verb, self.group, self.resource)
    }
}

impl Authorizer {
    /// The authorizer for the user of a write.
    pub fn of(asked: &Asked<'_>) -> Self {
        let (server, user) = (asked.server.this.clone(), asked.user.clone());
        let decide = move |question: &Authorizer| {
            let Some(server) = server.upgrade() else { return (false, String::new()) };
            let account = question.account.as_ref().map(|(namespace, name)| {
                let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
                UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), &groups)
            });
            let verdict = server.decide(
                account.as_ref().unwrap_or(&user),
                &Attributes {
                    verb: &question.verb,
                    group: &question.group,
                    resource: &question.resource,
                    subresource: &question.subresource,
                    name: &question.name,
                    namespace: &question.namespace,
                    path: &question.path,
                    field_selector: &question.field_selector,
                    ..Attributes::default()
                },
            );
            (verdict.allowed, verdict.reason)
        };
        let empty = String::new;
        Self {
            decide: Arc::new(decide),
            account: None,
            path: empty(),
            group: empty(),
            resource: empty(),
            subresource: empty(),
            namespace: empty(),
            name: empty(),
            verb: empty(),
            field_selector: empty(),
        }
    }

    /// The question about the resource that is written.
    pub fn for_request(&self, asked: &Asked<'_>) -> Self {
        Self {
            group: asked.kind.group().to_owned(),
            resource: asked.kind.plural().to_owned(),
            subresource: asked.subresource.to_owned(),
            namespace: asked.namespace.to_owned(),
            name: asked.name.to_owned(),
            ..self.clone()
        }
    }

    /// As a value.
    pub fn into_cel(self) -> Cel {
        Opaque::Authorizer(self).into_cel()
    }

    /// The answer.
    pub fn check(&self) -> Opaque {
        let (allowed, reason) = (self.decide)(self);
        Opaque::Decision(allowed, reason)
    }
}
