//! A DaemonSet step by step, against nodes on which pods come up at once or not at all.

use super::*;
use client::act::Op;

struct Cluster {
    set: DaemonSet,
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// Whether new pods become ready.
    well: bool,
    made: usize,
}

fn set(image: &str, rolling: serde_json::Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "ds", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "ds"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": {
                "metadata": {"labels": {"app": "ds"}},
                "spec": {"containers": [{"name": "c", "image": image}]}
            }
        }
    }))
    .unwrap()
}

fn node(name: &str, taints: serde_json::Value) -> Arc<Node> {
    let node = json!({"metadata": {"name": name}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(node).unwrap())
}

impl Cluster {
    fn new(nodes: &[&str], rolling: serde_json::Value) -> Self {
        let nodes = nodes.iter().map(|name| node(name, json!([]))).collect();
        let set = set("a", rolling);
        Self { set, nodes, pods: Vec::new(), revisions: Vec::new(), well: true, made: 0 }
    }

    fn plan(&self) -> Plan {
        let seen = Seen {
            set: Arc::new(self.set.clone()),
            nodes: self.nodes.clone(),
            own: self.pods.clone(),
            orphans: Vec::new(),
            revisions: self.revisions.clone(),
            taken: BTreeSet::new(),
        };
        DaemonSets::reconcile(&seen, Timestamp::UNIX_EPOCH)
    }

    /// Decides and carries out; how many pods of the newest and of older templates there are then.
    fn step(&mut self) -> (usize, usize) {
        for action in self.plan().actions {
            match action.op {
                Op::Create { kind, body, .. } if kind.resource == "controllerrevisions" => {
                    self.revisions.push(Arc::new(serde_json::from_value(body).unwrap()));
                }
                Op::Create { body, .. } => self.create(serde_json::from_value(body).unwrap()),
                Op::Delete { kind, key, .. } if kind.resource == "controllerrevisions" => {
                    self.revisions.retain(|r| r.metadata.name.as_deref() != Some(&key.name));
                }
                Op::Delete { key, .. } => {
                    self.pods.retain(|p| p.metadata.name.as_deref() != Some(&key.name));
                }
                Op::Patch { kind, key, patch: client::Patch::Merge(change), .. }
                    if kind.resource == "controllerrevisions" =>
                {
                    for revision in &mut self.revisions {
                        if revision.metadata.name.as_deref() == Some(&key.name) {
                            Arc::make_mut(revision).revision = change["revision"].as_i64().unwrap();
                        }
                    }
                }
                _ => {}
            }
        }
        let newest = self.revisions.iter().max_by_key(|r| r.revision).unwrap();
        let new = self.pods.iter().filter(|p| hash_of(p) == revisions::hash(newest)).count();
        (new, self.pods.len() - new)
    }

    fn create(&mut self, mut pod: Pod) {
        self.made += 1;
        pod.metadata.name = Some(format!("ds-{}", self.made));
        pod.metadata.uid.clone_from(&pod.metadata.name);
        let node = node_of(&pod).unwrap().to_owned();
        pod.spec.as_mut().unwrap().node_name = Some(node);
        let ready = if self.well { "True" } else { "False" };
        pod.status = serde_json::from_value(
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}),
        )
        .unwrap();
        self.pods.push(Arc::new(pod));
    }

    fn image(&mut self, image: &str) {
        let spec = self.set.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
    }
}

#[test]
fn each_node_gets_one_and_a_new_node_too() {
    let mut cluster = Cluster::new(&["a", "b"], json!({}));
    assert_eq!(cluster.step(), (2, 0));
    cluster.nodes.push(node("c", json!([])));
    assert_eq!(cluster.step(), (3, 0));
    let deeds: Vec<String> = cluster.plan().actions.iter().map(ToString::to_string).collect();
    assert_eq!(deeds, ["status daemonsets.apps ns/ds"]);
}

#[test]
fn a_taint_keeps_new_pods_away_and_one_that_drives_out_takes_them() {
    let mut cluster = Cluster::new(&["a"], json!({}));
    cluster.nodes.push(node("b", json!([{"key": "k", "effect": "NoSchedule"}])));
    cluster
        .nodes
        .push(node("c", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])));
    assert_eq!(cluster.step(), (2, 0));
    cluster.nodes[0] = node("a", json!([{"key": "k", "effect": "NoSchedule"}]));
    assert_eq!(cluster.step(), (2, 0));
    cluster.nodes[0] = node("a", json!([{"key": "k", "effect": "NoExecute"}]));
    assert_eq!(cluster.step(), (1, 0));
}

#[test]
fn a_roll_takes_down_no_more_than_allowed() {
    let mut cluster = Cluster::new(&["a", "b", "c", "d"], json!({"maxUnavailable": "50%"}));
    cluster.step();
    cluster.image("b");
    let seen: Vec<_> = (0..6).map(|_| cluster.step()).collect();
    assert_eq!(seen, [(0, 2), (2, 2), (2, 0), (4, 0), (4, 0), (4, 0)]);
    assert_eq!(cluster.revisions.len(), 2);
}

#[test]
fn a_broken_template_takes_down_no_more_and_going_back_mends_it() {
    let mut cluster = Cluster::new(&["a", "b", "c"], json!({"maxUnavailable": 1}));
    cluster.step();
    cluster.image("broken");
    cluster.well = false;
    for _ in 0..5 {
        cluster.step();
    }
    assert_eq!(cluster.step(), (1, 2));
    cluster.image("a");
    cluster.well = true;
    let seen: Vec<_> = (0..3).map(|_| cluster.step()).collect();
    assert_eq!(seen.last(), Some(&(3, 0)));
    assert_eq!(cluster.revisions.iter().map(|r| r.revision).collect::<Vec<_>>(), [3, 2]);
}

#[test]
fn a_surge_keeps_the_old_pod_until_the_new_one_is_there() {
    let mut cluster = Cluster::new(&["a", "b"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    cluster.step();
    cluster.image("b");
    let seen: Vec<_> = (0..5).map(|_| cluster.step()).collect();
    assert_eq!(seen, [(1, 2), (2, 1), (2, 0), (2, 0), (2, 0)]);
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut cluster = Cluster::new(&["a"], json!({}));
    let strategy = cluster.set.spec.as_mut().unwrap().update_strategy.as_mut().unwrap();
    strategy.type_ = Some("OnDelete".into());
    cluster.step();
    cluster.image("b");
    assert_eq!(cluster.step(), (0, 1));
    cluster.pods.clear();
    assert_eq!(cluster.step(), (1, 0));
}

#[test]
fn old_history_goes() {
    let mut cluster = Cluster::new(&["a"], json!({}));
    cluster.set.spec.as_mut().unwrap().revision_history_limit = Some(2);
    for image in ["a", "b", "c", "d", "e", "f"] {
        cluster.image(image);
        for _ in 0..4 {
            cluster.step();
        }
    }
    let kept: Vec<i64> = cluster.revisions.iter().map(|r| r.revision).collect();
    assert_eq!(kept, [4, 5, 6]);
}
