//! The semantic cache: have we answered this before?
//!
//! [`Cache`] is the shell that moves data between the embedder and the engine; what it decides, it
//! decides in [`policy`], a pure function of values and the time. A lookup never fails because a
//! store does: it misses and its [`Receipt`] says so.

pub mod policy;

mod error;
mod receipt;
mod selector;
mod stats;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use self::policy::{Decision, Terms};
pub use self::{
    error::Error,
    receipt::{MissReason, Outcome, Receipt, RunnerUp, Tier, Timings},
    selector::Selector,
    stats::Stats,
};
use crate::{
    clock::Clock,
    config,
    embed::{Embedder, Lane, model::Purpose},
    error::{Fault as _, Invalid, Kind},
    store::{CacheStore, Candidate, Cursor, Detail, Entry, Nearest, NearestQuery, NewEntry, RequestId, Usage},
    types::{Attributes, Category, Deadline, EntryId, Namespace, Prompt, Timestamp, Vector},
};

/// Lookups of one batch that run at a time: enough to fill an embedding batch, few enough that a
/// batch does not crowd single lookups out of the search queue.
const BATCH_CONCURRENCY: usize = 16;
/// Entries with their responses read at a time for a listing, which bounds what it holds in memory
/// beyond a message.
const LIST_STEP: usize = 32;
/// Entries read, matched and deleted at a time while a selector is worked through.
const INVALIDATE_PAGE: usize = 500;

/// A question.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked.
    pub prompt: Prompt,
    /// What an entry must agree on.
    pub attributes: Attributes,
    /// Least similarity of a semantic hit; `None` takes the setting.
    pub min_similarity: Option<f32>,
    /// Oldest acceptable entry.
    pub max_age: Option<Duration>,
    /// Which tiers to ask.
    pub tiers: Tiers,
    /// Answer as a miss without looking.
    pub bypass: bool,
}

/// Which tiers a lookup asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// The same prompt.
    pub exact: bool,
    /// A prompt that means the same.
    pub semantic: bool,
}

impl Tiers {
    /// Both.
    pub const ALL: Self = Self { exact: true, semantic: true };
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The entry, on a hit.
    pub entry: Option<Entry>,
    /// The account of the lookup.
    pub receipt: Receipt,
}

/// An answer to keep.
#[derive(Clone, Debug)]
pub struct NewAnswer {
    /// What was asked.
    pub prompt: Prompt,
    /// What a lookup must agree on.
    pub attributes: Attributes,
    /// The kind of question.
    pub category: Option<Category>,
    /// The response, not empty.
    pub response: Bytes,
    /// Its media type.
    pub content_type: String,
    /// What it cost.
    pub usage: Usage,
    /// How long to keep it.
    pub expiration: Expiration,
    /// Makes a repeat harmless.
    pub request: Option<RequestId>,
}

/// How long to keep an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiration {
    /// As the category's setting says, else the cache's.
    Default,
    /// From now on.
    After(Duration),
    /// Until then.
    At(Timestamp),
}

/// What a store did.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The entry's key.
    pub id: EntryId,
    /// Nothing stood under the key before.
    pub created: bool,
    /// When it ends.
    pub expires: Timestamp,
    /// The model does not read all of the prompt; only the same prompt finds the entry.
    pub exact_only: bool,
    /// Where the time went.
    pub timings: Timings,
}

/// The cache of one sidecar. Clones share everything.
#[derive(Clone)]
pub struct Cache {
    store: Arc<dyn CacheStore>,
    embedder: Embedder,
    settings: Arc<config::Cache>,
    stats: Arc<stats::Collector>,
    clock: Clock,
}

impl Cache {
    /// A cache over an engine and an embedder.
    pub fn new(store: Arc<dyn CacheStore>, embedder: Embedder, settings: config::Cache, clock: Clock) -> Self {
        Self { store, embedder, settings: Arc::new(settings), stats: Arc::default(), clock }
    }

    /// Looks for an answer.
    ///
    /// Envelope, on two cores with a local Redis (`cargo bench --bench lookup`): an exact hit is two
    /// BLAKE3 hashes (half a microsecond each) and one round trip (85 us with the body); a semantic
    /// hit with a known vector adds one search (.1 ms among a thousand entries, .9 ms among ten
    /// thousand) and one read of the body; a new text adds one inference (3 to 5 ms, fp32).
    /// Vectors are shared, never copied.
    ///
    /// Cancelling it abandons the caller's wait only: an inference that others wait for goes on.
    pub async fn lookup(&self, namespace: &Namespace, ask: Ask, deadline: Option<Deadline>) -> Result<Answer, Error> {
        let mut lookup = Lookup::new(self, namespace, &ask, deadline);
        let found = lookup.run().await?;
        let answer = lookup.finish(found);
        self.stats.count_lookup(namespace, &answer);
        Ok(answer)
    }

    /// Looks several prompts up; one that fails does so alone. Results keep the order.
    pub async fn lookup_batch(
        &self,
        namespace: &Namespace,
        asks: Vec<Result<Ask, Invalid>>,
        deadline: Option<Deadline>,
    ) -> Vec<Result<Answer, Error>> {
        stream::iter(asks)
            .map(|ask| async move { self.lookup(namespace, ask?, deadline).await })
            .buffered(BATCH_CONCURRENCY)
            .collect()
            .await
    }

    /// Keeps an answer, replacing what was kept for the same prompt and attributes.
    ///
    /// Envelope: the vector as in a lookup (usually in the memo, since a lookup came before), then
    /// one atomic write of the entry.
    pub async fn store(
        &self,
        namespace: &Namespace,
        answer: NewAnswer,
        deadline: Option<Deadline>,
    ) -> Result<Stored, Error> {
        let begun = self.clock.instant();
        let created = self.clock.now();
        let expires = self.expiry(&answer, created)?;
        if answer.response.is_empty() {
            return Err(Invalid::new("response", "is empty; an empty answer is not worth keeping").into());
        }
        let mut timings = Timings::default();
        let id = EntryId::derive(&answer.prompt, &answer.attributes);
        let exact_only = !self.embedder.fits(answer.prompt.as_str())?;
        let vector = if exact_only {
            None
        } else {
            let text = answer.prompt.shared();
            let one = self.embedder.embed_one(namespace, text, Purpose::Query, Lane::Interactive, deadline).await?;
            timings.queue = one.queue_wait;
            timings.embed = one.inference;
            Some((self.embedder.space(), one.vector))
        };
        let entry = Entry {
            id,
            prompt: answer.prompt,
            attributes: answer.attributes,
            category: answer.category,
            response: answer.response,
            content_type: answer.content_type,
            usage: answer.usage,
            created,
            expires,
        };
        let write_begun = self.clock.instant();
        let request = answer.request.map(|request| request.about([&id.as_bytes()[..]]));
        let put = self.store.put(namespace, NewEntry { entry, vector }, request.as_ref()).await?;
        let done = self.clock.instant();
        timings.store = done - write_begun;
        timings.total = done - begun;
        self.stats.count_store(namespace, &timings);
        Ok(Stored { id, created: put.created, expires: put.expires, exact_only, timings })
    }

    /// Reads one entry.
    pub async fn entry(&self, namespace: &Namespace, id: &EntryId, deadline: Option<Deadline>) -> Result<Entry, Error> {
        let probe = self.store.probe(namespace, id, None, deadline).await?;
        let now = self.clock.now();
        probe.entry.filter(|entry| entry.expires > now).ok_or(Error::UnknownEntry(*id))
    }

    /// Lists live entries, soonest to expire first, at most `count`, and no more once their
    /// responses have passed `bytes_max`. The second value is where to go on.
    pub async fn list(
        &self,
        namespace: &Namespace,
        mut after: Option<Cursor>,
        count: usize,
        detail: Detail,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Option<Cursor>), Error> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            let wanted = count - entries.len();
            let step = match detail {
                Detail::Whole => wanted.min(LIST_STEP),
                Detail::Head => wanted,
            };
            let (page, next) = self.store.list(namespace, after, step, detail).await?;
            bytes += page.iter().map(|entry| entry.response.len()).sum::<usize>();
            entries.extend(page);
            if next.is_none() || entries.len() >= count || bytes >= bytes_max {
                return Ok((entries, next));
            }
            after = next;
        }
    }

    /// Deletes one entry.
    pub async fn delete(&self, namespace: &Namespace, id: EntryId, request: Option<&RequestId>) -> Result<(), Error> {
        let request = request.map(|request| request.about([&id.as_bytes()[..]]));
        match self.store.delete(namespace, &[id], request.as_ref()).await? {
            0 => Err(Error::UnknownEntry(id)),
            _ => Ok(()),
        }
    }

    /// Deletes every entry that `selector` matches and returns how many; with `dry_run` only
    /// counts them.
    ///
    /// Everything at once is one atomic step, however large the namespace. A narrower selector is
    /// worked through page by page: entries stored meanwhile may escape it, and a repeated request
    /// does nothing once the first has ended.
    pub async fn invalidate(
        &self,
        namespace: &Namespace,
        selector: &Selector,
        dry_run: bool,
        request: Option<&RequestId>,
    ) -> Result<u64, Error> {
        if selector.all {
            return Ok(if dry_run {
                self.store.count(namespace).await?
            } else {
                self.store.empty(namespace, request).await?
            });
        }
        // A dry run changes nothing, so that its repeat may as well count anew.
        let request = request.filter(|_| !dry_run).map(|request| request.about([&selector.fingerprint()[..]]));
        if let Some(request) = &request
            && let Some(count) = self.store.recall_outcome(namespace, request).await?
        {
            return Ok(count);
        }
        let count = match &selector.ids {
            Some(ids) => self.invalidate_ids(namespace, ids, selector, dry_run).await?,
            None => self.invalidate_pages(namespace, selector, dry_run).await?,
        };
        if let Some(request) = &request {
            self.store.remember_outcome(namespace, request, count).await?;
        }
        Ok(count)
    }

    async fn invalidate_pages(&self, namespace: &Namespace, selector: &Selector, dry_run: bool) -> Result<u64, Error> {
        let (mut after, mut count) = (None, 0);
        loop {
            let (page, next) = self.store.list(namespace, after, INVALIDATE_PAGE, Detail::Head).await?;
            count += self.delete_matching(namespace, &page, selector, dry_run).await?;
            if next.is_none() {
                return Ok(count);
            }
            after = next;
        }
    }

    async fn invalidate_ids(
        &self,
        namespace: &Namespace,
        ids: &[EntryId],
        selector: &Selector,
        dry_run: bool,
    ) -> Result<u64, Error> {
        let probes = stream::iter(ids.to_vec())
            .map(|id| async move { self.store.probe(namespace, &id, None, None).await })
            .buffered(BATCH_CONCURRENCY);
        // A selector does not look at responses, and a thousand of them would fill the memory.
        let head = |entry| Entry { response: Bytes::new(), ..entry };
        let found: Vec<Entry> =
            probes.try_filter_map(|probe| async move { Ok(probe.entry.map(head)) }).try_collect().await?;
        self.delete_matching(namespace, &found, selector, dry_run).await
    }

    async fn delete_matching(
        &self,
        namespace: &Namespace,
        entries: &[Entry],
        selector: &Selector,
        dry_run: bool,
    ) -> Result<u64, Error> {
        let now = self.clock.now();
        let ids: Vec<EntryId> =
            entries.iter().filter(|entry| selector.matches(entry, now)).map(|entry| entry.id).collect();
        if dry_run || ids.is_empty() {
            return Ok(ids.len() as u64);
        }
        Ok(self.store.delete(namespace, &ids, None).await?)
    }

    /// The counters of a namespace.
    pub async fn stats(&self, namespace: &Namespace) -> Result<Stats, Error> {
        let (counters, entries) = futures::try_join!(self.store.counters(namespace), self.store.count(namespace))?;
        Ok(self.stats.total(namespace, counters, entries))
    }

    /// Adds the counters collected since the last time to the engine's. Called about once a
    /// second, and once more when the server stops.
    pub async fn flush_stats(&self) {
        self.stats.flush(&*self.store).await;
    }

    fn expiry(&self, answer: &NewAnswer, now: Timestamp) -> Result<Timestamp, Invalid> {
        let ttl_max = self.settings.ttl_max;
        let too_long = || format!("lies further away than {} (cache.ttl_max)", humantime::format_duration(ttl_max));
        match answer.expiration {
            Expiration::Default => {
                let of_category = answer.category.as_ref().and_then(|name| self.settings.categories.get(name.as_str()));
                Ok(now.plus(of_category.map_or(self.settings.ttl_default, |ttl| ttl.0)))
            }
            Expiration::After(ttl) if ttl.is_zero() => Err(Invalid::new("ttl", "is not more than zero")),
            Expiration::After(ttl) if ttl > ttl_max => Err(Invalid::new("ttl", too_long())),
            Expiration::After(ttl) => Ok(now.plus(ttl)),
            Expiration::At(time) if time <= now => Err(Invalid::new("expire_time", "lies in the past")),
            Expiration::At(time) if time > now.plus(ttl_max) => Err(Invalid::new("expire_time", too_long())),
            Expiration::At(time) => Ok(time),
        }
    }
}

/// One lookup on its way: what it knows so far, for the receipt.
struct Lookup<'a> {
    cache: &'a Cache,
    namespace: &'a Namespace,
    ask: &'a Ask,
    id: EntryId,
    terms: Terms,
    deadline: Option<Deadline>,
    begun: std::time::Instant,
    receipt: Receipt,
}

/// How a step of a lookup ended early.
enum Stop {
    /// With an answer: nothing further can be found.
    Miss(MissReason),
    /// Without one: the caller gets an error.
    Fail(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error)
    }
}

impl<'a> Lookup<'a> {
    fn new(cache: &'a Cache, namespace: &'a Namespace, ask: &'a Ask, deadline: Option<Deadline>) -> Self {
        let min_similarity = ask.min_similarity.unwrap_or(cache.settings.min_similarity);
        Self {
            cache,
            namespace,
            ask,
            id: EntryId::derive(&ask.prompt, &ask.attributes),
            terms: Terms { min_similarity, max_age: ask.max_age, now: cache.clock.now() },
            deadline,
            begun: cache.clock.instant(),
            receipt: Receipt::new(cache.embedder.space()),
        }
    }

    /// Runs the tiers in order; `Ok(Some)` is a hit.
    async fn run(&mut self) -> Result<Option<Entry>, Error> {
        match self.tiers().await {
            Ok(entry) => Ok(Some(entry)),
            Err(Stop::Miss(reason)) => {
                self.receipt.miss_reason = Some(reason);
                Ok(None)
            }
            Err(Stop::Fail(error)) => Err(error),
        }
    }

    async fn tiers(&mut self) -> Result<Entry, Stop> {
        if self.ask.bypass {
            return Err(Stop::Miss(MissReason::Bypassed));
        }
        let mut why_not_exact = MissReason::Bypassed;
        let mut vector = None;
        if self.ask.tiers.exact {
            match self.exact().await? {
                (Some(entry), _) if self.terms.admits(entry.created, entry.expires) => {
                    self.receipt.hit(Tier::Exact, &entry, self.terms.now);
                    return Ok(entry);
                }
                (entry, known) => {
                    if entry.is_some() {
                        why_not_exact = MissReason::Expired;
                    }
                    vector = known;
                }
            }
        }
        if !self.ask.tiers.semantic {
            return Err(Stop::Miss(why_not_exact));
        }
        self.receipt.min_similarity = Some(self.terms.min_similarity);
        let vector = self.vector(vector).await?;
        let mut nearest = self.nearest(&vector).await?;
        loop {
            let decision = policy::decide(&nearest, &self.terms);
            self.receipt.considered(&nearest, &decision);
            let Decision::Hit(at) = decision else {
                return Err(Stop::Miss(self.miss_reason(&decision, why_not_exact)));
            };
            let candidate = nearest.candidates.remove(at);
            if let Some(entry) = self.body(&candidate).await? {
                self.receipt.hit(Tier::Semantic, &entry, self.terms.now);
                return Ok(entry);
            }
            // It was deleted between the search and the read: the next nearest may still do.
        }
    }

    /// One round trip: the entry under the prompt's own key and, unless this process knows it
    /// already, the prompt's vector.
    async fn exact(&mut self) -> Result<(Option<Entry>, Option<Vector>), Stop> {
        let embedder = &self.cache.embedder;
        let memo_key = embedder.memo_key(Purpose::Query, self.ask.prompt.as_str());
        let known = if self.ask.tiers.semantic { embedder.recall(self.namespace, &memo_key) } else { None };
        let wanted = (self.ask.tiers.semantic && known.is_none()).then_some(&memo_key);
        let begun = self.cache.clock.instant();
        let probe = self.cache.store.probe(self.namespace, &self.id, wanted, Some(self.store_deadline())).await;
        self.receipt.timings.store += self.cache.clock.instant() - begun;
        let probe = probe.map_err(|error| self.degrade("store", error.into()))?;
        if let Some(vector) = &probe.vector {
            embedder.remember(self.namespace, memo_key, vector.clone());
        }
        let vector = known.or(probe.vector);
        self.receipt.memoized = vector.is_some();
        Ok((probe.entry, vector))
    }

    async fn vector(&mut self, known: Option<Vector>) -> Result<Vector, Stop> {
        let (cache, prompt) = (self.cache, &self.ask.prompt);
        // A text that is cut has the vector of its beginning, and one with words that the vocabulary
        // lacks that of any other such words: different prompts would look the same, so only an
        // exact hit can be trusted. The memo may hold such a vector, since any text can be embedded,
        // so what it knows is used only after this.
        if !cache.embedder.fits(prompt.as_str()).map_err(Error::from)? {
            return Err(Stop::Miss(MissReason::PartlyRead));
        }
        if let Some(vector) = known {
            return Ok(vector);
        }
        let embedded = if self.ask.tiers.exact {
            // The probe has already asked the engine's memo.
            let text = prompt.shared();
            cache.embedder.embed_new(self.namespace, text, Purpose::Query, Lane::Interactive, self.deadline).await
        } else {
            cache
                .embedder
                .embed_one(self.namespace, prompt.shared(), Purpose::Query, Lane::Interactive, self.deadline)
                .await
        }
        .map_err(Error::from)?;
        self.receipt.timings.queue = embedded.queue_wait;
        self.receipt.timings.embed = embedded.inference;
        self.receipt.memoized = embedded.memoized;
        Ok(embedded.vector)
    }

    async fn nearest(&mut self, vector: &Vector) -> Result<Nearest, Stop> {
        let begun = self.cache.clock.instant();
        let query = NearestQuery {
            namespace: self.namespace,
            space: self.cache.embedder.space(),
            vector,
            attributes: &self.ask.attributes,
            count: self.cache.settings.neighbors,
            deadline: Some(self.store_deadline()),
        };
        let nearest = self.cache.store.nearest(query).await;
        self.receipt.timings.search += self.cache.clock.instant() - begun;
        let nearest = nearest.map_err(|error| self.degrade("search", error.into()))?;
        if nearest.partial {
            self.receipt.degraded = Some("search: the index is being built".into());
        }
        Ok(nearest)
    }

    /// Reads the body of a chosen candidate; `None` if it is gone or was replaced by one that the
    /// terms do not admit.
    async fn body(&mut self, candidate: &Candidate) -> Result<Option<Entry>, Stop> {
        let begun = self.cache.clock.instant();
        let probe = self.cache.store.probe(self.namespace, &candidate.id, None, Some(self.store_deadline())).await;
        self.receipt.timings.store += self.cache.clock.instant() - begun;
        let entry = probe.map_err(|error| self.degrade("store", error.into()))?.entry;
        Ok(entry.filter(|entry| self.terms.admits(entry.created, entry.expires)))
    }

    /// A store that fails turns the lookup into a miss that says so; a caller who waits no longer
    /// gets an error, since nobody would read the receipt.
    fn degrade(&mut self, part: &str, error: Error) -> Stop {
        if self.deadline.is_some_and(|deadline| deadline.is_past(self.cache.clock.instant())) {
            return Stop::Fail(Error::DeadlinePassed);
        }
        match error.kind() {
            Kind::Unavailable | Kind::Overloaded | Kind::WrongState | Kind::Bug => {
                // One line a lookup would drown the log of an outage, whose beginning and end are
                // logged where the engine is watched; a bug of ours is worth a line each time.
                if error.kind() == Kind::Bug {
                    tracing::error!(part, reason = error.reason(), %error, "a lookup is degraded");
                } else {
                    tracing::debug!(part, reason = error.reason(), %error, "a lookup is degraded");
                }
                self.receipt.degraded = Some(format!("{part}: {}", error.reason()));
                Stop::Miss(MissReason::Degraded)
            }
            _ => Stop::Fail(error),
        }
    }

    fn miss_reason(&self, decision: &Decision, why_not_exact: MissReason) -> MissReason {
        match decision {
            // What is missing may be in the part of the index that is not built yet.
            _ if self.receipt.degraded.is_some() => MissReason::Degraded,
            // The very prompt is there but too old: that says more than how far others are.
            _ if why_not_exact == MissReason::Expired => MissReason::Expired,
            Decision::Miss(reason) => *reason,
            Decision::Hit(_) => MissReason::BelowFloor,
        }
    }

    /// The engine gets its own, shorter time, so that a slow store leaves the caller time to make
    /// the call it wanted to save.
    fn store_deadline(&self) -> Deadline {
        let own = self.cache.clock.deadline_in(self.cache.settings.store_timeout);
        self.deadline.map_or(own, |deadline| deadline.min(own))
    }

    fn finish(mut self, entry: Option<Entry>) -> Answer {
        self.receipt.outcome = if entry.is_some() { Outcome::Hit } else { Outcome::Miss };
        self.receipt.timings.total = self.cache.clock.instant() - self.begun;
        Answer { entry, receipt: self.receipt }
    }
}
