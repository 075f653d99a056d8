//! The pages beside gRPC on the store's port for clients: over HTTP/1.1 and HTTP/2, plain and over mutual TLS; what they say
//! of puts, of the way to other members, and of a lost majority.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration_tests::machine;
use integration_tests::members::{Members, PATIENCE, soon};
use integration_tests::servers::Target;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::{PutRequest, RangeRequest};

const ALL: [usize; 3] = [0, 1, 2];
const VALUE_BYTES: usize = 10_000;

fn main() -> ExitCode {
    let test = || machine::block_on(pages()).map_err(|error| Failed::from(format!("{error:#}")));
    let trials = vec![Trial::test("store_pages_tell_how_it_is_over_every_http", test)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Where a member's pages are, and how they are asked for.
struct Reader {
    address: String,
    /// Over mutual TLS by who has these certificates, for HTTP/1.1 and HTTP/2.
    tls: Option<[Target; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Http {
    One,
    Two,
}

impl Reader {
    async fn page(&self, http: Http, path: &str) -> anyhow::Result<(u16, String)> {
        let answer = async {
            match &self.tls {
                None => {
                    ask(http, &self.address, path, TcpStream::connect(&self.address).await?).await
                }
                Some([one, _]) if http == Http::One => {
                    ask(http, &self.address, path, one.dial().await?).await
                }
                Some([_, two]) => ask(http, &self.address, path, two.dial().await?).await,
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.context("no answer")?
    }

    /// A figure of the metrics' page.
    async fn figure(&self, http: Http, name: &str) -> anyhow::Result<f64> {
        let (code, text) = self.page(http, "/metrics").await?;
        ensure!(code == 200, "{code}: {text}");
        figure(&text, name)
    }
}

async fn ask(
    http: Http,
    address: &str,
    path: &str,
    link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> anyhow::Result<(u16, String)> {
    let io = TokioIo::new(link);
    let request = Request::builder().header("host", address);
    let answer = match http {
        Http::One => {
            let (mut asks, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            asks.send_request(request.uri(path).body(Empty::<Bytes>::new())?).await?
        }
        Http::Two => {
            let (mut asks, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            let uri = format!("http://{address}{path}");
            asks.send_request(Request::builder().uri(uri).body(Empty::<Bytes>::new())?).await?
        }
    };
    let code = answer.status().as_u16();
    let text = answer.into_body().collect().await?.to_bytes();
    Ok((code, String::from_utf8(text.to_vec())?))
}

/// The value of the only line that begins so.
fn figure(text: &str, name: &str) -> anyhow::Result<f64> {
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.next().with_context(|| format!("no {name} in:\n{text}"))?;
    ensure!(lines.next().is_none(), "several {name} in:\n{text}");
    Ok(line.rsplit(' ').next().context("no value")?.parse()?)
}

async fn pages() -> anyhow::Result<()> {
    let mut members = Members::prepare(3)?;
    for at in ALL {
        members.begin(at, "new", &ALL)?;
    }
    let plain = Reader { address: address(&members, 1), tls: None };
    soon("it is ready", async || ready(&plain, Http::One).await).await?;

    // The first member takes only clients that show a certificate.
    members.kill(0)?;
    let file = |name: &str| members.pki().join(name).display().to_string();
    let files = [("ca", "ca.crt"), ("cert", "node-m.crt"), ("key", "node-m.key")];
    let mut settings: Vec<String> =
        files.iter().map(|(key, name)| format!("client.files.{key}={}", file(name))).collect();
    settings.push("client.tls=files".to_owned());
    members.tell(0, &settings);
    members.start(0)?;
    let target = |alpn: &str| Target::new(&address(&members, 0), &members.pki(), "node-m", alpn);
    let tls = Some([target("http/1.1")?, target("h2")?]);
    let secure = Reader { address: address(&members, 0), tls };
    soon("it is ready over TLS", async || ready(&secure, Http::Two).await).await?;
    let stranger = Reader { address: address(&members, 0), tls: None };
    let refused = stranger.page(Http::One, "/health").await;
    ensure!(refused.is_err(), "a plain client was answered: {refused:?}");

    for reader in [&plain, &secure] {
        for http in [Http::One, Http::Two] {
            pages_of(reader, http).await.with_context(|| {
                format!("{http:?}, {}", if reader.tls.is_some() { "TLS" } else { "plain" })
            })?;
        }
    }
    figures_move(&members, &plain, &secure).await?;

    // Without a majority it lives, but is not ready.
    members.kill(0)?;
    members.kill(2)?;
    soon("it is no longer ready", async || {
        let (code, text) = plain.page(Http::Two, "/readyz").await?;
        ensure!(code == 503 && text.contains("[-]linearizable_read failed"), "{code}: {text}");
        Ok(())
    })
    .await?;
    let checks = [
        ("/readyz/linearizable_read", 503),
        ("/readyz/serializable_read", 200),
        ("/readyz/data_corruption", 200),
        ("/readyz?exclude=linearizable_read", 200),
        ("/livez", 200),
        ("/health", 503),
        ("/health?serializable=true", 200),
    ];
    for (path, expected) in checks {
        let (code, text) = plain.page(Http::One, path).await?;
        ensure!(code == expected, "{path}: {code}: {text}");
    }
    let (_, text) = plain.page(Http::One, "/health").await?;
    ensure!(text.contains("\"health\":\"false\"") && text.contains("RAFT NO LEADER"), "{text}");
    Ok(())
}

fn address(members: &Members, at: usize) -> String {
    members.endpoint(at).trim_start_matches("http://").to_owned()
}

async fn ready(reader: &Reader, http: Http) -> anyhow::Result<()> {
    let (code, text) = reader.page(http, "/readyz").await?;
    ensure!(code == 200, "{code}: {text}");
    Ok(())
}

async fn pages_of(reader: &Reader, http: Http) -> anyhow::Result<()> {
    let says = [
        ("/health", "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/livez", "ok\n"),
        ("/livez/serializable_read", "ok\n"),
        ("/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("/readyz", "ok\n"),
        ("/readyz/linearizable_read", "ok\n"),
        ("/readyz/linearizable_read?verbose", "[+]linearizable_read ok\nok\n"),
    ];
    for (path, expected) in says {
        let (code, text) = reader.page(http, path).await?;
        ensure!(code == 200 && text == expected, "{path}: {code}: {text}");
    }
    let (code, text) = reader.page(http, "/version").await?;
    ensure!(code == 200 && text.starts_with("{\"etcdserver\":\"3."), "/version: {code}: {text}");
    let (_, text) = reader.page(http, "/metrics").await?;
    let names = [
        "etcd_server_has_leader 1",
        "etcd_network_peer_sent_bytes_total{To=",
        "etcd_network_peer_received_bytes_total{From=",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
    ];
    for name in names {
        ensure!(text.contains(name), "no {name} in:\n{text}");
    }
    let (code, _) = reader.page(http, "/nothing").await?;
    ensure!(code == 404, "a page that is none: {code}");
    Ok(())
}

/// A put through one member is seen in its figures, and on the way to the others.
async fn figures_move(members: &Members, plain: &Reader, secure: &Reader) -> anyhow::Result<()> {
    const RECEIVED: &str = "etcd_network_client_grpc_received_bytes_total";
    const SENT: &str = "etcd_network_client_grpc_sent_bytes_total";
    const PUTS: &str = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\"";
    let look = async || {
        Ok::<_, anyhow::Error>([
            plain.figure(Http::One, RECEIVED).await?,
            plain.figure(Http::Two, SENT).await?,
            plain.figure(Http::Two, PUTS).await?,
            plain.figure(Http::One, "etcd_server_proposals_applied_total").await?,
            secure.figure(Http::One, "etcd_debugging_mvcc_current_revision").await?,
        ])
    };
    let before = look().await?;
    let mut client = KvClient::new(daemon::channel::connect(&members.endpoint(1), None)?);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let key = Bytes::from_static(b"key");
    client.put(PutRequest { key: key.clone(), value, ..Default::default() }).await?;
    client.range(RangeRequest { key, ..Default::default() }).await?;
    // The other member hears of the write a little later.
    soon("all figures move", async || {
        let after = look().await?;
        let by: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let bytes = VALUE_BYTES as f64;
        let range = bytes..bytes + 200.0;
        if !range.contains(&by[0]) || !range.contains(&by[1]) {
            bail!("bytes of clients: {by:?}");
        }
        ensure!(by[2] == 1.0 && by[3] >= 1.0 && by[4] == 1.0, "{by:?}");
        Ok(())
    })
    .await?;
    soon("the way to others is measured", async || {
        let (_, text) = plain.page(Http::One, "/metrics").await?;
        let counts = text
            .lines()
            .filter(|line| line.starts_with("etcd_network_peer_round_trip_time_seconds_count{To="));
        let measured = counts.filter(|line| !line.ends_with(" 0")).count();
        ensure!(measured == 2, "{measured} ways in:\n{text}");
        Ok(())
    })
    .await
}
