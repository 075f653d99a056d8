//! What a definition is granted among others of its group: its names, and that it is served.
//!
//! Specified by the naming and establishing controllers of `k8s.io/apiextensions-apiserver`.

use std::collections::BTreeSet;

use crate::json;
use crate::meta;
use crate::object::Value;
use crate::time::{self, Timestamp};

/// Held by a definition that is being deleted until all objects of its kind are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Whether a condition of a definition holds.
#[must_use]
pub fn is(definition: &Value, condition: &str) -> bool {
    meta::condition(definition, condition).is_some_and(|c| c["status"].text() == "True")
}

/// Whether requests for the kind are answered.
#[must_use]
pub fn is_served(definition: &Value) -> bool {
    is(definition, "NamesAccepted") || is(definition, "Established")
}

/// The definition with the status that it should have beside `others`; nothing if it has it.
#[must_use]
pub fn settled(definition: &Value, others: &[Value], now: Timestamp) -> Option<Value> {
    let mut new = definition.clone();
    let asked = &definition["spec"]["names"];
    let in_use = InUse::of(definition, others);
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if accepted.is_null() {
        accepted = Value::object();
    }
    let mut conflict: Option<(&str, String)> = None;
    for (field, used, reason) in [
        ("plural", &in_use.resources, "PluralConflict"),
        ("singular", &in_use.resources, "SingularConflict"),
        ("kind", &in_use.kinds, "KindConflict"),
        ("listKind", &in_use.kinds, "ListKindConflict"),
    ] {
        let name = asked[field].text();
        if name != accepted[field].text() && used.contains(name) {
            conflict = Some((reason, format!("{name:?} is already in use")));
        } else if !name.is_empty() {
            accepted.set(field, name);
        }
    }
    let shorts: Vec<String> = asked["shortNames"]
        .items()
        .iter()
        .filter(|name| !accepted["shortNames"].items().contains(name))
        .filter(|name| in_use.resources.contains(name.text()))
        .map(|name| format!("{:?} is already in use", name.text()))
        .collect();
    match shorts.as_slice() {
        [] => copy(&mut accepted, asked, "shortNames"),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    copy(&mut accepted, asked, "categories");
    new.set_at(&["status", "acceptedNames"], accepted);

    let free = conflict.is_none();
    let (reason, message) = conflict.unwrap_or(("NoConflicts", "no conflicts found".into()));
    condition(&mut new, "NamesAccepted", free, (reason, &message), now);
    if !is(&new, "Established") {
        let why = if free {
            ("InitialNamesAccepted", "the initial names have been accepted")
        } else {
            ("NotAccepted", "not all names are accepted")
        };
        condition(&mut new, "Established", free, why, now);
    }
    (new != *definition).then_some(new)
}

/// Says whether a deletion of the definition has come to its objects.
pub fn terminating(definition: &mut Value, holds: bool, why: (&str, &str), now: Timestamp) {
    condition(definition, "Terminating", holds, why, now);
}

/// Sets a condition; its time changes with its status only.
fn condition(
    definition: &mut Value,
    kind: &str,
    holds: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    let old = meta::condition(definition, kind).filter(|old| old["status"].text() == status);
    let since = old.map(|old| old["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| time::format(now).into());
    let new = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since});
    if meta::condition(definition, kind) != Some(&new) {
        meta::set_condition(definition, new);
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    if from[field].is_empty() {
        to.remove(field);
    } else {
        to.set(field, from[field].clone());
    }
}

/// Names that other definitions of the same group have been granted.
struct InUse<'a> {
    resources: BTreeSet<&'a str>,
    kinds: BTreeSet<&'a str>,
}

impl<'a> InUse<'a> {
    fn of(definition: &Value, others: &'a [Value]) -> Self {
        let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        let same_group = |other: &&Value| {
            other["spec"]["group"] == definition["spec"]["group"]
                && meta::name(other) != meta::name(definition)
        };
        for other in others.iter().filter(same_group) {
            let names = &other["status"]["acceptedNames"];
            resources.extend([names["plural"].text(), names["singular"].text()]);
            resources.extend(names["shortNames"].items().iter().map(Value::text));
            kinds.extend([names["kind"].text(), names["listKind"].text()]);
        }
        resources.remove("");
        kinds.remove("");
        Self { resources, kinds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &str) -> Value {
        json!({
            "metadata": {"name": format!("{plural}.example.org")},
            "spec": {"group": "example.org", "names": {
                "plural": plural, "singular": kind.to_lowercase(), "kind": kind,
                "listKind": format!("{kind}List"), "shortNames": [short]}}
        })
    }

    fn now() -> Timestamp {
        time::parse("2026-01-01T00:00:00Z").unwrap()
    }

    #[test]
    fn the_first_gets_its_names_and_is_served_at_once() {
        let first = settled(&definition("toys", "Toy", "ty"), &[], now()).unwrap();
        assert!(is_served(&first) && is(&first, "Established"));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert_eq!(
            meta::condition(&first, "NamesAccepted").unwrap()["reason"].text(),
            "NoConflicts"
        );
        // Once settled it stays so, whatever the time.
        assert_eq!(settled(&first, std::slice::from_ref(&first), now()), None);
    }

    #[test]
    fn the_second_waits_for_names_that_are_taken() {
        let first = settled(&definition("toys", "Toy", "ty"), &[], now()).unwrap();
        for (second, reason, message) in [
            (definition("games", "Toy", "g"), "ListKindConflict", "\"ToyList\" is already in use"),
            (definition("ty", "Tie", "t"), "PluralConflict", "\"ty\" is already in use"),
            (definition("games", "Game", "toy"), "ShortNamesConflict", "\"toy\" is already in use"),
        ] {
            let waits = settled(&second, std::slice::from_ref(&first), now()).unwrap();
            let refused = meta::condition(&waits, "NamesAccepted").unwrap();
            assert_eq!((refused["reason"].text(), refused["message"].text()), (reason, message));
            assert_eq!(
                meta::condition(&waits, "Established").unwrap()["reason"].text(),
                "NotAccepted"
            );
            assert!(!is_served(&waits));
            // The names are free again.
            let served = settled(&waits, &[], now()).unwrap();
            assert!(is(&served, "Established"));
        }
        let mut elsewhere = definition("toys", "Toy", "ty");
        elsewhere.set_at(&["spec", "group"], "other.org");
        assert!(is_served(&settled(&elsewhere, &[first], now()).unwrap()));
    }

    #[test]
    fn a_served_kind_stays_served_when_a_new_short_name_is_taken() {
        let first = settled(&definition("toys", "Toy", "ty"), &[], now()).unwrap();
        let mut second = settled(&definition("games", "Game", "g"), &[], now()).unwrap();
        second.set_at(&["spec", "names", "shortNames"], json!(["g", "ty"]));
        let refused = settled(&second, &[first], now()).unwrap();
        assert!(is(&refused, "Established") && !is(&refused, "NamesAccepted"));
        assert_eq!(refused["status"]["acceptedNames"]["shortNames"], json!(["g"]));
    }
}
