//! Black-box tests, one binary so that they link once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets the unexpected ends there"
)]
#![expect(unreachable_pub, reason = "one binary, whose modules share what is public")]

mod cli;
mod conformance;
mod crash;
mod data;
mod embedded_dir;
mod grpc;
mod model;
mod python;
mod readme;
mod redis_rules;
mod redis_server;
mod rings;
mod server;
mod sidecar;
