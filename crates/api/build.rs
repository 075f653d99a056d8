//! Makes `schema/*.txt` static: one sorted array of types, references resolved, nothing parsed at run time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::{env, fs, path::PathBuf};

struct Entry {
    kind: Option<[String; 3]>,
    flags: Vec<String>,
    fields: BTreeMap<String, Vec<String>>,
}

fn main() {
    println!("cargo:rerun-if-changed=schema");
    let mut types: BTreeMap<String, Entry> = BTreeMap::new();
    let mut files: Vec<PathBuf> = fs::read_dir("schema")
        .expect("the schema folder is part of the crate")
        .map(|e| e.expect("readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable schema table");
        parse(&text, &file.display().to_string(), &mut types);
    }
    let index: BTreeMap<String, usize> =
        types.keys().enumerate().map(|(i, name)| (name.clone(), i)).collect();
    let mut out = format!("static TYPES: [Type; {}] = [\n", types.len());
    for (name, entry) in &types {
        write_type(&mut out, name, entry, &index);
    }
    out.push_str("];\n");
    let dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(dir.join("schema.rs"), out).expect("OUT_DIR is writable");
}

/// Reads `package`, `type` and field lines; a name without a dot is of the current package.
fn parse(text: &str, file: &str, types: &mut BTreeMap<String, Entry>) {
    let (mut package, mut current) = (String::new(), String::new());
    for (n, line) in text.lines().enumerate() {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match words.first().map(String::as_str) {
            None => {}
            Some(w) if w.starts_with('#') => {}
            Some("package") => package.clone_from(&words[1]),
            Some("type") if !line.starts_with(' ') => {
                current = format!("{package}.{}", words[1]);
                let kind = words.iter().find_map(|w| w.strip_prefix("kind=")).map(|w| {
                    let p: Vec<&str> = w.split('/').collect();
                    [p[0].to_owned(), p[1].to_owned(), p[2].to_owned()]
                });
                let entry = Entry { kind, flags: words[2..].to_vec(), fields: BTreeMap::new() };
                types.insert(current.clone(), entry);
            }
            Some(name) => {
                assert!(words.len() >= 3, "{file}:{}: name, number and type expected", n + 1);
                let mut rest = words[1..].to_vec();
                rest[1] = qualify(&rest[1], &package);
                let name = name.to_owned();
                types.get_mut(&current).expect("a type line first").fields.insert(name, rest);
            }
        }
    }
}

fn qualify(ty: &str, package: &str) -> String {
    if let Some(inner) = ty.strip_prefix("[]") {
        return format!("[]{}", qualify(inner, package));
    }
    if let Some(inner) = ty.strip_prefix("{}") {
        return format!("{{}}{}", qualify(inner, package));
    }
    if ty.starts_with(|c: char| c.is_ascii_lowercase()) {
        // A built-in word, or a full name.
        return ty.to_owned();
    }
    format!("{package}.{ty}")
}

fn write_type(out: &mut String, name: &str, e: &Entry, index: &BTreeMap<String, usize>) {
    let gvk = match &e.kind {
        Some([g, v, k]) => {
            format!("Some((Cow::Borrowed({g:?}), Cow::Borrowed({v:?}), Cow::Borrowed({k:?})))")
        }
        None => "None".to_owned(),
    };
    let atomic = e.flags.iter().any(|f| f == "atomic");
    let _ = write!(
        out,
        "Type {{ name: Cow::Borrowed({name:?}), fields: Fields {{ list: Cow::Borrowed(&["
    );
    for (field, words) in &e.fields {
        out.push_str(&field_expr(field, words, index));
        out.push(',');
    }
    let marks: String = e.fields.keys().map(|field| format!("mark({field:?}),")).collect();
    let _ = writeln!(
        out,
        "]), marks: Cow::Borrowed(&[{marks}]) }}, preserve_unknown: false, embedded: false, atomic: {atomic}, gvk: {gvk}, custom: false, openapi: \
         Value::Null }},"
    );
}

fn field_expr(name: &str, words: &[String], index: &BTreeMap<String, usize>) -> String {
    let (number, ty, flags) = (words[0].replace('.', ", "), &words[1], &words[2..]);
    let has = |f: &str| flags.iter().any(|w| w == f);
    let value = |k: &str| flags.iter().find_map(|w| w.strip_prefix(k)).unwrap_or("");
    let strs = |list: &str| {
        let items: Vec<String> = list
            .split(',')
            .filter(|s| !s.is_empty())
            .map(|s| format!("Cow::Borrowed({:?})", if s == "\"\"" { "" } else { s }))
            .collect();
        format!("Cow::Borrowed(&[{}])", items.join(","))
    };
    let list = match value("list=") {
        "set" => "ListType::Set".to_owned(),
        l if l.starts_with("map:") => format!("ListType::Map({})", strs(&l[4..])),
        _ => "ListType::Atomic".to_owned(),
    };
    format!(
        "Field {{ name: Cow::Borrowed({name:?}), numbers: Cow::Borrowed(&[{number}]), shape: {}, required: {}, \
         pointer: {}, keep: {}, nullable: false, list: {list}, declared_atomic: {}, atomic: {}, granular: {}, patch_merge: {}, \
         patch_retain_keys: {}, merge_key: Cow::Borrowed({:?}), default: Cow::Borrowed({:?}), \
         values: {} }}",
        shape(ty, index),
        has("required"),
        has("pointer"),
        has("keep"),
        has("list=atomic"),
        has("atomic"),
        has("granular"),
        has("merge") || !value("merge=").is_empty(),
        has("retainKeys"),
        value("merge="),
        value("default="),
        strs(value("enum=")),
    )
}

fn shape(ty: &str, index: &BTreeMap<String, usize>) -> String {
    let simple = match ty {
        "string" => "String",
        "bool" => "Bool",
        "int32" => "Int32",
        "int64" => "Int64",
        "float" => "Float",
        "bytes" => "Bytes",
        "time" => "Time",
        "microtime" => "MicroTime",
        "duration" => "Duration",
        "quantity" => "Quantity",
        "intstr" => "IntOrString",
        "raw" => "RawObject",
        "json" => "Json",
        _ => "",
    };
    if !simple.is_empty() {
        return format!("Shape::{simple}");
    }
    for (prefix, wrapper) in [("[]", "List"), ("{}", "Map")] {
        if let Some(inner) = ty.strip_prefix(prefix) {
            let inner = shape(inner, index);
            return format!(
                "Shape::{wrapper}(Ref::Static(&Field {{ name: Cow::Borrowed(\"\"), numbers: Cow::Borrowed(&[]), \
                 shape: {inner}, required: false, pointer: false, keep: false, nullable: false, \
                 list: ListType::Atomic, declared_atomic: false, atomic: false, granular: false, patch_merge: false, patch_retain_keys: \
                 false, merge_key: Cow::Borrowed(\"\"), default: Cow::Borrowed(\"\"), values: \
                 Cow::Borrowed(&[]) }}))"
            );
        }
    }
    let i = index.get(ty).unwrap_or_else(|| panic!("schema: no type {ty}"));
    format!("Shape::Object(Ref::Static(&TYPES[{i}]))")
}
