//! The fleet on RabbitMQ and Postgres: real processes of the built binary, killed, drained, cut off
//! and fed what nobody should send. Each test has queues and tables of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

mod affinity;
mod bad_input;
mod commands;
mod escalation;
mod example_producer;
mod http;
mod learning;
mod load;
mod outage;
mod producer;
mod readme;
mod release;
mod run;
mod same_answers;
mod semantic;
mod single_flight;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
