//! The members of an etcd cluster: one is talked to, the next one where that fails.
//!
//! Reads are tried again until their time is over. Whoever sends a transaction decides what an unknown outcome means.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::EtcdConfig;
use super::proto::kv_client::KvClient;
use super::proto::watch_client::WatchClient;
use super::proto::{CompactionRequest, KeyValue, RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::LogError;

/// An attempt at one member.
const ATTEMPT: Duration = Duration::from_secs(3);
/// All attempts together.
pub const PATIENCE: Duration = Duration::from_secs(12);
/// Between attempts.
pub const PAUSE: Duration = Duration::from_millis(50);
const CONNECT: Duration = Duration::from_secs(2);
/// etcd takes more frequent pings for an attack.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many keys are read at once.
const PAGE: i64 = 1000;

/// Refuses members that have lost the others, rather than waiting with them.
#[derive(Clone)]
pub struct WithLeader;

impl Interceptor for WithLeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        Ok(request)
    }
}

type Service = InterceptedService<Channel, WithLeader>;

/// The members.
pub struct Members {
    channels: Vec<Channel>,
    current: AtomicUsize,
}

/// Why a transaction has no answer.
pub enum Failed {
    /// It was refused, and nothing came of it.
    Refused(Status),
    /// Nobody knows what came of it.
    Unknown(Status),
}

impl From<Failed> for LogError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(status) | Failed::Unknown(status) => described(&status),
        }
    }
}

/// An error of etcd in its own words, or of the way to it.
pub fn described(status: &Status) -> LogError {
    let mut text = status.message().to_owned();
    let mut below = status.source();
    while let Some(error) = below {
        text = format!("{text}: {error}");
        below = error.source();
    }
    LogError::Etcd(text)
}

impl Members {
    /// The members by their addresses; connections are made when they are needed.
    pub fn new(config: &EtcdConfig) -> Result<Self, LogError> {
        let channel = |address: &String| {
            let wrong =
                |error: tonic::transport::Error| LogError::Etcd(format!("endpoint {address}: {error}"));
            let mut endpoint = Endpoint::from_shared(address.clone())
                .map_err(wrong)?
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            if address.starts_with("https:") {
                endpoint = endpoint.tls_config(tls(config)).map_err(wrong)?;
            }
            Ok(endpoint.connect_lazy())
        };
        let channels = config.endpoints.iter().map(channel).collect::<Result<Vec<_>, LogError>>()?;
        if channels.is_empty() {
            return Err(LogError::Etcd("no endpoint is named".to_owned()));
        }
        Ok(Self { channels, current: AtomicUsize::new(0) })
    }

    fn current(&self) -> (usize, Channel) {
        let current = self.current.load(Ordering::Relaxed);
        (current, self.channels[current].clone())
    }

    /// Turns to the next member, unless somebody has done so already.
    pub fn turn_from(&self, member: usize) {
        let next = (member + 1) % self.channels.len();
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn kv(&self) -> (usize, KvClient<Service>) {
        let (member, channel) = self.current();
        (member, KvClient::with_interceptor(channel, WithLeader).max_decoding_message_size(usize::MAX))
    }

    /// A client for watches, and the member it speaks to.
    pub fn watch(&self) -> (usize, WatchClient<Service>) {
        let (member, channel) = self.current();
        (member, WatchClient::with_interceptor(channel, WithLeader).max_decoding_message_size(usize::MAX))
    }

    /// One attempt at a transaction.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Failed> {
        let (member, mut kv) = self.kv();
        let answer = timeout(ATTEMPT, kv.txn(request)).await.unwrap_or_else(|_| Err(no_answer()));
        answer.map(tonic::Response::into_inner).map_err(|status| {
            if is_final(&status) {
                return Failed::Refused(status);
            }
            self.turn_from(member);
            Failed::Unknown(status)
        })
    }

    /// A transaction that does the same when it is done twice.
    pub async fn idempotent_txn(&self, request: TxnRequest) -> Result<TxnResponse, LogError> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.txn(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Unknown(_)) if Instant::now() < end => sleep(PAUSE).await,
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// A read that sees everything acknowledged before it, unless it names a revision.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (member, mut kv) = self.kv();
            let answer =
                timeout(ATTEMPT, kv.range(request.clone())).await.unwrap_or_else(|_| Err(no_answer()));
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_final(&status) || Instant::now() >= end => return Err(status),
                Err(_) => {
                    self.turn_from(member);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// One key, as of now or of a revision; with the revision of etcd at which it was read.
    pub async fn get(&self, key: Bytes, revision: i64) -> Result<(Option<KeyValue>, i64), Status> {
        let answer = self.range(RangeRequest { key, revision, ..RangeRequest::default() }).await?;
        let at = answer.header.map_or(0, |header| header.revision);
        Ok((answer.kvs.into_iter().next(), at))
    }

    /// Every key of a range as of one revision, page by page.
    pub async fn scan(
        &self,
        (mut key, range_end): (Bytes, Bytes),
        revision: i64,
        mut each: impl FnMut(KeyValue) -> Result<(), LogError>,
    ) -> Result<(), ScanError> {
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                keys_only: false,
            };
            let answer = self.range(request).await.map_err(ScanError::Etcd)?;
            if let Some(last) = answer.kvs.last() {
                key = [&last.key[..], &[0]].concat().into();
            }
            for kv in answer.kvs {
                each(kv).map_err(ScanError::Value)?;
            }
            if !answer.more {
                return Ok(());
            }
        }
    }

    /// Forgets the history before a revision.
    pub async fn compact(&self, revision: i64) -> Result<(), Status> {
        let (_, mut kv) = self.kv();
        let answer = timeout(ATTEMPT, kv.compact(CompactionRequest { revision })).await;
        answer.unwrap_or_else(|_| Err(no_answer())).map(drop)
    }
}

/// Why a range could not be read whole.
pub enum ScanError {
    /// etcd's answer.
    Etcd(Status),
    /// A value is not one of ours.
    Value(LogError),
}

impl From<ScanError> for LogError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Etcd(status) => described(&status),
            ScanError::Value(error) => error,
        }
    }
}

/// Whether a revision asked for is compacted.
pub fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

fn no_answer() -> Status {
    Status::deadline_exceeded("etcd does not answer")
}

/// Whether etcd has answered for good: another attempt, or another member, would not say otherwise.
fn is_final(status: &Status) -> bool {
    match status.code() {
        Code::ResourceExhausted => !status.message().contains("too many requests"),
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Unimplemented => true,
        _ => false,
    }
}

fn tls(config: &EtcdConfig) -> ClientTlsConfig {
    let tls = ClientTlsConfig::new();
    let tls = match &config.ca_pem {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
        None => tls.with_native_roots(),
    };
    match &config.identity_pem {
        Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        None => tls,
    }
}
