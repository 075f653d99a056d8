//! The slices of a Service as they come and go.

use super::*;

fn seen(pods: Value, slices: Vec<EndpointSlice>) -> Seen {
    let service = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}
    });
    let pods: Vec<Arc<Pod>> = serde_json::from_value(pods).unwrap();
    let node = json!({"metadata": {"name": "n", "labels": {ZONE: "z"}}});
    let node: Arc<Node> = serde_json::from_value(node).unwrap();
    Seen {
        service: serde_json::from_value(service).unwrap(),
        pods: pods.into_iter().map(|pod| (pod, Some(node.clone()))).collect(),
        slices: slices.into_iter().map(Arc::new).collect(),
        zones: BTreeMap::new(),
    }
}

fn pod(name: &str, ip: &str, ready: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}
    })
}

fn many(count: usize) -> Value {
    (0..count)
        .map(|n| pod(&format!("p{n:03}"), &format!("10.0.{}.{}", n / 250, n % 250), "True"))
        .collect()
}

fn plan(seen: &Seen) -> Plan {
    EndpointSlices::reconcile(seen, Timestamp::UNIX_EPOCH)
}

/// The slices that a plan creates, with names of their own.
fn created(plan: &Plan) -> Vec<EndpointSlice> {
    let bodies = plan.actions.iter().filter_map(|action| match &action.op {
        client::act::Op::Create { body, .. } => Some(body.clone()),
        _ => None,
    });
    let named = bodies.enumerate().map(|(nth, body)| {
        let mut slice: EndpointSlice = serde_json::from_value(body).unwrap();
        slice.metadata.name = Some(format!("web-{nth}"));
        slice
    });
    named.collect()
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.actions.iter().map(|a| a.to_string().replace(".discovery.k8s.io", "")).collect()
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    slice.endpoints.clone().unwrap_or_default()
}

#[test]
fn ready_pods_are_ready_endpoints_at_their_own_ports() {
    let pods = json!([pod("b", "10.0.0.2", "False"), pod("a", "10.0.0.1", "True")]);
    let slice = created(&plan(&seen(pods, vec![]))).remove(0);
    let ready: Vec<Option<bool>> =
        endpoints(&slice).iter().map(|e| e.conditions.as_ref().and_then(|c| c.ready)).collect();
    assert_eq!(ready, [Some(true), Some(false)]);
    assert_eq!(endpoints(&slice)[0].zone.as_deref(), Some("z"));
    assert_eq!(slice.ports.unwrap()[0].port, Some(8080));
}

#[test]
fn a_slice_that_says_it_all_is_left_alone() {
    let pods = many(250);
    let slices = created(&plan(&seen(pods.clone(), vec![])));
    assert_eq!(slices.iter().map(|s| endpoints(s).len()).collect::<Vec<_>>(), [100, 100, 50]);
    let again = plan(&seen(pods, slices));
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn one_pod_more_or_less_changes_one_slice() {
    let slices = created(&plan(&seen(many(250), vec![])));
    assert_eq!(lines(&plan(&seen(many(251), slices.clone()))), ["patch endpointslices ns/web-2"]);
    let mut less = many(250);
    less.as_array_mut().unwrap().remove(0);
    assert_eq!(
        lines(&plan(&seen(less.clone(), slices.clone()))),
        ["patch endpointslices ns/web-0"]
    );
    // One goes and one comes: the slice that changes anyway takes it.
    less.as_array_mut().unwrap().push(pod("new", "10.9.9.9", "True"));
    assert_eq!(lines(&plan(&seen(less, slices.clone()))), ["patch endpointslices ns/web-0"]);
    // What a slice has is what stays.
    let first: Vec<String> =
        endpoints(&slices[0]).into_iter().map(|e| e.addresses[0].clone()).collect();
    let mut left = many(250);
    left.as_array_mut()
        .unwrap()
        .retain(|p| first.iter().any(|ip| p["status"]["podIP"] == json!(ip)));
    let gone = plan(&seen(left, slices));
    assert_eq!(lines(&gone), ["delete endpointslices ns/web-1", "delete endpointslices ns/web-2"]);
}

#[test]
fn the_last_pod_gone_leaves_an_empty_slice() {
    let slices = created(&plan(&seen(many(150), vec![])));
    let plan = plan(&seen(json!([]), slices));
    assert_eq!(lines(&plan), ["patch endpointslices ns/web-0", "delete endpointslices ns/web-1"]);
}

#[test]
fn a_pod_that_ends_serves_but_is_not_ready() {
    let mut ending = pod("a", "10.0.0.1", "True");
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let slice = created(&plan(&seen(json!([ending]), vec![]))).remove(0);
    let conditions = endpoints(&slice)[0].conditions.clone().unwrap();
    let said = (conditions.ready, conditions.serving, conditions.terminating);
    assert_eq!(said, (Some(false), Some(true), Some(true)));
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut both = pod("a", "10.0.0.1", "True");
    both["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    let mut seen = seen(json!([both]), vec![]);
    let families = vec!["IPv6".to_owned(), "IPv4".to_owned()];
    Arc::make_mut(&mut seen.service).spec.as_mut().unwrap().ip_families = Some(families);
    let slices = created(&plan(&seen));
    let said: Vec<(String, String)> = slices
        .iter()
        .map(|s| (s.address_type.clone(), endpoints(s)[0].addresses[0].clone()))
        .collect();
    assert_eq!(said, [("IPv4".into(), "10.0.0.1".into()), ("IPv6".into(), "fd00::1".into())]);
}

#[test]
fn endpoints_of_somebody_else_are_mirrored() {
    use super::mirroring::{EndpointsMirror, Seen};
    let endpoints = json!({
        "metadata": {"name": "db", "namespace": "ns", "uid": "e", "labels": {"mine": "yes"}},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]
    });
    let seen = |slices| Seen {
        endpoints: Some(serde_json::from_value(endpoints.clone()).unwrap()),
        slices,
    };
    let slices = created(&EndpointsMirror::reconcile(&seen(Vec::new()), Timestamp::UNIX_EPOCH));
    assert_eq!(
        slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(slices[0].metadata.labels.as_ref().unwrap()["mine"], "yes");
    let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
    let again = EndpointsMirror::reconcile(&seen(slices.clone()), Timestamp::UNIX_EPOCH);
    assert!(again.is_empty(), "{again:?}");
    let gone = Seen { endpoints: None, slices };
    assert_eq!(EndpointsMirror::reconcile(&gone, Timestamp::UNIX_EPOCH).actions.len(), 2);
}
