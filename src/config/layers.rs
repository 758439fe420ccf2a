//! Merging the layers into one table, and saying clearly what is wrong with one.

use std::{
    env, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};
use toml::{Table, Value};

use super::DEFAULTS;

/// What every setting's environment variable starts with.
const ENV_PREFIX: &str = "REFRAIN_";
/// What separates sections and keys in an environment variable.
const ENV_SEPARATOR: &str = "__";
/// Tables whose keys the user names.
const OPEN_TABLES: &[&str] = &["cache.categories"];
/// Settings that may hold a secret.
const SECRETS: &[&str] = &["store.redis.url"];

/// Where settings come from, besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that must exist.
    pub file: Option<PathBuf>,
    /// `section.key=value`, the strongest layer.
    pub set: Vec<String>,
    /// Environment variables by name.
    pub env: Vec<(String, String)>,
}

impl Sources {
    /// The process's environment plus a file and flags.
    pub fn from_process(file: Option<PathBuf>, set: Vec<String>) -> Self {
        Self { file, set, env: env::vars().collect() }
    }

    fn file(&self) -> Option<PathBuf> {
        if self.file.is_some() {
            return self.file.clone();
        }
        if let Some((_, path)) = self.env.iter().find(|(name, _)| name == "REFRAIN_CONFIG") {
            return Some(path.into());
        }
        Some(xdg_dir("XDG_CONFIG_HOME", ".config").join("refrain").join("config.toml")).filter(|path| path.is_file())
    }
}

/// Why settings cannot be taken. The message says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("the config file {} cannot be read: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A key that the manual does not know.
    #[error("{layer}: unknown setting `{key}`{}; `refrain config dump` lists all", hint.as_ref().map(|h| format!(", did you mean `{h}`?")).unwrap_or_default())]
    UnknownKey {
        /// Where it was set.
        layer: String,
        /// The key.
        key: String,
        /// The nearest known key.
        hint: Option<String>,
    },
    /// A value of the wrong form.
    #[error("{0}")]
    Value(String),
    /// Settings that do not go together.
    #[error("{0}")]
    Rule(String),
}

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err, which gives values")]
    pub(super) fn value(problem: toml::de::Error) -> Self {
        Self::Value(problem.to_string().trim().to_owned())
    }
}

/// All layers as one table.
pub(super) fn merge(sources: &Sources) -> Result<Table, Error> {
    let mut table: Table = DEFAULTS.parse().map_err(Error::value)?;
    if let Some(path) = sources.file() {
        let text = fs::read_to_string(&path)
            .map_err(|problem| Error::File { path: path.clone(), problem: problem.to_string() })?;
        let layer: Table = text
            .parse()
            .map_err(|problem| Error::File { path: path.clone(), problem: without_source(&text, &problem) })?;
        overlay(&mut table, layer, "", &path.display().to_string())?;
    }
    let mut known = Vec::new();
    collect_keys(&table, "", &mut known);
    for (name, value) in &sources.env {
        if let Some(key) = env_key(name, &known)? {
            set(&mut table, &key, value, &format!("environment variable {name}"))?;
        }
    }
    for assignment in &sources.set {
        let (key, value) = assignment
            .split_once('=')
            .ok_or_else(|| Error::Value(format!("--set {assignment}: write section.key=value")))?;
        set(&mut table, key.trim(), value.trim(), "--set")?;
    }
    Ok(table)
}

/// A problem by its line. What stands there is not repeated: it may be a password.
fn without_source(text: &str, problem: &toml::de::Error) -> String {
    let before = problem.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, problem.message())
}

/// `REFRAIN_SERVER__LISTEN` is `server.listen`; names without a section belong to others.
///
/// Not all of those: `REFRAIN_SERVER_LISTEN` lacks an underscore, and passing it over would leave
/// somebody with a setting that does nothing.
fn env_key(name: &str, known: &[String]) -> Result<Option<String>, Error> {
    let Some(rest) = name.strip_prefix(ENV_PREFIX).map(str::to_lowercase) else { return Ok(None) };
    if rest.contains(ENV_SEPARATOR) {
        return Ok(Some(rest.replace(ENV_SEPARATOR, ".")));
    }
    match known.iter().find(|key| key.replace('.', "_") == rest) {
        Some(key) => {
            let meant = key.replace('.', ENV_SEPARATOR).to_uppercase();
            Err(Error::Value(format!("environment variable {name}: did you mean {ENV_PREFIX}{meant}?")))
        }
        None => Ok(None),
    }
}

fn overlay(base: &mut Table, layer: Table, path: &str, name: &str) -> Result<(), Error> {
    for (key, value) in layer {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(layer)) => overlay(inner, layer, &full, name)?,
            (Some(slot), value) => *slot = value,
            (None, value) if OPEN_TABLES.contains(&path) => {
                base.insert(key, value);
            }
            (None, _) => return Err(unknown(name, &full)),
        }
    }
    Ok(())
}

/// Sets one dotted key from text, taking the type of the default.
fn set(table: &mut Table, key: &str, text: &str, layer: &str) -> Result<(), Error> {
    let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut inner = &mut *table;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        inner = match inner.get_mut(part) {
            Some(Value::Table(next)) => next,
            _ => return Err(unknown(layer, key)),
        };
    }
    let bad = |form: &str| Error::Value(format!("{layer}: `{key}` takes {form}, not {text:?}"));
    let value = match inner.get(last) {
        Some(Value::Boolean(_)) => Value::Boolean(text.parse().map_err(|_| bad("true or false"))?),
        Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| bad("a whole number"))?),
        Some(Value::Float(_)) => Value::Float(text.parse().map_err(|_| bad("a number"))?),
        Some(Value::String(_)) => Value::String(text.to_owned()),
        Some(_) => return Err(bad("a table; set one of its keys")),
        None if OPEN_TABLES.contains(&path) => Value::String(text.to_owned()),
        None => return Err(unknown(layer, key)),
    };
    inner.insert(last.to_owned(), value);
    Ok(())
}

fn unknown(layer: &str, key: &str) -> Error {
    let defaults: Table = DEFAULTS.parse().unwrap_or_default();
    let mut known = Vec::new();
    collect_keys(&defaults, "", &mut known);
    let last = key.rsplit('.').next().unwrap_or(key);
    let hint = known
        .into_iter()
        .map(|candidate| {
            let of_last = candidate.rsplit('.').next().map_or(usize::MAX, |name| edit_distance(name, last));
            (edit_distance(&candidate, key).min(of_last), candidate)
        })
        .min()
        // A slip of the pen, not another word.
        .filter(|(distance, _)| *distance * 3 <= last.len())
        .map(|(_, candidate)| candidate);
    Error::UnknownKey { layer: layer.to_owned(), key: key.to_owned(), hint }
}

fn collect_keys(table: &Table, path: &str, keys: &mut Vec<String>) {
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Table(inner) => collect_keys(inner, &full, keys),
            _ => keys.push(full),
        }
    }
}

/// Levenshtein distance, for the hint only.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Replaces what may be secret by stars, for printing.
pub(super) fn mask_secrets(table: &mut Table) {
    for key in SECRETS {
        let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut inner = Some(&mut *table);
        for part in path.split('.') {
            inner = inner.and_then(|t| t.get_mut(part)).and_then(Value::as_table_mut);
        }
        if let Some(Value::String(text)) = inner.and_then(|t| t.get_mut(last)) {
            *text = mask_password(text);
        }
    }
}

/// `redis://user:password@host` becomes `redis://user:***@host`, and of a Unix socket's URL, which
/// carries its password in the query, the whole query goes.
pub(crate) fn mask_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    if scheme.ends_with("unix") {
        return rest.split_once('?').map_or_else(|| url.to_owned(), |(path, _)| format!("{scheme}://{path}?***"));
    }
    let Some((credentials, host)) = rest.rsplit_once('@') else { return url.to_owned() };
    let user = credentials.split_once(':').map_or(credentials, |(user, _)| user);
    format!("{scheme}://{user}:***@{host}")
}

/// A folder of the XDG base directory specification.
pub(super) fn xdg_dir(variable: &str, below_home: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(dir) if Path::new(&dir).is_absolute() => dir.into(),
        _ => env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from).join(below_home),
    }
}

/// Reads an empty string as `None`, anything else by its own parser.
pub(super) fn empty_as_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|problem| de::Error::custom(format!("{text:?}: {problem}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, EngineKind};

    fn sources(env: &[(&str, &str)], set: &[&str]) -> Sources {
        Sources {
            // A path that exists keeps the user's own file out of the test.
            file: Some("/dev/null".into()),
            set: set.iter().map(ToString::to_string).collect(),
            env: env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        }
    }

    #[test]
    fn defaults_are_complete() {
        let config = Config::load(&sources(&[], &[])).unwrap();
        assert_eq!(config.store.engine, EngineKind::Embedded);
    }

    #[test]
    fn flags_overrule_environment_overrules_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[cache]\nneighbors = 2\nmin_similarity = 0.5\n[limits]\nbatch_max = 7\n").unwrap();
        let mut sources = sources(
            &[("REFRAIN_CACHE__NEIGHBORS", "3"), ("REFRAIN_CACHE__MIN_SIMILARITY", "0")],
            &["cache.neighbors=4"],
        );
        sources.file = Some(path);
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.cache.neighbors, 4);
        assert!(config.cache.min_similarity.abs() < f32::EPSILON, "zero is a value");
        assert_eq!(config.limits.batch_max, 7);
    }

    #[test]
    fn unknown_keys_are_refused_with_a_hint_in_every_layer() {
        for sources in
            [sources(&[], &["cache.min_similarty=0.9"]), sources(&[("REFRAIN_CACHE__MIN_SIMILARTY", "0.9")], &[])]
        {
            let message = Config::load(&sources).unwrap_err().to_string();
            assert!(message.contains("did you mean `cache.min_similarity`"), "{message}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[cache]\nmin_similarty = 0.9\n").unwrap();
        let mut from_file = sources(&[], &[]);
        from_file.file = Some(path);
        assert!(matches!(Config::load(&from_file), Err(Error::UnknownKey { .. })));
    }

    #[test]
    fn a_variable_that_lacks_an_underscore_is_not_passed_over() {
        let message = Config::load(&sources(&[("REFRAIN_SERVER_LISTEN", "127.0.0.1:1")], &[])).unwrap_err().to_string();
        assert!(message.contains("REFRAIN_SERVER__LISTEN"), "{message}");
        let others = [("REFRAIN_ADDRESS", "x"), ("REFRAIN_PORT_7411_TCP", "x"), ("REFRAIN_CACHE", "x")];
        assert!(Config::load(&sources(&others, &[])).is_ok());
    }

    #[test]
    fn listening_beyond_loopback_needs_the_flag() {
        let open = sources(&[], &["server.listen=0.0.0.0:7411"]);
        assert!(matches!(Config::load(&open), Err(Error::Rule(_))));
        let trusted = sources(&[], &["server.listen=0.0.0.0:7411", "server.allow_unauthenticated_remote=true"]);
        assert!(Config::load(&trusted).is_ok());
    }

    #[test]
    fn durations_that_no_timer_can_keep_are_refused() {
        for set in ["cache.stats_interval=0s", "cache.store_timeout=0s", "embedding.memo_ttl=300000000000years"] {
            let message = Config::load(&sources(&[], &[set])).unwrap_err().to_string();
            assert!(message.contains(set.split('=').next().unwrap()), "{set}: {message}");
        }
    }

    #[test]
    fn categories_are_the_users_to_name() {
        let config = Config::load(&sources(&[], &["cache.categories.weather=15m"])).unwrap();
        assert_eq!(config.cache.categories["weather"].0.as_secs(), 900);
        assert!(Config::load(&sources(&[], &["cache.categories.we|ther=15m"])).is_err());
    }

    #[test]
    fn a_broken_file_is_named_by_line_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[store.redis]\nurl = \"redis://:hunter2@db\n").unwrap();
        let message = Config::load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err().to_string();
        assert!(message.contains("line 2") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn a_dump_hides_passwords() {
        for (url, masked) in [
            ("redis://me:hunter2@db:6379", "redis://me:***@db:6379"),
            ("unix:///run/redis.sock?user=me&pass=hunter2@x", "unix:///run/redis.sock?***"),
        ] {
            let dump = Config::dump(&sources(&[], &[&format!("store.redis.url={url}")])).unwrap();
            assert!(!dump.contains("hunter2") && dump.contains(masked), "{dump}");
        }
    }
}
