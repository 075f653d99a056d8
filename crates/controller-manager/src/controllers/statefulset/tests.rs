//! A StatefulSet step by step, against pods that come up at once or not at all.

use super::*;
use client::act::Op;
use k8s_openapi::Metadata as _;

struct Cluster {
    set: StatefulSet,
    pods: Vec<Arc<Pod>>,
    claims: Vec<Arc<PersistentVolumeClaim>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// Images whose pods never become ready.
    broken: &'static str,
}

fn cluster(replicas: i32, more: Value) -> Cluster {
    let mut set = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "s", "generation": 1},
        "spec": {
            "replicas": replicas,
            "serviceName": "web",
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "a"}]}
            }
        }
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        set["spec"][key] = value.clone();
    }
    let set = serde_json::from_value(set).unwrap();
    let (pods, claims, revisions) = (Vec::new(), Vec::new(), Vec::new());
    Cluster { set, pods, claims, revisions, broken: "broken" }
}

impl Cluster {
    fn plan(&self) -> Plan {
        let seen = Seen {
            set: Arc::new(self.set.clone()),
            own: self.pods.clone(),
            orphans: Vec::new(),
            claims: self.claims.clone(),
            revisions: self.revisions.clone(),
            taken: BTreeSet::new(),
        };
        StatefulSets::reconcile(&seen, Timestamp::UNIX_EPOCH)
    }

    /// Decides and carries out; the images by number.
    fn step(&mut self) -> String {
        for action in self.plan().actions {
            self.carry_out(action.op);
        }
        let mut pods: Vec<(i32, String)> = Vec::new();
        for pod in &self.pods {
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            pods.push((ordinal(&self.set, pod).unwrap(), image));
        }
        pods.sort();
        pods.iter().map(|(n, image)| format!("{n}{image}")).collect::<Vec<_>>().join(" ")
    }

    fn steps(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.step()).collect()
    }

    fn carry_out(&mut self, op: Op) {
        match op {
            Op::Create { kind, body, .. } => match kind.resource.as_str() {
                "pods" => {
                    let mut pod: Pod = serde_json::from_value(body).unwrap();
                    pod.metadata.uid.clone_from(&pod.metadata.name);
                    let image = pod.spec.as_ref().unwrap().containers[0].image.clone();
                    let ready =
                        if image.as_deref() == Some(self.broken) { "False" } else { "True" };
                    pod.status = serde_json::from_value(json!({"phase": "Running",
                        "conditions": [{"type": "Ready", "status": ready}]}))
                    .unwrap();
                    self.pods.push(Arc::new(pod));
                }
                "persistentvolumeclaims" => {
                    self.claims.push(Arc::new(serde_json::from_value(body).unwrap()));
                }
                _ => self.revisions.push(Arc::new(serde_json::from_value(body).unwrap())),
            },
            Op::Delete { key, .. } => {
                self.pods.retain(|p| p.metadata.name.as_deref() != Some(&key.name));
            }
            Op::Status { patch, .. } => {
                let mut status = json!(self.set.status);
                for (key, value) in patch["status"].as_object().unwrap() {
                    status[key] = value.clone();
                }
                self.set.status = serde_json::from_value(status).unwrap();
            }
            Op::Patch { kind, key, patch: client::Patch::Merge(change), .. } => {
                if kind.resource == "controllerrevisions" {
                    for revision in &mut self.revisions {
                        if revision.metadata.name.as_deref() == Some(&key.name) {
                            Arc::make_mut(revision).revision = change["revision"].as_i64().unwrap();
                        }
                    }
                }
                for claim in &mut self.claims {
                    if claim.metadata.name.as_deref() == Some(&key.name) {
                        let owners = change["metadata"]["ownerReferences"].clone();
                        let owners = serde_json::from_value(owners).unwrap();
                        Arc::make_mut(claim).metadata_mut().owner_references = owners;
                    }
                }
            }
            _ => {}
        }
    }

    fn spec(&mut self) -> &mut StatefulSetSpec {
        self.set.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
    }

    fn lose(&mut self, name: &str) {
        self.pods.retain(|p| p.metadata.name.as_deref() != Some(name));
    }
}

#[test]
fn pods_come_and_go_one_after_the_other() {
    let mut cluster = cluster(3, json!({}));
    assert_eq!(cluster.steps(4), ["0a", "0a 1a", "0a 1a 2a", "0a 1a 2a"]);
    cluster.step();
    assert!(cluster.plan().is_empty(), "{:?}", cluster.plan());
    cluster.spec().replicas = Some(1);
    assert_eq!(cluster.steps(3), ["0a 1a", "0a", "0a"]);
}

#[test]
fn a_pod_has_a_name_a_number_and_claims() {
    let template = json!([{"metadata": {"name": "data"}, "spec": {}}]);
    let mut cluster =
        cluster(1, json!({"volumeClaimTemplates": template, "ordinals": {"start": 5}}));
    cluster.step();
    let pod = &cluster.pods[0];
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-5"), Some("web")));
    let labels = pod.metadata.labels.as_ref().unwrap();
    assert_eq!((labels[POD_NAME].as_str(), labels[POD_INDEX].as_str()), ("web-5", "5"));
    assert_eq!(labels[HASH], cluster.revisions[0].metadata.name.clone().unwrap());
    let claim = &spec.volumes.as_ref().unwrap()[0].persistent_volume_claim;
    assert_eq!(claim.as_ref().unwrap().claim_name, "data-web-5");
    assert_eq!(cluster.claims[0].metadata.name.as_deref(), Some("data-web-5"));
    cluster.lose("web-5");
    cluster.step();
    assert_eq!((cluster.pods.len(), cluster.claims.len()), (1, 1));
}

#[test]
fn one_that_is_not_ready_holds_up_the_others_unless_they_are_parallel() {
    let mut ordered = cluster(3, json!({}));
    ordered.broken = "a";
    assert_eq!(ordered.steps(3), ["0a", "0a", "0a"]);
    let mut parallel = cluster(3, json!({"podManagementPolicy": "Parallel"}));
    parallel.broken = "a";
    assert_eq!(parallel.steps(1), ["0a 1a 2a"]);
}

#[test]
fn a_roll_goes_from_the_highest_number_down() {
    let mut cluster = cluster(3, json!({}));
    cluster.steps(4);
    cluster.image("b");
    assert_eq!(
        cluster.steps(8),
        ["0a 1a", "0a 1a 2b", "0a 2b", "0a 1b 2b", "1b 2b", "0b 1b 2b", "0b 1b 2b", "0b 1b 2b"]
    );
    let status = cluster.set.status.as_ref().unwrap();
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(3), Some(3)));
}

#[test]
fn a_partition_keeps_the_lower_numbers_as_they_were() {
    let mut cluster = cluster(
        3,
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
    );
    cluster.steps(4);
    cluster.image("b");
    assert_eq!(cluster.steps(4).last().unwrap(), "0a 1a 2b");
    // One that is lost comes back as it was.
    cluster.lose("web-1");
    assert_eq!(cluster.steps(2).last().unwrap(), "0a 1a 2b");
    cluster.lose("web-2");
    assert_eq!(cluster.steps(2).last().unwrap(), "0a 1a 2b");
}

#[test]
fn as_many_as_may_be_missing_are_updated_at_once() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}});
    let more = json!({"updateStrategy": rolling, "podManagementPolicy": "Parallel"});
    let mut cluster = cluster(3, more);
    cluster.steps(2);
    cluster.image("b");
    assert_eq!(cluster.steps(4), ["0a", "0a 1b 2b", "1b 2b", "0b 1b 2b"]);
}

#[test]
fn a_broken_revision_is_taken_back() {
    let mut cluster = cluster(2, json!({}));
    cluster.steps(3);
    cluster.image("broken");
    assert_eq!(cluster.steps(4).last().unwrap(), "0a 1broken");
    cluster.image("a");
    assert_eq!(cluster.steps(3), ["0a", "0a 1a", "0a 1a"]);
}

#[test]
fn on_delete_updates_what_is_deleted() {
    let mut cluster = cluster(2, json!({"updateStrategy": {"type": "OnDelete"}}));
    cluster.steps(3);
    cluster.image("b");
    assert_eq!(cluster.steps(2).last().unwrap(), "0a 1a");
    cluster.lose("web-0");
    assert_eq!(cluster.step(), "0b 1a");
}

#[test]
fn claims_go_with_the_set_or_with_the_pod_as_the_policy_says() {
    let mut cluster = cluster(
        2,
        json!({
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}
        }),
    );
    cluster.steps(3);
    let owners = |c: &Cluster, i: usize| -> Vec<String> {
        c.claims[i].metadata.owner_references.iter().flatten().map(|o| o.kind.clone()).collect()
    };
    assert_eq!(
        (owners(&cluster, 0), owners(&cluster, 1)),
        (vec!["StatefulSet".into()], vec!["StatefulSet".to_owned()])
    );
    cluster.spec().replicas = Some(1);
    cluster.step();
    assert_eq!(
        (owners(&cluster, 0), owners(&cluster, 1)),
        (vec!["StatefulSet".into()], vec!["Pod".to_owned()])
    );
}
