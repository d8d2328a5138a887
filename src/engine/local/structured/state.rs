/// State of a grammar after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::local) enum GrammarState {
    /// More tokens may or must follow.
    Open,
    /// The answer is complete: no token may follow.
    Complete,
    /// The grammar cannot continue, for instance because its parser grew too large.
    Stuck,
}
