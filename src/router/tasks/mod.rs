//! What the router does beside its loop, each as a task that ends with the router.

pub(in crate::router) mod copies;
pub(in crate::router) mod dead_letters;
pub(in crate::router) mod observer;
pub(in crate::router) mod recheck;
pub(in crate::router) mod rescuer;
pub(in crate::router) mod shadow;
pub(in crate::router) mod single_flight;
