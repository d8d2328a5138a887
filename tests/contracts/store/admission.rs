//! Admission: repeated messages create no second job.

use promptyard::{
    job::{JobHead, JobState, Priority, ReplyTo, Tier},
    store::{Admission, AdmissionDecision, Admitted, Store},
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, cache_key, head, keyed, plain, reason, record, route, tenant,
    },
};

contract! {
    /// All of a job's envelope is kept and comes back with the record and the job.
    async fn keeps_the_envelope(store: Store) {
        let head = JobHead {
            tenant: tenant("acme"),
            key: Some("k".to_owned()),
            custom_id: Some("row-1".to_owned()),
            batch: Some("b-1".to_owned()),
            deadline: Some(crate::support::store::now() + chrono::TimeDelta::hours(1)),
            reply_to: Some(ReplyTo { queue: "answers".to_owned(), correlation_id: Some("c".to_owned()) }),
            priority: Priority::High,
            redrive_of: Some(promptyard::job::JobId::now()),
            ..head()
        };
        let sent = plain(head.clone());
        assert_eq!(admit_one(&store, sent.clone()).await, Admitted::Routed);
        let record = record(&store, head.id).await;
        assert_eq!(record.state, JobState::Routed);
        assert_eq!(record.tier, Some(Tier::Small));
        assert_eq!(record.score, Some(0.25));
        assert_eq!(record.custom_id, head.custom_id);
        assert_eq!(record.reply_to, head.reply_to);
        assert_eq!(record.submitted_at, head.submitted_at);
        let job = store.job(head.id).await.unwrap().unwrap();
        assert_eq!(job.head, head);
        assert_eq!(Some(job.request), sent.request);
        assert_eq!(store.job(promptyard::job::JobId::now()).await.unwrap(), None);
    }

    /// The same key with the same request is the same job, under any message id.
    async fn a_known_key_is_recognised(store: Store) {
        let first = plain(keyed("k"));
        assert_eq!(admit_one(&store, first.clone()).await, Admitted::Routed);
        let Admitted::Known(known) = admit_one(&store, plain(keyed("k"))).await else {
            panic!("the key is known");
        };
        assert_eq!(known.id, first.head.id);
        assert_eq!(known.state, JobState::Routed);
        let by_key = store
            .records_by_key(&first.head.tenant, &["k".to_owned(), "other".to_owned()])
            .await
            .unwrap();
        assert_eq!(by_key.len(), 1);
        assert_eq!(by_key[0].id, first.head.id);
    }

    /// A message without a key that is delivered twice is known by its id.
    async fn a_known_id_is_recognised(store: Store) {
        let sent = plain(head());
        assert_eq!(admit_one(&store, sent.clone()).await, Admitted::Routed);
        assert!(matches!(admit_one(&store, sent).await, Admitted::Known(_)));
    }

    /// A key under which something else was asked is refused, and nothing is written.
    async fn refuses_a_reused_key(store: Store) {
        let first = plain(keyed("k"));
        admit_one(&store, first.clone()).await;
        let other = admission(keyed("k"), "another prompt", route(Tier::Small, None));
        let id = other.head.id;
        assert_eq!(
            admit_one(&store, other).await,
            Admitted::KeyReused { owner: first.head.id }
        );
        assert_eq!(store.records(&[id]).await.unwrap(), []);
        let same_id = admission(first.head.clone(), "a third prompt", route(Tier::Small, None));
        assert_eq!(
            admit_one(&store, same_id).await,
            Admitted::KeyReused { owner: first.head.id }
        );
    }

    /// An id that is known under no key or another one is not written again, and takes no key.
    async fn an_id_with_another_key_is_known(store: Store) {
        let first = plain(head());
        admit_one(&store, first.clone()).await;
        let again = plain(JobHead { key: Some("late".to_owned()), ..first.head.clone() });
        assert!(matches!(admit_one(&store, again).await, Admitted::Known(_)));
        let foreign = admission(
            JobHead { key: Some("stray".to_owned()), ..first.head.clone() },
            "another prompt",
            route(Tier::Small, None),
        );
        assert_eq!(admit_one(&store, foreign).await, Admitted::KeyReused { owner: first.head.id });
        let stray = store.records_by_key(&first.head.tenant, &["stray".to_owned()]).await.unwrap();
        assert_eq!(stray, []);
    }

    /// A known job takes no second key: it stays free for the job that comes with it first.
    async fn known_jobs_take_no_other_key(store: Store) {
        let first = plain(keyed("k"));
        admit_one(&store, first.clone()).await;
        let again = plain(JobHead { key: Some("other".to_owned()), ..first.head.clone() });
        let Admitted::Known(known) = admit_one(&store, again.clone()).await else {
            panic!("the id is known");
        };
        assert_eq!((known.id, known.key.as_deref()), (first.head.id, Some("k")));
        let other = plain(keyed("other"));
        let batch = [again, other.clone()];
        let admitted = store.admit(&batch, LONG).await.unwrap();
        assert_eq!(admitted, [Admitted::Known(known), Admitted::Routed]);
        let by_key = store.records_by_key(&first.head.tenant, &["other".to_owned()]).await.unwrap();
        assert_eq!(by_key[0].id, other.head.id);
    }

    /// A repeat within the batch that moves the job sees the new state.
    async fn repeated_admissions_see_the_new_tier(store: Store) {
        let moves = plain(head());
        let queued = Admission { decision: AdmissionDecision::Queue, ..moves.clone() };
        let batch = [queued, moves.clone(), moves.clone()];
        let admitted = store.admit(&batch, LONG).await.unwrap();
        let known = record(&store, moves.head.id).await;
        assert_eq!(known.tier, Some(Tier::Small));
        assert_eq!(admitted, [Admitted::Queued, Admitted::Routed, Admitted::Known(Box::new(known))]);
    }

    /// Tenants do not share keys.
    async fn keys_belong_to_tenants(store: Store) {
        admit_one(&store, plain(keyed("k"))).await;
        let other = JobHead { tenant: tenant("other"), ..keyed("k") };
        assert_eq!(admit_one(&store, plain(other)).await, Admitted::Routed);
    }

    /// A queued job moves on when the router admits it, once.
    async fn queued_jobs_move_on(store: Store) {
        let head = keyed("k");
        let queued = admission(head.clone(), "a prompt", AdmissionDecision::Queue);
        assert_eq!(admit_one(&store, queued.clone()).await, Admitted::Queued);
        assert_eq!(record(&store, head.id).await.state, JobState::Queued);
        let Admitted::Known(known) = admit_one(&store, queued).await else {
            panic!("a queued job is known");
        };
        assert_eq!(known.state, JobState::Queued);
        let routed = plain(head.clone());
        assert_eq!(admit_one(&store, routed.clone()).await, Admitted::Routed);
        assert_eq!(record(&store, head.id).await.tier, Some(Tier::Small));
        assert!(matches!(admit_one(&store, routed).await, Admitted::Known(_)));
    }

    /// A queued job can end at the router, too.
    async fn queued_jobs_can_be_rejected(store: Store) {
        let head = keyed("k");
        admit_one(&store, admission(head.clone(), "a prompt", AdmissionDecision::Queue)).await;
        let end = AdmissionDecision::End { state: JobState::Rejected, reason: reason("model_not_found") };
        let Admitted::Ended(ended) = admit_one(&store, admission(head.clone(), "a prompt", end)).await else {
            panic!("the job is rejected");
        };
        assert_eq!(*ended, record(&store, head.id).await);
        assert_eq!(ended.state, JobState::Rejected);
        assert!(ended.finished_at.is_some());
    }

    /// A refused job is a terminal row with its reason, even without a readable request.
    async fn ends_are_written(store: Store) {
        let sent = Admission {
            request: None,
            decision: AdmissionDecision::End { state: JobState::Rejected, reason: reason("invalid_json") },
            ..plain(head())
        };
        let Admitted::Ended(ended) = admit_one(&store, sent.clone()).await else {
            panic!("the job is rejected");
        };
        assert_eq!(ended.reason, Some(reason("invalid_json")));
        assert_eq!(*ended, record(&store, sent.head.id).await);
        assert_eq!(store.job(sent.head.id).await.unwrap(), None);
    }

    /// Within one batch, later admissions see earlier ones: repeats, reused keys, moves, repeated ids.
    async fn batches_see_themselves(store: Store) {
        let first = plain(keyed("k"));
        let repeat = plain(keyed("k"));
        let reused = admission(keyed("k"), "another prompt", route(Tier::Small, None));
        let queued = admission(keyed("q"), "a prompt", AdmissionDecision::Queue);
        let moved = plain(queued.head.clone());
        let bare = plain(head());
        let batch = [
            first.clone(), repeat, reused, queued.clone(), moved.clone(), moved, bare.clone(), bare.clone(), bare,
        ];
        let outcomes = store.admit(&batch, LONG).await.unwrap();
        assert_eq!(outcomes[0], Admitted::Routed);
        assert!(matches!(&outcomes[1], Admitted::Known(known) if known.id == first.head.id));
        assert_eq!(outcomes[2], Admitted::KeyReused { owner: first.head.id });
        assert_eq!(outcomes[3], Admitted::Queued);
        assert_eq!(outcomes[4], Admitted::Routed);
        assert!(matches!(&outcomes[5], Admitted::Known(known) if known.state == JobState::Routed));
        assert_eq!(outcomes[6], Admitted::Routed);
        assert!(matches!(outcomes[7], Admitted::Known(_)));
        assert!(matches!(outcomes[8], Admitted::Known(_)));
        assert_eq!(record(&store, queued.head.id).await.state, JobState::Routed);
    }

    /// Empty batches have no effect.
    async fn empty_batches_do_nothing(store: Store) {
        assert_eq!(store.admit(&[], LONG).await.unwrap(), []);
        assert_eq!(store.claim(&crate::support::store::claimant("w"), &[]).await.unwrap(), []);
        assert_eq!(store.settle(&[], LONG).await.unwrap(), []);
        assert_eq!(store.end(&[]).await.unwrap(), []);
        assert_eq!(store.records(&[]).await.unwrap(), []);
        store.keep_dead_letters(&[]).await.unwrap();
    }

    /// Texts with NUL, emoji and quotes come back unchanged wherever a producer may put them.
    async fn keeps_every_character(store: Store) {
        let odd = "a\0b \u{FDD0}0 😀 ' \" \\ \u{202e} \\u0000";
        let head = JobHead {
            key: Some(odd.to_owned()),
            custom_id: Some(odd.to_owned()),
            batch: Some(odd.to_owned()),
            reply_to: Some(ReplyTo { queue: odd.to_owned(), correlation_id: Some(odd.to_owned()) }),
            ..head()
        };
        let sent = admission(head.clone(), odd, route(Tier::Small, Some(cache_key("odd"))));
        assert_eq!(admit_one(&store, sent.clone()).await, Admitted::Routed);
        let job = store.job(head.id).await.unwrap().unwrap();
        assert_eq!(job.head, head);
        assert_eq!(Some(job.request), sent.request);
        let found = store.records_by_key(&head.tenant, &[odd.to_owned()]).await.unwrap();
        assert_eq!(found.len(), 1);
        let (settled, _) = crate::support::store::succeed(&store, head.id, odd, Some(cache_key("odd"))).await;
        assert_eq!(settled.answer.as_ref().unwrap().text, odd);
        assert_eq!(record(&store, head.id).await, settled);
        let again = admission(crate::support::store::head(), odd, route(Tier::Small, Some(cache_key("odd"))));
        let Admitted::Ended(hit) = admit_one(&store, again).await else { panic!("a hit") };
        assert_eq!(hit.answer, settled.answer);
    }
}
