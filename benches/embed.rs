//! What surrounds the model: picking a batch, and a memo hit.
fn main() {}
