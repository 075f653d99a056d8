//! Who may approve and sign requests for certificates, attest bundles, and what may be asked for.
//!
//! The plugins CertificateApproval, CertificateSigning, ClusterTrustBundleAttest and CertificateSubjectRestriction:
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization>.

use api::error::ApiError;
use api::object::Value;
use auth::request::CertificateRequest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Review;
use crate::layers::rbac::Attributes;

const GROUP: &str = "certificates.k8s.io";
/// The signer of certificates that the API server itself accepts.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Checks a write of this group.
pub(super) fn validate(review: &Review<'_>) -> Result<(), ApiError> {
    if review.resource.group != GROUP {
        return Ok(());
    }
    let signer = review.object.str_at(&["spec", "signerName"]).unwrap_or_default();
    match (review.resource.plural.as_ref(), review.request.subresource.as_str()) {
        ("certificatesigningrequests", "approval") => {
            let of = review.old.and_then(|old| old.str_at(&["spec", "signerName"]));
            permitted(review, "approve", of.unwrap_or(signer), "approve requests with")
        }
        ("certificatesigningrequests", "status") => {
            let of = |object: &Value| {
                let failed = |c: &&Value| c.str_at(&["type"]) == Some("Failed");
                let conditions = object.at(&["status", "conditions"]).map(Value::items);
                let failed = conditions.unwrap_or_default().iter().find(failed).cloned();
                (object.at(&["status", "certificate"]).cloned(), failed)
            };
            match review.old {
                Some(old) if of(old) != of(review.object) => {
                    let signer = old.str_at(&["spec", "signerName"]).unwrap_or_default();
                    permitted(review, "sign", signer, "sign requests with")
                }
                _ => Ok(()),
            }
        }
        ("certificatesigningrequests", "") if review.old.is_none() && signer == CLIENT_SIGNER => {
            let request = review.object.str_at(&["spec", "request"]).unwrap_or_default();
            // What cannot be read is refused by the kind's own rules, or later by the signer.
            let pem = STANDARD.decode(request).unwrap_or_default();
            let groups = CertificateRequest::parse(&pem).map(|r| r.groups).unwrap_or_default();
            if groups.iter().any(|group| group == auth::identity::MASTERS) {
                return Err(review.forbidden(format!(
                    "use of {CLIENT_SIGNER} signer with system:masters group is not allowed"
                )));
            }
            Ok(())
        }
        ("clustertrustbundles", "") if !signer.is_empty() => {
            permitted(review, "attest", signer, "attest for")
        }
        _ => Ok(()),
    }
}

/// Whether the user has this verb for the signer, by its whole name or for all of its domain.
fn permitted(review: &Review<'_>, verb: &str, signer: &str, doing: &str) -> Result<(), ApiError> {
    let domain = signer.split('/').next().unwrap_or_default();
    let may = [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let ask =
            Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
        review.api.authorizer.allows(&review.request.user, &ask)
    });
    if may {
        return Ok(());
    }
    Err(review.forbidden(format!("user not permitted to {doing} signerName {signer:?}")))
}
