//! One configuration struct per daemon: defaults, then a TOML file, then the environment, then `--set`.

use std::collections::HashMap;
use std::path::PathBuf;

use config::{Environment, File, FileFormat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::telemetry::Log;

/// A daemon's settings. Derive `serde(default, deny_unknown_fields)`, so that a misspelt key is an
/// error that names it.
pub trait Config: Serialize + DeserializeOwned + Default + Send + 'static {
    /// Turns strings into checked values, once.
    ///
    /// # Errors
    /// A sentence that names the key and says what it may be.
    fn check(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The command line every daemon has, and no more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `--config FILE`
    pub file: Option<PathBuf>,
    /// `--set key=value`, in order
    pub set: Vec<(String, String)>,
    /// What to do.
    pub action: Action,
}

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Run the daemon.
    #[default]
    Run,
    /// Print the resulting configuration and stop.
    Print,
    /// Check the configuration and stop.
    Check,
    /// Print the version and stop.
    Version,
    /// Print the help and stop.
    Help,
}

/// A configuration that cannot be used, in words that name the file and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line itself is wrong.
    #[error("{0}; see --help")]
    Usage(String),
    /// A source holds an unknown key or a value of the wrong type.
    #[error("configuration: {0}")]
    Source(#[from] config::ConfigError),
    /// A value is of the right type but not usable.
    #[error("configuration: {0:#}")]
    Value(anyhow::Error),
}

/// Reads the command line (without the program's name).
///
/// # Errors
/// On flags that no daemon has.
pub fn parse_args(args: impl IntoIterator<Item = String>) -> Result<Args, ConfigError> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => {
                (flag.to_owned(), Some(value.to_owned()))
            }
            _ => (arg, None),
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| args.next())
                .ok_or(ConfigError::Usage(format!("{flag} needs a value")))
        };
        match flag.as_str() {
            "--config" => parsed.file = Some(value()?.into()),
            "--set" => {
                let text = value()?;
                let Some((key, value)) = text.split_once('=') else {
                    return Err(ConfigError::Usage(format!("--set takes key=value, not {text:?}")));
                };
                parsed.set.push((key.to_owned(), value.to_owned()));
            }
            "--print-config" => parsed.action = Action::Print,
            "--check" => parsed.action = Action::Check,
            "--version" | "-V" => parsed.action = Action::Version,
            "--help" | "-h" => parsed.action = Action::Help,
            other => return Err(ConfigError::Usage(format!("unknown argument {other:?}"))),
        }
    }
    Ok(parsed)
}

/// The settings every daemon has, and its own.
#[derive(Debug, Default, Serialize)]
pub struct Whole<C> {
    /// What is logged.
    pub log: Log,
    /// Where health is served.
    pub health: HealthListen,
    /// The daemon's own settings, beside the others in the file.
    #[serde(flatten)]
    pub daemon: C,
}

/// Where health and metrics are served.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthListen {
    /// Address of `/healthz`, `/readyz` and `/metrics`, loopback only; empty for nowhere.
    pub listen: String,
}

/// Puts the configuration of daemon `name` together.
///
/// # Errors
/// Names the source and key that is unknown, of the wrong type or unusable.
pub fn load<C: Config>(name: &str, args: &Args) -> Result<Whole<C>, ConfigError> {
    load_with(name, args, None)
}

/// As [`load`], with these variables in place of the process's, if given.
fn load_with<C: Config>(
    name: &str,
    args: &Args,
    variables: Option<HashMap<String, String>>,
) -> Result<Whole<C>, ConfigError> {
    let prefix = format!("IRONCLAD_{}", name.to_uppercase().replace('-', "_"));
    let mut builder = config::Config::builder();
    if let Some(file) = &args.file {
        builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
    }
    builder = builder.add_source(
        Environment::with_prefix(&prefix)
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .source(variables),
    );
    for (key, value) in &args.set {
        builder = builder.set_override(key, value.as_str())?;
    }
    // Split by hand: a flattened struct would neither refuse unknown keys nor read numbers from
    // the environment's strings.
    let mut table = builder.build()?.cache.into_table()?;
    let log = table.remove("log").map(config::Value::try_deserialize).transpose()?;
    let health = table.remove("health").map(config::Value::try_deserialize).transpose()?;
    let rest = config::Value::new(None, config::ValueKind::Table(table));
    let mut daemon: C = rest.try_deserialize()?;
    daemon.check().map_err(ConfigError::Value)?;
    Ok(Whole { log: log.unwrap_or_default(), health: health.unwrap_or_default(), daemon })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        data_dir: String,
        client: Client,
    }

    #[derive(Debug, Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Client {
        listen: String,
        streams_max: u32,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { data_dir: "/var/lib/x".into(), client: Client::default() }
        }
    }
    impl Default for Client {
        fn default() -> Self {
            Self { listen: "127.0.0.1:1".into(), streams_max: 7 }
        }
    }
    impl Config for Sample {}

    fn args(words: &[&str]) -> Args {
        parse_args(words.iter().map(ToString::to_string)).unwrap()
    }

    #[test]
    fn set_beats_the_defaults_and_the_rest_stays() {
        let args = args(&["--set", "client.streams_max=9"]);
        let sample = load::<Sample>("sample", &args).unwrap().daemon;
        assert_eq!((sample.client.streams_max, sample.client.listen.as_str()), (9, "127.0.0.1:1"));
        assert_eq!(sample.data_dir, "/var/lib/x");
    }

    #[test]
    fn the_environment_is_read_as_the_help_says() {
        let set = [
            ("IRONCLAD_A_DAEMON__DATA_DIR", "/y"),
            ("IRONCLAD_A_DAEMON__CLIENT__STREAMS_MAX", "8"),
        ];
        let set = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let sample = load_with::<Sample>("a-daemon", &Args::default(), Some(set)).unwrap().daemon;
        assert_eq!((sample.data_dir.as_str(), sample.client.streams_max), ("/y", 8));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = load::<Sample>("sample", &args(&["--set", "client.listne=x"])).unwrap_err();
        assert!(error.to_string().contains("listne"), "{error}");
    }

    #[test]
    fn a_wrong_type_is_refused_by_name() {
        let error =
            load::<Sample>("sample", &args(&["--set=client.streams_max=many"])).unwrap_err();
        assert!(error.to_string().contains("streams_max"), "{error}");
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(parse_args(["--frobnicate".to_owned()]).is_err());
    }
}
