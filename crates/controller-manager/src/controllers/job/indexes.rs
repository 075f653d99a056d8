//! Completion indexes as a status writes them, `1,3-5,7`, and as pods carry them. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// The annotation and label of a pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often pods of the index failed before this one.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often so that the failure policy ignores it.
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// What the API server keeps of a `generateName`.
const PREFIX_BYTES_MAX: usize = 58;

/// Reads `1,3-5,7`; what is not below `completions` is left out, and what can't be read ends the list.
pub(super) fn parse(text: Option<&str>, completions: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.unwrap_or_default().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { break };
        indexes.extend(first.max(0)..=last.min(completions - 1));
    }
    indexes
}

/// Writes them: runs of three and more with a dash, two neighbours with a comma.
pub(super) fn write(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let text = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

fn number(pod: &Pod, key: &str) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(key)?.parse().ok().filter(|n| *n >= 0)
}

/// The index of a pod.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    number(pod, INDEX)
}

/// How often its index failed before it.
pub(super) fn failures_before(pod: &Pod) -> i32 {
    number(pod, FAILURES).unwrap_or(0)
}

/// How often its index failed before it so that the policy ignores it.
pub(super) fn ignored_before(pod: &Pod) -> i32 {
    number(pod, IGNORED).unwrap_or(0)
}

/// What names of pods of an index begin with: of a long name the index is what has to stay.
pub(super) fn prefix(job: &str, index: i32) -> String {
    let end = format!("-{index}-");
    let kept: String = job.chars().take(PREFIX_BYTES_MAX - end.len()).collect();
    kept + &end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["", "0", "0,1", "1,3-5,7", "0-9"] {
            assert_eq!(write(&parse(Some(text), 10)), text);
        }
        assert_eq!(write(&parse(Some("1,3-20"), 6)), "1,3-5");
        assert_eq!(write(&parse(Some("1,x,3"), 6)), "1");
    }

    #[test]
    fn the_index_stays_in_a_long_name() {
        assert_eq!(prefix("j", 7), "j-7-");
        let long = prefix(&"x".repeat(63), 12);
        assert_eq!((long.len(), long.ends_with("x-12-")), (58, true));
    }
}
