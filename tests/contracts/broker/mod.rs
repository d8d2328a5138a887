//! One suite for both brokers: what [`promptyard::broker::Broker`] promises holds for each of
//! them. RabbitMQ is found through `PROMPTYARD_TEST_AMQP_URL`, else on the standard local port.

mod delivery;
mod embedded_only;
mod ends;
mod harness;
mod messages;
mod rabbit_only;
mod rabbit_restart;

/// Runs each test once on RabbitMQ and once embedded.
macro_rules! on_both {
    ($($module:ident::$test:ident),+ $(,)?) => {
        mod on_rabbit {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::broker::harness::in_time(crate::broker::$module::$test(&crate::broker::harness::TestBroker::rabbit())).await;
            })+
        }
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::broker::harness::in_time(crate::broker::$module::$test(&crate::broker::harness::TestBroker::embedded())).await;
            })+
        }
    };
}

on_both! {
    delivery::order_is_kept_and_an_acknowledged_message_is_gone,
    delivery::a_batch_fills_until_its_linger_or_its_size,
    delivery::prefetch_bounds_what_is_unsettled,
    delivery::a_requeued_message_is_redelivered,
    delivery::closing_a_consumer_requeues_undelivered_messages,
    delivery::two_consumers_share_without_duplicates,
    delivery::a_cancelled_next_batch_loses_nothing,
    delivery::several_queues_feed_one_consumer,
    delivery::ackers_of_a_closed_broker_are_ignored,
    delivery::depths_count_ready_messages,
    messages::an_envelope_arrives_as_it_left,
    messages::a_body_may_be_empty_or_large,
    messages::a_full_queue_refuses,
    messages::a_reply_without_a_queue_is_unroutable,
    ends::a_rejected_message_becomes_a_dead_letter,
    ends::an_expired_message_becomes_a_dead_letter,
    ends::a_message_delivered_too_often_becomes_a_dead_letter,
    ends::a_dead_letter_is_never_lost,
    ends::a_delayed_message_returns_on_time,
}
