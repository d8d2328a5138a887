//! What several test binaries share: the built binary, servers, fleets, databases, fixtures, and
//! waiting with a limit.

pub mod binary;
pub mod fleet;
pub mod models;
pub mod poll;
pub mod postgres_server;
pub mod proxy;
pub mod rabbit_server;
pub mod servers;
pub mod store;
pub mod workdir;
