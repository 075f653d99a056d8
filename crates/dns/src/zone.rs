//! What the cluster's names mean: Services and their endpoints as records, and the answer to a question. Pure.
//!
//! Follows the Kubernetes DNS specification 1.1.0. Records belong to whoever brought them, a Service or a namespace, so
//! that a change replaces its own records only. Knows nothing of packets: `serve` reads and writes those.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The version of the specification, as `dns-version.<domain>` states it.
const SPECIFICATION: &str = "1.1.0";
/// Aliases followed for one question.
const ALIASES_MAX: usize = 8;

/// What a record says. Names are in lower case and without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Where a named port is served; all targets weigh the same.
    Srv {
        /// The port's number.
        port: u16,
        /// The name that has the address.
        target: String,
    },
    /// The name of an address.
    Ptr(String),
    /// Another name for this one.
    Cname(String),
    /// Text.
    Txt(String),
    /// The start of the zone.
    Soa,
    /// The zone's name server.
    Ns(String),
}

/// A record and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// In lower case and without the last dot.
    pub name: String,
    /// What it says.
    pub data: Data,
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports.
    Srv,
    /// Names of addresses.
    Ptr,
    /// The alias itself.
    Cname,
    /// Texts.
    Txt,
    /// The start of the zone.
    Soa,
    /// Name servers.
    Ns,
    /// Whatever there is.
    Any,
    /// A kind of which we have none.
    Other,
}

impl Wanted {
    fn takes(self, data: &Data) -> bool {
        matches!(
            (self, data),
            (Self::Any, _)
                | (Self::A, Data::A(_))
                | (Self::Aaaa, Data::Aaaa(_))
                | (Self::Srv, Data::Srv { .. })
                | (Self::Ptr, Data::Ptr(_))
                | (Self::Cname, Data::Cname(_))
                | (Self::Txt, Data::Txt(_))
                | (Self::Soa, Data::Soa)
                | (Self::Ns, Data::Ns(_))
        )
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// In lower case and without the last dot.
    pub name: &'a str,
    /// Which records.
    pub wanted: Wanted,
    /// Answers with several addresses begin with another one at each turn.
    pub turn: usize,
}

/// What we say about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name is ours, whether it exists or not.
    Ours(Reply),
    /// Others know it.
    Elsewhere,
}

/// The answer about a name of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Whether there is such a name; without answers it then has records of other kinds, or names below it.
    pub exists: bool,
    /// The records asked for.
    pub answers: Vec<Record>,
    /// The addresses of names in the answers.
    pub additional: Vec<Record>,
    /// An alias leads to this name, which others know.
    pub follow: Option<String>,
}

/// Who brought records: a Service by namespace and name, or a namespace with an empty name.
pub type Owner = (String, String);

#[derive(Debug, Default)]
struct Node {
    data: Vec<Data>,
    /// Records with this name or one below.
    count: usize,
}

/// All names of the cluster.
#[derive(Debug)]
pub struct Zone {
    domain: String,
    nodes: HashMap<String, Node>,
    owned: HashMap<Owner, Vec<(String, Option<Data>)>>,
    serial: u32,
}

impl Zone {
    /// A zone without Services; `domain` is `cluster.local` as a rule.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let mut zone = Self { domain, nodes: HashMap::new(), owned: HashMap::new(), serial: 0 };
        let own = vec![
            (zone.domain.clone(), Some(Data::Soa)),
            (zone.domain.clone(), Some(Data::Ns(zone.server()))),
            (format!("dns-version.{}", zone.domain), Some(Data::Txt(SPECIFICATION.into()))),
        ];
        zone.replace(Owner::default(), own);
        zone
    }

    /// The name of the zone.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The name of its server.
    #[must_use]
    pub fn server(&self) -> String {
        format!("ns.dns.{}", self.domain)
    }

    /// Grows with every change.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Sets what a Service brings; without the Service, takes its records away.
    pub fn set_service(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[&EndpointSlice],
    ) {
        let records = service.map(|s| records(namespace, name, s, slices, &self.domain));
        self.replace((namespace.to_owned(), name.to_owned()), records.unwrap_or_default());
    }

    /// Says whether a namespace exists; its names then exist as well, even without Services.
    pub fn set_namespace(&mut self, namespace: &str, exists: bool) {
        let both = ["svc", "pod"].map(|kind| (format!("{namespace}.{kind}.{}", self.domain), None));
        self.replace(
            (namespace.to_owned(), String::new()),
            if exists { both.to_vec() } else { Vec::new() },
        );
    }

    fn replace(&mut self, owner: Owner, records: Vec<(String, Option<Data>)>) {
        let old = self.owned.remove(&owner).unwrap_or_default();
        if old != records {
            self.serial = self.serial.wrapping_add(1);
        }
        for (name, data) in old {
            self.remove(&name, data.as_ref());
        }
        for (name, data) in &records {
            self.insert(name, data.clone());
        }
        if !records.is_empty() {
            self.owned.insert(owner, records);
        }
    }

    /// A name and those above it, up to the zone's own. Names outside, those of addresses, have none above.
    fn line(&self, name: &str) -> Vec<String> {
        let mut line = vec![name.to_owned()];
        let mut rest = name;
        while self.is_inside(rest) && rest != self.domain {
            let Some((_, above)) = rest.split_once('.') else { break };
            line.push(above.to_owned());
            rest = above;
        }
        line
    }

    fn insert(&mut self, name: &str, data: Option<Data>) {
        for name in self.line(name) {
            self.nodes.entry(name).or_default().count += 1;
        }
        if let (Some(node), Some(data)) = (self.nodes.get_mut(name), data) {
            node.data.push(data);
        }
    }

    fn remove(&mut self, name: &str, data: Option<&Data>) {
        if let (Some(node), Some(data)) = (self.nodes.get_mut(name), data)
            && let Some(at) = node.data.iter().position(|d| d == data)
        {
            node.data.remove(at);
        }
        for name in self.line(name) {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.count -= 1;
                if node.count == 0 {
                    self.nodes.remove(&name);
                }
            }
        }
    }

    fn is_inside(&self, name: &str) -> bool {
        name.strip_suffix(self.domain.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The records of a name; `None` where there is no such name.
    fn find(&self, name: &str) -> Option<Vec<Data>> {
        if let Some(node) = self.nodes.get(name) {
            return Some(node.data.clone());
        }
        // A pod's address as a name needs no pod: it says nothing but itself.
        let (label, above) = name.split_once('.')?;
        let (_, kind) = above.split_once('.')?;
        let is_pod = kind.strip_prefix("pod.").is_some_and(|domain| domain == self.domain);
        if !is_pod || !self.nodes.contains_key(above) {
            return None;
        }
        Some(vec![dashed(label)?])
    }
}

/// The answer of a zone to a question.
#[must_use]
pub fn answer(zone: &Zone, query: &Query<'_>) -> Answer {
    if !zone.is_inside(query.name) && !zone.nodes.contains_key(query.name) {
        return Answer::Elsewhere;
    }
    let mut reply =
        Reply { exists: false, answers: Vec::new(), additional: Vec::new(), follow: None };
    let mut name = query.name.to_owned();
    for _ in 0..=ALIASES_MAX {
        let found = zone.find(&name);
        reply.exists = found.is_some();
        let mut data = found.unwrap_or_default();
        data.retain(|d| {
            query.wanted.takes(d) || (matches!(d, Data::Cname(_)) && query.wanted != Wanted::Cname)
        });
        if !data.is_empty() {
            let first = query.turn % data.len();
            data.rotate_left(first);
        }
        let alias = data.iter().find_map(|d| match d {
            Data::Cname(target) if query.wanted != Wanted::Cname => Some(target.clone()),
            _ => None,
        });
        reply.answers.extend(data.into_iter().map(|data| Record { name: name.clone(), data }));
        match alias {
            Some(target) if zone.is_inside(&target) => name = target,
            Some(target) => {
                reply.follow = Some(target);
                break;
            }
            None => break,
        }
    }
    reply.additional = addresses(zone, &reply.answers);
    Answer::Ours(reply)
}

/// The addresses of the targets of ports.
fn addresses(zone: &Zone, answers: &[Record]) -> Vec<Record> {
    let targets: BTreeSet<&String> = answers
        .iter()
        .filter_map(|record| match &record.data {
            Data::Srv { target, .. } => Some(target),
            _ => None,
        })
        .collect();
    let of = |target: &String| {
        let found = zone.find(target).unwrap_or_default().into_iter();
        let found = found.filter(|data| matches!(data, Data::A(_) | Data::Aaaa(_)));
        found.map(|data| Record { name: target.clone(), data }).collect::<Vec<_>>()
    };
    targets.into_iter().flat_map(of).collect()
}

/// Reads `10-244-0-5`, or an IPv6 address with dashes for colons.
fn dashed(label: &str) -> Option<Data> {
    if let Ok(address) = label.replace('-', ".").parse() {
        return Some(Data::A(address));
    }
    label.replace('-', ":").parse().ok().map(Data::Aaaa)
}

fn address(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(address) => Data::A(address),
        IpAddr::V6(address) => Data::Aaaa(address),
    }
}

/// The name under which an address is looked up.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address
                .octets()
                .into_iter()
                .rev()
                .flat_map(|byte| [byte & 15, byte >> 4].map(|nibble| format!("{nibble:x}.")));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

fn records(
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[&EndpointSlice],
    domain: &str,
) -> Vec<(String, Option<Data>)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let own = format!("{name}.{namespace}.svc.{domain}");
    let found = if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or_default();
        let target = target.trim_end_matches('.').to_ascii_lowercase();
        if target.is_empty() { BTreeSet::new() } else { [(own, Some(Data::Cname(target)))].into() }
    } else if spec.cluster_ip.as_deref() == Some("None") {
        headless(&own, slices)
    } else {
        with_address(&own, spec)
    };
    found.into_iter().collect()
}

fn service_port(port: &str, protocol: Option<&str>, own: &str) -> String {
    let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
    format!("_{}._{protocol}.{own}", port.to_ascii_lowercase())
}

fn with_address(own: &str, spec: &ServiceSpec) -> BTreeSet<(String, Option<Data>)> {
    let several = spec.cluster_ips.iter().flatten();
    let addresses: BTreeSet<IpAddr> =
        several.chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    let mut found = BTreeSet::new();
    if addresses.is_empty() {
        return found;
    }
    for ip in addresses {
        found.insert((own.to_owned(), Some(address(ip))));
        found.insert((reverse(ip), Some(Data::Ptr(own.to_owned()))));
    }
    for port in spec.ports.iter().flatten() {
        let named = port.name.as_deref().filter(|name| !name.is_empty());
        if let (Some(name), Ok(number)) = (named, u16::try_from(port.port)) {
            let srv = Data::Srv { port: number, target: own.to_owned() };
            found.insert((service_port(name, port.protocol.as_deref(), own), Some(srv)));
        }
    }
    found
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn headless(own: &str, slices: &[&EndpointSlice]) -> BTreeSet<(String, Option<Data>)> {
    let mut found = BTreeSet::new();
    for slice in slices {
        for endpoint in slice.endpoints.iter().flatten().filter(|e| ready(e)) {
            let ip = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok());
            let Some(ip) = ip else { continue };
            let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
            let label = hostname
                .map_or_else(|| ip.to_string().replace(['.', ':'], "-"), str::to_ascii_lowercase);
            let target = format!("{label}.{own}");
            found.insert((own.to_owned(), Some(address(ip))));
            found.insert((target.clone(), Some(address(ip))));
            if hostname.is_some() {
                found.insert((reverse(ip), Some(Data::Ptr(target.clone()))));
            }
            for port in slice.ports.iter().flatten() {
                let named = port.name.as_deref().filter(|name| !name.is_empty());
                let number = port.port.and_then(|p| u16::try_from(p).ok());
                if let (Some(name), Some(number)) = (named, number) {
                    let srv = Data::Srv { port: number, target: target.clone() };
                    found.insert((service_port(name, port.protocol.as_deref(), own), Some(srv)));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn slice(kind: &str, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {}, "addressType": kind,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints
        }))
        .unwrap()
    }

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local.");
        zone.set_namespace("ns", true);
        let web = service(json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
            "ports": [{"name": "http", "port": 80}, {"port": 81}]}));
        zone.set_service("ns", "web", Some(&web), &[]);
        let db = service(json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}));
        let four = slice(
            "IPv4",
            json!([
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"]},
                {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}
            ]),
        );
        let six = slice("IPv6", json!([{"addresses": ["fd00:244::5"], "hostname": "db-0"}]));
        zone.set_service("ns", "db", Some(&db), &[&four, &six]);
        let far = service(json!({"type": "ExternalName", "externalName": "Example.org."}));
        zone.set_service("ns", "far", Some(&far), &[]);
        let near =
            service(json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local"}));
        zone.set_service("ns", "near", Some(&near), &[]);
        zone
    }

    fn ask(zone: &Zone, name: &str, wanted: Wanted) -> String {
        let Answer::Ours(reply) = answer(zone, &Query { name, wanted, turn: 0 }) else {
            return "elsewhere".into();
        };
        let text = |data: &Data| match data {
            Data::A(ip) => format!("A {ip}"),
            Data::Aaaa(ip) => format!("AAAA {ip}"),
            Data::Srv { port, target } => format!("SRV {port} {target}"),
            Data::Ptr(name) => format!("PTR {name}"),
            Data::Cname(name) => format!("CNAME {name}"),
            Data::Txt(text) => format!("TXT {text}"),
            Data::Soa => "SOA".into(),
            Data::Ns(name) => format!("NS {name}"),
        };
        let mut lines: Vec<String> = reply.answers.iter().map(|r| text(&r.data)).collect();
        lines.extend(reply.additional.iter().map(|r| format!("+{}", text(&r.data))));
        lines.extend(reply.follow.map(|name| format!("follow {name}")));
        match (reply.exists, lines.is_empty()) {
            (false, true) => "no such name".into(),
            (true, true) => "nothing of the kind".into(),
            _ => lines.join(", "),
        }
    }

    #[test]
    fn the_specification_case_by_case() {
        let zone = zone();
        for (name, wanted, expected) in [
            ("dns-version.cluster.local", Wanted::Txt, "TXT 1.1.0"),
            ("cluster.local", Wanted::Soa, "SOA"),
            ("cluster.local", Wanted::A, "nothing of the kind"),
            ("web.ns.svc.cluster.local", Wanted::A, "A 10.96.0.9"),
            ("web.ns.svc.cluster.local", Wanted::Aaaa, "AAAA fd00::9"),
            ("web.ns.svc.cluster.local", Wanted::Txt, "nothing of the kind"),
            ("web.ns.svc.cluster.local", Wanted::Other, "nothing of the kind"),
            (
                "_http._tcp.web.ns.svc.cluster.local",
                Wanted::Srv,
                "SRV 80 web.ns.svc.cluster.local, +A 10.96.0.9, +AAAA fd00::9",
            ),
            ("_tcp.web.ns.svc.cluster.local", Wanted::Srv, "nothing of the kind"),
            ("_https._tcp.web.ns.svc.cluster.local", Wanted::Srv, "no such name"),
            ("9.0.96.10.in-addr.arpa", Wanted::Ptr, "PTR web.ns.svc.cluster.local"),
            ("db.ns.svc.cluster.local", Wanted::A, "A 10.244.0.5, A 10.244.0.6"),
            ("db-0.db.ns.svc.cluster.local", Wanted::A, "A 10.244.0.5"),
            ("db-0.db.ns.svc.cluster.local", Wanted::Aaaa, "AAAA fd00:244::5"),
            ("10-244-0-6.db.ns.svc.cluster.local", Wanted::A, "A 10.244.0.6"),
            ("10-244-0-7.db.ns.svc.cluster.local", Wanted::A, "no such name"),
            ("5.0.244.10.in-addr.arpa", Wanted::Ptr, "PTR db-0.db.ns.svc.cluster.local"),
            ("6.0.244.10.in-addr.arpa", Wanted::Ptr, "elsewhere"),
            ("far.ns.svc.cluster.local", Wanted::A, "CNAME example.org, follow example.org"),
            ("far.ns.svc.cluster.local", Wanted::Cname, "CNAME example.org"),
            ("near.ns.svc.cluster.local", Wanted::A, "CNAME web.ns.svc.cluster.local, A 10.96.0.9"),
            ("ns.svc.cluster.local", Wanted::A, "nothing of the kind"),
            ("svc.cluster.local", Wanted::A, "nothing of the kind"),
            ("other.svc.cluster.local", Wanted::A, "no such name"),
            ("web.other.svc.cluster.local", Wanted::A, "no such name"),
            ("10-244-0-7.ns.pod.cluster.local", Wanted::A, "A 10.244.0.7"),
            ("10-244-0-7.other.pod.cluster.local", Wanted::A, "no such name"),
            ("nonsense.ns.pod.cluster.local", Wanted::A, "no such name"),
            ("example.org", Wanted::A, "elsewhere"),
            ("notcluster.local", Wanted::A, "elsewhere"),
        ] {
            assert_eq!(ask(&zone, name, wanted), expected, "{name} {wanted:?}");
        }
    }

    #[test]
    fn every_port_of_a_headless_service_leads_to_each_ready_pod() {
        let text = ask(&zone(), "_http._tcp.db.ns.svc.cluster.local", Wanted::Srv);
        assert_eq!(
            text,
            "SRV 8080 10-244-0-6.db.ns.svc.cluster.local, SRV 8080 db-0.db.ns.svc.cluster.local, \
             +A 10.244.0.6, +A 10.244.0.5, +AAAA fd00:244::5"
        );
    }

    #[test]
    fn what_goes_leaves_nothing() {
        let mut zone = zone();
        for name in ["web", "db", "far", "near"] {
            zone.set_service("ns", name, None, &[]);
        }
        assert_eq!(ask(&zone, "web.ns.svc.cluster.local", Wanted::A), "no such name");
        assert_eq!(ask(&zone, "9.0.96.10.in-addr.arpa", Wanted::Ptr), "elsewhere");
        zone.set_namespace("ns", false);
        assert_eq!(ask(&zone, "svc.cluster.local", Wanted::A), "no such name");
        assert_eq!(zone.nodes.len(), Zone::new("cluster.local").nodes.len());
        assert_eq!(zone.owned.len(), 1);
    }

    #[test]
    fn each_turn_begins_with_another_address() {
        let zone = zone();
        let first = |turn| match answer(
            &zone,
            &Query { name: "db.ns.svc.cluster.local", wanted: Wanted::A, turn },
        ) {
            Answer::Ours(reply) => reply.answers[0].clone(),
            Answer::Elsewhere => panic!("it is ours"),
        };
        assert_ne!(first(0), first(1));
        assert_eq!(first(0), first(2));
    }

    #[test]
    fn aliases_that_go_round_end() {
        let mut zone = zone();
        let round =
            service(json!({"type": "ExternalName", "externalName": "round.ns.svc.cluster.local"}));
        zone.set_service("ns", "round", Some(&round), &[]);
        let reply = ask(&zone, "round.ns.svc.cluster.local", Wanted::A);
        assert_eq!(reply.matches("CNAME").count(), ALIASES_MAX + 1);
    }
}
