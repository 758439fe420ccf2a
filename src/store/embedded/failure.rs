//! What SQLite's failures mean to a caller, said once.

use rusqlite::ErrorCode;

use super::NAME;
use crate::store::Error;

/// The engine cannot serve; `problem` says why and what to do.
pub(super) fn unavailable(problem: impl Into<String>) -> Error {
    Error::Unavailable { engine: NAME, problem: problem.into() }
}

/// The engine was closed, or its thread ended.
pub(super) fn closed() -> Error {
    unavailable("it is closed; the server is stopping")
}

/// A failure of `doing`, with what the operator can do about it.
pub(super) fn sql(doing: &str, error: &rusqlite::Error) -> Error {
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.code,
        // The statement ran, but a value had another type than this version writes.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => {
            return Error::Corrupt { what: format!("the record read while {doing}"), problem: error.to_string() };
        }
        _ => return unavailable(format!("{doing} failed: {error}")),
    };
    match code {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Error::Corrupt {
            what: "the database file".to_owned(),
            problem: format!(
                "{doing} found {error}. Stop the sidecar, move the data directory aside and start again: \
                 the cache refills itself"
            ),
        },
        ErrorCode::DiskFull => {
            unavailable(format!("{doing} failed: the disk is full. Free space where the data directory lies"))
        }
        ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly => {
            unavailable(format!("{doing} failed: {error}. Check the disk and the rights of the data directory"))
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            unavailable(format!("{doing} failed: {error}. Another program has the database open; close it"))
        }
        _ => unavailable(format!("{doing} failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn failure(code: i32) -> Error {
        sql("writing", &rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = failure(ffi::SQLITE_FULL);
        assert!(matches!(&error, Error::Unavailable { .. }) && error.to_string().contains("Free space"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_not_an_outage() {
        assert!(matches!(failure(ffi::SQLITE_CORRUPT), Error::Corrupt { .. }));
        assert!(matches!(failure(ffi::SQLITE_NOTADB), Error::Corrupt { .. }));
        assert!(matches!(failure(ffi::SQLITE_IOERR), Error::Unavailable { .. }));
    }
}
