//! The embedded engine in a directory of its own.

use std::{num::NonZero, path::Path, time::Duration};

use refrain::{
    clock::Clock,
    store::{
        Engine,
        embedded::{self, Durability, Settings},
    },
};

use crate::{
    conformance::Harness,
    data::{DIMENSION, space},
};

/// Often enough that tests meet the sweep, or so seldom that they never do.
const SWEEP_OFTEN: Duration = Duration::from_millis(5);
const SWEEP_NEVER: Duration = Duration::from_hours(24 * 365);

fn settings(sweep_interval: Duration) -> Settings {
    let number = |n| NonZero::new(n).expect("test settings are not zero");
    Settings {
        readers: 2,
        queue_length_max: number(10_000),
        write_batch_rows_max: number(256),
        sweep_interval,
        sweep_rows_max: number(64),
        durability: Durability::ProcessCrash,
        cache_kib: NonZero::new(2_048).expect("test settings are not zero"),
    }
}

/// Opens the engine in `dir` with the space of the test vectors.
pub async fn open(dir: &Path, clock: Clock) -> Engine {
    open_with(dir, settings(SWEEP_OFTEN), clock).await
}

async fn open_with(dir: &Path, settings: Settings, clock: Clock) -> Engine {
    embedded::open(dir, settings, Some((space(), DIMENSION)), clock).await.expect("the engine opens")
}

/// An engine in a new directory, which never sweeps: what has ended must be unseen all the same.
pub async fn open_embedded() -> Harness {
    harness(settings(SWEEP_NEVER)).await
}

/// An engine in a new directory, which sweeps all the time.
pub async fn open_embedded_sweeping() -> Harness {
    harness(settings(SWEEP_OFTEN)).await
}

async fn harness(settings: Settings) -> Harness {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let clock = Clock::shifted();
    let engine = open_with(dir.path(), settings.clone(), clock.clone()).await;
    let (path, again) = (dir.path().to_owned(), clock.clone());
    Harness::new(engine, clock, dir).with_reopen(move || {
        let (path, settings, clock) = (path.clone(), settings.clone(), again.clone());
        Box::pin(async move { open_with(&path, settings, clock).await })
    })
}
