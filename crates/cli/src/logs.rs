//! `ironclad logs`: what containers have written.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::object::Value;
use client::transport::Scope;
use futures::future::try_join_all;
use wire::apiserver::LogsRequest;

use crate::target::{Session, Target, block, default_container, items};

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // a command line
#[command(after_help = "Examples:
  ironclad logs web-0
  ironclad logs deploy/web -c proxy -f --tail 20
  ironclad logs web-0 --previous
  ironclad logs -l app=web --all-containers --prefix --since 10m")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// A pod's name, or kind/name of what has pods
    #[arg(value_name = "POD | KIND/NAME")]
    object: Option<String>,
    /// The container's name, after the pod's
    #[arg(value_name = "CONTAINER")]
    word: Option<String>,
    /// The container [default: the first]
    #[arg(long, short)]
    container: Option<String>,
    /// Every container, init containers as well
    #[arg(long)]
    all_containers: bool,
    /// Every pod with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Go on as it is written
    #[arg(long, short)]
    follow: bool,
    /// The container as it ran before
    #[arg(long, short)]
    previous: bool,
    /// How many lines from the end; -1 for all [default: all, with a selector 10]
    #[arg(long, allow_hyphen_values = true)]
    tail: Option<i64>,
    /// Only lines of the last 5s, 2m or 3h
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    since: Option<Duration>,
    /// Only lines after this moment (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    since_time: Option<String>,
    /// The time before each line
    #[arg(long)]
    timestamps: bool,
    /// The pod and container before each line
    #[arg(long)]
    prefix: bool,
    /// The most bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<i64>,
}

/// Runs `logs`.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    block(async {
        let session = Session::open(&args.target)?;
        let pods = match (&args.object, &args.selector) {
            (Some(object), None) => {
                let pod = session.pod(std::slice::from_ref(object)).await?;
                if object.contains('/') && !object.starts_with("po") {
                    eprintln!("Using pod/{}", api::meta::name(&pod));
                }
                vec![pod]
            }
            (None, Some(labels)) => {
                let namespace = session.namespace.clone();
                let scope = Scope { namespace, labels: labels.clone(), ..Scope::default() };
                session.list("pods", &scope).await?
            }
            (None, None) => bail!("expected 'logs (POD | TYPE/NAME) [CONTAINER_NAME]'"),
            _ => bail!("only a selector (-l) or a POD name is allowed"),
        };
        if pods.is_empty() {
            eprintln!("No resources found in {} namespace.", session.namespace);
        }
        let mut asked = Vec::new();
        for pod in &pods {
            for container in containers(args, pod) {
                asked.push(ask(args, pod, container));
            }
        }
        if args.follow {
            let all = asked.into_iter().map(|ask| print(args, &session, ask));
            return try_join_all(all).await.map(drop);
        }
        for ask in asked {
            print(args, &session, ask).await?;
        }
        Ok(())
    })
}

fn containers(args: &Args, pod: &Value) -> Vec<String> {
    if !args.all_containers {
        let named = args.container.as_deref().or(args.word.as_deref());
        return vec![default_container(pod, named)];
    }
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| items(pod, &["spec", list]))
        .filter_map(|c| c.str_at(&["name"]).map(str::to_owned))
        .collect()
}

fn ask(args: &Args, pod: &Value, container: String) -> LogsRequest {
    let tail = args.tail.or_else(|| args.selector.as_ref().map(|_| 10));
    LogsRequest {
        namespace: api::meta::namespace(pod).to_owned(),
        pod: api::meta::name(pod).to_owned(),
        container,
        follow: args.follow,
        previous: args.previous,
        timestamps: args.timestamps,
        since_seconds: args.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
        since_time: args.since_time.clone().unwrap_or_default(),
        tail_lines: tail.filter(|lines| *lines >= 0),
        limit_bytes: args.limit_bytes,
        ..LogsRequest::default()
    }
}

async fn print(args: &Args, session: &Session, ask: LogsRequest) -> anyhow::Result<()> {
    let prefix =
        if args.prefix { format!("[pod/{}/{}] ", ask.pod, ask.container) } else { String::new() };
    let mut chunks = session.nodes().logs(ask).await.map_err(client::Error::from)?.into_inner();
    let mut fresh = true;
    while let Some(chunk) = chunks.message().await.map_err(client::Error::from)? {
        // Several logs followed at once are still whole within a chunk.
        let mut out = std::io::stdout().lock();
        for line in chunk.data.split_inclusive(|byte| *byte == b'\n') {
            if fresh {
                out.write_all(prefix.as_bytes()).context("write")?;
            }
            fresh = line.ends_with(b"\n");
            out.write_all(line).context("write")?;
        }
        out.flush().context("write")?;
    }
    Ok(())
}
