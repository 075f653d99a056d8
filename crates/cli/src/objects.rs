//! `ironclad apply`, `get`, `delete` and `wait`: the common cases, for a machine without kubectl.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::object::Value;
use api::{Catalog, columns};
use client::transport::{Delete, Scope};
use client::{Client, Key, Kind, Patch};
use wire::apiserver::ResourceKind;

use crate::layout::Layout;
use crate::status::connect;

const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Which cluster and namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Where the cluster keeps everything [default: /var/lib/ironclad for root]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The namespace
    #[arg(long, short, default_value = "default")]
    namespace: String,
}

/// Arguments of `apply`, and of `delete` with files.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    target: Target,
    /// A YAML or JSON file; - reads standard input
    #[arg(long, short, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
}

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    target: Target,
    /// The kind, as `pods`, `po` or `deployment`; or kind/name
    kind: String,
    /// One object's name; all of them without
    name: Option<String>,
    /// In every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// json, yaml, name, cluster-ip or node-ip
    #[arg(long, short)]
    output: Option<String>,
}

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    target: Target,
    /// The Deployment, as deployment/NAME
    object: String,
}

fn block<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn client(target: &Target) -> anyhow::Result<Client> {
    connect(&Layout::new(target.data_dir.as_deref()))
}

/// The kind that a person means: by plural, singular, short name or kind, of the core group first.
async fn find(client: &Client, word: &str) -> anyhow::Result<ResourceKind> {
    let lower = word.to_lowercase();
    let kinds = client.resources().await?;
    let named = |k: &ResourceKind| {
        let plural = k.resource.as_ref().map_or("", |r| r.resource.as_str());
        plural == lower
            || k.singular == lower
            || k.kind.to_lowercase() == lower
            || k.short_names.contains(&lower)
    };
    kinds.into_iter().find(named).with_context(|| {
        format!("the server has no resource type {word:?}; `kubectl api-resources` lists them")
    })
}

fn kind_of(row: &ResourceKind) -> Kind {
    let resource = row.resource.clone().unwrap_or_default();
    Kind { group: resource.group, version: resource.version, resource: resource.resource }
}

/// The objects of YAML documents.
fn documents(path: &PathBuf) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    }
    let mut found = Vec::new();
    for document in format!("\n{text}").split("\n---") {
        let meaningful = document.lines().any(|l| !l.trim().is_empty() && !l.starts_with('#'));
        if !meaningful {
            continue;
        }
        let decoded = api::codec::yaml::parse(document.as_bytes())
            .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), error.message()))?;
        found.push(decoded.value);
    }
    Ok(found)
}

/// Where an object of a file belongs.
fn place(row: &ResourceKind, object: &Value, target: &Target) -> Key {
    let own = api::meta::namespace(object);
    let namespace = match (row.namespaced, own) {
        (false, _) => "",
        (true, "") => target.namespace.as_str(),
        (true, own) => own,
    };
    Key::new(namespace, api::meta::name(object))
}

async fn row_of(client: &Client, object: &Value) -> anyhow::Result<ResourceKind> {
    let (version, kind) = api::meta::type_meta(object);
    let (group, version) = api::catalog::split_api_version(version);
    let same = |k: &ResourceKind| {
        k.kind == kind
            && k.resource.as_ref().is_some_and(|r| r.group == group && r.version == version)
    };
    let kinds = client.resources().await?;
    kinds.into_iter().find(same).with_context(|| {
        format!("no matches for kind {kind:?} in version {:?}", api::meta::type_meta(object).0)
    })
}

/// Runs `apply`: server-side, as the manager `ironclad`.
pub(crate) fn apply(args: &Apply) -> anyhow::Result<()> {
    block(async {
        let client = client(&args.target)?;
        for path in &args.filename {
            for object in documents(path)? {
                let row = row_of(&client, &object).await?;
                let key = place(&row, &object, &args.target);
                let body = serde_json::Value::from(&object);
                let patch = Patch::Apply { body, force: true };
                client.patch_raw(&kind_of(&row), &key, "", patch).await?;
                println!("{}/{} applied", row.singular, key.name);
            }
        }
        Ok(())
    })
}

/// Runs `delete`.
pub(crate) fn delete(args: &Apply) -> anyhow::Result<()> {
    block(async {
        let client = client(&args.target)?;
        for path in &args.filename {
            for object in documents(path)?.into_iter().rev() {
                let row = row_of(&client, &object).await?;
                let key = place(&row, &object, &args.target);
                match client.delete_raw(&kind_of(&row), &key, Delete::default()).await {
                    Ok(_) => println!("{}/{} deleted", row.singular, key.name),
                    Err(error) if error.is_not_found() => {
                        println!("{}/{} was not there", row.singular, key.name);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    })
}

/// Runs `get`.
pub(crate) fn get(args: &Get) -> anyhow::Result<()> {
    block(async {
        let client = client(&args.target)?;
        let (word, name) = match (args.kind.split_once('/'), &args.name) {
            (Some((kind, name)), None) => (kind, Some(name.to_owned())),
            _ => (args.kind.as_str(), args.name.clone()),
        };
        let row = find(&client, word).await?;
        let kind = kind_of(&row);
        let scope = Scope {
            namespace: if args.all_namespaces || !row.namespaced {
                String::new()
            } else {
                args.target.namespace.clone()
            },
            ..Scope::default()
        };
        let found = match &name {
            Some(name) => vec![client.get_raw(&kind, &scope.namespace, name).await?],
            None => client.list_raw(&kind, &scope).await?.0,
        };
        let mut objects = Vec::with_capacity(found.len());
        for object in found {
            objects
                .push(api::codec::json::parse(&object.json).map_err(|e| anyhow::anyhow!("{e}"))?);
        }
        print(args, &row, &objects)
    })
}

fn print(args: &Get, row: &ResourceKind, objects: &[Value]) -> anyhow::Result<()> {
    match args.output.as_deref() {
        None => table(args, row, objects),
        Some("json") => objects.iter().for_each(|object| println!("{object}")),
        Some("yaml") => {
            for object in objects {
                println!("---\n{}", String::from_utf8_lossy(&api::codec::yaml::encode(object)));
            }
        }
        Some("name") => {
            for object in objects {
                println!("{}/{}", row.singular, api::meta::name(object));
            }
        }
        Some("cluster-ip") => {
            for object in objects {
                println!("{}", object.str_at(&["spec", "clusterIP"]).unwrap_or(""));
            }
        }
        Some("node-ip") => {
            for object in objects {
                let list =
                    object.at(&["status", "addresses"]).map(Value::items).unwrap_or_default();
                let own = list.iter().find(|a| a.str_at(&["type"]) == Some("InternalIP"));
                println!("{}", own.and_then(|a| a.str_at(&["address"])).unwrap_or(""));
            }
        }
        Some(other) => {
            bail!("--output {other:?}: one of json, yaml, name, cluster-ip, node-ip")
        }
    }
    Ok(())
}

/// The columns that the server shows, aligned.
fn table(args: &Get, row: &ResourceKind, objects: &[Value]) {
    if objects.is_empty() {
        println!("No resources found.");
        return;
    }
    let resource = row.resource.clone().unwrap_or_default();
    let catalog = Catalog::builtin();
    let found = catalog.find(&resource.group, &resource.version, &resource.resource);
    let now = daemon::Clock::system().now();
    let mut lines: Vec<Vec<String>> = Vec::new();
    let headings = found.map_or_else(
        || vec!["NAME".to_owned()],
        |r| r.columns.iter().filter(|c| c.priority == 0).map(|c| c.name.to_uppercase()).collect(),
    );
    lines.push(headings);
    for object in objects {
        lines.push(match found {
            Some(r) => columns::cells(r, object, now)
                .iter()
                .zip(&r.columns)
                .filter(|(_, column)| column.priority == 0)
                .map(|(cell, _)| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
                .collect(),
            None => vec![api::meta::name(object).to_owned()],
        });
    }
    if args.all_namespaces && row.namespaced {
        lines[0].insert(0, "NAMESPACE".into());
        for (line, object) in lines[1..].iter_mut().zip(objects) {
            line.insert(0, api::meta::namespace(object).to_owned());
        }
    }
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| {
            lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("   ").trim_end());
    }
}

/// Runs `wait`: until a Deployment is rolled out.
pub(crate) fn wait(args: &Wait) -> anyhow::Result<()> {
    let Some((_, name)) = args.object.split_once('/') else {
        bail!("wait takes deployment/NAME, not {:?}", args.object);
    };
    block(async {
        use k8s_openapi::api::apps::v1::Deployment;
        let client = client(&args.target)?;
        let ctx = daemon::Context::new(tokio_util::sync::CancellationToken::new());
        let select = client::Select::<Deployment>::all()
            .namespace(&args.target.namespace)
            .fields(&format!("metadata.name={name}"));
        let cache = client::Cache::builder(client).kind(select).start(&ctx);
        let mut changes = cache.changes();
        let mut told = String::new();
        let ready = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = cache.get::<Deployment>(&args.target.namespace, name) {
                    let wanted = found.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                    let status = found.status.clone().unwrap_or_default();
                    let up = status.available_replicas.unwrap_or(0);
                    let line = format!("{up} of {wanted} pods available");
                    if told != line {
                        println!("{line}");
                        told = line;
                    }
                    let updated = status.updated_replicas.unwrap_or(0) == wanted;
                    if up == wanted
                        && updated
                        && status.observed_generation >= found.metadata.generation
                    {
                        return;
                    }
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(WAIT_TIMEOUT, ready).await.is_err() {
            bail!("deployment/{name} is not available after {WAIT_TIMEOUT:?}");
        }
        ctx.shutdown.cancel();
        Ok(())
    })
}
