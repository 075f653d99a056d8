//! Makes probes and lifecycle hooks happen: HTTP, TCP, gRPC, commands. What a result means is
//! decided in `pod::probe`; when the next one is due, by the pod's worker.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::runtime::Runtime;

/// How much of what a failed command prints is told, in bytes.
const OUTPUT_BYTES_MAX: usize = 10 << 10;
/// How long a hook may take where nothing else bounds it.
const HOOK_TIMEOUT: Duration = Duration::from_secs(120);
const USER_AGENT: &str = "kube-probe/1.36";

/// One attempt of a probe of a running container; `ip` is its pod's.
///
/// # Errors
/// Why it failed, as the event shows it.
pub async fn check(
    runtime: &Runtime,
    container_id: &str,
    probe: &Probe,
    container: &Container,
    ip: &str,
) -> Result<(), String> {
    let seconds = u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1);
    let limit = Duration::from_secs(seconds);
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return run(runtime, container_id, &command, limit).await;
    }
    if let Some(get) = &probe.http_get {
        return http(get, container, ip, limit).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip);
        let port = port(&tcp.port, container)?;
        return dial(host, port, limit).await.map(drop);
    }
    if let Some(grpc) = &probe.grpc {
        return health(ip, grpc.port, grpc.service.as_deref().unwrap_or_default(), limit).await;
    }
    Err("missing probe handler".to_owned())
}

/// Runs a postStart or preStop hook to its end.
///
/// # Errors
/// Why it failed, as the event shows it.
pub async fn hook(
    runtime: &Runtime,
    container_id: &str,
    handler: &LifecycleHandler,
    container: &Container,
    ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        return run(runtime, container_id, &command, HOOK_TIMEOUT).await;
    }
    if let Some(get) = &handler.http_get {
        return http(get, container, ip, HOOK_TIMEOUT).await;
    }
    if let Some(sleep) = &handler.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err("invalid handler".to_owned())
}

/// The number of a port that may be named.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.clone().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| {
                    format!("couldn't find port name {name:?} in container {}", container.name)
                })?,
            }
        }
    };
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("invalid port number: {number}")),
    }
}

async fn run(
    runtime: &Runtime,
    container_id: &str,
    command: &[String],
    limit: Duration,
) -> Result<(), String> {
    match runtime.exec_sync(container_id, command, limit).await {
        Ok((0, _)) => Ok(()),
        Ok((_, output)) => {
            let output = &output[..output.len().min(OUTPUT_BYTES_MAX)];
            Err(String::from_utf8_lossy(output).into_owned())
        }
        Err(error) if error.message.contains("DeadlineExceeded") => {
            Err(format!("command timed out: {command:?} timed out after {}s", limit.as_secs()))
        }
        Err(error) => Err(error.message),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let address = join(host, port);
    match tokio::time::timeout(limit, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {address}: connect: connection refused"))
        }
        Ok(Err(error)) => Err(format!("dial tcp {address}: {error}")),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

async fn http(
    get: &HTTPGetAction,
    container: &Container,
    ip: &str,
    limit: Duration,
) -> Result<(), String> {
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip);
    let port = port(&get.port, container)?;
    let tls = get.scheme.as_deref() == Some("HTTPS");
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{}{path}", join(host, port));
    let request = request(get, &path, &join(host, port));
    let asked = async {
        let stream = dial(host, port, limit).await?;
        if tls {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
            let connector = TlsConnector::from(Arc::new(lenient()?));
            let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
            status_of(stream, &request).await
        } else {
            status_of(stream, &request).await
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(code)) if (200..400).contains(&code) => Ok(()),
        Ok(Ok(code)) => Err(format!("HTTP probe failed with statuscode: {code}")),
        Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn request(get: &HTTPGetAction, path: &str, authority: &str) -> String {
    let given = || get.http_headers.iter().flatten();
    let has = |name: &str| given().any(|h| h.name.eq_ignore_ascii_case(name));
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in [("Host", authority), ("User-Agent", USER_AGENT), ("Accept", "*/*")] {
        if !has(name) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for header in given() {
        // A line break would begin another header.
        let clean = |text: &str| text.replace(['\r', '\n'], "");
        request.push_str(&format!("{}: {}\r\n", clean(&header.name), clean(&header.value)));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

/// Sends a request and reads the status code of the answer; its body is left alone.
async fn status_of(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> Result<u16, String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    let read = reader.read_line(&mut line).await.map_err(|e| e.to_string())?;
    if read == 0 {
        return Err("EOF".to_owned());
    }
    let code = line.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| format!("malformed HTTP response {:?}", line.trim_end()))
}

/// Probes ask whether a server answers, not who it is: like upstream they take any certificate.
/// Nothing is sent over such a connection but the probe itself.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn lenient() -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let verifier = Arc::new(AnyCertificate(provider));
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

async fn health(ip: &str, port: i32, service: &str, limit: Duration) -> Result<(), String> {
    let port = u16::try_from(port).map_err(|_| format!("invalid port number: {port}"))?;
    let address = join(ip, port);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| e.to_string())?
        .connect_timeout(limit)
        .timeout(limit);
    let late = || format!("timeout: health rpc did not complete within {}s", limit.as_secs());
    let asked = async {
        let failed = |_| format!("timeout: failed to connect service {address:?} within {limit:?}");
        let channel = endpoint.connect().await.map_err(failed)?;
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = HealthClient::new(channel).check(request).await;
        let reply = reply.map_err(|status| format!("error: health rpc probe failed: {status}"))?;
        Ok(reply.into_inner().status())
    };
    use tonic_health::pb::health_check_response::ServingStatus;
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(ServingStatus::Serving)) => Ok(()),
        Ok(Ok(status)) => {
            Err(format!("service unhealthy (responded with {:?})", status.as_str_name()))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(late()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn container() -> Container {
        let ports = json!([{"name": "web", "containerPort": 8080}]);
        serde_json::from_value(json!({"name": "c", "ports": ports})).unwrap()
    }

    fn get(port: u16) -> HTTPGetAction {
        let headers =
            json!([{"name": "X-A", "value": "b\r\nEvil: 1"}, {"name": "host", "value": "h"}]);
        serde_json::from_value(json!({"port": port, "path": "ready", "httpHeaders": headers}))
            .unwrap()
    }

    /// A server for one connection; returns its port and what it was sent.
    async fn answering(answer: &'static str) -> (u16, impl Future<Output = String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        (port, serve)
    }

    #[tokio::test]
    async fn an_http_probe_goes_by_the_status() {
        let limit = Duration::from_secs(5);
        for (answer, want) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            ("HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n", Ok(())),
            ("HTTP/1.1 500 Oh\r\n\r\n", Err("HTTP probe failed with statuscode: 500".to_owned())),
        ] {
            let (port, serve) = answering(answer).await;
            let (get, container) = (get(port), container());
            let (sent, got) = tokio::join!(serve, http(&get, &container, "127.0.0.1", limit));
            assert_eq!(got, want, "{answer}");
            assert!(sent.starts_with("GET /ready HTTP/1.1\r\n"), "{sent}");
            assert!(sent.contains("host: h\r\n") && !sent.contains("Host: 127"), "{sent}");
            assert!(sent.contains("X-A: bEvil: 1\r\n"), "{sent}");
        }
    }

    #[tokio::test]
    async fn refused_connections_are_told_as_upstream_tells_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = listener.local_addr().unwrap().port();
        drop(listener);
        let limit = Duration::from_secs(5);
        let told = dial("127.0.0.1", free, limit).await.map(drop).unwrap_err();
        assert_eq!(told, format!("dial tcp 127.0.0.1:{free}: connect: connection refused"));
        let (get, container) = (get(free), container());
        let told = http(&get, &container, "127.0.0.1", limit).await.unwrap_err();
        let want = "connect: connection refused";
        assert!(told.starts_with("Get \"http://127.0.0.1:") && told.ends_with(want), "{told}");
    }

    #[test]
    fn ports_may_have_names() {
        let container = container();
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(8080));
        assert_eq!(port(&IntOrString::String("81".into()), &container), Ok(81));
        assert_eq!(port(&IntOrString::Int(9), &container), Ok(9));
        assert!(port(&IntOrString::String("none".into()), &container).is_err());
        assert!(port(&IntOrString::Int(70_000), &container).is_err());
    }
}
