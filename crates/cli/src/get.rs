//! `ironclad get`: tables as the server shows them, or the objects themselves.

use anyhow::bail;
use api::object::{Map, Value};
use client::transport::Scope;
use wire::apiserver::watch_event::Type;
use wire::apiserver::{Object, ResourceKind};

use crate::table::{Table, template};
use crate::target::{Session, Target, block, kind_of, parse, singular};

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // a command line
#[command(after_help = "Examples:
  ironclad get pods -o wide
  ironclad get deploy,svc -n hello
  ironclad get pod/web-0 -o yaml
  ironclad get nodes -o jsonpath='{.items[*].metadata.name}'
  ironclad get pods -A -l app=web -w")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// A kind (several with commas) and names, or kind/name each
    #[arg(required = true, value_name = "KIND [NAME…] | KIND/NAME…")]
    objects: Vec<String>,
    /// In every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// wide, yaml, json, name, or jsonpath=TEMPLATE
    #[arg(long, short)]
    output: Option<String>,
    /// Only objects with these labels, as app=web,tier!=db
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "")]
    selector: String,
    /// Only objects with these fields, as status.phase=Running
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    field_selector: String,
    /// Go on showing what changes
    #[arg(long, short)]
    watch: bool,
    /// A last column with the labels
    #[arg(long)]
    show_labels: bool,
    /// No line of headings
    #[arg(long)]
    no_headers: bool,
    /// Say nothing of names that are not there
    #[arg(long)]
    ignore_not_found: bool,
}

/// What is printed.
#[derive(Debug, PartialEq)]
enum Output {
    Table { wide: bool },
    Json,
    Yaml,
    Name,
    Template(String),
}

fn output(text: Option<&str>) -> anyhow::Result<Output> {
    Ok(match text {
        None => Output::Table { wide: false },
        Some("wide") => Output::Table { wide: true },
        Some("json") => Output::Json,
        Some("yaml") => Output::Yaml,
        Some("name") => Output::Name,
        Some(other) => match other.strip_prefix("jsonpath=") {
            Some(template) => Output::Template(template.to_owned()),
            None => bail!(
                "unable to match a printer suitable for the output format {other:?}, allowed \
                 formats are: json,jsonpath,name,wide,yaml"
            ),
        },
    })
}

/// Runs `get`.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let output = output(args.output.as_deref())?;
    block(async {
        let session = Session::open(&args.target)?;
        let meant = session.meant(&args.objects).await?;
        if args.watch {
            let [(row, name)] = meant.as_slice() else {
                bail!("you may only specify a single resource type to watch");
            };
            return watch(args, &session, row, name.as_deref(), &output).await;
        }
        let (mut groups, mut single) = (Vec::<(ResourceKind, Vec<Object>)>::new(), false);
        for (row, name) in meant {
            single = name.is_some() && args.objects.len() <= 2;
            let found = find(args, &session, &row, name.as_deref(), &output).await?;
            match groups.last_mut() {
                Some((last, objects)) if last.kind == row.kind => objects.extend(found),
                _ => groups.push((row, found)),
            }
        }
        print(args, &session, &groups, single, &output)
    })
}

fn scope(args: &Args, session: &Session, row: &ResourceKind, output: &Output) -> Scope {
    let mut scope = session.scope(row, args.all_namespaces);
    scope.labels.clone_from(&args.selector);
    scope.fields.clone_from(&args.field_selector);
    if matches!(output, Output::Table { .. }) {
        scope.cells = true;
        scope.projection = vec!["metadata.labels".to_owned()];
    }
    scope
}

async fn find(
    args: &Args,
    session: &Session,
    row: &ResourceKind,
    name: Option<&str>,
    output: &Output,
) -> anyhow::Result<Vec<Object>> {
    let scope = scope(args, session, row, output);
    let Some(name) = name else {
        return Ok(session.client.list_raw(&kind_of(row), &scope).await?.0);
    };
    match session.client.get_part(&kind_of(row), name, &scope).await {
        Ok(object) => Ok(vec![object]),
        Err(error) if error.is_not_found() && args.ignore_not_found => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn print(
    args: &Args,
    session: &Session,
    groups: &[(ResourceKind, Vec<Object>)],
    single: bool,
    output: &Output,
) -> anyhow::Result<()> {
    if let Output::Table { wide } = output {
        let shown: Vec<_> = groups.iter().filter(|(_, objects)| !objects.is_empty()).collect();
        if shown.is_empty() && !args.ignore_not_found {
            let namespaced = groups.iter().any(|(row, _)| row.namespaced) && !args.all_namespaces;
            let place = format!(" in {} namespace.", session.namespace);
            eprintln!("No resources found{}", if namespaced { &place } else { "" });
        }
        for (i, (row, objects)) in shown.iter().enumerate() {
            if i > 0 {
                crate::tell(
                    "
",
                );
            }
            let view = View { args, row, wide: *wide, prefixed: groups.len() > 1 };
            crate::tell(&view.table(objects));
        }
        return Ok(());
    }
    let mut values = Vec::new();
    for (row, objects) in groups {
        for object in objects {
            if *output == Output::Name {
                crate::say!("{}/{}", singular(row), object.name);
            }
            values.push(parse(object)?);
        }
    }
    if *output == Output::Name {
        return Ok(());
    }
    let value = match values.pop() {
        Some(only) if single && values.is_empty() => only,
        last => list(values.into_iter().chain(last).collect()),
    };
    show(&value, output)
}

fn list(items: Vec<Value>) -> Value {
    let mut list = Value::Object(Map::default());
    list.set("apiVersion", "v1");
    list.set("items", Value::Array(items));
    list.set("kind", "List");
    list.set_at(&["metadata", "resourceVersion"], "");
    list
}

fn show(value: &Value, output: &Output) -> anyhow::Result<()> {
    match output {
        Output::Yaml => print!("{}", String::from_utf8_lossy(&api::codec::yaml::encode(value))),
        Output::Template(text) => print!("{}", template(text, value)?),
        _ => {
            let mut out = Vec::new();
            let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut writer = serde_json::Serializer::with_formatter(&mut out, indent);
            serde::Serialize::serialize(&serde_json::Value::from(value), &mut writer)?;
            crate::say!("{}", String::from_utf8_lossy(&out));
        }
    }
    Ok(())
}

/// How the objects of one kind are shown in rows.
struct View<'a> {
    args: &'a Args,
    row: &'a ResourceKind,
    wide: bool,
    /// Names carry their kind, since there are several.
    prefixed: bool,
}

impl View<'_> {
    fn namespace(&self) -> bool {
        self.args.all_namespaces && self.row.namespaced
    }

    fn headings(&self) -> Vec<String> {
        let columns = self.row.columns.iter().filter(|c| self.wide || !c.wide);
        let mut line: Vec<String> = columns.map(|c| c.name.to_uppercase()).collect();
        if self.namespace() {
            line.insert(0, "NAMESPACE".to_owned());
        }
        if self.args.show_labels {
            line.push("LABELS".to_owned());
        }
        line
    }

    fn cells(&self, object: &Object) -> Vec<String> {
        let cells = object.cells.iter().zip(&self.row.columns);
        let mut line: Vec<String> =
            cells.filter(|(_, c)| self.wide || !c.wide).map(|(cell, _)| cell.clone()).collect();
        if let (true, Some(first)) = (self.prefixed, line.first_mut()) {
            *first = format!("{}/{first}", singular(self.row));
        }
        if self.namespace() {
            line.insert(0, object.namespace.clone());
        }
        if self.args.show_labels {
            let labels: Vec<String> = parse(object)
                .map(|o| api::meta::labels(&o).map(|(k, v)| format!("{k}={v}")).collect())
                .unwrap_or_default();
            line.push(if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") });
        }
        line
    }

    fn table(&self, objects: &[Object]) -> String {
        let mut lines = if self.args.no_headers { Vec::new() } else { vec![self.headings()] };
        lines.extend(objects.iter().map(|object| self.cells(object)));
        Table::default().lines(&lines)
    }
}

/// Shows what is there and then what changes, until interrupted.
async fn watch(
    args: &Args,
    session: &Session,
    row: &ResourceKind,
    name: Option<&str>,
    output: &Output,
) -> anyhow::Result<()> {
    let mut scope = scope(args, session, row, output);
    if let Some(name) = name {
        session.client.get_part(&kind_of(row), name, &scope).await?;
        scope.fields = format!("metadata.name={name}");
    }
    let mut table = Table::default();
    let view = View { args, row, wide: *output == Output::Table { wide: true }, prefixed: false };
    // What is there comes as one piece, so that its columns are as wide as its widest row.
    let (mut first, mut revision) = (Some(Vec::new()), 0);
    loop {
        let mut events = session.client.watch_raw(&kind_of(row), &scope, revision).await?;
        while let Some(event) = events.message().await.map_err(client::Error::from)? {
            let (kind, done) = (event.r#type(), event.initial_done);
            let object = event.object.unwrap_or_default();
            revision = revision.max(object.revision);
            let mut rows = Vec::new();
            match output {
                _ if kind == Type::Bookmark => {}
                Output::Table { .. } => rows.push(view.cells(&object)),
                Output::Name => crate::say!("{}/{}", singular(row), object.name),
                _ => show(&parse(&object)?, output)?,
            }
            if let Some(held) = &mut first {
                held.append(&mut rows);
                if !done {
                    continue;
                }
                if matches!(output, Output::Table { .. }) && !args.no_headers {
                    rows.push(view.headings());
                }
                rows.append(&mut first.take().unwrap_or_default());
            }
            crate::tell(&table.lines(&rows));
        }
    }
}
