//! Services: cluster IPs and node ports, claimed in the same transaction as the object.
//!
//! A cluster IP is claimed by creating its IPAddress object, as upstream does; a node port by a key of our own below
//! `/registry/ironclad/nodeports/`. Both fail the transaction if they exist, so nothing is handed out twice.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use api::error::{ApiError, FieldErrors};
use api::object::{Map, Value};
use bytes::Bytes;

use crate::registry::Api;
use crate::registry::commit::Claims;
use crate::storage::etcd::{Expect, Write};

/// Random picks before a pool is searched from the start.
const RANDOM_TRIES: usize = 32;
const PORTS_SHELF: &str = "ironclad";

/// Addresses that services may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first address.
    base: Ipv4Addr,
    /// Bits of its prefix.
    prefix: u8,
}

impl Range {
    /// Reads `a.b.c.d/n`; none where that is not IPv4, or is too large or small to be of use.
    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix) = cidr.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let base = |prefix: u8| Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix)));
        (8..=30).contains(&prefix).then(|| Self { base: base(prefix), prefix })
    }

    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + offset)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.base));
        offset > 0 && offset < self.size() - 1
    }

    /// An address that nobody has.
    fn free(self, api: &Api) -> Option<Ipv4Addr> {
        let taken = api.cache.shelf("ipaddresses");
        let free = |offset: &u32| taken.get(&self.at(*offset).to_string()).is_none();
        // The lower part of the range is left to those who choose for themselves (KEP-3070).
        let dynamic = (self.size() / 16).clamp(16, 256).min(self.size() / 2);
        let random = std::iter::repeat_with(|| rand::random_range(dynamic..self.size() - 1));
        let found = random.take(RANDOM_TRIES).find(free);
        found
            .or_else(|| (dynamic..self.size() - 1).find(free))
            .or_else(|| (2..dynamic).find(free))
            .map(|offset| self.at(offset))
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// What services may be given, before anybody adds a ServiceCIDR.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) range: Range,
    pub(crate) node_ports: RangeInclusive<u16>,
}

impl Network {
    /// Reads `a.b.c.d/n` and `from-to`.
    ///
    /// # Errors
    /// Says what the text should be.
    pub(crate) fn parse(cidr: &str, ports: &str) -> anyhow::Result<Self> {
        let wanted = "is no IPv4 range like 10.96.0.0/16, with a prefix of /8 to /30";
        let range = Range::parse(cidr).ok_or_else(|| anyhow::anyhow!("{cidr:?} {wanted}"))?;
        let bad = || anyhow::anyhow!("{ports:?} is no port range like 30000-32767");
        let (from, to) = ports.split_once('-').ok_or_else(bad)?;
        let node_ports = from.parse().map_err(|_| bad())?..=to.parse().map_err(|_| bad())?;
        Ok(Self { range, node_ports })
    }

    /// The address of the `kubernetes` Service: the first of the range.
    pub(crate) fn first(&self) -> Ipv4Addr {
        self.range.at(1)
    }
}

/// The range of the configuration, then those of ServiceCIDRs that are ready.
fn ranges(api: &Api) -> impl Iterator<Item = Range> {
    let more = std::iter::once_with(|| api.cache.shelf("servicecidrs").list("", ""));
    let more = more.flatten().map(|(_, entry)| entry.parse());
    let ready = |cidr: &Value| {
        let conditions = cidr["status"]["conditions"].items();
        let ready = conditions.iter().find(|c| c["type"].text() == "Ready");
        !cidr["metadata"].has("deletionTimestamp")
            && ready.is_some_and(|condition| condition["status"].text() == "True")
    };
    let texts = |cidr: Value| -> Vec<Range> {
        cidr["spec"]["cidrs"].items().iter().filter_map(|c| Range::parse(c.text())).collect()
    };
    std::iter::once(api.network.range).chain(more.filter(ready).flat_map(texts))
}

fn ip_key(address: &str) -> Bytes {
    format!("/registry/ipaddresses/{address}").into()
}

fn port_key(port: i64) -> Bytes {
    format!("/registry/{PORTS_SHELF}/nodeports/{port}").into()
}

fn kind(service: &Value) -> &str {
    service.str_at(&["spec", "type"]).unwrap_or("ClusterIP")
}

fn cluster_ip(service: &Value) -> Option<&str> {
    let ip = service.str_at(&["spec", "clusterIP"]).unwrap_or("");
    (!ip.is_empty() && ip != "None" && kind(service) != "ExternalName").then_some(ip)
}

/// The node ports a service holds: of its ports, and for health checks.
fn node_ports(service: &Value) -> Vec<i64> {
    if !matches!(kind(service), "NodePort" | "LoadBalancer") {
        return Vec::new();
    }
    let ports = service.at(&["spec", "ports"]).map(Value::items).unwrap_or_default();
    let own = ports.iter().filter_map(|p| p.int_at(&["nodePort"]));
    let mut all: Vec<i64> =
        own.chain(service.int_at(&["spec", "healthCheckNodePort"])).filter(|p| *p > 0).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Chooses what the service leaves open and claims it; gives back what it no longer has.
pub(crate) async fn claim(
    api: &Api,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Claims, ApiError> {
    let mut claims = Claims::default();
    if kind(service) == "ExternalName" {
        service.remove_at(&["spec", "ipFamilies"]);
        service.remove_at(&["spec", "ipFamilyPolicy"]);
    } else {
        families(service)?;
    }
    claim_ip(api, service, old, &mut claims)?;
    claim_ports(api, service, old, &mut claims)?;
    Ok(claims)
}

/// Settles the families of addresses. The cluster has one range, of IPv4; a headless service without a selector may
/// have whatever addresses somebody gives it.
fn families(service: &mut Value) -> Result<(), ApiError> {
    let spec = &service["spec"];
    let free = spec["clusterIP"].text() == "None" && spec["selector"].is_empty();
    let policy = spec["ipFamilyPolicy"].text().to_owned();
    let mut errors = FieldErrors::new();
    if policy == "RequireDualStack" && !free {
        let why = "this cluster is not configured for dual-stack services";
        errors.invalid("spec.ipFamilyPolicy", policy.as_str(), why);
    }
    for (i, family) in spec["ipFamilies"].items().iter().enumerate() {
        if family.text() == "IPv6" && !free {
            let field = format!("spec.ipFamilies[{i}]");
            errors.invalid(field, family.clone(), "not configured on this cluster");
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "Service", api::meta::name(service), errors));
    }
    let listed = spec["ipFamilies"].items().to_vec();
    let policy = match (policy.as_str(), free) {
        ("", true) if listed.len() != 1 => "RequireDualStack",
        ("", _) => "SingleStack",
        (given, _) => given,
    };
    let families = match (listed.as_slice(), free && policy != "SingleStack") {
        ([], true) => vec!["IPv4".into(), "IPv6".into()],
        ([], false) => vec!["IPv4".into()],
        ([one], true) if one.text() == "IPv6" => vec!["IPv6".into(), "IPv4".into()],
        ([_], true) => vec!["IPv4".into(), "IPv6".into()],
        (given, _) => given.to_vec(),
    };
    service.set_at(&["spec", "ipFamilyPolicy"], policy);
    service.set_at(&["spec", "ipFamilies"], Value::Array(families));
    Ok(())
}

fn claim_ip(
    api: &Api,
    service: &mut Value,
    old: Option<&Value>,
    claims: &mut Claims,
) -> Result<(), ApiError> {
    let held = old.and_then(cluster_ip).map(str::to_owned);
    if kind(service) == "ExternalName" {
        claims.writes.extend(held.map(|ip| Write::Delete { key: ip_key(&ip) }));
        return Ok(());
    }
    let wanted = service.str_at(&["spec", "clusterIP"]).unwrap_or("").to_owned();
    if wanted == "None" && service.at(&["spec", "clusterIPs"]).is_none() {
        service.set_at(&["spec", "clusterIPs"], Value::Array(vec!["None".into()]));
    }
    if wanted == "None" || (!wanted.is_empty() && held.as_deref() == Some(wanted.as_str())) {
        return Ok(());
    }
    let address = if wanted.is_empty() {
        ranges(api).find_map(|range| range.free(api)).ok_or_else(|| {
            ApiError::Internal("failed to allocate a serviceIP: range is full".into())
        })?
    } else {
        given_address(api, service, &wanted)?
    };
    let text = address.to_string();
    service.set_at(&["spec", "clusterIP"], text.as_str());
    service.set_at(&["spec", "clusterIPs"], Value::Array(vec![Value::from(text.as_str())]));
    claims.expect.push(Expect { key: ip_key(&text), revision: 0 });
    claims.writes.push(Write::Put {
        key: ip_key(&text),
        value: ip_object(api, &text, service),
        lease: 0,
    });
    claims.writes.extend(held.map(|ip| Write::Delete { key: ip_key(&ip) }));
    Ok(())
}

fn given_address(api: &Api, service: &Value, wanted: &str) -> Result<Ipv4Addr, ApiError> {
    let refuse = |why: String| {
        let mut errors = FieldErrors::new();
        let value = Value::Array(vec![Value::from(wanted)]);
        errors.invalid("spec.clusterIPs", value, format!("failed to allocate IP {wanted}: {why}"));
        ApiError::invalid("", "Service", api::meta::name(service), errors)
    };
    let address: Option<Ipv4Addr> = wanted.parse().ok();
    let Some(address) = address.filter(|a| ranges(api).any(|range| range.contains(*a))) else {
        return Err(refuse("the provided network does not match the current range".into()));
    };
    if api.cache.shelf("ipaddresses").get(wanted).is_some() {
        return Err(refuse("provided IP is already allocated".into()));
    }
    Ok(address)
}

/// The IPAddress object that stands for a claim.
fn ip_object(api: &Api, address: &str, service: &Value) -> Bytes {
    let mut object = Value::Object(Map::default());
    object.set("apiVersion", "networking.k8s.io/v1");
    object.set("kind", "IPAddress");
    object.set_at(&["metadata", "name"], address);
    object.set_at(&["metadata", "uid"], uuid::Uuid::new_v4().to_string());
    object.set_at(&["metadata", "creationTimestamp"], api::time::format(api.clock.now()));
    object.set_at(&["metadata", "labels", "ipaddress.kubernetes.io/ip-family"], "IPv4");
    let managed = "ipaddress.kubernetes.io/managed-by";
    object.set_at(&["metadata", "labels", managed], "ipallocator.k8s.io");
    object.set_at(&["spec", "parentRef", "resource"], "services");
    object.set_at(&["spec", "parentRef", "namespace"], api::meta::namespace(service));
    object.set_at(&["spec", "parentRef", "name"], api::meta::name(service));
    let row = api.resource("networking.k8s.io", "v1", "ipaddresses");
    let now = api.clock.now();
    let writer =
        api::patch::apply::Writer { manager: crate::bootstrap::MANAGER, subresource: "", now };
    api::patch::apply::track_update(None, &mut object, &row, writer);
    object.to_bytes().into()
}

fn claim_ports(
    api: &Api,
    service: &mut Value,
    old: Option<&Value>,
    claims: &mut Claims,
) -> Result<(), ApiError> {
    let held = old.map(node_ports).unwrap_or_default();
    choose_ports(api, service, &held)?;
    let wanted = node_ports(service);
    let owner = format!("{}/{}", api::meta::namespace(service), api::meta::name(service));
    let shelf = api.cache.shelf(PORTS_SHELF);
    for port in wanted.iter().filter(|p| !held.contains(p)) {
        if shelf.get(&format!("nodeports/{port}")).is_some() {
            return Err(port_refused(service, *port, "provided port is already allocated"));
        }
        claims.expect.push(Expect { key: port_key(*port), revision: 0 });
        let value = Bytes::from(owner.clone());
        claims.writes.push(Write::Put { key: port_key(*port), value, lease: 0 });
    }
    let dropped = held.iter().filter(|p| !wanted.contains(p));
    claims.writes.extend(dropped.map(|port| Write::Delete { key: port_key(*port) }));
    Ok(())
}

/// Gives a port to each entry that has none, and refuses those outside the range.
fn choose_ports(api: &Api, service: &mut Value, held: &[i64]) -> Result<(), ApiError> {
    if !matches!(kind(service), "NodePort" | "LoadBalancer") {
        return Ok(());
    }
    let mut used = node_ports(service);
    let range = &api.network.node_ports;
    for port in &used {
        let inside = u16::try_from(*port).is_ok_and(|p| range.contains(&p));
        if !inside && !held.contains(port) {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            return Err(port_refused(service, *port, &why));
        }
    }
    let local = service.str_at(&["spec", "externalTrafficPolicy"]) == Some("Local");
    let needs_health = local
        && kind(service) == "LoadBalancer"
        && service.int_at(&["spec", "healthCheckNodePort"]).unwrap_or(0) == 0;
    let without = kind(service) == "LoadBalancer"
        && service.bool_at(&["spec", "allocateLoadBalancerNodePorts"]) == Some(false);
    let full = || ApiError::Internal("failed to allocate a nodePort: range is full".into());
    if needs_health {
        let port = free_port(api, &used).ok_or_else(full)?;
        used.push(port);
        service.set_at(&["spec", "healthCheckNodePort"], port);
    }
    let Some(ports) = service.at_mut(&["spec", "ports"]).filter(|_| !without) else {
        return Ok(());
    };
    for entry in ports.items_mut() {
        if entry.int_at(&["nodePort"]).unwrap_or(0) == 0 {
            let port = free_port(api, &used).ok_or_else(full)?;
            used.push(port);
            entry.set("nodePort", port);
        }
    }
    Ok(())
}

fn free_port(api: &Api, used: &[i64]) -> Option<i64> {
    let shelf = api.cache.shelf(PORTS_SHELF);
    let range = api.network.node_ports.clone();
    let free = |port: &u16| {
        !used.contains(&i64::from(*port)) && shelf.get(&format!("nodeports/{port}")).is_none()
    };
    let random = std::iter::repeat_with(|| rand::random_range(range.clone()));
    random.take(RANDOM_TRIES).find(free).or_else(|| range.clone().find(free)).map(i64::from)
}

fn port_refused(service: &Value, port: i64, why: &str) -> ApiError {
    let ports = service.at(&["spec", "ports"]).map(Value::items).unwrap_or_default();
    let index = ports.iter().position(|p| p.int_at(&["nodePort"]) == Some(port)).unwrap_or(0);
    let mut errors = FieldErrors::new();
    errors.invalid(format!("spec.ports[{index}].nodePort"), port, why);
    ApiError::invalid("", "Service", api::meta::name(service), errors)
}

/// Gives back all a deleted service had.
pub(crate) fn release(_: &Api, service: &Value) -> Claims {
    let mut claims = Claims::default();
    claims.writes.extend(cluster_ip(service).map(|ip| Write::Delete { key: ip_key(ip) }));
    let ports = node_ports(service).into_iter();
    claims.writes.extend(ports.map(|port| Write::Delete { key: port_key(port) }));
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_settled_for_one_range() {
        let cases = [
            (r#"{}"#, Some(("SingleStack", 1))),
            (r#"{"ipFamilyPolicy":"PreferDualStack"}"#, Some(("PreferDualStack", 1))),
            (r#"{"ipFamilyPolicy":"RequireDualStack"}"#, None),
            (r#"{"ipFamilies":["IPv6"]}"#, None),
            (r#"{"clusterIP":"None"}"#, Some(("RequireDualStack", 2))),
            (r#"{"clusterIP":"None","selector":{"a":"b"}}"#, Some(("SingleStack", 1))),
            (r#"{"clusterIP":"None","ipFamilies":["IPv6"]}"#, Some(("SingleStack", 1))),
        ];
        for (spec, wanted) in cases {
            let mut service = Value::object();
            service.set("spec", api::codec::json::parse(spec.as_bytes()).unwrap());
            let settled = families(&mut service).ok().map(|()| {
                let spec = &service["spec"];
                (spec["ipFamilyPolicy"].text(), spec["ipFamilies"].items().len())
            });
            assert_eq!(settled, wanted, "{spec}");
        }
    }

    #[test]
    fn a_network_is_read_and_knows_its_addresses() {
        let network = Network::parse("10.96.7.0/16", "30000-32767").unwrap();
        assert_eq!(network.first(), Ipv4Addr::new(10, 96, 0, 1));
        assert!(network.range.contains(Ipv4Addr::new(10, 96, 255, 254)));
        assert!(!network.range.contains(Ipv4Addr::new(10, 96, 255, 255)));
        assert!(!network.range.contains(Ipv4Addr::new(10, 97, 0, 1)));
        assert!(Network::parse("10.96.0.0", "1-2").is_err());
        assert!(Network::parse("10.96.0.0/16", "x").is_err());
    }
}
