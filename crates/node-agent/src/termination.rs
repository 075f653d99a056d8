//! What a container says about its end: the file it was given, or the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::pod::Container;

const FILE_BYTES_MAX: u64 = 4096;
const LOG_BYTES_MAX: u64 = 2048;
const LOG_LINES_MAX: usize = 80;

/// The termination message of a run that has ended; empty where there is none.
pub(crate) fn message(run: &Container) -> String {
    let text = tail(Path::new(&run.termination_file), FILE_BYTES_MAX);
    if !text.is_empty() || run.exit_code == 0 || run.termination_policy != "FallbackToLogsOnError" {
        return text;
    }
    let log = tail(Path::new(&run.log_path), 4 * LOG_BYTES_MAX);
    from_log(&log)
}

/// The end of a file; empty where it cannot be read.
fn tail(path: &Path, bytes_max: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The text of the last lines of a log in the runtime's form: time, stream, flag, text.
fn from_log(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let mut from = lines.len().saturating_sub(LOG_LINES_MAX);
    let size = |from: usize| lines[from..].iter().map(|line| line.len() + 1).sum::<usize>();
    while from < lines.len() && size(from) as u64 > LOG_BYTES_MAX {
        from += 1;
    }
    lines[from..].iter().flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_log_stand_in() {
        let log = "2026-01-01T00:00:00Z stdout F one two\n2026-01-01T00:00:01Z stderr F three\n";
        assert_eq!(from_log(log), "one two\nthree\n");
        let many: String = (0..200).map(|i| format!("t stdout F line {i}\n")).collect();
        let text = from_log(&many);
        assert_eq!(text.lines().count(), 80);
        assert!(text.ends_with("line 199\n"));
    }
}
