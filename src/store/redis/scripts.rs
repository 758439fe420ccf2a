//! The Lua scripts: each is one atomic verb. They take all keys they touch as `KEYS`, and all of
//! those carry the hash tag of one namespace.

use std::sync::LazyLock;

use redis::{Cmd, Script};

/// Starts an epoch or returns the current one.
pub(super) static EPOCH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/epoch.lua")));
/// Writes an entry.
pub(super) static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/put.lua")));
/// Deletes entries.
pub(super) static DELETE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/delete.lua")));
/// Empties a namespace.
pub(super) static EMPTY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/empty.lua")));
/// One page of a listing.
pub(super) static PAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/page.lua")));

/// The sources, for the server that does not know a script yet.
const SOURCES: [&str; 5] = [
    include_str!("scripts/epoch.lua"),
    include_str!("scripts/put.lua"),
    include_str!("scripts/delete.lua"),
    include_str!("scripts/empty.lua"),
    include_str!("scripts/page.lua"),
];

/// A call by hash.
pub(super) fn call(script: &Script, keys: &[String], args: &[&[u8]]) -> Cmd {
    let mut cmd = redis::cmd("EVALSHA");
    cmd.arg(script.get_hash()).arg(keys.len()).arg(keys);
    for arg in args {
        cmd.arg(*arg);
    }
    cmd
}

/// Commands that load every script, for a server that was restarted or flushed.
pub(super) fn load_all() -> redis::Pipeline {
    let mut pipeline = redis::pipe();
    for source in SOURCES {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(source);
    }
    pipeline
}
