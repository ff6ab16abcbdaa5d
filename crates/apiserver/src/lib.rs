//! The API server: authentication, authorization, admission and the one generic handler over the store.
//!
//! A request passes the layers of [`ApiServer::handle`] in their order, once: who asks, what is asked, whether it is
//! allowed. No handler asks again. Failures are [`coxswain_meta::Status`] values; `respond::failure` is the one place
//! that turns them into HTTP.

// A `Status` is what every failure of this crate is; boxing it would burden each line for the sake of rare paths.
#![allow(clippy::result_large_err)]

mod admission;
mod aggregation;
mod allocate;
mod authn;
mod authz;
mod bootstrap;
mod cel;
mod definitions;
mod discovery;
mod expiry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gather;
mod handler;
mod health;
mod metrics;
mod object;
mod plain;
mod policy;
mod request;
mod resource;
mod respond;
mod serve;
mod subresource;
#[cfg(test)]
mod tests;
mod warnings;
mod webhook;

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use coxswain_meta::Status;
use coxswain_store::{Etcd, EtcdLog, LogError, MemoryLog, Sealer, Store};
use futures::TryFutureExt;
use futures::future::BoxFuture;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use tokio_util::sync::CancellationToken;

pub use aggregation::FrontProxy;
pub use allocate::ServiceRange;
pub use authn::{TokenAuthority, TokenError, UserInfo};
pub use serve::{ServeError, serve};

use aggregation::Backends;
use authz::Rbac;
use handler::Call;
use object::ObjectView;
use policy::AllPolicies;
use request::{Query, RequestInfo};
use resource::Registry;
use respond::Outcome;
use webhook::{Hooks, Webhooks};

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
}

/// Everything the handlers share.
pub(crate) struct Server {
    store: Store<ObjectView>,
    config: Config,
    tokens: TokenAuthority,
    rbac: Rbac,
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
        let server = Arc::new(Server {
            store,
            config,
            tokens,
            rbac: Rbac::default(),
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
            policy::status::run(self.0.clone()),
            bootstrap::endpoints::keep(self.0.clone())
        );
    }

    /// Lets `/readyz` say ok.
    pub fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Release);
    }

    /// The server as a service in whose requests a component is already authenticated: the in-process transport.
    pub fn as_user(&self, user: UserInfo) -> InProcess {
        InProcess { server: self.clone(), user: Arc::new(user) }
    }

    /// Answers a request: the layers in their order.
    pub async fn handle(&self, certificate: Option<&UserInfo>, request: Request<Body>) -> Response<Body> {
        let accept = request.headers().get(http::header::ACCEPT).cloned();
        let accept = || accept.map(|value| (http::header::ACCEPT, value)).into_iter().collect();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let running = self.0.metrics.begin(&info);
        let answer = self.answer(certificate, query, info, request);
        let answer = answer.unwrap_or_else(|status| handler::render::failure(&accept(), &status));
        let response = warnings::collect(answer).await;
        running.end(response.status());
        response
    }

    async fn answer(
        &self,
        certificate: Option<&UserInfo>,
        query: Query,
        info: RequestInfo,
        request: Request<Body>,
    ) -> Outcome {
        let user = self.0.authenticate(certificate, request.headers())?;
        let user = self.0.impersonate(user, request.headers())?;
        self.0.authorize(&user, &info)?;
        if let Some(backend) = self.0.backend_of(&info) {
            let path = request.uri().path_and_query().map_or_else(|| info.path.clone(), ToString::to_string);
            return backend.pass(&self.0, &user, &path, request).await;
        }
        if !info.is_resource {
            return plain::answer(&self.0, &info, request);
        }
        if let Some(review) = subresource::review::find(&info) {
            return review.answer(&self.0, &user, &info, request).await;
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
        subresource::answer(&call, request).await
    }
}

/// The in-process transport of one component.
#[derive(Clone)]
pub struct InProcess {
    server: ApiServer,
    user: Arc<UserInfo>,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { server, user } = self.clone();
        let mut request = request.map(Body::new);
        // Components are known as field managers by their users' names.
        let agent = user.name.rsplit(':').next().and_then(|name| HeaderValue::from_str(name).ok());
        if let (false, Some(agent)) = (request.headers().contains_key(USER_AGENT), agent) {
            request.headers_mut().insert(USER_AGENT, agent);
        }
        Box::pin(async move { Ok(server.handle(Some(&user), request).await) })
    }
}

impl Server {
    /// The impersonation layer: a user who may acts as another.
    fn impersonate(&self, user: UserInfo, headers: &http::HeaderMap) -> Result<UserInfo, Status> {
        let text = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let Some(name) = text("impersonate-user").into_iter().next() else { return Ok(user) };
        let groups = text("impersonate-group");
        let mut asked = vec![("users", name.clone())];
        asked.extend(groups.iter().map(|group| ("groups", group.clone())));
        for (resource, name) in &asked {
            let (resource, name, namespace) = match name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.split_once(':'))
            {
                Some((namespace, account)) if *resource == "users" => ("serviceaccounts", account, namespace),
                _ => (*resource, name.as_str(), ""),
            };
            let question =
                authz::Attributes { verb: "impersonate", resource, name, namespace, ..Default::default() };
            if !self.decide(&user, &question).allowed {
                return Err(Status::forbidden_to_user(
                    &user.name,
                    "impersonate",
                    "",
                    resource,
                    namespace,
                    name,
                ));
            }
        }
        let mut groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let namespace_group;
        if let Some((namespace, _)) =
            name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
            && groups.is_empty()
        {
            namespace_group = format!("system:serviceaccounts:{namespace}");
            groups = vec!["system:serviceaccounts", &namespace_group];
        }
        Ok(UserInfo::new(&name, &groups))
    }
}
