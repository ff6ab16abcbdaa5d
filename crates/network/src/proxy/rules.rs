//! The table in the kernel: its fixed part, and how each entry is written in it.
//!
//! A new connection is looked up once by (address, protocol, port), goes to its service port's chain, and there an endpoint
//! is looked up by (service port, random number). Registers are 4-byte words: a service port fills words 0 to 2.

use std::net::Ipv4Addr;
use std::time::Duration;

use nlink::netlink::nftables::types::{
    BaseChain, Chain, ChainName, CtState, Family, FibFlags, FilterHook, MetaKey, NatHook, PayloadBase,
    Priority, Register, Rule, Set, SetDataType, SetElement, SetKeyType, Verdict,
};
use nlink::netlink::nftables::{DynsetExpr, DynsetOp, Expr, LookupExpr, NumgenKind, RawExpr, Transaction};
use nlink::netlink::types::route::RouteType;

use super::model::{Endpoint, Frontend, Key, Protocol, Refusal, Scope, Step, Value};

/// Our table.
pub const TABLE: &str = "coxswain-services";
/// Clients remembered for session affinity, of all services.
const AFFINITY_CLIENTS: u32 = 1 << 20;
/// Connections whose source becomes this node carry this mark until they leave.
const MASQUERADE: u32 = 0x4000;

const ADDRESSES: &str = "addresses";
const NODE_PORTS: &str = "node-ports";
const REFUSED_ADDRESSES: &str = "refused-addresses";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";
const CLUSTER_IPS: &str = "cluster-ips";
const HAIRPINS: &str = "hairpins";
/// Endpoints are spread over this many maps: the kernel checks every element of a map against every rule that uses it.
const ENDPOINT_MAPS: u8 = 64;
const CLIENTS: &str = "affinity-clients";
const SERVICES: &str = "services";
const REFUSE: &str = "refuse";
const REJECT: &str = "reject";

type Built<T> = nlink::Result<T>;

fn set(name: &str, key: Vec<SetKeyType>) -> Set {
    let key = if let [single] = &key[..] { single.clone() } else { SetKeyType::Concat(key) };
    Set::new(TABLE, name).family(Family::Ip).key_type(key)
}

fn frontend_type() -> Vec<SetKeyType> {
    vec![SetKeyType::Ipv4Addr, SetKeyType::InetProto, SetKeyType::InetService]
}

fn endpoint_type() -> Vec<SetKeyType> {
    vec![SetKeyType::Ipv4Addr, SetKeyType::InetService]
}

fn with(mut key: Vec<SetKeyType>, more: &[SetKeyType]) -> Vec<SetKeyType> {
    key.extend_from_slice(more);
    key
}

fn endpoint_map(service: &Frontend) -> String {
    let [_, _, third, fourth] = service.ip.octets();
    format!("endpoints-{}", (third ^ fourth) % ENDPOINT_MAPS)
}

fn kept_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Cluster => "affinity-cluster",
        Scope::Local => "affinity-local",
    }
}

/// The set or map a key is kept in; `None` for chains.
pub fn container(key: &Key) -> Option<Set> {
    let node_port = || vec![SetKeyType::InetProto, SetKeyType::InetService];
    Some(match key {
        Key::Chain(_) => return None,
        Key::Address(_) => set(ADDRESSES, frontend_type()).vmap(),
        Key::NodePort(..) => set(NODE_PORTS, node_port()).vmap(),
        Key::RefusedAddress(_) => set(REFUSED_ADDRESSES, frontend_type()).vmap(),
        Key::RefusedNodePort(..) => set(REFUSED_NODE_PORTS, node_port()).vmap(),
        Key::ClusterIp(_) => set(CLUSTER_IPS, vec![SetKeyType::Ipv4Addr]),
        Key::Hairpin(_) => set(HAIRPINS, vec![SetKeyType::Ipv4Addr, SetKeyType::Ipv4Addr]),
        Key::Endpoint(service, _) => set(&endpoint_map(service), with(frontend_type(), &[SetKeyType::Mark]))
            .map(SetDataType::Value(SetKeyType::Concat(endpoint_type()))),
        Key::Kept(scope, ..) => set(kept_name(*scope), with(frontend_type(), &endpoint_type())),
    })
}

fn frontend_parts(frontend: &Frontend) -> [SetElement; 3] {
    [
        SetElement::ipv4(frontend.ip),
        SetElement::inet_proto(frontend.protocol.number()),
        SetElement::port(frontend.port),
    ]
}

fn endpoint_parts(endpoint: &Endpoint) -> [SetElement; 2] {
    [SetElement::ipv4(endpoint.ip), SetElement::port(endpoint.port)]
}

fn node_port_element(protocol: Protocol, port: u16) -> SetElement {
    SetElement::concat([SetElement::inet_proto(protocol.number()), SetElement::port(port)])
}

/// A key as an element of its container; `None` for chains.
pub fn element(key: &Key) -> Option<SetElement> {
    Some(match key {
        Key::Chain(_) => return None,
        Key::Address(frontend) | Key::RefusedAddress(frontend) => {
            SetElement::concat(frontend_parts(frontend))
        }
        Key::NodePort(protocol, port) | Key::RefusedNodePort(protocol, port) => {
            node_port_element(*protocol, *port)
        }
        Key::ClusterIp(ip) => SetElement::ipv4(*ip),
        Key::Hairpin(ip) => SetElement::concat([SetElement::ipv4(*ip), SetElement::ipv4(*ip)]),
        Key::Endpoint(service, number) => {
            SetElement::concat(frontend_parts(service).into_iter().chain([SetElement::mark(*number)]))
        }
        Key::Kept(_, service, endpoint) => {
            SetElement::concat(frontend_parts(service).into_iter().chain(endpoint_parts(endpoint)))
        }
    })
}

/// An element with what it maps to.
pub fn element_with(key: &Key, value: &Value) -> Built<Option<SetElement>> {
    let Some(element) = element(key) else { return Ok(None) };
    Ok(Some(match value {
        Value::Chain(chain, _) => element.verdict(Verdict::GotoTo(ChainName::new(chain.as_str())?)),
        Value::Refusal(Refusal::Reject) => element.verdict(Verdict::GotoTo(ChainName::new(REJECT)?)),
        Value::Refusal(Refusal::Drop) => element.verdict(Verdict::Drop),
        Value::Endpoint(endpoint) => element.value(SetElement::concat(endpoint_parts(endpoint))),
        Value::Steps(_) | Value::Member => element,
    }))
}

/// A chain of ours, not attached to a hook.
pub fn chain(name: &str) -> Built<Chain> {
    Ok(Chain::new(TABLE, name)?.family(Family::Ip))
}

fn rule(chain: &str) -> Rule {
    Rule::new(TABLE, chain).family(Family::Ip)
}

fn word(number: usize) -> Register {
    Register::word(number).expect("words 0 to 15 exist")
}

fn load_address(offset: u32, to: usize) -> Expr {
    Expr::Payload { dreg: word(to), base: PayloadBase::Network, offset, len: 4 }
}

fn source(to: usize) -> Expr {
    load_address(12, to)
}

fn destination(to: usize) -> Expr {
    load_address(16, to)
}

/// Protocol and destination port: at the same place in TCP, UDP and SCTP, and no other protocol is a key.
fn protocol_and_port(rule: Rule, to: usize) -> Rule {
    rule.expr(Expr::Meta { dreg: word(to), key: MetaKey::L4Proto }).expr(Expr::Payload {
        dreg: word(to + 1),
        base: PayloadBase::Transport,
        offset: 2,
        len: 2,
    })
}

fn verdict_of(map: &str) -> LookupExpr {
    LookupExpr::new(map, word(0)).dreg(Register::Verdict)
}

fn by_address(chain: &str, map: &str) -> Rule {
    protocol_and_port(rule(chain).expr(destination(0)), 1).expr(verdict_of(map))
}

fn by_node_port(rule: Rule, map: &str) -> Rule {
    protocol_and_port(rule.match_fib_type(FibFlags::DADDR, RouteType::Local), 0).expr(verdict_of(map))
}

/// The table without any service, in place of what was there. An update makes a table that is not there, for the deletion.
pub fn skeleton(transaction: Transaction) -> Built<Transaction> {
    let mut transaction = transaction
        .update_table(TABLE, Family::Ip, 0)
        .del_table(TABLE, Family::Ip)
        .add_table(TABLE, Family::Ip);
    let anything = Frontend { ip: Ipv4Addr::UNSPECIFIED, protocol: Protocol::Tcp, port: 0 };
    let nowhere = Endpoint { ip: Ipv4Addr::UNSPECIFIED, port: 0 };
    let containers = [
        Key::Address(anything),
        Key::NodePort(Protocol::Tcp, 0),
        Key::RefusedAddress(anything),
        Key::RefusedNodePort(Protocol::Tcp, 0),
        Key::ClusterIp(Ipv4Addr::UNSPECIFIED),
        Key::Hairpin(Ipv4Addr::UNSPECIFIED),
        Key::Kept(Scope::Cluster, anything, nowhere),
        Key::Kept(Scope::Local, anything, nowhere),
    ];
    let endpoint_maps = (0..ENDPOINT_MAPS)
        .map(|number| Key::Endpoint(Frontend { ip: Ipv4Addr::new(0, 0, 0, number), ..anything }, 0));
    for container in containers.into_iter().chain(endpoint_maps).filter_map(|key| container(&key)) {
        transaction = transaction.add_set(container);
    }
    let clients = set(CLIENTS, with(frontend_type(), &[SetKeyType::Ipv4Addr]))
        .map(SetDataType::Value(SetKeyType::Concat(endpoint_type())))
        .dynamic()
        .per_element_timeouts()
        .size(AFFINITY_CLIENTS);
    transaction = transaction.add_set(clients);
    for name in [SERVICES, REFUSE, REJECT] {
        transaction = transaction.add_chain(chain(name)?);
    }
    let nat = |hook, priority| BaseChain::nat(hook, priority);
    let filter = |hook| BaseChain::filter(hook, Priority::Filter);
    let hooks = [
        ("prerouting", nat(NatHook::Prerouting, Priority::DstNat)),
        ("output", nat(NatHook::Output, Priority::DstNat)),
        ("postrouting", nat(NatHook::Postrouting, Priority::SrcNat)),
        ("filter-input", filter(FilterHook::Input)),
        ("filter-forward", filter(FilterHook::Forward)),
        ("filter-output", filter(FilterHook::Output)),
    ];
    for (name, base) in hooks {
        transaction = transaction.add_chain(chain(name)?.base(base));
    }
    fixed_rules().map(|rules| rules.into_iter().fold(transaction, Transaction::add_rule))
}

fn fixed_rules() -> Built<Vec<Rule>> {
    let new = |chain: &str| rule(chain).match_ct_state(CtState::NEW);
    Ok(vec![
        rule("prerouting").try_jump(SERVICES)?,
        rule("output").try_jump(SERVICES)?,
        by_address(SERVICES, ADDRESSES),
        by_node_port(rule(SERVICES), NODE_PORTS),
        rule("postrouting")
            .match_mark_masked(MASQUERADE, MASQUERADE)
            .set_mark_masked(0, MASQUERADE)
            .masquerade(),
        rule("postrouting")
            .expr(source(0))
            .expr(destination(1))
            .expr(LookupExpr::new(HAIRPINS, word(0)))
            .masquerade(),
        // What reaches these hooks with a service's address found no endpoint on its way here.
        by_node_port(new("filter-input"), REFUSED_NODE_PORTS),
        new("filter-forward").try_jump(REFUSE)?,
        // By loopback it goes to the node itself, such as to its DNS server on a cluster IP.
        new("filter-output").match_oif_not("lo").try_jump(REFUSE)?,
        by_address(REFUSE, REFUSED_ADDRESSES),
        rule(REFUSE).expr(destination(0)).expr(LookupExpr::new(CLUSTER_IPS, word(0))).try_goto(REJECT)?,
        rule(REJECT).match_l4proto(Protocol::Tcp.number()).reject_tcp_reset(),
        rule(REJECT).reject(),
    ])
}

/// The rules of a service port's chain.
pub fn rules(name: &str, steps: &[Step], (pods, prefix): (Ipv4Addr, u8)) -> Built<Vec<Rule>> {
    let mark = |rule: Rule| rule.set_mark_masked(MASQUERADE, MASQUERADE);
    let mut rules = Vec::new();
    for step in steps {
        let next = match step {
            Step::Masquerade => mark(rule(name)),
            Step::MasqueradeOutsiders => mark(rule(name).match_saddr_v4_not(pods, prefix)),
            Step::PodsGoto(chain) => rule(name).match_saddr_v4(pods, prefix).try_goto(chain)?,
            Step::HostGoto(chain) => {
                mark(rule(name).match_fib_type(FibFlags::SADDR, RouteType::Local)).try_goto(chain)?
            }
            Step::SourceGoto((ip, prefix), chain) => {
                rule(name).match_saddr_v4(*ip, *prefix).try_goto(chain)?
            }
            Step::Goto(chain) => rule(name).try_goto(chain)?,
            Step::Drop => rule(name).drop(),
            Step::Balance { service, scope, count, affinity } => {
                rules.extend(affinity.map(|kept| keep(name, service, *scope, kept)));
                rules.push(balance(name, service, *scope, *count, *affinity));
                // A packet may see the rule of one generation and the endpoints of the next, which can be fewer.
                rules.push(balance(name, service, *scope, 1, *affinity));
                rule(name).drop()
            }
        };
        rules.push(next);
    }
    Ok(rules)
}

fn load_service(service: &Frontend, to: usize) -> Expr {
    let [ip, protocol, port] = frontend_parts(service);
    Expr::Immediate { dreg: word(to), data: SetElement::concat([ip, protocol, port]).key().to_vec() }
}

/// The client's endpoint of before, if it is still one.
fn keep(chain: &str, service: &Frontend, scope: Scope, kept: Duration) -> Rule {
    let rule = rule(chain)
        .expr(load_service(service, 0))
        .expr(source(3))
        .expr(LookupExpr::new(CLIENTS, word(0)).dreg(word(3)))
        .expr(LookupExpr::new(kept_name(scope), word(0)));
    remember(rule, service, DynsetOp::Update, kept, 3).expr(dnat(3))
}

fn balance(chain: &str, service: &Frontend, scope: Scope, count: u32, affinity: Option<Duration>) -> Rule {
    let rule = rule(chain)
        .expr(load_service(service, 0))
        .expr(Expr::Numgen {
            dreg: word(3),
            kind: NumgenKind::Random,
            modulus: count,
            offset: scope.offset(),
        })
        .expr(LookupExpr::new(endpoint_map(service), word(0)).dreg(word(4)));
    let rule = match affinity {
        // An update would leave the endpoint of before in place.
        Some(kept) => {
            let forgotten = remember(rule, service, DynsetOp::Delete, kept, 4);
            remember(forgotten, service, DynsetOp::Add, kept, 4)
        }
        None => rule,
    };
    rule.expr(dnat(4))
}

/// Notes, or forgets, that the client has the endpoint in the words from `endpoint`.
fn remember(rule: Rule, service: &Frontend, op: DynsetOp, kept: Duration, endpoint: usize) -> Rule {
    let dynset = DynsetExpr::new(op, CLIENTS, word(8)).sreg_data(word(endpoint)).timeout(kept);
    rule.expr(load_service(service, 8)).expr(source(11)).expr(dynset)
}

/// `dnat` to the address and port in two words, which nlink has no builder for.
fn dnat(from: usize) -> Expr {
    const NFT_NAT_DNAT: u32 = 1;
    const NFPROTO_IPV4: u32 = 2;
    /// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`
    const ADDRESS_AND_PORT: u32 = 3;
    let (address, port) = (word(from).wire(), word(from + 1).wire());
    let values = [NFT_NAT_DNAT, NFPROTO_IPV4, address, address, port, port, ADDRESS_AND_PORT];
    let attribute = |(kind, value): (u16, u32)| {
        let length = 8_u16.to_ne_bytes();
        [&length[..], &kind.to_ne_bytes(), &value.to_be_bytes()].concat()
    };
    RawExpr::new("nat", (1..).zip(values).flat_map(attribute).collect()).into()
}
