//! Which entries an invalidation means.

use std::time::Duration;

use crate::{
    error::Invalid,
    store::Entry,
    types::{Attributes, Category, EntryId, PartsHasher, Prompt, Timestamp},
};

/// Entries that match every part that is set.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// These ids.
    pub ids: Option<Vec<EntryId>>,
    /// Exactly this prompt.
    pub prompt: Option<Prompt>,
    /// All of these pairs, and perhaps more.
    pub attributes: Attributes,
    /// This category.
    pub category: Option<Category>,
    /// Stored longer ago than this.
    pub older_than: Option<Duration>,
    /// Everything.
    pub all: bool,
}

impl Selector {
    /// Refuses a selector that says nothing, and one that says everything and something else:
    /// both are more likely a mistake than a wish.
    pub fn check(&self) -> Result<(), Invalid> {
        let narrow = self.ids.is_some()
            || self.prompt.is_some()
            || !self.attributes.is_empty()
            || self.category.is_some()
            || self.older_than.is_some();
        match (self.all, narrow) {
            (false, false) => Err(Invalid::new("selector", "is empty; set a part of it, or `all` to mean every entry")),
            (true, true) => Err(Invalid::new("selector.all", "is set beside other parts; leave either out")),
            _ => Ok(()),
        }
    }

    /// Tells one selector from another; equal ones have the same.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = PartsHasher::new("refrain selector v1");
        let ids: Option<Vec<u8>> = self.ids.as_ref().map(|ids| ids.iter().flat_map(|id| *id.as_bytes()).collect());
        let older_than = self.older_than.map(|age| age.as_nanos().to_le_bytes());
        for part in [
            ids.as_deref(),
            self.prompt.as_ref().map(|prompt| prompt.as_str().as_bytes()),
            self.category.as_ref().map(|category| category.as_str().as_bytes()),
            older_than.as_ref().map(<[u8; 16]>::as_slice),
        ] {
            // What is not set differs from whatever is.
            hasher.part(&[u8::from(part.is_some())]).part(part.unwrap_or_default());
        }
        hasher.part(self.attributes.token().as_bytes()).part(&[u8::from(self.all)]);
        hasher.finish()
    }

    /// Whether an entry is meant.
    pub fn matches(&self, entry: &Entry, now: Timestamp) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&entry.id))
            && self.prompt.as_ref().is_none_or(|prompt| *prompt == entry.prompt)
            && entry.attributes.contains_all(&self.attributes)
            && self.category.as_ref().is_none_or(|category| entry.category.as_ref() == Some(category))
            && self.older_than.is_none_or(|age| now.since(entry.created) > age)
    }
}
