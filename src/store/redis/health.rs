//! Whether Redis can serve, and what it is.

use std::sync::Arc;

use super::{
    connection::Repeat,
    failure::Failure,
    index::take_info,
    keys::{LAYOUT, parse_index},
    reply::text,
    search,
    server::{Store, version_text},
};

/// How many indexes a description lists.
const INDEXES_LISTED_MAX: usize = 100;

impl Store {
    /// PING, search module, layout, and not loading.
    pub(super) async fn check(self: &Arc<Self>) -> Result<(), Failure> {
        self.inspect_now().await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("PING");
        self.run(&pipeline, None, Repeat::Once).await?.take()?;
        Ok(())
    }

    /// Versions, settings that matter, and the indexes with their sizes.
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
        let mut names: Vec<String> =
            self.index_names().await?.into_iter().filter(|name| parse_index(name).is_some()).collect();
        names.sort();
        parts.push(("indexes".to_owned(), names.len().to_string()));
        names.truncate(INDEXES_LISTED_MAX);
        if names.is_empty() {
            return Ok(parts);
        }
        let mut pipeline = redis::pipe();
        for name in &names {
            pipeline.add_command(search::info(name));
        }
        let mut replies = self.run(&pipeline, None, Repeat::Once).await?;
        for name in names {
            // One that was dropped since the list was read is left out.
            if let Some(info) = take_info(&mut replies)? {
                let filling = if info.indexing { ", being filled" } else { "" };
                parts.push((name, format!("{} entries{filling}", info.documents)));
            }
        }
        Ok(parts)
    }
}
