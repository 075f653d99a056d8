//! Rules of events, in the older form and the newer one.

use super::{IMMUTABLE, reasons};
use crate::error::FieldErrors;
use crate::meta;
use crate::name;
use crate::object::Value;

/// Event of the core group.
pub fn event(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let legacy = new["eventTime"].is_null() && old.is_none_or(|o| o["eventTime"].is_null());
    let namespace = new["involvedObject"]["namespace"].text();
    if legacy {
        let of_event = meta::namespace(new);
        if namespace != of_event && !(namespace.is_empty() && of_event == "default") {
            errs.invalid("involvedObject.namespace", namespace, "does not match event.namespace");
        }
        return;
    }
    strict_event(new, errs);
}

/// An Event in its newer form: more is asked of it, under the names of the older form.
pub fn new_event(new: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let core = |v: &Value| {
        let mut v = v.clone();
        crate::catalog::convert::event_to_core(&mut v);
        v
    };
    let new = core(new);
    let (of, own) = (new["involvedObject"]["namespace"].text(), meta::namespace(&new));
    if of != own && !(of.is_empty() && own == "default") {
        errs.invalid("involvedObject.namespace", of, "does not match event.namespace");
    }
    if new["eventTime"].is_null() {
        errs.required("eventTime", "");
        event_type(&new, errs);
    } else {
        strict_event(&new, errs);
    }
    let Some(old) = old.map(core) else { return };
    // Upstream compares the reason twice.
    let fixed = [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("reason", "reason"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for (key, field) in fixed {
        if new[key] != old[key] {
            errs.invalid(field, super::internal(&new[key]), IMMUTABLE);
        }
    }
}

fn event_type(new: &Value, errs: &mut FieldErrors) {
    let kind = new["type"].text();
    if !matches!(kind, "Normal" | "Warning") {
        errs.invalid("type", "", format!("has invalid value: {kind}"));
    }
}

fn strict_event(new: &Value, errs: &mut FieldErrors) {
    let controller = new["reportingComponent"].text();
    if controller.is_empty() {
        errs.required("reportingController", "");
    } else {
        reasons("reportingController", controller, name::qualified(controller), errs);
    }
    for (field, key, max) in [
        ("reportingInstance", "reportingInstance", 128),
        ("action", "action", 128),
        ("reason", "reason", 128),
    ] {
        let text = new[key].text();
        if text.is_empty() {
            errs.required(field, "");
        } else if text.len() > max {
            errs.invalid(field, "", format!("can have at most {max} characters"));
        }
    }
    if new["message"].text().len() > 1024 {
        errs.invalid("message", "", "can have at most 1024 characters");
    }
    event_type(new, errs);
    let series = &new["series"];
    if !series.is_null() {
        if series["count"].as_int().unwrap_or(0) < 2 {
            errs.invalid("series.count", "", "should be at least 2");
        }
        if series["lastObservedTime"].is_null() {
            errs.required("series.lastObservedTime", "");
        }
    }
}
