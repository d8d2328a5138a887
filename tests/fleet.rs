//! The fleet on RabbitMQ and Postgres: real processes of the built binary, killed, drained, cut off
//! and fed what nobody should send. Each test has queues and tables of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "fleet/bad_input.rs"]
mod bad_input;
#[path = "fleet/escalation.rs"]
mod escalation;
#[path = "fleet/flight.rs"]
mod flight;
#[path = "fleet/harness.rs"]
mod harness;
#[path = "fleet/http.rs"]
mod http;
#[path = "fleet/lanes.rs"]
mod lanes;
#[path = "fleet/learning.rs"]
mod learning;
#[path = "fleet/load.rs"]
mod load;
#[path = "fleet/outage.rs"]
mod outage;
#[path = "fleet/people.rs"]
mod people;
#[path = "fleet/producer.rs"]
mod producer;
#[path = "broker_contract/proxy.rs"]
mod proxy;
#[path = "fleet/release.rs"]
mod release;
#[path = "fleet/same_answers.rs"]
mod same_answers;
#[path = "fleet/semantic.rs"]
mod semantic;
