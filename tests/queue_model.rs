//! Model check of the embedding queue: shuttle runs its threads in many orders and finds lost
//! wake-ups (as deadlocks), doubled or lost jobs, and leaks.
//!
//! The queue is included as source, so that it is built on shuttle's locks instead of the
//! standard library's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

use std::{
    sync::{
        Arc as StdArc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use shuttle::{
    sync::{Arc, Barrier},
    thread,
};

use crate::{
    pick::{Cause, Lane, Limits, Role},
    queue::{Bounds, Depth, Job, Queue, View},
};

mod sync {
    //! The locks under test.
    pub(super) use std::sync::PoisonError;

    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}

mod clock {
    //! A clock that stands still unless a test moves it: what a schedule does must depend on
    //! nothing else.
    pub(crate) use refrain::clock::Clock as SystemClock;

    #[derive(Clone)]
    pub(crate) struct Clock {
        base: std::time::Instant,
        ticks: super::StdArc<super::AtomicUsize>,
    }

    impl Clock {
        pub(crate) fn new() -> Self {
            Self { base: SystemClock::system().instant(), ticks: super::StdArc::default() }
        }

        pub(crate) fn tick(&self) {
            self.ticks.fetch_add(1, super::Ordering::SeqCst);
        }

        pub(crate) fn instant(&self) -> std::time::Instant {
            self.base + super::Duration::from_millis(self.ticks.load(super::Ordering::SeqCst) as u64)
        }
    }
}

#[allow(dead_code, unreachable_pub, reason = "the check uses a part of the room")]
#[path = "../src/embed/pick.rs"]
mod pick;
#[allow(dead_code, unreachable_pub, reason = "the check uses a part of the room")]
#[path = "../src/embed/queue.rs"]
mod queue;

/// What became of each job.
#[derive(Default)]
struct Ledger {
    delivered: AtomicUsize,
    told: AtomicUsize,
    refused: AtomicUsize,
    alive: AtomicUsize,
}

struct Probe {
    ledger: StdArc<Ledger>,
    lane: Lane,
    promoted: StdArc<AtomicBool>,
    deadline: Option<Instant>,
    abandoned: StdArc<AtomicBool>,
}

impl Probe {
    fn new(ledger: &StdArc<Ledger>, lane: Lane) -> Self {
        ledger.alive.fetch_add(1, Ordering::SeqCst);
        Self {
            ledger: StdArc::clone(ledger),
            lane,
            promoted: StdArc::default(),
            deadline: None,
            abandoned: StdArc::default(),
        }
    }
}

impl Job for Probe {
    fn view(&self) -> View {
        let promoted = self.promoted.load(Ordering::SeqCst);
        View {
            lane: if promoted { Lane::Interactive } else { self.lane },
            deadline: self.deadline,
            abandoned: self.abandoned.load(Ordering::SeqCst),
        }
    }

    fn dropped(self, _cause: Cause) {
        self.ledger.told.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.ledger.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

fn limits() -> Limits {
    Limits {
        batch_tokens_max: 40,
        batch_rows_max: 3,
        bulk_rows_max: 2,
        bulk_wait_max: Duration::from_millis(2),
        idle_before_bulk: Duration::from_millis(1),
    }
}

fn queue(clock: &clock::Clock, tokens_max: usize) -> Arc<Queue<Probe>> {
    Arc::new(Queue::new(Bounds { tokens_max, rows_max: 64 }, limits(), clock.clone()))
}

fn work(queue: &Queue<Probe>, ledger: &Ledger, role: Role) {
    while let Some(batch) = queue.next_batch(role) {
        assert!(!batch.jobs.is_empty());
        ledger.delivered.fetch_add(batch.jobs.len(), Ordering::SeqCst);
        thread::yield_now();
    }
}

fn spawn_workers(queue: &Arc<Queue<Probe>>, ledger: &StdArc<Ledger>, roles: &[Role]) -> Vec<thread::JoinHandle<()>> {
    let start = |&role: &Role| {
        let (queue, ledger) = (Arc::clone(queue), StdArc::clone(ledger));
        thread::spawn(move || work(&queue, &ledger, role))
    };
    roles.iter().map(start).collect()
}

fn join_all(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

fn settle(queue: &Queue<Probe>, ledger: &Ledger, pushed: usize) {
    assert_eq!(queue.depth(), Depth::default(), "what waits is counted back to zero");
    let told = ledger.told.load(Ordering::SeqCst);
    let refused = ledger.refused.load(Ordering::SeqCst);
    assert_eq!(ledger.delivered.load(Ordering::SeqCst) + told + refused, pushed, "each job has one fate");
    assert_eq!(ledger.alive.load(Ordering::SeqCst), 0, "no job leaks");
}

/// Producers of both lanes, three workers, then close once all is pushed.
fn drains() {
    let ledger = StdArc::new(Ledger::default());
    let clock = clock::Clock::new();
    let queue = queue(&clock, 1000);
    let workers = spawn_workers(&queue, &ledger, &[Role::Reserved, Role::General, Role::General]);
    let producers = [Lane::Interactive, Lane::Bulk].map(|lane| {
        let (queue, ledger, clock) = (Arc::clone(&queue), StdArc::clone(&ledger), clock.clone());
        thread::spawn(move || {
            for tokens in [10, 30] {
                let jobs = vec![(Probe::new(&ledger, lane), tokens), (Probe::new(&ledger, lane), 12)];
                assert!(queue.push(lane, jobs).is_ok());
                clock.tick();
            }
        })
    });
    join_all(producers.into());
    queue.close();
    join_all(workers);
    settle(&queue, &ledger, 8);
}

/// No close comes to the rescue: only the worker that takes the last job closes, so a job whose
/// wake-up was lost leaves all workers asleep, which is a deadlock.
fn wakes() {
    let ledger = StdArc::new(Ledger::default());
    let clock = clock::Clock::new();
    let queue = queue(&clock, 1000);
    let workers = [Role::Reserved, Role::General].map(|role| {
        let (queue, ledger) = (Arc::clone(&queue), StdArc::clone(&ledger));
        thread::spawn(move || {
            while let Some(batch) = queue.next_batch(role) {
                let taken = batch.jobs.len();
                if ledger.delivered.fetch_add(taken, Ordering::SeqCst) + taken == 6 {
                    queue.close();
                }
            }
        })
    });
    let producers = [Lane::Interactive, Lane::Bulk].map(|lane| {
        let (queue, ledger, clock) = (Arc::clone(&queue), StdArc::clone(&ledger), clock.clone());
        thread::spawn(move || {
            for tokens in [10, 30, 11] {
                assert!(queue.push(lane, vec![(Probe::new(&ledger, lane), tokens)]).is_ok());
                clock.tick();
            }
        })
    });
    join_all(producers.into());
    join_all(workers.into());
    settle(&queue, &ledger, 6);
}

/// No worker sleeps while another leaves work behind: each of two workers keeps its batch until
/// the other has one, so a worker that had to take both would wait for ever.
fn shares(roles: [Role; 2], lane: Lane) {
    let ledger = StdArc::new(Ledger::default());
    let queue = queue(&clock::Clock::new(), 1000);
    let both_busy = Arc::new(Barrier::new(2));
    let workers = roles.map(|role| {
        let (queue, ledger, both_busy) = (Arc::clone(&queue), StdArc::clone(&ledger), Arc::clone(&both_busy));
        thread::spawn(move || {
            let batch = queue.next_batch(role).unwrap();
            ledger.delivered.fetch_add(batch.jobs.len(), Ordering::SeqCst);
            both_busy.wait();
        })
    });
    // Lengths that do not go together.
    let jobs = [2, 38].map(|tokens| (Probe::new(&ledger, lane), tokens));
    assert!(queue.push(lane, jobs.into()).is_ok());
    join_all(workers.into());
    settle(&queue, &ledger, 2);
}

/// The queue is closed while producers still push, some jobs are dead or die while they wait, and
/// the bound is tight.
fn closes_during_work() {
    let ledger = StdArc::new(Ledger::default());
    let clock = clock::Clock::new();
    let queue = queue(&clock, 25);
    let workers = spawn_workers(&queue, &ledger, &[Role::Reserved, Role::General]);
    let producers = [Lane::Interactive, Lane::Bulk].map(|lane| {
        let (queue, ledger, clock) = (Arc::clone(&queue), StdArc::clone(&ledger), clock.clone());
        thread::spawn(move || {
            for at in 0..3_usize {
                let mut job = Probe::new(&ledger, lane);
                if at == 1 {
                    job.deadline = Some(clock.instant());
                }
                let (abandoned, promoted) = (StdArc::clone(&job.abandoned), StdArc::clone(&job.promoted));
                if let Err(refused) = queue.push(lane, vec![(job, 10)]) {
                    ledger.refused.fetch_add(refused.jobs.len(), Ordering::SeqCst);
                }
                clock.tick();
                if at == 2 {
                    abandoned.store(true, Ordering::SeqCst);
                } else if lane == Lane::Bulk {
                    promoted.store(true, Ordering::SeqCst);
                    queue.promote();
                }
            }
        })
    });
    let closer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || queue.close())
    };
    closer.join().unwrap();
    join_all(producers.into());
    join_all(workers);
    settle(&queue, &ledger, 6);
}

const ITERATIONS: usize = 8000;

#[test]
fn every_job_is_delivered_before_the_workers_leave() {
    shuttle::check_random(drains, ITERATIONS);
    shuttle::check_pct(drains, ITERATIONS, 3);
}

#[test]
fn no_wake_up_is_lost() {
    shuttle::check_random(wakes, ITERATIONS);
}

#[test]
fn what_a_worker_leaves_behind_goes_to_another() {
    let questions = || shares([Role::Reserved, Role::General], Lane::Interactive);
    let documents = || shares([Role::General, Role::General], Lane::Bulk);
    let help_of_the_reserved = || shares([Role::Reserved, Role::General], Lane::Bulk);
    for scenario in [questions as fn(), documents, help_of_the_reserved] {
        shuttle::check_random(scenario, ITERATIONS);
    }
}

#[test]
fn closing_during_work_loses_nothing() {
    shuttle::check_random(closes_during_work, ITERATIONS);
    shuttle::check_pct(closes_during_work, ITERATIONS, 3);
}
