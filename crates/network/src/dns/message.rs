//! DNS messages: a question in, the bytes of the answer out, or word that somebody else must be asked. Pure.

use std::borrow::Cow;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::index::{Answer, Data, Entry, Index, Kind};

/// How long, in seconds, answers may be kept, also the negative ones.
const TTL: u32 = 5;
/// What a UDP answer may have without being cut into fragments on any usual link.
const UDP_BYTES: u16 = 1232;

/// What to do with a message.
#[derive(Debug)]
pub enum Outcome {
    /// Send this back.
    Reply(Message),
    /// Send this back, after adding what upstream says about the name its last alias leads to.
    Alias(Message, Query),
    /// Relay the message upstream.
    Forward,
    /// It deserves no answer.
    Ignore,
}

/// Decides what to do with a message.
pub fn answer(index: &Index, request: &[u8]) -> Outcome {
    let Ok(request) = Message::from_vec(request) else { return Outcome::Ignore };
    if request.metadata.message_type != MessageType::Query {
        return Outcome::Ignore;
    }
    if request.metadata.op_code != OpCode::Query {
        return Outcome::Reply(failure(&request, ResponseCode::NotImp));
    }
    let [query] = &request.queries[..] else {
        return Outcome::Reply(failure(&request, ResponseCode::FormErr));
    };
    let name = plain(&query.name);
    let Some(zone) = index.zone(&name).filter(|_| matches!(query.query_class, DNSClass::IN | DNSClass::ANY))
    else {
        return Outcome::Forward;
    };
    let answer = index.lookup(&name, kind(query.query_type));
    let elsewhere = answer.elsewhere.as_deref().and_then(parse);
    let reply = reply(&request, query, answer, zone, index.domain());
    match elsewhere {
        Some(target) => Outcome::Alias(reply, Query::query(target, query.query_type)),
        None => Outcome::Reply(reply),
    }
}

/// An answer that only says what went wrong.
pub fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&request.queries);
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES);
        reply.edns = Some(edns);
    }
    reply
}

/// The bytes of an answer; `limit` is the most the client takes, where there is a limit.
pub fn encode(reply: &Message, limit: Option<usize>) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if limit.is_some_and(|limit| bytes.len() > limit) {
        return reply.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// What a client takes by UDP.
pub fn udp_limit(request: &[u8]) -> usize {
    Message::from_vec(request).map_or(512, |request| request.max_payload().min(UDP_BYTES)).into()
}

fn kind(record_type: RecordType) -> Kind {
    match record_type {
        RecordType::A => Kind::A,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::CNAME => Kind::Cname,
        RecordType::TXT => Kind::Txt,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

fn plain(name: &Name) -> String {
    let labels: Vec<Cow<'_, str>> = name.iter().map(String::from_utf8_lossy).collect();
    labels.join(".").to_ascii_lowercase()
}

fn parse(name: &str) -> Option<Name> {
    Name::from_labels(name.split('.').map(str::as_bytes)).ok()
}

fn reply(request: &Message, query: &Query, answer: Answer, zone: &str, domain: &str) -> Message {
    let mut reply =
        failure(request, if answer.exists { ResponseCode::NoError } else { ResponseCode::NXDomain });
    reply.metadata.authoritative = true;
    let asked = plain(&query.name);
    let record = |(name, data): Entry| {
        // The client compares with what it asked, and may have chosen its own case.
        let name = if name == asked { query.name.clone() } else { parse(&name)? };
        Some(Record::from_rdata(name, TTL, rdata(data)?))
    };
    let apex = asked == domain && matches!(query.query_type, RecordType::SOA | RecordType::ANY);
    reply.answers = answer.records.into_iter().filter_map(record).collect();
    if apex {
        reply.answers.extend(authority(zone, domain));
    }
    if reply.answers.is_empty() {
        reply.authorities.extend(authority(zone, domain));
    } else if !reply.answers.iter().any(|record| record.record_type() == RecordType::CNAME) {
        // Clients tend to take the first.
        let turn = usize::from(request.metadata.id) % reply.answers.len();
        reply.answers.rotate_left(turn);
    }
    reply.additionals = answer.additional.into_iter().filter_map(record).collect();
    reply
}

fn rdata(data: Data) -> Option<RData> {
    Some(match data {
        Data::A(ip) => RData::A(A(ip)),
        Data::Srv(port, target) => RData::SRV(SRV::new(0, 100, port, parse(&target)?)),
        Data::Ptr(name) => RData::PTR(PTR(parse(&name)?)),
        Data::Cname(name) => RData::CNAME(CNAME(parse(&name)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text])),
    })
}

fn authority(zone: &str, domain: &str) -> Option<Record> {
    let (server, contact) = (parse(&format!("ns.dns.{domain}"))?, parse(&format!("hostmaster.{domain}"))?);
    let soa = SOA::new(server, contact, 1, 7200, 1800, 86400, TTL);
    Some(Record::from_rdata(parse(zone)?, TTL, RData::SOA(soa)))
}
