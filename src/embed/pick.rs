//! Which of the waiting texts a free worker embeds next.
//!
//! A pure function of what waits, who asks and the time. There is no batching timer: a batch is
//! what waits when a worker frees up, so an idle sidecar adds no delay and a busy one fills its
//! batches by itself.
//!
//! The cost of a batch is its padded size, rows times the longest row, since the model computes
//! padding like text. A budget on it makes batches of short texts long (8 to 32 rows) and batches
//! of long texts short (1 to 4), which is what a CPU likes best, and bounds the runtime's arena,
//! which never shrinks.
//!
//! *Architecture invariant:* nothing here blocks, locks or reads a clock.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// Who waits for a text: a caller with an open request, or a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Someone waits for the answer; goes first.
    Interactive,
    /// Ingestion; goes in slices, so that it never holds a worker for long.
    Bulk,
}

impl Lane {
    /// The label of the lane in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Kept free for the interactive lane: an inference that has begun cannot be interrupted, so
    /// priority alone would leave a question waiting for a whole slice of documents. Takes bulk
    /// rows one at a time when no interactive text has come for a while.
    Reserved,
    /// Takes interactive texts first, then slices of bulk.
    General,
}

/// The bounds of one batch and of waiting.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most padded tokens (rows times longest) in a batch; a single longer text goes alone.
    pub batch_tokens_max: usize,
    /// Most rows in an interactive batch.
    pub batch_rows_max: usize,
    /// Most rows in a bulk batch: the slice that a question may have to wait for.
    pub bulk_rows_max: usize,
    /// A bulk text that has waited this long gets the next turn of a general worker, also when
    /// interactive texts wait; while both wait, turns alternate.
    pub bulk_wait_max: Duration,
    /// The reserved worker helps with bulk after this long without an interactive text.
    pub idle_before_bulk: Duration,
}

/// What is known of one waiting text.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Who waits for it.
    pub lane: Lane,
    /// Its length in tokens, after cutting to what the model reads.
    pub tokens: usize,
    /// When it came.
    pub enqueued: Instant,
    /// When nobody waits for it any more; `None` waits for ever.
    pub deadline: Option<Instant>,
    /// Everyone who waited has gone.
    pub abandoned: bool,
}

/// Why a text leaves the queue without being embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its deadline passed while it waited.
    Expired,
    /// Everyone who waited has gone.
    Abandoned,
}

impl Cause {
    /// The label of the cause in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Abandoned => "abandoned",
        }
    }
}

impl Waiting {
    /// Why this text should not be embedded any more, if there is a reason.
    pub fn dead(&self, now: Instant) -> Option<Cause> {
        if self.abandoned {
            return Some(Cause::Abandoned);
        }
        self.deadline.is_some_and(|deadline| deadline <= now).then_some(Cause::Expired)
    }
}

/// What happened before, as far as the next pick depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct History {
    /// When the last interactive text came.
    pub interactive_seen: Option<Instant>,
    /// Whether a general worker's last batch was bulk although interactive texts waited. The next
    /// turn is then theirs, so that neither lane starves the other.
    pub bulk_had_its_turn: bool,
}

/// What to do with the waiting texts, as indexes into them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// The batch; all of one lane. Empty if nothing waits for this role.
    pub take: Vec<usize>,
    /// What leaves the queue without being embedded.
    pub drop: Vec<(usize, Cause)>,
    /// The new value of [`History::bulk_had_its_turn`].
    pub bulk_had_its_turn: bool,
}

/// Chooses the next batch for a worker of `role` out of `waiting`, which is in order of arrival.
///
/// Drops exactly what is expired or abandoned. The oldest living text of the chosen lane is always
/// in the batch; the others are those of similar length, within the limits.
pub fn pick(waiting: &[Waiting], role: Role, history: History, now: Instant, limits: &Limits) -> Pick {
    let mut drop = Vec::new();
    let mut oldest_interactive = None;
    let mut oldest_bulk = None;
    for (at, job) in waiting.iter().enumerate() {
        if let Some(cause) = job.dead(now) {
            drop.push((at, cause));
            continue;
        }
        let oldest = match job.lane {
            Lane::Interactive => &mut oldest_interactive,
            Lane::Bulk => &mut oldest_bulk,
        };
        if oldest.is_none_or(|best: usize| job.enqueued < waiting[best].enqueued) {
            *oldest = Some(at);
        }
    }

    let bulk_waits_too_long =
        oldest_bulk.is_some_and(|at| now.saturating_duration_since(waiting[at].enqueued) >= limits.bulk_wait_max);
    let mut bulk_had_its_turn = history.bulk_had_its_turn;
    let chosen = match (role, oldest_interactive, oldest_bulk) {
        (Role::Reserved, Some(oldest), _) => Some((oldest, limits.batch_rows_max)),
        (Role::Reserved, None, Some(oldest)) => is_quiet(history, now, limits).then_some((oldest, 1)),
        (Role::General, Some(interactive), bulk) => {
            let bulk = bulk.filter(|_| bulk_waits_too_long && !history.bulk_had_its_turn);
            bulk_had_its_turn = bulk.is_some();
            Some(bulk.map_or((interactive, limits.batch_rows_max), |oldest| (oldest, limits.bulk_rows_max)))
        }
        (Role::General, None, Some(oldest)) => {
            bulk_had_its_turn = false;
            Some((oldest, limits.bulk_rows_max))
        }
        (_, None, None) => None,
    };
    let take = chosen.map(|(oldest, rows_max)| gather(waiting, oldest, rows_max, now, limits)).unwrap_or_default();
    Pick { take, drop, bulk_had_its_turn }
}

/// Whether no interactive text has come for so long that the reserved worker may help with bulk.
pub fn is_quiet(history: History, now: Instant, limits: &Limits) -> bool {
    history.interactive_seen.is_none_or(|seen| now.saturating_duration_since(seen) >= limits.idle_before_bulk)
}

/// The batch around `oldest`: living texts of its lane, nearest in length first.
fn gather(waiting: &[Waiting], oldest: usize, rows_max: usize, now: Instant, limits: &Limits) -> Vec<usize> {
    let anchor = &waiting[oldest];
    let mut others: Vec<usize> = (0..waiting.len())
        .filter(|&at| at != oldest && waiting[at].lane == anchor.lane && waiting[at].dead(now).is_none())
        .filter(|&at| worth_padding(waiting[at].tokens, anchor.tokens))
        .collect();
    // Among equals the older goes first; the index breaks ties in order of arrival.
    others.sort_unstable_by_key(|&at| (waiting[at].tokens.abs_diff(anchor.tokens), waiting[at].enqueued, at));

    let (mut shortest, mut longest) = (anchor.tokens, anchor.tokens);
    let mut take = vec![oldest];
    for at in others {
        if take.len() >= rows_max {
            break;
        }
        let (short, long) = (shortest.min(waiting[at].tokens), longest.max(waiting[at].tokens));
        if long.saturating_mul(take.len() + 1) > limits.batch_tokens_max || !worth_padding(short, long) {
            continue;
        }
        (shortest, longest) = (short, long);
        take.push(at);
    }
    // Longest first: a session that grows its buffers then grows them once.
    take.sort_unstable_by_key(|&at| (Reverse(waiting[at].tokens), at));
    take
}

/// Whether padding the shorter text up to the longer is cheaper than a batch of its own.
///
/// Starting a batch costs about as much as 16 tokens of inference (measured: 1.6 ms against 0.1 ms
/// a token on one core in fp32); beyond that, a text may be padded by half its length.
fn worth_padding(one: usize, other: usize) -> bool {
    let (short, long) = (one.min(other), one.max(other));
    long - short <= (short / 2).max(16)
}
