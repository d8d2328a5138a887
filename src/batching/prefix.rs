//! Names for the beginnings of sequences.

use std::fmt;

/// Positions that a KV block holds.
pub const BLOCK_TOKENS: usize = 32;

/// Names everything up to the end of a full block: the scope it may be reused in, and every token
/// since the beginning. 128 bits of BLAKE3, each link over the one before (as vLLM chains them).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixHash([u8; 16]);

impl PrefixHash {
    /// The empty beginning within a scope. Sequences of different scopes (another model revision,
    /// another tenant) never share a block.
    pub fn of_scope(parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            // The length keeps ["ab", "c"] and ["a", "bc"] apart.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self::cut(&hasher)
    }

    /// The beginning that is one block longer.
    #[must_use]
    pub fn then(self, tokens: &[u32; BLOCK_TOKENS]) -> Self {
        let mut bytes = [0; 16 + 4 * BLOCK_TOKENS];
        bytes[..16].copy_from_slice(&self.0);
        for (to, token) in bytes[16..].chunks_exact_mut(4).zip(tokens) {
            to.copy_from_slice(&token.to_le_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        Self::cut(&hasher)
    }

    fn cut(hasher: &blake3::Hasher) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(half)
    }
}

impl fmt::Debug for PrefixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_scope_and_on_every_token_before() {
        let root = PrefixHash::of_scope(&["r1", "a"]);
        assert_ne!(root, PrefixHash::of_scope(&["r1a", ""]));
        assert_ne!(root, PrefixHash::of_scope(&["r1", "b"]));
        let (first, second) = ([1; BLOCK_TOKENS], [2; BLOCK_TOKENS]);
        assert_eq!(
            root.then(&first).then(&second),
            root.then(&first).then(&second)
        );
        assert_ne!(
            root.then(&first).then(&second),
            root.then(&second).then(&second)
        );
        let mut last = second;
        last[BLOCK_TOKENS - 1] = 3;
        assert_ne!(root.then(&second), root.then(&last));
    }
}
