//! What is in a volume: the files of configMap, secret, downwardAPI and projected volumes. Pure;
//! tokens are fetched by the caller.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection,
    Volume, VolumeProjection,
};

use super::atomic::{File, Files};
use crate::pod::env::{Sources, field, resource_field};
use crate::pod::spec::NodeFacts;
use crate::pod::{containers, namespace};

const MODE: i32 = 0o644;
const TOKEN_MODE: u32 = 0o600;

/// What a volume is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// An empty directory; in memory, at most of so many bytes.
    Empty {
        /// A tmpfs.
        memory: bool,
        /// Its size in bytes.
        bytes: Option<i64>,
    },
    /// Files that the cluster gives.
    Files(Files),
    /// A path of the node, which must be of a type.
    Host {
        /// The path.
        path: String,
        /// The type, or empty.
        of: String,
    },
    /// A directory of the node behind a claim.
    Local {
        /// The path.
        path: String,
        /// Whether it is for us to make it.
        ours: bool,
    },
}

/// Tokens by `tokens`' order of a volume's sources.
pub type Tokens = BTreeMap<String, Vec<u8>>;

/// The tokens a volume needs, by their path in it.
#[must_use]
pub fn tokens(volume: &Volume) -> Vec<&ServiceAccountTokenProjection> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.filter_map(|source| source.service_account_token.as_ref()).collect()
}

/// What a volume is to hold.
///
/// # Errors
/// When something it needs is not there, in Kubernetes' words; or it is of a kind we do not have.
pub fn kind(
    pod: &Pod,
    volume: &Volume,
    node: &NodeFacts,
    sources: &Sources,
    tokens: &Tokens,
) -> Result<Kind, String> {
    let fill = Fill { pod, node, sources, tokens };
    let mut files = Files::new();
    if let Some(v) = &volume.empty_dir {
        let limit = v.size_limit.as_ref();
        let bytes =
            limit.and_then(|q| api::quantity::Quantity::parse(&q.0).ok()).map(|q| q.value());
        let memory = v.medium.as_deref() == Some("Memory");
        return Ok(Kind::Empty { memory, bytes: bytes.filter(|b| *b > 0) });
    }
    if let Some(v) = &volume.host_path {
        return Ok(Kind::Host { path: v.path.clone(), of: v.type_.clone().unwrap_or_default() });
    }
    if let Some(v) = &volume.config_map {
        let mode = v.default_mode.unwrap_or(MODE);
        fill.config_map(&v.name, v.items.as_deref(), mode, v.optional, &mut files)?;
    } else if let Some(v) = &volume.secret {
        let name = v.secret_name.as_deref().unwrap_or_default();
        let mode = v.default_mode.unwrap_or(MODE);
        fill.secret(name, v.items.as_deref(), mode, v.optional, &mut files)?;
    } else if let Some(v) = &volume.downward_api {
        let items = v.items.as_deref().unwrap_or_default();
        fill.downward(items, v.default_mode.unwrap_or(MODE), &mut files)?;
    } else if let Some(v) = &volume.projected {
        let mode = v.default_mode.unwrap_or(MODE);
        for source in v.sources.iter().flatten() {
            fill.projection(source, mode, &mut files)?;
        }
    } else {
        return Err("this kind of volume is not offered by this node".to_owned());
    }
    Ok(Kind::Files(files))
}

struct Fill<'a> {
    pod: &'a Pod,
    node: &'a NodeFacts,
    sources: &'a Sources,
    tokens: &'a Tokens,
}

impl Fill<'_> {
    fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
        files: &mut Files,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(map) = self.sources.config_maps.get(name) else {
            let missing = format!("configmap {name:?} not found");
            return if optional { Ok(()) } else { Err(missing) };
        };
        let missing = |key: &str| format!("configmap references non-existent config key: {key}");
        choose(&config_map_data(map), items, mode, optional, missing, files)
    }

    fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
        files: &mut Files,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(secret) = self.sources.secrets.get(name) else {
            let missing = format!("secret {name:?} not found");
            return if optional { Ok(()) } else { Err(missing) };
        };
        let missing = |key: &str| format!("references non-existent secret key: {key}");
        choose(&secret_data(secret), items, mode, optional, missing, files)
    }

    fn downward(
        &self,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
        files: &mut Files,
    ) -> Result<(), String> {
        for item in items {
            let text = if let Some(r) = &item.field_ref {
                field(self.pod, &r.field_path, self.node, &self.sources.pod_ips)
                    .ok_or_else(|| format!("unsupported fieldPath: {}", r.field_path))?
            } else if let Some(r) = &item.resource_field_ref {
                let spec = self.pod.spec.clone().unwrap_or_default();
                let own = containers(&spec).map(|(_, c)| c).next();
                own.and_then(|own| resource_field(self.pod, own, r, self.node))
                    .ok_or_else(|| format!("unsupported container resource : {}", r.resource))?
            } else {
                String::new()
            };
            files.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(())
    }

    fn projection(
        &self,
        source: &VolumeProjection,
        mode: i32,
        files: &mut Files,
    ) -> Result<(), String> {
        if let Some(v) = &source.config_map {
            self.config_map(&v.name, v.items.as_deref(), mode, v.optional, files)?;
        }
        if let Some(v) = &source.secret {
            self.secret(&v.name, v.items.as_deref(), mode, v.optional, files)?;
        }
        if let Some(v) = &source.downward_api {
            self.downward(v.items.as_deref().unwrap_or_default(), mode, files)?;
        }
        if let Some(v) = &source.service_account_token {
            let token = self.tokens.get(&v.path);
            let token = token.ok_or_else(|| format!("no token for {}", namespace(self.pod)))?;
            let mut token = file(token.clone(), mode);
            // A token is for whom it is made: the pod's group, or its one user, and nobody else.
            let user = one_user(self.pod);
            if user.is_some() || fs_group(self.pod).is_some() {
                (token.mode, token.owner) = (TOKEN_MODE, user);
            }
            files.insert(v.path.clone(), token);
        }
        Ok(())
    }
}

/// The group that owns a pod's volumes.
#[must_use]
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The user that all containers of a pod run as, if there is one.
fn one_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let users = containers(spec)
        .map(|(_, c)| c.security_context.as_ref().and_then(|own| own.run_as_user).or(of_pod));
    let mut users: Vec<Option<i64>> = users.collect();
    users.dedup();
    match users.as_slice() {
        [Some(user)] => u32::try_from(*user).ok(),
        _ => None,
    }
}

type Data = BTreeMap<String, Vec<u8>>;

fn config_map_data(map: &ConfigMap) -> Data {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> Data {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

fn choose(
    data: &Data,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    missing: impl Fn(&str) -> String,
    files: &mut Files,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(data.iter().map(|(key, value)| (key.clone(), file(value.clone(), mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let file = file(value.clone(), item.mode.unwrap_or(mode));
                files.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(())
}

fn file(data: Vec<u8>, mode: i32) -> File {
    File { data, mode: u32::try_from(mode).unwrap_or(0o644) & 0o777, owner: None }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn filled(volume: Value) -> Result<Kind, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c"}], "securityContext": {"runAsUser": 7}},
        }))
        .unwrap();
        let map = json!({"data": {"k": "v", "l": "w"}, "binaryData": {"b": "AAE="}});
        let sources = Sources {
            config_maps: [("cm".to_owned(), serde_json::from_value(map).unwrap())].into(),
            ..Sources::default()
        };
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let tokens = [("token".to_owned(), b"t".to_vec())].into();
        kind(&pod, &volume, &NodeFacts::default(), &sources, &tokens)
    }

    fn shown(volume: Value) -> Vec<String> {
        let Ok(Kind::Files(files)) = filled(volume) else { panic!("files") };
        let show = |(path, f): (&String, &File)| {
            format!("{path} {:o} {:?} {}", f.mode, f.owner, String::from_utf8_lossy(&f.data))
        };
        files.iter().map(show).collect()
    }

    #[test]
    fn config_maps_give_all_keys_or_those_chosen() {
        let all = shown(json!({"name": "v", "configMap": {"name": "cm"}}));
        assert_eq!(all, ["b 644 None \u{0}\u{1}", "k 644 None v", "l 644 None w"]);
        let items = json!([{"key": "k", "path": "x/y", "mode": 0o400}]);
        let some = shown(json!({"name": "v", "configMap": {"name": "cm", "items": items}}));
        assert_eq!(some, ["x/y 400 None v"]);
    }

    #[test]
    fn what_is_missing_is_said_unless_optional() {
        let missing = json!({"name": "v", "configMap": {"name": "no"}});
        assert_eq!(filled(missing), Err("configmap \"no\" not found".to_owned()));
        assert!(
            shown(json!({"name": "v", "configMap": {"name": "no", "optional": true}})).is_empty()
        );
        let items = json!([{"key": "no", "path": "x"}]);
        let key = filled(json!({"name": "v", "configMap": {"name": "cm", "items": items}}));
        assert_eq!(key, Err("configmap references non-existent config key: no".to_owned()));
    }

    #[test]
    fn a_projected_volume_joins_its_sources() {
        let sources = json!([
            {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]);
        let files = shown(json!({"name": "v", "projected": {"sources": sources}}));
        assert_eq!(files, ["ca.crt 644 None v", "namespace 644 None d", "token 600 Some(7) t"]);
    }

    #[test]
    fn other_kinds_are_told_apart() {
        let memory = json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
        assert_eq!(filled(memory), Ok(Kind::Empty { memory: true, bytes: Some(1 << 20) }));
        let (path, of) = ("/x".to_owned(), "Directory".to_owned());
        let host = json!({"name": "v", "hostPath": {"path": "/x", "type": "Directory"}});
        assert_eq!(filled(host), Ok(Kind::Host { path, of }));
        assert!(filled(json!({"name": "v", "nfs": {"path": "/", "server": "s"}})).is_err());
    }
}
