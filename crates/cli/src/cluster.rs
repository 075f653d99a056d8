//! The daemons of one machine in one process, wired in memory.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apiserver::{LocalAgents, Server};
use auth::User;
use auth::cluster::{API_HOSTS, Cluster};
use auth::pki::Subject;
use daemon::{Backoff, Channel, Context};

use crate::address;
use crate::board::Board;
use crate::kubeconfig;
use crate::layout::Layout;
use crate::up::Args;

/// The one part that takes a while until it does its work.
const AGENT: &str = "node agent";
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_MOST: Duration = Duration::from_secs(30);

/// Runs the cluster until shutdown.
pub(crate) async fn run(
    args: &Args,
    layout: &Layout,
    board: &Board,
    ctx: Context,
) -> anyhow::Result<()> {
    let pki = Cluster::open(&layout.pki(), ctx.clock.now().as_second())?;
    pki.components()?;
    let want_node = !args.no_node && !args.api_only;
    let own = match address::primary() {
        None if want_node => Some(lone_address(args, layout, &ctx).await?),
        own => own,
    };
    let mut hosts: Vec<String> = API_HOSTS.iter().map(ToString::to_string).collect();
    hosts.extend(own.map(|a| a.to_string()));
    hosts.push(args.api_listen.ip().to_string());
    hosts.push(service_address(args, API_OFFSET)?.to_string());
    pki.pair("apiserver", &Subject::client("kube-apiserver", None).serving(hosts), true)?;
    let config = api_config(args, layout, own.map(|a| a.to_string()));
    let listener = daemon::serve::bind(&config.listen, true).await?;
    board.starting("store");
    let store = store(args, layout, &ctx).await?;
    board.running("store");
    board.starting("API server");
    let agents = LocalAgents::default();
    let server = apiserver::open(&config, store, &agents, &ctx).await?;
    ctx.tasks.part("API server", {
        let (server, config) = (server.clone(), config.clone());
        async move { server.serve(&config, listener).await }
    });
    let admin = pki.pair("admin", &Subject::client("kubernetes-admin", None), false)?;
    let host = if args.api_listen.ip().is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        args.api_listen.ip().to_string()
    };
    let url = format!("https://{host}:{}", args.api_listen.port());
    kubeconfig::write(&layout.kubeconfig(), &url, pki.ca(), &admin)?;
    board.running("API server");
    if !args.api_only {
        control_plane(args, layout, pki.ca(), &server, board, &ctx);
    }
    if want_node {
        node(args, layout, &server, &agents, own, board, &ctx).await?;
    }
    tracing::info!(url, kubeconfig = %layout.kubeconfig().display(), "cluster started");
    ctx.shutdown.cancelled().await;
    ctx.tasks.join().await
}

/// The first address of the Services' range is the API server's, the tenth the DNS server's.
const API_OFFSET: u32 = 1;
const DNS_OFFSET: u32 = 10;

/// An address of the Services' range with a fixed meaning.
fn service_address(args: &Args, offset: u32) -> anyhow::Result<Ipv4Addr> {
    let (base, _) = proxy::routes::parse_cidr(&args.service_cidr).context("--service-cidr")?;
    Ok(Ipv4Addr::from(u32::from(base) + offset))
}

fn api_config(args: &Args, layout: &Layout, own: Option<String>) -> apiserver::Config {
    let file = |name: &str| layout.pki().join(name).display().to_string();
    let tls = |name: &str| daemon::tls::TlsFiles {
        ca: file("ca.crt"),
        cert: file(&format!("{name}.crt")),
        key: file(&format!("{name}.key")),
    };
    let advertise = if args.api_listen.ip().is_unspecified() { own } else { None };
    apiserver::Config {
        listen: args.api_listen.to_string(),
        advertise: advertise.unwrap_or_default(),
        tls: tls("apiserver"),
        node: tls("apiserver"),
        service_cidr: args.service_cidr.clone(),
        // Without nodes nothing is measured.
        metrics_api: !args.api_only,
        tokens: apiserver::TokenConfig {
            key: file("sa.key"),
            file: args.token_file.as_deref().map(path_text).unwrap_or_default(),
            ..apiserver::TokenConfig::default()
        },
        ..apiserver::Config::default()
    }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// The store: ours in this process, or the one that `--store-endpoints` names.
async fn store(args: &Args, layout: &Layout, ctx: &Context) -> anyhow::Result<Channel> {
    if let Some(endpoints) = &args.store_endpoints {
        let url = endpoints.split(',').next().unwrap_or_default().trim();
        return daemon::channel::connect(url, None);
    }
    let config = ::store::Config {
        data_dir: layout.store().display().to_string(),
        ..::store::Config::default()
    };
    let store = ::store::open(&config, ctx).await.context("open the store")?;
    Ok(daemon::channel::in_memory(store.routes(), ()))
}

/// Scheduler and controllers, each its own user, each started again if it ends.
fn control_plane(
    args: &Args,
    layout: &Layout,
    ca: &str,
    server: &Server,
    board: &Board,
    ctx: &Context,
) {
    let user = |name: &str| User::authenticated(name, &[]);
    let channel = server.channel(user("system:kube-scheduler"));
    supervise("scheduler", board, ctx, move |inner| {
        let config = scheduler::Config { leader_elect: false, ..scheduler::Config::default() };
        let channel = channel.clone();
        async move { scheduler::start(&config, channel, inner).await }
    });
    let channel = server.channel(user("system:kube-controller-manager"));
    let (ca, pod_cidr) = (ca.to_owned(), args.pod_cidr.clone());
    let file = |name: &str| layout.pki().join(name).display().to_string();
    let local_path = layout.dir().join("local-path").display().to_string();
    let signing = controller_manager::Signing { cert: file("ca.crt"), key: file("ca.key") };
    supervise("controller-manager", board, ctx, move |inner| {
        let config = controller_manager::Config {
            pod_cidr: pod_cidr.clone(),
            leader_elect: false,
            signing: signing.clone(),
            local_path: local_path.clone(),
            ..controller_manager::Config::default()
        };
        let (channel, ca) = (channel.clone(), ca.clone());
        async move { controller_manager::start(&config, channel, &ca, inner).await }
    });
}

/// An address for a machine that has none but loopback: the first of the pods' range, on `lo`. Pods reach it as their
/// gateway.
async fn lone_address(args: &Args, layout: &Layout, ctx: &Context) -> anyhow::Result<Ipv4Addr> {
    let (base, _) = proxy::routes::parse_cidr(&args.pod_cidr).context("--pod-cidr")?;
    let address = Ipv4Addr::from(u32::from(base) + 1);
    remember(layout, "address", &address.to_string())?;
    proxy::routes::own_address(address, ctx).await?;
    tracing::info!(%address, "this machine has no address of its own, so it gets one");
    Ok(address)
}

/// Writes down what was done to the machine, for `down --purge` to undo.
fn remember(layout: &Layout, what: &str, value: &str) -> anyhow::Result<()> {
    let dir = layout.node().join("network");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    std::fs::write(dir.join(what), value).with_context(|| format!("remember {what}"))
}

/// Undoes what [`remember`] wrote down.
async fn undo(layout: &Layout, ctx: &Context) -> anyhow::Result<()> {
    let read = |what: &str| std::fs::read_to_string(layout.node().join("network").join(what)).ok();
    if let Some(cidr) = read("services") {
        proxy::routes::remove_services(proxy::routes::parse_cidr(&cidr)?, ctx).await?;
    }
    if let Some(address) = read("address") {
        proxy::routes::remove_own_address(address.parse().context("address")?, ctx).await?;
    }
    if let Some(address) = read("dns") {
        proxy::routes::remove_own_address(address.parse().context("DNS address")?, ctx).await?;
    }
    Ok(())
}

/// The parts of this machine as a node: proxy, DNS and agent.
async fn node(
    args: &Args,
    layout: &Layout,
    server: &Server,
    agents: &LocalAgents,
    own: Option<Ipv4Addr>,
    board: &Board,
    ctx: &Context,
) -> anyhow::Result<()> {
    let name = args.node_name.clone().unwrap_or_else(address::node_name);
    let dns_address = service_address(args, DNS_OFFSET)?;
    remember(layout, "services", &args.service_cidr)?;
    remember(layout, "dns", &dns_address.to_string())?;
    let containerd = args.containerd_address.as_deref().map(path_text).unwrap_or_default();
    remember(layout, "containerd", &containerd)?;
    // Before the DNS server, which binds to it.
    proxy::routes::own_address(dns_address, ctx).await?;
    let node_ip = own.map(|a| a.to_string()).unwrap_or_default();
    let channel = server.channel(User::authenticated("system:kube-proxy", &[]));
    let config = proxy::Config {
        node_name: name.clone(),
        pod_cidr: args.pod_cidr.clone(),
        service_cidr: args.service_cidr.clone(),
        node_ip: node_ip.clone(),
        dns_address: dns_address.to_string(),
        ..proxy::Config::default()
    };
    supervise("proxy", board, ctx, move |inner| {
        let (config, channel) = (config.clone(), channel.clone());
        async move { proxy::start(&config, channel, inner).await }
    });
    let account = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    let user = User::authenticated("system:serviceaccount:kube-system:dns", &account);
    let channel = server.channel(user);
    let config = dns::Config { listen: format!("{dns_address}:53"), ..dns::Config::default() };
    supervise("DNS", board, ctx, move |inner| {
        let (config, channel) = (config.clone(), channel.clone());
        async move { dns::start(&config, channel, inner).await }
    });
    let config = node_agent::Config {
        node_name: name.clone(),
        node_ip,
        cluster_dns: dns_address.to_string(),
        data_dir: layout.node(),
        cgroup_root: layout.cgroup_root(),
        images_dir: images_dir(),
        containerd_address: containerd,
        ..node_agent::Config::default()
    };
    let user = format!("system:node:{name}");
    let channel = server.channel(User::authenticated(&user, &["system:nodes"]));
    let (agents, agents_board) = (agents.clone(), board.clone());
    supervise(AGENT, board, ctx, move |inner| {
        let (config, channel) = (config.clone(), channel.clone());
        let (agents, name, board) = (agents.clone(), name.clone(), agents_board.clone());
        async move {
            board.starting(AGENT);
            let service = node_agent::start(&config, channel, &inner).await?;
            let routes = tonic::service::Routes::new(service).prepare();
            agents.insert(&name, daemon::channel::in_memory(routes, ()));
            board.running(AGENT);
            inner.shutdown.cancelled().await;
            Ok(())
        }
    });
    Ok(())
}

/// Where the static programs of our own images are: beside this one, or where cargo builds them.
fn images_dir() -> String {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().map(|dir| dir.join("images"));
    let triple = format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH);
    let built = own.parent().and_then(Path::parent).map(|dir| dir.join(triple));
    let places = [beside, built].into_iter().flatten();
    let found = places.into_iter().find(|dir| dir.join("ironclad-pause").exists());
    found.map(|dir| dir.display().to_string()).unwrap_or_default()
}

/// Runs a daemon in this process, and again with backoff whenever it ends before we do.
fn supervise<F, R>(name: &'static str, board: &Board, ctx: &Context, run: F)
where
    F: Fn(Context) -> R + Send + Sync + 'static,
    R: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (outer, board, run) = (ctx.clone(), board.clone(), Arc::new(run));
    ctx.tasks.part(name, async move {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MOST);
        loop {
            let inner = outer.child();
            board.running(name);
            // In a task of its own, so that a panic ends the daemon and not the cluster.
            let running = inner.tasks.job(run(inner.clone()));
            let ended = tokio::select! {
                ended = running => ended.map_err(anyhow::Error::from).and_then(|result| result),
                () = inner.shutdown.cancelled() => Ok(()),
            };
            inner.shutdown.cancel();
            let joined = inner.tasks.join().await;
            if outer.shutdown.is_cancelled() {
                return Ok(());
            }
            let error = ended.and(joined).err().map(|e| format!("{e:#}")).unwrap_or_default();
            board.ended(name, &error);
            tracing::error!(daemon = name, error, "daemon ended, starting it again");
            tokio::select! {
                () = outer.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(backoff.delay()) => {}
            }
        }
    });
}

/// Removes what a stopped cluster has left behind: containers, rules, routes, files.
pub(crate) fn purge(layout: &Layout) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if layout.node().exists() {
        let containerd = std::fs::read_to_string(layout.node().join("network/containerd"));
        let config = node_agent::Config {
            data_dir: layout.node(),
            // Not there when the cluster never came as far as a node.
            containerd_address: containerd.unwrap_or_default(),
            cgroup_root: layout.cgroup_root(),
            ..node_agent::Config::default()
        };
        proxy::nft::cleanup().context("remove packet rules")?;
        let ctx = Context::new(tokio_util::sync::CancellationToken::new());
        runtime.block_on(undo(layout, &ctx)).context("remove routes and addresses")?;
        // Last, since it removes what the lines above have read.
        runtime.block_on(node_agent::purge(&config)).context("stop the node's containers")?;
    }
    match std::fs::remove_dir_all(layout.dir()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", layout.dir().display())),
    }
}
