//! Requests for certificates: nodes' own are approved, approved ones are signed, old ones are removed.
//!
//! Signers and what each allows:
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>.

use std::sync::Arc;
use std::time::Duration;

use auth::pki::Authority;
use auth::request::CertificateRequest;
use client::queue::Queue;
use client::{Action, Cache, Client, Controller, Error, Key, Kind, Patch, Plan, Wake};
use daemon::Context;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// The longest that a certificate holds, and how long one holds for which nothing is said.
const LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long requests are kept that were decided, and that nobody has decided.
const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(86_400);

static AUTHORITY: RwLock<Option<Arc<Authority>>> = RwLock::new(None);

/// Makes this the authority that signs; without one, nothing is signed.
pub fn publish(authority: Option<Authority>) {
    *AUTHORITY.write() = authority.map(Arc::new);
}

/// A request, and who could sign it.
#[derive(Debug)]
pub struct Seen {
    request: Arc<CertificateSigningRequest>,
    authority: Option<Arc<Authority>>,
}

/// Signs what was approved and removes what is old.
#[derive(Debug)]
pub struct CertificateSigning;

impl Controller for CertificateSigning {
    const NAME: &'static str = "certificatesigningrequest-signing";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[Wake::own("CertificateSigningRequest")];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let request = cache.at::<CertificateSigningRequest>(key)?;
        Some(Seen { request, authority: AUTHORITY.read().clone() })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let request = &*seen.request;
        let signed = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
        let approved = condition(request, "Approved");
        let failed = condition(request, "Failed");
        let denied = condition(request, "Denied");
        if let (Some(_), None, None, false, Some(authority)) =
            (approved, failed, denied, signed, &seen.authority)
            && [CLIENT, KUBELET_CLIENT, KUBELET_SERVING]
                .contains(&request.spec.signer_name.as_str())
        {
            return Plan::new().push(match sign(request, authority, now) {
                Ok(pem) => {
                    let certificate = ByteString(pem.into_bytes());
                    Action::status(request, json!({"certificate": certificate}))
                }
                Err(error) => Action::status(
                    request,
                    json!({"conditions": with_failure(request, &error, now)}),
                ),
            });
        }
        let decided = failed.or(denied).or(approved.filter(|_| signed));
        let since =
            decided.and_then(|c| c.last_update_time.as_ref().or(c.last_transition_time.as_ref()));
        let since = since.or(request.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
        let keep = if decided.is_some() { DECIDED } else { PENDING };
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if age >= keep {
            return Plan::new().push(Action::delete(request));
        }
        Plan::new().requeue_after(keep.saturating_sub(age) + Duration::from_secs(1))
    }
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// All conditions, and that the request cannot be signed.
fn with_failure(request: &CertificateSigningRequest, error: &str, now: Timestamp) -> Vec<Value> {
    let held = request.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions: Vec<Value> = held.into_iter().flatten().map(|c| json!(c)).collect();
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    conditions
        .push(json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure",
        "message": error, "lastUpdateTime": at, "lastTransitionTime": at}));
    conditions
}

/// The certificate, or why there is none.
fn sign(
    request: &CertificateSigningRequest,
    authority: &Authority,
    now: Timestamp,
) -> Result<String, String> {
    let spec = &request.spec;
    let usages = spec.usages.clone().unwrap_or_default();
    let asked = CertificateRequest::parse(&spec.request.0)
        .map_err(|error| format!("unable to parse csr {:?}: {error}", request.metadata.name))?;
    allowed(&spec.signer_name, &asked, &usages)?;
    let seconds = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok());
    let life = seconds.map_or(LIFE, Duration::from_secs).min(LIFE);
    authority.sign(&asked, &usages, now.as_second(), life).map_err(|error| error.to_string())
}

/// Whether a signer grants what is asked for.
fn allowed(signer: &str, asked: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    let role = if signer == KUBELET_SERVING { "server auth" } else { "client auth" };
    let known = ["key encipherment", "digital signature", role];
    if !usages.iter().any(|usage| usage == role)
        || usages.iter().any(|usage| !known.contains(&usage.as_str()))
    {
        return Err(format!("usages did not match {known:?}"));
    }
    if signer == CLIENT {
        return Ok(());
    }
    if asked.groups != ["system:nodes"] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    if !asked.name.starts_with("system:node:") {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    match (signer, asked.hosts, asked.others) {
        (KUBELET_SERVING, 0, _) => Err("DNS or IP subjectAltName is required".to_owned()),
        (KUBELET_SERVING, _, 0) | (_, 0, 0) => Ok(()),
        (KUBELET_SERVING, ..) => Err("email or URI subjectAltNames are not allowed".to_owned()),
        _ => Err("subjectAltNames are not allowed".to_owned()),
    }
}

/// Approves nodes' own requests for client certificates, until `leading` ends.
pub async fn approve(client: Client, cache: Cache, ctx: Context, leading: CancellationToken) {
    let queue = Queue::<Key>::new(ctx.clock.clone());
    let heard = queue.clone();
    cache.on_change::<CertificateSigningRequest>(move |change| heard.add(change.key.clone()));
    cache.synced().await;
    cache.keys("CertificateSigningRequest").into_iter().for_each(|key| queue.add(key));
    loop {
        let key = tokio::select! {
            () = leading.cancelled() => return,
            key = queue.next() => key,
        };
        let request = cache.at::<CertificateSigningRequest>(&key);
        match request.as_ref().and_then(|request| permission(request)) {
            Some((subresource, message)) => {
                let request = request.as_ref().expect("there is one that needs a permission");
                match approve_one(&client, request, subresource, message, ctx.clock.now()).await {
                    Ok(()) => queue.forget(&key),
                    Err(error) => {
                        tracing::info!(%key, %error, "could not approve, trying again");
                        queue.retry(&key);
                    }
                }
            }
            None => queue.forget(&key),
        }
        queue.done(&key);
    }
}

/// What its author must be permitted for a request to be approved without a person; none for others.
fn permission(request: &CertificateSigningRequest) -> Option<(&'static str, &'static str)> {
    let decided = ["Approved", "Denied"].iter().any(|kind| condition(request, kind).is_some());
    if decided || request.spec.signer_name != KUBELET_CLIENT {
        return None;
    }
    let asked = CertificateRequest::parse(&request.spec.request.0).ok()?;
    allowed(KUBELET_CLIENT, &asked, request.spec.usages.as_deref().unwrap_or_default()).ok()?;
    Some(if request.spec.username.as_deref() == Some(asked.name.as_str()) {
        (
            "selfnodeclient",
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        )
    } else {
        ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")
    })
}

async fn approve_one(
    client: &Client,
    request: &CertificateSigningRequest,
    subresource: &str,
    message: &str,
    now: Timestamp,
) -> Result<(), Error> {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": request.spec.username, "uid": request.spec.uid, "groups": request.spec.groups,
        "extra": request.spec.extra,
        "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
            "verb": "create", "subresource": subresource},
    }});
    let kind = Kind {
        group: "authorization.k8s.io".into(),
        version: "v1".into(),
        resource: "subjectaccessreviews".into(),
    };
    let answer = client.create_raw(&kind, "", "", "", review.to_string().into()).await?;
    let answer: Value =
        serde_json::from_slice(&answer.json).map_err(|error| Error::Codec(error.to_string()))?;
    if answer["status"]["allowed"] != true {
        return Ok(());
    }
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let held = request.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions: Vec<Value> = held.into_iter().flatten().map(|c| json!(c)).collect();
    conditions.push(json!({"type": "Approved", "status": "True", "reason": "AutoApproved",
        "message": message, "lastUpdateTime": at, "lastTransitionTime": at}));
    let change = json!({
        "metadata": {"resourceVersion": request.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    let name = request.metadata.name.as_deref().unwrap_or_default();
    client
        .patch::<CertificateSigningRequest>("", name, "approval", Patch::Merge(change))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request of `node1` with O=system:nodes, made by openssl.
    const NODE: &str = include_str!("csr/node.pem");

    fn request(signer: &str, usages: &[&str], conditions: Value) -> Arc<CertificateSigningRequest> {
        let request = json!({
            "metadata": {"name": "r", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": ByteString(NODE.as_bytes().to_vec()), "signerName": signer, "usages": usages,
                "username": "system:node:node1"},
            "status": {"conditions": conditions},
        });
        Arc::new(serde_json::from_value(request).unwrap())
    }

    fn planned(request: Arc<CertificateSigningRequest>, at: &str) -> Plan {
        let authority = Authority::generate("ca", 1_767_225_600).unwrap();
        let seen = Seen { request, authority: Some(Arc::new(authority)) };
        CertificateSigning::reconcile(&seen, at.parse().unwrap())
    }

    fn approved() -> Value {
        json!([{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T00:00:00Z"}])
    }

    const NODE_USAGES: [&str; 2] = ["client auth", "digital signature"];

    #[test]
    fn what_is_approved_is_signed() {
        let plan =
            planned(request(KUBELET_CLIENT, &NODE_USAGES, approved()), "2026-01-01T00:01:00Z");
        let said = format!("{:?}", plan.actions[0]);
        assert!(said.contains("certificate\"") && !said.contains("Failed"), "{said}");
    }

    #[test]
    fn what_a_signer_does_not_grant_fails() {
        let serving = request(KUBELET_SERVING, &["server auth"], approved());
        let said = format!("{:?}", planned(serving, "2026-01-01T00:01:00Z").actions[0]);
        assert!(said.contains("DNS or IP subjectAltName is required"), "{said}");
        let usages = request(KUBELET_CLIENT, &["client auth", "cert sign"], approved());
        let said = format!("{:?}", planned(usages, "2026-01-01T00:01:00Z").actions[0]);
        assert!(said.contains("usages did not match"), "{said}");
    }

    #[test]
    fn what_nobody_approved_waits_a_day_and_goes() {
        let pending = || request(KUBELET_CLIENT, &NODE_USAGES, json!([]));
        let soon = planned(pending(), "2026-01-01T01:30:00Z");
        assert!(soon.actions.is_empty() && soon.requeue_after.is_some());
        assert_eq!(planned(pending(), "2026-01-02T00:00:00Z").actions.len(), 1);
        let foreign = request("example.com/signer", &NODE_USAGES, approved());
        assert!(
            planned(foreign, "2026-01-01T02:00:00Z").actions.is_empty(),
            "it is not signed yet"
        );
    }

    #[test]
    fn nodes_ask_for_themselves() {
        let own = permission(&request(KUBELET_CLIENT, &NODE_USAGES, json!([]))).unwrap();
        assert_eq!(own.0, "selfnodeclient");
        assert!(permission(&request(CLIENT, &NODE_USAGES, json!([]))).is_none());
        assert!(permission(&request(KUBELET_CLIENT, &NODE_USAGES, approved())).is_none());
    }
}
