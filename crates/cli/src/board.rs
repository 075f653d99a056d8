//! What `ironclad up` shows of itself: one line for each part while the cluster starts, then one line of how it is.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Client, Select};
use daemon::{Clock, Context};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::watch;

use crate::layout::Layout;
use crate::target::channel;

/// How often the screen is drawn while parts start, and afterwards.
const DRAW_STARTING: Duration = Duration::from_millis(100);
const DRAW_QUIET: Duration = Duration::from_secs(1);
/// How often at most a line goes to what is not a screen.
const LINE_PERIOD: Duration = Duration::from_secs(10);
/// How many restarted pods are named.
const NAMED_MAX: usize = 3;

/// One part of the cluster in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: &'static str,
    state: State,
    restarts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Since then.
    Starting(Duration),
    /// After so long.
    Running(Duration),
    /// For this reason, to be started again.
    Ended(String),
}

/// The parts and how they are. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    parts: Arc<watch::Sender<Vec<Part>>>,
    clock: Clock,
}

impl Board {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self { parts: Arc::new(watch::Sender::new(Vec::new())), clock: clock.clone() }
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut Part)) {
        let began = State::Starting(self.clock.monotonic());
        self.parts.send_modify(|parts| {
            let at = parts.iter().position(|p| p.name == name).unwrap_or_else(|| {
                parts.push(Part { name, state: began, restarts: 0 });
                parts.len() - 1
            });
            change(&mut parts[at]);
        });
    }

    pub(crate) fn starting(&self, name: &'static str) {
        let now = self.clock.monotonic();
        self.change(name, |part| part.state = State::Starting(now));
    }

    pub(crate) fn running(&self, name: &'static str) {
        let now = self.clock.monotonic();
        self.change(name, |part| {
            let took = match part.state {
                State::Starting(since) => now.saturating_sub(since),
                _ => Duration::ZERO,
            };
            part.state = State::Running(took);
        });
    }

    pub(crate) fn ended(&self, name: &'static str, why: &str) {
        let why = why.to_owned();
        self.change(name, |part| {
            part.state = State::Ended(why);
            part.restarts += 1;
        });
    }

    /// Shows it on standard output until shutdown: redrawn in place on a terminal, else line by line.
    pub(crate) async fn show(self, layout: Layout, wants_node: bool, ctx: Context) {
        let terminal = std::io::stdout().is_terminal();
        let (mut screen, mut log) = (Screen::default(), Log::default());
        let (mut parts, mut cluster) = (self.parts.subscribe(), None);
        let mut ready = false;
        while !ctx.shutdown.is_cancelled() {
            let shown = parts.borrow_and_update().clone();
            let api = shown.iter().any(|p| p.name == "API server" && is_running(p));
            if cluster.is_none() && api {
                cluster = follow(&layout, &ctx);
            }
            let (nodes, pods) = cluster.as_ref().map(state).unwrap_or_default();
            let line = summary(&nodes, &pods, &shown);
            let up = shown.iter().all(is_running) && !shown.is_empty();
            let up = up && (!wants_node || nodes.iter().any(|n| n.ready));
            let now = self.clock.monotonic();
            if terminal {
                if !ready {
                    screen.draw(&stages(&shown, now));
                }
                if up && !ready {
                    screen.keep(&[welcome(now, &layout)]);
                }
                if up || ready {
                    screen.draw(std::slice::from_ref(&line));
                }
            } else {
                log.stages(&shown);
                if up && !ready {
                    crate::say!("{}", welcome(now, &layout));
                }
                if up || ready {
                    log.summary(line, now);
                }
            }
            ready |= up;
            tokio::select! {
                () = ctx.shutdown.cancelled() => {}
                changed = parts.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(if ready { DRAW_QUIET } else { DRAW_STARTING }) => {}
            }
        }
    }
}

fn is_running(part: &Part) -> bool {
    matches!(part.state, State::Running(_))
}

fn welcome(took: Duration, layout: &Layout) -> String {
    let seconds = took.as_secs_f64();
    format!(
        "The cluster is ready after {seconds:.1}s. In another terminal:\n  \
         export KUBECONFIG={}",
        layout.kubeconfig().display()
    )
}

/// A line for each part.
fn stages(parts: &[Part], now: Duration) -> Vec<String> {
    let width = parts.iter().map(|p| p.name.len()).max().unwrap_or(0);
    let line = |part: &Part| {
        let (mark, text) = match &part.state {
            State::Starting(since) => {
                ("…", format!("{:.1}s", now.saturating_sub(*since).as_secs_f64()))
            }
            State::Running(took) => ("✓", format!("{:.1}s", took.as_secs_f64())),
            State::Ended(why) => ("✗", why.clone()),
        };
        format!("{mark} {:<width$}  {text}", part.name)
    };
    parts.iter().map(line).collect()
}

/// What is shown of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeLine {
    pub(crate) name: String,
    pub(crate) ready: bool,
}

/// What is shown of a pod.
#[derive(Debug, Default)]
pub(crate) struct PodLine {
    name: String,
    phase: String,
    restarts: i32,
}

impl From<&Node> for NodeLine {
    fn from(node: &Node) -> Self {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        Self { name: node.metadata.name.clone().unwrap_or_default(), ready }
    }
}

impl From<&Pod> for PodLine {
    fn from(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            phase: status.phase.unwrap_or_default(),
            restarts: containers.iter().map(|c| c.restart_count).sum(),
        }
    }
}

fn follow(layout: &Layout, ctx: &Context) -> Option<Cache> {
    // The kubeconfig is written just after the server listens: then it is tried again.
    let client = Client::new(channel(layout).ok()?, "ironclad");
    let pods = Select::<Pod>::all().project(&["status.phase", "status.containerStatuses"]);
    let nodes = Select::<Node>::all().project(&["status.conditions"]);
    Some(Cache::builder(client).kind(nodes).kind(pods).start(ctx))
}

fn state(cache: &Cache) -> (Vec<NodeLine>, Vec<PodLine>) {
    let nodes = cache.list::<Node>().iter().map(|n| NodeLine::from(n.as_ref())).collect();
    (nodes, cache.list::<Pod>().iter().map(|p| PodLine::from(p.as_ref())).collect())
}

/// How the cluster is, in one line.
fn summary(nodes: &[NodeLine], pods: &[PodLine], parts: &[Part]) -> String {
    let mut said = vec![nodes_line(nodes), pods_line(pods)];
    said.extend(restarts_line(pods));
    for part in parts {
        match (&part.state, part.restarts) {
            (State::Ended(why), _) => said.push(format!("{} ended: {why}", part.name)),
            (_, 0) => {}
            (_, times) => said.push(format!("{} started again ×{times}", part.name)),
        }
    }
    said.join(" · ")
}

pub(crate) fn nodes_line(nodes: &[NodeLine]) -> String {
    match nodes {
        [] => "no node".to_owned(),
        [only] => format!("node {} {}", only.name, if only.ready { "Ready" } else { "NotReady" }),
        several => {
            let ready = several.iter().filter(|n| n.ready).count();
            format!("{ready} of {} nodes Ready", several.len())
        }
    }
}

pub(crate) fn pods_line(pods: &[PodLine]) -> String {
    let mut parts = Vec::new();
    for phase in ["Running", "Pending", "Failed", "Unknown", "Succeeded"] {
        let count = pods.iter().filter(|p| p.phase == phase).count();
        if count > 0 || phase == "Running" {
            parts.push(format!("{count} {}", phase.to_lowercase()));
        }
    }
    format!("pods {}", parts.join(", "))
}

/// Which pods' containers were started again most often.
pub(crate) fn restarts_line(pods: &[PodLine]) -> Option<String> {
    let mut restarted: Vec<&PodLine> = pods.iter().filter(|p| p.restarts > 0).collect();
    restarted.sort_by_key(|p| (std::cmp::Reverse(p.restarts), &p.name));
    let named: Vec<String> =
        restarted.iter().take(NAMED_MAX).map(|p| format!("{} ×{}", p.name, p.restarts)).collect();
    let more = restarted.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| format!("restarted {}{more}", named.join(", ")))
}

/// Lines on a terminal that are drawn over.
#[derive(Debug, Default)]
struct Screen {
    drawn: usize,
    last: Vec<String>,
}

impl Screen {
    fn draw(&mut self, lines: &[String]) {
        if self.drawn > 0 && self.last == lines {
            return;
        }
        self.last = lines.to_vec();
        let mut text = String::new();
        if self.drawn > 0 {
            text = format!("\x1b[{}A", self.drawn);
        }
        for line in lines {
            // Neither wrapped nor mixed with what stood there: it would not be drawn over.
            text.push_str("\x1b[?7l\x1b[2K");
            text.push_str(line);
            text.push_str("\x1b[?7h\n");
        }
        self.drawn = lines.len().max(self.drawn);
        let mut out = std::io::stdout().lock();
        // A terminal that is gone takes no more.
        let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Leaves what is drawn, and these lines after it.
    fn keep(&mut self, lines: &[String]) {
        self.drawn = 0;
        self.draw(lines);
        self.drawn = 0;
    }
}

/// The same where nothing can be drawn over: what is new.
#[derive(Debug, Default)]
struct Log {
    parts: Vec<Part>,
    line: String,
    at: Option<Duration>,
}

impl Log {
    fn stages(&mut self, parts: &[Part]) {
        for part in parts.iter().filter(|p| !self.parts.contains(p)) {
            match &part.state {
                State::Starting(_) => {}
                State::Running(took) => {
                    crate::say!("{} runs after {:.1}s", part.name, took.as_secs_f64());
                }
                State::Ended(why) => crate::say!("{} ended: {why}", part.name),
            }
        }
        self.parts = parts.to_vec();
    }

    fn summary(&mut self, line: String, now: Duration) {
        let due = self.at.is_none_or(|at| now.saturating_sub(at) >= LINE_PERIOD);
        if line != self.line && due {
            crate::say!("{line}");
            (self.line, self.at) = (line, Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, phase: &str, restarts: i32) -> PodLine {
        PodLine { name: name.into(), phase: phase.into(), restarts }
    }

    #[test]
    fn parts_are_told_with_their_times() {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let board = Board::new(&clock);
        board.starting("store");
        clock.advance(Duration::from_millis(400));
        board.running("store");
        board.starting("API server");
        clock.advance(Duration::from_millis(200));
        let parts = board.parts.borrow().clone();
        let lines = stages(&parts, clock.monotonic());
        assert_eq!(lines, ["✓ store       0.4s", "… API server  0.2s"]);
    }

    #[test]
    fn one_line_says_how_the_cluster_is() {
        let board = Board::new(&Clock::manual(jiff::Timestamp::UNIX_EPOCH));
        let line = |nodes: &[NodeLine], pods: &[PodLine]| {
            summary(nodes, pods, &board.parts.borrow().clone())
        };
        assert_eq!(line(&[], &[]), "no node · pods 0 running");
        let node = NodeLine { name: "n".into(), ready: true };
        let pods = [pod("a", "Running", 0), pod("b", "Pending", 2)];
        let want = "node n Ready · pods 1 running, 1 pending · restarted b ×2";
        assert_eq!(line(std::slice::from_ref(&node), &pods), want);
        board.running("proxy");
        board.ended("proxy", "no nft");
        assert!(line(&[], &[]).ends_with("proxy ended: no nft"));
        board.running("proxy");
        assert!(line(&[], &[]).ends_with("proxy started again ×1"));
    }
}
