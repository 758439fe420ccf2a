//! What can go wrong on the way to Redis and back, and the one table that explains it.

use redis::{ErrorKind, RedisError, ServerError};

use super::NAME;
use crate::store::Error;

/// A failure inside the engine, before it is known which verb it ends.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection broke or could not be made.
    Lost(String),
    /// No reply came in time.
    Silent,
    /// The server replied with an error.
    Reply(Refusal, String),
    /// An error of the port already.
    Final(Error),
}

/// The error replies this engine tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The index does not exist.
    NoIndex,
    /// The index exists already.
    IndexExists,
    /// The script is not loaded.
    NoScript,
    /// The search ran out of time.
    SearchTimeout,
    /// A command of the search module is unknown.
    NoSearchModule,
    /// The data set is being loaded.
    Loading,
    /// The server is a replica.
    ReadOnly,
    /// The server is out of memory.
    OutOfMemory,
    /// The user may not do this.
    NoPermission,
    /// User or password were refused.
    NoAuthentication,
    /// The key lies on another node of a cluster.
    Moved,
    /// Anything else.
    Other,
}

/// Beginnings of error replies, in lower case, as servers from Redis Stack 6.2 to Redis 8 send
/// them. The first match counts.
const BEGINNINGS: [(&str, Refusal); 28] = [
    ("noscript", Refusal::NoScript),
    ("loading", Refusal::Loading),
    ("busyloading", Refusal::Loading),
    ("masterdown", Refusal::Loading),
    ("readonly", Refusal::ReadOnly),
    ("oom", Refusal::OutOfMemory),
    ("noperm", Refusal::NoPermission),
    ("noauth", Refusal::NoAuthentication),
    ("wrongpass", Refusal::NoAuthentication),
    ("err invalid password", Refusal::NoAuthentication),
    ("err invalid username-password", Refusal::NoAuthentication),
    ("moved", Refusal::Moved),
    ("ask ", Refusal::Moved),
    ("clusterdown", Refusal::Moved),
    ("crossslot", Refusal::Moved),
    ("search_index_not_found", Refusal::NoIndex),
    ("unknown index name", Refusal::NoIndex),
    ("err unknown index name", Refusal::NoIndex),
    ("no such index", Refusal::NoIndex),
    ("err no such index", Refusal::NoIndex),
    ("search_index_exists", Refusal::IndexExists),
    ("index already exists", Refusal::IndexExists),
    ("err index already exists", Refusal::IndexExists),
    ("search_timeout", Refusal::SearchTimeout),
    ("timeout limit was reached", Refusal::SearchTimeout),
    ("err timeout limit was reached", Refusal::SearchTimeout),
    ("err unknown command 'ft.", Refusal::NoSearchModule),
    ("err unknown command `ft.", Refusal::NoSearchModule),
];

/// The ends of error replies that put a name first.
const ENDINGS: [(&str, Refusal); 1] = [(": no such index", Refusal::NoIndex)];

impl Refusal {
    /// Classifies the text of an error reply.
    pub(super) fn of(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let beginning = BEGINNINGS.iter().find(|(beginning, _)| lower.starts_with(beginning));
        let ending = || ENDINGS.iter().find(|(ending, _)| lower.ends_with(ending));
        beginning.or_else(ending).map_or(Self::Other, |(_, refusal)| *refusal)
    }
}

impl Failure {
    /// The failure behind an error reply.
    pub(super) fn reply(error: &ServerError) -> Self {
        let text = match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        };
        Self::Reply(Refusal::of(&text), text)
    }

    /// Whether the server replied with this refusal.
    pub(super) fn is(&self, refusal: Refusal) -> bool {
        matches!(self, Self::Reply(found, _) if *found == refusal)
    }

    /// The port's error, for the verb that ends here.
    pub(super) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Lost(problem) => unavailable(format!(
                "the connection is down ({problem}); check that Redis runs where store.redis.url says"
            )),
            Self::Silent => Error::Timeout { engine: NAME, operation },
            Self::Reply(refusal, text) => explain(refusal, &text, operation),
            Self::Final(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        if error.is_timeout() {
            return Self::Silent;
        }
        let text = error.to_string();
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Reply(Refusal::NoAuthentication, text),
            ErrorKind::RESP3NotSupported => Self::Final(no_resp3()),
            _ => match ServerError::try_from(error) {
                Ok(error) => Self::reply(&error),
                Err(_) => Self::Lost(text),
            },
        }
    }
}

/// The answer to a server that does not speak RESP3.
pub(super) fn no_resp3() -> Error {
    Error::Missing {
        what: "RESP3 on the Redis server".to_owned(),
        remedy: "Run Redis 6 or newer with RediSearch 2.8 or newer, for example the image redis:8".to_owned(),
    }
}

/// The answer to a server without the search module.
pub(super) fn no_search_module() -> Error {
    Error::Missing {
        what: "the search module of Redis".to_owned(),
        remedy:
            "Run the image redis:8 or redis/redis-stack-server, or start the server with --loadmodule redisearch.so"
                .to_owned(),
    }
}

fn unavailable(problem: String) -> Error {
    Error::Unavailable { engine: NAME, problem }
}

fn explain(refusal: Refusal, text: &str, operation: &'static str) -> Error {
    match refusal {
        Refusal::SearchTimeout => Error::Timeout { engine: NAME, operation },
        Refusal::NoSearchModule => no_search_module(),
        Refusal::Loading => {
            unavailable("Redis is still loading its data (LOADING); it answers when that is done".to_owned())
        }
        Refusal::ReadOnly => {
            unavailable("the server is a read-only replica (READONLY); point store.redis.url at the primary".to_owned())
        }
        Refusal::OutOfMemory => {
            unavailable("Redis is out of memory (OOM); raise maxmemory or set a volatile-* maxmemory-policy".to_owned())
        }
        Refusal::NoPermission => unavailable(format!(
            "the Redis user lacks a permission ({text}); it needs ~refrain:* and the commands of Refrain, FT.* included"
        )),
        Refusal::NoAuthentication => {
            unavailable("Redis refused the user or password; check those in store.redis.url".to_owned())
        }
        Refusal::Moved => unavailable(format!(
            "the server is part of a cluster ({text}); point store.redis.url at a server without cluster mode"
        )),
        Refusal::NoIndex | Refusal::IndexExists | Refusal::NoScript => {
            unavailable(format!("an index or script of {operation} keeps changing under the call ({text}); try again"))
        }
        Refusal::Other => unavailable(format!("Redis refused {operation}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_of_all_known_servers_are_told_apart() {
        for (text, refusal) in [
            ("refrain:{a}:index: no such index", Refusal::NoIndex),
            ("No such index refrain", Refusal::NoIndex),
            ("Unknown Index name", Refusal::NoIndex),
            ("SEARCH_INDEX_NOT_FOUND Index not found", Refusal::NoIndex),
            ("Index already exists", Refusal::IndexExists),
            ("LOADING Redis is loading the dataset in memory", Refusal::Loading),
            ("READONLY You can't write against a read only replica.", Refusal::ReadOnly),
            ("OOM command not allowed when used memory > 'maxmemory'.", Refusal::OutOfMemory),
            ("NOPERM No permissions to access a key", Refusal::NoPermission),
            ("NOAUTH Authentication required.", Refusal::NoAuthentication),
            ("WRONGPASS invalid username-password pair", Refusal::NoAuthentication),
            ("MOVED 15755 127.0.0.1:7001", Refusal::Moved),
            ("Timeout limit was reached", Refusal::SearchTimeout),
            ("ERR unknown command 'FT.SEARCH', with args beginning with: 'x'", Refusal::NoSearchModule),
            ("ERR unknown command 'HELLO'", Refusal::Other),
        ] {
            assert_eq!(Refusal::of(text), refusal, "{text}");
        }
    }
}
