//! Black-box tests, one binary so that they link once.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail the test; the allowances of .clippy.toml cover test functions only"
)]

mod conformance;
mod data;
mod redis_rules;
mod redis_server;
