//! The gRPC edge: thin. A method makes four moves: convert and validate, read the deadline, call
//! the domain, convert back.
//!
//! *Architecture invariant:* nothing is decided here; generated types do not go further inside.

pub mod health;
pub mod server;

mod admin;
mod cache;
mod convert;
mod embedding;
mod layers;
mod page_token;
mod status;

/// The contract, generated from `proto/`.
#[allow(clippy::pedantic, clippy::large_enum_variant, unreachable_pub, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("refrain.v1");

    /// Descriptors of the contract, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/refrain_v1.bin"));
}

pub use self::{admin::AdminApi, cache::CacheApi, embedding::EmbeddingApi};
