//! What a command is about: which cluster, which namespace, which kinds and objects.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use api::object::Value;
use client::transport::Scope;
use client::{Client, Kind};
use daemon::Channel;
use tokio::sync::RwLock;
use wire::apiserver::ResourceKind;
use wire::apiserver::node_client::NodeClient;

use crate::kubeconfig;
use crate::layout::Layout;

/// The largest message of a stream.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Which cluster and namespace.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: String,
}

/// A connection as the cluster's administrator.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    channel: Channel,
    /// What the server serves, asked for once and again when something is missing.
    kinds: RwLock<Vec<ResourceKind>>,
}

/// Runs a command's work.
pub(crate) fn block<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A read of standard input may never end.
    runtime.shutdown_background();
    result
}

/// A way to the API of a data directory's cluster.
pub(crate) fn channel(layout: &Layout) -> anyhow::Result<Channel> {
    daemon::tls::install_provider();
    let (server, tls) = kubeconfig::read(&layout.kubeconfig())?;
    daemon::channel::connect(&server, Some(&tls))
}

/// The form in which the client names a kind.
pub(crate) fn kind_of(row: &ResourceKind) -> Kind {
    let resource = row.resource.clone().unwrap_or_default();
    Kind { group: resource.group, version: resource.version, resource: resource.resource }
}

/// `deployment.apps`, as messages name a kind.
pub(crate) fn singular(row: &ResourceKind) -> String {
    match row.resource.as_ref().map_or("", |r| r.group.as_str()) {
        "" => row.singular.clone(),
        group => format!("{}.{group}", row.singular),
    }
}

/// An object that came over the wire.
pub(crate) fn parse(object: &wire::apiserver::Object) -> anyhow::Result<Value> {
    api::codec::json::parse(&object.json).map_err(|error| anyhow::anyhow!("{error}"))
}

/// `items` of a list, or of nothing.
pub(crate) fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    value.at(path).map(Value::items).unwrap_or_default()
}

impl Session {
    pub(crate) fn open(target: &Target) -> anyhow::Result<Self> {
        let channel = channel(&Layout::new(target.data_dir.as_deref()))?;
        Ok(Self {
            client: Client::new(channel.clone(), "ironclad"),
            namespace: target.namespace.clone(),
            channel,
            kinds: RwLock::default(),
        })
    }

    /// The streams of nodes.
    pub(crate) fn nodes(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The first kind that `wanted` accepts, of its group's best version.
    async fn kind(
        &self,
        wanted: impl Fn(&ResourceKind) -> bool,
    ) -> anyhow::Result<Option<ResourceKind>> {
        for ask_again in [false, true] {
            if ask_again || self.kinds.read().await.is_empty() {
                *self.kinds.write().await = self.client.resources().await?;
            }
            let kinds = self.kinds.read().await;
            if let Some(first) = kinds.iter().find(|k| wanted(k)) {
                return Ok(Some(first.clone()));
            }
        }
        Ok(None)
    }

    /// The kind that a person means: by plural, singular, short name or kind, with or without version and group.
    pub(crate) async fn named(&self, word: &str) -> anyhow::Result<ResourceKind> {
        let found = self.kind(|k| names(k, word)).await?;
        found.with_context(|| format!("the server doesn't have a resource type {word:?}"))
    }

    /// The kind of an object.
    pub(crate) async fn row_of(&self, object: &Value) -> anyhow::Result<ResourceKind> {
        let (api_version, kind) = api::meta::type_meta(object);
        if kind.is_empty() || api_version.is_empty() {
            bail!("an object needs apiVersion and kind");
        }
        let (group, version) = api::catalog::split_api_version(api_version);
        let same = |k: &ResourceKind| {
            let resource = k.resource.as_ref();
            k.kind == kind && resource.is_some_and(|r| r.group == group && r.version == version)
        };
        let found = self.kind(same).await?;
        found.with_context(|| format!("no matches for kind {kind:?} in version {api_version:?}"))
    }

    /// The kinds that a comma-separated list means; a category stands for all its kinds.
    async fn kinds(&self, words: &str) -> anyhow::Result<Vec<ResourceKind>> {
        let mut found = Vec::new();
        for word in words.split(',').filter(|w| !w.is_empty()) {
            if self.kinds.read().await.is_empty() {
                *self.kinds.write().await = self.client.resources().await?;
            }
            let kinds = self.kinds.read().await.clone();
            let of_category: Vec<ResourceKind> =
                kinds.into_iter().filter(|k| k.categories.iter().any(|c| c == word)).collect();
            if of_category.is_empty() {
                found.push(self.named(word).await?);
            }
            for kind in of_category {
                let same = |k: &ResourceKind| k.kind == kind.kind && group(k) == group(&kind);
                if !found.iter().any(same) {
                    found.push(kind);
                }
            }
        }
        Ok(found)
    }

    /// The objects that the words of a command line mean: kinds and names, or `kind/name` each. No name means all.
    pub(crate) async fn meant(
        &self,
        words: &[String],
    ) -> anyhow::Result<Vec<(ResourceKind, Option<String>)>> {
        let mut meant = Vec::new();
        for (kind, name) in split(words)? {
            for row in self.kinds(&kind).await? {
                meant.push((row, name.clone()));
            }
        }
        Ok(meant)
    }

    /// Exactly one object; a bare name is one of `default`.
    pub(crate) async fn one(
        &self,
        words: &[String],
        default: &str,
    ) -> anyhow::Result<(ResourceKind, String)> {
        if let ([word], false) = (words, default.is_empty())
            && !word.contains('/')
        {
            return Ok((self.named(default).await?, word.clone()));
        }
        match self.meant(words).await?.as_slice() {
            [(row, Some(name))] => Ok((row.clone(), name.clone())),
            [(_, None)] => bail!("resource name may not be empty"),
            _ => bail!("expected exactly one object, as kind/name"),
        }
    }

    /// Where objects of a kind are looked for.
    pub(crate) fn scope(&self, row: &ResourceKind, all: bool) -> Scope {
        let namespace = if all || !row.namespaced { String::new() } else { self.namespace.clone() };
        Scope { namespace, ..Scope::default() }
    }

    /// Reads one object.
    pub(crate) async fn get(&self, row: &ResourceKind, name: &str) -> anyhow::Result<Value> {
        let namespace = self.scope(row, false).namespace;
        parse(&self.client.get_raw(&kind_of(row), &namespace, name).await?)
    }

    /// Lists objects of the kind called `word`.
    pub(crate) async fn list(&self, word: &str, scope: &Scope) -> anyhow::Result<Vec<Value>> {
        let row = self.named(word).await?;
        let (objects, _) = self.client.list_raw(&kind_of(&row), scope).await?;
        objects.iter().map(parse).collect()
    }

    /// The pod that a command is about: one itself, or the first that belongs to a workload or Service.
    pub(crate) async fn pod(&self, words: &[String]) -> anyhow::Result<Value> {
        let (row, name) = self.one(words, "pods").await?;
        let object = self.get(&row, &name).await?;
        if row.kind == "Pod" {
            return Ok(object);
        }
        let labels = selector(&object).with_context(|| {
            format!("cannot get the pods of {}/{name}: it selects none", singular(&row))
        })?;
        let scope = Scope { labels, ..self.scope(&row, false) };
        let mut pods = self.list("pods", &scope).await?;
        // The one most likely to have something to say: running before waiting, older before younger.
        pods.sort_by_key(|pod| {
            let running = pod.str_at(&["status", "phase"]) == Some("Running");
            let made = api::meta::creation_timestamp(pod).unwrap_or_default().to_owned();
            (api::meta::deletion_timestamp(pod).is_some(), !running, made)
        });
        let Some(first) = pods.into_iter().next() else {
            bail!("timed out waiting for the condition: {}/{name} has no pods", singular(&row));
        };
        Ok(first)
    }
}

fn group(row: &ResourceKind) -> &str {
    row.resource.as_ref().map_or("", |r| r.group.as_str())
}

/// Whether a word such as `pods`, `Pod`, `po`, `deployments.apps` or `deployments.v1.apps` names a kind.
fn names(row: &ResourceKind, word: &str) -> bool {
    let word = word.to_lowercase();
    let resource = row.resource.clone().unwrap_or_default();
    let (name, rest) = word.split_once('.').unwrap_or((&word, ""));
    let versioned = format!("{}.{}", resource.version, resource.group);
    let fits = rest.is_empty() || rest == resource.group || rest == versioned.trim_end_matches('.');
    let plain = resource.resource == name
        || row.singular == name
        || row.kind.to_lowercase() == name
        || row.short_names.iter().any(|s| s == name);
    fits && plain
}

/// The words of a command line as kinds (still comma-separated) and names.
fn split(words: &[String]) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let slashed = words.iter().filter(|w| w.contains('/')).count();
    if slashed == 0 {
        let Some((kinds, names)) = words.split_first() else {
            bail!("You must specify the type of resource: ironclad get pods");
        };
        if names.is_empty() {
            return Ok(vec![(kinds.clone(), None)]);
        }
        return Ok(names.iter().map(|name| (kinds.clone(), Some(name.clone()))).collect());
    }
    let pair = |word: &String| match word.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((kind.to_owned(), Some(name.to_owned())))
        }
        Some(_) => bail!("arguments in resource/name form must have a single resource and name"),
        None => bail!(
            "there is no need to specify a resource type as a separate argument when passing \
             arguments in resource/name form"
        ),
    };
    words.iter().map(pair).collect()
}

/// The label selector by which an object finds its pods, in its text form.
pub(crate) fn selector(object: &Value) -> Option<String> {
    let selector = object.at(&["spec", "selector"])?;
    if !selector.has("matchLabels") && !selector.has("matchExpressions") {
        // A Service and a ReplicationController have the labels themselves.
        let labels: Vec<String> =
            selector.members().map(|(k, v)| format!("{k}={}", v.text())).collect();
        return (!labels.is_empty()).then(|| labels.join(","));
    }
    let parsed = api::selector::LabelSelector::from_object(selector).ok()?;
    Some(parsed.to_string()).filter(|s| !s.is_empty())
}

/// The container that a command is about where none was named; told on standard error where there was a choice.
pub(crate) fn default_container(pod: &Value, named: Option<&str>) -> String {
    if let Some(name) = named {
        return name.to_owned();
    }
    let names: Vec<&str> =
        items(pod, &["spec", "containers"]).iter().filter_map(|c| c.str_at(&["name"])).collect();
    let annotated = api::meta::annotation(pod, "kubectl.kubernetes.io/default-container");
    let chosen = annotated.filter(|name| names.contains(name)).or(names.first().copied());
    let chosen = chosen.unwrap_or_default();
    if names.len() > 1 && annotated.is_none() {
        eprintln!("Defaulted container {chosen:?} out of: {}", names.join(", "));
    }
    chosen.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        match split(&words) {
            Ok(pairs) => pairs
                .iter()
                .map(|(kind, name)| format!("{kind}/{}", name.as_deref().unwrap_or("*")))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string().chars().take(20).collect(),
        }
    }

    #[test]
    fn words_mean_kinds_and_names() {
        for (text, want) in [
            ("pods", "pods/*"),
            ("pods,svc", "pods,svc/*"),
            ("pods a b", "pods/a pods/b"),
            ("pod/a svc/b", "pod/a svc/b"),
            ("pod/a b", "there is no need to "),
            ("pod/", "arguments in resourc"),
        ] {
            assert_eq!(words(text), want, "{text}");
        }
    }

    #[test]
    fn kinds_have_several_names() {
        let resource = wire::apiserver::Resource {
            group: "apps".into(),
            version: "v1".into(),
            resource: "deployments".into(),
        };
        let row = ResourceKind {
            resource: Some(resource),
            kind: "Deployment".into(),
            singular: "deployment".into(),
            short_names: vec!["deploy".into()],
            ..ResourceKind::default()
        };
        for word in ["deploy", "Deployment", "deployments.apps", "deployment.v1.apps"] {
            assert!(names(&row, word), "{word}");
        }
        for word in ["deployments.batch", "deployments.v2.apps", "pods"] {
            assert!(!names(&row, word), "{word}");
        }
    }

    #[test]
    fn selectors_of_workloads_and_services() {
        let read = |text: &str| selector(&api::codec::json::parse(text.as_bytes()).unwrap());
        assert_eq!(read(r#"{"spec":{"selector":{"a":"b"}}}"#).as_deref(), Some("a=b"));
        let labels = r#"{"spec":{"selector":{"matchLabels":{"a":"b"}}}}"#;
        assert_eq!(read(labels).as_deref(), Some("a=b"));
        assert_eq!(read(r#"{"spec":{"selector":{}}}"#), None);
        assert_eq!(read(r#"{"spec":{}}"#), None);
    }
}
