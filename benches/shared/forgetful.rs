//! An engine that remembers nothing.

use std::time::Duration;

use async_trait::async_trait;
use refrain::{
    store::{MemoKey, MemoStore, Result},
    types::{Deadline, Namespace, Vector},
};

pub(crate) struct Forgetful;

#[async_trait]
impl MemoStore for Forgetful {
    async fn read(&self, _: &Namespace, keys: &[MemoKey], _: Option<Deadline>) -> Result<Vec<Option<Vector>>> {
        Ok(vec![None; keys.len()])
    }

    async fn write(&self, _: &Namespace, _: &[(MemoKey, Vector)], _: Duration) -> Result<()> {
        Ok(())
    }
}
