//! The network of pods as CNI plugins are told it: a routed veth pair per pod, addresses from the
//! node's range.

use std::io;
use std::path::Path;

use serde_json::json;

const NAME: &str = "10-ironclad.conflist";

/// The configuration for pods with addresses from `ranges`, one per address family.
#[must_use]
pub fn config(ranges: &[String], state: &Path, host_ports: bool) -> String {
    let subnets: Vec<_> = ranges.iter().map(|range| json!([{"subnet": range}])).collect();
    let routes: Vec<_> = ranges
        .iter()
        .map(|range| json!({"dst": if range.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
        .collect();
    let mut plugins = vec![json!({
        "type": "ptp",
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "ranges": subnets,
            "routes": routes,
            "dataDir": state,
        },
    })];
    if host_ports {
        plugins
            .push(json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}));
    }
    json!({"cniVersion": "1.0.0", "name": "ironclad", "plugins": plugins}).to_string()
}

/// Removes the configuration that [`write`] wrote.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the configuration to `dir` unless it is there already.
///
/// # Errors
/// When the file cannot be written.
pub fn write(dir: &Path, text: &str) -> io::Result<()> {
    let file = dir.join(NAME);
    if std::fs::read_to_string(&file).is_ok_and(|present| present == text) {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let fresh = dir.join(".new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_per_family() {
        let ranges = ["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()];
        let text = config(&ranges, Path::new("/state"), false);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ipam = &parsed["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"][0][0]["subnet"], "10.1.0.0/24");
        assert_eq!(ipam["routes"][1]["dst"], "::/0");
        assert!(parsed["plugins"][1].is_null());
    }
}
