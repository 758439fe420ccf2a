//! The engine's side of the store's ports: what each verb asks of which thread.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Embedded, NAME,
    failure::{self, unavailable},
    reads, scan,
    writes::{self, Verb},
};
use crate::{
    store::{
        CacheStore, Cursor, Detail, Entry, Error, Health, MemoKey, MemoStore, Nearest, NearestQuery, NewEntry, Probe,
        Put, RequestId, Result,
    },
    types::{Deadline, EntryId, Namespace, Vector},
};

#[async_trait]
impl CacheStore for Embedded {
    async fn probe(
        &self,
        namespace: &Namespace,
        id: &EntryId,
        memo: Option<&MemoKey>,
        deadline: Option<Deadline>,
    ) -> Result<Probe> {
        let (namespace, id, memo, now) = (namespace.clone(), *id, memo.copied(), self.clock.now());
        self.read("probe", deadline, move |connection| {
            reads::probe(connection, &namespace, &id, memo.as_ref(), now).map_err(|e| failure::sql("probe", &e))
        })
        .await
    }

    async fn nearest(&self, query: NearestQuery<'_>) -> Result<Nearest> {
        let (namespace, vector, deadline) = (query.namespace.clone(), query.vector.clone(), query.deadline);
        let (count, token) = (query.count, writes::attributes_token(query.attributes));
        let shelved = self.vectors.space().filter(|(space, _)| *space == query.space);
        if let Some((_, dimension)) = shelved {
            check_dimension(&vector, dimension)?;
        }
        let (vectors, clock) = (Arc::clone(&self.vectors), self.clock.clone());
        self.read("nearest", deadline, move |_| {
            let now = clock.now();
            let mut snapshot = vectors.snapshot(&namespace, now);
            if shelved.is_none() {
                // Vectors of two spaces never meet.
                snapshot.segments.clear();
            }
            let wanted = scan::Wanted { query: vector.as_slice(), token, now, count };
            let late = || deadline.is_some_and(|deadline| deadline.is_past(clock.instant()));
            let candidates =
                scan::nearest(&snapshot, &wanted, late).ok_or(Error::Timeout { engine: NAME, operation: "nearest" })?;
            Ok(Nearest { candidates, population: snapshot.population, partial: false })
        })
        .await
    }

    async fn put(&self, namespace: &Namespace, entry: NewEntry, request: Option<&RequestId>) -> Result<Put> {
        if let (Some((space, vector)), Some((shelved, dimension))) = (&entry.vector, self.vectors.space())
            && *space == shelved
        {
            check_dimension(vector, dimension)?;
        }
        let outcome = self.write(namespace, Verb::Put(Box::new(entry)), request).await?;
        Ok(writes::put_outcome(outcome))
    }

    async fn delete(&self, namespace: &Namespace, ids: &[EntryId], request: Option<&RequestId>) -> Result<u64> {
        self.write(namespace, Verb::Delete(ids.to_vec()), request).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Cursor>,
        count: usize,
        detail: Detail,
    ) -> Result<(Vec<Entry>, Option<Cursor>)> {
        let (namespace, now) = (namespace.clone(), self.clock.now());
        self.read("list", None, move |connection| {
            reads::list(connection, &namespace, after, count, detail, now).map_err(|e| failure::sql("list", &e))
        })
        .await
    }

    async fn empty(&self, namespace: &Namespace, request: Option<&RequestId>) -> Result<u64> {
        self.write(namespace, Verb::Empty, request).await
    }

    async fn recall_outcome(&self, namespace: &Namespace, request: &RequestId) -> Result<Option<u64>> {
        let (namespace, request, now) = (namespace.clone(), request.clone(), self.clock.now());
        self.read("recall_outcome", None, move |connection| {
            let name = Verb::Remember(0).name();
            writes::outcome(connection, &namespace, name, &request, now).map_err(|e| failure::sql("recall_outcome", &e))
        })
        .await
    }

    async fn remember_outcome(&self, namespace: &Namespace, request: &RequestId, outcome: u64) -> Result<()> {
        // What a verb reports is remembered with it; this verb reports what it is told.
        self.write(namespace, Verb::Remember(outcome), Some(request)).await.map(drop)
    }

    async fn count(&self, namespace: &Namespace) -> Result<u64> {
        if self.read_queue.is_closed() {
            return Err(failure::closed());
        }
        // Kept in memory beside the vectors: there is nothing to wait for.
        Ok(self.vectors.population(namespace, self.clock.now()))
    }

    async fn add_counters(&self, namespace: &Namespace, deltas: &[(String, u64)]) -> Result<()> {
        self.write(namespace, Verb::AddCounters(deltas.to_vec()), None).await.map(drop)
    }

    async fn counters(&self, namespace: &Namespace) -> Result<Vec<(String, u64)>> {
        let namespace = namespace.clone();
        self.read("counters", None, move |connection| {
            reads::counters(connection, &namespace).map_err(|e| failure::sql("counters", &e))
        })
        .await
    }
}

#[async_trait]
impl MemoStore for Embedded {
    async fn read(
        &self,
        namespace: &Namespace,
        keys: &[MemoKey],
        deadline: Option<Deadline>,
    ) -> Result<Vec<Option<Vector>>> {
        let (namespace, keys, now) = (namespace.clone(), keys.to_vec(), self.clock.now());
        Embedded::read(self, "memo_read", deadline, move |connection| {
            reads::memos(connection, &namespace, &keys, now).map_err(|e| failure::sql("memo_read", &e))
        })
        .await
    }

    async fn write(&self, namespace: &Namespace, vectors: &[(MemoKey, Vector)], ttl: Duration) -> Result<()> {
        let verb = Verb::WriteMemos { vectors: vectors.to_vec(), expires: self.clock.now().plus(ttl) };
        Embedded::write(self, namespace, verb, None).await.map(drop)
    }
}

#[async_trait]
impl Health for Embedded {
    /// Writes a row and reads it back, so that a full disk shows here and not first to a caller.
    async fn check(&self) -> Result<()> {
        let begun = self.clock.now().0;
        let nobody = Namespace::new("health").map_err(|e| unavailable(e.to_string()))?;
        Embedded::write(self, &nobody, Verb::Beat, None).await?;
        let beat = Embedded::read(self, "check", None, |connection| {
            reads::pulse(connection).map_err(|e| failure::sql("check", &e))
        })
        .await?;
        match beat {
            Some(beat) if beat >= begun => Ok(()),
            _ => Err(unavailable("what was just written cannot be read back. Check the disk of the data directory")),
        }
    }

    async fn describe(&self) -> Result<Vec<(String, String)>> {
        let log = self.path.with_extension("sqlite-wal");
        let (mut facts, log_bytes) = Embedded::read(self, "describe", None, move |connection| {
            let facts = reads::describe(connection).map_err(|e| failure::sql("describe", &e))?;
            Ok((facts, std::fs::metadata(log).map_or(0, |log| log.len())))
        })
        .await?;
        let space = self.vectors.space();
        facts.extend([
            ("path".to_owned(), self.path.display().to_string()),
            ("log_bytes".to_owned(), log_bytes.to_string()),
            ("durability".to_owned(), format!("{:?}", self.settings.durability)),
            ("readers".to_owned(), self.reader_count().to_string()),
            ("vectors".to_owned(), self.vectors.held().to_string()),
            ("space".to_owned(), space.map_or("none".to_owned(), |(space, _)| space.to_string())),
        ]);
        Ok(facts)
    }

    async fn close(&self) {
        self.shut_down().await;
    }
}

/// Refuses a vector that cannot stand beside the others of its space.
fn check_dimension(vector: &Vector, dimension: usize) -> Result<()> {
    if vector.dimension() == dimension {
        return Ok(());
    }
    Err(Error::SchemaMismatch {
        what: "the vector".to_owned(),
        difference: format!("it has {} components; its space has {dimension}", vector.dimension()),
        remedy: "Embed it with the model the sidecar was started with".to_owned(),
    })
}
