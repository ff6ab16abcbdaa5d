//! The cluster's DNS server: answers for services and pods from an index, and relays everything else upstream.

mod forward;
mod index;
mod message;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coxswain_client::InformerFactory;
use hickory_proto::op::{Message, ResponseCode};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::services::Services;
use forward::{Transport, forward, nameservers, read_message, write_message};
use index::Index;
use message::{Outcome, answer, encode, failure, udp_limit};

/// Questions and connections served at the same time, for each listening socket; more wait.
const AT_ONCE: usize = 1024;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a listening socket, such as too many open files, that may last.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest question by UDP.
const REQUEST_BYTES: usize = 4096;

/// How the DNS server is set up.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where to listen, by UDP and TCP; the addresses may be assigned to the host later.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// The networks of services and pods, whose reverse names are not asked upstream.
    pub networks: Vec<(Ipv4Addr, u8)>,
    /// Who is asked about other names; `None` for the host's name servers.
    pub upstreams: Option<Vec<SocketAddr>>,
}

/// The DNS server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A socket could not be opened.
    #[error("listening on {0}: {1}")]
    Listen(SocketAddr, io::Error),
}

/// Serves until cancelled. Questions that arrive before the cluster's services are known wait.
///
/// # Errors
/// An address cannot be listened on.
pub async fn run_dns(
    factory: Arc<InformerFactory>,
    config: DnsConfig,
    cancel: CancellationToken,
) -> Result<(), DnsError> {
    let mut sockets = Vec::new();
    for address in &config.listen {
        let error = |error| DnsError::Listen(*address, error);
        sockets.push((open_udp(*address).map_err(error)?, open_tcp(*address).map_err(error)?));
    }
    let upstreams = config.upstreams.unwrap_or_else(|| {
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        nameservers(&resolv_conf, &config.listen)
    });
    let server = Arc::new(Server {
        index: RwLock::new(Index::new(&config.cluster_domain, config.networks)),
        upstreams,
    });
    let mut services = Services::new(&factory);
    if cancel.run_until_cancelled(services.synced()).await.is_none() {
        return Ok(());
    }
    let mut tasks = JoinSet::new();
    // What there is at the start is in the index before the first answer.
    while let Some(Some(concerned)) = futures::FutureExt::now_or_never(services.changed()) {
        server.update(&services, concerned);
    }
    for (udp, tcp) in sockets {
        tasks.spawn(server.clone().serve_udp(Arc::new(udp)));
        tasks.spawn(server.clone().serve_tcp(tcp));
    }
    while let Some(Some(concerned)) = cancel.run_until_cancelled(services.changed()).await {
        server.update(&services, concerned);
    }
    tasks.shutdown().await;
    Ok(())
}

/// A socket that may listen on an address the host does not have yet.
fn open(address: SocketAddr, kind: SockType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    // For TCP, connections of a server before may linger; two servers by UDP would share the questions.
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn open_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(open(address, SockType::Datagram)?.into())
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, SockType::Stream)?;
    listen(&socket, Backlog::MAXCONN)?;
    TcpListener::from_std(socket.into())
}

struct Server {
    index: RwLock<Index>,
    upstreams: Vec<SocketAddr>,
}

impl Server {
    fn update(&self, services: &Services, concerned: Vec<coxswain_client::ObjectKey>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for key in concerned {
            index.replace(&key, services.service(&key).as_deref(), &services.slices(&key));
        }
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; REQUEST_BYTES];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let request = buffer[..length].to_vec();
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (server, socket) = (self.clone(), socket.clone());
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let _permit = permit;
                if let Some(reply) = server.respond(&request, Transport::Udp).await {
                    let _ = socket.send_to(&reply, client).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let server = self.clone();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let _permit = permit;
                // The client's end of the connection ends it here.
                let _ = server.serve_client(stream).await;
            });
        }
    }

    async fn serve_client(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let request = timeout(IDLE, read_message(&mut stream)).await??;
            let Some(reply) = self.respond(&request, Transport::Tcp).await else { return Ok(()) };
            timeout(IDLE, write_message(&mut stream, &reply)).await??;
        }
    }

    async fn respond(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let outcome = answer(&self.index.read().unwrap_or_else(PoisonError::into_inner), request);
        let reply = match outcome {
            Outcome::Ignore => return None,
            Outcome::Reply(reply) => reply,
            Outcome::Alias(mut reply, query) => {
                let mut question = Message::query();
                question.metadata.id = reply.metadata.id;
                question.metadata.recursion_desired = true;
                question.queries.push(query);
                let answer = forward(&self.upstreams, &question.to_vec().ok()?, transport).await;
                if let Some(answer) = answer.and_then(|answer| Message::from_vec(&answer).ok()) {
                    reply.answers.extend(answer.answers);
                }
                reply
            }
            Outcome::Forward => {
                if let Some(reply) = forward(&self.upstreams, request, transport).await {
                    return Some(reply);
                }
                let code =
                    if self.upstreams.is_empty() { ResponseCode::Refused } else { ResponseCode::ServFail };
                failure(&Message::from_vec(request).ok()?, code)
            }
        };
        encode(&reply, (transport == Transport::Udp).then(|| udp_limit(request)))
    }
}
