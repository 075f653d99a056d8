//! A steady load on an address, which counts every request and remembers every failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How many clients ask at the same time.
const CLIENTS: usize = 4;
/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Vec<String>>,
}

/// The answer of a web server to `GET path`, over a connection of its own.
///
/// # Errors
/// When there is none, or its status is not 200.
pub async fn fetch(address: &str, path: &str) -> anyhow::Result<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.context("send")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("receive")?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "answer {answer:?}");
        Ok(answer)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asking).await.context("no answer in time")?
}

impl Load {
    /// Starts asking `address` for `/`.
    #[must_use]
    pub fn start(address: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (stop, answered, address) = (stop.clone(), answered.clone(), address.to_owned());
            clients.spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match fetch(&address, "/").await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(format!("{error:#}")),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                failures
            });
        }
        Self { stop, answered, clients }
    }

    /// How many requests have been answered well.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops, and returns how many requests were answered.
    ///
    /// # Errors
    /// When any request failed, with the reasons.
    pub async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.clients.join_all().await.concat();
        let answered = self.answered.load(Ordering::Relaxed);
        ensure!(
            failures.is_empty(),
            "{} requests failed beside {answered} answered: {:?}",
            failures.len(),
            failures.iter().take(5).collect::<Vec<_>>()
        );
        Ok(answered)
    }
}
