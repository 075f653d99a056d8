//! Rules of pods and pod templates.

use crate::object::Value;

/// `Guaranteed`, `Burstable` or `BestEffort`, by the requests and limits of cpu and memory.
pub fn qos_class(spec: &Value) -> &'static str {
    let whole = &spec["resources"];
    let pod_level = !whole["requests"].is_empty() || !whole["limits"].is_empty();
    let all: Vec<&Value> = if pod_level {
        vec![whole]
    } else {
        let lists = [&spec["containers"], &spec["initContainers"]];
        lists.into_iter().flat_map(Value::items).map(|c| &c["resources"]).collect()
    };
    let set = |r: &Value, list: &str, key: &str| {
        let q = r[list][key].as_str().and_then(|s| crate::quantity::Quantity::parse(s).ok());
        q.filter(|q| !q.is_zero())
    };
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for r in all {
        for key in ["cpu", "memory"] {
            let (request, limit) = (set(r, "requests", key), set(r, "limits", key));
            any |= request.is_some() || limit.is_some();
            let same = request.is_none() || request == limit;
            guaranteed &= limit.is_some() && same;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
