//! Questions in, answers out: the zone served over UDP and TCP, other names asked of other servers.
//!
//! The only file that names hickory.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use daemon::Context;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{
    Edns, Header, HeaderCounts, Message, Metadata, OpCode, Query as Question, ResponseCode,
};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record as Packed, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::zone::{Answer, Data, Query, Record, Wanted, Zone, answer};

/// How long answers may be kept; short, since pods come and go.
const TTL_S: u32 = 5;
/// The largest UDP answer, which passes every network in one piece.
const UDP_BYTES_MAX: u16 = 1232;
/// Questions waiting for other servers at a time.
const FORWARDED_MAX: usize = 1000;
/// Other servers that are tried for one question.
const UPSTREAMS_MAX: usize = 3;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// A TCP client that says nothing for so long is let go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers waiting to be written to one TCP client.
const TCP_ANSWERS_MAX: usize = 32;

/// Serves `zone` on `listen`, and returns the address it got once it can be asked there.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(
    listen: SocketAddr,
    zone: Arc<RwLock<Zone>>,
    upstreams: Vec<SocketAddr>,
    metrics: Metrics,
    ctx: &Context,
) -> anyhow::Result<SocketAddr> {
    let udp = UdpSocket::bind(listen).await.with_context(|| format!("listen on udp {listen}"))?;
    let address = udp.local_addr().context("address of the socket")?;
    let tcp =
        TcpListener::bind(address).await.with_context(|| format!("listen on tcp {address}"))?;
    let handler = Handler {
        zone,
        upstreams: upstreams.into_iter().take(UPSTREAMS_MAX).collect(),
        forwarded: Semaphore::new(FORWARDED_MAX),
        turn: AtomicUsize::new(0),
        metrics,
    };
    let mut server = Server::new(handler);
    server.register_socket(udp);
    server.register_listener(tcp, IDLE_TIMEOUT, TCP_ANSWERS_MAX);
    let shutdown = ctx.shutdown.clone();
    ctx.tasks.part("dns server", async move {
        tokio::select! {
            end = server.block_until_done() => return end.context("serve"),
            () = shutdown.cancelled() => {}
        }
        // Clients that are still connected after that are cut off.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, server.shutdown_gracefully()).await;
        Ok(())
    });
    Ok(address)
}

struct Handler {
    zone: Arc<RwLock<Zone>>,
    upstreams: Vec<SocketAddr>,
    forwarded: Semaphore,
    turn: AtomicUsize,
    metrics: Metrics,
}

/// What is sent back.
#[derive(Default)]
struct Sections {
    code: ResponseCode,
    ours: bool,
    answers: Vec<Packed>,
    authority: Vec<Packed>,
    additional: Vec<Packed>,
}

impl Sections {
    fn failed(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        let sections = self.sections(request).await;
        self.metrics.answered(label(sections.code));
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = sections.ours;
        metadata.recursion_available = !self.upstreams.is_empty();
        metadata.response_code = sections.code;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, UDP_BYTES_MAX));
            edns
        });
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &sections.answers,
            &sections.authority,
            std::iter::empty::<&Packed>(),
            &sections.additional,
        );
        match out.send_response(response).await {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "answer not sent");
                Header { metadata, counts: HeaderCounts::default() }.into()
            }
        }
    }
}

impl Handler {
    async fn sections(&self, request: &Request) -> Sections {
        if request.metadata.op_code != OpCode::Query {
            return Sections::failed(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Sections::failed(ResponseCode::FormErr);
        };
        let question = info.query;
        if question.query_class() != DNSClass::IN {
            return Sections::failed(ResponseCode::Refused);
        }
        let name = plain(&Name::from(question.name()));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let query = Query { name: &name, wanted: wanted(question.query_type()), turn };
        let (answer, start) = {
            let zone = self.zone.read();
            (answer(&zone, &query), start_of(&zone))
        };
        let reply = match answer {
            Answer::Ours(reply) => reply,
            Answer::Elsewhere => {
                return self.elsewhere(question.original().clone()).await;
            }
        };
        let asked = question.original().name();
        let pack = |record: &Record| {
            let owner = if record.name == name { asked.clone() } else { parse(&record.name)? };
            let data = match &record.data {
                Data::Soa => start.clone()?.data,
                data => packed(data)?,
            };
            Some(Packed::from_rdata(owner, TTL_S, data))
        };
        let code = if reply.exists || reply.follow.is_some() {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        let mut sections = Sections {
            code,
            ours: true,
            answers: reply.answers.iter().filter_map(pack).collect(),
            authority: Vec::new(),
            additional: reply.additional.iter().filter_map(pack).collect(),
        };
        if let Some(target) = reply.follow.as_deref().and_then(parse) {
            let further = self.elsewhere(Question::query(target, question.query_type())).await;
            sections.answers.extend(further.answers);
        } else if sections.answers.is_empty() {
            sections.authority.extend(start);
        }
        sections
    }

    /// Asks the other servers in turn.
    async fn elsewhere(&self, question: Question) -> Sections {
        if self.upstreams.is_empty() {
            return Sections::failed(ResponseCode::Refused);
        }
        let Ok(_permit) = self.forwarded.try_acquire() else {
            tracing::warn!(most = FORWARDED_MAX, "too many questions wait for other servers");
            return Sections::failed(ResponseCode::ServFail);
        };
        for server in &self.upstreams {
            let exchange = exchange(*server, question.clone());
            match tokio::time::timeout(UPSTREAM_TIMEOUT, exchange).await {
                Ok(Ok(message)) if message.metadata.response_code != ResponseCode::ServFail => {
                    return Sections {
                        code: message.metadata.response_code,
                        ours: false,
                        answers: message.answers,
                        authority: message.authorities,
                        additional: message.additionals,
                    };
                }
                Ok(Ok(_)) => tracing::debug!(%server, "the other server failed"),
                Ok(Err(error)) => {
                    tracing::debug!(%server, error = format!("{error:#}"), "no use asking");
                }
                Err(_) => tracing::debug!(%server, "no answer in time"),
            }
        }
        Sections::failed(ResponseCode::ServFail)
    }
}

/// One question to one server: by UDP, and by TCP if the answer is too long for that.
async fn exchange(server: SocketAddr, question: Question) -> anyhow::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question);
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    message.set_edns(edns);
    let bytes = message.to_vec().context("encode question")?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket of its own, thus a port of its own, makes answers hard to forge.
    let socket = UdpSocket::bind(any).await.context("open socket")?;
    socket.connect(server).await.context("connect")?;
    socket.send(&bytes).await.context("ask")?;
    let mut buffer = [0; UDP_BYTES_MAX as usize];
    let answer = loop {
        let length = socket.recv(&mut buffer).await.context("wait for the answer")?;
        let answer = Message::from_vec(&buffer[..length]);
        match answer {
            Ok(answer) if belongs(&answer, &message) => break answer,
            _ => {} // not to our question
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await.context("connect by TCP")?;
    stream.write_u16(u16::try_from(bytes.len())?).await.context("ask by TCP")?;
    stream.write_all(&bytes).await.context("ask by TCP")?;
    let length = stream.read_u16().await.context("answer by TCP")?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.context("answer by TCP")?;
    let answer = Message::from_vec(&buffer).context("answer by TCP")?;
    anyhow::ensure!(belongs(&answer, &message), "the answer is to another question");
    Ok(answer)
}

fn belongs(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id && answer.queries == question.queries
}

fn label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        _ => "OTHER",
    }
}

/// A name as the zone has it.
fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn parse(name: &str) -> Option<Name> {
    match Name::from_str_relaxed(format!("{name}.")) {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::debug!(name, %error, "a name that no packet can hold");
            None
        }
    }
}

fn wanted(kind: RecordType) -> Wanted {
    match kind {
        RecordType::A => Wanted::A,
        RecordType::AAAA => Wanted::Aaaa,
        RecordType::SRV => Wanted::Srv,
        RecordType::PTR => Wanted::Ptr,
        RecordType::CNAME => Wanted::Cname,
        RecordType::TXT => Wanted::Txt,
        RecordType::SOA => Wanted::Soa,
        RecordType::NS => Wanted::Ns,
        RecordType::ANY => Wanted::Any,
        _ => Wanted::Other,
    }
}

fn packed(data: &Data) -> Option<RData> {
    const PRIORITY: u16 = 0;
    const WEIGHT: u16 = 100;
    Some(match data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Srv { port, target } => RData::SRV(SRV::new(PRIORITY, WEIGHT, *port, parse(target)?)),
        Data::Ptr(name) => RData::PTR(PTR(parse(name)?)),
        Data::Cname(name) => RData::CNAME(CNAME(parse(name)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Ns(name) => RData::NS(NS(parse(name)?)),
        Data::Soa => return None,
    })
}

/// The record that says how long a "no" may be kept.
fn start_of(zone: &Zone) -> Option<Packed> {
    const REFRESH_S: i32 = 7200;
    const RETRY_S: i32 = 1800;
    const EXPIRE_S: i32 = 86400;
    let contact = parse(&format!("hostmaster.{}", zone.domain()))?;
    let data = SOA::new(
        parse(&zone.server())?,
        contact,
        zone.serial(),
        REFRESH_S,
        RETRY_S,
        EXPIRE_S,
        TTL_S,
    );
    Some(Packed::from_rdata(parse(zone.domain())?, TTL_S, RData::SOA(data)))
}
