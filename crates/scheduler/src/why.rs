//! Why a pod is where it is, or nowhere: what each node says, who comes nearest, and what would help. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::ask::Ask;
use crate::filters::{Cycle, Plugin, Refusal, untolerated};
use crate::place::{Placement, best, place};
use crate::preempt::Preemption;
use crate::scores::{PLUGINS, Score, score};
use crate::snapshot::{NodeState, Snapshot};

/// As many nodes are named in a line.
const NAMES_SHOWN: usize = 3;
/// As many ways to make it fit are shown.
const HINTS_SHOWN: usize = 3;

/// The explanation; its text is [`fmt::Display`].
#[derive(Debug)]
pub struct Why {
    pod: String,
    nodes: usize,
    /// Where the pod is, if anywhere.
    on: Option<String>,
    /// The nodes that can run it, the best first, and what each plugin gives them.
    fitting: Vec<(String, Score)>,
    /// What the others say, and who says it.
    refused: BTreeMap<(Plugin, String), Vec<String>>,
    /// What would help, the least first.
    hints: Vec<(String, String)>,
    preemption: Option<Preemption>,
    message: String,
}

/// Explains a pod. One that has a node is looked at as if it had none, with all others where they are.
#[must_use]
pub fn why(ask: &Ask, snapshot: &mut Snapshot) -> Why {
    let on = snapshot.placed(&ask.key).map(|placed| placed.node.clone());
    let on = on.or_else(|| Some(ask.node_name.clone()).filter(|name| !name.is_empty()));
    snapshot.forget(&ask.key);
    // The name of its node is no wish of the pod, unless its maker put it there: that can't be told any more.
    let ask = &Ask { node_name: String::new(), ..ask.clone() };
    let cycle = Cycle::new(ask, snapshot);
    let (mut fitting, mut refused) = (Vec::new(), BTreeMap::<_, Vec<String>>::new());
    let mut misses = Vec::new();
    for (id, node) in snapshot.nodes() {
        let refusals: Vec<Refusal> = cycle.refusals(id, node).collect();
        if refusals.is_empty() {
            fitting.push(id);
        }
        for refusal in &refusals {
            for reason in &refusal.reasons {
                let said = (refusal.plugin, said(ask, node, refusal.plugin, reason));
                refused.entry(said).or_default().push(node.name().to_owned());
            }
        }
        misses.extend(miss(ask, node, &refusals));
    }
    // What has to be changed least, and what helps on most nodes; one hint for each kind.
    misses.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut hints: Vec<(String, String)> = Vec::new();
    for (_, hint, node) in misses {
        if hints.len() < HINTS_SHOWN && hints.iter().all(|(known, _)| *known != hint) {
            hints.push((hint, node));
        }
    }
    let mut scores = score(ask, snapshot, &fitting);
    let winner = best(&scores, snapshot);
    scores.sort_by_key(|s| (Some(s.node) != winner, std::cmp::Reverse(s.total), s.node));
    let name = |id: usize| snapshot.node(id).map_or("", NodeState::name).to_owned();
    let (message, preemption) = match place(ask, snapshot, 0).0 {
        Placement::Node(_) => (String::new(), None),
        Placement::Nowhere(nowhere) => (nowhere.message, nowhere.preemption),
    };
    Why {
        pod: ask.key.to_string(),
        nodes: snapshot.node_count(),
        on,
        fitting: scores.into_iter().map(|s| (name(s.node), s)).collect(),
        refused,
        hints,
        preemption,
        message,
    }
}

/// How much of a resource a node lacks, and how much it has left.
fn lacks(ask: &Ask, node: &NodeState, resource: &str) -> (i64, i64) {
    let free = node.allocatable.of(resource) - node.requested.of(resource);
    (ask.takes.amounts.of(resource) - free, free)
}

/// A reason without upstream's `node(s)`, and with what the pod asks for.
fn said(ask: &Ask, node: &NodeState, plugin: Plugin, reason: &str) -> String {
    match (plugin, reason.strip_prefix("Insufficient ")) {
        (Plugin::NodeResourcesFit, Some(resource)) => {
            let wanted = amount(resource, ask.takes.amounts.of(resource));
            if ask.takes.amounts.of(resource) > node.allocatable.of(resource) {
                format!("too small: the pod asks for {wanted} {resource}, more than the node has")
            } else {
                format!("not enough {resource} left: the pod asks for {wanted}")
            }
        }
        _ => reason.strip_prefix("node(s) ").unwrap_or(reason).to_owned(),
    }
}

/// What alone would make the pod fit on this node, with how far away that is (0 to 1, more for what nobody should do
/// lightly); nothing if more than one rule speaks against it.
fn miss(ask: &Ask, node: &NodeState, refusals: &[Refusal]) -> Option<(f64, String, String)> {
    let [only] = refusals else { return None };
    let name = node.name().to_owned();
    let reason = only.reasons.first()?;
    let (far, hint) = match only.plugin {
        Plugin::NodeResourcesFit => {
            let [resource] = only.reasons.as_slice() else { return None };
            let Some(resource) = resource.strip_prefix("Insufficient ") else {
                return Some((0.5, "let one pod leave".into(), name));
            };
            let (missing, free) = lacks(ask, node, resource);
            let wanted = ask.takes.amounts.of(resource).max(1);
            let (missing, free) = (missing, free.max(0));
            #[allow(clippy::cast_precision_loss)] // a ratio
            let far = missing as f64 / wanted as f64;
            let text = format!(
                "ask for {} less {resource} ({} is free), or let pods that take so much leave",
                amount(resource, missing),
                amount(resource, free)
            );
            (far, text)
        }
        Plugin::TaintToleration => {
            let taint = untolerated(ask, node)?;
            let value = taint.value.as_deref().filter(|v| !v.is_empty());
            let value = value.map_or_else(String::new, |v| format!("={v}"));
            (1.0, format!("tolerate the taint {}{value}:{}", taint.key, taint.effect))
        }
        Plugin::NodeUnschedulable => (0.6, format!("kubectl uncordon {name}")),
        Plugin::NodeAffinity => {
            let lacking = ask.node_selector.iter();
            let mut lacking =
                lacking.filter(|(key, value)| node.label(key) != Some(value.as_str()));
            match (lacking.next(), lacking.next()) {
                (Some((key, value)), None) => {
                    (1.1, format!("label the node: kubectl label node {name} {key}={value}"))
                }
                _ => (1.5, "change the pod's node selector or affinity".into()),
            }
        }
        Plugin::NodePorts => {
            (1.2, "give up the host port, or let the pod that has it leave".into())
        }
        Plugin::PodTopologySpread => (1.3, "allow a greater maxSkew".into()),
        Plugin::InterPodAffinity => (1.4, format!("change what {}", rule(reason))),
        Plugin::NodeName | Plugin::Group => return None,
        Plugin::VolumeRestrictions => (1.2, "let the pod that has its claim leave".into()),
        Plugin::VolumeBinding => (1.5, "have its volumes where it can run".into()),
    };
    Some((far, hint, name))
}

fn rule(reason: &str) -> &'static str {
    if reason.contains("existing") {
        "the pods that are there say of pods like this one (podAntiAffinity)"
    } else {
        "the pod says of other pods (podAffinity, podAntiAffinity)"
    }
}

/// An amount of a resource as people write it.
fn amount(resource: &str, amount: i64) -> String {
    match resource {
        "cpu" if amount % 1000 == 0 => (amount / 1000).to_string(),
        "cpu" => format!("{amount}m"),
        _ if resource == "memory"
            || resource.ends_with("storage")
            || resource.starts_with("hugepages") =>
        {
            let units = [("Gi", 1_i64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
            let unit = units.into_iter().find(|(_, size)| amount.abs() >= *size);
            match unit {
                Some((unit, size)) if amount % size == 0 => format!("{}{unit}", amount / size),
                Some((unit, size)) => {
                    #[allow(clippy::cast_precision_loss)] // shown with one digit
                    let part = amount as f64 / size as f64;
                    format!("{part:.1}{unit}")
                }
                None => amount.to_string(),
            }
        }
        _ => amount.to_string(),
    }
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

fn names(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = nodes(self.nodes);
        match (&self.on, self.fitting.as_slice()) {
            (Some(on), fitting) => {
                writeln!(f, "{} runs on {on}.", self.pod)?;
                let can = fitting.iter().any(|(name, _)| name == on);
                let verdict = if can { "" } else { ", and would not be put there now" };
                writeln!(f, "As things are, {} of {all} could run it{verdict}.", fitting.len())?;
            }
            (None, []) => writeln!(f, "{} is nowhere: none of {all} can run it.", self.pod)?,
            (None, [(name, _), ..]) => {
                writeln!(f, "{} has no node yet; {name} could run it now.", self.pod)?;
            }
        }
        self.scores(f)?;
        if !self.refused.is_empty() {
            writeln!(f, "\nWhat speaks against nodes:")?;
        }
        let mut refused: Vec<_> = self.refused.iter().collect();
        refused.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
        for ((plugin, reason), who) in refused {
            let count = nodes(who.len());
            writeln!(f, "  {count:>9}  {reason}")?;
            writeln!(f, "             {} ({})", names(who), plugin.name())?;
        }
        if self.on.is_none() && self.fitting.is_empty() {
            self.help(f)?;
        }
        Ok(())
    }
}

impl Why {
    /// The best nodes side by side.
    fn scores(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The node that it is on comes first, then those that would win.
        let mut shown: Vec<_> = self.fitting.iter().collect();
        shown.sort_by_key(|(name, _)| Some(name) != self.on.as_ref());
        shown.truncate(NAMES_SHOWN);
        if shown.is_empty() {
            return Ok(());
        }
        let width = |name: &str| name.len().max(9);
        writeln!(f, "\nHow they compare (0 to 100 each, by weight):")?;
        write!(f, "  {:<34}", "")?;
        for (name, _) in &shown {
            write!(f, "  {name:>0$}", width(name))?;
        }
        writeln!(f)?;
        for (i, (plugin, weight)) in PLUGINS.iter().enumerate() {
            write!(f, "  {:<34}", format!("{plugin} x{weight}"))?;
            for (name, score) in &shown {
                write!(f, "  {:>1$}", score.by[i], width(name))?;
            }
            writeln!(f)?;
        }
        write!(f, "  {:<34}", "in all")?;
        for (name, score) in &shown {
            write!(f, "  {:>1$}", score.total, width(name))?;
        }
        writeln!(f)
    }

    fn help(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nWhat would make it fit:")?;
        if let Some(preemption) = &self.preemption {
            let victims: Vec<String> =
                preemption.victims.iter().map(|(key, _)| key.to_string()).collect();
            writeln!(
                f,
                "  - less important pods will go from {}: {}",
                preemption.node,
                names(&victims)
            )?;
        }
        for (hint, node) in &self.hints {
            writeln!(f, "  - {hint}: then {node} can run it")?;
        }
        if self.hints.is_empty() && self.preemption.is_none() {
            writeln!(f, "  - no single change: every node refuses it for more than one reason")?;
        }
        writeln!(f, "\nIts event says: {}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let taint = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
        for (name, cpu, spec) in [
            ("node-1", "400m", json!({})),
            ("node-2", "200m", json!({})),
            ("node-3", "4", json!({"taints": taint})),
        ] {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": spec,
                "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "10"}}
            }))
            .unwrap();
            snapshot.put_node(Arc::new(node));
        }
        snapshot
    }

    fn pod(cpu: &str) -> Pod {
        let spec: Value =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn a_pod_without_a_place_is_told_what_would_help() {
        let mut snapshot = snapshot();
        let ask = snapshot.ask(&pod("500m"));
        let text = why(&ask, &mut snapshot).to_string();
        for line in [
            "ns/web is nowhere: none of 3 nodes can run it.",
            "    2 nodes  too small: the pod asks for 500m cpu, more than the node has",
            "             node-1, node-2 (NodeResourcesFit)",
            "     1 node  had untolerated taint {gpu: yes}",
            "  - ask for 100m less cpu (400m is free), or let pods that take so much leave: then node-1 can run it",
            "  - tolerate the taint gpu=yes:NoSchedule: then node-3 can run it",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_placed_pod_is_compared() {
        let mut snapshot = snapshot();
        let ask = snapshot.ask(&pod("100m"));
        snapshot.place(&ask, "node-2");
        let text = why(&ask, &mut snapshot).to_string();
        assert!(
            text.starts_with("ns/web runs on node-2.\nAs things are, 2 of 3 nodes could run it."),
            "{text}"
        );
        assert!(text.contains("     node-2     node-1"), "{text}");
    }
}
