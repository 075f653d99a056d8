//! From what Services ask for to packet rules, and from one set of rules to the next. Pure.
//!
//! Knows nothing of the kernel: `nft` commits the difference. A whole ruleset is made on each change, since that is
//! cheaper than tracking which Service touched which rule; only what differs is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::model::{Backend, Front, Masquerade, Model, Target};

/// A step of the chain of one front. A packet takes the steps in order until one has sent it somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The packet's source will become the node's.
    Mark,
    /// The same, unless a pod sent it.
    MarkOutsiders,
    /// A client that was sent to this target lately is sent there again.
    Again {
        /// The set of such clients.
        set: String,
        /// How long they are remembered.
        timeout_s: u32,
        /// Where to.
        target: Target,
    },
    /// One client in so many is sent to this target and remembered.
    Begin {
        /// The set of clients it is remembered in.
        set: String,
        /// How long.
        timeout_s: u32,
        /// One in how many; 1 is every client that comes this far.
        one_in: u32,
        /// Where to.
        target: Target,
    },
    /// Sent to any of these, by lot.
    Any(Vec<Target>),
}

/// What happens at a front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The chain of this name decides.
    Chain(String),
    /// Nobody serves; the client is told.
    Refuse,
}

/// All rules that depend on Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Clients remembered, by the set's name, and for how many seconds.
    pub sets: BTreeMap<String, u32>,
    /// Steps by the chain's name.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// What happens where.
    pub verdicts: BTreeMap<Front, Verdict>,
    /// Pods that may reach themselves through a Service.
    pub loops: BTreeSet<Ipv4Addr>,
}

/// A change of the kernel's rules; a list of them is applied in order, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make a set of remembered clients.
    AddSet(String, u32),
    /// Make an empty chain.
    AddChain(String),
    /// Take all steps out of a chain.
    Empty(String),
    /// Put steps into an empty chain.
    Fill(String, Vec<Rule>),
    /// Make something happen at a front.
    AddVerdict(Front, Verdict),
    /// Stop that.
    RemoveVerdict(Front, Verdict),
    /// Let a pod reach itself.
    AddLoop(Ipv4Addr),
    /// Stop that.
    RemoveLoop(Ipv4Addr),
    /// Remove an empty chain that nothing leads to.
    RemoveChain(String),
    /// Remove a set that no rule names.
    RemoveSet(String),
}

/// The rules that `model` asks for.
#[must_use]
pub fn ruleset(model: &Model) -> Ruleset {
    let mut rules = Ruleset::default();
    for (front, backend) in &model.fronts {
        if backend.targets.is_empty() {
            rules.verdicts.insert(*front, Verdict::Refuse);
            continue;
        }
        let chain = chain_name(front);
        let steps = steps(&chain, backend, &mut rules.sets);
        rules.chains.insert(chain.clone(), steps);
        rules.verdicts.insert(*front, Verdict::Chain(chain));
        rules.loops.extend(backend.targets.iter().map(|target| target.address));
    }
    rules
}

fn chain_name(front: &Front) -> String {
    match front {
        Front::Address(address, protocol, port) => {
            format!("svc-{address}-{}-{port}", protocol.number())
        }
        Front::NodePort(protocol, port) => format!("port-{}-{port}", protocol.number()),
    }
}

fn steps(chain: &str, backend: &Backend, sets: &mut BTreeMap<String, u32>) -> Vec<Rule> {
    let mut steps = match backend.masquerade {
        Masquerade::Never => Vec::new(),
        Masquerade::Outsiders => vec![Rule::MarkOutsiders],
        Masquerade::Always => vec![Rule::Mark],
    };
    let Some(timeout_s) = backend.affinity_s else {
        steps.push(Rule::Any(backend.targets.clone()));
        return steps;
    };
    // The timeout is part of the name, because a set cannot change its own.
    let set = |target: &Target| format!("{chain}-{}-{}-{timeout_s}s", target.address, target.port);
    for target in &backend.targets {
        sets.insert(set(target), timeout_s);
        steps.push(Rule::Again { set: set(target), timeout_s, target: target.clone() });
    }
    // One in as many as are left, so that each gets the same share.
    let left = (1..=u32::try_from(backend.targets.len()).unwrap_or(u32::MAX)).rev();
    for (one_in, target) in left.zip(&backend.targets) {
        steps.push(Rule::Begin { set: set(target), timeout_s, one_in, target: target.clone() });
    }
    // A full set remembers nobody more, but everybody is sent somewhere.
    steps.push(Rule::Any(backend.targets.clone()));
    steps
}

/// What turns the rules `old` into `new`, in an order that the kernel takes: nothing is named before it is made, nor
/// removed while it is named.
#[must_use]
pub fn diff(old: &Ruleset, new: &Ruleset) -> Vec<Op> {
    let mut ops = Vec::new();
    let added_sets = new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name));
    ops.extend(added_sets.map(|(name, timeout_s)| Op::AddSet(name.clone(), *timeout_s)));
    for (name, steps) in &new.chains {
        match old.chains.get(name) {
            Some(before) if before == steps => continue,
            Some(_) => ops.push(Op::Empty(name.clone())),
            None => ops.push(Op::AddChain(name.clone())),
        }
        ops.push(Op::Fill(name.clone(), steps.clone()));
    }
    for (front, verdict) in &old.verdicts {
        if new.verdicts.get(front) != Some(verdict) {
            ops.push(Op::RemoveVerdict(*front, verdict.clone()));
        }
    }
    for (front, verdict) in &new.verdicts {
        if old.verdicts.get(front) != Some(verdict) {
            ops.push(Op::AddVerdict(*front, verdict.clone()));
        }
    }
    ops.extend(old.loops.difference(&new.loops).map(|pod| Op::RemoveLoop(*pod)));
    ops.extend(new.loops.difference(&old.loops).map(|pod| Op::AddLoop(*pod)));
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        ops.extend([Op::Empty(name.clone()), Op::RemoveChain(name.clone())]);
    }
    let gone = old.sets.keys().filter(|name| !new.sets.contains_key(*name));
    ops.extend(gone.map(|name| Op::RemoveSet(name.clone())));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    const CLUSTER: Front = Front::Address(Ipv4Addr::new(10, 96, 0, 9), Protocol::Tcp, 80);

    fn model(pods: &[u8], affinity_s: Option<u32>) -> Model {
        let targets = pods.iter().map(|last| target(*last)).collect();
        let backend = Backend { targets, affinity_s, masquerade: Masquerade::Outsiders };
        Model { fronts: [(CLUSTER, backend)].into() }
    }

    fn target(last: u8) -> Target {
        Target { address: Ipv4Addr::new(10, 244, 0, last), port: 8080 }
    }

    /// One line for each change, as a newcomer would say it.
    fn text(ops: &[Op]) -> String {
        let to = |t: &Target| format!("{}:{}", t.address, t.port);
        let step = |rule: &Rule| match rule {
            Rule::Mark => "mark".to_owned(),
            Rule::MarkOutsiders => "mark outsiders".to_owned(),
            Rule::Again { target, .. } => format!("again {}", to(target)),
            Rule::Begin { one_in, target, .. } => format!("1/{one_in} {}", to(target)),
            Rule::Any(targets) => {
                format!("any {}", targets.iter().map(to).collect::<Vec<_>>().join(" "))
            }
        };
        let line = |op: &Op| match op {
            Op::AddSet(name, timeout_s) => format!("set {name} {timeout_s}s"),
            Op::AddChain(name) => format!("chain {name}"),
            Op::Empty(name) => format!("empty {name}"),
            Op::Fill(name, steps) => {
                format!("fill {name}: {}", steps.iter().map(step).collect::<Vec<_>>().join(", "))
            }
            Op::AddVerdict(_, Verdict::Chain(name)) => format!("lead to {name}"),
            Op::AddVerdict(_, Verdict::Refuse) => "refuse".into(),
            Op::RemoveVerdict(_, Verdict::Chain(name)) => format!("no more to {name}"),
            Op::RemoveVerdict(_, Verdict::Refuse) => "refuse no more".into(),
            Op::AddLoop(pod) => format!("loop {pod}"),
            Op::RemoveLoop(pod) => format!("no loop {pod}"),
            Op::RemoveChain(name) => format!("remove chain {name}"),
            Op::RemoveSet(name) => format!("remove set {name}"),
        };
        ops.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn check(old: &Model, new: &Model, expected: &str) {
        let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
        assert_eq!(text(&diff(&ruleset(old), &ruleset(new))), expected.join("\n"));
    }

    #[test]
    fn a_new_service_gets_a_chain() {
        check(
            &Model::default(),
            &model(&[5, 6], None),
            "chain svc-10.96.0.9-6-80
             fill svc-10.96.0.9-6-80: mark outsiders, any 10.244.0.5:8080 10.244.0.6:8080
             lead to svc-10.96.0.9-6-80
             loop 10.244.0.5
             loop 10.244.0.6",
        );
    }

    #[test]
    fn a_lost_pod_touches_its_own_chain_only() {
        check(
            &model(&[5, 6], None),
            &model(&[5], None),
            "empty svc-10.96.0.9-6-80
             fill svc-10.96.0.9-6-80: mark outsiders, any 10.244.0.5:8080
             no loop 10.244.0.6",
        );
    }

    #[test]
    fn without_pods_clients_are_refused() {
        check(
            &model(&[5], None),
            &model(&[], None),
            "no more to svc-10.96.0.9-6-80
             refuse
             no loop 10.244.0.5
             empty svc-10.96.0.9-6-80
             remove chain svc-10.96.0.9-6-80",
        );
    }

    #[test]
    fn the_remembered_clients_of_other_pods_stay() {
        check(
            &model(&[5, 6], Some(60)),
            &model(&[5, 7], Some(60)),
            "set svc-10.96.0.9-6-80-10.244.0.7-8080-60s 60s
             empty svc-10.96.0.9-6-80
             fill svc-10.96.0.9-6-80: mark outsiders, again 10.244.0.5:8080, again 10.244.0.7:8080, 1/2 10.244.0.5:8080, 1/1 10.244.0.7:8080, any 10.244.0.5:8080 10.244.0.7:8080
             no loop 10.244.0.6
             loop 10.244.0.7
             remove set svc-10.96.0.9-6-80-10.244.0.6-8080-60s",
        );
    }

    #[test]
    fn nothing_changed_nothing_sent() {
        check(&model(&[5, 6], Some(9)), &model(&[5, 6], Some(9)), "");
    }
}
