//! Claims and volumes, bound and let go.

use serde_json::Value;

use super::*;

/// What a plan does, for tests.
fn lines(plan: &Plan) -> Vec<String> {
    plan.actions.iter().map(ToString::to_string).collect()
}

fn body(plan: &Plan, nth: usize) -> Value {
    match &plan.actions[nth].op {
        client::act::Op::Create { body, .. } => body.clone(),
        client::act::Op::Patch { patch: client::Patch::Merge(patch), .. } => patch.clone(),
        client::act::Op::Status { patch, .. } => patch.clone(),
        other => panic!("{other:?}"),
    }
}

const T: &str = "2026-01-01T00:00:00Z";

fn claim(more: &Value) -> Arc<PersistentVolumeClaim> {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "ns", "uid": "u", "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Pending"},
    });
    overlay(&mut claim, more);
    Arc::new(serde_json::from_value(claim).unwrap())
}

fn volume(name: &str, size: &str, more: &Value) -> Arc<PersistentVolume> {
    let mut volume = json!({
        "metadata": {"name": name, "uid": name},
        "spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "fast",
            "capacity": {"storage": size}},
        "status": {"phase": "Available"},
    });
    overlay(&mut volume, more);
    Arc::new(serde_json::from_value(volume).unwrap())
}

fn overlay(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                overlay(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn class(provisioner: &str, mode: &str) -> Option<Arc<StorageClass>> {
    let class = json!({"metadata": {"name": "fast"}, "provisioner": provisioner, "volumeBindingMode": mode});
    Some(Arc::new(serde_json::from_value(class).unwrap()))
}

fn seen(
    claim: Arc<PersistentVolumeClaim>,
    volumes: Vec<Arc<PersistentVolume>>,
    class: Option<Arc<StorageClass>>,
) -> SeenClaim {
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
    let named = volumes.iter().find(|v| name.is_some() && v.metadata.name == name).cloned();
    SeenClaim { claim, named, volumes, class, default_class: None, base: "/base".into() }
}

fn binding(seen: &SeenClaim) -> Plan {
    VolumeBinder::reconcile(seen, T.parse().unwrap())
}

#[test]
fn the_smallest_volume_that_is_large_enough_is_bound() {
    let volumes = vec![
        volume("large", "10Gi", &json!({})),
        volume("right", "3Gi", &json!({})),
        volume("small", "1Gi", &json!({})),
        volume("other", "2Gi", &json!({"spec": {"storageClassName": "slow"}})),
        volume(
            "taken",
            "2Gi",
            &json!({"spec": {"claimRef": {"name": "x", "namespace": "ns", "uid": "y"}}}),
        ),
    ];
    let plan = binding(&seen(claim(&json!({})), volumes, None));
    assert_eq!(
        lines(&plan),
        ["patch persistentvolumes right", "patch persistentvolumeclaims ns/c"]
    );
    assert_eq!(body(&plan, 0)["spec"]["claimRef"]["uid"], "u");
    assert_eq!(body(&plan, 1)["spec"]["volumeName"], "right");
}

#[test]
fn a_volume_reserved_for_the_claim_goes_first() {
    let own = json!({"spec": {"claimRef": {"name": "c", "namespace": "ns"}}});
    let volumes = vec![volume("right", "2Gi", &json!({})), volume("own", "5Gi", &own)];
    let plan = binding(&seen(claim(&json!({})), volumes, class("x/y", "WaitForFirstConsumer")));
    assert_eq!(lines(&plan)[0], "patch persistentvolumes own");
}

#[test]
fn a_bound_claim_says_so_and_is_lost_with_its_volume() {
    let bound =
        claim(&json!({"metadata": {"annotations": {BOUND: "yes"}}, "spec": {"volumeName": "v"}}));
    let held = volume(
        "v",
        "3Gi",
        &json!({"spec": {"claimRef": {"name": "c", "namespace": "ns", "uid": "u"}}}),
    );
    let plan = binding(&seen(bound.clone(), vec![held], None));
    assert_eq!(lines(&plan), ["status persistentvolumeclaims ns/c"]);
    assert_eq!(body(&plan, 0)["status"]["capacity"]["storage"], "3Gi");
    let plan = binding(&seen(bound, vec![], None));
    assert_eq!(lines(&plan), ["status persistentvolumeclaims ns/c", "event c ClaimLost"]);
}

#[test]
fn our_volumes_are_made_on_the_node_that_was_chosen() {
    let ours = || class(PROVISIONER, "WaitForFirstConsumer");
    assert_eq!(
        lines(&binding(&seen(claim(&json!({})), vec![], ours()))),
        ["event c WaitForFirstConsumer"]
    );
    let chosen = claim(&json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}}));
    let plan = binding(&seen(chosen.clone(), vec![], ours()));
    let made: Arc<PersistentVolume> = serde_json::from_value(body(&plan, 0)).unwrap();
    assert_eq!(made.metadata.name.as_deref(), Some("pvc-u"));
    assert_eq!(body(&plan, 0)["spec"]["local"]["path"], "/base/pvc-u");
    // Then the two are bound.
    let plan = binding(&seen(chosen, vec![made], ours()));
    assert_eq!(lines(&plan), ["patch persistentvolumeclaims ns/c"]);
}

#[test]
fn others_provision_their_own() {
    let plan = binding(&seen(claim(&json!({})), vec![], class("csi.example", "Immediate")));
    assert_eq!(lines(&plan), ["patch persistentvolumeclaims ns/c", "event c ExternalProvisioning"]);
    let none = claim(&json!({"spec": {"storageClassName": ""}}));
    assert_eq!(lines(&binding(&seen(none, vec![], None))), ["event c FailedBinding"]);
    assert_eq!(
        lines(&binding(&seen(claim(&json!({})), vec![], None))),
        ["event c ProvisioningFailed"]
    );
}

#[test]
fn a_claim_without_a_class_gets_the_default_one() {
    let mut seen = seen(claim(&json!({"spec": {"storageClassName": null}})), vec![], None);
    seen.default_class = Some("local-path".into());
    assert_eq!(body(&binding(&seen), 0)["spec"]["storageClassName"], "local-path");
}

fn reclaim(
    volume: &Arc<PersistentVolume>,
    claim: Option<Arc<PersistentVolumeClaim>>,
    at: &str,
) -> Vec<String> {
    let seen = SeenVolume { volume: volume.clone(), claim };
    lines(&VolumeReclaim::reconcile(&seen, at.parse().unwrap()))
}

#[test]
fn volumes_say_how_they_are() {
    let fresh = volume("v", "1Gi", &json!({"status": {"phase": "Pending"}}));
    assert_eq!(reclaim(&fresh, None, T), ["status persistentvolumes v"]);
    let reserved = json!({"spec": {"claimRef": {"name": "c", "namespace": "ns", "uid": "u"}}});
    let held = volume("v", "1Gi", &reserved);
    assert_eq!(reclaim(&held, Some(claim(&json!({}))), T), ["status persistentvolumes v"]);
    let elsewhere = claim(&json!({"spec": {"volumeName": "w"}}));
    assert_eq!(reclaim(&held, Some(elsewhere), T), ["patch persistentvolumes v"]);
}

#[test]
fn our_released_volumes_are_deleted_after_a_moment() {
    let of = |phase: &str, policy: &str| {
        let more = json!({
            "metadata": {"annotations": {PROVISIONED_BY: PROVISIONER}},
            "spec": {"claimRef": {"name": "c", "namespace": "ns", "uid": "u"}, "persistentVolumeReclaimPolicy": policy},
            "status": {"phase": phase, "lastPhaseTransitionTime": T},
        });
        volume("v", "1Gi", &more)
    };
    assert_eq!(reclaim(&of("Bound", "Delete"), None, T), ["status persistentvolumes v"]);
    assert!(reclaim(&of("Released", "Delete"), None, "2026-01-01T00:00:04Z").is_empty());
    assert_eq!(
        reclaim(&of("Released", "Delete"), None, "2026-01-01T00:00:05Z"),
        ["delete persistentvolumes v"]
    );
    assert!(reclaim(&of("Released", "Retain"), None, "2026-01-01T01:00:00Z").is_empty());
}
