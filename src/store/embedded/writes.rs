//! The writing verbs in SQL. Each runs on the writer thread inside a transaction and says what it
//! changes in memory; that change is made only once the transaction is committed.

use rusqlite::{Connection, OptionalExtension};

use super::{
    reads,
    vectors::{Change, Effect, Label, Row},
};
use crate::{
    store::{MemoKey, NewEntry, Put, RequestId},
    types::{Attributes, EntryId, Namespace, SpaceId, Timestamp, Vector},
};

type Sql<T> = rusqlite::Result<T>;

/// A write, as the queue carries it.
pub(super) enum Verb {
    Put(Box<NewEntry>),
    Delete(Vec<EntryId>),
    Empty,
    WriteMemos {
        vectors: Vec<(MemoKey, Vector)>,
        expires: Timestamp,
    },
    AddCounters(Vec<(String, u64)>),
    /// Changes nothing but the record of requests.
    Remember(u64),
    /// A health check: leaves its time where the readers can see it.
    Beat,
}

impl Verb {
    /// Names the verb in errors, metrics and the record of requests.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::Delete(_) => "delete",
            Self::Empty => "empty",
            Self::WriteMemos { .. } => "memo_write",
            Self::AddCounters(_) => "add_counters",
            Self::Remember(_) => "remember_outcome",
            Self::Beat => "check",
        }
    }

    /// How many rows it may touch: what a batch is measured in.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Put(_) | Self::Empty | Self::Remember(_) | Self::Beat => 1,
            Self::Delete(ids) => ids.len(),
            Self::WriteMemos { vectors, .. } => vectors.len(),
            Self::AddCounters(deltas) => deltas.len(),
        }
    }
}

/// What an earlier request of this id reported, if it is still remembered.
pub(super) fn outcome(
    connection: &Connection,
    namespace: &Namespace,
    verb: &str,
    request: &RequestId,
    now: Timestamp,
) -> Sql<Option<u64>> {
    connection
        .prepare_cached(
            "SELECT outcome FROM requests WHERE namespace = ?1 AND verb = ?2 AND id = ?3 AND expires_ms > ?4",
        )?
        .query_row((namespace.as_str(), verb, &*request.0, now.0), |row| Ok(row.get::<_, i64>(0)? as u64))
        .optional()
}

/// Reads the outcome of a put, which like every outcome is one number.
pub(super) fn put_outcome(outcome: u64) -> Put {
    Put { created: outcome % 2 == 1, expires: Timestamp((outcome / 2) as i64) }
}

/// What the verbs need to know besides their own words.
pub(super) struct Scene<'a> {
    pub(super) connection: &'a Connection,
    pub(super) now: Timestamp,
    /// Vectors of this space are shelved.
    pub(super) space: Option<SpaceId>,
    pub(super) namespace: &'a Namespace,
    /// Entries alive when the batch began; right for [`Verb::Empty`], which has a batch to itself.
    pub(super) population: u64,
}

impl Scene<'_> {
    /// Runs a verb once: a request seen before gets its first outcome and changes nothing.
    pub(super) fn run(&self, verb: Verb, request: Option<&RequestId>, effects: &mut Vec<Effect>) -> Sql<u64> {
        let name = verb.name();
        let known = |request| outcome(self.connection, self.namespace, name, request, self.now);
        if let Some(outcome) = request.map(known).transpose()?.flatten() {
            return Ok(outcome);
        }
        let outcome = match verb {
            Verb::Put(entry) => self.put(*entry, effects),
            Verb::Delete(ids) => self.delete(&ids, effects),
            Verb::Empty => self.empty(effects),
            Verb::WriteMemos { vectors, expires } => self.write_memos(&vectors, expires),
            Verb::AddCounters(deltas) => self.add_counters(&deltas),
            Verb::Remember(outcome) => Ok(outcome),
            Verb::Beat => self.beat(),
        }?;
        if let Some(request) = request {
            self.remember(name, request, outcome)?;
        }
        Ok(outcome)
    }

    fn remember(&self, verb: &str, request: &RequestId, outcome: u64) -> Sql<()> {
        let expires = self.now.plus(RequestId::REMEMBERED);
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO requests (namespace, verb, id, expires_ms, outcome) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((self.namespace.as_str(), verb, &*request.0, expires.0, outcome as i64))?;
        Ok(())
    }

    /// Twice the expiry, plus one if the key was free: see [`put_outcome`].
    fn put(&self, NewEntry { entry, vector }: NewEntry, effects: &mut Vec<Effect>) -> Sql<u64> {
        let (epoch, ends) = (self.epoch()?, entry.expires);
        let replaced = self.take(epoch, &entry.id)?;
        let token = attributes_token(&entry.attributes);
        let usage = entry.usage;
        self.connection
            .prepare_cached(
                "INSERT INTO entries (epoch, id, created_ms, expires_ms, attributes_token, space, vector, category, \
                 attributes, prompt, content_type, input_tokens, output_tokens, cost_micros, latency_ns, response) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            )?
            .execute(rusqlite::params![
                epoch,
                entry.id.as_bytes(),
                entry.created.0,
                entry.expires.0,
                token.to_be_bytes(),
                vector.as_ref().map(|(space, _)| *space.as_bytes()),
                vector.as_ref().map(|(_, vector)| vector.to_le_bytes()),
                entry.category.as_ref().map(crate::types::Category::as_str),
                entry.attributes.iter().collect::<serde_json::Value>().to_string(),
                entry.prompt.as_str(),
                entry.content_type,
                usage.input_tokens as i64,
                usage.output_tokens as i64,
                usage.cost_micros as i64,
                i64::try_from(usage.latency.as_nanos()).unwrap_or(i64::MAX),
                &entry.response[..],
            ])?;
        let row = vector.filter(|(space, _)| Some(*space) == self.space).map(|(_, vector)| Row {
            label: Label {
                id: entry.id,
                prompt: entry.prompt.clone(),
                category: entry.category.clone(),
                created: entry.created,
            },
            token,
            expires: entry.expires,
            vector,
        });
        effects.push(self.effect(Change::Written { id: entry.id, replaced, expires: entry.expires, row }));
        let created = replaced.is_none_or(|expires| expires <= self.now);
        Ok(ends.0.max(0) as u64 * 2 + u64::from(created))
    }

    /// How many of the keys were alive.
    fn delete(&self, ids: &[EntryId], effects: &mut Vec<Effect>) -> Sql<u64> {
        let Some(epoch) = reads::current_epoch(self.connection, self.namespace)? else { return Ok(0) };
        let mut alive = 0;
        for id in ids {
            if let Some(expires) = self.take(epoch, id)? {
                alive += u64::from(expires > self.now);
                effects.push(self.effect(Change::Removed { id: *id, expires }));
            }
        }
        Ok(alive)
    }

    /// Retires the epoch; how many entries were alive.
    fn empty(&self, effects: &mut Vec<Effect>) -> Sql<u64> {
        self.connection
            .prepare_cached("UPDATE epochs SET retired = 1 WHERE namespace = ?1 AND retired = 0")?
            .execute([self.namespace.as_str()])?;
        effects.push(self.effect(Change::Emptied));
        Ok(self.population)
    }

    fn write_memos(&self, vectors: &[(MemoKey, Vector)], expires: Timestamp) -> Sql<u64> {
        let mut statement = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO memos (namespace, key, expires_ms, vector) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (key, vector) in vectors {
            statement.execute((self.namespace.as_str(), &key.0, expires.0, vector.to_le_bytes()))?;
        }
        Ok(vectors.len() as u64)
    }

    fn add_counters(&self, deltas: &[(String, u64)]) -> Sql<u64> {
        let mut read =
            self.connection.prepare_cached("SELECT value FROM counters WHERE namespace = ?1 AND name = ?2")?;
        let mut write = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO counters (namespace, name, value) VALUES (?1, ?2, ?3)")?;
        for (name, delta) in deltas {
            let key = (self.namespace.as_str(), name);
            let value = read.query_row(key, |row| row.get::<_, i64>(0)).optional()?.unwrap_or(0) as u64;
            // Added here, because SQLite's sums turn into floating point where they overflow.
            write.execute((key.0, key.1, value.saturating_add(*delta) as i64))?;
        }
        Ok(deltas.len() as u64)
    }

    fn beat(&self) -> Sql<u64> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO pulse (only, beat) VALUES (1, ?1)")?
            .execute([self.now.0])?;
        Ok(0)
    }

    /// Removes the row under a key; its expiry, if there was one.
    fn take(&self, epoch: i64, id: &EntryId) -> Sql<Option<Timestamp>> {
        self.connection
            .prepare_cached("DELETE FROM entries WHERE epoch = ?1 AND id = ?2 RETURNING expires_ms")?
            .query_row((epoch, id.as_bytes()), |row| Ok(Timestamp(row.get(0)?)))
            .optional()
    }

    /// The namespace's epoch; its first one begins here.
    fn epoch(&self) -> Sql<i64> {
        if let Some(epoch) = reads::current_epoch(self.connection, self.namespace)? {
            return Ok(epoch);
        }
        self.connection.prepare_cached("INSERT INTO epochs (namespace) VALUES (?1)")?.insert([self.namespace.as_str()])
    }

    fn effect(&self, change: Change) -> Effect {
        Effect { namespace: self.namespace.clone(), change }
    }
}

/// The token as a number, which a scan compares in one step.
#[expect(clippy::expect_used, reason = "a token is 32 hex characters, which make 128 bits")]
pub(super) fn attributes_token(attributes: &Attributes) -> u128 {
    u128::from_str_radix(&attributes.token(), 16).expect("a token is 32 hex characters")
}
