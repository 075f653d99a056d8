//! What is fuzzed: each function takes bytes from outside and must not panic, and where something can be written back,
//! it must be read as the same again. `cargo fuzz` feeds them from `fuzz_targets`, and the normal tests from seeds that
//! are changed at random (`integration-tests/tests/fuzz.rs`).

use api::codec::{json, proto, yaml};
use api::object::Value;
use api::patch;
use api::quantity::Quantity;
use api::schema::{self, Type};
use api::selector::{FieldSelector, LabelSelector};
use bytes::Bytes;
use prost::Message;
use wire::etcdserverpb as etcd;

#[path = "../../crates/apiserver/src/http/path.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod request_path;

/// A target: its name, the function, and inputs to begin with.
pub type Target = (&'static str, fn(&[u8]), &'static [&'static [u8]]);

/// All of them.
pub const TARGETS: &[Target] = &[
    ("path", path, &[b"/apis/apps/v1/namespaces/a%2Fb/deployments/web/scale", b"/api/v1/watch/pods"]),
    ("label_selector", label_selector, &[b"a=b,c!=d,!e,f in (g,h),i notin (j),k>1", b"x.y/z=,,"]),
    ("field_selector", field_selector, &[b"metadata.name=a,spec.nodeName!=b\\,c"]),
    ("quantity", quantity, &[b"1.5Gi", b"-100m", b"12e6", b"0.000000001", b"9223372036854775807Ei"]),
    ("instant", instant, &[b"2026-11-23T01:02:03.000004Z", b"2026-02-30T25:00:00+99:99"]),
    ("json_path", json_path, &[b"{.spec.containers[*].name}", b".status.conditions[?(@.type==\"Ready\")].status"]),
    ("json_text", json_text, &[br#"{"a":[1,-2.5e300,"\ud83d\ude00\u0000",null,true],"b":{"c":{}}}"#, b"[[[[1e999]]]]"]),
    ("yaml_text", yaml_text, &[b"a: &x [1, 2.5, ~, yes]\nb: *x\nc: |\n  text\n", b"---\n- {a: b}\n...\n"]),
    ("object", object, &[br#"7{"kind":"Pod","metadata":{"name":"a","labels":{"b":"c"}},"spec":{"containers":[{}]}}"#]),
    ("protobuf", protobuf, &[b"k8s\0\n\x09\n\x02v1\x12\x03Pod\x12\x05\n\x03\n\x01a\x1a\0\"\0", b"0\n\x03\n\x01a"]),
    ("json_patch", json_patch, &[b"{\"a\":[1]}\0[{\"op\":\"move\",\"from\":\"/a/0\",\"path\":\"/b~1\"},{\"op\":\"test\"}]"]),
    ("merge_patch", merge_patch, &[b"{\"a\":{\"b\":1}}\0{\"a\":{\"b\":null,\"c\":{}}}"]),
    ("strategic_patch", strategic_patch, &[
        b"{\"spec\":{\"containers\":[{\"name\":\"a\"}]}}\0{\"spec\":{\"containers\":[{\"$patch\":\"delete\",\"name\":\"a\"}],\
        \"$setElementOrder/containers\":[{\"name\":\"b\"}]}}",
    ]),
    ("etcd_request", etcd_request, &[b"\n\x01a\x12\x01b", b"\x12\x08\x12\x06\n\x01a\x12\x01b", b"\n\x01a\x18\x05 \x03"]),
    ("auth_request", auth_request, &[b"\n\x01a\x12\x01b\x1a\x02\x08\x01", b"\n\x01a\x12\x07\x08\x02\x12\x01k\x1a\0"]),
    ("store_op", store_op, &[
        b"\x01\n\x01a\x12\x01b", b"\x03\x12\x08\x12\x06\n\x01a\x12\x01b",
        b"@\x01\n\x01a", b"A\x01\0\0\0\0\0\0\0\x01\0\0\0u\x01\n\x01a",
    ]),
    ("peer_message", peer_message, &[b"\n\x02\x08\x03\n\0", b"\n\x08\x08\x05\x10\x02\x1a\x02\x08\x03\x12\x01x"]),
    ("store_record", store_record, &[b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x03abc"]),
    ("dns_name", dns_name, &[b"web.default.svc.cluster.local", b"_http._tcp.web.default.svc.cluster.local", b"1-2-3-4.a.pod"]),
];

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// A type of the schema that the first byte chooses, and the rest.
fn typed(data: &[u8]) -> Option<(&'static Type, &[u8])> {
    let (first, rest) = data.split_first()?;
    let all = schema::all();
    all.get(usize::from(*first) * all.len() / 256).map(|ty| (ty, rest))
}

fn two(data: &[u8]) -> Option<(Value, Value)> {
    let middle = data.iter().position(|byte| *byte == 0)?;
    Some((json::parse(&data[..middle]).ok()?, json::parse(&data[middle + 1..]).ok()?))
}

/// The path of a request.
pub fn path(data: &[u8]) {
    let _target = request_path::parse(text(data));
}

/// A label selector, as a query says it.
pub fn label_selector(data: &[u8]) {
    if let Ok(selector) = LabelSelector::parse(text(data)) {
        let written = selector.to_string();
        let again = LabelSelector::parse(&written).map(|s| s.to_string());
        assert_eq!(again.ok(), Some(written));
    }
}

/// A field selector, as a query says it.
pub fn field_selector(data: &[u8]) {
    let _selector = FieldSelector::parse(text(data));
}

/// An amount with its unit.
pub fn quantity(data: &[u8]) {
    if let Ok(quantity) = Quantity::parse(text(data)) {
        let written = quantity.to_string();
        let again = Quantity::parse(&written).map(|q| (q.to_string(), q.value(), q.milli_value()));
        assert_eq!(again, Ok((written, quantity.value(), quantity.milli_value())));
        let _sums =
            (quantity.plus(quantity), quantity.minus(quantity), quantity.round_up_to_milli());
    }
}

/// A time.
pub fn instant(data: &[u8]) {
    if let Some(time) = api::time::parse(text(data)) {
        let written = api::time::format_micro(time);
        assert_eq!(api::time::parse(&written).map(api::time::format_micro), Some(written));
    }
}

/// The path of a printer column.
pub fn json_path(data: &[u8]) {
    let _path = api::jsonpath::Path::parse(text(data));
}

/// A body in JSON.
pub fn json_text(data: &[u8]) {
    if let Ok(value) = json::parse(data) {
        let written = value.to_bytes();
        assert_eq!(json::parse(&written).ok().map(|v| v.to_bytes()), Some(written));
    }
    let _strict = json::parse_strict(data);
}

/// A body in YAML.
pub fn yaml_text(data: &[u8]) {
    if let Ok(decoded) = yaml::parse(data) {
        let written = yaml::encode(&decoded.value);
        let again = yaml::parse(&written).expect("our own YAML");
        assert_eq!(again.value.to_bytes(), decoded.value.to_bytes(), "{}", text(&written));
    }
}

/// A body in JSON of a type, and what it becomes in protobuf.
pub fn object(data: &[u8]) {
    let Some((ty, body)) = typed(data) else { return };
    if let Ok(decoded) = json::decode(body, ty) {
        same_in_protobuf(&proto::message(&decoded.value, ty), ty);
    }
}

/// A body in protobuf, in its envelope or without.
pub fn protobuf(data: &[u8]) {
    let _envelope = proto::open(data);
    let Some((ty, raw)) = typed(data) else { return };
    if let Ok(value) = proto::decode(raw, ty) {
        same_in_protobuf(&proto::message(&value, ty), ty);
    }
}

fn same_in_protobuf(written: &[u8], ty: &Type) {
    let again = proto::decode(written, ty).expect("our own protobuf");
    assert_eq!(proto::message(&again, ty), written, "{}", ty.name);
}

/// A JSON patch on an object, both in one input with a NUL between.
pub fn json_patch(data: &[u8]) {
    if let Some((target, patch)) = two(data) {
        let _patched = patch::json::apply(target, &patch);
    }
}

/// A merge patch on an object: applied again, it changes nothing more.
pub fn merge_patch(data: &[u8]) {
    if let Some((mut target, patch)) = two(data) {
        patch::merge::apply(&mut target, patch.clone());
        let once = target.to_bytes();
        patch::merge::apply(&mut target, patch);
        assert_eq!(target.to_bytes(), once);
    }
}

/// A strategic merge patch on a pod.
pub fn strategic_patch(data: &[u8]) {
    let pod = schema::all().iter().find(|ty| ty.short_name() == "Pod").expect("there are pods");
    if let Some((target, patch)) = two(data) {
        let _patched = patch::strategic::apply(target, &patch, pod);
    }
}

/// What clients of the store send.
pub fn etcd_request(data: &[u8]) {
    fn same<M: Message + Default + PartialEq + std::fmt::Debug>(data: &[u8], check: impl Fn(&M)) {
        if let Ok(request) = M::decode(data) {
            check(&request);
            assert_eq!(M::decode(request.encode_to_vec().as_slice()).as_ref(), Ok(&request));
        }
    }
    same::<etcd::RangeRequest>(data, |request| {
        let _checked = store::mvcc::check::range(request);
    });
    same::<etcd::PutRequest>(data, |request| {
        let _checked = store::mvcc::check::put(request);
    });
    same::<etcd::DeleteRangeRequest>(data, |request| {
        let _checked = store::mvcc::check::delete(request);
    });
    same::<etcd::TxnRequest>(data, |request| {
        let _checked = store::mvcc::check::txn(request);
        let _read_only = store::mvcc::check::read_only(request);
    });
    same::<etcd::WatchRequest>(data, |_| {});
}

fn comes_back<M: Message + Default + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = M::decode(data) {
        assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
    }
}

/// What etcd's clients say of users and roles.
pub fn auth_request(data: &[u8]) {
    comes_back::<etcd::AuthenticateRequest>(data);
    comes_back::<etcd::AuthUserAddRequest>(data);
    comes_back::<etcd::AuthUserGetRequest>(data);
    comes_back::<etcd::AuthUserChangePasswordRequest>(data);
    comes_back::<etcd::AuthUserGrantRoleRequest>(data);
    comes_back::<etcd::AuthUserRevokeRoleRequest>(data);
    comes_back::<etcd::AuthRoleGrantPermissionRequest>(data);
    comes_back::<etcd::AuthRoleRevokePermissionRequest>(data);
    comes_back::<store::auth::Auth>(data);
}

/// An entry of the store's log, with who proposed it.
pub fn store_op(data: &[u8]) {
    use store::mvcc::Op;
    if let Ok((by, op)) = Op::decode_by(Bytes::copy_from_slice(data)) {
        let written = op.encode_by(&by);
        let (again_by, again) = Op::decode_by(written.clone().into()).expect("our own entry");
        assert_eq!(again.encode_by(&again_by), written);
    }
}

/// What members of a store say to each other.
pub fn peer_message(data: &[u8]) {
    comes_back::<wire::store::Batch>(data);
    comes_back::<wire::store::Chunk>(data);
    comes_back::<store::members::Members>(data);
    comes_back::<store::members::Change>(data);
}

/// What the store reads back from its disk.
pub fn store_record(data: &[u8]) {
    let _revision = store::mvcc::record::decode_revision(data);
    if let Some(event) = store::mvcc::record::decode(Bytes::copy_from_slice(data)) {
        let mut written = Vec::new();
        store::mvcc::record::encode(&event, &mut written);
        let mut again = Vec::new();
        let read = store::mvcc::record::decode(written.clone().into()).expect("our own record");
        store::mvcc::record::encode(&read, &mut again);
        assert_eq!(again, written);
    }
}

/// A name that DNS is asked for.
pub fn dns_name(data: &[u8]) {
    use dns::zone::{Query, Wanted, Zone, answer};
    let mut zone = Zone::new("cluster.local");
    zone.set_namespace("default", true);
    let name = text(data).to_ascii_lowercase();
    for wanted in [Wanted::A, Wanted::Aaaa, Wanted::Srv] {
        let _answer = answer(&zone, &Query { name: &name, wanted, turn: data.len() });
    }
}
