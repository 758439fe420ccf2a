//! Removes what emptied namespaces left behind: indexes first, since deleting an indexed key
//! costs seventy times more than a plain one, then the keys at a paced rate, then the list of
//! them.
//!
//! Nothing is lost by an interruption. Which epochs are to be swept stands in Redis until it is
//! done, and the first connect of a process takes up what is left.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::BoxFuture;

use super::{
    connection::Repeat,
    failure::Failure,
    keys::{Epoch, Keys, SWEEPS},
    metrics,
    reply::{entry_id, integer, items, text},
    server::Store,
};
use crate::types::Namespace;

/// How long a sweep stays noted. The entries end by themselves, so nothing rests on it.
pub(super) const SWEEP_REMEMBERED: Duration = Duration::from_hours(30 * 24);
/// Batches a second.
const BATCHES_PER_SECOND: u32 = 20;
/// How long a sweep rests after a failure, and how often it tries.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRIES_MAX: u32 = 30;

impl Store {
    /// Takes up the sweeps that an earlier process left. Boxed, since inspecting a server starts
    /// this and this asks an inspected server.
    pub(super) fn resume_sweeps(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.resume_all_sweeps())
    }

    async fn resume_all_sweeps(self: Arc<Self>) {
        let mut pipeline = redis::pipe();
        pipeline.cmd("SMEMBERS").arg(SWEEPS);
        let Ok(reply) = self.run(&pipeline, None, Repeat::Once).await.and_then(|mut replies| replies.take()) else {
            tracing::debug!("the list of sweeps cannot be read; the next connection asks again");
            self.sweeps_resumed.store(false, Ordering::SeqCst);
            return;
        };
        for namespace in items(&reply).unwrap_or_default() {
            if let Some(namespace) = text(namespace).and_then(|name| Namespace::new(name).ok()) {
                self.sweep(&namespace).await;
            }
        }
    }

    /// Sweeps all noted epochs of a namespace, trying again after failures.
    pub(super) async fn sweep(self: &Arc<Self>, namespace: &Namespace) {
        for _ in 0..RETRIES_MAX {
            match self.sweep_namespace(namespace).await {
                Ok(()) => return,
                Err(failure) => tracing::debug!(%namespace, ?failure, "the sweep rests"),
            }
            if !self.pause(RETRY_AFTER).await {
                return;
            }
        }
        tracing::warn!(%namespace, "the sweep is left for the next start");
    }

    async fn sweep_namespace(self: &Arc<Self>, namespace: &Namespace) -> Result<(), Failure> {
        let keys = Keys(namespace);
        let mut pipeline = redis::pipe();
        pipeline.cmd("SMEMBERS").arg(keys.sweep());
        let reply = self.run(&pipeline, None, Repeat::Once).await?.take()?;
        let epochs = items(&reply).unwrap_or_default().iter().filter_map(integer);
        let epochs: Vec<Epoch> = epochs.map(|epoch| Epoch(epoch as u64)).collect();
        if !epochs.is_empty() {
            self.drop_indexes(namespace, |epoch| epochs.contains(&epoch)).await?;
        }
        for epoch in epochs {
            if !self.sweep_epoch(namespace, epoch).await? {
                return Ok(());
            }
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd("SREM").arg(SWEEPS).arg(namespace.as_str());
        self.run(&pipeline, None, Repeat::Once).await?.take()?;
        Ok(())
    }

    /// Removes the keys of one epoch; false if the engine closed meanwhile.
    async fn sweep_epoch(self: &Arc<Self>, namespace: &Namespace, epoch: Epoch) -> Result<bool, Failure> {
        let keys = Keys(namespace);
        let batch = (self.settings.sweep_keys_per_second / BATCHES_PER_SECOND).max(1);
        loop {
            let mut pipeline = redis::pipe();
            pipeline.cmd("ZRANGE").arg(keys.live(epoch)).arg(0).arg(batch - 1);
            let reply = self.run(&pipeline, None, Repeat::Once).await?.take()?;
            let members = items(&reply).unwrap_or_default();
            if members.is_empty() {
                break;
            }
            let names: Vec<&str> = members.iter().filter_map(text).collect();
            let entries = members.iter().filter_map(entry_id).map(|id| keys.entry(epoch, &id));
            let entries: Vec<String> = entries.collect();
            // The list is shortened after the keys are gone, so that none is forgotten.
            let mut pipeline = redis::pipe();
            pipeline.cmd("UNLINK").arg(&entries);
            pipeline.cmd("ZREM").arg(keys.live(epoch)).arg(&names);
            let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
            replies.take()?;
            replies.take()?;
            metrics::add(metrics::SWEPT_KEYS, names.len() as u64);
            if !self.pause(Duration::from_secs(1) / BATCHES_PER_SECOND).await {
                return Ok(false);
            }
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd("SREM").arg(keys.sweep()).arg(epoch.0);
        self.run(&pipeline, None, Repeat::Once).await?.take()?;
        Ok(true)
    }
}
