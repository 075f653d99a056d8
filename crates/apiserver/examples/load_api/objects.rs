//! What is written to the server: a pod of 2.5 KiB, a ConfigMap of 1 KiB, a node's Lease.

use bytes::Bytes;

/// The namespace that everything is in.
pub(crate) const NAMESPACE: &str = "load";

/// A kind of object, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    ConfigMap,
    Lease,
}

impl Kind {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "pod" => Some(Self::Pod),
            "configmap" => Some(Self::ConfigMap),
            "lease" => Some(Self::Lease),
            _ => None,
        }
    }

    /// The path of all of them.
    pub(crate) fn path(self) -> String {
        let place = |root: &str, plural: &str| format!("{root}/namespaces/{NAMESPACE}/{plural}");
        match self {
            Self::Pod => place("/api/v1", "pods"),
            Self::ConfigMap => place("/api/v1", "configmaps"),
            Self::Lease => place("/apis/coordination.k8s.io/v1", "leases"),
        }
    }

    /// A new one called `name`.
    pub(crate) fn body(self, name: &str) -> Bytes {
        let text = match self {
            Self::Pod => POD.replace("NAME", name),
            Self::ConfigMap => {
                let setting = "v".repeat(120);
                let data: Vec<String> = (0..6)
                    .map(|i| format!("\"setting-{i}.conf\":\"option_{i} = {setting}\\n\""))
                    .collect();
                CONFIG_MAP.replace("NAME", name).replace("DATA", &data.join(","))
            }
            Self::Lease => LEASE.replace("NAME", name),
        };
        text.into()
    }
}

const CONFIG_MAP: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME","labels":{
"app.kubernetes.io/name":"config","tier":"web","round":"0"}},"data":{DATA}}"#;

const LEASE: &str = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"NAME"},
"spec":{"holderIdentity":"NAME","leaseDurationSeconds":40,"renewTime":"2026-01-01T00:00:00.000000Z"}}"#;

/// Two containers as somebody who takes care writes them; no scheduler knows it, so that nobody touches it.
const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"NAME","labels":{
"app.kubernetes.io/name":"shop","app.kubernetes.io/instance":"shop-1","app.kubernetes.io/component":"front",
"app.kubernetes.io/managed-by":"load","tier":"web","round":"0"},"annotations":{
"example.test/checksum":"8f2c4b7a90d1e35f6c8b2a4d7e9f01235b6c7d8e9fa0b1c2d3e4f5061728394a",
"example.test/owner":"the-team-of-the-front@example.test","example.test/scrape":"true"}},"spec":{
"schedulerName":"nobody","terminationGracePeriodSeconds":30,"restartPolicy":"Always",
"securityContext":{"runAsUser":10001,"runAsGroup":10001,"fsGroup":10001},
"tolerations":[{"key":"dedicated","operator":"Equal","value":"web","effect":"NoSchedule"}],
"containers":[{"name":"front","image":"registry.example.test/shop/front:2.14.0",
"args":["--listen=:8080","--config=/etc/front/front.toml","--log=info"],
"ports":[{"name":"http","containerPort":8080},{"name":"metrics","containerPort":9090}],
"env":[{"name":"POD_NAME","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}},
{"name":"POD_IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}},
{"name":"DATABASE","value":"postgres://shop.databases.svc:5432/shop"},
{"name":"CACHE","value":"redis://cache.databases.svc:6379/0"},
{"name":"TOKEN","valueFrom":{"secretKeyRef":{"name":"front","key":"token","optional":true}}}],
"resources":{"requests":{"cpu":"100m","memory":"128Mi"},"limits":{"cpu":"500m","memory":"256Mi"}},
"readinessProbe":{"httpGet":{"path":"/ready","port":"http"},"periodSeconds":5,"failureThreshold":3},
"livenessProbe":{"httpGet":{"path":"/live","port":"http"},"initialDelaySeconds":10,"periodSeconds":10},
"volumeMounts":[{"name":"config","mountPath":"/etc/front","readOnly":true},
{"name":"scratch","mountPath":"/var/scratch"}],
"securityContext":{"runAsNonRoot":true,"readOnlyRootFilesystem":true,"allowPrivilegeEscalation":false,
"capabilities":{"drop":["ALL"]}}},
{"name":"logs","image":"registry.example.test/platform/logs:1.3.7",
"args":["--from=/var/scratch","--to=tcp://logs.platform.svc:5170"],
"resources":{"requests":{"cpu":"10m","memory":"32Mi"},"limits":{"memory":"64Mi"}},
"volumeMounts":[{"name":"scratch","mountPath":"/var/scratch","readOnly":true}]}],
"volumes":[{"name":"config","configMap":{"name":"front"}},
{"name":"scratch","emptyDir":{"sizeLimit":"1Gi"}}]}}"#;
