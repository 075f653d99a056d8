//! The form of the sources: what may depend on what, how long files are, and what must not be in them.
#![allow(clippy::unwrap_used)] // a test as a whole

use std::collections::BTreeMap;

use integration_tests::apart::project;
use integration_tests::source::{files, sources};

/// Each crate, how many thousand lines without tests it may have, and the crates of ours that it may depend on. Where a
/// budget is not the first one planned, the reason stands behind it.
const CRATES: &[(&str, f64, &[&str])] = &[
    // Defaults, validation and table columns of every kind are data of this crate; planned were 6.
    ("api", 20.0, &[]),
    ("wire", 0.1, &[]),
    ("auth", 1.0, &[]),
    // Planned were 0.8: TLS of both sides and channels in memory are here, once for all daemons, and
    // what HTTP/2 needs to take calls of etcd's older clients; what a connection may hold is bounded.
    ("daemon", 1.85, &["auth"]),
    // Planned were 2.5: the cache's typed store is a part of its own.
    ("client", 3.3, &["api", "wire", "daemon"]),
    // Planned were 7: etcd's users and roles, membership by etcd's rules and jointly, backup and import, its hash and
    // figures of traffic.
    ("store", 12.25, &["wire", "daemon"]),
    // Planned were 9: streams to node agents and review kinds came with the whole surface.
    ("apiserver", 14.0, &["api", "wire", "auth", "daemon"]),
    // wire: the one batch call of the object service that the client has no type for. Planned were 3:
    // explanations (`ironclad why`) are here too, and volumes, profiles and device claims are to come.
    ("scheduler", 4.5, &["api", "client", "daemon", "wire"]),
    // wire: the garbage collector watches kinds that have no type here. Planned were 8: autoscaling, volumes and
    // certificates came with upstream's whole list.
    ("controller-manager", 11.0, &["api", "client", "daemon", "auth", "wire"]),
    // Planned were 7: volumes, both cgroup interfaces and statistics.
    ("node-agent", 10.0, &["api", "client", "daemon", "auth", "wire"]),
    ("proxy", 3.5, &["api", "client", "daemon"]),
    // Planned were 0.8: it also keeps its own Service.
    ("dns", 1.3, &["api", "client", "daemon"]),
    ("ingress", 1.5, &["api", "client", "daemon"]),
    (
        // Planned were 3.5: describe, rollout and the live status of `up`.
        "cli",
        6.0,
        &[
            "api",
            "wire",
            "auth",
            "daemon",
            "client",
            "store",
            "apiserver",
            "scheduler",
            "controller-manager",
            "node-agent",
            "proxy",
            "dns",
            "ingress",
        ],
    ),
    ("testkit", 2.0, &["api", "wire", "daemon", "client"]),
];

/// The most lines of code of a file, without tests, comments and blank lines.
const FILE_LINES_MAX: usize = 600;
/// Files that are longer, and why.
const LONG_FILES: &[(&str, &str)] =
    &[("crates/node-agent/src/runtime.rs", "the one file that may name CRI types")];
/// The command's own, which is the table of its subcommands and no daemon's start.
const MAIN_OF_COMMANDS: &str = "crates/cli/src/main.rs";
const MAIN_LINES_MAX: usize = 60;

/// Foreign types, and the only files that may name them.
const FOREIGN: &[(&str, &[&str])] = &[
    ("raft::", &["crates/store/src/node.rs"]),
    ("sled::", &["crates/store/src/state.rs"]),
    ("nftnl", &["crates/proxy/src/nft.rs"]),
    ("hickory_server", &["crates/dns/src/serve.rs"]),
    ("wire::cri", &["crates/node-agent/src/runtime.rs"]),
];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["common", "core", "util", "utils", "helpers", "misc", "types"];
/// Where such a name is one of Kubernetes' own.
const NAMES_OF_KUBERNETES: &[&str] = &[
    "crates/api/src/catalog/core.rs",
    "crates/api/src/columns/core.rs",
    "crates/api/src/rules/core.rs",
];

fn refuse(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn crates_depend_only_on_what_they_may() {
    let known = |name: &str| CRATES.iter().find(|(known, _, _)| *known == name);
    let mut found = Vec::new();
    for manifest in files("crates", "Cargo.toml") {
        let name = manifest.split('/').nth(1).unwrap();
        let Some((_, _, may)) = known(name) else {
            found.push(format!("{name} is a new crate: give it a row here"));
            continue;
        };
        let text = std::fs::read_to_string(project(&manifest)).unwrap();
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let on = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let ours = line.contains("workspace = true") && known(on).is_some();
            let production = section == "[dependencies]" || section == "[build-dependencies]";
            if ours && production && !may.contains(&on) {
                found.push(format!("{name} depends on {on}"));
            }
        }
    }
    refuse("crate edges that nobody decided on", &found);
}

#[test]
fn crates_keep_their_budgets() {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.is_product()) {
        *lines.entry(source.folder().to_owned()).or_default() += source.lines().count();
    }
    let (mut found, mut total) = (Vec::new(), 0);
    println!("{:>7} {:>7}  lines without tests, and the most there may be", "lines", "most");
    for (name, budget, _) in CRATES {
        let count = lines.get(&format!("crates/{name}")).copied().unwrap_or(0);
        let budget = format!("{:.0}", budget * 1000.0).parse::<usize>().unwrap();
        println!("{count:>7} {budget:>7}  {name}");
        total += count;
        if count > budget {
            found.push(format!("{name}: {count} lines, at most {budget}"));
        }
    }
    println!("{total:>7}          in all");
    refuse("crates over their budget", &found);
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for source in sources() {
        let count = source.code_lines();
        let exception = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if count > FILE_LINES_MAX && !exception {
            found.push(format!("{}: {count} lines of code", source.path));
        }
        if count <= FILE_LINES_MAX && exception {
            found.push(format!("{}: {count} lines of code, no exception any more", source.path));
        }
        if source.path.ends_with("/main.rs")
            && source.path.starts_with("crates/")
            && source.path != MAIN_OF_COMMANDS
            && source.lines().count() > MAIN_LINES_MAX
        {
            found.push(format!("{}: more than {MAIN_LINES_MAX} lines", source.path));
        }
    }
    refuse("files too long", &found);
}

#[test]
fn foreign_types_stay_in_their_file() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product()) {
        for (name, files) in FOREIGN {
            let code = |line: &&str| !line.trim_start().starts_with("//");
            // `raft::` is not `ironclad_raft::` nor a module of ours called so.
            let named = |line: &str| {
                line.match_indices(name).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
                })
            };
            if !files.contains(&source.path.as_str()) && source.lines().filter(code).any(named) {
                found.push(format!("{} names {name}", source.path));
            }
        }
    }
    refuse("foreign types outside their file", &found);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    // Code that cargo generates or includes is none of ours.
    refuse("modules without a header", &silent.map(|source| source.path).collect::<Vec<_>>());
}

#[test]
fn names_say_something() {
    let mut found = Vec::new();
    for source in sources() {
        let parts = source.path.trim_end_matches(".rs").split('/');
        let empty = parts.into_iter().any(|part| EMPTY_NAMES.contains(&part));
        if empty && !NAMES_OF_KUBERNETES.contains(&source.path.as_str()) {
            found.push(source.path.clone());
        }
    }
    refuse("names that say nothing", &found);
}

#[test]
fn no_file_names_a_machine() {
    // Joined here, so that this file does not find itself.
    let roots =
        ["/wo|rk/", "/ro|ot/", "/ho|me/", "/tm|p/wt", "/Us|ers/"].map(|r| r.replace('|', ""));
    let mut found = Vec::new();
    for ending in
        [".rs", ".toml", ".md", ".sh", ".service", ".yaml", ".proto", ".jsonl", "justfile"]
    {
        for path in files("", ending) {
            let Ok(text) = std::fs::read_to_string(project(&path)) else { continue };
            let at_root = |root: &String| {
                text.match_indices(root.as_str()).any(|(at, _)| {
                    let before = text[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && !".-_/}*".contains(c))
                })
            };
            found.extend(roots.iter().filter(|r| at_root(r)).map(|root| format!("{path}: {root}")));
        }
    }
    refuse("paths of somebody's machine", &found);
}
