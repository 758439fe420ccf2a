//! Reading RESP3 replies without trusting them: nothing here panics on a shape it did not expect.

use redis::Value;

use super::failure::{Failure, Refusal};
use crate::{
    store::Error,
    types::{EntryId, Timestamp},
};

/// The replies of a pipeline, in order; an error reply surfaces where it is taken.
pub(super) struct Replies(std::vec::IntoIter<Value>);

impl Replies {
    /// Wraps what a pipeline returned.
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    /// The next reply; an error reply becomes a failure.
    pub(super) fn take(&mut self) -> Result<Value, Failure> {
        match self.0.next() {
            Some(Value::ServerError(error)) => Err(Failure::reply(&error)),
            Some(value) => Ok(value),
            None => Err(corrupt("reply of a pipeline", "it holds fewer replies than commands were sent")),
        }
    }

    /// Whether any reply still to come is this refusal.
    pub(super) fn any_is(&self, refusal: Refusal) -> bool {
        self.0.as_slice().iter().any(|value| match value {
            Value::ServerError(error) => Failure::reply(error).is(refusal),
            _ => false,
        })
    }

    /// Passes over a reply, whatever it says.
    pub(super) fn skip(&mut self) {
        self.0.next();
    }
}

/// A failure for a reply of unexpected shape.
pub(super) fn corrupt(what: impl Into<String>, problem: impl Into<String>) -> Failure {
    Failure::Final(Error::Corrupt { what: what.into(), problem: problem.into() })
}

/// The bytes of a string reply.
pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.as_bytes()),
        Value::Okay => Some(b"OK"),
        _ => None,
    }
}

/// A string reply as text.
pub(super) fn text(value: &Value) -> Option<&str> {
    std::str::from_utf8(bytes(value)?).ok()
}

/// A number, whether it came as one or as text.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        other => text(other)?.trim().parse().ok(),
    }
}

/// A whole number, exact to 64 bits.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Double(number) => Some(*number as i64),
        other => text(other)?.trim().parse().ok(),
    }
}

/// A count; never negative.
pub(super) fn count(value: &Value) -> Result<u64, Failure> {
    integer(value)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| corrupt("reply of the server", "it is not a count"))
}

/// The items of an array or a set.
pub(super) fn items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        _ => None,
    }
}

/// The value under `name` in a map.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| text(key) == Some(name)).map(|(_, value)| value),
        _ => None,
    }
}

/// A stored time in milliseconds.
pub(super) fn timestamp(value: &Value) -> Option<Timestamp> {
    integer(value).map(Timestamp)
}

/// A hex entry id.
pub(super) fn entry_id(value: &Value) -> Option<EntryId> {
    text(value)?.parse().ok()
}
