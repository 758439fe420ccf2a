//! The reading verbs in SQL, and how a row becomes an entry. Each function runs on a reader thread.

use std::{collections::BTreeMap, time::Duration};

use rusqlite::{Connection, OptionalExtension, Row, types::Type};

use super::vectors::{self, Label};
use crate::{
    store::{Cursor, Detail, Entry, MemoKey, Probe, Usage},
    types::{Attributes, Category, EntryId, Namespace, Prompt, SpaceId, Timestamp, Vector},
};

type Sql<T> = rusqlite::Result<T>;

/// Columns of an entry as [`entry`] reads them.
const ENTRY: &str = "id, prompt, attributes, category, response, content_type, \
                     input_tokens, output_tokens, cost_micros, latency_ns, created_ms, expires_ms";

/// The same without the body, which SQLite then does not even read from its overflow pages.
fn columns(detail: Detail) -> String {
    match detail {
        Detail::Whole => ENTRY.to_owned(),
        Detail::Head => ENTRY.replace(" response,", " x'',"),
    }
}

/// The entry and the memoized vector, as of one moment.
pub(super) fn probe(
    connection: &mut Connection,
    namespace: &Namespace,
    id: &EntryId,
    memo: Option<&MemoKey>,
    now: Timestamp,
) -> Sql<Probe> {
    let transaction = connection.transaction()?;
    let found = match current_epoch(&transaction, namespace)? {
        None => None,
        Some(epoch) => transaction
            .prepare_cached(&format!("SELECT {ENTRY} FROM entries WHERE epoch = ?1 AND id = ?2 AND expires_ms > ?3"))?
            .query_row((epoch, id.as_bytes(), now.0), entry)
            .optional()?,
    };
    let vector = match memo {
        None => None,
        Some(key) => read_memo(&transaction, namespace, key, now)?,
    };
    transaction.commit()?;
    Ok(Probe { entry: found, vector })
}

/// One page of live entries, and where the next begins.
pub(super) fn list(
    connection: &mut Connection,
    namespace: &Namespace,
    after: Option<Cursor>,
    count: usize,
    detail: Detail,
    now: Timestamp,
) -> Sql<(Vec<Entry>, Option<Cursor>)> {
    // What ends at `now` is dead, so every living entry comes after the last possible dead one.
    let living = (now, [u8::MAX; 20]);
    let (expires, id) = after.map_or(living, |after| (after.expires, *after.id.as_bytes()).max(living));
    let transaction = connection.transaction()?;
    let Some(epoch) = current_epoch(&transaction, namespace)? else { return Ok((Vec::new(), None)) };
    let mut entries = Vec::new();
    let mut more = false;
    {
        let mut statement = transaction.prepare_cached(&format!(
            "SELECT {} FROM entries WHERE epoch = ?1 AND (expires_ms, id) > (?2, ?3) ORDER BY expires_ms, id",
            columns(detail)
        ))?;
        let mut rows = statement.query((epoch, expires.0, id))?;
        while let Some(row) = rows.next()? {
            // The row after the page is only looked at, so that the last page says it is the last.
            if entries.len() == count {
                more = true;
                break;
            }
            entries.push(entry(row)?);
        }
    }
    transaction.commit()?;
    let next = match entries.last() {
        Some(last) if more => Some(Cursor { expires: last.expires, id: last.id }),
        None if more => after,
        _ => None,
    };
    Ok((entries, next))
}

/// Memoized vectors in the order of `keys`, as of one moment.
pub(super) fn memos(
    connection: &mut Connection,
    namespace: &Namespace,
    keys: &[MemoKey],
    now: Timestamp,
) -> Sql<Vec<Option<Vector>>> {
    let transaction = connection.transaction()?;
    let vectors = keys.iter().map(|key| read_memo(&transaction, namespace, key, now)).collect::<Sql<_>>()?;
    transaction.commit()?;
    Ok(vectors)
}

/// The counters of a namespace by name.
pub(super) fn counters(connection: &Connection, namespace: &Namespace) -> Sql<Vec<(String, u64)>> {
    connection
        .prepare_cached("SELECT name, value FROM counters WHERE namespace = ?1 ORDER BY name")?
        .query_map([namespace.as_str()], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?
        .collect()
}

/// The last beat a health check wrote.
pub(super) fn pulse(connection: &Connection) -> Sql<Option<i64>> {
    connection.query_row("SELECT beat FROM pulse", (), |row| row.get(0)).optional()
}

/// What `doctor` shows of the file.
pub(super) fn describe(connection: &Connection) -> Sql<Vec<(String, String)>> {
    let number = |sql: &str| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
    let pages = number("SELECT page_count FROM pragma_page_count")?;
    let page_bytes = number("SELECT page_size FROM pragma_page_size")?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    let version: String = connection.query_row("SELECT sqlite_version()", (), |row| row.get(0))?;
    Ok(vec![
        ("sqlite_version".to_owned(), version),
        ("journal_mode".to_owned(), mode),
        ("schema_version".to_owned(), number("SELECT user_version FROM pragma_user_version")?.to_string()),
        ("database_bytes".to_owned(), (pages * page_bytes).to_string()),
        ("entry_rows".to_owned(), number("SELECT count(*) FROM entries")?.to_string()),
        ("memo_rows".to_owned(), number("SELECT count(*) FROM memos")?.to_string()),
    ])
}

/// The epoch of a namespace; `None` if nothing was ever written to it.
pub(super) fn current_epoch(connection: &Connection, namespace: &Namespace) -> Sql<Option<i64>> {
    connection
        .prepare_cached("SELECT epoch FROM epochs WHERE namespace = ?1 AND retired = 0")?
        .query_row([namespace.as_str()], |row| row.get(0))
        .optional()
}

/// Feeds every live row of a current epoch to `each`: its namespace, key and expiry, and the row to
/// shelve if it lies in `space`. Used once, when the engine opens.
pub(super) fn load(
    connection: &Connection,
    space: Option<(SpaceId, usize)>,
    now: Timestamp,
    mut each: impl FnMut(Namespace, EntryId, Timestamp, Option<vectors::Row>),
) -> Sql<()> {
    let mut statement = connection.prepare(
        "SELECT namespace, id, expires_ms, attributes_token, created_ms, category, prompt, \
                CASE WHEN space = ?1 THEN vector END \
         FROM entries JOIN epochs USING (epoch) WHERE retired = 0 AND expires_ms > ?2",
    )?;
    let dimension = space.map_or(0, |(_, dimension)| dimension);
    let mut rows = statement.query((space.map(|(space, _)| *space.as_bytes()), now.0))?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let namespace = Namespace::new(&name).map_err(|e| unreadable(0, Type::Text, e.to_string()))?;
        let (id, expires) = (id(row, 1)?, Timestamp(row.get(2)?));
        let Some(bytes) = row.get_ref(7)?.as_blob_or_null()? else {
            each(namespace, id, expires, None);
            continue;
        };
        // One damaged vector costs one entry its semantic tier, not the engine its start.
        let Ok(vector) = Vector::from_le_bytes(bytes, dimension) else {
            tracing::warn!(entry = %id, bytes = bytes.len(), dimension, "a stored vector cannot be read; entry is exact-only");
            each(namespace, id, expires, None);
            continue;
        };
        let token = u128::from_be_bytes(row.get::<_, [u8; 16]>(3)?);
        let label = Label {
            id,
            prompt: Prompt::stored(row.get::<_, String>(6)?),
            category: category(row, 5)?,
            created: Timestamp(row.get(4)?),
        };
        each(namespace, id, expires, Some(vectors::Row { label, token, expires, vector }));
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> Sql<Entry> {
    let attributes: BTreeMap<String, String> =
        serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|e| unreadable(2, Type::Text, e.to_string()))?;
    Ok(Entry {
        id: id(row, 0)?,
        prompt: Prompt::stored(row.get::<_, String>(1)?),
        attributes: Attributes::stored(attributes),
        category: category(row, 3)?,
        response: row.get::<_, Vec<u8>>(4)?.into(),
        content_type: row.get(5)?,
        // SQLite's integers are signed: the same 64 bits go in and come out.
        usage: Usage {
            input_tokens: row.get::<_, i64>(6)? as u64,
            output_tokens: row.get::<_, i64>(7)? as u64,
            cost_micros: row.get::<_, i64>(8)? as u64,
            latency: Duration::from_nanos(row.get::<_, i64>(9)? as u64),
        },
        created: Timestamp(row.get(10)?),
        expires: Timestamp(row.get(11)?),
    })
}

fn id(row: &Row<'_>, column: usize) -> Sql<EntryId> {
    let bytes = row.get_ref(column)?.as_blob()?;
    EntryId::from_bytes(bytes).ok_or_else(|| unreadable(column, Type::Blob, "a key has 20 bytes".to_owned()))
}

fn category(row: &Row<'_>, column: usize) -> Sql<Option<Category>> {
    let name: Option<String> = row.get(column)?;
    name.map(|name| Category::new(&name).map_err(|e| unreadable(column, Type::Text, e.to_string()))).transpose()
}

fn read_memo(connection: &Connection, namespace: &Namespace, key: &MemoKey, now: Timestamp) -> Sql<Option<Vector>> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT vector FROM memos WHERE namespace = ?1 AND key = ?2 AND expires_ms > ?3")?
        .query_row((namespace.as_str(), &key.0, now.0), |row| row.get(0))
        .optional()?;
    // A memo can be made again, so one that cannot be read is none.
    Ok(bytes.and_then(|bytes| Vector::from_le_bytes(&bytes, bytes.len() / 4).ok()))
}

fn unreadable(column: usize, of: Type, problem: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, of, problem.into())
}
