//! Statistics of measured values.

/// The median; NaN of no values.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// The median of the ratios of paired values, so that what slows a round down slows both sides down.
pub(super) fn median_ratio(values: &[f64], baseline: &[f64]) -> f64 {
    median(
        values
            .iter()
            .zip(baseline)
            .map(|(value, base)| value / base),
    )
}

/// The quantile `share` (0 to 1) of sorted values, to the nearest one; NaN of no values.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (share * last as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The values in ascending order.
pub(super) fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}
