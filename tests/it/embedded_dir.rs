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

/// Settings that sweep often, so that tests meet the sweep.
pub fn settings() -> Settings {
    let number = |n| NonZero::new(n).expect("test settings are not zero");
    Settings {
        readers: 2,
        queue_length_max: number(10_000),
        write_batch_rows_max: number(256),
        sweep_interval: Duration::from_millis(20),
        sweep_rows_max: number(64),
        durability: Durability::ProcessCrash,
        cache_kib: NonZero::new(2_048).expect("test settings are not zero"),
    }
}

/// Opens the engine in `dir` with the space of the test vectors.
pub async fn open(dir: &Path, clock: Clock) -> Engine {
    embedded::open(dir, settings(), Some((space(), DIMENSION)), clock).await.expect("the engine opens")
}

/// An engine in a new directory, which is removed with the harness.
pub async fn open_embedded() -> Harness {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let clock = Clock::shifted();
    let engine = open(dir.path(), clock.clone()).await;
    let (path, again) = (dir.path().to_owned(), clock.clone());
    Harness::new(engine, clock, dir).with_reopen(move || {
        let (path, clock) = (path.clone(), again.clone());
        Box::pin(async move { open(&path, clock).await })
    })
}
