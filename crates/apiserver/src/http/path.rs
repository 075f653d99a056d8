//! What a request path means.

use crate::layers::rbac::Attributes;

/// A path below `/api` or `/apis`, taken apart. Nothing is decoded or checked against the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    /// Plural name.
    pub(crate) resource: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// What follows a proxy subresource.
    pub(crate) rest: String,
    /// The deprecated `/watch/` form.
    pub(crate) watch: bool,
}

impl ResourcePath {
    /// What somebody wants who does this here.
    pub(crate) fn attributes<'a>(&'a self, verb: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: "",
        }
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api` or `/apis`: the groups.
    Groups { legacy: bool },
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1` or `/apis/<group>/<version>`: its resources.
    Version { group: String, version: String },
    /// A resource.
    Resource(ResourcePath),
    /// Anything else, such as `/healthz`.
    Other,
}

/// Reads a path (without query).
pub(crate) fn parse(path: &str) -> Target {
    let decoded: Vec<String> = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(|s| percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned())
        .collect();
    if path.contains("//") {
        return Target::Other;
    }
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["api"] => Target::Groups { legacy: true },
        ["apis"] => Target::Groups { legacy: false },
        ["api", version] => {
            Target::Version { group: String::new(), version: (*version).to_owned() }
        }
        ["apis", group] => Target::Group((*group).to_owned()),
        ["apis", group, version] => {
            Target::Version { group: (*group).to_owned(), version: (*version).to_owned() }
        }
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Target::Other,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Target {
    let mut path = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let rest = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => {
            path.watch = true;
            rest
        }
        rest => rest,
    };
    // `/namespaces/x/pods` is about pods, `/namespaces/x/finalize` about the namespace.
    let rest = match rest {
        ["namespaces", namespace, resource, ..] if !matches!(*resource, "status" | "finalize") => {
            path.namespace = (*namespace).to_owned();
            &rest[2..]
        }
        rest => rest,
    };
    let mut parts = rest.iter().map(ToString::to_string);
    path.resource = parts.next().unwrap_or_default();
    path.name = parts.next().unwrap_or_default();
    path.subresource = parts.next().unwrap_or_default();
    path.rest = parts.collect::<Vec<_>>().join("/");
    if path.resource == "namespaces" && path.namespace.is_empty() {
        path.namespace.clone_from(&path.name);
    }
    if !path.rest.is_empty() && path.subresource != "proxy" {
        return Target::Other;
    }
    Target::Resource(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> String {
        match parse(path) {
            Target::Resource(p) => format!(
                "{}/{} ns={} {} {} {} {}{}",
                p.group,
                p.version,
                p.namespace,
                p.resource,
                p.name,
                p.subresource,
                p.rest,
                if p.watch { "watch" } else { "" }
            ),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn paths_mean_what_kubernetes_means() {
        for (path, meaning) in [
            ("/api/v1/pods", "/v1 ns= pods   "),
            ("/api/v1/namespaces/a/pods/p/log", "/v1 ns=a pods p log "),
            ("/api/v1/namespaces/a", "/v1 ns=a namespaces a  "),
            ("/api/v1/namespaces/a/finalize", "/v1 ns=a namespaces a finalize "),
            ("/apis/apps/v1/namespaces/a/deployments", "apps/v1 ns=a deployments   "),
            ("/api/v1/watch/pods", "/v1 ns= pods   watch"),
            ("/api/v1/nodes/n/proxy/stats/summary", "/v1 ns= nodes n proxy stats/summary"),
            ("/api/v1/namespaces/a/pods/p/log/x", "Other"),
            ("/apis/apps", "Group(\"apps\")"),
            ("/version", "Other"),
            ("/api/v1/namespaces/a//pods", "Other"),
        ] {
            assert_eq!(read(path), meaning, "{path}");
        }
    }
}
