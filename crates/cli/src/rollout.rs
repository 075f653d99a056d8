//! `ironclad scale`, `rollout` and `wait`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use api::object::Value;
use client::transport::Scope;
use client::{Key, Patch};
use serde_json::json;
use wire::apiserver::ResourceKind;

use crate::manifests::gone;
use crate::table::{Table, template};
use crate::target::{Session, Target, block, items, kind_of, parse, selector, singular};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CAUSE: &str = "kubernetes.io/change-cause";
const HASH: &str = "pod-template-hash";

/// Arguments of `scale`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ironclad scale deploy/web --replicas=5")]
pub(crate) struct Scale {
    #[command(flatten)]
    target: Target,
    /// A kind and name, or kind/name each
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME…")]
    objects: Vec<String>,
    /// How many there shall be
    #[arg(long)]
    replicas: u32,
}

/// Arguments of the `rollout` commands.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    #[command(flatten)]
    target: Target,
    /// A Deployment, DaemonSet or StatefulSet
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    object: Vec<String>,
}

/// The `rollout` commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Rollout {
    /// Wait until the newest template runs everywhere
    Status {
        #[command(flatten)]
        named: Named,
        /// How long to wait [default: as long as it takes]
        #[arg(long, value_name = "DURATION", value_parser = super::duration)]
        timeout: Option<Duration>,
        /// Say how it is now, and do not wait
        #[arg(long)]
        no_watch: bool,
    },
    /// Start every pod again, a few at a time
    Restart(Named),
    /// Go back to an earlier template
    Undo {
        #[command(flatten)]
        named: Named,
        /// The revision to go back to [default: the one before]
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
    },
    /// List the templates there have been
    History(Named),
}

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ironclad wait --for=condition=Ready pod/web-0
  ironclad wait --for=condition=Available=true deploy/web --timeout 60s
  ironclad wait --for=jsonpath='{.status.phase}'=Running pod/web-0
  ironclad wait --for=delete pod/web-0")]
pub(crate) struct Wait {
    #[command(flatten)]
    target: Target,
    /// A kind and names, or kind/name each
    #[arg(required = true, value_name = "KIND NAME… | KIND/NAME…")]
    objects: Vec<String>,
    /// create, delete, condition=NAME[=VALUE] or jsonpath='{PATH}'[=VALUE]
    #[arg(long = "for", value_name = "WHAT")]
    until: String,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = super::duration)]
    timeout: Duration,
}

/// Runs `scale`.
pub(crate) fn scale(args: &Scale) -> anyhow::Result<()> {
    block(async {
        let session = Session::open(&args.target)?;
        for (row, name) in session.meant(&args.objects).await? {
            let name = name.context("resource(s) were provided, but no name was specified")?;
            let patch = Patch::Merge(json!({"spec": {"replicas": args.replicas}}));
            let key = Key::new(session.scope(&row, false).namespace, name);
            session.client.patch_raw(&kind_of(&row), &key, "scale", patch).await?;
            crate::say!("{}/{} scaled", singular(&row), key.name);
        }
        Ok(())
    })
}

/// Runs `rollout`.
pub(crate) fn rollout(command: &Rollout) -> anyhow::Result<()> {
    let (Rollout::Status { named, .. }
    | Rollout::Restart(named)
    | Rollout::Undo { named, .. }
    | Rollout::History(named)) = command;
    block(async {
        let session = Session::open(&named.target)?;
        let (row, name) = session.one(&named.object, "").await?;
        if !matches!(row.kind.as_str(), "Deployment" | "DaemonSet" | "StatefulSet") {
            bail!("no rollout of {}: only deployments, daemonsets and statefulsets", row.singular);
        }
        match command {
            Rollout::Status { timeout, no_watch, .. } => {
                let wait = status(&session, &row, &name, *no_watch);
                match timeout {
                    None => wait.await,
                    Some(timeout) => tokio::time::timeout(*timeout, wait)
                        .await
                        .unwrap_or_else(|_| bail!("timed out waiting for the condition")),
                }
            }
            Rollout::Restart(_) => {
                let now = api::time::format(daemon::Clock::system().now());
                let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
                let template = json!({"metadata": {"annotations": annotations}});
                change(&session, &row, &name, json!({"spec": {"template": template}})).await?;
                crate::say!("{}/{name} restarted", singular(&row));
                Ok(())
            }
            Rollout::Undo { to_revision, .. } => undo(&session, &row, &name, *to_revision).await,
            Rollout::History(_) => {
                let object = session.get(&row, &name).await?;
                let mut lines = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
                for past in history(&session, &row, &object).await? {
                    let cause = past.cause.unwrap_or_else(|| "<none>".to_owned());
                    lines.push(vec![past.revision.to_string(), cause]);
                }
                print!("{}/{name}\n{}", singular(&row), Table::default().lines(&lines));
                Ok(())
            }
        }
    })
}

async fn change(
    session: &Session,
    row: &ResourceKind,
    name: &str,
    patch: serde_json::Value,
) -> anyhow::Result<()> {
    let key = Key::new(session.scope(row, false).namespace, name);
    session.client.patch_raw(&kind_of(row), &key, "", Patch::Strategic(patch)).await?;
    Ok(())
}

/// Calls `look` with the object as it is and after every change, until it has an answer.
async fn follow<T>(
    session: &Session,
    row: &ResourceKind,
    name: &str,
    mut look: impl FnMut(Option<&Value>) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let fields = format!("metadata.name={name}");
    let scope = Scope { fields, ..session.scope(row, false) };
    let (mut revision, mut seen) = (0, false);
    loop {
        let mut events = session.client.watch_raw(&kind_of(row), &scope, revision).await?;
        while let Some(event) = events.message().await.map_err(client::Error::from)? {
            use wire::apiserver::watch_event::Type;
            let (kind, done) = (event.r#type(), event.initial_done);
            let object = event.object.unwrap_or_default();
            revision = revision.max(object.revision);
            let answer = match kind {
                Type::Added | Type::Modified => {
                    seen = true;
                    look(Some(&parse(&object)?))?
                }
                Type::Deleted => look(None)?,
                Type::Bookmark if done && !seen => look(None)?,
                Type::Bookmark => None,
            };
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }
}

async fn status(
    session: &Session,
    row: &ResourceKind,
    name: &str,
    once: bool,
) -> anyhow::Result<()> {
    let mut told = String::new();
    follow(session, row, name, |object| {
        let Some(object) = object else {
            bail!("object has been deleted");
        };
        let (line, done) = progress(object)?;
        if line != told {
            crate::say!("{line}");
            told = line;
        }
        Ok((done || once).then_some(()))
    })
    .await
    .or_else(|error| {
        // What a watch cannot see, a read can say in the server's words.
        if told.is_empty() && error.to_string() == "object has been deleted" {
            bail!(client::Error::Api {
                code: 404,
                reason: "NotFound".to_owned(),
                message: format!("{} {name:?} not found", kind_of(row)),
                retry_after: None,
            });
        }
        Err(error)
    })
}

/// How far the rollout of a workload is, in kubectl's words, and whether it is over.
fn progress(object: &Value) -> anyhow::Result<(String, bool)> {
    let seen = status_count(object, "observedGeneration") >= api::meta::generation(object);
    let waiting = |what: &str| Ok((format!("Waiting for {what}"), false));
    match (api::meta::type_meta(object).1, seen) {
        ("DaemonSet", false) => waiting("daemon set spec update to be observed..."),
        ("DaemonSet", true) => Ok(daemon_set(object)),
        ("StatefulSet", false) => waiting("statefulset spec update to be observed..."),
        ("StatefulSet", true) => stateful_set(object),
        (_, false) => waiting("deployment spec update to be observed..."),
        (_, true) => deployment(object),
    }
}

fn status_count(object: &Value, field: &str) -> i64 {
    object.int_at(&["status", field]).unwrap_or(0)
}

fn daemon_set(object: &Value) -> (String, bool) {
    let (name, count) = (api::meta::name(object), |field| status_count(object, field));
    let (wanted, updated) = (count("desiredNumberScheduled"), count("updatedNumberScheduled"));
    let available = count("numberAvailable");
    let what = if updated < wanted {
        format!("{updated} out of {wanted} new pods have been updated...")
    } else if available < wanted {
        format!("{available} of {wanted} updated pods are available...")
    } else {
        return (format!("daemon set {name:?} successfully rolled out"), true);
    };
    (format!("Waiting for daemon set {name:?} rollout to finish: {what}"), false)
}

fn stateful_set(object: &Value) -> anyhow::Result<(String, bool)> {
    let strategy = |path: &[&str]| object.at(&["spec", "updateStrategy"]).and_then(|s| s.at(path));
    if strategy(&["type"]).and_then(Value::as_str) == Some("OnDelete") {
        bail!("rollout status is only available for RollingUpdate strategy type");
    }
    let wanted = object.int_at(&["spec", "replicas"]).unwrap_or(1);
    let partition = strategy(&["rollingUpdate", "partition"]).and_then(Value::as_int).unwrap_or(0);
    let ready = status_count(object, "readyReplicas");
    let updated = status_count(object, "updatedReplicas");
    let revision = object.str_at(&["status", "updateRevision"]).unwrap_or_default();
    let what = format!("{updated} pods at revision {revision}...");
    Ok(if ready < wanted {
        (format!("Waiting for {} pods to be ready...", wanted - ready), false)
    } else if updated < wanted - partition {
        (format!("waiting for statefulset rolling update to complete {what}"), false)
    } else if partition > 0 {
        let line = "new pods have been updated...";
        (format!("partitioned roll out complete: {updated} {line}"), true)
    } else {
        (format!("statefulset rolling update complete {what}"), true)
    })
}

fn deployment(object: &Value) -> anyhow::Result<(String, bool)> {
    let (name, count) = (api::meta::name(object), |field| status_count(object, field));
    let wanted = object.int_at(&["spec", "replicas"]).unwrap_or(1);
    let (updated, all, available) =
        (count("updatedReplicas"), count("replicas"), count("availableReplicas"));
    let failed = api::meta::condition(object, "Progressing")
        .is_some_and(|c| c.str_at(&["reason"]) == Some("ProgressDeadlineExceeded"));
    let what = if failed {
        bail!("deployment {name:?} exceeded its progress deadline")
    } else if updated < wanted {
        format!("{updated} out of {wanted} new replicas have been updated...")
    } else if all > updated {
        format!("{} old replicas are pending termination...", all - updated)
    } else if available < updated {
        format!("{available} of {updated} updated replicas are available...")
    } else {
        return Ok((format!("deployment {name:?} successfully rolled out"), true));
    };
    Ok((format!("Waiting for deployment {name:?} rollout to finish: {what}"), false))
}

/// A template there has been.
struct Past {
    revision: i64,
    cause: Option<String>,
    /// The strategic patch that brings it back.
    patch: serde_json::Value,
}

/// The templates of a workload, oldest first.
async fn history(
    session: &Session,
    row: &ResourceKind,
    object: &Value,
) -> anyhow::Result<Vec<Past>> {
    let labels = selector(object).unwrap_or_default();
    let scope = Scope { labels, ..session.scope(row, false) };
    let deployment = row.kind == "Deployment";
    let word = if deployment { "replicasets" } else { "controllerrevisions" };
    let owned = session.list(word, &scope).await?.into_iter().filter(|past| {
        api::meta::controller(past).and_then(|c| c.str_at(&["uid"])) == Some(api::meta::uid(object))
    });
    let mut found: Vec<Past> = owned
        .filter_map(|past| {
            let cause = api::meta::annotation(&past, CAUSE).map(str::to_owned);
            if !deployment {
                let patch = serde_json::Value::from(past.get("data")?);
                return Some(Past { revision: past.int_at(&["revision"])?, cause, patch });
            }
            let revision = api::meta::annotation(&past, REVISION)?.parse().ok()?;
            let mut template = serde_json::Value::from(past.at(&["spec", "template"])?);
            template["metadata"]["labels"].as_object_mut()?.remove(HASH);
            template["$patch"] = "replace".into();
            Some(Past { revision, cause, patch: json!({"spec": {"template": template}}) })
        })
        .collect();
    found.sort_by_key(|past| past.revision);
    Ok(found)
}

async fn undo(session: &Session, row: &ResourceKind, name: &str, to: i64) -> anyhow::Result<()> {
    let object = session.get(row, name).await?;
    let past = history(session, row, &object).await?;
    let newest = past.last().map_or(0, |p| p.revision);
    let target =
        match to {
            0 => past.iter().rev().nth(1).with_context(|| {
                format!("no rollout history found for {} {name:?}", row.singular)
            })?,
            to => past
                .iter()
                .find(|p| p.revision == to)
                .with_context(|| format!("unable to find specified revision {to} in history"))?,
        };
    if target.revision == newest {
        crate::say!(
            "{}/{name} skipped rollback (current template already matches revision {newest})",
            singular(row)
        );
        return Ok(());
    }
    change(session, row, name, target.patch.clone()).await?;
    crate::say!("{}/{name} rolled back", singular(row));
    Ok(())
}

/// What `wait` waits for.
#[derive(Debug, PartialEq)]
enum Until {
    Created,
    Deleted,
    Condition(String, String),
    Path(String, Option<String>),
}

fn until(text: &str) -> anyhow::Result<Until> {
    if let Some(condition) = text.strip_prefix("condition=") {
        let (name, value) = condition.split_once('=').unwrap_or((condition, "True"));
        return Ok(Until::Condition(name.to_owned(), value.to_owned()));
    }
    if let Some(path) = text.strip_prefix("jsonpath=") {
        let (path, value) = match path.rfind("}=") {
            Some(at) => (&path[..=at], Some(path[at + 2..].to_owned())),
            None => (path, None),
        };
        return Ok(Until::Path(path.to_owned(), value));
    }
    match text {
        "create" => Ok(Until::Created),
        "delete" => Ok(Until::Deleted),
        _ => bail!("unrecognized condition: {text:?}"),
    }
}

impl Until {
    fn met(&self, object: &Value) -> anyhow::Result<bool> {
        Ok(match self {
            Self::Created => true,
            Self::Deleted => false,
            Self::Condition(name, wanted) => {
                let found = items(object, &["status", "conditions"])
                    .iter()
                    .find(|c| c.str_at(&["type"]).is_some_and(|t| t.eq_ignore_ascii_case(name)));
                found
                    .and_then(|c| c.str_at(&["status"]))
                    .is_some_and(|status| status.eq_ignore_ascii_case(wanted))
            }
            Self::Path(path, wanted) => {
                let found = template(path, object)?;
                wanted.as_ref().map_or(!found.is_empty(), |wanted| found == *wanted)
            }
        })
    }
}

/// Runs `wait`.
pub(crate) fn wait(args: &Wait) -> anyhow::Result<()> {
    let until = until(&args.until)?;
    block(async {
        let session = Session::open(&args.target)?;
        for (row, name) in session.meant(&args.objects).await? {
            let name = name.context("resource(s) were provided, but no name was specified")?;
            let late = || {
                anyhow::anyhow!(
                    "timed out waiting for the condition on {}/{name}",
                    kind_of(&row).resource
                )
            };
            if until == Until::Deleted {
                let key = Key::new(session.scope(&row, false).namespace, name.clone());
                gone(&session, &kind_of(&row), &key, "", Some(args.timeout)).await?;
            } else {
                if until != Until::Created {
                    session.get(&row, &name).await?;
                }
                let waiting = follow(&session, &row, &name, |object| {
                    object.map_or(Ok(None), |o| Ok(until.met(o)?.then_some(())))
                });
                tokio::time::timeout(args.timeout, waiting).await.map_err(|_| late())??;
            }
            crate::say!("{}/{name} condition met", singular(&row));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let object = api::codec::json::parse(text.as_bytes()).unwrap();
        match progress(&object) {
            Ok((line, done)) => format!("{line} {done}"),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn a_rollout_is_told_in_steps() {
        let with = |status: &str| {
            format!(
                r#"{{"kind":"Deployment","metadata":{{"name":"w","generation":2}},
                "spec":{{"replicas":3}},"status":{status}}}"#
            )
        };
        for (status, want) in [
            (
                r#"{"observedGeneration":1}"#,
                "Waiting for deployment spec update to be observed... false",
            ),
            (
                r#"{"observedGeneration":2,"updatedReplicas":1,"replicas":3}"#,
                "Waiting for deployment \"w\" rollout to finish: 1 out of 3 new replicas have been updated... false",
            ),
            (
                r#"{"observedGeneration":2,"updatedReplicas":3,"replicas":4}"#,
                "Waiting for deployment \"w\" rollout to finish: 1 old replicas are pending termination... false",
            ),
            (
                r#"{"observedGeneration":2,"updatedReplicas":3,"replicas":3,"availableReplicas":3}"#,
                "deployment \"w\" successfully rolled out true",
            ),
            (
                r#"{"observedGeneration":2,"conditions":[{"type":"Progressing","reason":"ProgressDeadlineExceeded"}]}"#,
                "error: deployment \"w\" exceeded its progress deadline",
            ),
        ] {
            assert_eq!(line(&with(status)), want);
        }
    }

    #[test]
    fn conditions_are_read_and_met() {
        assert_eq!(
            until("condition=Ready").unwrap(),
            Until::Condition("Ready".into(), "True".into())
        );
        assert_eq!(until("jsonpath={.a}=b").unwrap(), Until::Path("{.a}".into(), Some("b".into())));
        assert!(until("ready").is_err());
        let object = api::codec::json::parse(
            br#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#,
        )
        .unwrap();
        for (text, want) in [
            ("condition=ready", true),
            ("condition=Ready=false", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.none}", false),
            ("create", true),
        ] {
            assert_eq!(until(text).unwrap().met(&object).unwrap(), want, "{text}");
        }
    }
}
