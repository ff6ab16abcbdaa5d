//! The API server: authentication, authorization, admission and the one generic handler over the store.
//!
//! A request passes the layers of [`ApiServer::handle`] in their order, once: who asks, what is asked, whether it is
//! allowed. No handler asks again. Failures are [`coxswain_meta::Status`] values; `respond::failure` is the one place
//! that turns them into HTTP.

// A `Status` is what every failure of this crate is; boxing it would burden each line for the sake of rare paths.
#![allow(clippy::result_large_err)]

mod access;
mod admission;
mod aggregation;
mod allocate;
mod audit;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod cache;
mod cel;
mod configuration;
mod definitions;
mod discovery;
mod expiry;
mod flowcontrol;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gather;
mod handler;
mod health;
mod metrics;
mod object;
mod plain;
mod policy;
mod remote;
mod request;
mod resource;
mod respond;
mod rows;
mod sent;
mod serve;
mod subresource;
#[cfg(test)]
mod tests;
mod warnings;
mod webhook;

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use coxswain_meta::Status;
use coxswain_store::{Etcd, EtcdLog, LogError, MemoryLog, Sealer, Store};
use futures::future::BoxFuture;
use http::header::{ACCEPT, ACCEPT_ENCODING, HeaderValue, USER_AGENT};
use http::{Request, Response};
use tokio_util::sync::CancellationToken;

pub use access::{Access, AccessConfig, AccessError};
pub use aggregation::FrontProxy;
pub use allocate::ServiceRange;
pub use audit::{AuditConfig, AuditDelivery, AuditMode, AuditThrottle, AuditWebhookConfig, LogConfig};
pub use authn::{
    Anonymous, OidcConfig, Peer, RequestHeaderConfig, TokenAuthority, TokenError, TokenWebhookConfig,
    UserInfo,
};
pub use authz::{AuthorizationWebhookConfig, Mode};
pub use serve::{ServeError, serve};

use aggregation::Backends;
use authz::Rbac;
use body::{Body, BoxError, Joined};
use flowcontrol::{FlowControl, Marks};
use handler::Call;
use object::ObjectView;
use policy::AllPolicies;
use request::{Query, RequestInfo};
use resource::Registry;
use respond::Outcome;
use webhook::{Hooks, Webhooks};

/// What upstream answers where the time a request may take is over.
const TOO_LATE: &str = "request did not complete within the allotted timeout";

/// What the server is told.
pub struct Config {
    /// The version that `/version` tells, such as `v1.37.0+cox0.1.0`.
    pub version: String,
    /// The address and port that clients are told of and the service `kubernetes` leads to.
    pub advertise: (IpAddr, u16),
    /// Addresses and ports of services.
    pub services: ServiceRange,
    /// The certificate of the cluster's authority, PEM, which every namespace gets as a ConfigMap.
    pub ca_pem: String,
    /// How the server speaks to the kubelets; without it logs, exec and their like are not served.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// How users are named to aggregated servers; without it they are not trusted with users.
    pub front_proxy: Option<FrontProxy>,
    /// Whether it writes the status of validating policies, which upstream's controller manager does.
    pub settles_policies: bool,
    /// Who may come in, and what is written down of that.
    pub access: Access,
}

/// Everything the handlers share.
pub(crate) struct Server {
    store: Store<ObjectView>,
    config: Config,
    tokens: TokenAuthority,
    rbac: Rbac,
    graph: authz::node::Graph,
    flow: Option<FlowControl>,
    customs: Registry,
    webhooks: Webhooks,
    mutating: Hooks,
    validating: Hooks,
    policies: AllPolicies,
    backends: Backends,
    allocating: tokio::sync::Mutex<()>,
    charging: tokio::sync::Mutex<()>,
    pages: expiry::Pages,
    metrics: metrics::Metrics,
    ready: AtomicBool,
    shutdown: CancellationToken,
    /// For what outlives a borrow, such as the authorizer of an expression.
    this: Weak<Server>,
}

/// Where objects are kept.
pub enum Datastore<'a> {
    /// In the memory of the process.
    Memory,
    /// In a directory, secrets sealed.
    Embedded(&'a Path, Box<Sealer>),
    /// In an etcd, for several servers, secrets sealed.
    Etcd(&'a Etcd, Box<Sealer>),
}

/// The API server; clones share it.
#[derive(Clone)]
pub struct ApiServer(Arc<Server>);

impl ApiServer {
    /// Opens the store and makes the objects that every cluster has.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub async fn open(
        config: Config,
        datastore: Datastore<'_>,
        tokens: TokenAuthority,
        shutdown: CancellationToken,
    ) -> Result<Self, LogError> {
        let store = match datastore {
            Datastore::Memory => Store::open(Box::new(MemoryLog), ObjectView, Default::default())?,
            Datastore::Embedded(dir, sealer) => Store::open_embedded(dir, Some(*sealer), ObjectView)?,
            Datastore::Etcd(etcd, sealer) => {
                let log = EtcdLog::open(etcd, Some(*sealer)).await?;
                Store::open(Box::new(log), ObjectView, Default::default())?
            }
        };
        let seats = config.access.max_requests_inflight;
        // Upstream's bound: a request waits for a quarter of the time it may take.
        let flow = (seats > 0).then(|| FlowControl::new(&store, seats, config.access.request_timeout / 4));
        let server = Arc::new_cyclic(|this| Server {
            store,
            config,
            tokens,
            rbac: Rbac::default(),
            graph: authz::node::Graph::default(),
            flow,
            customs: Registry::default(),
            webhooks: Webhooks::default(),
            mutating: Hooks::of("mutatingwebhookconfigurations"),
            validating: Hooks::of("validatingwebhookconfigurations"),
            policies: AllPolicies::default(),
            backends: Backends::default(),
            allocating: tokio::sync::Mutex::default(),
            charging: tokio::sync::Mutex::default(),
            pages: expiry::Pages::default(),
            metrics: metrics::Metrics::default(),
            ready: AtomicBool::new(false),
            shutdown,
            this: this.clone(),
        });
        bootstrap::ensure(&server).await;
        Ok(Self(server))
    }

    /// What the server does by itself, until it stops.
    pub async fn run_background(&self) {
        tokio::join!(
            expiry::expire_events(self.0.clone()),
            expiry::expire_pages(self.0.clone()),
            definitions::run(self.0.clone()),
            aggregation::run(self.0.clone()),
            async {
                if self.0.config.settles_policies {
                    policy::status::run(self.0.clone()).await;
                }
            },
            bootstrap::endpoints::keep(self.0.clone()),
            FlowControl::run(self.0.clone()),
            flowcontrol::status::run(self.0.clone()),
            self.0.config.access.run(&self.0.shutdown)
        );
    }

    /// Lets `/readyz` say ok.
    pub fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Release);
    }

    /// The server as a service in whose requests a component is already authenticated: the in-process transport.
    pub fn as_user(&self, user: UserInfo) -> InProcess {
        InProcess { server: self.clone(), peer: Arc::new(Peer::of(user)) }
    }

    /// The other end of a connection with a certificate that TLS has verified.
    fn peer(&self, chain: Option<&[rustls::pki_types::CertificateDer<'_>]>, address: IpAddr) -> Peer {
        self.0.peer(chain, address)
    }

    /// Answers a request: the layers in their order.
    pub async fn handle(&self, peer: &Peer, request: Request<Body>) -> Response<Body> {
        let [accept, coding] = [ACCEPT, ACCEPT_ENCODING].map(|name| request.headers().get(name).cloned());
        let accept = || accept.map(|value| (ACCEPT, value)).into_iter().collect();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = Arc::new(RequestInfo::parse(request.method(), request.uri().path(), &query));
        let running = self.0.metrics.begin(&info);
        let id = audit::id_of(request.headers());
        let limit = info.time_limit(&query, self.0.config.access.request_timeout);
        let marks = Marks::default();
        // Boxed, for every layer around it moves what it is given.
        let answer = Box::pin(self.answer(peer, query, info, &id, &marks, request));
        let answer = async {
            let answer = match limit {
                Ok(Some(limit)) => tokio::time::timeout(limit, answer)
                    .await
                    .unwrap_or_else(|_| Err(Status::timeout(TOO_LATE, 0))),
                Ok(None) => answer.await,
                Err(status) => Err(status),
            };
            answer.unwrap_or_else(|status| handler::render::failure(&accept(), &status))
        };
        let mut response = respond::compress(coding.as_ref(), warnings::collect(answer).await);
        response.headers_mut().insert(audit::AUDIT_ID, id);
        marks.tell(&mut response);
        running.end(response.status());
        response
    }

    /// Authentication, and audit of all that follows.
    async fn answer(
        &self,
        peer: &Peer,
        query: Query,
        info: Arc<RequestInfo>,
        id: &HeaderValue,
        marks: &Marks,
        request: Request<Body>,
    ) -> Outcome {
        let auditor = self.0.config.access.audit.as_ref();
        let user = match self.0.authenticate(peer, &info.path, request.headers()).await {
            Ok(user) => user,
            Err(status) => {
                if let Some(auditor) = auditor {
                    auditor.refused(peer, &info, id, request, &status).await;
                }
                return Err(status);
            }
        };
        let Some(auditor) = auditor else { return self.admit(user, query, info, marks, request).await };
        let asked =
            audit::Asked { user: user.clone(), info: info.clone(), own: self.0.backend_of(&info).is_none() };
        auditor.run(asked, peer, id, request, |request| self.admit(user, query, info, marks, request)).await
    }

    /// Impersonation, flow control and authorization.
    async fn admit(
        &self,
        user: Arc<UserInfo>,
        query: Query,
        info: Arc<RequestInfo>,
        marks: &Marks,
        request: Request<Body>,
    ) -> Outcome {
        let user = self.0.impersonate(user, request.headers()).await?;
        let _place = match &self.0.flow {
            // Of watches, only their start counts.
            Some(flow) if info.verb == "watch" || !info.is_long_running() => {
                let limit = || query.get("limit").and_then(|limit| limit.parse().ok());
                flow.admit(&user, &info, marks, || self.0.width(&info, limit())).await?
            }
            _ => None,
        };
        self.0.authorize(&user, &info).await?;
        self.dispatch(user, query, info, request).await
    }

    async fn dispatch(
        &self,
        user: Arc<UserInfo>,
        query: Query,
        info: Arc<RequestInfo>,
        request: Request<Body>,
    ) -> Outcome {
        if let Some(backend) = self.0.backend_of(&info) {
            let path = request.uri().path_and_query().map_or_else(|| info.path.clone(), ToString::to_string);
            return Box::pin(backend.pass(&self.0, &user, &path, request)).await;
        }
        if !info.is_resource {
            return Box::pin(plain::answer(&self.0, &info, request)).await;
        }
        if let Some(review) = subresource::review::find(&info) {
            return Box::pin(review.answer(&self.0, &user, &info, request)).await;
        }
        // Who asks for any version takes what is here; all others see what any server has acknowledged.
        if query.get("resourceVersion") != Some("0") {
            self.0.store.sync().await.map_err(|error| handler::unreadable(&error))?;
        }
        let call = Call::new(self.0.clone(), user, info, query, request.headers().clone())?;
        if matches!(call.info.subresource.as_str(), "" | "status")
            && (call.info.subresource.is_empty() || call.kind.status())
        {
            return call.run(request).await;
        }
        Box::pin(subresource::answer(&call, request)).await
    }
}

/// The in-process transport of one component.
#[derive(Clone)]
pub struct InProcess {
    server: ApiServer,
    peer: Arc<Peer>,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Joined>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { server, peer } = self.clone();
        let mut request = request.map(Body::new);
        // Components are known as field managers by their users' names.
        let agent = peer.user.as_ref().and_then(|user| user.name.rsplit(':').next());
        let agent = agent.and_then(|name| HeaderValue::from_str(name).ok());
        if let (false, Some(agent)) = (request.headers().contains_key(USER_AGENT), agent) {
            request.headers_mut().insert(USER_AGENT, agent);
        }
        Box::pin(async move { Ok(server.handle(&peer, request).await.map(Body::joined)) })
    }
}
