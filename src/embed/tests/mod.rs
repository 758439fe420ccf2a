//! The room as a whole, with the fake model and a counting engine.

mod flights;
mod memo;
mod pick;
mod texts;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;

use super::{fake::Fake, *};
use crate::store;

/// Long enough for a loaded machine, and never waited out when all is well.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn settings() -> Settings {
    Settings {
        workers: 1,
        queue_tokens_max: 10_000,
        queue_rows_max: 1_000,
        batch_tokens_max: 1_024,
        batch_rows_max: 32,
        bulk_rows_max: 4,
        bulk_wait_max: Duration::from_millis(500),
        idle_before_bulk: Duration::from_millis(50),
        text_bytes_max: 64 * 1024,
        texts_max: 64,
        memo_bytes_max: 1 << 20,
        memo_ttl: Duration::from_hours(1),
        memo_writes_in_flight_max: 4,
    }
}

/// An engine's memo that counts, and fails when told.
#[derive(Default)]
pub(super) struct Engine {
    vectors: Mutex<HashMap<(Namespace, MemoKey), Vector>>,
    pub(super) reads: AtomicUsize,
    pub(super) keys_read: AtomicUsize,
    pub(super) writes: AtomicUsize,
    pub(super) fails: AtomicBool,
    /// Writes wait until a permit is added, if this is set.
    pub(super) gate: Option<Semaphore>,
}

impl Engine {
    pub(super) fn len(&self) -> usize {
        self.vectors.lock().len()
    }

    fn check(&self) -> store::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(store::Error::Unavailable { engine: "test", problem: "told to fail".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl MemoStore for Engine {
    async fn read(
        &self,
        namespace: &Namespace,
        keys: &[MemoKey],
        _deadline: Option<Deadline>,
    ) -> store::Result<Vec<Option<Vector>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.keys_read.fetch_add(keys.len(), Ordering::SeqCst);
        self.check()?;
        let vectors = self.vectors.lock();
        Ok(keys.iter().map(|key| vectors.get(&(namespace.clone(), *key)).cloned()).collect())
    }

    async fn write(&self, namespace: &Namespace, new: &[(MemoKey, Vector)], _ttl: Duration) -> store::Result<()> {
        if let Some(gate) = &self.gate {
            let _permit = gate.acquire().await;
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        let new = new.iter().map(|(key, vector)| ((namespace.clone(), *key), vector.clone()));
        self.vectors.lock().extend(new);
        Ok(())
    }
}

pub(super) struct Room {
    pub(super) embedder: Embedder,
    pub(super) model: Fake,
    pub(super) engine: Arc<Engine>,
    pub(super) clock: Clock,
    pub(super) namespace: Namespace,
}

impl Room {
    pub(super) fn new(settings: Settings) -> Self {
        Self::with(Fake::new().with_call_log(), Engine::default(), settings)
    }

    pub(super) fn with(model: Fake, engine: Engine, settings: Settings) -> Self {
        let (engine, clock) = (Arc::new(engine), Clock::shifted());
        let memo = Arc::clone(&engine) as Arc<dyn MemoStore>;
        let embedder = Embedder::start(Arc::new(model.clone()), memo, settings, clock.clone()).unwrap();
        Self { embedder, model, engine, clock, namespace: Namespace::new("tests").unwrap() }
    }

    pub(super) async fn embed(&self, texts: &[&str]) -> Result<Vec<Embedded>, Error> {
        let texts: Vec<Arc<str>> = texts.iter().map(|&text| text.into()).collect();
        self.embedder.embed(&self.namespace, &texts, Purpose::Query, Lane::Interactive, None).await
    }

    pub(super) async fn embed_new(&self, text: &str) -> Result<Embedded, Error> {
        self.embedder.embed_new(&self.namespace, text.into(), Purpose::Query, Lane::Interactive, None).await
    }

    /// Starts a call of its own for one text and returns it.
    pub(super) fn spawn(
        &self,
        text: &str,
        lane: Lane,
        deadline: Option<Deadline>,
    ) -> tokio::task::JoinHandle<Result<Embedded, Error>> {
        let (embedder, namespace, text) = (self.embedder.clone(), self.namespace.clone(), text.into());
        tokio::spawn(async move { embedder.embed_new(&namespace, text, Purpose::Query, lane, deadline).await })
    }

    /// Occupies the worker: one text is with the model and is held there.
    pub(super) async fn occupy(&self) -> tokio::task::JoinHandle<Result<Embedded, Error>> {
        let before = self.model.calls().len();
        self.model.hold();
        let call = self.spawn("the text that keeps the worker busy", Lane::Interactive, None);
        self.arrivals(before + 1).await;
        call
    }

    pub(super) async fn arrivals(&self, count: usize) {
        let model = self.model.clone();
        let came = tokio::task::spawn_blocking(move || model.await_arrivals(count, PATIENCE)).await.unwrap();
        assert!(came, "{count} inferences should have begun");
    }

    /// Waits until so many texts stand in the queue.
    pub(super) async fn rows(&self, rows: usize) {
        self.until(|| self.embedder.0.shop.queue.depth().rows == rows).await;
    }

    pub(super) async fn until(&self, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the condition should have come true");
    }
}
