//! The best K of a stream, in a total order.

use crate::types::EntryId;

/// A row's claim: how similar it is, who it is, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Claim {
    pub(super) similarity: f32,
    pub(super) id: EntryId,
    pub(super) segment: usize,
    pub(super) row: usize,
}

impl Claim {
    /// Nearer first; of equally near ones the smaller key first, so that one query over one set
    /// has one answer whatever the order of the rows.
    fn beats(&self, other: &Self) -> bool {
        other.similarity.total_cmp(&self.similarity).then_with(|| self.id.cmp(&other.id)).is_lt()
    }
}

/// Keeps the best `count` claims, best first. K is small (4 to 8): a sorted array beats a heap.
pub(super) struct Top {
    best: Vec<Claim>,
    count: usize,
}

impl Top {
    pub(super) fn new(count: usize) -> Self {
        // The capacity is bounded: a count is a caller's wish, not yet an allocation.
        Self { best: Vec::with_capacity(count.min(64)), count }
    }

    /// Whether a row of this similarity could still get in; looking up its key is spared if not.
    #[inline]
    pub(super) fn may_enter(&self, similarity: f32) -> bool {
        self.best.len() < self.count || self.best.last().is_some_and(|worst| similarity >= worst.similarity)
    }

    pub(super) fn offer(&mut self, claim: Claim) {
        let at = self.best.partition_point(|held| held.beats(&claim));
        if at >= self.count {
            return;
        }
        self.best.truncate(self.count - 1);
        self.best.insert(at, claim);
    }

    pub(super) fn into_best(self) -> Vec<Claim> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few distinct similarities, so that ties are the rule.
        #[test]
        fn equals_sorting_everything(
            rows in proptest::collection::vec((0_u8..6, any::<[u8; 20]>()), 0..200),
            count in 0_usize..20,
        ) {
            let claims: Vec<Claim> = rows
                .iter()
                .enumerate()
                .map(|(row, (similarity, id))| Claim {
                    similarity: f32::from(*similarity) / 5.0 - 0.5,
                    id: EntryId::from_bytes(id).unwrap(),
                    segment: 0,
                    row,
                })
                .collect();
            let mut top = Top::new(count);
            for claim in &claims {
                if top.may_enter(claim.similarity) {
                    top.offer(*claim);
                }
            }
            let mut sorted = claims;
            sorted.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.id.cmp(&b.id)));
            sorted.truncate(count);
            prop_assert_eq!(top.into_best(), sorted);
        }
    }
}
