//! The locks that the queue is made of, in one place: the model check of the queue puts its own
//! in their stead and explores the orders in which threads can run.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
