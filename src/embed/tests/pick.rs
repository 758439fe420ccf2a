//! Properties of the batch policy.

use proptest::prelude::*;

use std::time::{Duration, Instant};

use crate::{clock::Clock, embed::pick::*};

fn limits() -> Limits {
    Limits {
        batch_tokens_max: 512,
        batch_rows_max: 32,
        bulk_rows_max: 4,
        bulk_wait_max: Duration::from_millis(500),
        idle_before_bulk: Duration::from_millis(100),
    }
}

/// A job as a test writes it: lane, tokens, age, time to its deadline (negative: passed), gone.
type Sketch = (bool, usize, u64, Option<i64>, bool);

fn job(now: Instant, (bulk, tokens, age_ms, deadline_ms, abandoned): Sketch) -> Waiting {
    let deadline = deadline_ms.map(|ms| {
        let by = Duration::from_millis(ms.unsigned_abs());
        if ms > 0 { now + by } else { ago(now, by) }
    });
    let lane = if bulk { Lane::Bulk } else { Lane::Interactive };
    Waiting { lane, tokens, enqueued: ago(now, Duration::from_millis(age_ms)), deadline, abandoned }
}

/// An earlier instant; [`base`] leaves an hour of room.
fn ago(now: Instant, by: Duration) -> Instant {
    now.checked_sub(by).unwrap()
}

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let deadline = prop_oneof![3 => Just(None), 1 => (-50_i64..2000).prop_map(Some)];
    prop::collection::vec((any::<bool>(), 1_usize..700, 0_u64..2000, deadline, prop::bool::weighted(0.1)), 0..60)
}

fn roles() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Reserved), Just(Role::General)]
}

fn histories() -> impl Strategy<Value = (Option<u64>, bool)> {
    (prop::option::of(0_u64..300), any::<bool>())
}

fn base() -> Instant {
    Clock::system().instant() + Duration::from_hours(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_pick_keeps_every_promise(sketches in sketches(), role in roles(), (seen, turn) in histories()) {
        let (now, limits) = (base(), limits());
        let waiting: Vec<_> = sketches.into_iter().map(|sketch| job(now, sketch)).collect();
        let interactive_seen = seen.map(|ms| ago(now, Duration::from_millis(ms)));
        let history = History { interactive_seen, bulk_had_its_turn: turn };
        let pick = pick(&waiting, role, history, now, &limits);

        // Dropped is exactly what is dead.
        let dead: Vec<_> = (0..waiting.len()).filter_map(|at| waiting[at].dead(now).map(|cause| (at, cause))).collect();
        prop_assert_eq!(&pick.drop, &dead);

        // Nothing twice, nothing both taken and dropped.
        let mut taken = pick.take.clone();
        taken.sort_unstable();
        taken.dedup();
        prop_assert_eq!(taken.len(), pick.take.len());
        prop_assert!(pick.take.iter().all(|&at| waiting[at].dead(now).is_none()));

        let alive = |lane| waiting.iter().filter(move |job| job.lane == lane && job.dead(now).is_none());
        let quiet = is_quiet(history, now, &limits);
        let eligible = alive(Lane::Interactive).count()
            + if role == Role::General || quiet { alive(Lane::Bulk).count() } else { 0 };
        // Progress.
        prop_assert_eq!(pick.take.is_empty(), eligible == 0);

        if let Some(&first) = pick.take.first() {
            let lane = waiting[first].lane;
            prop_assert!(pick.take.iter().all(|&at| waiting[at].lane == lane));
            let rows_max = match (role, lane) {
                (_, Lane::Interactive) => limits.batch_rows_max,
                (Role::General, Lane::Bulk) => limits.bulk_rows_max,
                (Role::Reserved, Lane::Bulk) => 1,
            };
            prop_assert!(pick.take.len() <= rows_max);
            let longest = pick.take.iter().map(|&at| waiting[at].tokens).max().unwrap_or(0);
            prop_assert!(longest * pick.take.len() <= limits.batch_tokens_max || pick.take.len() == 1);
            let oldest = alive(lane).map(|job| job.enqueued).min();
            prop_assert!(pick.take.iter().any(|&at| Some(waiting[at].enqueued) == oldest));
            // The reserved worker never touches bulk while a question waits.
            let question_waits = alive(Lane::Interactive).count() > 0;
            prop_assert!(role == Role::General || lane == Lane::Interactive || !question_waits);
        }
    }

    /// Interactive texts keep coming faster than one general worker can take them; the bulk texts
    /// are all embedded nevertheless, and each waits at most for its turn.
    #[test]
    fn bulk_is_not_starved(bulk_rows in 1_usize..20, tokens in 1_usize..300) {
        let (start, limits) = (base(), Limits { batch_rows_max: 2, ..limits() });
        let mut waiting: Vec<_> = (0..bulk_rows).map(|_| job(start, (true, tokens, 0, None, false))).collect();
        let mut history = History::default();
        let turns_max = 2 * bulk_rows + limits.bulk_wait_max.as_millis() as usize / 50 + 2;
        for turn in 0..turns_max {
            let now = start + Duration::from_millis(50) * turn as u32;
            waiting.extend((0..3).map(|_| job(now, (false, 10, 0, None, false))));
            history.interactive_seen = Some(now);
            let picked = pick(&waiting, Role::General, history, now, &limits);
            history.bulk_had_its_turn = picked.bulk_had_its_turn;
            let mut at = 0;
            waiting.retain(|_| { at += 1; !picked.take.contains(&(at - 1)) });
        }
        prop_assert_eq!(waiting.iter().filter(|job| job.lane == Lane::Bulk).count(), 0);
    }

    /// Nor do overdue documents starve questions: of two turns in a row, one is theirs.
    #[test]
    fn interactive_is_not_starved(bulk_rows in 10_usize..60) {
        let (now, limits) = (base(), limits());
        let mut waiting: Vec<_> = (0..bulk_rows).map(|_| job(now, (true, 200, 5000, None, false))).collect();
        waiting.push(job(now, (false, 10, 0, None, false)));
        let first = pick(&waiting, Role::General, History::default(), now, &limits);
        prop_assert_eq!(waiting[first.take[0]].lane, Lane::Bulk);
        let history = History { bulk_had_its_turn: first.bulk_had_its_turn, ..History::default() };
        let second = pick(&waiting, Role::General, history, now, &limits);
        prop_assert_eq!(waiting[second.take[0]].lane, Lane::Interactive);
    }
}

#[test]
fn the_budget_shapes_batches() {
    let now = base();
    let limits = Limits { batch_tokens_max: 1024, ..limits() };
    let rows = |tokens| {
        let waiting: Vec<_> = (0..100).map(|_| job(now, (false, tokens, 1, None, false))).collect();
        pick(&waiting, Role::General, History::default(), now, &limits).take.len()
    };
    assert_eq!([rows(10), rows(40), rows(256), rows(2000)], [32, 25, 4, 1]);
}

#[test]
fn similar_lengths_go_together() {
    let now = base();
    let tokens = [200, 8, 190, 12, 150, 9];
    let waiting: Vec<_> = tokens
        .iter()
        .zip([1, 9, 2, 3, 4, 5])
        .map(|(&tokens, age)| job(now, (false, tokens, age, None, false)))
        .collect();
    let limits = Limits { batch_tokens_max: 4096, ..limits() };
    let picked = pick(&waiting, Role::General, History::default(), now, &limits);
    // The oldest has 8 tokens; the long ones wait for a batch of their own.
    assert_eq!(picked.take, [3, 5, 1]);
}

#[test]
fn an_abandoned_and_expired_text_counts_as_abandoned() {
    let now = base();
    assert_eq!(job(now, (false, 1, 1, Some(-1), true)).dead(now), Some(Cause::Abandoned));
}
