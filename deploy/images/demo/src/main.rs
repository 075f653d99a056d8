//! A web server that behaves well in a pod.
//!
//! `/` says where it runs and what it was told to say (`GREETING`, or the file named by
//! `GREETING_FILE`, which may come from a ConfigMap); `/healthz` and `/readyz` are for probes. On SIGTERM it
//! stops being ready but goes on answering for `DRAIN_SECONDS`, asking clients to close, so that no
//! request is lost while the Service forgets it. With arguments it is a small toolbox for tests,
//! since its image has nothing else: `echo`, `env`, `cat`, `sleep`, `exit`, `write`, `get`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

const CONNECTIONS_MAX: usize = 512;
const LINE_BYTES_MAX: u64 = 8 << 10;
const BODY_BYTES_MAX: u64 = 1 << 20;
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = if words.is_empty() || words[0] == "serve" { serve() } else { tool(&words) };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn tool(words: &[&str]) -> std::io::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match words {
        ["echo", rest @ ..] => writeln!(out, "{}", rest.join(" "))?,
        ["env"] => {
            for (key, value) in std::env::vars() {
                writeln!(out, "{key}={value}")?;
            }
        }
        ["cat"] => {
            std::io::copy(&mut std::io::stdin().lock(), &mut out)?;
        }
        ["cat", files @ ..] => {
            for file in files {
                out.write_all(&std::fs::read(file)?)?;
            }
        }
        ["write", file, rest @ ..] => std::fs::write(file, rest.join(" "))?,
        ["sleep", seconds] => {
            std::thread::sleep(Duration::from_secs_f64(seconds.parse().unwrap_or(1.0)));
        }
        ["exit", code] => return Ok(ExitCode::from(code.parse::<u8>().unwrap_or(1))),
        ["get", address, path] => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
            std::io::copy(&mut stream, &mut out)?;
        }
        _ => {
            eprintln!("demo: unknown command {words:?}");
            return Ok(ExitCode::from(127));
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

struct Server {
    draining: AtomicBool,
    open: AtomicUsize,
}

fn serve() -> std::io::Result<ExitCode> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let port = variable("PORT", "8080");
    let listener = TcpListener::bind(format!("[::]:{port}"))
        .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))?;
    println!("listening on port {port}");
    let server = Arc::new(Server { draining: AtomicBool::new(false), open: AtomicUsize::new(0) });
    let accepting = server.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if accepting.open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                accepting.open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let server = accepting.clone();
            std::thread::spawn(move || {
                // A client that goes away is not our concern.
                let _gone = server.connection(&stream);
                server.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let signal = signals.wait()?;
    println!("{signal}: draining");
    server.draining.store(true, Ordering::SeqCst);
    let seconds = variable("DRAIN_SECONDS", "5").parse().unwrap_or(5.0);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    println!("bye");
    Ok(ExitCode::SUCCESS)
}

impl Server {
    fn connection(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split_ascii_whitespace();
            let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
            let (mut close, mut body) = (words.next() == Some("HTTP/1.0"), 0);
            loop {
                let mut header = String::new();
                reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut header)?;
                let Some((name, value)) = header.trim_end().split_once(':') else { break };
                match name.to_ascii_lowercase().as_str() {
                    "connection" => close |= value.trim().eq_ignore_ascii_case("close"),
                    "content-length" => body = value.trim().parse().unwrap_or(0),
                    _ => {}
                }
            }
            std::io::copy(
                &mut reader.by_ref().take(body.min(BODY_BYTES_MAX)),
                &mut std::io::sink(),
            )?;
            let draining = self.draining.load(Ordering::SeqCst);
            close |= draining;
            let (status, text) = answer(path, draining);
            let connection = if close { "close" } else { "keep-alive" };
            let length = text.len();
            let text = if method == "HEAD" { "" } else { &text };
            let response = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {length}\r\nConnection: {connection}\r\n\r\n{text}"
            );
            let mut stream = stream;
            stream.write_all(response.as_bytes())?;
            if close {
                return Ok(());
            }
        }
    }
}

fn answer(path: &str, draining: bool) -> (&'static str, String) {
    match path.split('?').next().unwrap_or(path) {
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/readyz" if draining => ("503 Service Unavailable", "draining\n".to_owned()),
        "/readyz" => ("200 OK", "ok\n".to_owned()),
        "/" | "/hostname" => ("200 OK", page()),
        _ => ("404 Not Found", "not found\n".to_owned()),
    }
}

fn page() -> String {
    let file = variable("GREETING_FILE", "");
    let greeting = if file.is_empty() {
        variable("GREETING", "Hello")
    } else {
        std::fs::read_to_string(&file).unwrap_or_else(|error| format!("{file}: {error}"))
    };
    let pod = variable("POD_NAME", &variable("HOSTNAME", "?"));
    let node = variable("NODE_NAME", "?");
    format!("{}\npod: {pod}\nnode: {node}\n", greeting.trim_end())
}
