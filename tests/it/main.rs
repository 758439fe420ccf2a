//! Black-box tests, one binary so that they link once.

#![expect(missing_docs, reason = "tests say what they are for in their names")]

mod conformance;
mod data;
mod redis_rules;
mod redis_server;
