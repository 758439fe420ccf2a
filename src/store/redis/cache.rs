//! The verbs of the cache store, except the search.
//!
//! Envelope, once a namespace is known to this process (microseconds: medians of an unoptimized
//! build on loopback, two busy cores):
//! - `probe`: 1 round trip, 0.2 KB out, the entry and 1.5 KB of memo back; about 100 to 200. 2 when
//!   the epoch moved, and at the first call for a namespace.
//! - `put`: 1 round trip (a script), the entry and 1.5 KB of vector out; about 200 into an exact
//!   index, 600 into HNSW of 10,000. The first of an epoch takes 4: epoch, look, index, script.
//! - `delete` (128 ids), `empty`, `count`, `counters`, `add_counters`: 1. `list`: 2.

use std::{sync::Arc, time::Duration};

use redis::{Pipeline, Value};

use super::{
    NAME,
    connection::Repeat,
    entry,
    failure::Failure,
    index::{Place, Purpose, Resolved, epoch},
    keys::{Epoch, Keys, SWEEPS},
    reply::{self, Replies, corrupt, entry_id, items, text, timestamp},
    scripts,
    server::Store,
    state::NamespaceState,
    sweep::SWEEP_REMEMBERED,
};
use crate::{
    store::{Cursor, Detail, Entry, Error, MemoKey, NewEntry, Probe, Put, RequestId},
    types::{Deadline, EntryId, Namespace, Timestamp, Vector},
};

/// Repeats under a new epoch before giving up: a namespace is not emptied that often.
const ATTEMPTS_MAX: usize = 4;
/// Entries deleted by one script, which holds the server up for about 0.15 ms each.
const DELETE_BATCH: usize = 128;

/// How long the counters of a namespace outlive its last lookup.
const COUNTERS_REMEMBERED: Duration = Duration::from_hours(90 * 24);
/// Names mutations of many steps among the keys of requests.
const MANY_STEPS: &str = "invalidate";

/// The outcome of a script that mutates under an epoch.
enum Mutation {
    /// Done now, or known from an earlier request; the numbers are the script's.
    Done(u64, Option<String>, Option<Timestamp>),
    /// The namespace has another epoch.
    Moved(Option<Epoch>),
}

impl Store {
    pub(super) async fn probe(
        self: &Arc<Self>,
        namespace: &Namespace,
        id: &EntryId,
        memo: Option<&MemoKey>,
        deadline: Option<Deadline>,
    ) -> Result<Probe, Failure> {
        let keys = Keys(namespace);
        let state = self.namespace(namespace);
        let mut probe = Probe::default();
        for attempt in 0..ATTEMPTS_MAX {
            let known = state.epoch();
            let mut pipeline = redis::pipe();
            pipeline.cmd("GET").arg(keys.epoch());
            if let Some(known) = known {
                pipeline.cmd("HMGET").arg(keys.entry(known, id)).arg(entry::fields(Detail::Whole));
            }
            let memo = memo.filter(|_| attempt == 0);
            if let Some(memo) = memo {
                pipeline.cmd("GET").arg(keys.memo(memo));
            }
            let mut replies = self.run(&pipeline, deadline, Repeat::Once).await?;
            let seen = epoch(&replies.take()?)?;
            let hash = if known.is_some() { Some(replies.take()?) } else { None };
            if memo.is_some() {
                probe.vector = self.memoized(&replies.take()?);
            }
            state.saw_epoch(seen);
            if seen == known {
                if let Some(hash) = hash {
                    probe.entry = entry::read(id, hash, self.clock.now())?;
                }
                break;
            }
            if seen.is_none() {
                break;
            }
        }
        Ok(probe)
    }

    /// A memoized vector; one that cannot be read is as good as none.
    pub(super) fn memoized(&self, reply: &Value) -> Option<Vector> {
        let bytes = super::reply::bytes(reply)?;
        Vector::from_le_bytes(bytes, self.space.1)
            .inspect_err(|problem| tracing::warn!(%problem, "a memoized vector is passed over"))
            .ok()
    }

    pub(super) async fn put(
        self: &Arc<Self>,
        namespace: &Namespace,
        new: NewEntry,
        request: Option<&RequestId>,
    ) -> Result<Put, Failure> {
        let keys = Keys(namespace);
        let state = self.namespace(namespace);
        let fields = entry::write(&new)?;
        for _ in 0..ATTEMPTS_MAX {
            let known = match state.epoch() {
                Some(known) => known,
                None => self.start_epoch(namespace, &state).await?,
            };
            // The index stands before the first entry, with a vector or without, so that none is
            // ever outside of it and no later creation has to scan.
            let (space, dimension) = match &new.vector {
                Some((space, vector)) => (*space, vector.dimension()),
                None => self.space,
            };
            let place =
                Place { namespace: namespace.clone(), state: Arc::clone(&state), epoch: known, space, dimension };
            match self.resolve(&place, Purpose::Write, None).await? {
                Resolved::Index(_) => {}
                Resolved::Moved | Resolved::Empty => continue,
            }
            let script_keys = [
                keys.epoch(),
                keys.entry(known, &new.entry.id),
                keys.live(known),
                request_key(keys, "put", request, 0),
            ];
            let head = [
                known.0.to_string(),
                self.clock.now().0.to_string(),
                new.entry.expires.0.to_string(),
                new.entry.id.to_string(),
                remembered_ms(request),
            ];
            let mut args: Vec<&[u8]> = head.iter().map(String::as_bytes).collect();
            args.extend(fields.iter().map(Vec::as_slice));
            let mut pipeline = redis::pipe();
            pipeline.add_command(scripts::call(&scripts::PUT, &script_keys, &args));
            let mut replies = self.run_script(&pipeline, None, Repeat::Never).await?;
            match mutation(&mut replies)? {
                Mutation::Done(created, live, expires) => {
                    let live = live.and_then(|live| live.parse().ok()).unwrap_or_default();
                    self.promote_if_grown(&place, live);
                    let expires = expires.ok_or_else(|| corrupt("the reply of a script", "it lacks the expiry"))?;
                    return Ok(Put { created: created == 1, expires });
                }
                Mutation::Moved(seen) => state.saw_epoch(seen),
            }
        }
        Err(restless(namespace))
    }

    pub(super) async fn delete(
        self: &Arc<Self>,
        namespace: &Namespace,
        ids: &[EntryId],
        request: Option<&RequestId>,
    ) -> Result<u64, Failure> {
        let mut deleted = 0;
        for (part, batch) in ids.chunks(DELETE_BATCH).enumerate() {
            deleted += self.delete_batch(namespace, batch, request, part).await?;
        }
        Ok(deleted)
    }

    /// Each batch of a large request remembers its own outcome, so that a repeat after a failure
    /// half way counts right.
    async fn delete_batch(
        self: &Arc<Self>,
        namespace: &Namespace,
        ids: &[EntryId],
        request: Option<&RequestId>,
        part: usize,
    ) -> Result<u64, Failure> {
        let keys = Keys(namespace);
        let state = self.namespace(namespace);
        for _ in 0..ATTEMPTS_MAX {
            let known = self.known_epoch(namespace, &state).await?;
            // Without an epoch there is no entry; the script only remembers the request.
            let epoch_or_zero = known.unwrap_or(Epoch(0));
            let mut script_keys =
                vec![keys.epoch(), keys.live(epoch_or_zero), request_key(keys, "delete", request, part)];
            let mut args = vec![epoch_text(known), self.clock.now().0.to_string(), remembered_ms(request)];
            for id in ids {
                script_keys.push(keys.entry(epoch_or_zero, id));
                args.push(id.to_string());
            }
            let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
            let mut pipeline = redis::pipe();
            pipeline.add_command(scripts::call(&scripts::DELETE, &script_keys, &args));
            let mut replies = self.run_script(&pipeline, None, Repeat::Never).await?;
            match mutation(&mut replies)? {
                Mutation::Done(alive, _, _) => return Ok(alive),
                Mutation::Moved(seen) => state.saw_epoch(seen),
            }
        }
        Err(restless(namespace))
    }

    pub(super) async fn list(
        self: &Arc<Self>,
        namespace: &Namespace,
        after: Option<Cursor>,
        count: usize,
        detail: Detail,
    ) -> Result<(Vec<Entry>, Option<Cursor>), Failure> {
        let state = self.namespace(namespace);
        let count = count.max(1);
        for _ in 0..ATTEMPTS_MAX {
            let Some(known) = self.known_epoch(namespace, &state).await? else { return Ok((Vec::new(), None)) };
            let (seen, mut page) = self.page(namespace, known, after, count + 1).await?;
            state.saw_epoch(seen);
            if seen != Some(known) {
                continue;
            }
            let more = page.len() > count;
            page.truncate(count);
            let entries = self.read_entries(namespace, known, &page, detail).await?;
            return Ok((entries, page.last().copied().filter(|_| more)));
        }
        Err(restless(namespace))
    }

    async fn page(
        self: &Arc<Self>,
        namespace: &Namespace,
        known: Epoch,
        after: Option<Cursor>,
        count: usize,
    ) -> Result<(Option<Epoch>, Vec<Cursor>), Failure> {
        let keys = Keys(namespace);
        let args = [
            self.clock.now().0.to_string(),
            count.to_string(),
            after.map(|after| after.expires.0.to_string()).unwrap_or_default(),
            after.map(|after| after.id.to_string()).unwrap_or_default(),
        ];
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(keys.epoch());
        pipeline.add_command(scripts::call(&scripts::PAGE, &[keys.live(known)], &args));
        let mut replies = self.run_script(&pipeline, None, Repeat::Once).await?;
        let seen = epoch(&replies.take()?)?;
        let page = replies.take()?;
        let pairs = items(&page).unwrap_or_default().chunks_exact(2);
        let cursors = pairs.map(|pair| Some(Cursor { id: entry_id(&pair[0])?, expires: timestamp(&pair[1])? }));
        let cursors: Option<Vec<Cursor>> = cursors.collect();
        Ok((seen, cursors.ok_or_else(|| corrupt("the live set of a namespace", "a member is not an entry id"))?))
    }

    async fn read_entries(
        self: &Arc<Self>,
        namespace: &Namespace,
        known: Epoch,
        page: &[Cursor],
        detail: Detail,
    ) -> Result<Vec<Entry>, Failure> {
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for cursor in page {
            pipeline.cmd("HMGET").arg(Keys(namespace).entry(known, &cursor.id)).arg(entry::fields(detail));
        }
        let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
        let now = self.clock.now();
        let mut entries = Vec::with_capacity(page.len());
        for cursor in page {
            // One that ended or was evicted since the page was read is left out.
            entries.extend(entry::read(&cursor.id, replies.take()?, now)?);
        }
        Ok(entries)
    }

    /// Empties a namespace by one increment of its epoch; the old keys go in the background.
    pub(super) async fn empty(
        self: &Arc<Self>,
        namespace: &Namespace,
        request: Option<&RequestId>,
    ) -> Result<u64, Failure> {
        let keys = Keys(namespace);
        let state = self.namespace(namespace);
        for _ in 0..ATTEMPTS_MAX {
            let known = self.known_epoch(namespace, &state).await?;
            let script_keys = [
                keys.epoch(),
                keys.live(known.unwrap_or(Epoch(0))),
                request_key(keys, "empty", request, 0),
                keys.sweep(),
            ];
            let sweep_ms = SWEEP_REMEMBERED.as_millis().to_string();
            let args = [epoch_text(known), self.clock.now().0.to_string(), remembered_ms(request), sweep_ms.clone()];
            let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
            let mut pipeline = redis::pipe();
            // The intent is noted first: whatever happens after, somebody will clean up.
            pipeline.cmd("SADD").arg(SWEEPS).arg(namespace.as_str());
            pipeline.cmd("PEXPIRE").arg(SWEEPS).arg(sweep_ms);
            pipeline.add_command(scripts::call(&scripts::EMPTY, &script_keys, &args));
            let mut replies = self.run_script(&pipeline, None, Repeat::Never).await?;
            // Without memory the note is refused; emptying goes on, and this process sweeps.
            replies.skip();
            replies.skip();
            match mutation(&mut replies)? {
                Mutation::Done(alive, next, _) => {
                    if let Some(next) = next.and_then(|next| next.parse().ok()) {
                        state.saw_epoch(Some(Epoch(next)));
                    }
                    let (store, namespace) = (Arc::clone(self), namespace.clone());
                    self.spawn(async move { store.sweep(&namespace).await });
                    return Ok(alive);
                }
                Mutation::Moved(seen) => state.saw_epoch(seen),
            }
        }
        Err(restless(namespace))
    }

    pub(super) async fn recall_outcome(
        self: &Arc<Self>,
        namespace: &Namespace,
        request: &RequestId,
    ) -> Result<Option<u64>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(Keys(namespace).request(MANY_STEPS, request, 0));
        match self.run(&pipeline, None, Repeat::Once).await?.take()? {
            Value::Nil => Ok(None),
            known => reply::count(&known).map(Some),
        }
    }

    pub(super) async fn remember_outcome(
        self: &Arc<Self>,
        namespace: &Namespace,
        request: &RequestId,
        outcome: u64,
    ) -> Result<(), Failure> {
        let mut pipeline = redis::pipe();
        let key = Keys(namespace).request(MANY_STEPS, request, 0);
        pipeline.cmd("SET").arg(key).arg(outcome).arg("PX").arg(RequestId::REMEMBERED.as_millis() as u64).arg("NX");
        self.run(&pipeline, None, Repeat::Once).await?.take().map(drop)
    }

    pub(super) async fn count(self: &Arc<Self>, namespace: &Namespace) -> Result<u64, Failure> {
        let keys = Keys(namespace);
        let state = self.namespace(namespace);
        for _ in 0..ATTEMPTS_MAX {
            let Some(known) = self.known_epoch(namespace, &state).await? else { return Ok(0) };
            let mut pipeline = redis::pipe();
            pipeline.cmd("GET").arg(keys.epoch());
            pipeline.cmd("ZCOUNT").arg(keys.live(known)).arg(format!("({}", self.clock.now().0)).arg("+inf");
            let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
            let seen = epoch(&replies.take()?)?;
            state.saw_epoch(seen);
            if seen == Some(known) {
                return reply::count(&replies.take()?);
            }
        }
        Err(restless(namespace))
    }

    pub(super) async fn add_counters(
        self: &Arc<Self>,
        namespace: &Namespace,
        deltas: &[(String, u64)],
    ) -> Result<(), Failure> {
        if deltas.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for (name, delta) in deltas {
            pipeline.cmd("HINCRBY").arg(Keys(namespace).counters()).arg(name).arg(*delta);
        }
        // Anyone may name a namespace; what is not used any more must not stay for ever.
        pipeline.cmd("PEXPIRE").arg(Keys(namespace).counters()).arg(COUNTERS_REMEMBERED.as_millis() as u64);
        let mut replies = self.run(&pipeline, None, Repeat::Never).await?;
        for _ in deltas {
            replies.take()?;
        }
        Ok(())
    }

    pub(super) async fn counters(self: &Arc<Self>, namespace: &Namespace) -> Result<Vec<(String, u64)>, Failure> {
        let mut pipeline: Pipeline = redis::pipe();
        pipeline.cmd("HGETALL").arg(Keys(namespace).counters());
        let Value::Map(pairs) = self.run(&pipeline, None, Repeat::Once).await?.take()? else {
            return Err(corrupt("the counters of a namespace", "HGETALL did not return a map"));
        };
        let mut counters = Vec::with_capacity(pairs.len());
        for (name, value) in &pairs {
            let name = text(name).ok_or_else(|| corrupt("the counters of a namespace", "a name is not text"))?;
            counters.push((name.to_owned(), reply::count(value)?));
        }
        counters.sort();
        Ok(counters)
    }

    /// The remembered epoch, else the server's.
    async fn known_epoch(
        self: &Arc<Self>,
        namespace: &Namespace,
        state: &NamespaceState,
    ) -> Result<Option<Epoch>, Failure> {
        match state.epoch() {
            Some(known) => Ok(Some(known)),
            None => self.read_epoch(namespace, state, None).await,
        }
    }

    /// Asks the server for the epoch: one round trip.
    pub(super) async fn read_epoch(
        self: &Arc<Self>,
        namespace: &Namespace,
        state: &NamespaceState,
        deadline: Option<Deadline>,
    ) -> Result<Option<Epoch>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(Keys(namespace).epoch());
        let seen = epoch(&self.run(&pipeline, deadline, Repeat::Once).await?.take()?)?;
        state.saw_epoch(seen);
        Ok(seen)
    }

    async fn start_epoch(self: &Arc<Self>, namespace: &Namespace, state: &NamespaceState) -> Result<Epoch, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(scripts::call(&scripts::EPOCH, &[Keys(namespace).epoch()], &[]));
        let reply = self.run_script(&pipeline, None, Repeat::Once).await?.take()?;
        let seen = epoch(&reply)?;
        state.saw_epoch(seen);
        seen.ok_or_else(|| corrupt("the epoch of a namespace", "the script returned none"))
    }
}

/// Reads what a mutating script returned: a word, two numbers and perhaps an expiry as text.
fn mutation(replies: &mut Replies) -> Result<Mutation, Failure> {
    let reply = replies.take()?;
    let parts = items(&reply).unwrap_or_default();
    let part = |at: usize| parts.get(at).and_then(text);
    match part(0) {
        Some("done" | "known") => {
            let extra = part(2).filter(|extra| !extra.is_empty()).map(str::to_owned);
            let expires = parts.get(3).and_then(timestamp);
            Ok(Mutation::Done(reply::count(parts.get(1).unwrap_or(&Value::Nil))?, extra, expires))
        }
        Some("moved") => match part(1) {
            Some("") | None => Ok(Mutation::Moved(None)),
            Some(_) => Ok(Mutation::Moved(epoch(&parts[1])?)),
        },
        _ => Err(corrupt("the reply of a script", "it is none of done, known, moved")),
    }
}

/// The key under which a request's outcome is kept. Without a request the script is told not to
/// look at it.
fn request_key(keys: Keys<'_>, verb: &'static str, request: Option<&RequestId>, part: usize) -> String {
    request.map_or_else(|| keys.epoch(), |request| keys.request(verb, request, part))
}

fn remembered_ms(request: Option<&RequestId>) -> String {
    request.map_or(0, |_| RequestId::REMEMBERED.as_millis()).to_string()
}

fn epoch_text(epoch: Option<Epoch>) -> String {
    epoch.map(|epoch| epoch.0.to_string()).unwrap_or_default()
}

fn restless(namespace: &Namespace) -> Failure {
    Failure::Final(Error::Unavailable {
        engine: NAME,
        problem: format!("the namespace {namespace} is emptied again and again; try again"),
    })
}
