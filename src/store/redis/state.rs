//! What this process remembers about a namespace. All of it may be outdated at any time: the
//! server's replies correct it, and losing it costs round trips only.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    keys::{Algorithm, Epoch},
    metrics::INDEX_STATE,
};
use crate::types::SpaceId;

/// What is remembered about one namespace.
#[derive(Default)]
pub(super) struct NamespaceState {
    inner: Mutex<Inner>,
    /// Held while an index is looked up and created, so that a burst of calls does it once.
    pub(super) ensuring: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    epoch: Option<Epoch>,
    indexes: HashMap<SpaceId, Index>,
    /// Background work under way, so that it is not started twice.
    busy: HashSet<(Work, Epoch, SpaceId)>,
}

/// Background work on an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Building HNSW beside the exact index.
    Promote,
    /// Waiting until a scan has filled an index.
    Watch,
}

/// An index that exists with the expected schema.
#[derive(Clone)]
pub(super) struct Index {
    /// How it finds neighbors.
    pub(super) algorithm: Algorithm,
    /// Components of its vectors.
    pub(super) dimension: usize,
    _gauge: Arc<Gauge>,
}

/// Counts an index in the gauge for as long as it is remembered.
struct Gauge(Algorithm);

impl Index {
    /// Remembers an index.
    pub(super) fn new(algorithm: Algorithm, dimension: usize) -> Self {
        metrics::gauge!(INDEX_STATE, "state" => algorithm.label()).increment(1.0);
        Self { algorithm, dimension, _gauge: Arc::new(Gauge(algorithm)) }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        metrics::gauge!(INDEX_STATE, "state" => self.0.label()).decrement(1.0);
    }
}

impl NamespaceState {
    /// The epoch as last seen.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.inner.lock().epoch
    }

    /// Takes over the epoch a reply told; whatever belonged to another one is forgotten.
    pub(super) fn saw_epoch(&self, epoch: Option<Epoch>) {
        let mut inner = self.inner.lock();
        if inner.epoch != epoch {
            inner.epoch = epoch;
            inner.indexes.clear();
        }
    }

    /// The index of a space under an epoch, if it is known to exist.
    pub(super) fn index(&self, epoch: Epoch, space: SpaceId) -> Option<Index> {
        let inner = self.inner.lock();
        inner.indexes.get(&space).filter(|_| inner.epoch == Some(epoch)).cloned()
    }

    /// Remembers an index, unless the epoch has moved meanwhile.
    pub(super) fn saw_index(&self, epoch: Epoch, space: SpaceId, index: Index) {
        let mut inner = self.inner.lock();
        if inner.epoch == Some(epoch) {
            inner.indexes.insert(space, index);
        }
    }

    /// Forgets an index that the server does not know.
    pub(super) fn forget_index(&self, space: SpaceId) {
        self.inner.lock().indexes.remove(&space);
    }

    /// Claims background work; `None` if it is under way already.
    pub(super) fn claim(self: &Arc<Self>, work: Work, epoch: Epoch, space: SpaceId) -> Option<Claim> {
        let fresh = self.inner.lock().busy.insert((work, epoch, space));
        fresh.then(|| Claim { state: Arc::clone(self), what: (work, epoch, space) })
    }
}

/// The right to do a piece of background work, given back on drop.
pub(super) struct Claim {
    state: Arc<NamespaceState>,
    what: (Work, Epoch, SpaceId),
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.state.inner.lock().busy.remove(&self.what);
    }
}
