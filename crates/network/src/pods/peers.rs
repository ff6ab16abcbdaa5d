//! The ways to the pods of other nodes: a host route to a node that is a neighbour, VXLAN (RFC 7348) to one behind a router.
//!
//! A tunnel end's address and MAC follow from its node's subnet, so that nodes need to tell each other nothing but what
//! their Node objects say.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::fdb::FdbEntryBuilder;
use nlink::netlink::link::VxlanLink;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::types::route::RouteProtocol;
use nlink::netlink::{Connection, Route};

use super::ipam::Subnet;

/// The tunnel's interface.
pub const TUNNEL: &str = "cox-vxlan";
const VNI: u32 = 1;
const PORT: u16 = 4789;
/// What VXLAN puts before a packet: Ethernet, IP, UDP and its own header.
const OVERHEAD: u32 = 50;
/// Marks routes as ours in the kernel.
const OWNER: RouteProtocol = RouteProtocol::Other(99);

/// How the pods of another node are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The node is a neighbour.
    Direct(Ipv4Addr),
    /// A router stands between.
    Tunnel(Ipv4Addr),
}

/// The ways by subnet.
pub type Ways = BTreeMap<Subnet, Way>;

/// The subnets of all nodes but one, and the nodes' addresses.
pub fn peers(nodes: &[Arc<Node>], own: &str) -> BTreeMap<Subnet, Ipv4Addr> {
    let others = nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(own));
    others.filter_map(|node| Some((subnet_of(node)?, address_of(node)?))).collect()
}

/// A node's share of the pod addresses.
pub fn subnet_of(node: &Node) -> Option<Subnet> {
    Subnet::parse(node.spec.as_ref()?.pod_cidr.as_deref()?)
}

fn address_of(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let mut internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    internal.find_map(|address| address.address.parse().ok())
}

/// The MAC of a node's tunnel end: locally administered, then the subnet's network address.
fn mac(subnet: &Subnet) -> [u8; 6] {
    let [a, b, c, d] = subnet.network.octets();
    [0x02, 0xc0, a, b, c, d]
}

/// Asks the kernel which nodes are neighbours.
pub async fn ways(
    route: &Connection<Route>,
    peers: &BTreeMap<Subnet, Ipv4Addr>,
) -> (Ways, Vec<nlink::Error>) {
    let (mut ways, mut failures) = (Ways::new(), Vec::new());
    for (subnet, node) in peers {
        match route.lookup_route(IpAddr::V4(*node)).await {
            Ok(found) if found.has_gateway() => drop(ways.insert(*subnet, Way::Tunnel(*node))),
            Ok(_) => drop(ways.insert(*subnet, Way::Direct(*node))),
            Err(error) => failures.push(error),
        }
    }
    (ways, failures)
}

/// Makes the kernel's routes, and the tunnel's where there is one, be `ways`.
pub async fn apply(
    route: &Connection<Route>,
    own: &Subnet,
    node_ip: Ipv4Addr,
    ways: &Ways,
) -> nlink::Result<()> {
    if ways.values().any(|way| matches!(way, Way::Tunnel(_))) {
        make_tunnel(route, own, node_ip).await?;
    }
    for (subnet, way) in ways {
        let to = Ipv4Route::new(subnet.network, subnet.prefix).protocol(OWNER);
        match *way {
            Way::Direct(node) => route.replace_route(to.gateway(node)).await?,
            Way::Tunnel(node) => {
                let entry =
                    FdbEntryBuilder::new(mac(subnet)).dev(TUNNEL).dst(node.into()).self_().permanent();
                route.replace_fdb(entry).await?;
                let end = Neighbor::new_v4(TUNNEL, subnet.network).lladdr(mac(subnet)).permanent();
                route.replace_neighbor(end).await?;
                route.replace_route(to.gateway(subnet.network).dev(TUNNEL).onlink()).await?;
            }
        }
    }
    for (network, prefix) in ours(route).await? {
        if !ways.contains_key(&Subnet { network, prefix }) {
            route.del_route_v4_if_exists(network, prefix).await?;
        }
    }
    Ok(())
}

async fn make_tunnel(route: &Connection<Route>, own: &Subnet, node_ip: Ipv4Addr) -> nlink::Result<()> {
    let underlay = route.get_address_by_ip(IpAddr::V4(node_ip)).await?.map(|address| address.ifindex());
    let underlay = match underlay {
        Some(index) => route.get_link_by_index(index).await?,
        None => None,
    };
    let mtu = underlay.and_then(|link| link.mtu()).unwrap_or(1500).saturating_sub(OVERHEAD);
    let link =
        VxlanLink::new(TUNNEL, VNI).local(node_ip).port(PORT).learning(false).mtu(mtu).address(mac(own));
    match route.add_link(link).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    // Its address is the source of what this host itself sends to pods of other nodes.
    route.replace_address(Ipv4Address::new(TUNNEL, own.network, 32)).await?;
    route.set_link_up(TUNNEL).await
}

/// The destinations of the kernel's routes that are ours.
async fn ours(route: &Connection<Route>) -> nlink::Result<Vec<(Ipv4Addr, u8)>> {
    let routes = route.get_routes().await?;
    let ours = routes.iter().filter(|route| route.protocol() == OWNER);
    Ok(ours
        .filter_map(|route| match route.destination() {
            Some(IpAddr::V4(network)) => Some((*network, route.dst_len())),
            _ => None,
        })
        .collect())
}

/// Takes routes and tunnel away.
pub async fn remove(route: &Connection<Route>) -> nlink::Result<()> {
    for (network, prefix) in ours(route).await? {
        route.del_route_v4_if_exists(network, prefix).await?;
    }
    route.del_link_if_exists(TUNNEL).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use nix::sched::{CloneFlags, setns, unshare};
    use nlink::netlink::link::{BridgeLink, VethLink};

    use super::*;

    #[test]
    fn other_nodes_with_a_share_and_an_address_are_peers() {
        let node = |name: &str, cidr: Option<&str>, ip: &str| {
            Arc::new(
                serde_json::from_value::<Node>(serde_json::json!({
                    "metadata": {"name": name},
                    "spec": {"podCIDR": cidr},
                    "status": {"addresses": [
                        {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip},
                    ]},
                }))
                .unwrap(),
            )
        };
        let nodes = [
            node("own", Some("10.42.0.0/24"), "192.0.2.1"),
            node("other", Some("10.42.1.0/24"), "192.0.2.2"),
            node("new", None, "192.0.2.3"),
        ];
        let subnet = Subnet::parse("10.42.1.0/24").unwrap();
        assert_eq!(peers(&nodes, "own"), BTreeMap::from([(subnet, Ipv4Addr::new(192, 0, 2, 2))]));
        assert_eq!(mac(&subnet), [0x02, 0xc0, 10, 42, 1, 0]);
    }
    fn namespace() -> Arc<File> {
        let enter = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            Arc::new(File::open("/proc/thread-self/ns/net").expect("the namespace"))
        };
        thread::spawn(enter).join().expect("the thread")
    }

    fn within<F: Future<Output = nlink::Result<T>>, T: Send + 'static>(
        namespace: &Arc<File>,
        task: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        let namespace = namespace.clone();
        let inside = move || {
            setns(&*namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(task()).expect("netlink")
        };
        thread::spawn(inside).join().expect("the thread")
    }

    /// A cable between two namespaces, with an address at each end.
    async fn cable(other: Arc<File>, names: [&'static str; 2], ends: [Ipv4Addr; 2]) -> nlink::Result<()> {
        let route = Connection::<Route>::new()?;
        route.add_link(VethLink::new(names[0], names[1]).peer_netns_fd(&*other)).await?;
        route.replace_address(Ipv4Address::new(names[0], ends[0], 24)).await?;
        route.set_link_up(names[0]).await?;
        let there = move || async move {
            let route = Connection::<Route>::new()?;
            route.replace_address(Ipv4Address::new(names[1], ends[1], 24)).await?;
            route.set_link_up(names[1]).await
        };
        tokio::task::spawn_blocking(move || within(&other, there)).await.expect("the thread");
        Ok(())
    }

    /// A node's pods, their gateway, and the way to the other node's.
    async fn node(
        own: Subnet,
        ip: Ipv4Addr,
        router: Ipv4Addr,
        peer: (Subnet, Ipv4Addr),
    ) -> nlink::Result<Ways> {
        let route = Connection::<Route>::new()?;
        route.add_link(BridgeLink::new("pods")).await?;
        route.replace_address(Ipv4Address::new("pods", own.gateway(), own.prefix)).await?;
        route.set_link_up("pods").await?;
        route.replace_route(Ipv4Route::default_route().gateway(router)).await?;
        let (ways, failures) = ways(&route, &BTreeMap::from([peer])).await;
        assert!(failures.is_empty(), "{failures:?}");
        apply(&route, &own, ip, &ways).await?;
        // Again, as after a restart.
        apply(&route, &own, ip, &ways).await?;
        Ok(ways)
    }

    #[test]
    fn a_router_between_two_nodes_carries_their_pods_without_knowing_them() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root for network namespaces");
            return;
        }
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let subnet = |text: &str| Subnet::parse(text).unwrap();
        let (first, router, second) = (namespace(), namespace(), namespace());
        for (node, names, ends) in [
            (&first, ["a0", "a1"], ["192.0.2.254", "192.0.2.1"]),
            (&second, ["b0", "b1"], ["198.51.100.254", "198.51.100.1"]),
        ] {
            let node = node.clone();
            within(&router, move || cable(node, names, ends.map(|end| end.parse().unwrap())));
        }
        within(&router, || async {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
            Ok(())
        });
        let (here, there) = (subnet("10.42.0.0/24"), subnet("10.42.1.0/24"));
        let (near, far) = (address("192.0.2.1"), address("198.51.100.1"));
        let ways = within(&first, move || node(here, near, address("192.0.2.254"), (there, far)));
        assert_eq!(ways, Ways::from([(there, Way::Tunnel(far))]));
        within(&second, move || node(there, far, address("198.51.100.254"), (here, near)));
        let listener = within(&second, move || async move {
            Ok(TcpListener::bind((there.gateway(), 8080)).expect("listening"))
        });
        within(&first, move || async move {
            let to = (there.gateway(), 8080).into();
            TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("the other node's pods");
            Ok(())
        });
        let (_, from) = listener.accept().expect("a connection");
        assert_eq!(from.ip(), here.network, "the tunnel's own address");
        within(&first, || async {
            let route = Connection::<Route>::new()?;
            remove(&route).await?;
            assert_eq!(ours(&route).await?, []);
            Ok(())
        });
    }
}
