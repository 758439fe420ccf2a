//! Refrain: a sidecar for programs that call language models.
//!
//! It answers over gRPC: *have we answered this before?* It matches by meaning, with a model that
//! runs inside the process. This page is the map; read it top to bottom.
//!
//! Three rings. The domain modules know no tonic, no redis and no rusqlite type and take time from
//! [`clock`]. The ports in [`store`] and [`embed::model`] are small traits of domain verbs. The
//! adapters are the engines below [`store`], the model adapters below [`embed`] and the edge in
//! [`grpc`]. [`app`] alone knows them all.

// The domain.
pub mod cache;
pub mod embed;

// Values everybody shares.
pub mod clock;
pub mod error;
pub mod secret;
pub mod types;

// The adapters.
pub mod grpc;
pub mod store;
pub mod telemetry;

// Putting it together.
pub mod app;
pub mod cli;
pub mod config;

/// The README's Rust snippets compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
