//! Clients of a store of several members: what they ask, and some that write without pause.
#![allow(clippy::disallowed_methods)] // of tests only

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinSet;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{HashKvRequest, PutRequest, RangeRequest, StatusRequest, StatusResponse};

use crate::members::{Members, soon};

/// Clients that write at the same time, and how long one of them waits for an answer before it asks another member.
const WRITERS: usize = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Writes that every round must see acknowledged.
const ROUND_WRITES: usize = 40;

/// A connection to a member.
///
/// # Errors
/// When the address cannot be used.
pub fn channel(endpoint: &str) -> anyhow::Result<daemon::Channel> {
    daemon::channel::connect(endpoint, None)
}

/// Writes a key, or gives up soon.
///
/// # Errors
/// When it is not acknowledged.
pub async fn put(endpoint: &str, key: &str, value: &str) -> anyhow::Result<()> {
    let (key, value) = (key.to_owned().into_bytes().into(), value.to_owned().into_bytes().into());
    let request = PutRequest { key, value, ..PutRequest::default() };
    let mut client = KvClient::new(channel(endpoint)?);
    tokio::time::timeout(ANSWER_TIMEOUT, client.put(request)).await??;
    Ok(())
}

/// How many keys begin so.
///
/// # Errors
/// When nobody answers.
pub async fn count(endpoint: &str, prefix: &str) -> anyhow::Result<i64> {
    let key = prefix.to_owned().into_bytes().into();
    let range_end = format!("{prefix}~").into_bytes().into();
    let request = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    Ok(KvClient::new(channel(endpoint)?).range(request).await?.into_inner().count)
}

async fn keys(endpoint: &str, prefix: &str) -> anyhow::Result<Vec<String>> {
    let key = prefix.to_owned().into_bytes().into();
    let range_end = format!("{prefix}~").into_bytes().into();
    let request = RangeRequest { key, range_end, keys_only: true, ..RangeRequest::default() };
    let mut client = KvClient::new(channel(endpoint)?).max_decoding_message_size(usize::MAX);
    let answer = client.range(request).await?.into_inner();
    answer.kvs.iter().map(|kv| Ok(String::from_utf8(kv.key.to_vec())?)).collect()
}

/// How a member sees itself.
///
/// # Errors
/// When it does not answer in time.
pub async fn status(endpoint: &str) -> anyhow::Result<StatusResponse> {
    let asking = MaintenanceClient::new(channel(endpoint)?);
    let asking = async move { asking.clone().status(StatusRequest {}).await };
    Ok(tokio::time::timeout(ANSWER_TIMEOUT, asking).await??.into_inner())
}

/// Which of these leads, once one does.
///
/// # Errors
/// When none does in time.
pub async fn leader(members: &Members, among: &[usize]) -> anyhow::Result<usize> {
    soon("somebody leads", async || {
        for at in among {
            let Ok(status) = status(&members.endpoint(*at)).await else { continue };
            if status.leader != 0 && status.header.is_some_and(|h| h.member_id == status.leader) {
                return Ok(*at);
            }
        }
        anyhow::bail!("nobody leads")
    })
    .await
}

/// Waits until the hashes of these are equal, as they are once they have the same entries.
///
/// # Errors
/// When they are not in time.
pub async fn agree(members: &Members, among: &[usize]) -> anyhow::Result<()> {
    soon("all have the same", async || {
        let mut hashes = Vec::new();
        for at in among {
            let mut client = MaintenanceClient::new(channel(&members.endpoint(*at))?);
            let answer = client.hash_kv(HashKvRequest { revision: 0 }).await?.into_inner();
            hashes.push((answer.hash, answer.hash_revision));
        }
        ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "hashes {hashes:?}");
        Ok(())
    })
    .await
}

/// Clients that write keys of their own, each through the next member when one does not answer.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    running: JoinSet<Vec<String>>,
}

impl Writers {
    /// Begins to write through these.
    #[must_use]
    pub fn start(endpoints: &[String]) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut running = JoinSet::new();
        for writer in 0..WRITERS {
            let (stop, endpoints) = (stop.clone(), endpoints.to_vec());
            let acknowledged: Arc<AtomicUsize> = Arc::clone(&acknowledged);
            running.spawn(async move {
                let (mut keys, mut at) = (Vec::new(), writer);
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("w{writer}/{number:06}");
                    match put(&endpoints[at % endpoints.len()], &key, "x").await {
                        Ok(()) => {
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                            keys.push(key);
                        }
                        Err(_) => at += 1,
                    }
                }
                keys
            });
        }
        Self { stop, acknowledged, running }
    }

    /// Waits until some more writes are acknowledged.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn go_on(&self, why: &str) -> anyhow::Result<()> {
        let goal = self.acknowledged.load(Ordering::Relaxed) + ROUND_WRITES;
        soon(why, async || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            ensure!(now >= goal, "{now} writes acknowledged instead of {goal}");
            Ok(())
        })
        .await
    }

    /// Ends; the keys whose writes were acknowledged.
    pub async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_all().await.concat()
    }
}

/// Waits until a member has all of these keys.
///
/// # Errors
/// With those that it lost.
pub async fn has_all(endpoint: &str, written: &[String]) -> anyhow::Result<()> {
    let found = soon("a member reads", async || keys(endpoint, "w").await).await?;
    let lost: Vec<&String> = written.iter().filter(|k| found.binary_search(k).is_err()).collect();
    ensure!(lost.is_empty(), "lost at {endpoint}: {lost:?} of {}", written.len());
    Ok(())
}
