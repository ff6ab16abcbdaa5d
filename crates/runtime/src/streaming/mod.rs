//! The streaming server: `Exec`, `Attach` and `PortForward` answer with a URL that works once; whoever
//! comes with it is spoken to in the protocol it asks for (WebSocket or SPDY). Callers upstream of here
//! only pass bytes through.

mod portforward;
mod process;
mod server;
mod session;
mod spdy;
mod terminal;
mod websocket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coxswain_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::runtime::lock;

pub(crate) use server::serve;

/// How long a URL waits to be used.
const TICKET_LIFETIME: Duration = Duration::from_secs(60);

/// What a URL is good for.
#[derive(Clone, Debug)]
pub(crate) enum Ticket {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Ticket {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Hands out URLs.
#[derive(Clone)]
pub(crate) struct Streaming {
    base: String,
    tickets: Arc<Mutex<HashMap<String, (Ticket, Instant)>>>,
}

impl Streaming {
    /// Listens on a free loopback port.
    pub async fn bind() -> std::io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let base = format!("http://{}", listener.local_addr()?);
        Ok((Self { base, tickets: Arc::default() }, listener))
    }

    /// A URL for `ticket`.
    pub fn issue(&self, ticket: Ticket) -> String {
        let token = hex::encode(rand::random::<[u8; 16]>());
        let url = format!("{}/{}/{token}", self.base, ticket.path());
        let mut tickets = lock(&self.tickets);
        tickets.retain(|_, (_, issued)| issued.elapsed() < TICKET_LIFETIME);
        tickets.insert(token, (ticket, Instant::now()));
        url
    }

    /// Takes a ticket; it is gone afterwards.
    fn redeem(&self, kind: &str, token: &str) -> Option<Ticket> {
        let (ticket, issued) = lock(&self.tickets).remove(token)?;
        (ticket.path() == kind && issued.elapsed() < TICKET_LIFETIME).then_some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_url_works_once_and_not_for_long() {
        let (streaming, _listener) = Streaming::bind().await.unwrap();
        let token = |url: String| url.rsplit('/').next().unwrap().to_owned();
        let ticket = || Ticket::Exec(ExecRequest::default());
        let first = token(streaming.issue(ticket()));
        assert!(streaming.redeem("exec", &first).is_some());
        assert!(streaming.redeem("exec", &first).is_none(), "used");
        let second = token(streaming.issue(ticket()));
        assert!(streaming.redeem("attach", &second).is_none(), "for something else");
        let third = token(streaming.issue(ticket()));
        tokio::time::advance(TICKET_LIFETIME).await;
        assert!(streaming.redeem("exec", &third).is_none(), "too late");
    }
}
