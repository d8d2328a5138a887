//! The pool of KV cache blocks: usage counts, contents of unused blocks, and eviction order.

use std::collections::HashMap;

use super::prefix::{BLOCK_TOKENS, PrefixHash};

/// A block of the KV cache, in every layer's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Index into an arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A full block's content: its prefix hash and its tokens.
#[derive(Clone, Debug)]
struct BlockContent {
    prefix: PrefixHash,
    tokens: [u32; BLOCK_TOKENS],
}

#[derive(Clone, Debug, Default)]
struct KvBlock {
    users: u32,
    content: Option<Box<BlockContent>>,
    /// Neighbours in the LRU list of cached blocks.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

/// A fixed number of reference-counted blocks and the contents of the full ones.
///
/// A block is *used* (by one sequence, or several with a common prefix), *cached* (unused, content
/// reusable) or *blank*. Blank blocks are taken first, then the least recently used cached one.
#[derive(Clone, Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<KvBlock>,
    by_prefix: HashMap<PrefixHash, BlockId>,
    blank: Vec<BlockId>,
    cached: usize,
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
}

impl BlockPool {
    /// A pool of blank blocks.
    ///
    /// # Panics
    /// When the count exceeds `u32`.
    pub(crate) fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("memory for that many blocks does not exist");
        Self {
            blocks: vec![KvBlock::default(); blocks],
            by_prefix: HashMap::new(),
            // Take the lowest first, so that an arena's memory is touched only as needed.
            blank: (0..count).rev().map(BlockId).collect(),
            cached: 0,
            oldest: None,
            newest: None,
        }
    }

    /// Total number of blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that no sequence uses.
    pub(crate) fn available(&self) -> usize {
        self.blank.len() + self.cached
    }

    /// Takes an unused block and drops its content; `None` when all are used.
    pub(crate) fn take(&mut self) -> Option<BlockId> {
        let id = match self.blank.pop() {
            Some(id) => id,
            None => {
                let id = self.oldest?;
                self.unlink(id);
                let content = self.blocks[id.index()].content.take();
                let content = content.expect("cached blocks have content");
                self.by_prefix.remove(&content.prefix);
                id
            }
        };
        self.blocks[id.index()].users = 1;
        Some(id)
    }

    /// Finds the cached block that ends this prefix and adds a user; compares its tokens as well.
    pub(crate) fn reuse(
        &mut self,
        prefix: PrefixHash,
        tokens: &[u32; BLOCK_TOKENS],
    ) -> Option<BlockId> {
        let id = self.find(prefix, tokens)?;
        if self.blocks[id.index()].users == 0 {
            self.unlink(id);
        }
        self.blocks[id.index()].users += 1;
        Some(id)
    }

    /// Looks up the block that ends this prefix: `Some(true)` when it is in use, `Some(false)` when cached.
    pub(crate) fn is_used(&self, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) -> Option<bool> {
        let id = self.find(prefix, tokens)?;
        Some(self.blocks[id.index()].users > 0)
    }

    fn find(&self, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) -> Option<BlockId> {
        let id = *self.by_prefix.get(&prefix)?;
        let content = self.blocks[id.index()].content.as_deref();
        (content?.tokens == *tokens).then_some(id)
    }

    /// Records the content of a used block so that other sequences can reuse it. A block already
    /// recorded for the same prefix is kept.
    pub(crate) fn record(&mut self, id: BlockId, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) {
        debug_assert!(
            self.blocks[id.index()].users > 0,
            "recorded the content of an unused block"
        );
        if self.by_prefix.contains_key(&prefix) {
            return;
        }
        self.by_prefix.insert(prefix, id);
        let tokens = *tokens;
        self.blocks[id.index()].content = Some(Box::new(BlockContent { prefix, tokens }));
    }

    /// Removes one user; without users the block becomes cached or blank.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        debug_assert!(block.users > 0, "a block is released twice");
        block.users -= 1;
        if block.users > 0 {
            return;
        }
        if block.content.is_none() {
            self.blank.push(id);
            return;
        }
        block.older = self.newest;
        block.newer = None;
        match self.newest {
            Some(newest) => self.blocks[newest.index()].newer = Some(id),
            None => self.oldest = Some(id),
        }
        self.newest = Some(id);
        self.cached += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        let (older, newer) = (block.older.take(), block.newer.take());
        match older {
            Some(older) => self.blocks[older.index()].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.blocks[newer.index()].older = older,
            None => self.newest = older,
        }
        self.cached -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(value: u32) -> [u32; BLOCK_TOKENS] {
        [value; BLOCK_TOKENS]
    }

    fn prefix(value: u32) -> PrefixHash {
        PrefixHash::of_scope(&["test"]).then(&tokens(value))
    }

    #[test]
    fn a_hit_compares_tokens_and_not_only_the_hash() {
        let mut pool = BlockPool::new(2);
        let id = pool.take().expect("blank");
        pool.record(id, prefix(1), &tokens(1));
        assert_eq!(pool.reuse(prefix(1), &tokens(2)), None);
        assert_eq!(pool.reuse(prefix(2), &tokens(1)), None);
        assert_eq!(pool.reuse(prefix(1), &tokens(1)), Some(id));
    }

    #[test]
    fn of_two_blocks_with_equal_content_only_the_first_is_cached() {
        let mut pool = BlockPool::new(2);
        let (first, second) = (pool.take().expect("blank"), pool.take().expect("blank"));
        pool.record(first, prefix(1), &tokens(1));
        pool.record(second, prefix(1), &tokens(1));
        pool.release(second);
        pool.release(first);
        assert_eq!(
            pool.take(),
            Some(second),
            "a block that cannot be found is taken first"
        );
        assert_eq!(pool.reuse(prefix(1), &tokens(1)), Some(first));
    }

    /// The pool's contract as a naive model with linear search.
    #[derive(Default)]
    struct Model {
        users: HashMap<BlockId, u32>,
        content: HashMap<BlockId, u32>,
        /// Unused blocks with content, least recently used first.
        cached: Vec<BlockId>,
    }

    proptest! {
        #[test]
        fn behaves_like_the_naive_model(
            blocks in 1usize..8,
            moves in prop::collection::vec((0u8..4, 0u32..6), 1..200),
        ) {
            let mut pool = BlockPool::new(blocks);
            let mut model = Model::default();
            for (what, value) in moves {
                let used: Vec<BlockId> = model.users.keys().copied().collect();
                match what {
                    0 => match pool.take() {
                        Some(id) => {
                            prop_assert!(!model.users.contains_key(&id), "a used block was taken");
                            if model.cached.contains(&id) {
                                let lowest = blocks - model.users.len() == model.cached.len();
                                prop_assert!(lowest, "content was evicted while a block was blank");
                                prop_assert_eq!(model.cached.remove(0), id, "not the oldest");
                                model.content.remove(&id);
                            }
                            model.users.insert(id, 1);
                        }
                        None => prop_assert_eq!(used.len(), blocks),
                    },
                    1 => {
                        let holder = model.content.iter().find(|(_, cached)| **cached == value);
                        let holder = holder.map(|(id, _)| *id);
                        let peeked = pool.is_used(prefix(value), &tokens(value));
                        prop_assert_eq!(peeked, holder.map(|id| model.users.contains_key(&id)));
                        prop_assert_eq!(pool.reuse(prefix(value), &tokens(value)), holder);
                        if let Some(id) = holder {
                            model.cached.retain(|cached| *cached != id);
                            *model.users.entry(id).or_default() += 1;
                        }
                    }
                    2 => {
                        let fresh = used.iter().find(|id| !model.content.contains_key(id));
                        if let Some(id) = fresh {
                            pool.record(*id, prefix(value), &tokens(value));
                            if !model.content.values().any(|cached| *cached == value) {
                                model.content.insert(*id, value);
                            }
                        }
                    }
                    _ => if let Some(id) = used.get(value as usize) {
                        pool.release(*id);
                        let left = model.users[id] - 1;
                        if left > 0 {
                            model.users.insert(*id, left);
                        } else {
                            model.users.remove(id);
                            if model.content.contains_key(id) {
                                model.cached.push(*id);
                            }
                        }
                    },
                }
                prop_assert_eq!(pool.available(), blocks - model.users.len());
            }
        }
    }
}
