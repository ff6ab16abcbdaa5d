//! Asking somebody else: messages go upstream as they came, over the transport they came by.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const UDP_BYTES: usize = 65_535;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By UDP.
    Udp,
    /// By TCP.
    Tcp,
}

/// The answer of the first server that gives one.
pub async fn forward(upstreams: &[SocketAddr], request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    for upstream in upstreams {
        let exchange = async {
            match transport {
                Transport::Udp => by_udp(*upstream, request).await,
                Transport::Tcp => by_tcp(*upstream, request).await,
            }
        };
        match timeout(PATIENCE, exchange).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream DNS server"),
            Err(_) => tracing::debug!(%upstream, "upstream DNS server does not answer"),
        }
    }
    None
}

async fn by_udp(upstream: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; UDP_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 2 && buffer[..2] == request[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_message(&mut stream, request).await?;
    read_message(&mut stream).await
}

/// Reads a message with its length in front.
pub async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length in front.
pub async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

/// The name servers of a `resolv.conf`, without `own`.
pub fn nameservers(resolv_conf: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.map(|ip| SocketAddr::new(ip, 53)).filter(|server| !own.contains(server)).collect()
}
