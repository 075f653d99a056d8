//! A directory of files that changes all at once: readers see the old set or the new one, never a
//! mixture.
//!
//! The files are in `..<time>`, to which `..data` links; each top-level name is a link through
//! `..data`. A change is a new directory and one renamed link.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const FRESH: &str = "..data_tmp";

/// A file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub data: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Who owns it, where that is not root.
    pub owner: Option<u32>,
}

/// Files by their path below the directory.
pub type Files = BTreeMap<String, File>;

/// Makes `dir` hold exactly `files`; `group` may read them. `stamp` names the new set, and is not
/// used when the files are there already. Whether anything changed.
///
/// # Errors
/// When a path leads out of the directory, or the disk refuses.
pub fn write(dir: &Path, files: &Files, group: Option<u32>, stamp: &str) -> io::Result<bool> {
    for path in files.keys() {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.is_empty() || path.starts_with("..") {
            let text = format!("invalid path {path:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    }
    fs::create_dir_all(dir)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.is_some() && holds(&dir.join(DATA), files)? {
        return Ok(false);
    }
    let name = format!("..{stamp}");
    let fresh = dir.join(&name);
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir(&fresh)?;
    for (path, file) in files {
        put(&fresh, path, file, group)?;
    }
    own(&fresh, None, group, 0o755)?;
    own(dir, None, group, 0o755)?;
    let link = dir.join(FRESH);
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(&name, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    relink(dir, files)?;
    if let Some(old) = old.filter(|old| *old != Path::new(&name)) {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn put(root: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let at = root.join(path);
    let mut parent = root.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        if !parent.exists() {
            fs::create_dir(&parent)?;
            own(&parent, None, group, 0o755)?;
        }
    }
    fs::write(&at, &file.data)?;
    // A group that is to read must not be kept out by the file's own mode.
    let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
    own(&at, file.owner, group, mode)
}

fn own(path: &Path, owner: Option<u32>, group: Option<u32>, mode: u32) -> io::Result<()> {
    if owner.is_some() || group.is_some() {
        chown(path, owner, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether the present set is `files`, by content and permissions.
fn holds(data: &Path, files: &Files) -> io::Result<bool> {
    let mut present = BTreeSet::new();
    let data = fs::canonicalize(data)?;
    list(&data, &data, &mut present)?;
    if !present.iter().eq(files.keys()) {
        return Ok(false);
    }
    for (path, file) in files {
        if fs::read(data.join(path))? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(root: &Path, dir: &Path, out: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(root, &path, out)?;
        } else if let Ok(inside) = path.strip_prefix(root) {
            out.insert(inside.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// The top-level names: links through `..data` for what there is, none for what has gone.
fn relink(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> =
        files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File { data: data.into(), mode: 0o644, owner: None };
        list.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_set_is_replaced_at_once_and_the_old_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("d/e/f", "2")]), None, "1").unwrap());
        assert_eq!(names(dir), ["..1", "..data", "a", "d"]);
        assert_eq!(fs::read_to_string(dir.join("d/e/f")).unwrap(), "2");
        assert!(!write(dir, &files(&[("a", "1"), ("d/e/f", "2")]), None, "2").unwrap());
        assert!(write(dir, &files(&[("a", "3"), ("b", "4")]), None, "3").unwrap());
        assert_eq!(names(dir), ["..3", "..data", "a", "b"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(write(dir, &Files::new(), None, "4").unwrap());
        assert_eq!(names(dir), ["..4", "..data"]);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "", "..data"] {
            assert!(write(dir.path(), &files(&[(path, "")]), None, "1").is_err(), "{path}");
        }
    }
}
