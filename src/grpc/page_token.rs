//! Page tokens: opaque to callers, checked when they come back.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    error::Invalid,
    store::Cursor,
    types::{EntryId, Timestamp},
};

/// First byte of a token, so that a later form can be told apart.
const VERSION: u8 = 1;

/// Writes a position as a token.
pub(super) fn encode(cursor: &Cursor) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&cursor.expires.0.to_be_bytes());
    bytes.extend_from_slice(cursor.id.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a token; the empty one is the start.
pub(super) fn decode(token: &str) -> Result<Option<Cursor>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    let cursor = match bytes.split_first() {
        Some((&VERSION, rest)) => rest.split_first_chunk::<8>().and_then(|(expires, id)| {
            Some(Cursor { expires: Timestamp(i64::from_be_bytes(*expires)), id: EntryId::from_bytes(id)? })
        }),
        _ => None,
    };
    cursor
        .map(Some)
        .ok_or_else(|| Invalid::new("page_token", "is not one this server gave out; start again with an empty one"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_round_trips(expires in any::<i64>(), id in any::<[u8; 20]>()) {
            let cursor = Cursor { expires: Timestamp(expires), id: EntryId::from_bytes(&id).unwrap() };
            prop_assert_eq!(decode(&encode(&cursor)).unwrap(), Some(cursor));
        }

        #[test]
        fn any_text_is_a_token_or_a_clear_error(text in ".{0,60}") {
            if let Err(invalid) = decode(&text) {
                prop_assert_eq!(invalid.field_name(), "page_token");
            }
        }
    }
}
