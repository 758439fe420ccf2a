//! Text to vectors.
//!
//! The way of a text: the memo is asked (this process, then the engine); if neither knows it, it
//! boards a flight, which others who ask for the same text join; the flight waits in the queue's
//! lane, a worker picks it into a batch and runs the model; the vector is remembered in both tiers
//! and given to all who wait.
//!
//! Back of an envelope, one core, a short question: key and memo hit about a microsecond, token
//! count 10 microseconds, inference .6 ms (static int8) to 3 ms (fp32). So the memo pays for
//! itself at a hit rate of one in a thousand, and nothing around the model is worth optimizing
//! before its batches are full.
//!
//! *Architecture invariant:* inference runs on the workers' threads only, and the model is known
//! here by its port alone.

pub mod fake;
pub mod metrics;
pub mod model;
pub mod onnx;
pub mod pick;

mod error;
mod flight;
mod memo;
mod queue;
mod settings;
mod sync;
mod workers;

use std::{
    collections::HashMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};

pub use self::{
    error::Error,
    memo::MemoStats,
    model::{Model, ModelError, Purpose, Session, Spec},
    pick::Lane,
    settings::Settings,
};
use self::{
    flight::{Asker, Board, Boarding, Outcome, Text, Waiter},
    memo::{Address, Memo, Remembered},
    queue::{Queue, Refusal},
    workers::Shop,
};
use crate::{
    clock::Clock,
    error::Invalid,
    store::{MemoKey, MemoStore},
    types::{Deadline, Namespace, PartsHasher, SpaceId, Vector},
};

/// A text's vector and how it came about.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Shape `[dimension]`, unit length.
    pub vector: Vector,
    /// Length of the text in tokens before any cut, prefix and special tokens included.
    pub tokens: u32,
    /// The model did not read the end of the text.
    pub truncated: bool,
    /// The vector was remembered, not computed for this call.
    pub memoized: bool,
    /// How long this call waited for a worker; zero if memoized.
    pub queue_wait: Duration,
    /// How long the model took for the batch; zero if memoized.
    pub inference: Duration,
}

/// Embeds texts; clones share one model, queue and memo.
#[derive(Clone)]
pub struct Embedder(Arc<Inner>);

struct Inner {
    shop: Shop,
    board: Arc<Board>,
    space: SpaceId,
    /// Tokens of a one-letter text: what special tokens and a tokenizer's own mark add.
    letter_tokens: usize,
    settings: Settings,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Bounds the threads that count tokens of large texts.
    counting: Arc<Semaphore>,
}

/// Texts of up to this many bytes together are tokenized where they are (about a millisecond);
/// more leaves the runtime's threads.
const COUNTED_INLINE_BYTES_MAX: usize = 8 * 1024;

/// No text of natural language has more bytes a token than this; longer texts are taken as not
/// fitting without being tokenized.
const BYTES_PER_TOKEN_MAX: usize = 32;

/// Every vocabulary spells ASCII words of up to this length; of longer ones, `WordPiece` gives up at
/// 100 characters.
const WORD_BYTES_MAX: usize = 64;

impl Embedder {
    /// Opens the model's sessions and starts the workers. Blocks while it does (a fraction of a
    /// second a session) and must be called inside a Tokio runtime, which then carries the memo's
    /// background writes.
    pub fn start(
        model: Arc<dyn Model>,
        engine: Arc<dyn MemoStore>,
        settings: Settings,
        clock: Clock,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current()
            .map_err(|_| ModelError::Inference("the embedder must be started inside a Tokio runtime".into()))?;
        let options = memo::Options {
            bytes_max: settings.memo_bytes_max,
            ttl: settings.memo_ttl,
            writes_in_flight_max: settings.memo_writes_in_flight_max,
            dimension: model.spec().dimension,
        };
        let memo = Arc::new(Memo::new(engine, &options, runtime, clock.clone()));
        let board = Arc::new(Board::new(Arc::clone(&memo), clock.instant()));
        let queue = Arc::new(Queue::new(settings.bounds(), settings.limits(), clock.clone()));
        let space = model.spec().space();
        let letter_tokens = model.count_tokens("a")?;
        let shop = Shop { model, queue, memo, clock };
        let workers = settings.worker_count();
        let threads = workers::start(&shop, workers)?;
        let counting = Arc::new(Semaphore::new(workers));
        Ok(Self(Arc::new(Inner {
            shop,
            board,
            space,
            letter_tokens,
            settings,
            threads: Mutex::new(threads),
            counting,
        })))
    }

    /// What shapes the vectors.
    pub fn spec(&self) -> &Spec {
        self.0.shop.model.spec()
    }

    /// The space the vectors lie in.
    pub fn space(&self) -> SpaceId {
        self.0.space
    }

    /// The key under which the vector of a text is remembered. A model without prefixes shares
    /// its vectors between queries and passages.
    pub fn memo_key(&self, purpose: Purpose, text: &str) -> MemoKey {
        let mut hasher = PartsHasher::new("refrain memo v1");
        hasher.part(self.0.space.as_bytes()).part(self.spec().prefix(purpose).as_bytes()).part(text.as_bytes());
        MemoKey(hasher.finish())
    }

    /// Looks in this process's memo only, without waiting.
    pub fn recall(&self, namespace: &Namespace, key: &MemoKey) -> Option<Vector> {
        let address = Address { namespace: namespace.clone(), key: *key };
        self.0.shop.memo.recall(&address).map(|remembered| remembered.vector)
    }

    /// Puts a vector that came from the engine's memo into this process's; counts as a hit there.
    pub fn remember(&self, namespace: &Namespace, key: MemoKey, vector: Vector) {
        self.0.shop.memo.count_engine_hits(1);
        let address = Address { namespace: namespace.clone(), key };
        self.0.shop.memo.keep(address, Remembered { vector, tokens: None });
    }

    /// Embeds texts, in order, one vector each. Asks both tiers of the memo first.
    ///
    /// Dropping the future abandons the wait; texts that others wait for are embedded all the
    /// same, the rest is dropped if no worker has begun it.
    pub async fn embed(
        &self,
        namespace: &Namespace,
        texts: &[Arc<str>],
        purpose: Purpose,
        lane: Lane,
        deadline: Option<Deadline>,
    ) -> Result<Vec<Embedded>, Error> {
        self.check_texts(texts)?;
        let mut wants = self.want(namespace, texts, purpose);
        self.within(deadline, self.ask_memo(namespace, &mut wants, deadline)).await?;
        self.resolve(&mut wants, Asker { lane, deadline }).await?;
        Ok(wants.into_iter().filter_map(|want| want.embedded).collect())
    }

    /// Embeds one text; see [`Embedder::embed`].
    pub async fn embed_one(
        &self,
        namespace: &Namespace,
        text: Arc<str>,
        purpose: Purpose,
        lane: Lane,
        deadline: Option<Deadline>,
    ) -> Result<Embedded, Error> {
        // One text was wanted, and `embed` answers for all or fails.
        self.embed(namespace, &[text], purpose, lane, deadline).await?.pop().ok_or(Error::Closed)
    }

    /// Embeds a text that neither tier of the memo knows, as the caller has found out. One
    /// computation serves all who ask at once, and both tiers remember it.
    ///
    /// Dropping the future abandons the wait, as for [`Embedder::embed`].
    pub async fn embed_new(
        &self,
        namespace: &Namespace,
        text: Arc<str>,
        purpose: Purpose,
        lane: Lane,
        deadline: Option<Deadline>,
    ) -> Result<Embedded, Error> {
        check_text(&text, self.0.settings.text_bytes_max, || "text".into())?;
        let mut wants = self.want(namespace, std::slice::from_ref(&text), purpose);
        self.resolve(&mut wants, Asker { lane, deadline }).await?;
        // One text was asked for, and `resolve` fills all or fails.
        wants.into_iter().find_map(|want| want.embedded).ok_or(Error::Closed)
    }

    /// Runs a real inference through the queue, past the memo: whether texts can be embedded now.
    pub async fn warm_up(&self) -> Result<(), Error> {
        let text: Arc<str> = "a text that shows whether the model answers".into();
        let asker = Asker { lane: Lane::Interactive, deadline: None };
        let (mut waiter, job) = self.0.board.start_alone(&text, 16, asker);
        self.push(Lane::Interactive, vec![(job, 16)])?;
        match waiter.outcome().await {
            Outcome::Landed { .. } => Ok(()),
            Outcome::Failed(error) => Err(error),
            Outcome::Dropped => Err(Error::Closed),
        }
    }

    /// Whether the model reads the whole text under either prefix: all of it, and no word that its
    /// vocabulary lacks. If not, other texts have the same vector.
    ///
    /// Cheap for the usual text: in ASCII a token covers at least one byte, so a short one of short
    /// words fits without being tokenized, and one of more than 32 bytes a token is taken as not
    /// fitting.
    pub fn fits(&self, text: &str) -> Result<bool, Error> {
        let spec = self.spec();
        let prefix = [&spec.query_prefix, &spec.passage_prefix].into_iter().max_by_key(|prefix| prefix.len());
        let prefix = prefix.map_or("", String::as_str);
        let bytes = prefix.len() + text.len();
        if bytes > spec.tokens_max.saturating_mul(BYTES_PER_TOKEN_MAX) {
            return Ok(false);
        }
        // Outside ASCII a normalizer can make several characters of one.
        let plain = prefix.is_ascii() && text.is_ascii() && text.split(' ').all(|word| word.len() <= WORD_BYTES_MAX);
        if plain && bytes + self.0.letter_tokens <= spec.tokens_max {
            return Ok(true);
        }
        let model = &self.0.shop.model;
        Ok(model.count_tokens(&format!("{prefix}{text}"))? <= spec.tokens_max && model.knows(text)?)
    }

    /// How the memo does.
    pub fn stats(&self) -> MemoStats {
        self.0.shop.memo.stats()
    }

    /// Takes nothing more, embeds what waits, and waits for the workers and the memo's writes.
    pub async fn close(&self) {
        self.0.shop.queue.close();
        let threads = std::mem::take(&mut *self.0.threads.lock());
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok())).await;
        if !joined.unwrap_or(false) {
            tracing::error!("an embedding worker ended by a panic");
        }
        self.0.shop.memo.flush().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An embedder that was not closed lets its threads go nevertheless.
        self.shop.queue.close();
    }
}

/// A text on its way to its vector.
struct Want {
    address: Address,
    /// The text as the model reads it.
    text: Arc<str>,
    /// What the memo knows.
    remembered: Option<Remembered>,
    tokens: Option<usize>,
    embedded: Option<Embedded>,
}

impl Embedder {
    fn check_texts(&self, texts: &[Arc<str>]) -> Result<(), Invalid> {
        let settings = &self.0.settings;
        if texts.is_empty() || texts.len() > settings.texts_max {
            let problem = format!(
                "holds {} texts; 1 to {} are allowed in a call (embedding.texts_max)",
                texts.len(),
                settings.texts_max
            );
            return Err(Invalid::new("texts", problem));
        }
        let check =
            |(at, text): (usize, &Arc<str>)| check_text(text, settings.text_bytes_max, || format!("texts[{at}]"));
        texts.iter().enumerate().try_for_each(check)
    }

    fn want(&self, namespace: &Namespace, texts: &[Arc<str>], purpose: Purpose) -> Vec<Want> {
        let prefix = self.spec().prefix(purpose);
        let want = |text: &Arc<str>| Want {
            address: Address { namespace: namespace.clone(), key: self.memo_key(purpose, text) },
            text: if prefix.is_empty() { Arc::clone(text) } else { format!("{prefix}{text}").into() },
            remembered: None,
            tokens: None,
            embedded: None,
        };
        texts.iter().map(want).collect()
    }

    /// Asks this process's memo, then the engine's, once for all that is still missing.
    async fn ask_memo(&self, namespace: &Namespace, wants: &mut [Want], deadline: Option<Deadline>) {
        let memo = &self.0.shop.memo;
        // Where each missing key stands among the keys read, so that a repeated text is read once.
        let mut places: HashMap<MemoKey, usize> = HashMap::new();
        let mut keys = Vec::new();
        for want in wants.iter_mut() {
            want.remembered = memo.recall(&want.address);
            if want.remembered.is_none() {
                places.entry(want.address.key).or_insert_with(|| {
                    keys.push(want.address.key);
                    keys.len() - 1
                });
            }
        }
        if keys.is_empty() {
            return;
        }
        let found = memo.read(namespace, &keys, deadline).await;
        for want in wants.iter_mut().filter(|want| want.remembered.is_none()) {
            let vector = places.get(&want.address.key).and_then(|&at| found[at].clone());
            want.remembered = vector.map(|vector| Remembered { vector, tokens: None });
        }
    }

    /// Fills in every vector that is still missing, or fails.
    async fn resolve(&self, wants: &mut [Want], asker: Asker) -> Result<(), Error> {
        self.within(asker.deadline, self.count(wants)).await??;
        for want in wants.iter_mut() {
            if let Some(Remembered { vector, .. }) = want.remembered.take() {
                want.embedded = Some(self.memoized(vector, want.tokens));
            }
        }
        // A flight that was dropped just as this caller joined it is started anew; that it was
        // this caller's own deadline that passed is found out by `within`.
        while wants.iter().any(|want| want.embedded.is_none()) {
            let since = self.0.shop.clock.instant();
            for (at, mut waiter) in self.board(wants, asker)? {
                match self.within(asker.deadline, waiter.outcome()).await? {
                    Outcome::Landed { vector, taken, inference } => {
                        let want = &mut wants[at];
                        want.embedded = Some(self.computed(vector, want.tokens, (since, taken), inference));
                    }
                    Outcome::Failed(error) => return Err(error),
                    Outcome::Dropped => {}
                }
            }
        }
        Ok(())
    }

    /// Boards a flight for every text that is still missing; what must be computed goes to the
    /// queue in one push, all or none. Does not wait, so that no flight is left without a job.
    fn board(&self, wants: &mut [Want], asker: Asker) -> Result<Vec<(usize, Waiter)>, Error> {
        let tokens_max = self.spec().tokens_max;
        let mut waiters = Vec::new();
        let mut jobs = Vec::new();
        let mut promotes = false;
        for (at, want) in wants.iter_mut().enumerate().filter(|(_, want)| want.embedded.is_none()) {
            let tokens = want.tokens.unwrap_or(tokens_max);
            match self.0.board.board(&want.address, &want.text, tokens, asker) {
                Boarding::Remembered(remembered) => {
                    want.embedded = Some(self.memoized(remembered.vector, want.tokens));
                }
                Boarding::Joined { waiter, promoted } => {
                    promotes |= promoted;
                    waiters.push((at, waiter));
                }
                Boarding::Started { waiter, job } => {
                    waiters.push((at, waiter));
                    jobs.push((job, tokens.min(tokens_max)));
                }
            }
        }
        // First, since a refused push returns at once, and the flights joined are others' too.
        if promotes {
            self.0.shop.queue.promote();
        }
        if !jobs.is_empty() {
            self.0.shop.memo.count_misses(jobs.len() as u64);
            self.push(asker.lane, jobs)?;
        }
        Ok(waiters)
    }

    fn push(&self, lane: Lane, jobs: Vec<(Text, usize)>) -> Result<(), Error> {
        let pushed = self.0.shop.queue.push(lane, jobs);
        metrics::queue_tokens(self.0.shop.queue.depth().tokens);
        let Err(refused) = pushed else { return Ok(()) };
        let error = match refused.why {
            Refusal::Full { waiting_tokens, retry_after } => {
                metrics::refused(refused.jobs.len());
                let retry_after = retry_after.clamp(Duration::from_millis(20), Duration::from_secs(5));
                Error::Overloaded { waiting_tokens, retry_after }
            }
            Refusal::Closed => Error::Closed,
        };
        // Others may have joined these flights already; they are told the same.
        for (job, _) in refused.jobs {
            job.end(&Outcome::Failed(error.clone()));
        }
        Err(error)
    }

    /// Counts the tokens of every text whose length is not known yet.
    async fn count(&self, wants: &mut [Want]) -> Result<(), Error> {
        for want in wants.iter_mut() {
            want.tokens = want.tokens.or_else(|| want.remembered.as_ref().and_then(|remembered| remembered.tokens));
        }
        let texts: Vec<_> =
            wants.iter().filter(|want| want.tokens.is_none()).map(|want| Arc::clone(&want.text)).collect();
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let model = Arc::clone(&self.0.shop.model);
        let count = move || texts.iter().map(|text| model.count_tokens(text)).collect::<Result<Vec<_>, _>>();
        let counts = if bytes <= COUNTED_INLINE_BYTES_MAX {
            count()?
        } else {
            // The permit goes with the thread: a caller that leaves does not free it too early.
            let permit = Arc::clone(&self.0.counting).acquire_owned().await.map_err(|_| Error::Closed)?;
            let counted = tokio::task::spawn_blocking(move || (count(), permit).0).await;
            counted.map_err(|_| ModelError::Inference("the tokenizer panicked".into()))??
        };
        let unknown = wants.iter_mut().filter(|want| want.tokens.is_none());
        for (want, tokens) in unknown.zip(counts) {
            want.tokens = Some(tokens);
        }
        Ok(())
    }

    fn memoized(&self, vector: Vector, tokens: Option<usize>) -> Embedded {
        let (tokens, truncated) = self.length(tokens);
        let (queue_wait, inference) = (Duration::ZERO, Duration::ZERO);
        Embedded { vector, tokens, truncated, memoized: true, queue_wait, inference }
    }

    fn computed(
        &self,
        vector: Vector,
        tokens: Option<usize>,
        (since, taken): (Instant, Instant),
        inference: Duration,
    ) -> Embedded {
        let (tokens, truncated) = self.length(tokens);
        let queue_wait = taken.saturating_duration_since(since);
        Embedded { vector, tokens, truncated, memoized: false, queue_wait, inference }
    }

    fn length(&self, tokens: Option<usize>) -> (u32, bool) {
        let tokens = tokens.unwrap_or(0);
        (u32::try_from(tokens).unwrap_or(u32::MAX), tokens > self.spec().tokens_max)
    }

    /// Ends a wait at its deadline.
    async fn within<T>(&self, deadline: Option<Deadline>, wait: impl Future<Output = T>) -> Result<T, Error> {
        let Some(deadline) = deadline else { return Ok(wait.await) };
        let left = deadline.remaining(self.0.shop.clock.instant()).ok_or(Error::DeadlinePassed)?;
        tokio::time::timeout(left, wait).await.map_err(|_| Error::DeadlinePassed)
    }
}

fn check_text(text: &str, bytes_max: usize, field: impl Fn() -> String) -> Result<(), Invalid> {
    if text.len() > bytes_max {
        let problem = format!("has {} bytes; at most {bytes_max} are allowed (embedding.text_bytes_max)", text.len());
        return Err(Invalid::new(field(), problem));
    }
    if text.trim().is_empty() {
        return Err(Invalid::new(field(), "is empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
