//! The vectors of the engine's space, in memory, one shelf a namespace.
//!
//! Only the writer thread changes a shelf, after a commit and before the reply to it, so that who
//! wrote finds what it wrote. A reader takes a [`Snapshot`]: the read lock is held while a list of
//! pointers is copied (microseconds), never during a scan, and the writer copies a segment only if
//! a scan still holds it (about 50 us for 384 KiB). So neither waits for the other.
//!
//! *Invariant:* a shelf mirrors the rows of its namespace's current epoch, expired ones included
//! until they are swept. Rows of other spaces, or without a vector, are counted but not shelved.

#![expect(clippy::similar_names, reason = "a shelf and self are told apart well enough")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;

use super::metrics;
use crate::types::{Category, EntryId, Namespace, Prompt, SpaceId, Timestamp, Vector};

/// Rows of a segment: 384 KiB of floats at 384 dimensions, small enough to copy on a write and
/// large enough that a namespace of 50,000 has 196 pointers.
const SEGMENT_ROWS: usize = 256;

/// A row to shelve.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) label: Label,
    pub(super) token: u128,
    pub(super) expires: Timestamp,
    pub(super) vector: Vector,
}

/// What a candidate shows of its entry.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) id: EntryId,
    pub(super) prompt: Prompt,
    pub(super) category: Option<Category>,
    pub(super) created: Timestamp,
}

/// What a committed write changes here.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) namespace: Namespace,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    /// An entry was written; `replaced` is the expiry of the row it replaced, alive or not.
    Written { id: EntryId, replaced: Option<Timestamp>, expires: Timestamp, row: Option<Row> },
    /// An entry was deleted or swept.
    Removed { id: EntryId, expires: Timestamp },
    /// The namespace began a new epoch.
    Emptied,
}

/// Some rows as parallel arrays; what a scan touches first lies densest.
#[derive(Clone, Default)]
pub(super) struct Segment {
    /// Shape `[rows, dimension]`, rows of unit length.
    pub(super) values: Vec<f32>,
    pub(super) tokens: Vec<u128>,
    pub(super) expires: Vec<Timestamp>,
    pub(super) labels: Vec<Label>,
}

/// What one search sees, whatever is written meanwhile.
pub(super) struct Snapshot {
    pub(super) segments: Vec<Arc<Segment>>,
    /// Live entries of the namespace, with or without a vector of this space.
    pub(super) population: u64,
}

/// Every shelf of the engine.
pub(super) struct Vectors {
    space: Option<(SpaceId, usize)>,
    shelves: RwLock<HashMap<Namespace, Arc<RwLock<Shelf>>>>,
    held: AtomicUsize,
}

impl Vectors {
    /// No rows yet, of the given space and dimension; without a space only counts are kept.
    pub(super) fn new(space: Option<(SpaceId, usize)>) -> Self {
        Self { space, shelves: RwLock::default(), held: AtomicUsize::new(0) }
    }

    pub(super) fn space(&self) -> Option<(SpaceId, usize)> {
        self.space
    }

    /// Vectors held, expired ones included until they are swept.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What stands at `now`; a namespace never written to is empty.
    pub(super) fn snapshot(&self, namespace: &Namespace, now: Timestamp) -> Snapshot {
        let Some(shelf) = self.shelf(namespace) else {
            return Snapshot { segments: Vec::new(), population: 0 };
        };
        let shelf = shelf.read();
        Snapshot { segments: shelf.segments.clone(), population: shelf.ledger.alive(now) }
    }

    /// Live entries at `now`.
    pub(super) fn population(&self, namespace: &Namespace, now: Timestamp) -> u64 {
        self.shelf(namespace).map_or(0, |shelf| shelf.read().ledger.alive(now))
    }

    /// Follows committed writes, in their order. Called by the writer thread only.
    pub(super) fn apply(&self, effects: Vec<Effect>) {
        for effect in effects {
            self.apply_one(effect);
        }
        metrics::vectors(self.held());
    }

    pub(super) fn apply_one(&self, Effect { namespace, change }: Effect) {
        let shelf = match self.shelf(&namespace) {
            Some(shelf) => shelf,
            None => Arc::clone(self.shelves.write().entry(namespace.clone()).or_default()),
        };
        let mut shelf = shelf.write();
        let before = shelf.rows.len();
        match change {
            Change::Written { id, replaced, expires, row } => {
                if let Some(old) = replaced {
                    shelf.ledger.remove(old);
                }
                shelf.ledger.add(expires);
                match row {
                    Some(row) => shelf.set(row),
                    None => shelf.remove(&id),
                }
            }
            Change::Removed { id, expires } => {
                shelf.ledger.remove(expires);
                shelf.remove(&id);
            }
            Change::Emptied => *shelf = Shelf::default(),
        }
        self.held.fetch_add(shelf.rows.len(), Ordering::Relaxed);
        self.held.fetch_sub(before, Ordering::Relaxed);
        // A namespace that was used once and is empty now costs nothing.
        if shelf.ledger.total == 0 {
            self.shelves.write().remove(&namespace);
        }
    }

    fn shelf(&self, namespace: &Namespace) -> Option<Arc<RwLock<Shelf>>> {
        self.shelves.read().get(namespace).map(Arc::clone)
    }
}

/// The rows of one namespace, and how many of its entries are alive.
#[derive(Default)]
struct Shelf {
    /// All full but the last.
    segments: Vec<Arc<Segment>>,
    /// Where a key's row stands, counted over all segments.
    rows: HashMap<EntryId, usize>,
    ledger: Ledger,
}

impl Shelf {
    /// Adds a row, or overwrites the one of the same key.
    fn set(&mut self, row: Row) {
        let at = self.rows.get(&row.label.id).copied();
        if let Some(at) = at {
            let (segment, index) = self.place(at);
            segment.replace(index, row.label, row.token, row.expires, row.vector.as_slice());
            return;
        }
        let at = self.rows.len();
        if at.is_multiple_of(SEGMENT_ROWS) {
            self.segments.push(Arc::default());
        }
        self.rows.insert(row.label.id, at);
        self.place(at).0.push(row);
    }

    /// Takes a row out; the last row of the shelf moves into its place.
    fn remove(&mut self, id: &EntryId) {
        let Some(at) = self.rows.remove(id) else { return };
        // The key is out of the map already, so its length is the number of the last row.
        let last = self.rows.len();
        let moved = self.place(last).0.pop();
        if last.is_multiple_of(SEGMENT_ROWS) {
            self.segments.pop();
        }
        if at != last
            && let Some((label, token, expires, values)) = moved
        {
            self.rows.insert(label.id, at);
            let (segment, index) = self.place(at);
            segment.replace(index, label, token, expires, &values);
        }
    }

    /// The segment of a row, copied if a scan holds it, and the row's index in it.
    fn place(&mut self, at: usize) -> (&mut Segment, usize) {
        (Arc::make_mut(&mut self.segments[at / SEGMENT_ROWS]), at % SEGMENT_ROWS)
    }
}

impl Segment {
    fn push(&mut self, row: Row) {
        self.values.extend_from_slice(row.vector.as_slice());
        self.tokens.push(row.token);
        self.expires.push(row.expires);
        self.labels.push(row.label);
    }

    fn replace(&mut self, at: usize, label: Label, token: u128, expires: Timestamp, values: &[f32]) {
        self.values[at * values.len()..][..values.len()].copy_from_slice(values);
        self.tokens[at] = token;
        self.expires[at] = expires;
        self.labels[at] = label;
    }

    fn pop(&mut self) -> Option<(Label, u128, Timestamp, Vec<f32>)> {
        let dimension = self.values.len() / self.labels.len().max(1);
        let values = self.values.split_off(self.values.len() - dimension);
        Some((self.labels.pop()?, self.tokens.pop()?, self.expires.pop()?, values))
    }
}

/// How many entries end when: counts the living without asking the database.
#[derive(Default)]
struct Ledger {
    by_expiry: BTreeMap<Timestamp, u64>,
    total: u64,
}

impl Ledger {
    fn add(&mut self, expires: Timestamp) {
        *self.by_expiry.entry(expires).or_default() += 1;
        self.total += 1;
    }

    fn remove(&mut self, expires: Timestamp) {
        let Some(count) = self.by_expiry.get_mut(&expires) else { return };
        *count -= 1;
        if *count == 0 {
            self.by_expiry.remove(&expires);
        }
        self.total -= 1;
    }

    /// Costs what has expired and is not yet swept.
    fn alive(&self, now: Timestamp) -> u64 {
        self.total - self.by_expiry.range(..=now).map(|(_, count)| count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> EntryId {
        EntryId::from_bytes(&[number; 20]).unwrap()
    }

    fn row(number: u8, value: f32, expires: i64) -> Row {
        let label = Label { id: id(number), prompt: Prompt::stored("?"), category: None, created: Timestamp(0) };
        let vector = Vector::new(vec![value, 1.0]).unwrap();
        Row { label, token: u128::from(number), expires: Timestamp(expires), vector }
    }

    fn effect(change: Change) -> Effect {
        Effect { namespace: Namespace::new("a").unwrap(), change }
    }

    proptest! {
        /// Any history leaves exactly the rows a map would hold, wherever they stand.
        #[test]
        fn a_shelf_equals_a_map(history in proptest::collection::vec((any::<u8>(), 0_u8..4, 1_i64..50), 0..2_000)) {
            let vectors = Vectors::new(Some((SpaceId::derive(&[]), 2)));
            let mut model: HashMap<u8, (i64, bool)> = HashMap::new();
            for (step, (number, action, expires)) in history.into_iter().enumerate() {
                let old = model.get(&number).map(|(expires, _)| Timestamp(*expires));
                match (action, old) {
                    (0, Some(old)) => {
                        model.remove(&number);
                        vectors.apply(vec![effect(Change::Removed { id: id(number), expires: old })]);
                    }
                    (0, None) => {}
                    (action, replaced) => {
                        let shelved = action > 1;
                        model.insert(number, (expires, shelved));
                        let row = shelved.then(|| row(number, step as f32, expires));
                        let change = Change::Written { id: id(number), replaced, expires: Timestamp(expires), row };
                        vectors.apply(vec![effect(change)]);
                    }
                }
            }
            let now = Timestamp(20);
            let snapshot = vectors.snapshot(&Namespace::new("a").unwrap(), now);
            let mut found = HashMap::new();
            for segment in &snapshot.segments {
                prop_assert_eq!(segment.values.len(), segment.labels.len() * 2);
                for (at, label) in segment.labels.iter().enumerate() {
                    prop_assert_eq!(id(segment.tokens[at] as u8), label.id);
                    prop_assert!(found.insert(segment.tokens[at] as u8, segment.expires[at].0).is_none());
                }
            }
            let shelved = model.iter().filter(|(_, row)| row.1).map(|(number, row)| (*number, row.0)).collect();
            prop_assert_eq!(found, shelved);
            prop_assert_eq!(snapshot.population, model.values().filter(|row| row.0 > now.0).count() as u64);
            prop_assert_eq!(vectors.held(), model.values().filter(|row| row.1).count());
        }
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let vectors = Vectors::new(Some((SpaceId::derive(&[]), 2)));
        let namespace = Namespace::new("a").unwrap();
        let written =
            |row: Row| Change::Written { id: row.label.id, replaced: None, expires: row.expires, row: Some(row) };
        vectors.apply(vec![effect(written(row(1, 0.5, 9)))]);
        let before = vectors.snapshot(&namespace, Timestamp(0));
        vectors.apply(vec![effect(written(row(2, 0.5, 9))), effect(Change::Emptied)]);
        assert_eq!((before.segments[0].labels.len(), before.population), (1, 1));
        assert_eq!(vectors.snapshot(&namespace, Timestamp(0)).population, 0);
    }
}
