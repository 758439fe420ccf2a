//! The only place that builds FT.* commands and reads their replies.
//!
//! Values reach a query through PARAMS only, names are made of hexadecimal digits, and the dialect
//! is always 2: nothing a caller wrote is ever parsed as a query. A search that ran out of time
//! answers with few or no results and a warning; here that is an error, never a miss.

use std::time::Duration;

use redis::{Cmd, Value};

use super::{
    failure::{Failure, Refusal},
    keys::Algorithm,
    reply::{bytes, corrupt, field, integer, items, number, text, timestamp},
};
use crate::{
    store::Error,
    types::{Category, Prompt, Similarity, Timestamp},
};

/// Connections a node of the graph keeps.
const HNSW_M: usize = 16;
/// Breadth of the search that places a new node: half the cost of 200 for 0.3 points of recall.
const HNSW_EF_CONSTRUCTION: usize = 100;
/// The least breadth of a search: below, one neighbor in ten is missed at 100,000 vectors.
const EF_RUNTIME_MIN: usize = 50;
/// The TAG field that holds the token of an entry's attribute set.
pub(super) const ATTRIBUTES_FIELD: &str = "attributes";
/// The alias of the cosine distance in a result.
const DISTANCE: &str = "distance";

/// What an index must look like.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    /// Its name.
    pub(super) name: String,
    /// What the keys it covers start with.
    pub(super) prefix: String,
    /// The field that holds the vector.
    pub(super) vector_field: String,
    /// How it finds neighbors.
    pub(super) algorithm: Algorithm,
    /// Components of a vector.
    pub(super) dimension: usize,
}

/// What FT.INFO tells about an index.
#[derive(Clone, Debug, Default)]
pub(super) struct IndexInfo {
    /// Entries it knows.
    pub(super) documents: u64,
    /// Whether a scan still fills it.
    pub(super) indexing: bool,
    key_type: Option<String>,
    prefixes: Vec<String>,
    attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, Default)]
struct Attribute {
    name: String,
    kind: String,
    case_sensitive: bool,
    algorithm: Option<String>,
    data_type: Option<String>,
    dimension: Option<i64>,
    metric: Option<String>,
}

/// One search for nearest entries.
pub(super) struct Knn<'a> {
    /// Where.
    pub(super) schema: &'a Schema,
    /// The token the entry's attributes must have.
    pub(super) token: &'a str,
    /// The query as raw little-endian floats.
    pub(super) vector: &'a [u8],
    /// How many at most.
    pub(super) count: usize,
    /// The configured breadth of an HNSW search.
    pub(super) ef_runtime: u32,
    /// How long the server may search.
    pub(super) timeout: Duration,
}

/// One result of a search.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The key of the entry.
    pub(super) key: String,
    /// What was returned of it.
    pub(super) content: Content,
}

/// What a result holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A readable entry.
    Entry(Near),
    /// Nothing, or not enough: the entry has expired, is half gone, or lies in another database.
    Ghost,
    /// A distance that is not a number: its vector must never have been written.
    Poison,
}

/// The returned fields of an entry.
#[derive(Clone, Debug)]
pub(super) struct Near {
    /// Its similarity to the query.
    pub(super) similarity: Similarity,
    /// The prompt it answers.
    pub(super) prompt: Prompt,
    /// The kind of question.
    pub(super) category: Option<Category>,
    /// When it was stored.
    pub(super) created: Timestamp,
    /// When it ends.
    pub(super) expires: Timestamp,
}

/// The results of a search, in no order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// What was found.
    pub(super) rows: Vec<Row>,
    /// The server warned that something is missing.
    pub(super) incomplete: bool,
}

/// FT.CREATE; without `scan`, only what is written from now on gets in.
pub(super) fn create(schema: &Schema, scan: bool) -> Cmd {
    let mut cmd = redis::cmd("FT.CREATE");
    cmd.arg(&schema.name).arg("ON").arg("HASH").arg("PREFIX").arg(1).arg(&schema.prefix);
    if !scan {
        cmd.arg("SKIPINITIALSCAN");
    }
    cmd.arg("SCHEMA").arg(ATTRIBUTES_FIELD).arg("TAG").arg("CASESENSITIVE");
    cmd.arg(&schema.vector_field).arg("VECTOR");
    match schema.algorithm {
        Algorithm::Flat => cmd.arg("FLAT").arg(6),
        Algorithm::Hnsw => {
            cmd.arg("HNSW").arg(10).arg("M").arg(HNSW_M).arg("EF_CONSTRUCTION").arg(HNSW_EF_CONSTRUCTION)
        }
    };
    cmd.arg("TYPE").arg("FLOAT32").arg("DIM").arg(schema.dimension).arg("DISTANCE_METRIC").arg("COSINE");
    cmd
}

/// FT.INFO.
pub(super) fn info(name: &str) -> Cmd {
    let mut cmd = redis::cmd("FT.INFO");
    cmd.arg(name);
    cmd
}

/// FT.DROPINDEX; the entries stay.
pub(super) fn drop_index(name: &str) -> Cmd {
    let mut cmd = redis::cmd("FT.DROPINDEX");
    cmd.arg(name);
    cmd
}

/// The names of all indexes.
pub(super) fn list() -> Cmd {
    redis::cmd("FT._LIST")
}

/// FT.SEARCH for the nearest. Without SORTBY results come in no order, but with `LIMIT 0 K` they
/// are complete, and sorting here costs nothing.
pub(super) fn knn(query: &Knn<'_>) -> Cmd {
    let field = &query.schema.vector_field;
    let (ef_clause, ef) = match query.schema.algorithm {
        Algorithm::Flat => ("", None),
        Algorithm::Hnsw => {
            (" EF_RUNTIME $ef", Some((query.ef_runtime as usize).max(EF_RUNTIME_MIN).max(4 * query.count)))
        }
    };
    let text = format!("(@{ATTRIBUTES_FIELD}:{{$a}})=>[KNN $k @{field} $b{ef_clause} AS {DISTANCE}]");
    let mut cmd = redis::cmd("FT.SEARCH");
    cmd.arg(&query.schema.name).arg(text);
    cmd.arg("PARAMS").arg(if ef.is_some() { 8 } else { 6 });
    cmd.arg("a").arg(query.token).arg("k").arg(query.count).arg("b").arg(query.vector);
    if let Some(ef) = ef {
        cmd.arg("ef").arg(ef);
    }
    cmd.arg("RETURN").arg(5).arg(DISTANCE).arg("expires").arg("created").arg("category").arg("prompt");
    cmd.arg("LIMIT").arg(0).arg(query.count);
    cmd.arg("TIMEOUT").arg((query.timeout.as_millis() as u64).max(1));
    cmd.arg("DIALECT").arg(2);
    cmd
}

/// Reads the reply of [`knn`].
pub(super) fn parse_knn(reply: &Value) -> Result<Rows, Failure> {
    let results = field(reply, "results").and_then(items).ok_or_else(|| {
        // The module answers in the RESP2 shape before 2.8.
        Failure::Final(super::failure::no_resp3())
    })?;
    let mut incomplete = false;
    for warning in field(reply, "warning").and_then(items).unwrap_or_default() {
        let warning = text(warning).unwrap_or_default();
        if warning.to_ascii_lowercase().contains("timeout") {
            return Err(Failure::Reply(Refusal::SearchTimeout, warning.to_owned()));
        }
        tracing::warn!(warning, "Redis warned about a search");
        incomplete = true;
    }
    // A result without an id stands where a search was cut; there is nothing to read in it.
    let rows = results.iter().filter_map(|result| {
        let key = field(result, "id").and_then(text)?.to_owned();
        Some(Row { key, content: content(field(result, "extra_attributes")) })
    });
    Ok(Rows { rows: rows.collect(), incomplete })
}

fn content(returned: Option<&Value>) -> Content {
    let Some(returned) = returned else { return Content::Ghost };
    let get = |name| field(returned, name);
    // `expires` and `prompt` are never absent from a live entry; the distance alone would let a
    // dead one look alive.
    let (Some(distance), Some(expires), Some(created), Some(prompt)) = (
        get(DISTANCE).and_then(number),
        get("expires").and_then(timestamp),
        get("created").and_then(timestamp),
        get("prompt").and_then(text),
    ) else {
        return Content::Ghost;
    };
    // Distances are printed with rounding noise on either side of [0, 2]; `from_distance` clamps.
    let Some(similarity) = Similarity::from_distance(distance as f32) else { return Content::Poison };
    let category = get("category").and_then(text).and_then(|name| Category::new(name).ok());
    Content::Entry(Near { similarity, prompt: Prompt::stored(prompt), category, created, expires })
}

/// Reads the reply of [`info`].
pub(super) fn parse_info(reply: &Value) -> Result<IndexInfo, Failure> {
    let number = |name: &str| field(reply, name).and_then(integer);
    let (Some(documents), Some(attributes)) = (number("num_docs"), field(reply, "attributes").and_then(items)) else {
        return Err(corrupt("FT.INFO", "its reply has no num_docs or attributes"));
    };
    let definition = field(reply, "index_definition");
    let part = |name| definition.and_then(|definition| field(definition, name));
    Ok(IndexInfo {
        documents: documents.max(0) as u64,
        indexing: number("indexing").is_some_and(|indexing| indexing != 0),
        key_type: part("key_type").and_then(text).map(str::to_owned),
        prefixes: part("prefixes")
            .and_then(items)
            .unwrap_or_default()
            .iter()
            .filter_map(|prefix| text(prefix).map(str::to_owned))
            .collect(),
        attributes: attributes.iter().map(attribute).collect(),
    })
}

fn attribute(value: &Value) -> Attribute {
    let word = |name| field(value, name).and_then(text).map(str::to_owned);
    let flags = field(value, "flags").and_then(items).unwrap_or_default();
    Attribute {
        name: word("attribute").unwrap_or_default(),
        kind: word("type").unwrap_or_default(),
        case_sensitive: flags.iter().any(|flag| text(flag) == Some("CASESENSITIVE")),
        algorithm: word("algorithm"),
        data_type: word("data_type"),
        dimension: field(value, "dim").and_then(integer),
        metric: word("distance_metric"),
    }
}

impl IndexInfo {
    /// Compares what stands with what is expected. Parts that an older server does not tell are
    /// believed.
    pub(super) fn check(&self, schema: &Schema) -> Result<(), Error> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, expected: &str, found: Option<&str>| {
            if let Some(found) = found
                && found != expected
            {
                differences.push(format!("{what} is {found}, expected {expected}"));
            }
        };
        compare("key type", "HASH", self.key_type.as_deref());
        compare("prefix", &schema.prefix, Some(&self.prefixes.join(" ")));
        let kind = |name: &str| self.attributes.iter().find(|attribute| attribute.name == name);
        match kind(ATTRIBUTES_FIELD) {
            Some(tag) => {
                compare("type of `attributes`", "TAG", Some(&tag.kind));
                let case = if tag.case_sensitive { "CASESENSITIVE" } else { "case-insensitive" };
                compare("case of `attributes`", "CASESENSITIVE", Some(case));
            }
            None => compare("field `attributes`", "TAG", Some("absent")),
        }
        match kind(&schema.vector_field) {
            Some(vector) => {
                let dimension = vector.dimension.map(|dimension| dimension.to_string());
                compare("type of the vector field", "VECTOR", Some(&vector.kind));
                compare("dimension", &schema.dimension.to_string(), dimension.as_deref());
                compare("metric", "COSINE", vector.metric.as_deref());
                compare("component type", "FLOAT32", vector.data_type.as_deref());
                let algorithm = schema.algorithm.label().to_ascii_uppercase();
                compare("algorithm", &algorithm, vector.algorithm.as_deref());
            }
            None => compare(&format!("field `{}`", schema.vector_field), "VECTOR", Some("absent")),
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::SchemaMismatch {
            what: format!("the index {}", schema.name),
            difference: differences.join("; "),
            remedy: format!(
                "Drop it with `FT.DROPINDEX {}`: the entries stay, and Refrain builds the index again from them",
                schema.name
            ),
        })
    }
}

/// The names in the reply of [`list`].
pub(super) fn parse_list(reply: &Value) -> Vec<String> {
    items(reply)
        .unwrap_or_default()
        .iter()
        .filter_map(|name| bytes(name).map(|name| String::from_utf8_lossy(name).into_owned()))
        .collect()
}
