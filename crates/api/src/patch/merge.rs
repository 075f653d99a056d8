//! JSON merge patch (RFC 7386).

use crate::object::Value;

/// Merges `patch` into `target`: `null` removes, objects merge, all else replaces.
pub fn apply(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    let map = target.make_object();
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            apply(map.entry(&key), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn merges_as_the_rfc_says() {
        for (target, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!(["a"]), json!(["c"]), json!(["c"])),
        ] {
            let mut got = target;
            apply(&mut got, patch);
            assert_eq!(got, want);
        }
    }
}
