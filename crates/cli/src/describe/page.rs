//! A page of headings and values in columns, and the kinds that fit on it without more. Pure.

use api::object::{Map, Value};
use api::quantity::Quantity;
use api::time::Timestamp;

use super::{items, joined, pairs, plain, text};

/// Blanks between columns.
const GAP: usize = 2;

/// Lines whose cells are separated by tabs until [`Page::text`].
#[derive(Debug)]
pub(super) struct Page {
    lines: Vec<String>,
    now: Timestamp,
}

impl Page {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { lines: Vec::new(), now }
    }

    /// A line of cells, `level` steps in.
    pub(super) fn line(&mut self, level: usize, cells: &[&str]) {
        self.lines.push(format!("{}{}", "  ".repeat(level), cells.join("\t")));
    }

    /// A heading with its value.
    pub(super) fn put(&mut self, level: usize, heading: &str, value: impl AsRef<str>) {
        let value = if value.as_ref().is_empty() { "<none>" } else { value.as_ref() };
        self.line(level, &[&format!("{heading}:"), value]);
    }

    /// A heading with values below each other.
    pub(super) fn list(&mut self, level: usize, heading: &str, values: &[String]) {
        self.put(level, heading, values.first().map_or("<none>", String::as_str));
        for value in values.iter().skip(1) {
            self.line(level, &["", value]);
        }
    }

    /// What every object begins with.
    pub(super) fn head(&mut self, object: &Value) {
        self.put(0, "Name", api::meta::name(object));
        if !api::meta::namespace(object).is_empty() {
            self.put(0, "Namespace", api::meta::namespace(object));
        }
    }

    pub(super) fn labels(&mut self, level: usize, object: &Value) {
        self.list(level, "Labels", &pairs(object, &["metadata", "labels"]));
    }

    pub(super) fn annotations(&mut self, level: usize, object: &Value) {
        let all = object.at(&["metadata", "annotations"]);
        let shown = all
            .into_iter()
            .flat_map(Value::members)
            .filter(|(key, _)| *key != "kubectl.kubernetes.io/last-applied-configuration")
            .map(|(key, value)| format!("{key}: {}", plain(value)))
            .collect::<Vec<_>>();
        self.list(level, "Annotations", &shown);
    }

    /// A moment as people write it.
    pub(super) fn moment(&mut self, level: usize, heading: &str, at: Option<&Value>) {
        let shown = at.and_then(Value::as_str).and_then(moment);
        self.put(level, heading, shown.unwrap_or_else(|| "<unset>".to_owned()));
    }

    /// A table of the conditions; `columns` are their headings and fields.
    pub(super) fn conditions(&mut self, object: &Value, columns: &[(&str, &str)]) {
        let conditions = items(object, &["status", "conditions"]);
        if conditions.is_empty() {
            return;
        }
        self.line(0, &["Conditions:"]);
        let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
        let rules: Vec<String> = headings.iter().map(|h| "-".repeat(h.len())).collect();
        self.line(1, &headings);
        self.line(1, &rules.iter().map(String::as_str).collect::<Vec<_>>());
        for condition in conditions {
            let cell = |field: &str| {
                let text = condition.at(&[field]).map(plain).unwrap_or_default();
                if field.ends_with("Time") { moment(&text).unwrap_or(text) } else { text }
            };
            let cells: Vec<String> = columns.iter().map(|(_, field)| cell(field)).collect();
            self.line(1, &cells.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    pub(super) fn events(&mut self, mut events: Vec<Value>) {
        if events.is_empty() {
            self.put(0, "Events", "");
            return;
        }
        let last = |event: &Value| {
            let fields: [&[&str]; 4] = [
                &["series", "lastObservedTime"],
                &["lastTimestamp"],
                &["eventTime"],
                &["metadata", "creationTimestamp"],
            ];
            let found = fields.iter().find_map(|path| event.str_at(path)).map(str::to_owned);
            found.unwrap_or_default()
        };
        events.sort_by_key(last);
        self.line(0, &["Events:"]);
        self.line(1, &["Type", "Reason", "Age", "From", "Message"]);
        self.line(1, &["----", "------", "----", "----", "-------"]);
        for event in &events {
            let count = event.int_at(&["series", "count"]).or(event.int_at(&["count"]));
            let mut age = api::time::age(Some(&last(event)), self.now);
            if let Some(count) = count.filter(|count| *count > 1) {
                let first = event.str_at(&["firstTimestamp"]).or(event.str_at(&["eventTime"]));
                age = format!("{age} (x{count} over {})", api::time::age(first, self.now));
            }
            let from = [&["source", "component"][..], &["reportingComponent"]];
            let from = from.iter().find_map(|path| event.str_at(path)).unwrap_or_default();
            let said = |field: &str| event.str_at(&[field]).unwrap_or_default().trim().to_owned();
            self.line(1, &[&said("type"), &said("reason"), &age, from, &said("message")]);
        }
    }

    pub(super) fn age(&self, object: &Value) -> String {
        api::time::age(api::meta::creation_timestamp(object), self.now)
    }

    /// The page with its columns aligned: a column is as wide as its widest cell in lines next to each other.
    pub(super) fn text(&self) -> String {
        let rows: Vec<Vec<&str>> =
            self.lines.iter().map(|line| line.split('\t').collect()).collect();
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<Vec<usize>> = rows.iter().map(|row| vec![0; row.len()]).collect();
        for column in 0..most {
            let mut start = 0;
            while start < rows.len() {
                let length = rows[start..].iter().take_while(|row| row.len() > column + 1).count();
                let widest = rows[start..start + length]
                    .iter()
                    .map(|row| row[column].chars().count() + GAP)
                    .max()
                    .unwrap_or(0);
                for row in &mut widths[start..start + length] {
                    row[column] = widest;
                }
                start += length.max(1);
            }
        }
        let mut out = String::new();
        for (row, widths) in rows.iter().zip(&widths) {
            let cells: String =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            out.push_str(cells.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A time as people write it.
fn moment(text: &str) -> Option<String> {
    let time = api::time::parse(text)?;
    Some(time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string())
}

/// Any object: its fields as they are, with their names spelt out.
pub(super) fn generic(page: &mut Page, object: &Value) {
    page.head(object);
    page.labels(0, object);
    page.annotations(0, object);
    let (version, kind) = api::meta::type_meta(object);
    page.put(0, "API Version", version);
    page.put(0, "Kind", kind);
    let shown = ["name", "namespace", "labels", "annotations", "managedFields"];
    if let Some(metadata) = object.get("metadata") {
        let mut rest = metadata.clone();
        shown.iter().for_each(|field| drop(rest.remove(field)));
        page.line(0, &["Metadata:"]);
        tree(page, 1, &rest, false);
    }
    let mut rest = object.clone();
    ["apiVersion", "kind", "metadata"].iter().for_each(|field| drop(rest.remove(field)));
    if kind == "Secret" {
        // How much there is, and not what.
        for (_, value) in
            rest.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(Map::iter_mut)
        {
            let padding = value.text().chars().rev().take_while(|c| *c == '=').count();
            *value = Value::from(format!("{} bytes", value.text().len() / 4 * 3 - padding));
        }
    }
    tree(page, 0, &rest, false);
}

/// Fields whose keys are the user's own.
const MAPS: [&str; 9] = [
    "annotations",
    "binaryData",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "requests",
    "selector",
];

fn tree(page: &mut Page, level: usize, value: &Value, own_keys: bool) {
    for (key, value) in value.members() {
        let heading = if own_keys { key.to_owned() } else { spelt(key) };
        match value {
            Value::Object(_) => {
                page.line(level, &[&format!("{heading}:")]);
                tree(page, level + 1, value, MAPS.contains(&key));
            }
            Value::Array(list) => {
                page.line(level, &[&format!("{heading}:")]);
                for item in list {
                    match item {
                        Value::Object(_) => tree(page, level + 1, item, false),
                        item => page.line(level + 1, &[&plain(item)]),
                    }
                }
            }
            // A text of several lines keeps them.
            value => {
                let text = plain(value);
                let lines: Vec<String> = text.lines().map(str::to_owned).collect();
                page.list(level, &heading, &lines);
            }
        }
    }
}

/// `creationTimestamp` as `Creation Timestamp`; runs of capitals stay, as in `Cluster IPs`.
fn spelt(key: &str) -> String {
    if !key.chars().all(char::is_alphanumeric) {
        return key.to_owned(); // a key of the user's own, such as a label
    }
    let letters: Vec<char> = key.chars().collect();
    let mut out = String::new();
    for (i, c) in letters.iter().enumerate() {
        let after_small = i > 0 && letters[i - 1].is_lowercase();
        if c.is_uppercase() && after_small {
            out.push(' ');
        }
        if i == 0 { out.extend(c.to_uppercase()) } else { out.push(*c) }
    }
    match out.as_str() {
        "Api Version" => "API Version".to_owned(),
        "Os Image" => "OS Image".to_owned(),
        "Uid" => "UID".to_owned(),
        _ => out,
    }
}

pub(super) fn service(page: &mut Page, service: &Value, slices: &[Value]) {
    page.head(service);
    page.labels(0, service);
    page.annotations(0, service);
    page.put(0, "Selector", pairs(service, &["spec", "selector"]).join(","));
    page.put(0, "Type", text(service, &["spec", "type"]));
    page.put(0, "IP Family Policy", text(service, &["spec", "ipFamilyPolicy"]));
    page.put(0, "IP Families", joined(service, &["spec", "ipFamilies"], ","));
    page.put(0, "IP", text(service, &["spec", "clusterIP"]));
    page.put(0, "IPs", joined(service, &["spec", "clusterIPs"], ","));
    for (heading, field) in [
        ("External IPs", "externalIPs"),
        ("LoadBalancer Source Ranges", "loadBalancerSourceRanges"),
    ] {
        if !items(service, &["spec", field]).is_empty() {
            page.put(0, heading, joined(service, &["spec", field], ","));
        }
    }
    if let Some(name) = service.str_at(&["spec", "externalName"]) {
        page.put(0, "External Name", name);
    }
    for port in items(service, &["spec", "ports"]) {
        let name = port.str_at(&["name"]).filter(|n| !n.is_empty()).unwrap_or("<unset>");
        let number =
            |field: &str| format!("{}/{}", text(port, &[field]), text(port, &["protocol"]));
        page.line(0, &["Port:", name, &number("port")]);
        page.line(0, &["TargetPort:", &number("targetPort")]);
        if port.int_at(&["nodePort"]).is_some_and(|p| p > 0) {
            page.line(0, &["NodePort:", name, &number("nodePort")]);
        }
        page.put(0, "Endpoints", endpoints(port, slices));
    }
    page.put(0, "Session Affinity", text(service, &["spec", "sessionAffinity"]));
    for (heading, field) in [
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
    ] {
        if let Some(policy) = service.str_at(&["spec", field]) {
            page.put(0, heading, policy);
        }
    }
}

/// The ready addresses behind a port: the first three, and how many more.
fn endpoints(port: &Value, slices: &[Value]) -> String {
    let name = port.str_at(&["name"]).unwrap_or_default();
    let mut found = Vec::new();
    for slice in slices {
        let target = items(slice, &["ports"])
            .iter()
            .find(|p| p.str_at(&["name"]).unwrap_or_default() == name)
            .and_then(|p| p.int_at(&["port"]));
        let Some(target) = target else { continue };
        let ready = |e: &&Value| e.bool_at(&["conditions", "ready"]) != Some(false);
        for endpoint in items(slice, &["endpoints"]).iter().filter(ready) {
            let addresses = items(endpoint, &["addresses"]).iter();
            found.extend(addresses.map(|a| format!("{}:{target}", a.text())));
        }
    }
    found.sort();
    let more = found.len().saturating_sub(3);
    found.truncate(3);
    let list = found.join(",");
    if more > 0 { format!("{list} + {more} more...") } else { list }
}

pub(super) fn node(page: &mut Page, node: &Value, pods: &[Value]) {
    page.put(0, "Name", api::meta::name(node));
    let roles: Vec<&str> = api::meta::labels(node)
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    page.put(0, "Roles", roles.join(","));
    page.labels(0, node);
    page.annotations(0, node);
    page.moment(0, "CreationTimestamp", node.at(&["metadata", "creationTimestamp"]));
    let taints: Vec<String> = items(node, &["spec", "taints"])
        .iter()
        .map(|t| {
            let value = t.str_at(&["value"]).map(|v| format!("={v}")).unwrap_or_default();
            format!("{}{value}:{}", text(t, &["key"]), text(t, &["effect"]))
        })
        .collect();
    page.list(0, "Taints", &taints);
    let closed = node.bool_at(&["spec", "unschedulable"]).unwrap_or(false);
    page.put(0, "Unschedulable", closed.to_string());
    page.conditions(
        node,
        &[
            ("Type", "type"),
            ("Status", "status"),
            ("LastHeartbeatTime", "lastHeartbeatTime"),
            ("LastTransitionTime", "lastTransitionTime"),
            ("Reason", "reason"),
            ("Message", "message"),
        ],
    );
    page.line(0, &["Addresses:"]);
    for address in items(node, &["status", "addresses"]) {
        page.put(1, &text(address, &["type"]), text(address, &["address"]));
    }
    for (heading, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        page.line(0, &[&format!("{heading}:")]);
        for (name, amount) in node.at(&["status", field]).into_iter().flat_map(Value::members) {
            page.put(1, name, plain(amount));
        }
    }
    page.line(0, &["System Info:"]);
    for (name, value) in node.at(&["status", "nodeInfo"]).into_iter().flat_map(Value::members) {
        if !matches!(value, Value::Object(_)) {
            page.put(1, &spelt(name), plain(value));
        }
    }
    if let Some(cidr) = node.str_at(&["spec", "podCIDR"]) {
        page.put(0, "PodCIDR", cidr);
        page.put(0, "PodCIDRs", joined(node, &["spec", "podCIDRs"], ","));
    }
    usage(page, node, pods);
}

/// The pods of a node and what they ask for.
fn usage(page: &mut Page, node: &Value, pods: &[Value]) {
    let live: Vec<&Value> = pods
        .iter()
        .filter(|p| !matches!(p.str_at(&["status", "phase"]), Some("Succeeded" | "Failed")))
        .collect();
    page.line(0, &[&format!("Non-terminated Pods:\t({} in total)", live.len())]);
    let columns = ["cpu", "memory"].map(|name| [(name, "requests"), (name, "limits")]).concat();
    page.line(
        1,
        &[
            "Namespace",
            "Name",
            "CPU Requests",
            "CPU Limits",
            "Memory Requests",
            "Memory Limits",
            "Age",
        ],
    );
    page.line(
        1,
        &[
            "---------",
            "----",
            "------------",
            "----------",
            "---------------",
            "-------------",
            "---",
        ],
    );
    let amount = |of: &Value, path: &[&str]| Quantity::parse(of.str_at(path)?).ok();
    let add = |sum: Option<Quantity>, amount: Quantity| sum.map_or(amount, |s| s.plus(amount));
    let share = |name: &str, sum: Option<Quantity>| {
        let Some(sum) = sum else { return "0 (0%)".to_owned() };
        let all = amount(node, &["status", "allocatable", name]).map_or(0.0, Quantity::as_f64);
        let part = if all > 0.0 { sum.as_f64() / all * 100.0 } else { 0.0 };
        format!("{sum} ({part:.0}%)")
    };
    let mut totals = vec![None; columns.len()];
    for pod in live {
        let mut cells = vec![api::meta::namespace(pod).to_owned(), api::meta::name(pod).to_owned()];
        for ((name, what), total) in columns.iter().zip(&mut totals) {
            let mut sum = None;
            for container in items(pod, &["spec", "containers"]) {
                if let Some(amount) = amount(container, &["resources", what, name]) {
                    sum = Some(add(sum, amount));
                    *total = Some(add(*total, amount));
                }
            }
            cells.push(share(name, sum));
        }
        cells.push(page.age(pod));
        page.line(1, &cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    page.line(0, &["Allocated resources:"]);
    page.line(1, &["Resource", "Requests", "Limits"]);
    page.line(1, &["--------", "--------", "------"]);
    for ((name, _), total) in columns.chunks(2).map(|c| c[0]).zip(totals.chunks(2)) {
        page.line(1, &[name, &share(name, total[0]), &share(name, total[1])]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        api::codec::json::parse(text.as_bytes()).unwrap()
    }

    fn page() -> Page {
        Page::new(api::time::parse("2024-01-01T00:10:00Z").unwrap())
    }

    #[test]
    fn neighbours_share_the_width_of_a_column() {
        let mut page = page();
        page.put(0, "Name", "a");
        page.list(0, "Labels", &["b=c".to_owned(), "d=e".to_owned()]);
        page.line(0, &["Alone:"]);
        page.put(1, "X", "");
        assert_eq!(page.text(), "Name:    a\nLabels:  b=c\n         d=e\nAlone:\n  X:  <none>\n");
    }

    #[test]
    fn any_object_is_spelt_out() {
        let mut page = page();
        let object = value(
            r#"{"apiVersion":"x/v1","kind":"Y","metadata":{"name":"n","uid":"u"},
            "spec":{"clusterIPs":["a","b"],"hardLimit":3}}"#,
        );
        generic(&mut page, &object);
        let want = "Name:         n\nLabels:       <none>\nAnnotations:  <none>\n\
            API Version:  x/v1\nKind:         Y\nMetadata:\n  UID:  u\nSpec:\n  Cluster IPs:\n    \
            a\n    b\n  Hard Limit:  3\n";
        assert_eq!(page.text(), want);
    }

    #[test]
    fn events_say_how_often_and_since_when() {
        let mut page = page();
        page.events(vec![value(
            r#"{"type":"Warning","reason":"BackOff","message":"no","count":4,
            "firstTimestamp":"2024-01-01T00:00:00Z","lastTimestamp":"2024-01-01T00:09:00Z",
            "source":{"component":"kubelet"}}"#,
        )]);
        let last = page.text().lines().last().unwrap_or_default().to_owned();
        assert_eq!(last, "  Warning  BackOff  60s (x4 over 10m)  kubelet  no");
    }

    #[test]
    fn a_service_names_its_endpoints() {
        let port = value(r#"{"name":"http"}"#);
        let slice = value(
            r#"{"ports":[{"name":"http","port":8080}],"endpoints":[{"addresses":["10.0.0.2"]},
            {"addresses":["10.0.0.1"],"conditions":{"ready":true}},
            {"addresses":["10.0.0.3"],"conditions":{"ready":false}}]}"#,
        );
        assert_eq!(endpoints(&port, &[slice]), "10.0.0.1:8080,10.0.0.2:8080");
        assert_eq!(endpoints(&port, &[]), "");
    }
}
