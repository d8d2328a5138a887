//! Errors for names that match no variant of an enum.

use strum::VariantNames;

/// Says which names `T` has and which one was found; for strum's `parse_err_fn`.
pub(crate) fn unknown_name<T: VariantNames>(found: &str) -> String {
    let quoted: Vec<_> = T::VARIANTS.iter().map(|name| format!("{name:?}")).collect();
    let (last, others) = quoted.split_last().expect("an enum has variants");
    format!("expected {} or {last}, found {found:?}", others.join(", "))
}
