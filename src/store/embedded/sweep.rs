//! Removing what nobody can see any more: expired rows, and the rows of retired epochs.
//!
//! Correctness never waits for the sweep: every read compares the expiry and the epoch itself.
//! One chunk is one transaction of at most `sweep_rows_max` rows, and the pauses between chunks
//! leave the writer at least three quarters of its time for callers.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::vectors::{Change, Effect};
use crate::types::{EntryId, Namespace, Timestamp};

/// What one chunk did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) rows: usize,
    /// There may be more: the chunk was full, or an epoch has just become empty.
    pub(super) more: bool,
}

/// Removes at most `rows_max` rows, and says what that changes in memory.
pub(super) fn chunk(
    connection: &Connection,
    now: Timestamp,
    rows_max: usize,
    effects: &mut Vec<Effect>,
) -> rusqlite::Result<Swept> {
    let mut left = rows_max;
    let epochs_done = retired(connection, &mut left)?;
    if left > 0 {
        left = left.saturating_sub(expired_entries(connection, now, left, effects)?);
    }
    for table in ["memos", "requests"] {
        if left > 0 {
            left = left.saturating_sub(expired_rows(connection, table, now, left)?);
        }
    }
    Ok(Swept { rows: rows_max - left, more: left == 0 || epochs_done })
}

/// When the next chunk is due: after a pause while there is more to do, else at the next interval.
pub(super) fn pause(swept: &Swept, took: Duration, interval: Duration) -> Duration {
    if swept.more {
        (took * 3).clamp(Duration::from_millis(1), interval.max(Duration::from_millis(1)))
    } else {
        interval
    }
}

/// Gives freed pages back to the disk, some at a time, once they are a quarter of the file and
/// worth the trouble. Whether there may be more.
pub(super) fn release_pages(connection: &Connection) -> rusqlite::Result<bool> {
    const PAGES_A_STEP: i64 = 1_000;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let free = number("freelist_count")?;
    if free < PAGES_A_STEP || free * 4 < number("page_count")? {
        return Ok(false);
    }
    // The statement frees one page a step, so it is stepped to its end.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES_A_STEP})"))?;
    let mut rows = statement.query(())?;
    while rows.next()?.is_some() {}
    Ok(true)
}

/// Whether an epoch was finished, so that another may wait.
fn retired(connection: &Connection, left: &mut usize) -> rusqlite::Result<bool> {
    let epoch: Option<i64> = connection
        .prepare_cached("SELECT epoch FROM epochs WHERE retired = 1 ORDER BY epoch LIMIT 1")?
        .query_row((), |row| row.get(0))
        .optional()?;
    let Some(epoch) = epoch else { return Ok(false) };
    let removed = connection
        .prepare_cached("DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE epoch = ?1 LIMIT ?2)")?
        .execute((epoch, *left as i64))?;
    let finished = removed < *left;
    if finished {
        connection.prepare_cached("DELETE FROM epochs WHERE epoch = ?1")?.execute([epoch])?;
    }
    *left -= removed;
    Ok(finished)
}

fn expired_entries(
    connection: &Connection,
    now: Timestamp,
    rows_max: usize,
    effects: &mut Vec<Effect>,
) -> rusqlite::Result<usize> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires_ms <= ?1 LIMIT ?2) \
         RETURNING id, expires_ms, (SELECT namespace FROM epochs WHERE epochs.epoch = entries.epoch AND retired = 0)",
    )?;
    let mut rows = statement.query((now.0, rows_max as i64))?;
    let mut removed = 0;
    while let Some(row) = rows.next()? {
        removed += 1;
        let (id, expires) = (EntryId::from_bytes(row.get_ref(0)?.as_blob()?), Timestamp(row.get(1)?));
        // Rows of a retired epoch are in memory no more.
        let namespace = row.get::<_, Option<String>>(2)?.and_then(|name| Namespace::new(&name).ok());
        if let (Some(id), Some(namespace)) = (id, namespace) {
            effects.push(Effect { namespace, change: Change::Removed { id, expires } });
        }
    }
    Ok(removed)
}

fn expired_rows(connection: &Connection, table: &str, now: Timestamp, rows_max: usize) -> rusqlite::Result<usize> {
    // `requests` has no row id, so its rows are named by their key.
    let key = if table == "requests" { "(namespace, verb, id)" } else { "rowid" };
    let columns = key.trim_matches(['(', ')']);
    connection
        .prepare_cached(&format!(
            "DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table} WHERE expires_ms <= ?1 LIMIT ?2)"
        ))?
        .execute((now.0, rows_max as i64))
}
