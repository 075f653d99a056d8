//! The project's own sources, as the tests of its form read them.

use std::path::{Path, PathBuf};

use crate::apart::project;

/// A Rust file of the project.
#[derive(Debug)]
pub struct Source {
    /// Its path from the project's root, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl Source {
    /// The lines before its unit tests.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))
    }

    /// How many lines before the unit tests say something to the compiler.
    #[must_use]
    pub fn code_lines(&self) -> usize {
        let code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        self.lines().filter(code).count()
    }

    /// Whether it is compiled into a program, and not a test or example of it.
    #[must_use]
    pub fn is_product(&self) -> bool {
        let aside = ["/tests/", "/examples/", "/tests.rs", "integration-tests/", "fuzz/"];
        !aside.iter().any(|part| self.path.contains(part))
    }

    /// The folder of its crate, such as `crates/api`.
    #[must_use]
    pub fn folder(&self) -> &str {
        self.path.split("/src/").next().unwrap_or_default()
    }
}

/// The files below a folder whose name ends so, as paths from the project's root.
#[must_use]
pub fn files(folder: &str, ending: &str) -> Vec<String> {
    fn visit(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.path().is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with(".git") {
                    visit(&entry.path(), found);
                }
            } else {
                found.push(entry.path());
            }
        }
    }
    let (root, mut found) = (project(""), Vec::new());
    visit(&project(folder), &mut found);
    let from_root = |path: PathBuf| Some(path.strip_prefix(&root).ok()?.display().to_string());
    let mut paths: Vec<String> = found.into_iter().filter_map(from_root).collect();
    paths.retain(|path| path.ends_with(ending));
    paths.sort();
    paths
}

/// All Rust files of the project.
#[must_use]
pub fn sources() -> Vec<Source> {
    let folders = ["crates", "deploy", "integration-tests", "fuzz"];
    let paths = folders.iter().flat_map(|folder| files(folder, ".rs"));
    let read =
        |path: String| Some(Source { text: std::fs::read_to_string(project(&path)).ok()?, path });
    paths.filter_map(read).collect()
}

/// Compares a file that tests write with what they would write now. With `BLESS=1` it is written.
///
/// # Errors
/// When they differ, with the first line that does.
pub fn check_written(path: &str, text: &str) -> anyhow::Result<()> {
    let file = project(path);
    if std::env::var_os("BLESS").is_some() {
        return Ok(std::fs::write(file, text)?);
    }
    let held = std::fs::read_to_string(&file).unwrap_or_default();
    if held == text {
        return Ok(());
    }
    let mut pairs = text.lines().zip(held.lines().chain(std::iter::repeat("")));
    let (new, old) = pairs.find(|(new, old)| new != old).unwrap_or(("", "more lines"));
    anyhow::bail!("{path} is not what the code says (just bless writes it): {old:?}, now {new:?}")
}
