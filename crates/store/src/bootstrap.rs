//! Who the first members of a cluster are, and their ids. Pure.
//!
//! Ids are derived as etcd derives them, so that every member of a new cluster finds the same ones by itself.

use std::collections::BTreeSet;

use sha1::{Digest as _, Sha1};

/// A member as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Where other members reach it, in order.
    pub urls: Vec<String>,
}

/// What is wrong with a list of members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not a pair.
    #[error("{0:?} is not of the form name=url")]
    Pair(String),
    /// Not a place that can be reached.
    #[error("{0:?} is not a URL of the form https://host:port")]
    Url(String),
    /// One place for two.
    #[error("{0} stands for more than one member")]
    Twice(String),
}

/// Reads `a=https://host:port,b=…`; a name that comes again has another URL.
///
/// # Errors
/// When it is not of this form, or two members share a URL.
pub fn parse(list: &str) -> Result<Vec<Named>, ListError> {
    let mut found: Vec<Named> = Vec::new();
    let mut seen = BTreeSet::new();
    for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').ok_or_else(|| ListError::Pair(pair.to_owned()))?;
        let url = check_url(url)?;
        if !seen.insert(url.clone()) {
            return Err(ListError::Twice(url));
        }
        match found.iter_mut().find(|known| known.name == name) {
            Some(known) => known.urls.push(url),
            None => found.push(Named { name: name.to_owned(), urls: vec![url] }),
        }
    }
    found.iter_mut().for_each(|named| named.urls.sort());
    Ok(found)
}

/// Reads URLs between commas, in order.
///
/// # Errors
/// When one is none.
pub fn urls(list: &str) -> Result<Vec<String>, ListError> {
    let parts = list.split(',').map(str::trim).filter(|url| !url.is_empty());
    let mut urls: Vec<String> = parts.map(check_url).collect::<Result<_, _>>()?;
    urls.sort();
    Ok(urls)
}

/// A URL without its last slash, if it has scheme, host and port and nothing else.
///
/// # Errors
/// When it is another kind of URL or none.
pub fn check_url(url: &str) -> Result<String, ListError> {
    let wrong = || ListError::Url(url.to_owned());
    let trimmed = url.trim_end_matches('/');
    let rest = trimmed.strip_prefix("https://").or_else(|| trimmed.strip_prefix("http://"));
    let (host, port) = rest.and_then(|rest| rest.rsplit_once(':')).ok_or_else(wrong)?;
    let whole = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    match port.parse::<u16>() {
        Ok(1..) if whole => Ok(trimmed.to_owned()),
        _ => Err(wrong()),
    }
}

/// The id of a member: of its URLs, the cluster's token, and the second in which it was added, if it was not there at first.
#[must_use]
pub fn member_id(urls: &[String], token: &str, added_s: Option<u64>) -> u64 {
    let mut sorted: Vec<&str> = urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let added = added_s.map_or_else(String::new, |second| second.to_string());
    first_eight([sorted.concat().as_bytes(), token.as_bytes(), added.as_bytes()].concat())
}

/// The id of a cluster: of its first members' ids.
#[must_use]
pub fn cluster_id(members: impl IntoIterator<Item = u64>) -> u64 {
    let sorted: BTreeSet<u64> = members.into_iter().collect();
    first_eight(sorted.into_iter().flat_map(u64::to_be_bytes).collect())
}

fn first_eight(bytes: Vec<u8>) -> u64 {
    let hash = Sha1::digest(bytes);
    hash.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_etcd() {
        // What every etcd with its default settings has.
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster", None);
        assert_eq!(member, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id([member]), 0xcdf8_1819_4e3a_8c32);
        assert_eq!(cluster_id([1, 2]), cluster_id([2, 1]));
    }

    #[test]
    fn a_list_of_members_is_read_or_refused_with_the_part_that_is_wrong() {
        let named = |name: &str, urls: &[&str]| Named {
            name: name.to_owned(),
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        };
        assert_eq!(
            parse("a=http://h:2,b=https://[::1]:3/, a=http://h:1").unwrap(),
            [named("a", &["http://h:1", "http://h:2"]), named("b", &["https://[::1]:3"])]
        );
        assert_eq!(parse("").unwrap(), []);
        for (list, words) in [
            ("http://h:1", "\"http://h:1\" is not of the form name=url"),
            ("a=h:1", "\"h:1\" is not a URL of the form https://host:port"),
            ("a=http://h", "\"http://h\" is not a URL of the form https://host:port"),
            ("a=http://h:0", "\"http://h:0\" is not a URL of the form https://host:port"),
            ("a=http://h:1/p", "\"http://h:1/p\" is not a URL of the form https://host:port"),
            ("a=http://h:1,b=http://h:1/", "http://h:1 stands for more than one member"),
        ] {
            assert_eq!(parse(list).unwrap_err().to_string(), words);
        }
    }
}
