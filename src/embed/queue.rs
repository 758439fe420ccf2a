//! The bounded queue between callers and worker threads, with a lane for questions and a lane for
//! documents.
//!
//! A push never blocks: it is taken or refused at once. Each lane has the whole bound to itself,
//! so that a flood of documents cannot shut questions out. Whatever is pushed is handed to exactly
//! one worker or told why it was dropped, also when the queue is closed meanwhile.
//!
//! There is no timer. The reserved worker, which helps with bulk only after a quiet while, is
//! woken by the other workers as they come back for more and leave something behind.
//!
//! *Architecture invariant:* no text, model or runtime is known here, and the locks come from
//! `super::sync`, so that `tests/queue_model.rs` can explore all orders of events.

use std::time::{Duration, Instant};

use super::{
    pick::{self, Cause, History, Lane, Limits, Pick, Role, Waiting},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};
use crate::clock::Clock;

/// Something that waits to be embedded.
pub(super) trait Job: Send {
    /// What the policy needs to know; may change while the job waits.
    fn view(&self) -> View;

    /// Takes leave of a job that will not be embedded. Called without any lock held.
    fn dropped(self, cause: Cause);
}

/// The part of [`Waiting`] that the job itself knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) lane: Lane,
    pub(super) deadline: Option<Instant>,
    pub(super) abandoned: bool,
}

/// What may wait in each lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) tokens_max: usize,
    pub(super) rows_max: usize,
}

/// A push that was refused whole: why, and the jobs, for their owner to take leave of.
#[derive(Debug)]
pub(super) struct Refused<J> {
    pub(super) why: Refusal,
    pub(super) jobs: Vec<(J, usize)>,
}

/// Why a push was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The lane is full.
    Full {
        /// Tokens that wait in it.
        waiting_tokens: usize,
        /// About how long its oldest text has waited: a measure of how long the queue is.
        retry_after: Duration,
    },
    /// The queue takes nothing any more.
    Closed,
}

/// Jobs and when each came.
type Taken<J> = Vec<(J, Instant)>;

/// Jobs that nobody waits for, and why.
type Dead<J> = Vec<(J, Cause)>;

/// What a worker embeds next.
pub(super) struct Batch<J> {
    /// The jobs, longest first, and when each came.
    pub(super) jobs: Taken<J>,
    /// Rows times the longest.
    pub(super) padded_tokens: usize,
    /// When it was taken.
    pub(super) taken: Instant,
}

/// Tokens and rows that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Depth {
    pub(super) tokens: usize,
    pub(super) rows: usize,
}

/// The queue; shared by reference between callers and workers.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    reserved: Condvar,
    general: Condvar,
    bounds: Bounds,
    limits: Limits,
    clock: Clock,
}

struct State<J> {
    /// In order of arrival.
    jobs: Vec<Slot<J>>,
    interactive: Depth,
    bulk: Depth,
    history: History,
    /// Workers of each role that sleep. One that has been notified and has not run yet still
    /// counts; it looks at all that waits when it runs, so nothing is missed.
    idle_reserved: usize,
    idle_general: usize,
    closed: bool,
}

struct Slot<J> {
    job: J,
    /// The lane it is counted under.
    lane: Lane,
    tokens: usize,
    enqueued: Instant,
}

impl<J: Job> Queue<J> {
    pub(super) fn new(bounds: Bounds, limits: Limits, clock: Clock) -> Self {
        let state = State {
            jobs: Vec::new(),
            interactive: Depth::default(),
            bulk: Depth::default(),
            history: History::default(),
            idle_reserved: 0,
            idle_general: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), reserved: Condvar::new(), general: Condvar::new(), bounds, limits, clock }
    }

    /// Takes jobs of one lane with their lengths in tokens, all or none.
    ///
    /// An empty lane takes more than its bound, since what is larger than the bound could
    /// otherwise never be taken.
    pub(super) fn push(&self, lane: Lane, jobs: Vec<(J, usize)>) -> Result<(), Refused<J>> {
        let now = self.clock.instant();
        let new = Depth { tokens: jobs.iter().map(|(_, tokens)| tokens).sum(), rows: jobs.len() };
        let mut state = self.lock();
        if state.closed {
            return Err(Refused { why: Refusal::Closed, jobs });
        }
        let mut dead = Vec::new();
        if !self.has_room(&state, lane, new) {
            // What nobody waits for any more must not keep others out.
            dead = state.sweep(now);
        }
        let outcome = if self.has_room(&state, lane, new) {
            state.add(jobs, now);
            self.wake(&state, now);
            Ok(())
        } else {
            let why =
                Refusal::Full { waiting_tokens: state.depth(lane).tokens, retry_after: state.oldest_wait(lane, now) };
            Err(Refused { why, jobs })
        };
        drop(state);
        tell(dead);
        outcome
    }

    /// The next batch for a worker of `role`. Sleeps while nothing waits for it; `None` once the
    /// queue is closed and nothing is left for this role.
    pub(super) fn next_batch(&self, role: Role) -> Option<Batch<J>> {
        let mut state = self.lock();
        loop {
            let now = self.clock.instant();
            let waiting = state.waiting();
            let picked = pick::pick(&waiting, role, state.history, now, &self.limits);
            if picked.take.is_empty() && picked.drop.is_empty() {
                if state.closed {
                    return None;
                }
                state = self.sleep(state, role);
                continue;
            }
            state.history.bulk_had_its_turn = picked.bulk_had_its_turn;
            let padded_tokens = padded_tokens(&waiting, &picked);
            let (jobs, dead) = state.remove(picked);
            // Whoever leaves work behind wakes the next worker, so one wake-up a push is enough.
            self.wake(&state, now);
            drop(state);
            tell(dead);
            if !jobs.is_empty() {
                return Some(Batch { jobs, padded_tokens, taken: now });
            }
            state = self.lock();
        }
    }

    /// Moves jobs whose view has changed from bulk to interactive into that lane.
    pub(super) fn promote(&self) {
        let now = self.clock.instant();
        let mut state = self.lock();
        state.promote(now);
        self.wake(&state, now);
    }

    /// Takes nothing more; what waits is still embedded.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.reserved.notify_all();
        self.general.notify_all();
    }

    /// What waits in both lanes.
    pub(super) fn depth(&self) -> Depth {
        let state = self.lock();
        Depth { tokens: state.interactive.tokens + state.bulk.tokens, rows: state.interactive.rows + state.bulk.rows }
    }

    fn has_room(&self, state: &State<J>, lane: Lane, new: Depth) -> bool {
        let depth = state.depth(lane);
        depth.rows == 0
            || (depth.tokens + new.tokens <= self.bounds.tokens_max && depth.rows + new.rows <= self.bounds.rows_max)
    }

    /// Wakes a sleeping worker for each lane in which something waits.
    ///
    /// Invariant: while something waits and a worker sleeps that may take it, a worker that was
    /// woken has yet to look. Every push, promotion and take ends with this call.
    fn wake(&self, state: &State<J>, now: Instant) {
        let (interactive, bulk) = (state.interactive.rows > 0, state.bulk.rows > 0);
        let quiet = || pick::is_quiet(state.history, now, &self.limits);
        let reserved = state.idle_reserved > 0 && (interactive || (bulk && state.idle_general == 0 && quiet()));
        let general = state.idle_general > 0 && (bulk || (interactive && !reserved));
        if reserved {
            self.reserved.notify_one();
        }
        if general {
            self.general.notify_one();
        }
    }

    fn sleep<'a>(&'a self, mut state: MutexGuard<'a, State<J>>, role: Role) -> MutexGuard<'a, State<J>> {
        *state.idle(role) += 1;
        let condvar = match role {
            Role::Reserved => &self.reserved,
            Role::General => &self.general,
        };
        state = condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
        *state.idle(role) -= 1;
        state
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing under the lock leaves the state half-changed, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a waiting job in one pick.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Taken { place: usize },
    Dropped(Cause),
}

impl<J: Job> State<J> {
    fn add(&mut self, jobs: Vec<(J, usize)>, now: Instant) {
        for (job, tokens) in jobs {
            // A job can have been promoted between its making and this push.
            let lane = job.view().lane;
            if lane == Lane::Interactive {
                self.history.interactive_seen = Some(now);
            }
            self.depth_mut(lane).add(tokens);
            self.jobs.push(Slot { job, lane, tokens, enqueued: now });
        }
    }

    fn waiting(&self) -> Vec<Waiting> {
        self.jobs.iter().map(Slot::waiting).collect()
    }

    /// Takes the picked and the dropped jobs out; the taken ones keep the order of the pick.
    fn remove(&mut self, picked: Pick) -> (Taken<J>, Dead<J>) {
        let mut fates = vec![Fate::Kept; self.jobs.len()];
        for (place, at) in picked.take.iter().enumerate() {
            fates[*at] = Fate::Taken { place };
        }
        for (at, cause) in picked.drop {
            fates[at] = Fate::Dropped(cause);
        }
        let mut taken = Vec::with_capacity(picked.take.len());
        let mut dead = Vec::new();
        let mut kept = Vec::with_capacity(self.jobs.len());
        for (slot, fate) in std::mem::take(&mut self.jobs).into_iter().zip(fates) {
            match fate {
                Fate::Kept => kept.push(slot),
                Fate::Taken { place } => {
                    self.depth_mut(slot.lane).subtract(slot.tokens);
                    taken.push((place, slot.job, slot.enqueued));
                }
                Fate::Dropped(cause) => {
                    self.depth_mut(slot.lane).subtract(slot.tokens);
                    dead.push((slot.job, cause));
                }
            }
        }
        self.jobs = kept;
        taken.sort_unstable_by_key(|(place, ..)| *place);
        (taken.into_iter().map(|(_, job, enqueued)| (job, enqueued)).collect(), dead)
    }

    /// Takes out what nobody waits for any more.
    fn sweep(&mut self, now: Instant) -> Dead<J> {
        let drop = (self.jobs.iter().enumerate())
            .filter_map(|(at, slot)| slot.waiting().dead(now).map(|cause| (at, cause)))
            .collect();
        self.remove(Pick { drop, ..Pick::default() }).1
    }

    fn promote(&mut self, now: Instant) {
        for slot in &mut self.jobs {
            if slot.lane == Lane::Bulk && slot.job.view().lane == Lane::Interactive {
                slot.lane = Lane::Interactive;
                self.bulk.subtract(slot.tokens);
                self.interactive.add(slot.tokens);
                self.history.interactive_seen = Some(now);
            }
        }
    }

    fn oldest_wait(&self, lane: Lane, now: Instant) -> Duration {
        let oldest = self.jobs.iter().filter(|slot| slot.lane == lane).map(|slot| slot.enqueued).min();
        oldest.map(|enqueued| now.saturating_duration_since(enqueued)).unwrap_or_default()
    }

    fn depth(&self, lane: Lane) -> Depth {
        match lane {
            Lane::Interactive => self.interactive,
            Lane::Bulk => self.bulk,
        }
    }

    fn depth_mut(&mut self, lane: Lane) -> &mut Depth {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn idle(&mut self, role: Role) -> &mut usize {
        match role {
            Role::Reserved => &mut self.idle_reserved,
            Role::General => &mut self.idle_general,
        }
    }
}

impl<J: Job> Slot<J> {
    fn waiting(&self) -> Waiting {
        let View { deadline, abandoned, .. } = self.job.view();
        Waiting { lane: self.lane, tokens: self.tokens, enqueued: self.enqueued, deadline, abandoned }
    }
}

impl Depth {
    fn add(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.rows += 1;
    }

    fn subtract(&mut self, tokens: usize) {
        self.tokens -= tokens;
        self.rows -= 1;
    }
}

fn padded_tokens(waiting: &[Waiting], picked: &Pick) -> usize {
    let longest = picked.take.iter().map(|&at| waiting[at].tokens).max().unwrap_or(0);
    longest * picked.take.len()
}

fn tell<J: Job>(dead: Dead<J>) {
    for (job, cause) in dead {
        job.dropped(cause);
    }
}
