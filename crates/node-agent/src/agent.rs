//! All pods of the node: one worker each, woken by what the API server and the runtime say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::Cache;
use daemon::{Backoff, Context};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::pod::uid;
use crate::runtime::Event;
use crate::worker::{Inbox, Shared, Worker};

/// How often the runtime is looked through for what no event told of.
const RELIST: Duration = Duration::from_secs(60);
/// After the event stream has begun, what happened before it is looked for this much later.
const RELIST_FIRST: Duration = Duration::from_millis(500);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// The workers of a node.
pub(crate) struct Agent {
    shared: Arc<Shared>,
    inboxes: Mutex<HashMap<String, Arc<Inbox>>>,
}

impl Agent {
    /// Starts the agent as parts of `ctx`. Nothing is done to any pod before the API server has
    /// told of all of them once.
    pub(crate) fn start(shared: Arc<Shared>, ctx: &Context) {
        let agent = Arc::new(Self { shared, inboxes: Mutex::default() });
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        agent.shared.cache.on_change::<Pod>(move |_| notify.notify_one());
        let (following, shutdown) = (agent.clone(), ctx.shutdown.clone());
        ctx.tasks.part("pods", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = following.follow_pods(&changed) => {}
            }
            Ok(())
        });
        let shutdown = ctx.shutdown.clone();
        ctx.tasks.part("runtime events", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = agent.follow_runtime() => {}
            }
            Ok(())
        });
    }

    async fn follow_pods(self: &Arc<Self>, changed: &Notify) {
        self.shared.cache.synced().await;
        self.look_through().await;
        loop {
            self.deliver(&self.shared.cache);
            changed.notified().await;
        }
    }

    /// Hands every pod to its worker, and tells workers of pods that are gone.
    fn deliver(self: &Arc<Self>, cache: &Cache) {
        let pods: HashMap<String, Arc<Pod>> =
            cache.list::<Pod>().into_iter().map(|pod| (uid(&pod).to_owned(), pod)).collect();
        let known: Vec<(String, Arc<Inbox>)> =
            self.inboxes.lock().iter().map(|(uid, inbox)| (uid.clone(), inbox.clone())).collect();
        for (uid, inbox) in known {
            if !pods.contains_key(&uid) && inbox.pod.lock().take().is_some() {
                inbox.wake.notify_one();
            }
        }
        for (uid, pod) in pods {
            let inbox = self.inbox(&uid);
            let mut slot = inbox.pod.lock();
            let revision = |pod: &Pod| pod.metadata.resource_version.clone();
            if slot.as_deref().map(revision) != Some(revision(&pod)) {
                *slot = Some(pod);
                drop(slot);
                inbox.wake.notify_one();
            }
        }
    }

    /// The inbox of a pod; its worker is started with the first message.
    fn inbox(self: &Arc<Self>, uid: &str) -> Arc<Inbox> {
        let mut inboxes = self.inboxes.lock();
        if let Some(inbox) = inboxes.get(uid) {
            return inbox.clone();
        }
        let inbox = Arc::new(Inbox::default());
        inboxes.insert(uid.to_owned(), inbox.clone());
        let worker = Worker::new(self.shared.clone(), uid.to_owned(), inbox.clone());
        let (agent, uid, own) = (self.clone(), uid.to_owned(), inbox.clone());
        self.shared.ctx.tasks.job(async move {
            // The first message is put into the inbox by whoever asked for it.
            own.wake.notified().await;
            worker.run().await;
            agent.inboxes.lock().remove(&uid);
        });
        inbox
    }

    async fn follow_runtime(self: &Arc<Self>) {
        self.shared.cache.synced().await;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            let mut events = self.shared.runtime.events();
            let mut wait = RELIST_FIRST;
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = tokio::time::sleep(wait) => {
                        wait = RELIST;
                        self.look_through().await;
                        continue;
                    }
                };
                match event {
                    Some(Ok(event)) => {
                        backoff.reset();
                        self.tell(event).await;
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "runtime events broke");
                        break;
                    }
                    None => break,
                }
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn tell(self: &Arc<Self>, event: Event) {
        let (Event::Exit { container } | Event::Oom { container }) = &event;
        let mut owner = self.shared.owners.lock().get(container).cloned();
        if owner.is_none() {
            // It ended before its worker had looked.
            self.look_through().await;
            owner = self.shared.owners.lock().get(container).cloned();
        }
        let inbox = owner.and_then(|uid| self.inboxes.lock().get(&uid).cloned());
        let Some(inbox) = inbox else { return };
        match event {
            Event::Exit { container } => inbox.exits.lock().insert(container),
            Event::Oom { container } => inbox.oom.lock().insert(container),
        };
        inbox.wake.notify_one();
    }

    /// Looks at everything the runtime has: owners of containers, and pods that nobody knows.
    async fn look_through(self: &Arc<Self>) {
        let pods = match self.shared.runtime.pods().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "runtime does not say what it has");
                return;
            }
        };
        let mut owners = HashMap::new();
        for (uid, pod) in &pods {
            owners.extend(pod.containers.iter().map(|c| (c.id.clone(), uid.clone())));
            owners.extend(pod.sandboxes.iter().map(|s| (s.id.clone(), uid.clone())));
        }
        *self.shared.owners.lock() = owners;
        for uid in pods.keys() {
            let known = self.inboxes.lock().contains_key(uid);
            let served = self.shared.cache.list::<Pod>().iter().any(|p| crate::pod::uid(p) == uid);
            if !known && !served {
                tracing::info!(pod = uid, "pod that the API server does not know is ended");
                self.inbox(uid).wake.notify_one();
            }
        }
    }
}
