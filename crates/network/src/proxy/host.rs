//! What the host needs beside the rules: a route for service addresses, and bridged packets passing through the rules.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::StreamExt;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route, RtnetlinkGroup};
use tokio_util::sync::CancellationToken;

/// Two pods on one bridge: without this, answers skip the rules that translate them back.
pub fn filter_bridged() -> io::Result<()> {
    fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
}

/// Keeps service addresses routable: the rules see a packet of this host only after a route for it was found.
/// Acts whenever an interface changes, for the bridge may come later than the proxy.
pub async fn keep_route(
    (network, prefix): (Ipv4Addr, u8),
    bridge: &str,
    cancel: &CancellationToken,
) -> nlink::Result<()> {
    let events = Connection::<Route>::new()?;
    events.subscribe(&[RtnetlinkGroup::Link, RtnetlinkGroup::Ipv4Route])?;
    let mut events = events.into_events().await;
    let route = Connection::<Route>::new()?;
    loop {
        add_route(&route, network, prefix, bridge).await?;
        if !matches!(cancel.run_until_cancelled(events.next()).await, Some(Some(_))) {
            return Ok(());
        }
    }
}

/// Adds the route through the bridge, unless there is one or the bridge is not up.
pub async fn add_route(
    route: &Connection<Route>,
    network: Ipv4Addr,
    prefix: u8,
    bridge: &str,
) -> nlink::Result<()> {
    // Not the network's first address, which may be assigned.
    let probe = Ipv4Addr::from(u32::from(network) | (u32::MAX.checked_shr(prefix.into()).unwrap_or(0) & !1));
    if route.lookup_route(IpAddr::V4(probe)).await.is_ok() {
        return Ok(());
    }
    let up = route.get_link_by_name(bridge).await?.is_some_and(|link| link.is_up());
    if !up {
        return Ok(());
    }
    match route.replace_route(Ipv4Route::new(network, prefix).dev(bridge)).await {
        // It went away meanwhile; its return is the next event.
        Err(error) if error.is_no_device() || error.is_network_unreachable() => Ok(()),
        outcome => outcome,
    }
}
