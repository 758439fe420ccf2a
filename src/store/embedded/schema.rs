//! The tables, how connections to them are opened, and how older files become current ones.
//!
//! An epoch is one generation of a namespace, with a number no other namespace ever had. Emptying
//! a namespace retires its epoch: one row changes, and every entry of the old generation is out of
//! sight at once. What is out of sight is swept later.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{
    Durability, Settings,
    failure::{self, unavailable},
};
use crate::store::{Error, Result};

/// Marks the file as ours (`RFRN`), so that another program's database is not taken for one.
const APPLICATION_ID: i32 = 0x5246_524e;

/// Each step leads from the version that is its index to the next; a released step never changes.
const MIGRATIONS: &[&str] = &[V1];

/// In `entries` the vector stands before the response, because SQLite reads a long row from its
/// beginning and the start of the engine reads every vector but no response.
const V1: &str = "
CREATE TABLE epochs (
    epoch      INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace  TEXT NOT NULL,
    retired    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX epochs_current ON epochs (namespace) WHERE retired = 0;
CREATE INDEX epochs_retired ON epochs (epoch) WHERE retired = 1;

CREATE TABLE entries (
    epoch            INTEGER NOT NULL,
    id               BLOB NOT NULL,
    created_ms       INTEGER NOT NULL,
    expires_ms       INTEGER NOT NULL,
    attributes_token BLOB NOT NULL,
    space            BLOB,
    vector           BLOB,
    category         TEXT,
    attributes       TEXT NOT NULL,
    prompt           TEXT NOT NULL,
    content_type     TEXT NOT NULL,
    input_tokens     INTEGER NOT NULL,
    output_tokens    INTEGER NOT NULL,
    cost_micros      INTEGER NOT NULL,
    latency_ns       INTEGER NOT NULL,
    response         BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX entries_key ON entries (epoch, id);
CREATE INDEX entries_listing ON entries (epoch, expires_ms, id);
CREATE INDEX entries_expiry ON entries (expires_ms);

CREATE TABLE memos (
    namespace  TEXT NOT NULL,
    key        BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    vector     BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX memos_key ON memos (namespace, key);
CREATE INDEX memos_expiry ON memos (expires_ms);

CREATE TABLE requests (
    namespace  TEXT NOT NULL,
    verb       TEXT NOT NULL,
    id         TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    outcome    INTEGER NOT NULL,
    PRIMARY KEY (namespace, verb, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_expiry ON requests (expires_ms);

CREATE TABLE counters (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- One row that health checks overwrite.
CREATE TABLE pulse (
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    beat       INTEGER NOT NULL
) STRICT;
";

/// Opens the file for writing and brings its tables up to this version.
pub(super) fn open_writer(path: &Path, settings: &Settings) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = open(path, flags, settings)?;
    let failed = |e: rusqlite::Error| failure::sql(&format!("opening {}", path.display()), &e);
    // Takes effect on a new file only, before its first table.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(unavailable(format!(
            "{} cannot keep a write-ahead log (journal mode {mode}). Use a local disk, not a network share",
            path.display()
        )));
    }
    let synchronous = match settings.durability {
        Durability::PowerCut => "FULL",
        Durability::ProcessCrash => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
    // What a savepoint might roll back is small (one verb) and need not touch the disk.
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
    // A burst may grow the log; a checkpoint that empties it gives the disk back.
    connection.pragma_update(None, "journal_size_limit", 64_i64 << 20).map_err(failed)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Opens the file for reading; the writer must have opened it before.
pub(super) fn open_reader(path: &Path, settings: &Settings) -> Result<Connection> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX, settings)
}

fn open(path: &Path, flags: OpenFlags, settings: &Settings) -> Result<Connection> {
    let failed = |e: rusqlite::Error| failure::sql(&format!("opening {}", path.display()), &e);
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Nobody else should have the file; a short patience covers an operator's look with `sqlite3`.
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    // Negative: in KiB rather than pages.
    connection.pragma_update(None, "cache_size", -i64::from(settings.cache_kib.get())).map_err(failed)?;
    // Never mapped: under a map a failing disk is a signal that ends the process, not an error.
    connection.pragma_update(None, "mmap_size", 0).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let failed = |e: rusqlite::Error| failure::sql(&format!("reading the schema of {}", path.display()), &e);
    let read = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(failed);
    let (version, application) = (read("user_version")?, read("application_id")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(Error::SchemaMismatch {
            what: path.display().to_string(),
            difference: "it is the database of another program".to_owned(),
            remedy: "Give the sidecar a data directory of its own".to_owned(),
        });
    }
    let newest = MIGRATIONS.len() as i32;
    if version > newest {
        return Err(Error::SchemaMismatch {
            what: path.display().to_string(),
            difference: format!("its schema has version {version}; this sidecar knows versions up to {newest}"),
            remedy: "Start the newer sidecar that wrote it, or an empty data directory".to_owned(),
        });
    }
    for (from, step) in MIGRATIONS.iter().enumerate().skip(version.max(0) as usize) {
        // Schema and version change together or not at all, so a crash in between repeats the step.
        let stamp = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {};", from + 1);
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(step).map_err(failed)?;
        transaction.execute_batch(&stamp).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        tracing::info!(path = %path.display(), from, to = from + 1, "migrated the embedded store");
    }
    Ok(())
}
