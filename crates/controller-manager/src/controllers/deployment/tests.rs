//! A Deployment rolled step by step against sets whose pods come up at once.

use super::*;

fn deployment(replicas: i32, image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]}
            }
        }
    }))
    .unwrap()
}

/// Carries out what a plan says about ReplicaSets; pods are available at once.
fn carry_out(plan: &Plan, sets: &mut Vec<Arc<ReplicaSet>>) {
    for action in &plan.actions {
        match &action.op {
            client::act::Op::Create { body, .. } => {
                let mut set: ReplicaSet = serde_json::from_value(body.clone()).unwrap();
                set.metadata.uid = set.metadata.name.clone();
                sets.push(Arc::new(set));
            }
            client::act::Op::Patch { kind, key, patch: client::Patch::Merge(change), .. }
                if kind.resource == "replicasets" =>
            {
                for set in sets.iter_mut().filter(|s| s.metadata.name.as_deref() == Some(&key.name))
                {
                    let mut new = (**set).clone();
                    if let Some(count) = change["spec"]["replicas"].as_i64() {
                        new.spec.get_or_insert_default().replicas = i32::try_from(count).ok();
                    }
                    for (k, v) in
                        change["metadata"]["annotations"].as_object().into_iter().flatten()
                    {
                        let annotations = new.metadata.annotations.get_or_insert_default();
                        annotations.insert(k.clone(), v.as_str().unwrap_or_default().into());
                    }
                    *set = Arc::new(new);
                }
            }
            _ => {}
        }
    }
    for set in sets {
        let mut new = (**set).clone();
        let count = replicas(&new);
        let status = new.status.get_or_insert_default();
        status.replicas = count;
        status.ready_replicas = Some(count);
        status.available_replicas = Some(count);
        *set = Arc::new(new);
    }
}

fn step(deployment: &Deployment, sets: &mut Vec<Arc<ReplicaSet>>) -> Vec<String> {
    let seen = Seen {
        deployment: Arc::new(deployment.clone()),
        sets: sets.clone(),
        old_pods: false,
        collision: false,
    };
    let plan = Deployments::reconcile(&seen, Timestamp::UNIX_EPOCH);
    carry_out(&plan, sets);
    sets.iter().map(|s| format!("{}", replicas(s))).collect()
}

#[test]
fn a_new_deployment_gets_all_its_pods_at_once() {
    let mut sets = Vec::new();
    assert_eq!(step(&deployment(3, "a"), &mut sets), ["3"]);
    assert_eq!(step(&deployment(3, "a"), &mut sets), ["3"]);
}

#[test]
fn a_roll_never_has_fewer_pods_than_wanted_nor_more_than_the_surge() {
    let mut sets = Vec::new();
    step(&deployment(3, "a"), &mut sets);
    let mut seen = Vec::new();
    for _ in 0..8 {
        seen.push(step(&deployment(3, "b"), &mut sets).join("+"));
    }
    assert_eq!(seen, ["3+1", "2+1", "2+2", "1+2", "1+3", "0+3", "0+3", "0+3"]);
}

#[test]
fn going_back_uses_the_old_set_under_a_new_number() {
    let mut sets = Vec::new();
    step(&deployment(2, "a"), &mut sets);
    for _ in 0..8 {
        step(&deployment(2, "b"), &mut sets);
    }
    for _ in 0..8 {
        step(&deployment(2, "a"), &mut sets);
    }
    assert_eq!(sets.len(), 2);
    assert_eq!((replicas(&sets[0]), revision(&sets[0])), (2, 3));
}

#[test]
fn shares_of_percent_round_as_upstream_rounds() {
    let mut spec = deployment(10, "a").spec.unwrap();
    let rolling = spec.strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
    rolling.max_surge = Some(IntOrString::String("25%".into()));
    rolling.max_unavailable = Some(IntOrString::String("25%".into()));
    assert_eq!(margins(&spec), (3, 2));
}

#[test]
fn scaling_changes_the_set_that_runs() {
    let mut sets = Vec::new();
    step(&deployment(2, "a"), &mut sets);
    assert_eq!(step(&deployment(5, "a"), &mut sets), ["5"]);
    assert_eq!(step(&deployment(0, "a"), &mut sets), ["0"]);
}
