//! The fleet on RabbitMQ and Postgres: real processes of the built binary, killed, drained, cut off
//! and fed what nobody should send. Each test has queues and tables of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod escalation;
mod example_producer;
mod flight;
mod http;
mod lanes;
mod learning;
mod load;
mod outage;
mod people;
mod producer;
mod release;
mod run;
mod same_answers;
mod semantic;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
