//! Where a pod can run: each filter refuses a node with the words upstream uses, or lets it pass. Pure.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use crate::snapshot::{NodeState, host_ports, requests};

/// A filter: why the node is refused, empty if it is not.
pub type Filter = fn(&Pod, &NodeState) -> Vec<String>;

/// All filters, cheap ones first.
pub const FILTERS: &[Filter] = &[unschedulable, name, taints, affinity, ports, resources];

fn refuse(no: bool, why: impl Into<String>) -> Vec<String> {
    if no { vec![why.into()] } else { Vec::new() }
}

/// Whether one of a pod's tolerations covers a taint.
pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && (t.operator.as_deref() == Some("Exists")
                || t.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}

pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

pub(crate) fn node_taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

fn unschedulable(pod: &Pod, state: &NodeState) -> Vec<String> {
    let cordoned = state.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    refuse(cordoned && !tolerates(tolerations(pod), &taint), "node(s) were unschedulable")
}

fn name(pod: &Pod, state: &NodeState) -> Vec<String> {
    let wanted = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    let own = state.node.metadata.name.as_deref().unwrap_or_default();
    refuse(!wanted.is_empty() && wanted != own, "node(s) didn't match the requested node name")
}

fn taints(pod: &Pod, state: &NodeState) -> Vec<String> {
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    let refused =
        node_taints(&state.node).iter().filter(hard).find(|t| !tolerates(tolerations(pod), t));
    refused
        .map(|t| {
            let value = t.value.as_deref().unwrap_or_default();
            format!("node(s) had untolerated taint {{{}: {value}}}", t.key)
        })
        .into_iter()
        .collect()
}

/// Whether a node's labels fulfil one requirement.
fn fulfils(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|v| number(v));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound).is_some_and(|(v, b)| v > b),
        "Lt" => value.and_then(number).zip(bound).is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

/// Whether a node matches a term; an empty term matches none.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| match key {
        "metadata.name" => node.metadata.name.as_deref(),
        _ => None,
    };
    expressions.iter().all(|r| fulfils(r, label(&r.key)))
        && fields.iter().all(|r| fulfils(r, field(&r.key)))
}

fn affinity(pod: &Pod, state: &NodeState) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let labels = state.node.metadata.labels.as_ref();
    let plain = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value));
    let node_affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required =
        node_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let matches = required.is_none_or(|selector| {
        selector.node_selector_terms.iter().any(|term| term_matches(term, &state.node))
    });
    refuse(!plain || !matches, "node(s) didn't match Pod's node affinity/selector")
}

fn ports(pod: &Pod, state: &NodeState) -> Vec<String> {
    let taken = |(address, protocol, number): &(String, String, i32)| {
        state.ports.iter().any(|(a, p, n)| {
            n == number && p == protocol && (a.is_empty() || address.is_empty() || a == address)
        })
    };
    let clash = host_ports(pod).any(|port| taken(&port));
    refuse(clash, "node(s) didn't have free ports for the requested pod ports")
}

fn resources(pod: &Pod, state: &NodeState) -> Vec<String> {
    let mut reasons = Vec::new();
    let most = state.allocatable.of("pods");
    if i64::try_from(state.pods).unwrap_or(i64::MAX) >= most {
        reasons.push("Too many pods".to_owned());
    }
    for (resource, wanted) in requests(pod).iter().filter(|(_, wanted)| *wanted > 0) {
        if wanted > state.allocatable.of(resource) - state.requested.of(resource) {
            reasons.push(format!("Insufficient {resource}"));
        }
    }
    reasons
}
