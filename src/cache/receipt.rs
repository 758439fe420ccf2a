//! The full account of one lookup.

use std::time::Duration;

use super::policy::Decision;
use crate::{
    store::{Entry, Nearest},
    types::{EntryId, Similarity, SpaceId, Timestamp},
};

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an entry.
    Hit,
    /// Without one.
    Miss,
}

/// Where a hit came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The same prompt.
    Exact,
    /// A prompt that means the same.
    Semantic,
}

impl Tier {
    /// The word for logs, metrics and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Semantic => "semantic",
        }
    }
}

/// Why a lookup missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissReason {
    /// The namespace holds no entry.
    Empty,
    /// The nearest entry is less similar than the threshold.
    BelowFloor,
    /// An entry would do, but is too old.
    Expired,
    /// No entry agrees on the attributes.
    Filtered,
    /// The caller asked not to look, or not where the answer might be.
    Bypassed,
    /// A part could not answer.
    Degraded,
    /// The model does not read all of the prompt.
    PartlyRead,
}

impl MissReason {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 7] = [
        Self::Empty,
        Self::BelowFloor,
        Self::Expired,
        Self::Filtered,
        Self::Bypassed,
        Self::Degraded,
        Self::PartlyRead,
    ];

    /// The word for logs, metrics and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::BelowFloor => "below_floor",
            Self::Expired => "expired",
            Self::Filtered => "filtered",
            Self::Bypassed => "bypassed",
            Self::Degraded => "degraded",
            Self::PartlyRead => "partly_read",
        }
    }
}

/// An entry that was near but not the nearest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunnerUp {
    /// Its key.
    pub id: EntryId,
    /// Its similarity.
    pub similarity: Similarity,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for an embedding worker.
    pub queue: Duration,
    /// Computing the vector.
    pub embed: Duration,
    /// Finding the nearest entries.
    pub search: Duration,
    /// Reading or writing entries.
    pub store: Duration,
    /// All of it.
    pub total: Duration,
}

/// The full account of one lookup.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// Hit or miss.
    pub outcome: Outcome,
    /// Where a hit came from.
    pub tier: Option<Tier>,
    /// Why it missed.
    pub miss_reason: Option<MissReason>,
    /// The entry handed out, or on a miss the nearest that was considered.
    pub entry: Option<EntryId>,
    /// Similarity of that entry's prompt; 1 for an exact hit.
    pub similarity: Option<Similarity>,
    /// The next nearest.
    pub runner_up: Option<RunnerUp>,
    /// The threshold in force, if the semantic tier was asked.
    pub min_similarity: Option<f32>,
    /// The embedding space.
    pub space: SpaceId,
    /// Age of the entry handed out.
    pub age: Option<Duration>,
    /// The prompt's vector was known.
    pub memoized: bool,
    /// What could not answer.
    pub degraded: Option<String>,
    /// Where the time went.
    pub timings: Timings,
}

impl Receipt {
    /// The receipt of a lookup that has found nothing yet.
    pub(super) fn new(space: SpaceId) -> Self {
        Self {
            outcome: Outcome::Miss,
            tier: None,
            miss_reason: None,
            entry: None,
            similarity: None,
            runner_up: None,
            min_similarity: None,
            space,
            age: None,
            memoized: false,
            degraded: None,
            timings: Timings::default(),
        }
    }

    /// Notes what the semantic tier weighed: the chosen candidate or the nearest, and the next.
    pub(super) fn considered(&mut self, nearest: &Nearest, decision: &Decision) {
        let chosen = match decision {
            Decision::Hit(at) => *at,
            Decision::Miss(_) => 0,
        };
        let weighed = nearest.candidates.get(chosen);
        self.entry = weighed.map(|candidate| candidate.id);
        self.similarity = weighed.map(|candidate| candidate.similarity);
        self.runner_up = nearest
            .candidates
            .iter()
            .enumerate()
            .find(|(at, _)| *at != chosen)
            .map(|(_, candidate)| RunnerUp { id: candidate.id, similarity: candidate.similarity });
    }

    /// Notes the entry that is handed out.
    pub(super) fn hit(&mut self, tier: Tier, entry: &Entry, now: Timestamp) {
        self.tier = Some(tier);
        self.entry = Some(entry.id);
        self.age = Some(now.since(entry.created));
        if tier == Tier::Exact {
            self.similarity = Similarity::new(1.0);
        }
    }
}
