//! The table of resources: what is served, under which names, and by which rules.
//!
//! A built-in kind is a row in `catalog/<group>.rs`; a custom one is the same `Resource`, made at run time. Knows
//! nothing of requests and storage beyond the key prefix.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::columns::{self, Cells, Column};
use crate::error::{FieldErrors, ResourceName};
use crate::object::Value;
use crate::schema::{self, Ref, Str, Type};

mod admissionregistration;
mod apiextensions;
mod apps;
mod autoscaling;
mod batch;
pub(crate) mod convert;
mod core;
mod metrics;
mod networking;
mod policy;
mod rbac;
mod resource;
mod review;
mod storage;

/// Validates an object: on create without, on update with the old one. The object has its defaults.
pub type Rules = fn(new: &Value, old: Option<&Value>, errs: &mut FieldErrors);
/// Completes an object beyond what its schema's defaults do.
pub type Defaults = fn(&mut Value);
/// Takes from the old object what an update may not change.
pub type Keep = fn(new: &mut Value, old: &Value);
/// Turns an object of this version into the storage version, or back.
pub type Convert = fn(&mut Value);
/// Warnings for a valid object: deprecated fields, duplicates.
pub type Warnings = fn(new: &Value, old: Option<&Value>, out: &mut Vec<String>);

/// What a verb list may hold.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// How names of a kind are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS subdomain (most kinds).
    Subdomain,
    /// DNS label (namespaces).
    Label,
    /// DNS label that starts with a letter (services, before 1.36 relaxed it).
    Label1035,
    /// Anything that can stand in a path (RBAC).
    PathSegment,
    /// An IP address in canonical form.
    Ip,
    /// Checked by the kind's own rule.
    Free,
}

/// When `metadata.generation` counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Never; stays absent.
    None,
    /// With each change of anything but metadata and status.
    Spec,
    /// As `Spec`, and with changes of annotations (deployments).
    SpecAndAnnotations,
}

/// Where `scale` finds its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// e.g. `.spec.replicas`
    pub spec_replicas: Str,
    /// e.g. `.status.replicas`
    pub status_replicas: Str,
    /// e.g. `.status.selector` or `.spec.selector`; empty for none
    pub selector: Str,
}

/// A subresource as discovery lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment.
    pub name: Str,
    /// Group, version and kind of its objects; empty group and version mean the parent's.
    pub group: Str,
    /// See `group`.
    pub version: Str,
    /// See `group`.
    pub kind: Str,
    /// Verbs it has.
    pub verbs: Vec<Str>,
}

/// A field that `fieldSelector` may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectableField {
    /// The label, as `spec.nodeName`.
    pub label: Str,
    /// Where it is in the object; the first present path counts (`a.b|c.d` in the rows).
    pub paths: Vec<Vec<Str>>,
}

/// One served resource.
#[derive(Clone, Debug)]
pub struct Resource {
    /// API group, empty for core.
    pub group: Str,
    /// Version, as `v1`.
    pub version: Str,
    /// Kind, as `Pod`.
    pub kind: Str,
    /// Kind of a list.
    pub list_kind: Str,
    /// Name in paths.
    pub plural: Str,
    /// Name of one.
    pub singular: Str,
    /// As `po`.
    pub short_names: Vec<Str>,
    /// As `all`.
    pub categories: Vec<Str>,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// Verbs served.
    pub verbs: Vec<Str>,
    /// Subresources in name order.
    pub subresources: Vec<Subresource>,
    /// Paths for `scale`.
    pub scale: Option<ScalePaths>,
    /// Whether objects are stored (reviews and bindings are not).
    pub stored: bool,
    /// Version whose form is stored.
    pub storage_version: Str,
    /// Group whose form is stored (core for events).
    pub storage_group: Str,
    /// To the stored form.
    pub to_storage: Option<Convert>,
    /// From the stored form.
    pub from_storage: Option<Convert>,
    /// Key prefix below `/registry/`.
    pub storage_prefix: Str,
    /// The object's type.
    pub schema: Ref<Type>,
    /// Fields selectors may name.
    pub selectable: Vec<SelectableField>,
    /// Table columns.
    pub columns: Vec<Column>,
    /// Table cells; custom kinds find theirs by the columns' paths.
    pub cells: Option<Cells>,
    /// Fields that may not change, as dotted paths.
    pub immutable: Vec<Str>,
    /// How names are checked.
    pub name_rule: NameRule,
    /// When generation counts.
    pub generation: Generation,
    /// Objects have a `status` that only the status subresource writes.
    pub status_reset: bool,
    /// Creation drops a status that was sent (nodes keep theirs).
    pub resets_status_on_create: bool,
    /// What creation does beyond the common: runs with identity set and status reset.
    pub on_create: Option<Defaults>,
    /// What an update keeps from the old object beyond the common.
    pub on_update: Option<Keep>,
    /// PUT on a name that does not exist creates.
    pub create_on_update: bool,
    /// An update must carry a resourceVersion.
    pub update_needs_version: bool,
    /// Completes objects.
    pub defaults: Option<Defaults>,
    /// Checks objects.
    pub rules: Option<Rules>,
    /// Checks a write to `status` beyond the schema.
    pub status_rules: Option<Rules>,
    /// Warns about objects.
    pub warnings: Option<Warnings>,
    /// A warning that goes with every request for it; empty for none.
    pub deprecation: Str,
    /// Made at run time.
    pub custom: bool,
}

impl Resource {
    /// `group/version` or `v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `apiVersion` of the stored form.
    pub fn storage_api_version(&self) -> String {
        api_version(&self.storage_group, &self.storage_version)
    }

    /// Group and plural for messages.
    pub fn resource_name(&self) -> ResourceName {
        ResourceName::new(self.group.as_ref(), self.plural.as_ref())
    }

    /// Group and kind for messages.
    pub fn kind_name(&self) -> ResourceName {
        ResourceName::new(self.group.as_ref(), self.kind.as_ref())
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether it offers more field labels than name and namespace.
    pub fn has_own_field_labels(&self) -> bool {
        self.selectable.iter().any(|f| !f.label.starts_with("metadata."))
    }

    /// Whether `verb` is served on the main resource.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// `group/version`, or the version alone for core.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits `apiVersion` into group and version.
pub fn split_api_version(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("", text))
}

/// One API group with its versions, preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name, empty for core.
    pub name: Str,
    /// Versions, preferred first.
    pub versions: Vec<Str>,
}

/// All resources served at one moment. Cheap to clone and never changed in place.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    rows: Vec<Arc<Resource>>,
    groups: Vec<Group>,
    by_plural: BTreeMap<(Str, Str, Str), usize>,
    by_kind: BTreeMap<(Str, Str, Str), usize>,
}

impl Catalog {
    /// The built-in resources.
    pub fn builtin() -> Self {
        let mut rows = Vec::with_capacity(96);
        for part in [
            core::ROWS,
            networking::REGISTRATION,
            apps::ROWS,
            policy::EVENTS,
            review::ROWS,
            autoscaling::ROWS,
            batch::ROWS,
            networking::CERTIFICATES,
            networking::ROWS,
            policy::ROWS,
            rbac::ROWS,
            storage::ROWS,
            admissionregistration::ROWS,
            apiextensions::ROWS,
            policy::SCHEDULING,
            policy::COORDINATION,
            policy::NODE,
            networking::DISCOVERY,
            resource::ROWS,
            policy::FLOWCONTROL,
        ] {
            rows.extend(part.iter().map(|row| Arc::new(row.resource())));
        }
        Self::of(rows)
    }

    /// This catalog with the resource metrics API.
    #[must_use]
    pub fn with_metrics(&self) -> Self {
        let mut rows = self.rows.clone();
        rows.extend(metrics::ROWS.iter().map(|row| Arc::new(row.resource())));
        Self::of(rows)
    }

    fn of(rows: Vec<Arc<Resource>>) -> Self {
        let mut catalog = Self { rows, ..Self::default() };
        for (i, row) in catalog.rows.iter().enumerate() {
            let key = |name: &Str| (row.group.clone(), row.version.clone(), name.clone());
            catalog.by_plural.insert(key(&row.plural), i);
            catalog.by_kind.insert(key(&row.kind), i);
            match catalog.groups.iter_mut().find(|g| g.name == row.group) {
                None => catalog
                    .groups
                    .push(Group { name: row.group.clone(), versions: vec![row.version.clone()] }),
                Some(g) if !g.versions.contains(&row.version) => {
                    g.versions.push(row.version.clone());
                }
                Some(_) => {}
            }
        }
        for group in catalog.groups.iter_mut().filter(|g| !g.name.is_empty()) {
            group.versions.sort_by(|a, b| crate::name::compare_versions(a, b));
        }
        catalog
    }

    /// This catalog with `rows` in place of all custom rows.
    pub fn with_custom(&self, rows: Vec<Resource>) -> Self {
        let mut all: Vec<Arc<Resource>> =
            self.rows.iter().filter(|r| !r.custom).map(Arc::clone).collect();
        all.extend(rows.into_iter().map(Arc::new));
        Self::of(all)
    }

    /// The resource with this path name.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let key = (Str::Owned(group.into()), Str::Owned(version.into()), Str::Owned(plural.into()));
        self.by_plural.get(&key).map(|i| &self.rows[*i])
    }

    /// The resource of this kind.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let key = (Str::Owned(group.into()), Str::Owned(version.into()), Str::Owned(kind.into()));
        self.by_kind.get(&key).map(|i| &self.rows[*i])
    }

    /// The resource of this kind in any version, the preferred first.
    pub fn find_any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        let versions = &self.groups.iter().find(|g| g.name == group)?.versions;
        versions.iter().find_map(|v| self.find(group, v, plural))
    }

    /// All resources in discovery order.
    pub fn all(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// Groups in discovery order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether the group is served in this version.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.groups.iter().any(|g| g.name == group && g.versions.iter().any(|v| v == version))
    }

    /// The resources of one group and version.
    pub fn of_version<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.rows.iter().filter(move |r| r.group == group && r.version == version)
    }
}

/// A row for a kind that appears only as the body of a subresource (`Eviction`, `TokenRequest`, `Scale`), so that such
/// a body is read like any object.
pub fn body_row(group: &str, version: &str, kind: &str) -> Option<Resource> {
    const BODIES: &[Row] = &[
        Row::namespaced(
            "io.k8s.api.policy.v1",
            ("policy", "v1"),
            "Eviction",
            "evictions",
            "eviction",
        ),
        Row::namespaced(
            "io.k8s.api.authentication.v1",
            ("authentication.k8s.io", "v1"),
            "TokenRequest",
            "tokenrequests",
            "tokenrequest",
        ),
        Row::namespaced(
            "io.k8s.api.autoscaling.v1",
            ("autoscaling", "v1"),
            "Scale",
            "scales",
            "scale",
        ),
    ];
    let same = |row: &&Row| row.group == group && row.version == version && row.kind == kind;
    BODIES.iter().find(same).map(Row::resource)
}

/// The constant form of a built-in row; `resource()` makes the `Resource`.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    verbs: &'static [&'static str],
    subresources: &'static [(&'static str, &'static str, &'static [&'static str])],
    scale: Option<(&'static str, &'static str, &'static str)>,
    package: &'static str,
    prefix: &'static str,
    selectable: &'static [(&'static str, &'static str)],
    columns: (&'static str, Cells),
    name_rule: NameRule,
    generation: Generation,
    stored: bool,
    status_reset: bool,
    create_on_update: bool,
    update_needs_version: bool,
    resets_status_on_create: bool,
    on_create: Option<Defaults>,
    on_update: Option<Keep>,
    storage: (&'static str, &'static str),
    convert: Option<(Convert, Convert)>,
    defaults: Option<Defaults>,
    rules: Option<Rules>,
    status_rules: Option<Rules>,
    deprecation: &'static str,
    warnings: Option<Warnings>,
}

const RW: &[&str] = &["get", "patch", "update"];

impl Row {
    /// A namespaced kind with all verbs. `package` is where its schema type lives.
    pub(crate) const fn namespaced(
        package: &'static str,
        gv: (&'static str, &'static str),
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            group: gv.0,
            version: gv.1,
            kind,
            plural,
            singular,
            namespaced: true,
            short: &[],
            categories: &[],
            verbs: ALL_VERBS,
            subresources: &[],
            scale: None,
            package,
            prefix: plural,
            selectable: &[],
            columns: (columns::PLAIN, columns::plain),
            name_rule: NameRule::Subdomain,
            generation: Generation::None,
            stored: true,
            status_reset: false,
            create_on_update: false,
            update_needs_version: false,
            resets_status_on_create: true,
            on_create: None,
            on_update: None,
            storage: gv,
            convert: None,
            defaults: None,
            rules: None,
            status_rules: None,
            deprecation: "",
            warnings: None,
        }
    }

    /// A cluster-scoped kind with all verbs.
    pub(crate) const fn cluster(
        package: &'static str,
        gv: (&'static str, &'static str),
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        let mut row = Self::namespaced(package, gv, kind, plural, singular);
        row.namespaced = false;
        row
    }

    pub(crate) const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short = names;
        self
    }

    pub(crate) const fn categories(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }

    pub(crate) const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    /// Subresources as (name, `group/version/Kind` or `Kind`, verbs).
    pub(crate) const fn sub(
        mut self,
        list: &'static [(&'static str, &'static str, &'static [&'static str])],
    ) -> Self {
        self.subresources = list;
        self
    }

    /// `status` is reset on main writes and written through its subresource.
    pub(crate) const fn status(mut self) -> Self {
        self.status_reset = true;
        self
    }

    pub(crate) const fn scale(
        mut self,
        spec: &'static str,
        status: &'static str,
        selector: &'static str,
    ) -> Self {
        self.scale = Some((spec, status, selector));
        self
    }

    pub(crate) const fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    pub(crate) const fn selectable(
        mut self,
        list: &'static [(&'static str, &'static str)],
    ) -> Self {
        self.selectable = list;
        self
    }

    /// Table columns as one line of text, and the function for cells.
    pub(crate) const fn columns(mut self, line: &'static str, cells: Cells) -> Self {
        self.columns = (line, cells);
        self
    }

    pub(crate) const fn names(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    pub(crate) const fn generation(mut self, rule: Generation) -> Self {
        self.generation = rule;
        self
    }

    /// Answered, never stored.
    pub(crate) const fn transient(mut self) -> Self {
        self.stored = false;
        self.verbs = &["create"];
        self
    }

    /// Answered from what is measured, never stored.
    pub(crate) const fn measured(mut self) -> Self {
        self.stored = false;
        self.verbs = &["get", "list"];
        self
    }

    pub(crate) const fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    pub(crate) const fn update_needs_version(mut self) -> Self {
        self.update_needs_version = true;
        self
    }

    /// Creation keeps the status that was sent.
    pub(crate) const fn keeps_status(mut self) -> Self {
        self.resets_status_on_create = false;
        self
    }

    pub(crate) const fn on_create(mut self, f: Defaults) -> Self {
        self.on_create = Some(f);
        self
    }

    pub(crate) const fn on_update(mut self, f: Keep) -> Self {
        self.on_update = Some(f);
        self
    }

    /// Stored in the form of another group and version.
    pub(crate) const fn stored_as(
        mut self,
        gv: (&'static str, &'static str),
        to: Convert,
        from: Convert,
    ) -> Self {
        self.storage = gv;
        self.convert = Some((to, from));
        self
    }

    pub(crate) const fn defaults(mut self, f: Defaults) -> Self {
        self.defaults = Some(f);
        self
    }

    pub(crate) const fn rules(mut self, f: Rules) -> Self {
        self.rules = Some(f);
        self
    }

    /// Checks what is written through `status`.
    pub(crate) const fn status_rules(mut self, f: Rules) -> Self {
        self.status_rules = Some(f);
        self
    }

    /// Every answer carries this warning.
    pub(crate) const fn deprecated(mut self, warning: &'static str) -> Self {
        self.deprecation = warning;
        self
    }

    pub(crate) const fn warnings(mut self, f: Warnings) -> Self {
        self.warnings = Some(f);
        self
    }

    fn resource(&self) -> Resource {
        let name = format!("{}.{}", self.package, self.kind);
        let schema = schema::find(&name).expect("every row names a type of the schema tables");
        Resource {
            group: self.group.into(),
            version: self.version.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: self.singular.into(),
            short_names: strs(self.short),
            categories: strs(self.categories),
            namespaced: self.namespaced,
            verbs: strs(self.verbs),
            subresources: self.subresources.iter().map(subresource).collect(),
            scale: self.scale.map(|(spec, status, selector)| ScalePaths {
                spec_replicas: spec.into(),
                status_replicas: status.into(),
                selector: selector.into(),
            }),
            stored: self.stored,
            storage_group: self.storage.0.into(),
            storage_version: self.storage.1.into(),
            to_storage: self.convert.map(|c| c.0),
            from_storage: self.convert.map(|c| c.1),
            storage_prefix: self.prefix.into(),
            schema: Ref::Static(schema),
            selectable: self.selectable_fields(),
            columns: columns::parse(self.columns.0),
            cells: Some(self.columns.1),
            immutable: Vec::new(),
            name_rule: self.name_rule,
            generation: self.generation,
            status_reset: self.status_reset,
            create_on_update: self.create_on_update,
            update_needs_version: self.update_needs_version,
            resets_status_on_create: self.resets_status_on_create,
            on_create: self.on_create,
            on_update: self.on_update,
            defaults: self.defaults,
            rules: self.rules,
            status_rules: self.status_rules,
            deprecation: self.deprecation.into(),
            warnings: self.warnings,
            custom: false,
        }
    }

    fn selectable_fields(&self) -> Vec<SelectableField> {
        let meta: &[(&str, &str)] = if self.namespaced {
            &[("metadata.name", ""), ("metadata.namespace", "")]
        } else {
            &[("metadata.name", "")]
        };
        let field = |(label, paths): &(&'static str, &'static str)| SelectableField {
            label: (*label).into(),
            paths: (if paths.is_empty() { label } else { paths })
                .split('|')
                .map(|p| p.split('.').map(Str::from).collect())
                .collect(),
        };
        meta.iter().chain(self.selectable).map(field).collect()
    }
}

fn strs(list: &[&'static str]) -> Vec<Str> {
    list.iter().map(|s| Str::Borrowed(s)).collect()
}

fn subresource(row: &(&'static str, &'static str, &'static [&'static str])) -> Subresource {
    let parts: Vec<&'static str> = row.1.split('/').collect();
    let (group, version, kind) = match parts.as_slice() {
        [group, version, kind] => (*group, *version, *kind),
        _ => ("", "", row.1),
    };
    Subresource {
        name: row.0.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: strs(row.2),
    }
}
