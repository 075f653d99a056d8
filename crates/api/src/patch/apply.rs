//! Server-side apply and the record of field owners (`metadata.managedFields`).
//!
//! Upstream's order is kept: a write is tracked when the object has its defaults and before admission and strategy
//! change it further, so nobody owns what the server itself adds.

use super::fields::{Set, covers, disjoint};
use super::typed::{self, Comparison, Kind};
use crate::catalog::Resource;
use crate::error::{ApiError, ApplyConflict, Result};
use crate::object::Value;
use crate::time::{self, Timestamp};

/// Owner of what was there before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Owner of the oldest updates once there are too many.
const ANCIENT: &str = "ancient-changes";
const UPDATE_MANAGERS_MAX: usize = 10;

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// Subresource written through, or empty.
    pub subresource: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
struct Owner {
    manager: String,
    applied: bool,
    api_version: String,
    subresource: String,
    time: String,
    set: Set,
}

impl Owner {
    fn is(&self, other: &Owner) -> bool {
        self.manager == other.manager
            && self.applied == other.applied
            && self.api_version == other.api_version
            && self.subresource == other.subresource
    }

    /// The name in conflict messages.
    fn display(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applied {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

fn read_owners(v: &Value) -> Vec<Owner> {
    let entries = v["metadata"]["managedFields"].items().iter();
    let known = entries.filter(|e| matches!(e["operation"].text(), "Apply" | "Update"));
    let owners = known.map(|e| Owner {
        manager: e["manager"].text().to_owned(),
        applied: e["operation"].text() == "Apply",
        api_version: e["apiVersion"].text().to_owned(),
        subresource: e["subresource"].text().to_owned(),
        time: e["time"].text().to_owned(),
        set: Set::from_value(&e["fieldsV1"]),
    });
    owners.filter(|o| !o.set.is_empty()).collect()
}

/// Whether all entries could be understood; an update with others keeps the stored record.
fn owners_valid(v: &Value) -> bool {
    v["metadata"]["managedFields"].items().iter().all(|e| {
        matches!(e["operation"].text(), "Apply" | "Update")
            && e["fieldsType"].text() == "FieldsV1"
            && !e["apiVersion"].text().is_empty()
    })
}

fn write_owners(v: &mut Value, mut owners: Vec<Owner>) {
    owners.retain(|o| !o.set.is_empty());
    owners.sort_by(|a, b| {
        let key = |o: &Owner| {
            (
                !o.applied,
                o.time.clone(),
                o.manager.clone(),
                o.api_version.clone(),
                o.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let entries = owners.into_iter().map(|o| {
        let mut e = crate::object::Map::with_capacity(7);
        e.insert("apiVersion", o.api_version);
        e.insert("fieldsType", "FieldsV1");
        e.insert("fieldsV1", o.set.into_value());
        e.insert("manager", o.manager);
        e.insert("operation", if o.applied { "Apply" } else { "Update" });
        if !o.subresource.is_empty() {
            e.insert("subresource", o.subresource);
        }
        e.insert("time", o.time);
        Value::Object(e)
    });
    let entries: Vec<Value> = entries.collect();
    crate::meta::set(v, "managedFields", entries);
}

/// Metadata that nobody owns.
const UNOWNED: [&str; 9] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

fn strip(set: &mut Set) {
    for path in ["f:apiVersion", "f:kind"] {
        set.cut(&[path]);
    }
    for name in UNOWNED {
        set.cut(&["f:metadata", name]);
    }
    set.drop_path(&["f:metadata"]);
}

/// Fields that a write through `subresource` cannot change, hence does not own.
fn strip_reset(set: &mut Set, resource: &Resource, subresource: &str) {
    match subresource {
        "" if resource.status_reset => {
            set.cut(&["f:status"]);
            // Who asks for a certificate is written by the server, and the request never changes.
            if resource.plural == "certificatesigningrequests" {
                set.cut(&["f:spec"]);
            }
        }
        "status" if resource.custom => {
            let status = set.below.remove("f:status");
            set.below = crate::object::Map::new();
            if let Some(status) = status {
                set.below.insert("f:status", status);
            }
        }
        "finalize" => set.cut(&["f:status"]),
        "approval" => {
            set.cut(&["f:spec"]);
            set.cut(&["f:status", "f:certificate"]);
        }
        "status" => {
            set.cut(&["f:spec"]);
            match resource.plural.as_ref() {
                "pods" => {
                    set.cut(&["f:metadata", "f:deletionTimestamp"]);
                    set.cut(&["f:metadata", "f:ownerReferences"]);
                }
                "deployments" => set.cut(&["f:metadata", "f:labels"]),
                _ => {}
            }
        }
        _ => {}
    }
}

/// The object without what is never compared.
fn bare(v: &Value) -> Value {
    let mut v = v.clone();
    v.remove_at(&["metadata", "managedFields"]);
    v
}

/// What a server compares a new object with: an empty one of its type.
fn blank(resource: &Resource) -> Value {
    let mut v =
        if resource.custom { Value::object() } else { crate::defaults::zero(&resource.schema) };
    v.set("apiVersion", resource.api_version());
    v.set("kind", resource.kind.as_ref());
    v
}

/// What an update changed: all that the writer comes to own, and what is gone.
fn changes(old: &Value, new: &Value, resource: &Resource, subresource: &str) -> (Set, Set) {
    let mut c = Comparison::default();
    typed::compare(Kind::Struct(&resource.schema), Some(old), Some(new), &mut c);
    let mut taken = c.added;
    taken.union(c.modified);
    let mut removed = c.removed;
    for set in [&mut taken, &mut removed] {
        strip(set);
        strip_reset(set, resource, subresource);
    }
    (taken, removed)
}

/// Takes `taken` and `removed` from all owners but `me`.
fn settle(owners: &mut Vec<Owner>, me: &Owner, taken: &Set, removed: &Set) {
    for o in owners.iter_mut().filter(|o| !o.is(me)) {
        o.set.subtract(taken);
        o.set.subtract(removed);
    }
    owners.retain(|o| !o.set.is_empty());
}

/// The record after a writer changed only what it owns already and nobody else does, as most writes do: there is a later
/// time, and nothing to be counted. None where it is not so.
fn renewed(
    old: &Value,
    new: &Value,
    taken: &Set,
    removed: &Set,
    resource: &Resource,
    writer: Writer<'_>,
) -> Option<Value> {
    let record = &old["metadata"]["managedFields"];
    let sent = &new["metadata"]["managedFields"];
    let kept = sent.items().is_empty() || sent == record;
    if !kept || taken.is_empty() || !removed.is_empty() || !owners_valid(old) {
        return None;
    }
    let version = resource.api_version();
    let mine = |e: &Value| {
        e["operation"].text() == "Update"
            && e["manager"].text() == writer.manager
            && e["subresource"].text() == writer.subresource
            && e["apiVersion"].text() == version
    };
    let (own, others): (Vec<&Value>, Vec<&Value>) = record.items().iter().partition(|e| mine(e));
    let [own] = own.as_slice() else { return None };
    let apart = others.iter().all(|e| !e["fieldsV1"].is_empty() && disjoint(&e["fieldsV1"], taken));
    if !apart || !covers(&own["fieldsV1"], taken) || record.items().len() > UPDATE_MANAGERS_MAX {
        return None;
    }
    let mut record = record.clone();
    let own = record.items_mut().iter_mut().find(|e| mine(e))?;
    own.set("time", time::format(writer.now));
    record.as_array_mut()?.sort_by(|a, b| {
        let key = |e: &Value| {
            let text = |name: &str| e[name].text().to_owned();
            let rest = ["time", "manager", "apiVersion", "subresource"].map(text);
            (e["operation"].text() != "Apply", rest)
        };
        key(a).cmp(&key(b))
    });
    Some(record)
}

fn update(
    owners: &mut Vec<Owner>,
    old: &Value,
    new: &Value,
    resource: &Resource,
    writer: Writer<'_>,
) {
    let changes = changes(old, new, resource, writer.subresource);
    update_by(owners, changes, resource, writer);
}

fn update_by(
    owners: &mut Vec<Owner>,
    (taken, removed): (Set, Set),
    resource: &Resource,
    writer: Writer<'_>,
) {
    let mut me = Owner {
        manager: writer.manager.to_owned(),
        applied: false,
        api_version: resource.api_version(),
        subresource: writer.subresource.to_owned(),
        time: time::format(writer.now),
        set: Set::default(),
    };
    settle(owners, &me, &taken, &removed);
    match owners.iter_mut().find(|o| o.is(&me)) {
        Some(mine) => {
            mine.set.subtract(&removed);
            if !taken.is_empty() {
                mine.set.union(taken);
                mine.time = me.time;
            }
        }
        None if !taken.is_empty() => {
            me.set = taken;
            owners.push(me);
        }
        None => {}
    }
    cap(owners);
}

/// The oldest update owners of each version become one when there are too many.
fn cap(owners: &mut Vec<Owner>) {
    loop {
        let mut updates: Vec<usize> = (0..owners.len()).filter(|i| !owners[*i].applied).collect();
        if updates.len() <= UPDATE_MANAGERS_MAX {
            return;
        }
        updates.sort_by(|a, b| owners[*a].time.cmp(&owners[*b].time));
        let Some(oldest) = updates.into_iter().find(|i| owners[*i].manager != ANCIENT) else {
            return;
        };
        let mut old = owners.remove(oldest);
        ANCIENT.clone_into(&mut old.manager);
        old.subresource.clear();
        match owners.iter_mut().find(|o| o.is(&old)) {
            Some(ancient) => {
                ancient.set.union(old.set);
                ancient.time = old.time;
            }
            None => owners.push(old),
        }
    }
}

/// Keeps the stored record, times included, where a write changed nothing.
fn settle_times(old: Option<&Value>, new: &mut Value) {
    let Some(old) = old else { return };
    let timeless = |v: &Value| -> Vec<Value> {
        let list = v["metadata"]["managedFields"].items().iter();
        let mut list: Vec<Value> = list
            .map(|e| {
                let mut e = e.clone();
                e.remove("time");
                e
            })
            .collect();
        list.sort_by_key(Value::to_bytes);
        list
    };
    if crate::meta::same_but(old, new, "managedFields") && timeless(old) == timeless(new) {
        let stored = old["metadata"]["managedFields"].clone();
        crate::meta::set(new, "managedFields", stored);
    }
}

/// Brings managedFields of `new` up to date after any write but an apply.
///
/// Call it when `new` has its defaults, before admission. `old` is the stored object, `None` on create. A status
/// write passes the object as received, with the subresource in `writer`.
pub fn track_update(old: Option<&Value>, new: &mut Value, resource: &Resource, writer: Writer<'_>) {
    let fresh;
    let old_value = match old {
        Some(o) => o,
        None => {
            fresh = blank(resource);
            &fresh
        }
    };
    let (taken, removed) = changes(old_value, new, resource, writer.subresource);
    if let Some(record) = renewed(old_value, new, &taken, &removed, resource, writer) {
        crate::meta::set(new, "managedFields", record);
        return;
    }
    let sent = new["metadata"]["managedFields"].items();
    let reset = sent.len() == 1 && sent[0].members().next().is_none();
    let mut owners = match old {
        Some(_) if reset => Vec::new(),
        Some(old) if sent.is_empty() || !writer.subresource.is_empty() || !owners_valid(new) => {
            read_owners(old)
        }
        Some(_) => read_owners(new),
        None => Vec::new(),
    };
    if old.is_some() && owners.is_empty() {
        // Nobody applied yet and the record was dropped or never kept: it stays away.
        crate::meta::set(new, "managedFields", Value::Null);
        return;
    }
    update_by(&mut owners, (taken, removed), resource, writer);
    write_owners(new, owners);
    settle_times(old, new);
}

/// Applies `patch` (an apply configuration as parsed, not yet pruned) to `live` (`None` creates).
///
/// The result carries its managedFields and lacks defaults: run defaults on it, then the rest of the write path
/// (not `track_update`), then `settle_unchanged`.
pub fn apply(
    live: Option<&Value>,
    patch: &Value,
    resource: &Resource,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value> {
    let kind = Kind::Struct(&resource.schema);
    let mut config = bare(patch);
    check_config(&config, resource)?;
    config.remove_at(&["metadata", "creationTimestamp"]);
    let mut owners = live.map(read_owners).unwrap_or_default();
    let base = match live {
        Some(live) => bare(live),
        None => blank(resource),
    };
    if let Some(live) = live
        && owners.is_empty()
    {
        let before = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..writer };
        update(&mut owners, &blank(resource), &bare(live), resource, before);
    }
    let mut me = Owner {
        manager: writer.manager.to_owned(),
        applied: true,
        api_version: resource.api_version(),
        subresource: writer.subresource.to_owned(),
        time: time::format(writer.now),
        set: typed::to_set(kind, &config),
    };
    strip(&mut me.set);
    strip_reset(&mut me.set, resource, writer.subresource);
    let last = owners.iter().position(|o| o.is(&me)).map(|i| owners.remove(i));
    let mut merged = typed::merge(kind, Some(&base), &config);
    if let Some(last) = &last {
        let mut keep = me.set.clone();
        owners.iter().for_each(|o| keep.union(o.set.clone()));
        // Identity and type stay whatever is owned.
        for path in ["f:apiVersion", "f:kind", "f:metadata"] {
            keep.child(path).here = true;
        }
        typed::prune(kind, &mut merged, &last.set, &keep);
    }
    let (taken, removed) = changes(&base, &merged, resource, writer.subresource);
    if !force {
        refuse_conflicts(&owners, &taken)?;
    }
    settle(&mut owners, &me, &taken, &removed);
    if let Some(last) = last.filter(|l| l.set == me.set && taken.is_empty() && removed.is_empty()) {
        me.time = last.time;
    }
    owners.push(me);
    write_owners(&mut merged, owners);
    Ok(merged)
}

/// After an apply that changed nothing, gives the object its stored record back, times included.
pub fn settle_unchanged(old: Option<&Value>, new: &mut Value) {
    settle_times(old, new);
}

fn check_config(config: &Value, resource: &Resource) -> Result<()> {
    typed::check(Kind::Struct(&resource.schema), config, "").map_err(|e| {
        ApiError::Unexpected(format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {e}",
            crate::meta::namespace(config),
            crate::meta::name(config),
            if resource.group.is_empty() {
                format!("/{}", resource.version)
            } else {
                resource.api_version()
            },
            resource.kind
        ))
    })
}

fn refuse_conflicts(owners: &[Owner], taken: &Set) -> Result<()> {
    let mut list = Vec::new();
    for o in owners {
        let both = o.set.intersection(taken);
        list.extend(
            both.render().into_iter().map(|field| ApplyConflict { manager: o.display(), field }),
        );
    }
    if list.is_empty() { Ok(()) } else { Err(ApiError::ApplyConflicts(list)) }
}

/// The fields a manager owns.
pub fn owned_by(v: &Value, manager: &str) -> Set {
    let own = read_owners(v).into_iter().filter(|o| o.manager == manager);
    own.fold(Set::default(), |mut all, o| {
        all.union(o.set);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn write(old: Option<&Value>, mut new: Value, manager: &str, second: i64) -> Value {
        let catalog = crate::catalog::Catalog::builtin();
        let resource = catalog.find("", "v1", "configmaps").unwrap();
        let now = Timestamp::from_second(second).unwrap();
        let writer = Writer { manager, subresource: "", now };
        let mut slow = new.clone();
        track_update(old, &mut new, resource, writer);
        if let Some(old) = old {
            let mut owners = read_owners(old);
            update(&mut owners, old, &slow, resource, writer);
            write_owners(&mut slow, owners);
            assert_eq!(new, slow, "the short way and the long one differ");
        }
        new
    }

    fn times(v: &Value) -> Vec<(&str, &str)> {
        let list = v["metadata"]["managedFields"].items().iter();
        list.map(|e| (e["manager"].text(), e["time"].text())).collect()
    }

    #[test]
    fn who_changes_only_what_it_owns_gets_a_later_time() {
        let map = |a: &str, b: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": a, "b": b}});
        let first = write(None, map("1", "1"), "x", 1);
        let second = write(Some(&first), map("1", "2"), "y", 2);
        assert_eq!(times(&second), [("x", "1970-01-01T00:00:01Z"), ("y", "1970-01-01T00:00:02Z")]);
        // The earlier owner writes last, hence stands last.
        let third = write(Some(&second), map("3", "2"), "x", 3);
        assert_eq!(times(&third), [("y", "1970-01-01T00:00:02Z"), ("x", "1970-01-01T00:00:03Z")]);
        // What somebody else owns changes hands.
        let fourth = write(Some(&third), map("3", "4"), "x", 4);
        assert_eq!(times(&fourth), [("x", "1970-01-01T00:00:04Z")]);
    }
}
