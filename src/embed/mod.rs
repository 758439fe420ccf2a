//! Text to vectors.

pub mod model;
