//! Fair scheduling: jobs that cannot start yet are deferred in the job database, not in a queue,
//! where the first tenant to arrive would take all of it.
//!
//! A tier's queue is kept only as long as its workers need (`window`). Jobs beyond that, and jobs of
//! tenants with limits, are deferred by the router that admits them (`admission`); one router at a
//! time releases them (`releaser`) in the order that `fair_queue` derives from weights, limits and
//! ranks. Jobs with a start time are deferred until then and go to the router.

mod admission;
mod fair_queue;
pub(super) mod releaser;
mod window;

pub(super) use admission::AdmissionControl;
