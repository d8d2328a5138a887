//! The router's background tasks. Each is a `run` that takes the [`TaskContext`](super::role::TaskContext)
//! and returns when the stop is requested.

pub(in crate::router) mod copies;
pub(in crate::router) mod dead_letters;
pub(in crate::router) mod observer;
pub(in crate::router) mod recheck;
pub(in crate::router) mod rescuer;
pub(in crate::router) mod shadow;
pub(in crate::router) mod single_flight;
