//! The memo of embeddings: plain strings of raw little-endian floats with a lifetime.
//!
//! Plain strings, not hashes, and outside the prefix of every index: a memo is read by its key
//! alone. Envelope: `read` and `write` are 1 round trip each, 1.5 KB a vector of 384 dimensions.

use std::{sync::Arc, time::Duration};

use super::{
    connection::Repeat,
    failure::Failure,
    keys::Keys,
    reply::{corrupt, items},
    server::Store,
};
use crate::{
    store::MemoKey,
    types::{Deadline, Namespace, Vector},
};

/// Vectors written by one pipeline, about 400 KB.
const WRITE_BATCH: usize = 256;

impl Store {
    pub(super) async fn read_memo(
        self: &Arc<Self>,
        namespace: &Namespace,
        keys: &[MemoKey],
        deadline: Option<Deadline>,
    ) -> Result<Vec<Option<Vector>>, Failure> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = keys.iter().map(|key| Keys(namespace).memo(key)).collect();
        let mut pipeline = redis::pipe();
        pipeline.cmd("MGET").arg(&names);
        let reply = self.run(&pipeline, deadline, Repeat::Once).await?.take()?;
        let values = items(&reply).filter(|values| values.len() == keys.len());
        let values = values.ok_or_else(|| corrupt("the memo", "MGET returned another number of values"))?;
        Ok(values.iter().map(|value| self.memoized(value)).collect())
    }

    pub(super) async fn write_memo(
        self: &Arc<Self>,
        namespace: &Namespace,
        vectors: &[(MemoKey, Vector)],
        ttl: Duration,
    ) -> Result<(), Failure> {
        let ttl_ms = (ttl.as_millis() as u64).max(1);
        for batch in vectors.chunks(WRITE_BATCH) {
            let mut pipeline = redis::pipe();
            for (key, vector) in batch {
                pipeline.cmd("SET").arg(Keys(namespace).memo(key)).arg(vector.to_le_bytes()).arg("PX").arg(ttl_ms);
            }
            let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
            for _ in batch {
                replies.take()?;
            }
        }
        Ok(())
    }
}
