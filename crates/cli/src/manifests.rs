//! `ironclad apply` and `delete`: the objects of files, and objects by name.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::object::Value;
use client::transport::Delete as How;
use client::{Key, Kind, Patch};
use wire::apiserver::ResourceKind;

use crate::target::{Session, Target, block, items, kind_of, singular};

/// How often it is seen to whether something is gone.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Files of objects.
#[derive(Debug, clap::Args)]
struct Files {
    /// A YAML or JSON file, or a directory of them; - reads standard input
    #[arg(long, short, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Directories within directories as well
    #[arg(long, short = 'R')]
    recursive: bool,
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Objects are applied on the server (as `kubectl apply --server-side`), as the \
manager `ironclad`; fields that
others own are taken from them. What a later file no longer has is removed from the object.

Examples:
  ironclad apply -f web.yaml
  ironclad apply -R -f manifests/
  render | ironclad apply -f -"
)]
pub(crate) struct Apply {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    files: Files,
    /// Fail where another manager owns a field, instead of taking it
    #[arg(long)]
    no_force: bool,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // a command line
#[command(after_help = "Examples:
  ironclad delete -f web.yaml
  ironclad delete pod web-0 web-1
  ironclad delete deploy/web svc/web --wait=false
  ironclad delete pods -l app=web --now")]
pub(crate) struct Delete {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    files: Files,
    /// A kind and names, or kind/name each
    #[arg(value_name = "KIND NAME… | KIND/NAME…")]
    objects: Vec<String>,
    /// All with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// All of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Return only once they are gone
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait for each
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    timeout: Option<Duration>,
    /// Seconds a pod may take to end [default: its own]
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
    /// End pods at once, as --grace-period=1
    #[arg(long)]
    now: bool,
    /// Remove the object without waiting for the node to confirm
    #[arg(long)]
    force: bool,
    /// What happens to what it owns
    #[arg(long, default_value = "background", value_name = "MODE")]
    #[arg(value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Say nothing of what is not there
    #[arg(long)]
    ignore_not_found: bool,
}

impl Files {
    /// The objects of all files, with the file each came from.
    fn objects(&self) -> anyhow::Result<Vec<(String, Value)>> {
        let mut found = Vec::new();
        for path in &self.filename {
            for file in self.expand(path)? {
                let text = read(&file)?;
                let shown = file.display().to_string();
                let objects = documents(&text).with_context(|| format!("error parsing {shown}"))?;
                found.extend(objects.into_iter().map(|object| (shown.clone(), object)));
            }
        }
        Ok(found)
    }

    fn expand(&self, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
        if !path.is_dir() {
            return Ok(vec![path.to_owned()]);
        }
        let entries =
            std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
        let mut entries = entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("read {}", path.display()))?;
        entries.sort();
        let mut files = Vec::new();
        for entry in entries {
            if entry.is_dir() {
                if self.recursive {
                    files.extend(self.expand(&entry)?);
                }
            } else if entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
                files.push(entry);
            }
        }
        Ok(files)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() != "-" {
        return std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("read standard input")?;
    Ok(text)
}

/// The objects of YAML documents; those of a list one by one.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for document in format!("\n{text}").split("\n---") {
        let lines = document.lines().map(str::trim);
        if lines.clone().all(|l| l.is_empty() || l.starts_with('#')) {
            continue;
        }
        let decoded = api::codec::yaml::parse(document.as_bytes())
            .map_err(|error| anyhow::anyhow!("{}", error.message()))?;
        let kind = api::meta::type_meta(&decoded.value).1;
        if kind.ends_with("List") && decoded.value.has("items") {
            found.extend(items(&decoded.value, &["items"]).iter().cloned());
        } else {
            found.push(decoded.value);
        }
    }
    Ok(found)
}

/// Where an object of a file belongs.
fn place(session: &Session, row: &ResourceKind, object: &Value) -> Key {
    let own = api::meta::namespace(object);
    let namespace = match (row.namespaced, own) {
        (false, _) => "",
        (true, "") => session.namespace.as_str(),
        (true, own) => own,
    };
    Key::new(namespace, api::meta::name(object))
}

/// Runs `apply`.
pub(crate) fn apply(args: &Apply) -> anyhow::Result<()> {
    if args.files.filename.is_empty() {
        bail!("must specify one of -f and its files");
    }
    block(async {
        let session = Session::open(&args.target)?;
        let mut failed = None;
        for (file, object) in args.files.objects()? {
            // The others are applied all the same; the last failure is the command's.
            if let Err(error) = apply_one(&session, &object, !args.no_force).await {
                let error = error.context(format!("error when applying {file:?}"));
                failed.replace(error).iter().for_each(crate::complain);
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

async fn apply_one(session: &Session, object: &Value, force: bool) -> anyhow::Result<()> {
    let row = session.row_of(object).await?;
    let (kind, key) = (kind_of(&row), place(session, &row, object));
    let before = match session.client.get_raw(&kind, &key.namespace, &key.name).await {
        Ok(before) => Some(before.revision),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    let body = serde_json::Value::from(object);
    let after = session.client.patch_raw(&kind, &key, "", Patch::Apply { body, force }).await?;
    for warning in &after.warnings {
        eprintln!("Warning: {warning}");
    }
    let what = match before {
        None => "created",
        Some(revision) if revision == after.revision => "unchanged",
        Some(_) => "configured",
    };
    crate::say!("{}/{} {what}", singular(&row), key.name);
    Ok(())
}

/// Runs `delete`.
pub(crate) fn delete(args: &Delete) -> anyhow::Result<()> {
    block(async {
        let session = Session::open(&args.target)?;
        let meant = doomed(args, &session).await?;
        let (mut failed, mut waiting) = (None, Vec::new());
        for (row, key) in meant {
            match session.client.delete_raw(&kind_of(&row), &key, how(args)).await {
                Ok(last) => {
                    let manner = if args.force { " force deleted" } else { " deleted" };
                    crate::say!("{} {:?}{manner}", singular(&row), key.name);
                    waiting.push((kind_of(&row), key, last.uid));
                }
                Err(error) if error.is_not_found() && args.ignore_not_found => {}
                Err(error) => failed.replace(error.into()).iter().for_each(crate::complain),
            }
        }
        if args.wait {
            for (kind, key, uid) in waiting {
                gone(&session, &kind, &key, &uid, args.timeout).await?;
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

fn how(args: &Delete) -> How {
    let seconds = match (args.force, args.now) {
        (true, _) => Some(0),
        (false, true) => Some(1),
        (false, false) => args.grace_period,
    };
    let propagation = match args.cascade.as_str() {
        "orphan" => "Orphan",
        "foreground" => "Foreground",
        _ => "Background",
    };
    How { grace_period_s: seconds, propagation, ..How::default() }
}

/// What is to be deleted, last things of a file first.
async fn doomed(args: &Delete, session: &Session) -> anyhow::Result<Vec<(ResourceKind, Key)>> {
    let mut found = Vec::new();
    for (_, object) in args.files.objects()?.into_iter().rev() {
        let row = session.row_of(&object).await?;
        let key = place(session, &row, &object);
        found.push((row, key));
    }
    if args.objects.is_empty() {
        if args.files.filename.is_empty() {
            bail!("You must provide one or more resources by argument or filename.");
        }
        return Ok(found);
    }
    for (row, name) in session.meant(&args.objects).await? {
        let mut scope = session.scope(&row, false);
        if let Some(name) = name {
            found.push((row, Key::new(scope.namespace, name)));
            continue;
        }
        if args.selector.is_none() && !args.all {
            bail!("resource(s) were provided, but no name was specified");
        }
        scope.labels = args.selector.clone().unwrap_or_default();
        let (objects, _) = session.client.list_raw(&kind_of(&row), &scope).await?;
        if objects.is_empty() {
            crate::say!("No resources found");
        }
        for object in objects {
            found.push((row.clone(), Key::new(object.namespace, object.name)));
        }
    }
    Ok(found)
}

/// Returns once the object, and not another of its name, is gone.
pub(crate) async fn gone(
    session: &Session,
    kind: &Kind,
    key: &Key,
    uid: &str,
    timeout: Option<Duration>,
) -> anyhow::Result<()> {
    let wait = async {
        loop {
            match session.client.get_raw(kind, &key.namespace, &key.name).await {
                Ok(object) if object.uid == uid || uid.is_empty() => {}
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(anyhow::Error::from(error)),
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    };
    match timeout {
        None => wait.await,
        Some(timeout) => tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| {
            bail!("timed out waiting for the condition on {}/{}", kind.resource, key.name)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_taken_apart() {
        let text =
            "# c\n---\nkind: A\n---\n\n# nothing\n---\nkind: BList\nitems:\n- kind: B\n- kind: B\n";
        let kinds: Vec<String> = documents(text)
            .unwrap()
            .iter()
            .map(|object| api::meta::type_meta(object).1.to_owned())
            .collect();
        assert_eq!(kinds, ["A", "B", "B"]);
        assert!(documents("a: [").is_err());
    }
}
