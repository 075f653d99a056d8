//! The reference pages say what the code says, and the files that are installed can be used. `just bless` writes the
//! pages.
#![allow(clippy::unwrap_used)] // a test as a whole

use std::collections::BTreeMap;
use std::fmt::Write as _;

use integration_tests::apart::{DAEMONS, project};
use integration_tests::source::{check_written, files, sources};
use integration_tests::{machine, program};

/// The settings that every daemon has, and where the structs are that settings are made of.
const COMMON: &str = "crates/daemon/src/config.rs";
const STRUCTS: &[&str] = &["crates/daemon/src/tls.rs", "crates/daemon/src/telemetry.rs", COMMON];
const WRITTEN: &str = "Written by a test from the code (`just bless`).";

/// A public field of a struct: its name, its type, what it says of itself.
type Field = (String, String, String);

/// The public fields of each struct of a file, by the struct's name.
fn structs(path: &str) -> BTreeMap<String, Vec<Field>> {
    let text = std::fs::read_to_string(project(path)).unwrap();
    let (mut found, mut name, mut doc) =
        (BTreeMap::<String, Vec<Field>>::new(), String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(more) = line.strip_prefix("///") {
            doc = format!("{doc} {}", more.trim()).trim().to_owned();
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            name = rest.split([' ', '<']).next().unwrap_or_default().to_owned();
            doc.clear();
        } else if let Some((field, kind)) =
            line.strip_prefix("pub ").filter(|l| !l.contains('(')).and_then(|l| l.split_once(": "))
        {
            let field = (field.to_owned(), kind.trim_end_matches(',').to_owned(), doc.clone());
            found.entry(name.clone()).or_default().push(field);
            doc.clear();
        } else if !line.starts_with("#[") {
            doc.clear();
        }
    }
    found
}

/// One row of a table for each setting below a struct.
fn rows(
    all: &BTreeMap<String, Vec<Field>>,
    of: &str,
    prefix: &str,
    values: &toml::Value,
    text: &mut String,
) {
    for (name, kind, doc) in all.get(of).into_iter().flatten() {
        let key = format!("{prefix}{name}");
        let kind = kind.rsplit("::").next().unwrap_or(kind);
        let value = values.get(name).cloned().unwrap_or(toml::Value::String(String::new()));
        if all.contains_key(kind) && kind != "Whole" {
            rows(all, kind, &format!("{key}."), &value, text);
        } else {
            writeln!(text, "| `{key}` | `{value}` | {doc} |").unwrap();
        }
    }
}

#[test]
fn settings_are_described() {
    let mut text = format!(
        "# Settings\n\n{WRITTEN} A setting is taken from, in rising order: its default, the file of `--config`,\n\
         `IRONCLAD_<DAEMON>__<KEY>` with `__` between levels, `--set key=value`. `--check` reads them and stops.\n"
    );
    for daemon in DAEMONS {
        let program = program(&format!("ironclad-{daemon}")).unwrap().display().to_string();
        let printed = machine::output(&program, &["--print-config"]).unwrap();
        let values: toml::Value = toml::from_str(&printed).unwrap();
        let mut all = structs(&format!("crates/{daemon}/src/config.rs"));
        for path in STRUCTS {
            all.extend(structs(path));
        }
        write!(text, "\n## ironclad-{daemon}\n\n| key | default | what it is |\n|---|---|---|\n")
            .unwrap();
        rows(&all, "Config", "", &values, &mut text);
        rows(&all, "Log", "log.", &values["log"], &mut text);
        rows(&all, "HealthListen", "health.", &values["health"], &mut text);
    }
    check_written("docs/config.md", &text).unwrap();
}

#[test]
fn metrics_are_described() {
    let mut rows = Vec::new();
    for source in
        sources().iter().filter(|s| s.is_product() && s.path != "crates/daemon/src/metrics.rs")
    {
        let code: Vec<&str> = source.lines().collect();
        let code = code.join("\n");
        let registered =
            code.split(".register(").skip(1).map(|rest| rest.split(");").next().unwrap());
        let mut help_before =
            code.split("let help = \"").skip(1).map(|rest| rest.split('"').next().unwrap());
        for call in registered {
            let mut texts = call.split('"').skip(1).step_by(2);
            let Some(name) = texts.next() else { continue };
            let help = texts.next().or_else(|| help_before.next()).unwrap_or_default();
            let daemon = source.path.split('/').nth(1).unwrap_or_default();
            rows.push(format!("| {daemon} | `{name}` | {help} |"));
        }
    }
    rows.sort();
    let text = format!(
        "# Metrics\n\n{WRITTEN} Served at `/metrics` of `health.listen`; counters end in `_total`.\n\n\
         | daemon | metric | what it counts |\n|---|---|---|\n{}\n",
        rows.join("\n")
    );
    check_written("docs/metrics.md", &text).unwrap();
}

#[test]
fn resources_are_described() {
    let catalog = api::Catalog::builtin();
    let mut rows: Vec<String> = Vec::new();
    for resource in catalog.all() {
        let join = |list: &[_]| {
            list.iter().map(|s: &api::schema::Str| s.to_string()).collect::<Vec<_>>().join(", ")
        };
        let subresources: Vec<String> =
            resource.subresources.iter().map(|s| s.name.to_string()).collect();
        rows.push(format!(
            "| {} | `{}` | {} | {} | {} | {} | {} |",
            resource.api_version(),
            resource.plural,
            resource.kind,
            if resource.namespaced { "yes" } else { "no" },
            join(&resource.short_names),
            join(&resource.verbs),
            subresources.join(", ")
        ));
    }
    let text = format!(
        "# Resources\n\n{WRITTEN}\n\n| version | resource | kind | in a namespace | short | verbs | subresources |\n\
         |---|---|---|---|---|---|---|\n{}\n",
        rows.join("\n")
    );
    check_written("docs/resources.md", &text).unwrap();
}

#[test]
fn installed_files_can_be_used() {
    let names: Vec<String> = DAEMONS.iter().map(|d| format!("deploy/config/{d}.toml")).collect();
    let mut held = files("deploy/config", ".toml");
    held.retain(|path| !names.contains(path));
    assert!(held.is_empty(), "files of no daemon: {held:?}");
    for (daemon, config) in DAEMONS.iter().zip(names) {
        let program = program(&format!("ironclad-{daemon}")).unwrap().display().to_string();
        let path = project(&config).display().to_string();
        machine::output(&program, &["--config", &path, "--check"]).unwrap();
        let unit = project(&format!("deploy/systemd/ironclad-{daemon}.service"));
        let unit = std::fs::read_to_string(unit).unwrap();
        let start =
            format!("ExecStart=/usr/bin/ironclad-{daemon} --config /etc/ironclad/{daemon}.toml\n");
        assert!(unit.contains(&start), "ironclad-{daemon}.service does not start it");
    }
}
