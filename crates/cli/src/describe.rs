//! `ironclad describe`: objects in detail, with their events.
//!
//! What belongs together is gathered here; [`page`] makes text of it, without I/O.

use anyhow::bail;
use api::object::Value;
use client::transport::Scope;
use wire::apiserver::ResourceKind;

use crate::target::{Session, Target, block, items, kind_of, parse, selector};

mod page;
mod pod;

use page::Page;

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ironclad describe pod web-0
  ironclad describe deploy/web svc/web
  ironclad describe nodes
  ironclad describe pods -l app=web")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// A kind (several with commas) and names, or kind/name each
    #[arg(required = true, value_name = "KIND [NAME…] | KIND/NAME…")]
    objects: Vec<String>,
    /// In every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "")]
    selector: String,
    /// Leave out the events
    #[arg(long)]
    no_events: bool,
}

/// Runs `describe`.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    block(async {
        let session = Session::open(&args.target)?;
        let mut pages = Vec::new();
        for (row, name) in session.meant(&args.objects).await? {
            let objects = match name {
                Some(name) => vec![session.get(&row, &name).await?],
                None => {
                    let scope = session.scope(&row, args.all_namespaces);
                    let scope = Scope { labels: args.selector.clone(), ..scope };
                    let (found, _) = session.client.list_raw(&kind_of(&row), &scope).await?;
                    found.iter().map(parse).collect::<anyhow::Result<_>>()?
                }
            };
            for object in &objects {
                pages.push(describe(args, &session, &row, object).await?);
            }
        }
        if pages.is_empty() {
            bail!("No resources found");
        }
        crate::tell(&pages.join("\n\n"));
        Ok(())
    })
}

async fn describe(
    args: &Args,
    session: &Session,
    row: &ResourceKind,
    object: &Value,
) -> anyhow::Result<String> {
    let mut page = Page::new(daemon::Clock::system().now());
    let namespace = api::meta::namespace(object).to_owned();
    let near = Scope { namespace, ..Scope::default() };
    match (row.kind.as_str(), row.resource.as_ref().map_or("", |r| r.group.as_str())) {
        ("Pod", "") => pod::pod(&mut page, object),
        ("Deployment", "apps") => {
            let labels = selector(object).unwrap_or_default();
            let sets = session.list("replicasets.apps", &Scope { labels, ..near.clone() }).await?;
            pod::deployment(&mut page, object, &sets);
        }
        ("Service", "") => {
            let labels = format!("kubernetes.io/service-name={}", api::meta::name(object));
            let scope = Scope { labels, ..near.clone() };
            let slices = session.list("endpointslices.discovery.k8s.io", &scope).await?;
            page::service(&mut page, object, &slices);
        }
        ("Node", "") => {
            let fields = format!("spec.nodeName={}", api::meta::name(object));
            let scope = Scope { fields, ..Scope::default() };
            let pods = session.list("pods", &scope).await?;
            page::node(&mut page, object, &pods);
        }
        _ => page::generic(&mut page, object),
    }
    if !args.no_events && row.kind != "Event" {
        let (_, kind) = api::meta::type_meta(object);
        let fields =
            format!("involvedObject.kind={kind},involvedObject.name={}", api::meta::name(object));
        let mut events = session.list("events", &Scope { fields, ..near }).await?;
        let uid = api::meta::uid(object);
        // A node's events carry its name in place of the uid.
        events.retain(|event| {
            let about = event.str_at(&["involvedObject", "uid"]).unwrap_or_default();
            about.is_empty() || about == uid || about == api::meta::name(object)
        });
        page.events(events);
    }
    Ok(page.text())
}

/// Names and values of a map as `a=b`.
fn pairs(object: &Value, path: &[&str]) -> Vec<String> {
    let map = object.at(path);
    map.into_iter().flat_map(Value::members).map(|(k, v)| format!("{k}={}", plain(v))).collect()
}

/// Text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The text at `path`, or `<none>`.
fn text(object: &Value, path: &[&str]) -> String {
    object.at(path).map(plain).filter(|t| !t.is_empty()).unwrap_or_else(|| "<none>".to_owned())
}

/// The texts of a list, joined.
fn joined(object: &Value, path: &[&str], by: &str) -> String {
    items(object, path).iter().map(plain).collect::<Vec<_>>().join(by)
}
