//! Whether Redis can serve, and what it is.

use std::sync::Arc;

use super::{
    connection::Repeat,
    failure::Failure,
    keys::{Algorithm, LAYOUT, parse_index},
    reply::text,
    server::{Store, version_text},
};

impl Store {
    /// PING, search module, layout, and not loading.
    pub(super) async fn check(self: &Arc<Self>) -> Result<(), Failure> {
        self.inspect_now().await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("PING");
        self.run(&pipeline, None, Repeat::Once).await?.take()?;
        Ok(())
    }

    /// Versions, settings that matter, and how many indexes there are.
    pub(super) async fn describe(self: &Arc<Self>) -> Result<Vec<(String, String)>, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("INFO").arg("memory");
        let reply = self.run(&pipeline, None, Repeat::Once).await?.take();
        let memory = reply.as_ref().ok().and_then(text).unwrap_or_default();
        let line = |name: &str| {
            memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("unknown").to_owned()
        };
        let facts = self.facts();
        let mut parts = vec![
            ("address".to_owned(), self.address()),
            ("redis version".to_owned(), facts.server),
            ("search module version".to_owned(), facts.search.map_or_else(|| "unknown".to_owned(), version_text)),
            ("mode".to_owned(), facts.mode),
            ("maxmemory".to_owned(), line("maxmemory_human")),
            ("maxmemory policy".to_owned(), line("maxmemory_policy")),
            ("used memory".to_owned(), line("used_memory_human")),
            ("layout version".to_owned(), LAYOUT.to_owned()),
        ];
        // Counted, not named: an index is named after its namespace, and whoever may ask what the
        // server is may not know its tenants.
        let names = self.index_names().await?;
        let ours = names.iter().filter(|name| parse_index(name).is_some());
        let (hnsw, flat): (Vec<_>, Vec<_>) = ours.partition(|name| name.ends_with(Algorithm::Hnsw.label()));
        parts.push(("indexes".to_owned(), format!("{} flat, {} hnsw", flat.len(), hnsw.len())));
        Ok(parts)
    }
}
