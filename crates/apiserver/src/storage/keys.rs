//! Where an object lies in the store: `/registry/<resource>/<namespace>/<name>`, as upstream has it.

use api::catalog::Resource;
use bytes::Bytes;

/// Everything that Kubernetes stores is below this.
pub(crate) const ROOT: &str = "/registry/";

/// The key of one object.
pub(crate) fn object(resource: &Resource, namespace: &str, name: &str) -> Bytes {
    let mut key = prefix(resource, namespace);
    key.push_str(name);
    key.into()
}

/// What all keys of a resource (in one namespace, if given) begin with.
pub(crate) fn prefix(resource: &Resource, namespace: &str) -> String {
    let mut key = String::with_capacity(64);
    key.push_str(ROOT);
    key.push_str(&resource.storage_prefix);
    key.push('/');
    if resource.namespaced && !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key
}

/// The first key behind all that begin with `prefix`.
pub(crate) fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    // Prefixes end in '/', which has a successor.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        let end = end_of("/registry/pods/");
        assert!(end.as_ref() > b"/registry/pods/\xff".as_slice());
        assert!(end.as_ref() <= b"/registry/pods0".as_slice());
    }
}
