//! Users and roles by etcd's rules.

use super::*;

fn did(auth: &mut Auth, what: What) -> Result<Sessions, AuthError> {
    auth.apply(&Change { what: Some(what) })
}

fn user(auth: &mut Auth, name: &str, roles: &[&str]) {
    let request = AuthUserAddRequest { name: name.into(), ..AuthUserAddRequest::default() };
    did(auth, What::UserAdd(request)).unwrap();
    for role in roles {
        let request = AuthUserGrantRoleRequest { user: name.into(), role: (*role).into() };
        did(auth, What::UserGrant(request)).unwrap();
    }
}

fn role(auth: &mut Auth, name: &str, permissions: &[(Type, &'static str, &'static str)]) {
    let request = AuthRoleAddRequest { name: name.into() };
    did(auth, What::RoleAdd(request)).unwrap();
    for (kind, key, range_end) in permissions {
        let perm = Permission {
            perm_type: (*kind).into(),
            key: (*key).into(),
            range_end: (*range_end).into(),
        };
        let request = AuthRoleGrantPermissionRequest { name: name.into(), perm: Some(perm) };
        did(auth, What::RoleGrant(request)).unwrap();
    }
}

/// `ann` reads and writes `a` to `c` in two pieces, reads from `x` on, and writes `k`.
fn sample() -> Auth {
    let mut auth = Auth::default();
    role(&mut auth, "left", &[(Type::Readwrite, "a", "b"), (Type::Write, "k", "")]);
    role(&mut auth, "right", &[(Type::Readwrite, "b", "c"), (Type::Read, "x", "\0")]);
    user(&mut auth, "ann", &["left", "right"]);
    user(&mut auth, "root", &[ROOT]);
    did(&mut auth, What::Enable(AuthEnableRequest {})).unwrap();
    auth
}

fn as_user(auth: &Auth, user: &str) -> By {
    By::Client(Caller { user: user.into(), revision: auth.revision() })
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), ..PutRequest::default() }
}

#[test]
fn ranges_of_all_roles_count_together() {
    let auth = sample();
    let ann = as_user(&auth, "ann");
    for (key, end, allowed) in [
        ("a", "", true),
        ("a", "b", true),
        ("a", "c", true),
        ("b5", "c", true),
        ("a", "c1", false),
        ("0", "b", false),
        ("c", "", false),
        ("k", "", false),
        ("k", "l", false),
        ("x", "\0", true),
        ("y", "z", true),
        ("a", "\0", false),
    ] {
        let read = auth.read(&ann, &key.into(), &end.into());
        assert_eq!(read.is_ok(), allowed, "{key:?} to {end:?}: {read:?}");
    }
    assert_eq!(auth.read(&as_user(&auth, "root"), &"a".into(), &"\0".into()), Ok(()));
    assert_eq!(auth.read(&By::nobody(), &"a".into(), &"".into()), Err(AuthError::UserEmpty));
    assert_eq!(auth.read(&as_user(&auth, "bob"), &"a".into(), &"".into()), Err(AuthError::Denied));
}

#[test]
fn what_an_operation_shows_or_deletes_must_be_allowed_too() {
    let auth = sample();
    let (ann, mut leases) = (as_user(&auth, "ann"), Leases::default());
    leases.grant(7, 10).unwrap();
    leases.attach(&"secret".into(), 0, 7);
    let allow = |op: Op| auth.allow(&ann, &op, &leases);
    assert_eq!(allow(Op::Put(put("k"))), Ok(()));
    let shown = PutRequest { prev_kv: true, ..put("k") };
    assert_eq!(allow(Op::Put(shown.clone())), Err(AuthError::Denied));
    let leased = PutRequest { lease: 7, ..put("k") };
    assert_eq!(allow(Op::Put(leased.clone())), Err(AuthError::Denied));
    for hidden in [shown, leased, put("z")] {
        let op = |request| RequestOp { request: Some(request) };
        let inner =
            TxnRequest { failure: vec![op(Request::RequestPut(hidden))], ..Default::default() };
        let outer =
            TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() };
        assert_eq!(allow(Op::Txn(outer)), Err(AuthError::Denied));
    }
    let end = wire::etcdserverpb::LeaseRevokeRequest { id: 7 };
    assert_eq!(allow(Op::Revoke(end)), Err(AuthError::Denied));
    assert_eq!(auth.allow(&By::Store, &Op::Revoke(end), &leases), Ok(()));
    assert_eq!(allow(Op::Compact(Default::default())), Err(AuthError::Denied));
}

#[test]
fn callers_identified_before_a_change_are_refused() {
    let mut auth = sample();
    let ann = as_user(&auth, "ann");
    user(&mut auth, "bob", &[]);
    let op = Op::Put(put("a"));
    assert_eq!(auth.allow(&ann, &op, &Leases::default()), Err(AuthError::OldRevision));
    let session = Session { user: "ann".into(), secret: "s".into(), revision: 1 };
    assert_eq!(did(&mut auth, What::Begin(session.clone())), Err(AuthError::OldRevision));
    let session = Session { revision: auth.revision(), ..session };
    let begun = Sessions::Begin("ann".into(), "s".into());
    assert_eq!(did(&mut auth, What::Begin(session)), Ok(begun));
    assert_eq!(did(&mut auth, What::Disable(AuthDisableRequest {})), Ok(Sessions::EndAll));
    assert_eq!(auth.allow(&By::nobody(), &op, &Leases::default()), Ok(()));
}

#[test]
fn root_cannot_be_lost_while_callers_count() {
    let mut auth = Auth::default();
    let enable = What::Enable(AuthEnableRequest {});
    assert_eq!(did(&mut auth, enable.clone()), Err(AuthError::NoRootUser));
    user(&mut auth, "root", &[]);
    assert_eq!(did(&mut auth, enable), Err(AuthError::NoRootRole));
    let mut auth = sample();
    let before = auth.revision();
    let (name, role) = (ROOT.to_owned(), ROOT.to_owned());
    for what in [
        What::UserDelete(AuthUserDeleteRequest { name: name.clone() }),
        What::UserRevoke(AuthUserRevokeRoleRequest { name, role: role.clone() }),
        What::RoleDelete(AuthRoleDeleteRequest { role }),
    ] {
        assert_eq!(did(&mut auth, what), Err(AuthError::InvalidManagement));
    }
    assert_eq!(auth.revision(), before);
    let left = AuthRoleDeleteRequest { role: "left".into() };
    did(&mut auth, What::RoleDelete(left)).unwrap();
    assert_eq!(auth.users["ann"].roles, ["right"]);
    assert_eq!(auth.revision(), before + 1);
    assert_eq!(Auth::decode(auth.encode_to_vec().as_slice()), Ok(auth));
}
