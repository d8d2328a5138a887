//! Blocks of the KV cache: who uses them, what the unused ones still hold, which is taken next.

use std::collections::HashMap;

use super::prefix::{BLOCK_TOKENS, PrefixHash};

/// One block of every layer's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Where it lies in an arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A full block's content, by name and by its own tokens.
#[derive(Clone, Debug)]
struct Content {
    prefix: PrefixHash,
    tokens: [u32; BLOCK_TOKENS],
}

#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    content: Option<Box<Content>>,
    /// Neighbours among the unused blocks with content.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

/// A fixed number of blocks, counted references, and the content of full ones.
///
/// A block is *used* (by one sequence, or by several that begin alike), or unused and *kept* (its
/// content may be asked for again), or *blank*. Blank blocks are taken first, then the kept one
/// that has been unused for longest.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    by_prefix: HashMap<PrefixHash, BlockId>,
    blank: Vec<BlockId>,
    kept: usize,
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
}

impl BlockPool {
    /// A pool of blank blocks.
    ///
    /// # Panics
    /// When there are more than fit a `u32`.
    pub fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("memory for that many blocks does not exist");
        Self {
            blocks: vec![Block::default(); blocks],
            by_prefix: HashMap::new(),
            // The lowest is taken first, so that an arena's memory is touched as it is needed.
            blank: (0..count).rev().map(BlockId).collect(),
            kept: 0,
            oldest: None,
            newest: None,
        }
    }

    /// Blocks in all.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True for a pool without blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks that nobody uses.
    pub fn available(&self) -> usize {
        self.blank.len() + self.kept
    }

    /// Takes an unused block and forgets what it held; `None` when all are used.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = match self.blank.pop() {
            Some(id) => id,
            None => {
                let id = self.oldest?;
                self.unlink(id);
                let content = self.blocks[id.index()].content.take();
                let content = content.expect("kept blocks have content");
                self.by_prefix.remove(&content.prefix);
                id
            }
        };
        self.blocks[id.index()].users = 1;
        Some(id)
    }

    /// The block that ends this beginning, used once more; its tokens are compared, too.
    pub fn reuse(&mut self, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) -> Option<BlockId> {
        let id = self.find(prefix, tokens)?;
        if self.blocks[id.index()].users == 0 {
            self.unlink(id);
        }
        self.blocks[id.index()].users += 1;
        Some(id)
    }

    /// Whether some block ends this beginning: `Some(true)` when somebody uses it.
    pub fn is_used(&self, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) -> Option<bool> {
        let id = self.find(prefix, tokens)?;
        Some(self.blocks[id.index()].users > 0)
    }

    fn find(&self, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) -> Option<BlockId> {
        let id = *self.by_prefix.get(&prefix)?;
        let content = self.blocks[id.index()].content.as_deref();
        (content?.tokens == *tokens).then_some(id)
    }

    /// Notes what a used block holds, so that others may use it, too. Where another block already
    /// holds the same, that one goes on being found.
    pub fn note(&mut self, id: BlockId, prefix: PrefixHash, tokens: &[u32; BLOCK_TOKENS]) {
        debug_assert!(
            self.blocks[id.index()].users > 0,
            "an unused block is filled"
        );
        if self.by_prefix.contains_key(&prefix) {
            return;
        }
        self.by_prefix.insert(prefix, id);
        let tokens = *tokens;
        self.blocks[id.index()].content = Some(Box::new(Content { prefix, tokens }));
    }

    /// Gives a block back once; the last user's return makes it kept or blank.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        debug_assert!(block.users > 0, "a block is given back twice");
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
        self.kept += 1;
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
        self.kept -= 1;
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
    fn a_hit_needs_the_same_tokens_and_not_only_the_same_name() {
        let mut pool = BlockPool::new(2);
        let id = pool.take().expect("blank");
        pool.note(id, prefix(1), &tokens(1));
        assert_eq!(pool.reuse(prefix(1), &tokens(2)), None);
        assert_eq!(pool.reuse(prefix(2), &tokens(1)), None);
        assert_eq!(pool.reuse(prefix(1), &tokens(1)), Some(id));
    }

    #[test]
    fn of_two_blocks_with_the_same_content_one_is_found_and_the_other_is_blank_after_use() {
        let mut pool = BlockPool::new(2);
        let (first, second) = (pool.take().expect("blank"), pool.take().expect("blank"));
        pool.note(first, prefix(1), &tokens(1));
        pool.note(second, prefix(1), &tokens(1));
        pool.release(second);
        pool.release(first);
        assert_eq!(
            pool.take(),
            Some(second),
            "what nobody finds is taken first"
        );
        assert_eq!(pool.reuse(prefix(1), &tokens(1)), Some(first));
    }

    /// What the pool promises, written down with lists that are searched.
    #[derive(Default)]
    struct Model {
        users: HashMap<BlockId, u32>,
        content: HashMap<BlockId, u32>,
        /// Unused blocks with content, the oldest first.
        kept: Vec<BlockId>,
    }

    proptest! {
        #[test]
        fn does_what_a_model_with_lists_does(
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
                            if model.kept.contains(&id) {
                                let lowest = blocks - model.users.len() == model.kept.len();
                                prop_assert!(lowest, "content was given up beside a blank block");
                                prop_assert_eq!(model.kept.remove(0), id, "not the oldest");
                                model.content.remove(&id);
                            }
                            model.users.insert(id, 1);
                        }
                        None => prop_assert_eq!(used.len(), blocks),
                    },
                    1 => {
                        let holder = model.content.iter().find(|(_, held)| **held == value);
                        let holder = holder.map(|(id, _)| *id);
                        let peeked = pool.is_used(prefix(value), &tokens(value));
                        prop_assert_eq!(peeked, holder.map(|id| model.users.contains_key(&id)));
                        prop_assert_eq!(pool.reuse(prefix(value), &tokens(value)), holder);
                        if let Some(id) = holder {
                            model.kept.retain(|kept| *kept != id);
                            *model.users.entry(id).or_default() += 1;
                        }
                    }
                    2 => {
                        let fresh = used.iter().find(|id| !model.content.contains_key(id));
                        if let Some(id) = fresh {
                            pool.note(*id, prefix(value), &tokens(value));
                            if !model.content.values().any(|held| *held == value) {
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
                                model.kept.push(*id);
                            }
                        }
                    },
                }
                prop_assert_eq!(pool.available(), blocks - model.users.len());
            }
        }
    }
}
