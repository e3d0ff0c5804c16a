//! Configuration: defaults < TOML file < environment < flags, and the start of logging.
//!
//! A server defines one struct with `#[serde(deny_unknown_fields, default)]`, units in the names of its fields, and
//! gets it from [`load`]. A key that the struct does not have is an error that names the key and where it stands.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What is wrong with a configuration: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value is not of its key's kind, or there is no such key.
    #[error("{place}: {message}")]
    Value {
        /// The file, the environment variable or the flag.
        place: String,
        /// What is wrong there.
        message: String,
    },
}

/// The configuration of this process: see [`merge`]. `prefix` is that of its environment variables,
/// `DFS_CHUNKSERVER_`; `flags` are pairs of key and value from the command line.
///
/// # Errors
/// An unreadable file, an unknown key, a value of the wrong kind: each named with its place.
pub fn load<T>(file: Option<&Path>, prefix: &str, flags: &[(String, String)]) -> Result<T, ConfigError>
where
    T: DeserializeOwned,
{
    let text = match file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            Some((path, read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?))
        }
        None => None,
    };
    let environment: Vec<(String, String)> = std::env::vars().collect();
    merge(text.as_ref().map(|(path, text)| (*path, text.as_str())), prefix, &environment, flags)
}

/// Puts the layers together. `file` is its path and contents. An environment variable is `prefix` and the key in
/// upper case. Values there and in flags are TOML (`5`, `true`, `["a", "b"]`), or plain text where that does not fit.
///
/// # Errors
/// As [`load`].
pub fn merge<T>(
    file: Option<(&Path, &str)>,
    prefix: &str,
    environment: &[(String, String)],
    flags: &[(String, String)],
) -> Result<T, ConfigError>
where
    T: DeserializeOwned,
{
    let mut table = Table::new();
    if let Some((path, text)) = file {
        let wrong = |message: String| ConfigError::Value { place: path.display().to_string(), message };
        // Once on its own, so that the error shows the line.
        toml::from_str::<T>(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    }
    let mut environment: Vec<(&String, &String)> = environment.iter().map(|(key, value)| (key, value)).collect();
    environment.sort();
    for (name, value) in environment {
        if let Some(key) = name.strip_prefix(prefix) {
            set::<T>(&mut table, &key.to_lowercase(), value, name)?;
        }
    }
    for (key, value) in flags {
        set::<T>(&mut table, key, value, &format!("--{}", key.replace('_', "-")))?;
    }
    read::<T>(&table).map_err(|message| ConfigError::Value { place: "configuration".into(), message })
}

/// Sets one key, as TOML if that fits the struct, else as text.
fn set<T: DeserializeOwned>(table: &mut Table, key: &str, value: &str, place: &str) -> Result<(), ConfigError> {
    let typed = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    let text = Value::String(value.to_owned());
    let mut last = String::new();
    for candidate in typed.into_iter().chain([text]) {
        let mut with = table.clone();
        with.insert(key.to_owned(), candidate);
        match read::<T>(&with) {
            Ok(_) => {
                *table = with;
                return Ok(());
            }
            Err(message) if last.is_empty() => last = message,
            Err(_) => {}
        }
    }
    Err(ConfigError::Value { place: place.to_owned(), message: last })
}

fn read<T: DeserializeOwned>(table: &Table) -> Result<T, String> {
    table.clone().try_into::<T>().map_err(|error| error.to_string().trim_end().replace('\n', " "))
}

/// The configuration as TOML, for the log at start.
pub fn show<T: Serialize>(config: &T) -> String {
    toml::to_string(config).unwrap_or_else(|error| error.to_string()).trim_end().replace('\n', "; ")
}

/// Starts logging to standard error. `level` is a filter such as `info` or `info,chunkserver=debug`; the environment
/// variable `DFS_LOG` wins over it. `tarpc`'s own spans and warnings are off unless the filter names `tarpc`: they
/// cost time in each call, and what they tell is in the errors. `openraft` is held to errors unless it is named: it
/// repeats a peer that is down several times a second.
pub fn start_logging(level: &str) {
    let filter = std::env::var("DFS_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = [("tarpc", "off"), ("openraft", "error")].into_iter().fold(filter, |filter, (name, level)| {
        if filter.contains(name) { filter } else { format!("{filter},{name}={level}") }
    });
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // An error: somebody else (a test) has started it already, which is as good.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(std::io::stderr).try_init();
}

/// From now on a panic anywhere ends the process: a server missing one task is worse than one that restarts.
pub fn abort_on_panic() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        show(info);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        listen: String,
        host: String,
        reserve_bytes: u64,
        data_dirs: Vec<PathBuf>,
        cluster: Option<String>,
    }

    impl Default for Example {
        fn default() -> Example {
            let (listen, host) = ("127.0.0.1:7000".into(), "a".into());
            Example { listen, host, reserve_bytes: 1, data_dirs: vec![], cluster: None }
        }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let file = "listen = \"file:1\"\nhost = \"file\"\nreserve_bytes = 2";
        let environment = pairs(&[("X_HOST", "17"), ("X_DATA_DIRS", "[\"/a\", \"/b\"]"), ("OTHER", "1")]);
        let flags = pairs(&[("reserve_bytes", "9")]);
        let got: Example = merge(Some((Path::new("f"), file)), "X_", &environment, &flags).unwrap();
        let wanted = Example {
            listen: "file:1".into(),
            host: "17".into(),
            reserve_bytes: 9,
            data_dirs: vec!["/a".into(), "/b".into()],
            cluster: None,
        };
        assert_eq!(got, wanted);
        assert_eq!(merge::<Example>(None, "X_", &[], &[]).unwrap(), Example::default());
    }

    #[test]
    fn what_is_not_known_or_of_the_wrong_kind_is_named_with_its_place() {
        let unknown = merge::<Example>(Some((Path::new("/etc/x.toml"), "listne = \"a\"")), "X_", &[], &[]);
        let text = unknown.unwrap_err().to_string();
        assert!(text.contains("/etc/x.toml") && text.contains("listne"), "{text}");
        let text = merge::<Example>(None, "X_", &pairs(&[("X_LISTNE", "a")]), &[]).unwrap_err().to_string();
        assert!(text.contains("X_LISTNE") && text.contains("listne"), "{text}");
        let text = merge::<Example>(None, "X_", &[], &pairs(&[("reserve_bytes", "lots")])).unwrap_err().to_string();
        assert!(text.contains("--reserve-bytes") && text.contains("expected u64"), "{text}");
        let file = Some((Path::new("f"), "reserve_bytes = -1"));
        assert!(merge::<Example>(file, "X_", &[], &[]).unwrap_err().to_string().starts_with("f: "));
    }

    #[test]
    fn it_shows_in_one_line() {
        let shown = show(&Example::default());
        assert_eq!(shown, "listen = \"127.0.0.1:7000\"; host = \"a\"; reserve_bytes = 1; data_dirs = []");
    }
}
