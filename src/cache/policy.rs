//! The decision of the semantic tier, as a pure function: which candidate may be handed out, or
//! why none may.

use std::time::Duration;

use super::receipt::MissReason;
use crate::{store::Nearest, types::Timestamp};

/// What a caller accepts, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Least cosine similarity.
    pub min_similarity: f32,
    /// Oldest acceptable entry.
    pub max_age: Option<Duration>,
    /// The moment of the lookup.
    pub now: Timestamp,
}

impl Terms {
    /// Whether an entry of these times is alive and young enough.
    pub fn admits(&self, created: Timestamp, expires: Timestamp) -> bool {
        expires > self.now && self.max_age.is_none_or(|max_age| self.now.since(created) <= max_age)
    }
}

/// What to do with the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Hand out the candidate at this place.
    Hit(usize),
    /// Hand out none.
    Miss(MissReason),
}

/// Decides over candidates in order of similarity.
///
/// The nearest admissible candidate at or above the threshold wins; one that is near enough but
/// too old gives way to the next.
pub fn decide(nearest: &Nearest, terms: &Terms) -> Decision {
    let near_enough = nearest.candidates.iter().take_while(|c| c.similarity.get() >= terms.min_similarity);
    let mut too_old = false;
    for (at, candidate) in near_enough.enumerate() {
        if terms.admits(candidate.created, candidate.expires) {
            return Decision::Hit(at);
        }
        too_old = true;
    }
    Decision::Miss(match () {
        () if too_old => MissReason::Expired,
        () if !nearest.candidates.is_empty() => MissReason::BelowFloor,
        () if nearest.population > 0 => MissReason::Filtered,
        () => MissReason::Empty,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        store::Candidate,
        types::{Attributes, EntryId, Prompt, Similarity},
    };

    const NOW: Timestamp = Timestamp(1_000_000);

    fn candidate(similarity: f32, age_ms: i64, left_ms: i64) -> Candidate {
        let prompt = Prompt::stored("p");
        Candidate {
            id: EntryId::derive(&prompt, &Attributes::default()),
            similarity: Similarity::new(similarity).unwrap(),
            prompt,
            category: None,
            created: Timestamp(NOW.0 - age_ms),
            expires: Timestamp(NOW.0 + left_ms),
        }
    }

    fn check(candidates: &[(f32, i64, i64)], min_similarity: f32, max_age_ms: Option<u64>, expect: Decision) {
        let nearest = Nearest {
            candidates: candidates.iter().map(|&(s, age, left)| candidate(s, age, left)).collect(),
            population: candidates.len() as u64,
            partial: false,
        };
        let terms = Terms { min_similarity, max_age: max_age_ms.map(Duration::from_millis), now: NOW };
        assert_eq!(decide(&nearest, &terms), expect);
    }

    #[test]
    fn the_nearest_at_or_above_the_threshold_wins() {
        check(&[(0.95, 0, 10), (0.93, 0, 10)], 0.9, None, Decision::Hit(0));
        check(&[(0.90, 0, 10)], 0.90, None, Decision::Hit(0));
        check(&[(0.89, 0, 10)], 0.90, None, Decision::Miss(MissReason::BelowFloor));
    }

    #[test]
    fn zero_and_below_are_thresholds_like_any_other() {
        check(&[(0.01, 0, 10)], 0.0, None, Decision::Hit(0));
        check(&[(-0.01, 0, 10)], 0.0, None, Decision::Miss(MissReason::BelowFloor));
        check(&[(-1.0, 0, 10)], -1.0, None, Decision::Hit(0));
    }

    #[test]
    fn an_old_candidate_gives_way_to_a_younger_one() {
        check(&[(0.99, 500, 10), (0.95, 5, 10)], 0.9, Some(100), Decision::Hit(1));
        check(&[(0.99, 500, 10), (0.80, 5, 10)], 0.9, Some(100), Decision::Miss(MissReason::Expired));
        check(&[(0.99, 5, 0)], 0.9, None, Decision::Miss(MissReason::Expired));
    }

    #[test]
    fn an_empty_cache_and_a_filtered_one_are_told_apart() {
        check(&[], 0.9, None, Decision::Miss(MissReason::Empty));
        let nearest = Nearest { candidates: vec![], population: 3, partial: false };
        let terms = Terms { min_similarity: 0.9, max_age: None, now: NOW };
        assert_eq!(decide(&nearest, &terms), Decision::Miss(MissReason::Filtered));
    }

    proptest! {
        #[test]
        fn a_hit_always_keeps_the_terms(
            mut rows in prop::collection::vec((-1.0f32..=1.0, 0i64..1000, -5i64..1000), 0..8),
            min_similarity in -1.0f32..=1.0,
            max_age_ms in prop::option::of(0u64..1000),
        ) {
            rows.sort_by(|a, b| b.0.total_cmp(&a.0));
            let nearest = Nearest {
                candidates: rows.iter().map(|&(s, age, left)| candidate(s, age, left)).collect(),
                population: 1,
                partial: false,
            };
            let terms = Terms { min_similarity, max_age: max_age_ms.map(Duration::from_millis), now: NOW };
            let good = |c: &Candidate| c.similarity.get() >= min_similarity && terms.admits(c.created, c.expires);
            match decide(&nearest, &terms) {
                Decision::Hit(at) => {
                    prop_assert!(good(&nearest.candidates[at]));
                    prop_assert!(!nearest.candidates[..at].iter().any(good), "a nearer one would do");
                }
                Decision::Miss(_) => prop_assert!(!nearest.candidates.iter().any(good)),
            }
        }
    }
}
