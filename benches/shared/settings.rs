//! The settings a sidecar has by default, so that benches measure what is shipped.

use std::path::{Path, PathBuf};

use refrain::config::{Config, Sources};

/// Defaults, overruled by `set`, with everything that is looked for taken from the checkout.
pub(crate) fn config(set: &[String]) -> Config {
    let mut all = vec![format!("embedding.assets_dir={}", assets().display())];
    all.extend_from_slice(set);
    // A file that exists keeps the user's own settings out of the bench.
    let sources = Sources { file: Some("/dev/null".into()), set: all, env: Vec::new() };
    Config::load(&sources).expect("the settings of the bench are valid")
}

/// Where `make setup` puts its files; `REFRAIN_ASSETS` names another place.
pub(crate) fn assets() -> PathBuf {
    std::env::var_os("REFRAIN_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".refrain/assets"), PathBuf::from)
}
