//! The one place that makes key and index names.
//!
//! Every key of a namespace carries the hash tag `{<namespace>}`, and so does the name of its
//! index: scripts and pipelines of one namespace stay in one slot. A namespace has no characters
//! that could leave its braces ([`Namespace`] checks), so no tenant can name another's key.

use crate::{
    store::{MemoKey, RequestId},
    types::{EntryId, Namespace, PartsHasher, SpaceId},
};

/// The version of everything below: key names, hash fields, schema of the index.
pub(super) const LAYOUT: &str = "1";
/// Holds [`LAYOUT`]; checked at every connect.
pub(super) const SCHEMA: &str = "refrain:schema";
/// A set of the namespaces that still have swept-out epochs to clean up.
pub(super) const SWEEPS: &str = "refrain:sweeps";
/// What every index name starts with.
const INDEX_START: &str = "refrain:{";
/// What stands between the namespace and the epoch in an index name.
const INDEX_MIDDLE: &str = "}:index:entry.";

/// The generation of a namespace: microseconds of the server's clock when it was last emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Epoch(pub(super) u64);

/// How an index finds neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Exact, by looking at all.
    Flat,
    /// Approximate, by a graph.
    Hnsw,
}

impl Algorithm {
    /// The name in index names and metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Hnsw => "hnsw",
        }
    }
}

/// The keys of one namespace.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a>(pub(super) &'a Namespace);

impl Keys<'_> {
    /// String: the current [`Epoch`]. Without it the namespace is empty.
    pub(super) fn epoch(self) -> String {
        format!("refrain:{{{}}}:epoch", self.0)
    }

    /// Hash: one entry.
    pub(super) fn entry(self, epoch: Epoch, id: &EntryId) -> String {
        format!("{}{id}", self.entry_prefix(epoch))
    }

    /// What all entries of an epoch start with; the index's prefix.
    pub(super) fn entry_prefix(self, epoch: Epoch) -> String {
        format!("refrain:{{{}}}:entry:{}.", self.0, epoch.0)
    }

    /// Sorted set: the hex ids of an epoch's entries by expiry in milliseconds.
    pub(super) fn live(self, epoch: Epoch) -> String {
        format!("refrain:{{{}}}:entries:{}", self.0, epoch.0)
    }

    /// Set: epochs whose keys are still to be removed.
    pub(super) fn sweep(self) -> String {
        format!("refrain:{{{}}}:sweep", self.0)
    }

    /// String: a vector as raw little-endian floats.
    pub(super) fn memo(self, key: &MemoKey) -> String {
        format!("refrain:{{{}}}:memo:{}", self.0, hex::encode(key.0))
    }

    /// String: what a mutation did, for a repeat of it. `part` numbers the pieces of a large one.
    pub(super) fn request(self, verb: &'static str, request: &RequestId, part: usize) -> String {
        let mut hasher = PartsHasher::new("refrain request v1");
        hasher.part(request.0.as_bytes()).part(&(part as u64).to_le_bytes());
        format!("refrain:{{{}}}:request:{verb}.{}", self.0, hex::encode(&hasher.finish()[..16]))
    }

    /// Hash: the domain's counters.
    pub(super) fn counters(self) -> String {
        format!("refrain:{{{}}}:counters", self.0)
    }

    /// String with a short life: which index of a space is being filled by a scan.
    pub(super) fn building(self, epoch: Epoch, space: SpaceId) -> String {
        format!("refrain:{{{}}}:building:{}.{space}", self.0, epoch.0)
    }

    /// The name of an index.
    pub(super) fn index(self, epoch: Epoch, space: SpaceId, algorithm: Algorithm) -> String {
        format!("{INDEX_START}{}{INDEX_MIDDLE}{}.{space}.{}", self.0, epoch.0, algorithm.label())
    }
}

/// The field of an entry that holds its vector. Named by the space, so that an entry of another
/// space stays readable and merely leaves the search.
pub(super) fn vector_field(space: SpaceId) -> String {
    format!("v_{space}")
}

/// Namespace and epoch of an index name; `None` for names that are not ours.
pub(super) fn parse_index(name: &str) -> Option<(&str, Epoch)> {
    let (namespace, rest) = name.strip_prefix(INDEX_START)?.split_once(INDEX_MIDDLE)?;
    let (epoch, _) = rest.split_once('.')?;
    Some((namespace, Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_namespace_carries_its_hash_tag() {
        let namespace = Namespace::new("tenant.7").unwrap();
        let (keys, epoch, space) = (Keys(&namespace), Epoch(5), SpaceId::derive(&[b"s"]));
        let id = "00".repeat(20).parse().unwrap();
        let request = RequestId("r".into());
        for name in [
            keys.epoch(),
            keys.entry(epoch, &id),
            keys.live(epoch),
            keys.sweep(),
            keys.memo(&MemoKey([1; 32])),
            keys.request("put", &request, 0),
            keys.counters(),
            keys.building(epoch, space),
            keys.index(epoch, space, Algorithm::Flat),
        ] {
            assert!(name.starts_with("refrain:{tenant.7}:"), "{name}");
        }
    }

    #[test]
    fn index_names_are_read_back_and_foreign_ones_are_not() {
        let namespace = Namespace::new("a-b").unwrap();
        let name = Keys(&namespace).index(Epoch(42), SpaceId::derive(&[b"s"]), Algorithm::Hnsw);
        assert_eq!(parse_index(&name), Some(("a-b", Epoch(42))));
        assert_eq!(parse_index("idx"), None);
        assert_eq!(parse_index("refrain:{a}:index:entry.x.y.flat"), None);
    }
}
