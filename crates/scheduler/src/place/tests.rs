//! Placements of single pods by table, and of random pods in random clusters against a slow form of the rules.

use std::sync::Arc;

use client::Key;
use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::Budget;

fn node(name: &str, more: &Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}}
    });
    merge(&mut node, more);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn merge(to: &mut Value, from: &Value) {
    match from.as_object() {
        Some(members) => members.iter().for_each(|(key, value)| merge(&mut to[key], value)),
        None => *to = from.clone(),
    }
}

fn snapshot(nodes: &[(&str, Value)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    nodes.iter().for_each(|(name, more)| snapshot.put_node(node(name, more)));
    snapshot
}

/// A pod of one container that asks for `cpu`.
fn pod(name: &str, cpu: &str, more: &Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}
    });
    merge(&mut pod, more);
    serde_json::from_value(pod).unwrap()
}

/// Places a pod and, if it has a node, counts it. The node's name, or the message.
fn run(snapshot: &mut Snapshot, pod: &Pod) -> Result<String, String> {
    let ask = snapshot.ask(pod);
    match place(&ask, snapshot, 0).0 {
        Placement::Node(node) => {
            snapshot.place(&ask, &node);
            Ok(node)
        }
        Placement::Nowhere(nowhere) => Err(nowhere.message),
    }
}

/// Puts a pod on a node, whatever filters say of it.
fn there(snapshot: &mut Snapshot, pod: &Pod, node: &str) {
    let ask = snapshot.ask(pod);
    snapshot.place(&ask, node);
}

fn zone(zone: &str) -> Value {
    json!({"metadata": {"labels": {"z": zone}}})
}

fn anti(app: &str, key: &str) -> Value {
    let term = json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}]);
    json!({"spec": {"affinity": {"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": term}}}})
}

fn affine(app: &str, key: &str) -> Value {
    let term = json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}]);
    json!({"spec": {"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": term}}}})
}

fn labelled(mut more: Value, app: &str) -> Value {
    more["metadata"]["labels"]["app"] = json!(app);
    more
}

#[test]
fn pods_of_one_owner_are_spread() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let owner = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}
    ]}});
    let seen: Vec<_> = (0..4)
        .map(|i| run(&mut snapshot, &pod(&format!("p{i}"), "100m", &owner)).unwrap())
        .collect();
    assert_eq!(seen, ["a", "b", "a", "b"]);
}

#[test]
fn the_reason_counts_the_nodes() {
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let nodes = [("a", json!({})), ("b", json!({"spec": {"unschedulable": true}})), ("c", taint)];
    assert_eq!(
        run(&mut snapshot(&nodes), &pod("p", "3", &json!({}))).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, \
         1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/3 nodes are \
         available: 3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn without_nodes_it_says_so() {
    let nowhere = run(&mut Snapshot::default(), &pod("p", "1", &json!({})));
    assert_eq!(nowhere.unwrap_err(), "no nodes available to schedule pods");
}

#[test]
fn a_selector_decides() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let wanted = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}});
    assert_eq!(run(&mut snapshot, &pod("p", "1", &wanted)).unwrap(), "b");
}

#[test]
fn a_pod_that_names_its_node_by_affinity_asks_no_other() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let term =
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
    let wanted = json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}});
    assert_eq!(run(&mut snapshot, &pod("p", "1", &wanted)).unwrap(), "b");
    let full = run(&mut snapshot, &pod("q", "2", &wanted)).unwrap_err();
    assert!(
        full.starts_with(
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        ),
        "{full}"
    );
}

#[test]
fn anti_affinity_holds_both_ways() {
    let mut snapshot = snapshot(&[("a", zone("1")), ("b", zone("1")), ("c", zone("2"))]);
    there(&mut snapshot, &pod("x", "0", &labelled(json!({}), "x")), "a");
    // The new one says so.
    assert_eq!(run(&mut snapshot, &pod("p", "0", &anti("x", "z"))).unwrap(), "c");
    // The one that is there said so.
    let nowhere = run(
        &mut snapshot,
        &pod("y", "0", &labelled(json!({"spec": {"nodeSelector": {"z": "2"}}}), "x")),
    );
    let why = nowhere.unwrap_err();
    assert!(why.contains("1 node(s) didn't satisfy existing pods anti-affinity rules"), "{why}");
}

#[test]
fn the_first_of_its_kind_may_go_anywhere_and_others_follow() {
    let mut snapshot = snapshot(&[("a", zone("1")), ("b", zone("2"))]);
    let alone = run(&mut snapshot, &pod("p", "0", &affine("x", "z"))).unwrap_err();
    assert!(alone.contains("2 node(s) didn't match pod affinity rules"), "{alone}");
    let kin = labelled(affine("x", "z"), "x");
    let first = run(&mut snapshot, &pod("q", "0", &kin)).unwrap();
    assert_eq!(run(&mut snapshot, &pod("r", "0", &kin)).unwrap(), first);
}

#[test]
fn namespaces_are_chosen_by_their_labels() {
    let mut snapshot = snapshot(&[("a", zone("1")), ("b", zone("2"))]);
    snapshot.namespaces.insert("ns".into(), [("team".to_owned(), "red".to_owned())].into());
    there(&mut snapshot, &pod("x", "0", &labelled(json!({}), "x")), "a");
    let mut shy = anti("x", "z");
    let term = &mut shy["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [0];
    term["namespaceSelector"] = json!({"matchLabels": {"team": "red"}});
    shy["metadata"]["namespace"] = json!("other");
    assert_eq!(run(&mut snapshot, &pod("p", "0", &shy)).unwrap(), "b");
}

#[test]
fn hard_spread_keeps_the_skew() {
    let nodes = [("a", zone("1")), ("b", zone("1")), ("c", zone("2")), ("d", json!({}))];
    let mut snapshot = snapshot(&nodes);
    let even = labelled(
        json!({"spec": {"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "x"}}
        }]}}),
        "x",
    );
    let zones: Vec<_> = (0..4)
        .map(|i| {
            if run(&mut snapshot, &pod(&format!("p{i}"), "0", &even)).unwrap() == "c" {
                2
            } else {
                1
            }
        })
        .collect();
    assert_eq!(zones.iter().filter(|z| **z == 1).count(), 2);
    // Zone 2 is closed: one more in zone 1 is allowed, and no second.
    snapshot.put_node(node(
        "c",
        &json!({"metadata": {"labels": {"z": "2"}}, "spec": {"unschedulable": true}}),
    ));
    assert!(run(&mut snapshot, &pod("q", "0", &even)).is_ok());
    let why = run(&mut snapshot, &pod("r", "0", &even)).unwrap_err();
    let counts = "1 node(s) didn't match pod topology spread constraints (missing required label), \
                  1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints";
    assert!(why.contains(counts), "{why}");
}

#[test]
fn fewer_domains_than_asked_for_count_as_an_empty_one() {
    let mut snapshot = snapshot(&[("a", zone("1")), ("b", zone("2"))]);
    let even = labelled(
        json!({"spec": {"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 3,
            "labelSelector": {"matchLabels": {"app": "x"}}
        }]}}),
        "x",
    );
    assert!(run(&mut snapshot, &pod("p", "0", &even)).is_ok());
    assert!(run(&mut snapshot, &pod("q", "0", &even)).is_ok());
    assert!(run(&mut snapshot, &pod("r", "0", &even)).is_err());
}

#[test]
fn the_least_important_go_and_no_more_than_needed() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let of = |priority: i32| json!({"spec": {"priority": priority}});
    there(&mut snapshot, &pod("a1", "1", &of(5)), "a");
    there(&mut snapshot, &pod("a2", "1", &of(1)), "a");
    there(&mut snapshot, &pod("b1", "2", &of(3)), "b");
    let ask = snapshot.ask(&pod("p", "1", &of(10)));
    let (Placement::Nowhere(nowhere), _) = place(&ask, &snapshot, 0) else { panic!("a place") };
    let preemption = nowhere.preemption.expect("room can be made");
    assert_eq!(preemption.node, "a");
    assert_eq!(
        preemption.victims.iter().map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(),
        ["a2"]
    );
    // What is made free is kept for it.
    snapshot.nominate(&ask, "a");
    snapshot.forget(&client::Key::new("ns", "a2"));
    assert!(run(&mut snapshot, &pod("q", "1", &of(7))).is_err());
    assert_eq!(run(&mut snapshot, &pod("p", "1", &of(10))).unwrap(), "a");
}

#[test]
fn a_budget_is_spared_where_that_is_possible() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    there(&mut snapshot, &pod("a1", "2", &labelled(json!({}), "x")), "a");
    there(&mut snapshot, &pod("b1", "2", &json!({"spec": {"priority": 4}})), "b");
    let selector = serde_json::from_value(json!({"matchLabels": {"app": "x"}})).unwrap();
    let budget = Budget {
        namespace: "ns".into(),
        selector: crate::ask::selector(Some(&selector)),
        allowed: 0,
        disrupted: std::collections::BTreeSet::new(),
    };
    snapshot.budgets.insert(client::Key::new("ns", "x"), budget);
    let ask = snapshot.ask(&pod("p", "1", &json!({"spec": {"priority": 10}})));
    let (Placement::Nowhere(nowhere), _) = place(&ask, &snapshot, 0) else { panic!("a place") };
    assert_eq!(nowhere.preemption.unwrap().node, "b");
}

/// A claim that is one pod's alone keeps others away everywhere, until that pod goes, or has to for a more important one.
#[test]
fn a_claim_of_one_pod_is_not_shared() {
    let mut snapshot = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let claim = json!({"metadata": {"name": "c", "namespace": "ns", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v", "accessModes": ["ReadWriteOncePod"]}});
    let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOncePod"]}});
    let key = Key::new("ns", "c");
    snapshot.storage.claim_changed(&key, serde_json::from_value(claim).ok().as_ref());
    snapshot.storage.volume_changed("v", serde_json::from_value(volume).ok().as_ref());
    let uses =
        json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}});
    there(&mut snapshot, &pod("first", "1", &uses), "a");
    there(&mut snapshot, &pod("other", "1", &json!({})), "b");
    let why = run(&mut snapshot, &pod("second", "1", &uses)).unwrap_err();
    let wanted = "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and \
        ReadWriteOncePod access mode.";
    assert!(why.starts_with(wanted), "{why}");

    let mut important = uses.clone();
    important["spec"]["priority"] = json!(10);
    let ask = snapshot.ask(&pod("important", "1", &important));
    let Placement::Nowhere(nowhere) = place(&ask, &snapshot, 0).0 else { panic!("it was placed") };
    let preemption = nowhere.preemption.expect("the first can go");
    assert_eq!((preemption.node.as_str(), preemption.victims[0].0.name.as_str()), ("a", "first"));

    snapshot.forget(&Key::new("ns", "first"));
    assert!(snapshot.users(&key).is_empty());
    run(&mut snapshot, &pod("second", "1", &uses)).unwrap();
    assert_eq!(snapshot.users(&key).len(), 1);
}

#[test]
fn who_never_preempts_and_who_has_nobody_to_preempt_are_told() {
    let mut snapshot = snapshot(&[("a", json!({}))]);
    there(&mut snapshot, &pod("a1", "2", &json!({})), "a");
    let never = json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}});
    let why = run(&mut snapshot, &pod("p", "1", &never)).unwrap_err();
    assert!(why.ends_with("preemption: not eligible due to preemptionPolicy=Never."), "{why}");
    let why = run(&mut snapshot, &pod("p", "1", &json!({}))).unwrap_err();
    assert!(why.ends_with("1 No preemption victims found for incoming pod."), "{why}");
}

#[test]
fn an_image_that_is_there_and_preferences_count() {
    let image = json!({"status": {"images": [{"names": ["big:1"], "sizeBytes": 900_000_000}]}});
    let mut snapshot = snapshot(&[("a", json!({})), ("b", image)]);
    let mut wanted = pod("p", "0", &json!({}));
    wanted.spec.as_mut().unwrap().containers[0].image = Some("big:1".into());
    assert_eq!(run(&mut snapshot, &wanted).unwrap(), "b");
    let soft = json!({"spec": {"affinity": {"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm":
            {"labelSelector": {}, "topologyKey": "kubernetes.io/hostname"}}]}}}});
    assert_eq!(run(&mut snapshot, &pod("q", "0", &soft)).unwrap(), "a");
}

/// A random cluster: nodes by zone, taint and size; pods by app, size, priority and rules.
fn pods() -> impl Strategy<Value = Vec<Value>> {
    let app = || prop::sample::select(vec!["x", "y"]);
    let key = || prop::sample::select(vec!["z", "kubernetes.io/hostname"]);
    let rule = prop_oneof![
        3 => Just(json!({})),
        1 => (app(), key()).prop_map(|(app, key)| anti(app, key)),
        1 => (app(), key()).prop_map(|(app, key)| affine(app, key)),
        1 => (app(), key(), 1..3).prop_map(|(app, key, skew)| json!({"spec": {
            "topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": key,
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}}}]
        }})),
    ];
    let one = (rule, app(), 0..900_i32, any::<bool>(), 0..3_i32).prop_map(
        |(rule, app, cpu, tolerant, port)| {
            let mut more = labelled(rule, app);
            if tolerant {
                more["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
            }
            let ports =
                if port == 0 { json!([]) } else { json!([{"containerPort": 1, "hostPort": port}]) };
            more["spec"]["containers"] = json!([{"name": "c", "ports": ports,
                "resources": {"requests": {"cpu": format!("{cpu}m")}}}]);
            more
        },
    );
    prop::collection::vec(one, 1..25)
}

fn nodes() -> impl Strategy<Value = Vec<Value>> {
    let zone = prop::sample::select(vec!["1", "2", "3"]);
    let one = (zone, any::<bool>(), 1..4_i32).prop_map(|(z, tainted, cpu)| {
        let mut more = zone_node(z);
        if tainted {
            more["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        }
        more["status"]["allocatable"]["cpu"] = json!(cpu.to_string());
        more
    });
    prop::collection::vec(one, 1..7)
}

fn zone_node(name: &str) -> Value {
    json!({"metadata": {"labels": {"z": name}}, "spec": {}, "status": {"allocatable": {}}})
}

/// The slow and obvious form of the hard rules, on JSON: whether `pod` may run on node `at`, with `placed` there.
fn allowed(nodes: &[Value], placed: &[(Value, usize)], pod: &Value, at: usize) -> bool {
    let label = |node: usize, key: &Value| -> Value {
        if key == "z" { nodes[node]["metadata"]["labels"]["z"].clone() } else { json!(node) }
    };
    let cpu = |pod: &Value| -> i64 {
        let text = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"].as_str().unwrap();
        text.trim_end_matches('m').parse().unwrap()
    };
    let app = |pod: &Value| pod["metadata"]["labels"]["app"].clone();
    let means =
        |term: &Value, other: &Value| term["labelSelector"]["matchLabels"]["app"] == app(other);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = |pod: &Value, kind: &str| -> Vec<Value> {
        pod["spec"]["affinity"][kind][required].as_array().cloned().unwrap_or_default()
    };
    let here = || placed.iter().filter(|(_, node)| *node == at).map(|(other, _)| other);
    let whole: i64 =
        nodes[at]["status"]["allocatable"]["cpu"].as_str().unwrap().parse::<i64>().unwrap() * 1000;
    let port = |pod: &Value| pod["spec"]["containers"][0]["ports"][0]["hostPort"].as_i64();
    let tolerates = pod["spec"]["tolerations"].is_array();
    let fits = here().map(cpu).sum::<i64>() + cpu(pod) <= whole || cpu(pod) == 0;
    let port_free = port(pod).is_none() || here().all(|other| port(other) != port(pod));
    let untainted = tolerates || !nodes[at]["spec"]["taints"].is_array();
    let near = |term: &Value, node: usize| {
        label(node, &term["topologyKey"]) == label(at, &term["topologyKey"])
    };
    let anti_own = terms(pod, "podAntiAffinity")
        .iter()
        .all(|t| !placed.iter().any(|(other, node)| means(t, other) && near(t, *node)));
    let anti_others = placed.iter().all(|(other, node)| {
        !terms(other, "podAntiAffinity").iter().any(|t| means(t, pod) && near(t, *node))
    });
    let wanted = terms(pod, "podAffinity");
    let affinity = wanted.iter().all(|t| {
        placed.iter().any(|(other, node)| means(t, other) && near(t, *node))
            || (means(t, pod) && !placed.iter().any(|(other, _)| means(t, other)))
    });
    let constraints =
        pod["spec"]["topologySpreadConstraints"].as_array().cloned().unwrap_or_default();
    let spread = constraints.iter().all(|c| {
        let count = |domain: &Value| {
            let there = |(other, node): &&(Value, usize)| {
                means(c, other) && label(*node, &c["topologyKey"]) == *domain
            };
            i64::try_from(placed.iter().filter(there).count()).unwrap()
        };
        let own = label(at, &c["topologyKey"]);
        let least = (0..nodes.len()).map(|n| count(&label(n, &c["topologyKey"]))).min().unwrap();
        count(&own) + i64::from(means(c, pod)) - least <= c["maxSkew"].as_i64().unwrap()
    });
    fits && port_free && untainted && anti_own && anti_others && affinity && spread
}

proptest! {
    /// A pod gets a node that the slow checker allows, and none only where it allows none.
    #[test]
    fn placements_keep_every_hard_rule(nodes in nodes(), pods in pods()) {
        let mut snapshot = Snapshot::default();
        for (i, more) in nodes.iter().enumerate() {
            let mut more = more.clone();
            more["metadata"]["labels"]["kubernetes.io/hostname"] = json!(format!("n{i}"));
            snapshot.put_node(node(&format!("n{i}"), &more));
        }
        let mut placed: Vec<(Value, usize)> = Vec::new();
        for (i, more) in pods.iter().enumerate() {
            let pod = pod(&format!("p{i}"), "0", more);
            let may: Vec<usize> =
                (0..nodes.len()).filter(|at| allowed(&nodes, &placed, more, *at)).collect();
            match run(&mut snapshot, &pod) {
                Ok(name) => {
                    let at: usize = name[1..].parse().unwrap();
                    prop_assert!(may.contains(&at), "p{} on {}, allowed {:?}", i, name, may);
                    placed.push((more.clone(), at));
                }
                Err(why) => prop_assert!(may.is_empty(), "p{} nowhere ({}), allowed {:?}", i, why, may),
            }
        }
    }

    /// Once the victims are gone the pod has a place on their node, and all of them are less important.
    #[test]
    fn preemption_makes_room_and_spares_the_important(
        nodes in nodes(),
        pods in pods(),
        priorities in prop::collection::vec(0..4_i32, 25),
    ) {
        let mut snapshot = Snapshot::default();
        for (i, more) in nodes.iter().enumerate() {
            snapshot.put_node(node(&format!("n{i}"), more));
        }
        for (i, (more, priority)) in pods.iter().zip(&priorities).enumerate() {
            let mut more = more.clone();
            more["spec"]["priority"] = json!(priority);
            let ask = snapshot.ask(&pod(&format!("p{i}"), "0", &more));
            match place(&ask, &snapshot, i).0 {
                Placement::Node(node) => snapshot.place(&ask, &node),
                Placement::Nowhere(nowhere) => {
                    let Some(preemption) = nowhere.preemption else { continue };
                    for (key, _) in &preemption.victims {
                        let victim = snapshot.placed(key).unwrap();
                        prop_assert_eq!(&victim.node, &preemption.node);
                        prop_assert!(victim.priority < *priority);
                        snapshot.forget(key);
                    }
                    let id = snapshot.number(&preemption.node).unwrap();
                    let cycle = Cycle::new(&ask, &snapshot);
                    let refusal = cycle.refusal(id, snapshot.node(id).unwrap());
                    prop_assert_eq!(refusal, None);
                    snapshot.place(&ask, &preemption.node);
                }
            }
        }
    }
}
