//! Logs: `tracing` to standard error or a file, as text or JSON.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A `tracing` filter, such as `info` or `info,apiserver=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: Format,
    /// The file it is appended to; empty for standard error.
    pub file: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: Format::Text, file: String::new() }
    }
}

/// Starts logging for the whole process; the first call counts.
///
/// # Errors
/// When the filter cannot be parsed, or the file not be written.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| anyhow::anyhow!("log.filter {:?}: {error}", log.filter))?;
    let writer = match log.file.as_str() {
        "" => BoxMakeWriter::new(std::io::stderr),
        path => {
            let mut options = std::fs::OpenOptions::new();
            let file = options.create(true).append(true).open(path);
            BoxMakeWriter::new(file.with_context(|| format!("log.file {path:?}"))?)
        }
    };
    let colours = log.file.is_empty() && std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    // A second daemon in the same process finds the subscriber set, which is what we want.
    let _already_set = match log.format {
        Format::Text => registry.with(layer).try_init(),
        Format::Json => registry.with(layer.json()).try_init(),
    };
    Ok(())
}
