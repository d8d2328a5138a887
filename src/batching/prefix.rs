//! Hashes that identify prefixes of sequences.

use std::fmt;

/// Positions per KV block.
pub const BLOCK_TOKENS: usize = 32;

/// Identifies a prefix that ends with a full block: its sharing scope and all its tokens. The first
/// 128 bits of a BLAKE3 hash chained block by block, as in vLLM.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixHash([u8; 16]);

impl PrefixHash {
    /// The empty prefix of a scope. Sequences of different scopes (another model revision or tenant)
    /// never share blocks.
    pub(crate) fn of_scope(parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            // The length distinguishes ["ab", "c"] from ["a", "bc"].
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self::cut(&hasher)
    }

    /// The prefix extended by one block.
    #[must_use]
    pub(crate) fn then(self, tokens: &[u32; BLOCK_TOKENS]) -> Self {
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
    fn depends_on_scope_and_all_tokens() {
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
