//! A request's prompt prefix, as a chain of hashes: equal hashes mean equal text up to there.

use crate::job::{ChatRequest, Tenant};

/// Bytes of text that each hash adds to the one before it: some sixty tokens, two blocks of the engine's
/// cache.
pub const BLOCK_BYTES: usize = 256;
/// Longest prompt prefix that is hashed, in blocks.
pub const BLOCKS_MAX: usize = 256;

/// The hashes of a request's first block, first two blocks and so on; an incomplete last block is left
/// out.
pub type PromptPrefix = Vec<u64>;

/// The prompt prefix of a tenant's request, which engines compute once for all requests that share it.
/// Cleaning and pruning mostly keep it, and a wrong guess costs time, never an answer.
pub fn of(tenant: &Tenant, request: &ChatRequest) -> PromptPrefix {
    let mut chain = Chain::new(tenant);
    for message in &request.messages {
        for part in [message.role.as_str(), "\0", &message.content, "\0"] {
            if !chain.take(part.as_bytes()) {
                return chain.blocks;
            }
        }
    }
    chain.blocks
}

/// The number of blocks that two prompt prefixes have in common.
pub fn shared_blocks(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// An incomplete chain.
struct Chain {
    hasher: blake3::Hasher,
    /// Bytes of the incomplete block.
    filled: usize,
    blocks: PromptPrefix,
}

impl Chain {
    fn new(tenant: &Tenant) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(tenant.as_str().as_bytes());
        Self {
            hasher,
            filled: 0,
            blocks: Vec::new(),
        }
    }

    /// Adds text; false once the chain has its maximum length.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == BLOCK_BYTES {
                let digest = self.hasher.finalize();
                let (first, _) = digest.as_bytes().split_at(8);
                let hash = u64::from_le_bytes(first.try_into().expect("eight bytes"));
                self.blocks.push(hash);
                if self.blocks.len() == BLOCKS_MAX {
                    return false;
                }
                // The next block continues from this one.
                self.hasher.reset();
                self.hasher.update(digest.as_bytes());
                self.filled = 0;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::affinity::prefix::*;
    use crate::job::{RequestLimits, Submission};

    fn request(system: &str, user: &str) -> ChatRequest {
        let body = serde_json::json!({"messages": [
            {"role": "system", "content": system}, {"role": "user", "content": user}]});
        Submission::parse(body.to_string().as_bytes(), &RequestLimits::default())
            .expect("valid")
            .request
    }

    #[test]
    fn prefixes_diverge_where_tenants_or_texts_differ() {
        let system = "Be brief. ".repeat(100);
        let of = |tenant: &str, user: &str| {
            of(&tenant.parse().expect("a name"), &request(&system, user))
        };
        let (a, b) = (of("t", &"a".repeat(600)), of("t", &"b".repeat(600)));
        // "system", 1,000 bytes and two separators fill three blocks and a part.
        assert_eq!(shared_blocks(&a, &b), 3);
        assert_eq!(a.len(), 6);
        assert_eq!(shared_blocks(&a, &of("u", &"a".repeat(600))), 0);
        assert!(
            crate::affinity::prefix::of(&Tenant::default(), &request("hi", "short")).is_empty()
        );
        let long =
            crate::affinity::prefix::of(&Tenant::default(), &request(&"long ".repeat(20_000), "x"));
        assert_eq!(long.len(), BLOCKS_MAX);
    }

    proptest! {
        /// Two requests share exactly the whole blocks of their common text.
        #[test]
        fn requests_share_their_common_blocks(common in "[ab]{0,900}", a in "c[ab]{0,900}", b in "d[ab]{0,900}") {
            let tenant = Tenant::default();
            let first = of(&tenant, &request("s", &format!("{common}{a}")));
            let second = of(&tenant, &request("s", &format!("{common}{b}")));
            let before = "system\0s\0user\0".len() + common.len();
            prop_assert_eq!(shared_blocks(&first, &second), before / BLOCK_BYTES);
        }
    }
}
