//! Jobs go to the worker that holds their beginning.
//!
//! Comes in: a request and the workers that live. Goes out: the lane of its tier that it is best put
//! on. [`beginning`] is a request's start as a chain of hashes, [`assignment`] says which worker takes
//! which lanes (workers and routers work it out alike), and [`placement`] remembers where beginnings
//! went and keeps the lanes balanced.

pub mod assignment;
pub mod beginning;
pub mod placement;

pub use assignment::Assignment;
pub use beginning::{Beginning, shared_blocks};
pub use placement::Placement;
