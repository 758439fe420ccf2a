//! Refrain.

pub mod clock;
pub mod embed;
pub mod error;
pub mod secret;
pub mod store;
pub mod types;
