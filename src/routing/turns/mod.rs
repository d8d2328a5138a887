//! Whose turn it is: jobs that must wait are held in the ledger, where tenants take turns, and not in
//! a queue, where the first who comes has all of it.
//!
//! A tier's queue is kept as short as its workers need it ([`window`]). What comes beyond that, or belongs
//! to a tenant whose jobs are counted, is held by the router that admits it ([`holding`]); one router at a
//! time releases what is held ([`release`]), in the order that [`fair`] makes of weights, quotas and
//! ranks. Jobs that are not to begin yet are held likewise, and go to the router when their time has
//! come. [`sweep`] finds what a fault left behind.

mod fair;
mod holding;
pub(super) mod release;
pub(super) mod sweep;
mod window;

pub(super) use holding::Holding;
