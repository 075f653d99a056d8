//! GET of one object and of many, from the cache; pages of the past from the store.

use std::sync::Arc;

use api::catalog::Resource;
use api::error::{ApiError, FieldErrors};
use api::object::Value;
use api::selector::{FieldSelector, LabelSelector};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::{Api, shelf_key, store_error};
use crate::request::{List, ListOptions, Object, Outcome, Request};
use crate::storage::entry::Entry;
use crate::storage::keys;

/// Which objects a reader wants to see.
#[derive(Debug)]
pub(crate) struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    resource: Arc<Resource>,
}

impl Filter {
    /// Reads both selectors.
    ///
    /// # Errors
    /// 400 for one that cannot be read or names a field that has no index.
    pub(crate) fn new(
        resource: &Arc<Resource>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(labels)?;
        let fields = FieldSelector::parse(fields)?;
        fields.check(resource)?;
        Ok(Self { labels, fields, resource: resource.clone() })
    }

    /// Whether every object passes.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.requirements.is_empty()
    }

    /// The one name that can pass, if there is just one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.pinned("metadata.name")
    }

    /// Whether this object passes.
    pub(crate) fn passes(&self, entry: &Entry) -> bool {
        if self.is_empty() {
            return true;
        }
        let view = entry.view(|object| view(&self.resource, object));
        let label = |key: &str| view.at(&["labels", key]).and_then(Value::as_str);
        self.labels.matches_with(label)
            && self.fields.requirements.iter().all(|wanted| {
                let found = view.at(&["fields", &wanted.field]).and_then(Value::as_str);
                (found.unwrap_or("") == wanted.value) == wanted.equals
            })
    }
}

/// The part of an object that selectors look at, kept beside its bytes.
pub(crate) fn view(resource: &Resource, object: &Value) -> Value {
    let mut view = Value::Object(api::object::Map::default());
    if let Some(labels) = object.at(&["metadata", "labels"]) {
        view.set("labels", labels.clone());
    }
    for label in ["metadata.name", "metadata.namespace"]
        .into_iter()
        .chain(resource.selectable.iter().map(|f| f.label.as_ref()))
    {
        let text = api::selector::field_text(resource, object, label);
        view.set_at(&["fields", label], text);
    }
    view
}

/// An object as a tree, in the form of this resource.
pub(crate) fn parsed(resource: &Resource, entry: &Entry) -> Value {
    let mut value = entry.parse();
    if let Some(convert) = resource.from_storage {
        convert(&mut value);
    }
    if resource.api_version() != resource.storage_api_version() {
        value.set("apiVersion", resource.api_version());
    }
    value
}

/// An object's bytes as this resource serves them: as they are, unless stored in another version.
pub(crate) fn serve(resource: &Resource, entry: &Entry) -> Bytes {
    let other =
        resource.storage_group != resource.group || resource.storage_version != resource.version;
    if other || resource.from_storage.is_some() {
        return parsed(resource, entry).to_bytes().into();
    }
    entry.bytes.clone()
}

/// Reads a resourceVersion.
///
/// # Errors
/// 400 for what is no number.
pub(crate) fn parse_version(text: &str) -> Result<i64, ApiError> {
    let parsed: Option<u64> = text.parse().ok();
    parsed.and_then(|v| i64::try_from(v).ok()).ok_or_else(|| {
        ApiError::BadRequest(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing \
             {text:?}: invalid syntax"
        ))
    })
}

/// Where the next page goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Continue {
    revision: i64,
    /// The last key of the page before.
    after: String,
}

impl Continue {
    pub(crate) fn read(token: &str) -> Result<Self, ApiError> {
        let bad = |detail: &str| {
            ApiError::BadRequest(format!(
                "invalid continue token: continue key is not valid: {detail}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|e| bad(&e.to_string()))?;
        let value = api::codec::json::parse(&bytes).map_err(|e| bad(&e.message()))?;
        match (value.str_at(&["v"]), value.int_at(&["rv"]), value.str_at(&["start"])) {
            (Some("meta.k8s.io/v1"), Some(revision), Some(after)) => {
                Ok(Self { revision, after: after.to_owned() })
            }
            _ => Err(bad("incorrect encoding of start key")),
        }
    }

    fn write(&self) -> String {
        let mut value = Value::Object(api::object::Map::default());
        value.set("v", "meta.k8s.io/v1");
        value.set("rv", self.revision);
        value.set("start", self.after.as_str());
        URL_SAFE_NO_PAD.encode(value.to_bytes())
    }
}

/// Refuses combinations of version, match and token that make no sense.
pub(crate) fn check(options: &ListOptions) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    let field = "resourceVersionMatch";
    let matching = options.version_match.as_str();
    if !options.continue_token.is_empty() {
        if !matching.is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden for continue");
        } else if !options.version.is_empty() && options.version != "0" {
            return Err(ApiError::BadRequest(
                "specifying resource version is not allowed when using continue".into(),
            ));
        }
    } else if !matching.is_empty() && options.version.is_empty() {
        errors.forbidden(
            field,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
    } else if !matches!(matching, "" | "Exact" | "NotOlderThan") {
        errors.not_supported(field, matching, &["Exact", "NotOlderThan", ""]);
    } else if matching == "Exact" && options.version == "0" {
        errors.forbidden(
            field,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        );
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors))
}

impl Api {
    pub(crate) async fn read(&self, request: &Request, version: &str) -> Result<Outcome, ApiError> {
        self.reach(version).await?;
        let entry =
            self.shelf(&request.resource).get(&request.key()).ok_or_else(|| request.not_found())?;
        let object = Object { json: serve(&request.resource, &entry), kind: None };
        Ok(Outcome::Object { object, created: false, warnings: Vec::new() })
    }

    pub(crate) async fn list(
        &self,
        request: &Request,
        options: &ListOptions,
    ) -> Result<List, ApiError> {
        let page = self.entries(request, options).await?;
        let resource = &request.resource;
        Ok(List {
            revision: page.revision,
            items: page.entries.iter().map(|(_, entry)| serve(resource, entry)).collect(),
            continue_token: page.continue_token,
            remaining: page.remaining,
        })
    }

    /// The objects of a list, before they are rendered.
    pub(crate) async fn entries(
        &self,
        request: &Request,
        options: &ListOptions,
    ) -> Result<Page, ApiError> {
        check(options)?;
        let resource = &request.resource;
        let filter = Filter::new(resource, &options.labels, &options.fields)?;
        let token = match options.continue_token.as_str() {
            "" => None,
            token => Some(Continue::read(token)?),
        };
        let exact = options.version_match == "Exact";
        let revision = match &token {
            Some(token) if token.revision > 0 => token.revision,
            _ if exact => parse_version(&options.version)?,
            _ => self.reach(&options.version).await?,
        };
        let after = token.map(|t| t.after).unwrap_or_default();
        let shelf = self.shelf(resource);
        let prefix = match (resource.namespaced, request.namespace.as_str()) {
            (true, namespace) if !namespace.is_empty() => format!("{namespace}/"),
            _ => String::new(),
        };
        let past = (exact || !after.is_empty()) && {
            self.cache.wait(revision).await;
            shelf.changed() > revision
        };
        let (found, changed) = if past {
            (self.past(resource, &request.namespace, &after, revision).await?, revision)
        } else if let (Some(name), true) =
            (filter.name(), !resource.namespaced || !prefix.is_empty())
        {
            let key = shelf_key(resource, &request.namespace, name);
            let found = shelf.get(&key).map(|entry| (key.into(), entry));
            (found.into_iter().collect(), revision)
        } else {
            shelf.snapshot(&prefix, &after)
        };
        Ok(cut(found, &filter, options.limit, revision.max(changed)))
    }

    /// All objects behind `after` as they were at `revision`, from the store.
    async fn past(
        &self,
        resource: &Resource,
        namespace: &str,
        after: &str,
        revision: i64,
    ) -> Result<Vec<(compact_str::CompactString, Arc<Entry>)>, ApiError> {
        let root = keys::prefix(resource, "");
        let prefix = keys::prefix(resource, namespace);
        let start = if after.is_empty() { prefix.clone() } else { format!("{root}{after}\0") };
        let page = self.etcd.page(start.into(), keys::end_of(&prefix), 0, revision).await;
        let page = page.map_err(store_error)?;
        let key = |bytes: &Bytes| {
            let text = String::from_utf8_lossy(bytes);
            compact_str::CompactString::from(text.strip_prefix(&root).unwrap_or_default())
        };
        Ok(page.items.iter().map(|item| (key(&item.key), Entry::of(item))).collect())
    }
}

/// The objects of one page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) revision: i64,
    pub(crate) entries: Vec<(compact_str::CompactString, Arc<Entry>)>,
    pub(crate) continue_token: String,
    pub(crate) remaining: Option<i64>,
}

/// Filters, and cuts at the limit.
fn cut(
    found: Vec<(compact_str::CompactString, Arc<Entry>)>,
    filter: &Filter,
    limit: usize,
    revision: i64,
) -> Page {
    let total = found.len();
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut entries = Vec::with_capacity(total.min(limit));
    let mut seen = 0;
    let mut more = false;
    for (key, entry) in found {
        if !filter.passes(&entry) {
            seen += 1;
            continue;
        }
        if entries.len() == limit {
            more = true;
            break;
        }
        seen += 1;
        entries.push((key, entry));
    }
    let (mut continue_token, mut remaining) = (String::new(), None);
    if more && let Some((last, _)) = entries.last() {
        continue_token = Continue { revision, after: last.to_string() }.write();
        // With a selector nobody knows how many of the rest would pass.
        remaining = filter.is_empty().then(|| i64::try_from(total - seen).unwrap_or(i64::MAX));
    }
    Page { revision, entries, continue_token, remaining }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_reads_back() {
        let token = Continue { revision: 7, after: "ns/a".into() };
        assert_eq!(Continue::read(&token.write()).unwrap(), token);
        assert!(Continue::read("garbage").is_err());
    }
}
