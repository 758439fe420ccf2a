//! The rules of Redis and its search module that the engine must keep, each with a test that
//! would catch its breach. Everything runs against a real server.

mod epochs;
mod faults;
mod indexes;
mod searches;

use redis::{Value, aio::MultiplexedConnection};
use refrain::{
    store::{Entry, Nearest, NearestQuery, NewEntry, Result},
    types::{Attributes, Namespace, Vector},
};

use crate::{conformance::Harness, data::space};

/// One attribute.
fn attribute(value: &str) -> Attributes {
    Attributes::new([("key".to_owned(), value.to_owned())], 8).expect("the attribute is valid")
}

/// A search that may fail.
async fn try_nearest(harness: &Harness, namespace: &Namespace, vector: &Vector, count: usize) -> Result<Nearest> {
    let attributes = Attributes::default();
    let query = NearestQuery { namespace, space: space(), vector, attributes: &attributes, count, deadline: None };
    harness.cache().nearest(query).await
}

/// A write that may fail.
async fn try_put(harness: &Harness, namespace: &Namespace, entry: &Entry, vector: &Vector) -> Result<bool> {
    let new = NewEntry { entry: entry.clone(), vector: Some((space(), vector.clone())) };
    Ok(harness.cache().put(namespace, new, None).await?.created)
}

/// Stores one entry a vector, without attributes; the entries in the order of the vectors.
async fn fill(harness: &Harness, namespace: &Namespace, vectors: &[Vector]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, vector) in vectors.iter().enumerate() {
        let entry = harness.entry(&format!("question {number}"), &Attributes::default());
        harness.put(namespace, &entry, Some(vector)).await;
        entries.push(entry);
    }
    entries
}

/// All keys of a namespace.
async fn keys_of(client: &mut MultiplexedConnection, namespace: &Namespace) -> Vec<String> {
    let mut keys = Vec::new();
    let mut cursor = "0".to_owned();
    loop {
        let pattern = format!("refrain:{{{namespace}}}:*");
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1_000);
        let (next, page): (String, Vec<String>) = scan.query_async(client).await.expect("SCAN succeeds");
        keys.extend(page);
        if next == "0" {
            return keys;
        }
        cursor = next;
    }
}

/// The names of a namespace's indexes.
async fn indexes_of(client: &mut MultiplexedConnection, namespace: &Namespace) -> Vec<String> {
    let names: Vec<String> = redis::cmd("FT._LIST").query_async(client).await.expect("FT._LIST succeeds");
    let start = format!("refrain:{{{namespace}}}:");
    names.into_iter().filter(|name| name.starts_with(&start)).collect()
}

/// Runs a command that must succeed.
async fn run(client: &mut MultiplexedConnection, command: &[&str]) -> Value {
    let mut cmd = redis::cmd(command[0]);
    cmd.arg(&command[1..]);
    cmd.query_async(client).await.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
