//! The threads that run the model, each with a session of its own.
//!
//! Inference is long and cannot be interrupted, so it never runs on the runtime's threads. A
//! batch that fails, even by a panic, fails its own texts only: the session is dropped, a new one
//! is opened for the next batch, and the thread lives on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use super::{
    error::Error,
    flight::{Outcome, Text},
    memo::Memo,
    metrics,
    model::{Model, ModelError, Session},
    pick::Role,
    queue::{Batch, Job, Queue},
};
use crate::{
    clock::Clock,
    store::MemoKey,
    types::{Namespace, Vector},
};

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shop {
    pub(super) model: Arc<dyn Model>,
    pub(super) queue: Arc<Queue<Text>>,
    pub(super) memo: Arc<Memo>,
    pub(super) clock: Clock,
}

/// Opens `count` sessions, so that a model that cannot run fails here, and starts a thread for
/// each. With two or more, the first is reserved for the interactive lane.
pub(super) fn start(shop: &Shop, count: usize) -> Result<Vec<JoinHandle<()>>, ModelError> {
    let sessions = (0..count).map(|_| shop.model.session()).collect::<Result<Vec<_>, _>>()?;
    let mut threads = Vec::with_capacity(count);
    for (at, session) in sessions.into_iter().enumerate() {
        let role = if at == 0 && count >= 2 { Role::Reserved } else { Role::General };
        let worker = Worker { shop: shop.clone(), session: Some(session) };
        let thread = std::thread::Builder::new().name(format!("embed-{at}")).spawn(move || worker.run(role));
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                shop.queue.close();
                return Err(ModelError::Inference(format!("a worker thread could not be started: {error}")));
            }
        }
    }
    Ok(threads)
}

struct Worker {
    shop: Shop,
    /// `None` after a failure, until the next batch opens a new one.
    session: Option<Box<dyn Session>>,
}

impl Worker {
    fn run(mut self, role: Role) {
        while let Some(batch) = self.shop.queue.next_batch(role) {
            self.embed(batch);
        }
    }

    fn embed(&mut self, batch: Batch<Text>) {
        let Batch { jobs, padded_tokens, taken } = batch;
        metrics::queue_tokens(self.shop.queue.depth().tokens);
        metrics::batch(jobs.len(), padded_tokens);
        for (job, enqueued) in &jobs {
            metrics::queue_wait(job.view().lane, taken.saturating_duration_since(*enqueued));
        }
        let texts: Vec<Arc<str>> = jobs.iter().map(|(job, _)| Arc::clone(job.text())).collect();
        let started = self.shop.clock.instant();
        let vectors = self.infer(&texts);
        let inference = self.shop.clock.instant().saturating_duration_since(started);
        metrics::inference(inference);

        let jobs = jobs.into_iter().map(|(job, _)| job);
        match vectors {
            Ok(vectors) => {
                let mut written = Written::default();
                for (job, vector) in jobs.zip(vectors) {
                    written.note(&job, &vector);
                    job.end(&Outcome::Landed { vector, taken, inference });
                }
                written.write_behind(&self.shop.memo);
            }
            Err(error) => {
                metrics::failed();
                tracing::error!(%error, rows = texts.len(), padded_tokens, "a batch could not be embedded");
                let error = Error::from(error);
                jobs.for_each(|job| job.end(&Outcome::Failed(error.clone())));
            }
        }
    }

    /// One vector a text, unit length, or why not. The session survives only a success.
    fn infer(&mut self, texts: &[Arc<str>]) -> Result<Vec<Vector>, ModelError> {
        let (model, session) = (&self.shop.model, self.session.take());
        let attempt = AssertUnwindSafe(|| {
            let mut session = session.map_or_else(|| model.session(), Ok)?;
            let vectors = session.embed(texts)?;
            Ok::<_, ModelError>((session, checked(vectors, texts.len(), model.spec().dimension)?))
        });
        let (session, vectors) = catch_unwind(attempt).unwrap_or_else(|_| {
            // The panic hook has already written the message to the log.
            Err(ModelError::Inference("the model panicked".into()))
        })?;
        self.session = Some(session);
        Ok(vectors)
    }
}

/// Checks what a model returned and scales it to unit length.
fn checked(vectors: Vec<Vec<f32>>, rows: usize, dimension: usize) -> Result<Vec<Vector>, ModelError> {
    if vectors.len() != rows {
        return Err(ModelError::Inference(format!("{} vectors came for {rows} texts", vectors.len())));
    }
    let check = |values: Vec<f32>| {
        if values.len() != dimension {
            return Err(ModelError::Inference(format!("a vector has {} components, not {dimension}", values.len())));
        }
        Vector::new(values).map_err(|invalid| ModelError::Inference(invalid.to_string()))
    };
    vectors.into_iter().map(check).collect()
}

/// The vectors of a batch by namespace, for one write each.
#[derive(Default)]
struct Written(Vec<(Namespace, Vec<(MemoKey, Vector)>)>);

impl Written {
    fn note(&mut self, job: &Text, vector: &Vector) {
        let Some(address) = job.address() else { return };
        let pair = (address.key, vector.clone());
        match self.0.iter_mut().find(|(namespace, _)| *namespace == address.namespace) {
            Some((_, vectors)) => vectors.push(pair),
            None => self.0.push((address.namespace.clone(), vec![pair])),
        }
    }

    fn write_behind(self, memo: &Memo) {
        for (namespace, vectors) in self.0 {
            memo.write_behind(namespace, vectors);
        }
    }
}
