//! The life of an index: looked up, created, filled, moved from exact to HNSW, dropped.
//!
//! Everything here is idempotent and may run in several sidecars at once: creating what exists
//! and dropping what is gone are successes, and whoever finds an index missing looks again. While
//! HNSW is being built beside the exact index, all searches go to the exact one; it is dropped
//! only when the new one is complete, so that no lookup loses an entry.

use std::{sync::Arc, time::Duration};

use redis::Value;

use super::{
    connection::Repeat,
    failure::{Failure, Refusal},
    keys::{Algorithm, Epoch, Keys, parse_index, vector_field},
    metrics,
    reply::{Replies, corrupt, count, integer},
    search::{self, IndexInfo, Schema},
    server::Store,
    settings::IndexPolicy,
    state::{Index, NamespaceState, Work},
};
use crate::{
    store::Error,
    types::{Deadline, Namespace, SpaceId},
};

/// How often a scan's progress is asked for.
const POLL: Duration = Duration::from_secs(1);
/// The first look, since small indexes are filled at once.
const POLL_FIRST: Duration = Duration::from_millis(100);
/// How long the note that an index is being filled outlives whoever renews it.
const BUILDING_REMEMBERED: Duration = Duration::from_secs(10);
/// Looks at a finished scan whose index still seems behind, after which it is taken as it is:
/// expired entries in one index and evicted ones in the live set can keep the counts apart.
const BEHIND_MAX: u32 = 10;

/// A namespace's space under one epoch: what an index belongs to.
#[derive(Clone)]
pub(super) struct Place {
    /// The namespace.
    pub(super) namespace: Namespace,
    /// What is remembered about it.
    pub(super) state: Arc<NamespaceState>,
    /// Its epoch.
    pub(super) epoch: Epoch,
    /// The space of the vectors.
    pub(super) space: SpaceId,
    /// Their dimension.
    pub(super) dimension: usize,
}

/// What looking for an index came to.
pub(super) enum Resolved {
    /// It stands.
    Index(Index),
    /// The namespace has another epoch by now.
    Moved,
    /// There is no index, and no entry that would need one.
    Empty,
}

/// Why an index is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To search; an empty namespace needs none.
    Search,
    /// To write; it must exist before the first entry.
    Write,
}

/// What the server knows about a place.
struct Standing {
    epoch: Option<Epoch>,
    live: u64,
    members: u64,
    flat: Option<IndexInfo>,
    hnsw: Option<IndexInfo>,
}

impl Place {
    /// What the index of this place must look like.
    pub(super) fn schema(&self, algorithm: Algorithm) -> Schema {
        let keys = Keys(&self.namespace);
        Schema {
            name: keys.index(self.epoch, self.space, algorithm),
            prefix: keys.entry_prefix(self.epoch),
            vector_field: vector_field(self.space),
            algorithm,
            dimension: self.dimension,
        }
    }

    fn index(&self) -> Option<Index> {
        self.state.index(self.epoch, self.space)
    }

    fn saw(&self, algorithm: Algorithm) -> Index {
        let index = Index::new(algorithm, self.dimension);
        self.state.saw_index(self.epoch, self.space, index.clone());
        index
    }
}

/// The epoch in a reply to GET; `None` if the namespace has none.
pub(super) fn epoch(reply: &Value) -> Result<Option<Epoch>, Failure> {
    match reply {
        Value::Nil => Ok(None),
        value => integer(value)
            .and_then(|epoch| u64::try_from(epoch).ok())
            .map(|epoch| Some(Epoch(epoch)))
            .ok_or_else(|| corrupt("the epoch of a namespace", "it is not a number")),
    }
}

impl Store {
    /// Finds the index of a place, creating it if entries need one. Costs nothing once known, one
    /// round trip to look, another to create.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        place: &Place,
        purpose: Purpose,
        deadline: Option<Deadline>,
    ) -> Result<Resolved, Failure> {
        if let Some(index) = place.index() {
            return fitting(index, place);
        }
        let limit = self.clock.deadline_in(self.settings.response_timeout);
        let left = deadline.map_or(limit, |deadline| deadline.min(limit));
        let left = left.remaining(self.clock.instant()).ok_or(Failure::Silent)?;
        let _turn = tokio::time::timeout(left, place.state.ensuring.lock()).await.map_err(|_| Failure::Silent)?;
        if let Some(index) = place.index() {
            return fitting(index, place);
        }
        // Twice at most: another sidecar may create what was missing a moment ago.
        for _ in 0..2 {
            let standing = self.look(place, deadline).await?;
            place.state.saw_epoch(standing.epoch);
            if standing.epoch != Some(place.epoch) {
                return Ok(Resolved::Moved);
            }
            if let Some(index) = self.adopt(place, &standing)? {
                return Ok(Resolved::Index(index));
            }
            if purpose == Purpose::Search && standing.live == 0 {
                return Ok(Resolved::Empty);
            }
            if let Some(index) = self.create(place, &standing, deadline).await? {
                return Ok(Resolved::Index(index));
            }
        }
        Err(Failure::Reply(Refusal::NoIndex, place.schema(Algorithm::Flat).name))
    }

    /// Takes over an index that stands. The exact one goes first: beside it, HNSW may still be
    /// incomplete.
    fn adopt(self: &Arc<Self>, place: &Place, standing: &Standing) -> Result<Option<Index>, Failure> {
        for (info, algorithm) in [(&standing.flat, Algorithm::Flat), (&standing.hnsw, Algorithm::Hnsw)] {
            if let Some(info) = info {
                info.check(&place.schema(algorithm))?;
                if info.indexing {
                    self.watch(place, algorithm);
                }
                return Ok(Some(place.saw(algorithm)));
            }
        }
        Ok(None)
    }

    /// Creates the index; `None` if somebody else just did.
    async fn create(
        self: &Arc<Self>,
        place: &Place,
        standing: &Standing,
        deadline: Option<Deadline>,
    ) -> Result<Option<Index>, Failure> {
        let algorithm = match self.settings.index {
            IndexPolicy::Hnsw => Algorithm::Hnsw,
            IndexPolicy::Auto if standing.live > self.settings.flat_entries_max => Algorithm::Hnsw,
            IndexPolicy::Auto | IndexPolicy::Flat => Algorithm::Flat,
        };
        // A scan reads the whole keyspace of the server, so it is spared where it can find nothing.
        let scan = standing.members > 0;
        let mut pipeline = redis::pipe();
        if scan {
            pipeline.add_command(note_building(place, algorithm));
        }
        pipeline.add_command(search::create(&place.schema(algorithm), scan));
        let mut replies = self.run(&pipeline, deadline, Repeat::Once).await?;
        if scan {
            replies.take()?;
        }
        match replies.take() {
            Ok(_) => {}
            Err(failure) if failure.is(Refusal::IndexExists) => return Ok(None),
            Err(failure) => return Err(failure),
        }
        let index = place.saw(algorithm);
        if scan {
            tracing::warn!(namespace = %place.namespace, "the search index was missing and is built again");
            metrics::add(metrics::INDEX_REBUILDS, 1);
            self.watch(place, algorithm);
        }
        let (store, namespace, epoch) = (Arc::clone(self), place.namespace.clone(), place.epoch);
        self.spawn(async move {
            // Epochs only grow: what belongs to an older one was left behind by a lost epoch key.
            if let Err(failure) = store.drop_indexes(&namespace, |old| old < epoch).await {
                tracing::debug!(%namespace, ?failure, "old indexes are left for later");
            }
        });
        Ok(Some(index))
    }

    /// Asks the server about a place: one round trip.
    async fn look(self: &Arc<Self>, place: &Place, deadline: Option<Deadline>) -> Result<Standing, Failure> {
        let keys = Keys(&place.namespace);
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(keys.epoch());
        let live = keys.live(place.epoch);
        pipeline.cmd("ZCOUNT").arg(&live).arg(format!("({}", self.clock.now().0)).arg("+inf");
        pipeline.cmd("ZCARD").arg(&live);
        // In this order: HNSW exists before the exact index is dropped, so not finding either means
        // that neither stands.
        pipeline.add_command(search::info(&place.schema(Algorithm::Flat).name));
        pipeline.add_command(search::info(&place.schema(Algorithm::Hnsw).name));
        let mut replies = self.run(&pipeline, deadline, Repeat::Once).await?;
        Ok(Standing {
            epoch: epoch(&replies.take()?)?,
            live: count(&replies.take()?)?,
            members: count(&replies.take()?)?,
            flat: take_info(&mut replies)?,
            hnsw: take_info(&mut replies)?,
        })
    }

    /// Keeps the note about a filling index alive until the scan has ended.
    pub(super) fn watch(self: &Arc<Self>, place: &Place, algorithm: Algorithm) {
        let Some(claim) = place.state.claim(Work::Watch, place.epoch, place.space) else { return };
        let (store, place) = (Arc::clone(self), place.clone());
        self.spawn(async move {
            let _claim = claim;
            let name = place.schema(algorithm).name;
            let mut wait = POLL_FIRST;
            while store.pause(wait).await {
                wait = POLL;
                match store.is_filling(&name).await {
                    Ok(true) => {
                        let mut pipeline = redis::pipe();
                        pipeline.add_command(note_building(&place, algorithm));
                        // A lost renewal is made good by the next.
                        let _ = store.run(&pipeline, None, Repeat::Once).await;
                    }
                    Ok(false) => {
                        let mut pipeline = redis::pipe();
                        pipeline.cmd("DEL").arg(Keys(&place.namespace).building(place.epoch, place.space));
                        let _ = store.run(&pipeline, None, Repeat::Once).await;
                        return;
                    }
                    Err(failure) => tracing::debug!(index = name, ?failure, "the scan's progress is unknown"),
                }
            }
        });
    }

    async fn is_filling(self: &Arc<Self>, name: &str) -> Result<bool, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(search::info(name));
        let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
        Ok(take_info(&mut replies)?.is_some_and(|info| info.indexing))
    }

    /// Starts to build HNSW beside the exact index if the namespace has outgrown it.
    pub(super) fn promote_if_grown(self: &Arc<Self>, place: &Place, live: u64) {
        let outgrown = live > self.settings.promotion_threshold()
            && place.index().is_some_and(|index| index.algorithm == Algorithm::Flat);
        if !outgrown {
            return;
        }
        let Some(claim) = place.state.claim(Work::Promote, place.epoch, place.space) else { return };
        let (store, place) = (Arc::clone(self), place.clone());
        self.spawn(async move {
            let _claim = claim;
            match store.promote(&place).await {
                Ok(true) => {
                    metrics::add(metrics::PROMOTIONS, 1);
                    tracing::info!(namespace = %place.namespace, "the namespace is searched by HNSW now");
                }
                Ok(false) => {}
                // The exact index still answers; a later write tries again.
                Err(failure) => {
                    tracing::warn!(namespace = %place.namespace, ?failure, "the move to HNSW was interrupted");
                }
            }
        });
    }

    /// Builds HNSW, waits until it is complete, switches, drops the exact index. False if there
    /// was nothing left to do.
    async fn promote(self: &Arc<Self>, place: &Place) -> Result<bool, Failure> {
        let hnsw = place.schema(Algorithm::Hnsw);
        let mut behind = 0;
        let mut wait = POLL_FIRST;
        self.create_or_accept(&hnsw).await?;
        while self.pause(wait).await {
            wait = POLL;
            let standing = self.look(place, None).await?;
            if standing.epoch != Some(place.epoch) {
                return Ok(false);
            }
            let Some(info) = standing.hnsw else {
                self.create_or_accept(&hnsw).await?;
                continue;
            };
            info.check(&hnsw)?;
            let Some(flat) = standing.flat else {
                place.saw(Algorithm::Hnsw);
                return Ok(false);
            };
            if info.indexing {
                continue;
            }
            // Ghosts make the exact index look larger than it is, evictions the live set.
            if info.documents < flat.documents.min(standing.live) && behind < BEHIND_MAX {
                behind += 1;
                continue;
            }
            place.saw(Algorithm::Hnsw);
            self.drop_or_accept(&place.schema(Algorithm::Flat).name).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn create_or_accept(self: &Arc<Self>, schema: &Schema) -> Result<(), Failure> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(search::create(schema, true));
        match self.run(&pipeline, None, Repeat::Once).await?.take() {
            Err(failure) if !failure.is(Refusal::IndexExists) => Err(failure),
            _ => Ok(()),
        }
    }

    async fn drop_or_accept(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(search::drop_index(name));
        match self.run(&pipeline, None, Repeat::Once).await?.take() {
            Err(failure) if !failure.is(Refusal::NoIndex) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Drops the indexes of a namespace whose epoch matches; the entries stay.
    pub(super) async fn drop_indexes(
        self: &Arc<Self>,
        namespace: &Namespace,
        matches: impl Fn(Epoch) -> bool + Send,
    ) -> Result<(), Failure> {
        for name in self.index_names().await? {
            let ours = parse_index(&name).is_some_and(|(owner, epoch)| owner == namespace.as_str() && matches(epoch));
            if ours {
                self.drop_or_accept(&name).await?;
            }
        }
        Ok(())
    }

    /// The names of all indexes of the server.
    pub(super) async fn index_names(self: &Arc<Self>) -> Result<Vec<String>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(search::list());
        let reply = self.run(&pipeline, None, Repeat::Once).await?.take()?;
        Ok(search::parse_list(&reply))
    }
}

/// The command that notes for all sidecars that an index is being filled by a scan.
fn note_building(place: &Place, algorithm: Algorithm) -> redis::Cmd {
    let mut cmd = redis::cmd("SET");
    cmd.arg(Keys(&place.namespace).building(place.epoch, place.space)).arg(algorithm.label());
    cmd.arg("PX").arg(BUILDING_REMEMBERED.as_millis() as u64);
    cmd
}

/// The next reply as FT.INFO; `None` if there is no such index.
pub(super) fn take_info(replies: &mut Replies) -> Result<Option<IndexInfo>, Failure> {
    match replies.take() {
        Ok(reply) => search::parse_info(&reply).map(Some),
        Err(failure) if failure.is(Refusal::NoIndex) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// An index takes vectors of one length; others would be left out of it without a word.
fn fitting(index: Index, place: &Place) -> Result<Resolved, Failure> {
    if index.dimension == place.dimension {
        return Ok(Resolved::Index(index));
    }
    Err(Failure::Final(Error::SchemaMismatch {
        what: format!("a vector of the space {}", place.space),
        difference: format!("it has {} components, the index takes {}", place.dimension, index.dimension),
        remedy: "One space has one dimension: give the other model a name or revision of its own".to_owned(),
    }))
}
