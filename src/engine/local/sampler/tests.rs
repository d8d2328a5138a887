use std::collections::BTreeMap;

use serde::Deserialize;

use crate::job::{RequestLimits, Submission};

use super::*;

fn sampling(temperature: f32, top_k: u32, top_p: f32) -> Sampling {
    Sampling {
        temperature,
        top_p,
        top_k,
        ..Sampling::default()
    }
}

fn draws(sampling: &Sampling, seed: u64, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, seed, &[]);
    (0..2000)
        .map(|_| sampler.choose(logits, None).expect("finite").token)
        .collect()
}

const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

#[test]
fn greedy_takes_the_first_maximum_and_reports_its_probability() {
    let choice = Sampler::new(&sampling(0.0, 0, 1.0), 7, &[])
        .choose(&LOGITS, None)
        .expect("finite");
    assert_eq!(choice.token, 1);
    let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
    assert!((choice.logprob - (2.0f32.exp() / total).ln()).abs() < 1e-6);
}

/// Log-probability, entropy and margin by definition, in f64.
fn reference(logits: &[f32], token: usize) -> (f64, f64, f64) {
    let exps: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
    let total: f64 = exps.iter().sum();
    let mut probabilities: Vec<f64> = exps.iter().map(|exp| exp / total).collect();
    let logprob = probabilities[token].ln();
    let entropy = probabilities.iter().map(|p| -p * p.ln()).sum();
    probabilities.sort_by(|a, b| b.total_cmp(a));
    (logprob, entropy, probabilities[0] - probabilities[1])
}

#[test]
fn statistics_match_a_direct_softmax() {
    let mut random = StdRng::seed_from_u64(5);
    for size in [2, 3, 17, 1000] {
        for spread in [0.1_f32, 3.0, 20.0] {
            let logits: Vec<f32> = (0..size)
                .map(|_| (random.random::<f32>() - 0.5) * spread)
                .collect();
            for temperature in [0.0, 1.5] {
                let mut sampler = Sampler::new(&sampling(temperature, 0, 1.0), 3, &[]);
                let choice = sampler.choose(&logits, None).expect("finite");
                let (logprob, entropy, margin) = reference(&logits, choice.token as usize);
                assert!((f64::from(choice.logprob) - logprob).abs() < 1e-5);
                assert!((f64::from(choice.stats.entropy) - entropy).abs() < 1e-5);
                assert!((f64::from(choice.stats.margin) - margin).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn statistics_of_extreme_logits_are_finite() {
    for logits in [
        vec![f32::MAX, f32::MIN],
        vec![f32::MIN, f32::MAX, f32::MAX],
        vec![7.0],
        vec![0.0; 5],
    ] {
        let choice = Sampler::new(&sampling(0.0, 0, 1.0), 1, &[])
            .choose(&logits, None)
            .expect("finite");
        assert!(choice.logprob.is_finite() && choice.stats.entropy >= 0.0);
        assert!((0.0..=1.0).contains(&choice.stats.margin), "{logits:?}");
    }
}

#[test]
fn a_seed_is_reproducible_and_frequencies_match_probabilities() {
    let free = sampling(1.0, 0, 1.0);
    assert_eq!(draws(&free, 3, &LOGITS), draws(&free, 3, &LOGITS));
    assert_ne!(draws(&free, 3, &LOGITS), draws(&free, 4, &LOGITS));
    let drawn = draws(&free, 3, &LOGITS);
    let total: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
    for (token, logit) in LOGITS.iter().enumerate() {
        let share = drawn
            .iter()
            .filter(|drawn| **drawn as usize == token)
            .count() as f64
            / 2000.0;
        assert!(
            (share - f64::from(*logit).exp() / total).abs() < 0.04,
            "token {token}: {share}"
        );
    }
}

#[test]
fn filters_keep_the_most_likely() {
    assert!(
        draws(&sampling(1.0, 1, 1.0), 1, &LOGITS)
            .iter()
            .all(|token| *token == 1)
    );
    assert!(
        draws(&sampling(2.0, 3, 1.0), 1, &LOGITS)
            .iter()
            .all(|token| *token != 0)
    );
    // The two most likely have 0.799 of the probability, one alone 0.4.
    let nucleus = draws(&sampling(1.0, 0, 0.7), 1, &LOGITS);
    assert!(nucleus.iter().all(|token| [1, 3].contains(token)) && nucleus.contains(&3));
    assert!(
        draws(&sampling(1.0, 0, 1e-9), 1, &LOGITS)
            .iter()
            .all(|token| *token == 1)
    );
}

#[test]
fn logits_that_are_not_finite_are_errors() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut sampler = Sampler::new(&sampling(0.0, 0, 1.0), 1, &[]);
        assert_eq!(
            sampler.choose(&[1.0, bad], None),
            Err(SamplingError::NotFinite)
        );
    }
}

/// The row that tests/fixtures/sampling.py generates.
fn row(row: u64) -> Vec<f32> {
    (0..400_u64)
        .map(|token| {
            let value = (token * 2_654_435_761 + row * 40_503) % (1 << 32);
            ((value >> 16) % 160) as f32 / 8.0 - 10.0 + token as f32 / 3200.0
        })
        .collect()
}

/// The distribution that transformers' processors leave of a row.
#[derive(Deserialize)]
struct Golden {
    row: u64,
    sampling: serde_json::Value,
    count: usize,
    top: Vec<(u32, f64)>,
}

fn golden() -> Vec<Golden> {
    let json = include_str!("../../../../tests/fixtures/sampling.json");
    serde_json::from_str(json).expect("the fixture is JSON")
}

/// Sampling parameters parsed from a request with these fields.
fn sampling_of(fields: &serde_json::Value) -> Sampling {
    let mut body = fields.clone();
    body["prompt"] = "x".into();
    let read = Submission::parse(body.to_string().as_bytes(), &RequestLimits::default());
    read.expect("a valid body").request.sampling
}

#[test]
fn filters_and_penalties_match_transformers() {
    for golden in golden() {
        let sampling = sampling_of(&golden.sampling);
        let mut logits = row(golden.row);
        if let Some(mut penalties) = Penalties::of(&sampling, &[3, 11, 17, 11, 200]) {
            for token in [17, 42, 42, 200, 42] {
                penalties.count(token);
            }
            penalties.apply(&mut logits);
        }
        let highest = highest_two(Isa::best(), &logits).first;
        let filter = SamplingFilter::of(&sampling).expect("no case is greedy");
        let all = || {
            let weight = |logit: f32| f64::from((logit - highest) / sampling.temperature).exp();
            (0..)
                .zip(logits.iter().map(|logit| weight(*logit)))
                .collect()
        };
        let mut kept: Vec<(u32, f64)> = filter.kept(&logits, highest).unwrap_or_else(all);
        assert_eq!(kept.len(), golden.count, "{}", golden.sampling);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1));
        for ((token, weight), (expected, probability)) in kept.iter().zip(&golden.top) {
            assert_eq!(token, expected, "{}", golden.sampling);
            let found = weight / total;
            assert!(
                (found - probability).abs() < 1e-5 * (1.0 + probability),
                "{found} for {probability}"
            );
        }
    }
}

#[test]
fn greedy_obeys_penalties_and_reports_the_models_probability() {
    let plain = Sampler::new(&Sampling::default(), 0, &[]).choose(&LOGITS, None);
    let plain = plain.expect("finite");
    let sampling_of =
        sampling_of(&serde_json::json!({"repetition_penalty": 3.0, "presence_penalty": 0.5}));
    let mut sampler = Sampler::new(&sampling_of, 0, &[1]);
    // Token 1 of the prompt drops to 2/3, then token 3 to 2/3 - 0.5; token 2 is unchanged.
    let chosen: Vec<u32> = (0..3)
        .map(|_| sampler.choose(&LOGITS, None).expect("finite").token)
        .collect();
    assert_eq!(chosen, [3, 2, 1]);
    let biased = Sampling {
        logit_bias: BTreeMap::from([(0, 100.0), (9_999, 1.0)]),
        ..Sampling::default()
    };
    let choice = Sampler::new(&biased, 0, &[])
        .choose(&LOGITS, None)
        .expect("finite");
    assert_eq!(choice.token, 0);
    assert!(
        (choice.logprob - (plain.logprob - 2.0)).abs() < 1e-6,
        "before the bias"
    );
    assert_eq!(choice.stats, plain.stats);
}

#[test]
fn forbidden_tokens_are_never_chosen() {
    for temperature in [0.0, 1.0, 2.0] {
        for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.9)] {
            let sampling = sampling(temperature, top_k, top_p);
            let mut sampler = Sampler::new(&sampling, 5, &[]);
            for _ in 0..200 {
                let choice = sampler
                    .choose(&LOGITS, Some(&[0b0101]))
                    .expect("two are left");
                assert!([0, 2].contains(&choice.token));
            }
            let nothing = sampler.choose(&LOGITS, Some(&[0b1_0000]));
            assert_eq!(nothing, Err(SamplingError::NothingAllowed));
        }
    }
}

#[test]
fn alternatives_are_the_most_likely_tokens() {
    let logits = row(3);
    let mut sampling = sampling(0.0, 0, 1.0);
    let mut sampler = Sampler::new(&sampling, 1, &[]);
    assert_eq!(
        sampler.choose(&logits, None).expect("finite").alternatives,
        []
    );
    sampling.logprobs = Some(20);
    let choice = Sampler::new(&sampling, 1, &[])
        .choose(&logits, None)
        .expect("finite");
    assert_eq!(choice.alternatives[0], (choice.token, choice.logprob));
    let mut order: Vec<u32> = (0..400).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    for (found, token) in choice.alternatives.iter().zip(&order) {
        assert_eq!(found.0, *token);
        assert!((f64::from(found.1) - reference(&logits, *token as usize).0).abs() < 1e-5);
    }
    assert_eq!(choice.alternatives.len(), 20);
}

/// The filter by definition: everything sorted.
fn sorted_filter(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit - highest) / f64::from(sampling.temperature)).exp();
    let mut all: Vec<(u32, f64)> = (0..)
        .zip(logits.iter().map(|logit| weight(*logit)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        all.truncate(sampling.top_k as usize);
    }
    let target = all.iter().map(|(_, w)| w).sum::<f64>() * f64::from(sampling.top_p);
    let mut reached = 0.0;
    let enough = all.iter().position(|(_, weight)| {
        reached += weight;
        reached >= target
    });
    if sampling.top_p < 1.0 {
        all.truncate(enough.map_or(all.len(), |at| at + 1));
    }
    all.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
    let mut tokens: Vec<u32> = all.into_iter().map(|(token, _)| token).collect();
    tokens.sort_unstable();
    tokens
}

#[test]
fn filtering_without_sorting_matches_sorting() {
    let mut random = StdRng::seed_from_u64(9);
    for size in [1, 2, 100, 700, 5000] {
        for spread in [0.0_f32, 0.5, 8.0, 60.0] {
            let logits: Vec<f32> = (0..size)
                .map(|_| ((random.random::<f32>() - 0.5) * spread * 64.0).round() / 64.0)
                .collect();
            let highest = highest_two(Isa::best(), &logits).first;
            for (top_k, top_p, min_p) in [
                (0, 0.03, 0.0),
                (0, 0.49, 0.0),
                (0, 0.97, 0.0),
                (0, 0.9, 0.2),
                (0, 1.0, 0.013),
                (7, 1.0, 0.0),
                (300, 0.71, 0.0),
                (4000, 1.0, 0.001),
            ] {
                let mut sampling = sampling(1.25, top_k, top_p);
                sampling.min_p = min_p;
                let kept = SamplingFilter::of(&sampling)
                    .expect("drawn")
                    .kept(&logits, highest);
                let Some(kept) = kept else { continue };
                let kept: Vec<u32> = kept.into_iter().map(|(token, _)| token).collect();
                let expected = sorted_filter(&sampling, &logits);
                // Where the target lies on the border of two tokens, rounding may decide either way.
                let apart = kept.len().abs_diff(expected.len());
                assert!(
                    apart <= usize::from(top_p < 1.0),
                    "{size} {spread} {top_k} {top_p} {min_p}"
                );
                if apart == 0 {
                    assert_eq!(kept, expected);
                }
            }
        }
    }
}
