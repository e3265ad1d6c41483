//! The keyed hash tree between tag blocks and root hash.
//!
//! The *working tree* belongs to the working size. Invariants: the hash of a block that is not
//! loaded stands in its (working) parent exactly as committed, so it can always be verified; the
//! hash of a dirty block is [`DIRTY`] in its parent, and so on up to the top; dirty blocks are
//! never evicted; a zero hash is an empty subtree, which is never read. Tag blocks are level 0
//! (index = group).

use super::StoreError;
use super::state::State;
use crate::format::BLOCK;
use crate::format::layout::{groups, top_level};
use crate::format::tags::{Node, TagBlock};
use std::collections::hash_map::Entry;

/// Hash of an empty subtree.
pub(super) const ZERO: [u8; 32] = [0; 32];
/// Stands for the hash of a dirty block until the commit computes it.
const DIRTY: [u8; 32] = [0xff; 32];
/// log2 of the children of a node.
const FANOUT_LOG2: u32 = 7;
/// Loaded nodes one file keeps; all clean ones go when there are more.
const MAX_NODES: usize = 1024;

/// The single block at the top of the working tree.
#[derive(Clone, Copy)]
pub(super) struct Top {
    pub level: u32,
    pub hash: [u8; 32],
}

/// One loaded node.
pub(super) struct NodeSlot {
    pub node: Box<Node>,
    pub dirty: bool,
}

/// A tree block as the commit writes it.
pub(super) struct TreeImage {
    pub offset: u64,
    pub bytes: Box<[u8; BLOCK]>,
}

/// Index of the ancestor of group `group` at `level`.
fn ancestor(group: u64, level: u32) -> u64 {
    group.checked_shr(FANOUT_LOG2 * level).unwrap_or(0)
}

/// Place of block `index` among its parent's children.
fn child_slot(index: u64) -> usize {
    (index & 127) as usize
}

/// Level of the top block, 0 also for a file without groups.
fn level_of(groups: u64) -> u32 {
    if groups == 0 { 0 } else { top_level(groups) }
}

impl State {
    /// Top of the working tree, verified against the root hash at first use.
    pub fn top(&mut self) -> Result<Top, StoreError> {
        if let Some(top) = self.top {
            return Ok(top);
        }
        let level = level_of(groups(self.size));
        let mut hash = ZERO;
        if !self.root_is(&ZERO)? {
            hash = self.load_top(level)?;
        }
        let top = Top { level, hash };
        self.top = Some(top);
        Ok(top)
    }

    /// Does the committed root hash follow from this top hash?
    fn root_is(&self, top: &[u8; 32]) -> Result<bool, StoreError> {
        let h = &self.header;
        let tags = h.tag_bytes();
        let root = self.keys.current()?.root_hash(h.generation, h.size, &h.segment, &tags, top);
        Ok(root == h.root_hash)
    }

    /// Reads the top block and keeps it once the root hash confirms it.
    fn load_top(&mut self, level: u32) -> Result<[u8; 32], StoreError> {
        if groups(self.size) == 0 {
            return Err(StoreError::Root);
        }
        let bytes = self.read_block(level, 0)?;
        let hash = self.keys.current()?.block_hash(level, 0, &bytes);
        if !self.root_is(&hash)? {
            return Err(StoreError::Root);
        }
        if level == 0 {
            let bad = |_| StoreError::Tree { level, index: 0 };
            self.insert_segment(1, Box::new(TagBlock::decode(&bytes).map_err(bad)?));
        } else {
            let node = Box::new(Node::decode(&bytes));
            self.nodes.insert((level, 0), NodeSlot { node, dirty: false });
        }
        Ok(hash)
    }

    /// Reads a tag block (level 0) or node as it stands in the backing file.
    fn read_block(&self, level: u32, index: u64) -> Result<Box<[u8; BLOCK]>, StoreError> {
        let layout = self.ctx.layout;
        let offset = match level {
            0 => layout.tag_block_offset(index),
            _ => layout.node_offset(level, index),
        };
        let mut bytes = Box::new([0; BLOCK]);
        if self.storage.read_at(&mut bytes[..], offset)? < BLOCK {
            return Err(self.short());
        }
        Ok(bytes)
    }

    /// Reads a tree block and verifies it against the hash in its parent.
    pub fn read_tree_block(
        &self,
        level: u32,
        index: u64,
        hash: &[u8; 32],
    ) -> Result<Box<[u8; BLOCK]>, StoreError> {
        let bytes = self.read_block(level, index)?;
        if self.keys.current()?.block_hash(level, index, &bytes) != *hash {
            return Err(StoreError::Tree { level, index });
        }
        Ok(bytes)
    }

    /// The hash the working tree holds for a block; zero for one outside the tree.
    pub fn child_hash(&mut self, level: u32, index: u64) -> Result<[u8; 32], StoreError> {
        let top = self.top()?;
        if level >= top.level {
            return Ok(if level == top.level && index == 0 { top.hash } else { ZERO });
        }
        let parent = (level + 1, index >> FANOUT_LOG2);
        if !self.load_node(parent)? {
            return Ok(ZERO);
        }
        let slot = self.nodes.get(&parent);
        Ok(slot.map_or(ZERO, |s| s.node.children[child_slot(index)]))
    }

    /// Loads a node and with it its ancestors; false when the subtree is empty and the node not
    /// there.
    fn load_node(&mut self, at: (u32, u64)) -> Result<bool, StoreError> {
        if self.nodes.contains_key(&at) {
            return Ok(true);
        }
        let hash = self.child_hash(at.0, at.1)?;
        if hash == ZERO || self.nodes.contains_key(&at) {
            return Ok(hash != ZERO);
        }
        let bytes = self.read_tree_block(at.0, at.1, &hash)?;
        self.evict_nodes(at);
        self.nodes.insert(at, NodeSlot { node: Box::new(Node::decode(&bytes)), dirty: false });
        Ok(true)
    }

    /// Forgets clean nodes when there are too many, except the ancestors of the one about to be
    /// added.
    fn evict_nodes(&mut self, (level, index): (u32, u64)) {
        if self.nodes.len() >= MAX_NODES {
            let above = |l: u32, i: u64| l > level && ancestor(index, l - level) == i;
            self.nodes.retain(|&(l, i), n| n.dirty || above(l, i));
        }
    }

    /// Raises the top until it spans `groups` groups. The tree must have been verified.
    fn raise_top(&mut self, groups: u64) {
        let Some(top) = &mut self.top else { return };
        let level = level_of(groups);
        while top.level < level {
            top.level += 1;
            if top.hash == ZERO {
                continue;
            }
            let mut node = Box::new(Node::empty());
            node.children[0] = top.hash;
            self.nodes.insert((top.level, 0), NodeSlot { node, dirty: true });
            self.dirty_blocks += 1;
            top.hash = DIRTY;
        }
    }

    /// Sets a larger working size; the tree follows.
    pub fn grow_to(&mut self, size: u64) {
        if size > self.size {
            self.size = size;
            self.raise_top(groups(size));
        }
    }

    /// Marks a loaded segment dirty, and its path up to the top.
    pub fn mark_dirty(&mut self, number: u64) -> Result<(), StoreError> {
        if self.loaded(number)?.dirty {
            return Ok(());
        }
        if number > 0 {
            self.mark_path(number - 1)?;
            self.dirty_blocks += 1;
        }
        self.loaded_mut(number)?.dirty = true;
        Ok(())
    }

    /// Marks all ancestors of a group's tag block dirty; all of them are loaded before any is
    /// touched.
    fn mark_path(&mut self, group: u64) -> Result<(), StoreError> {
        self.top()?;
        self.raise_top(groups(self.size).max(group + 1));
        let level = self.top()?.level;
        for l in 1..=level {
            self.load_node((l, ancestor(group, l)))?;
        }
        for l in 1..=level {
            let slot = match self.nodes.entry((l, ancestor(group, l))) {
                Entry::Occupied(e) => e.into_mut(),
                Entry::Vacant(e) => {
                    e.insert(NodeSlot { node: Box::new(Node::empty()), dirty: false })
                }
            };
            slot.node.children[child_slot(ancestor(group, l - 1))] = DIRTY;
            self.dirty_blocks += usize::from(!slot.dirty);
            slot.dirty = true;
        }
        self.top = Some(Top { level, hash: DIRTY });
        Ok(())
    }

    /// Forgets the whole tree: a file without groups.
    pub fn forget_tree(&mut self) {
        self.segments.clear();
        self.nodes.clear();
        self.dirty_blocks = 0;
        self.top = Some(Top { level: 0, hash: ZERO });
    }

    /// Drops everything beyond the first `groups` groups from the working tree, and lowers its top.
    /// Nothing is changed when loading what is needed fails.
    pub fn trim_tree(&mut self, groups: u64) -> Result<(), StoreError> {
        if groups == 0 {
            self.forget_tree();
            return Ok(());
        }
        let top = self.top()?;
        let level = level_of(groups).min(top.level);
        let last = groups - 1;
        for l in (1..=top.level).rev() {
            self.load_node((l, ancestor(last, l)))?;
        }
        let mut hash = top.hash;
        if level < top.level {
            hash = self.nodes.get(&(level + 1, 0)).map_or(ZERO, |n| n.node.children[0]);
        }
        self.segments.retain(|n, _| *n <= groups);
        self.nodes.retain(|&(l, i), _| l <= level && i <= ancestor(last, l));
        let changed = self.zero_children_after(last, level);
        let hash = if changed { DIRTY } else { hash };
        self.top = Some(Top { level, hash });
        self.count_dirty();
        self.raise_top(groups);
        Ok(())
    }

    /// Zeroes the hashes behind the last group on its path; returns whether the top changed.
    fn zero_children_after(&mut self, last: u64, level: u32) -> bool {
        let mut changed = false;
        for l in 1..=level {
            let Some(slot) = self.nodes.get_mut(&(l, ancestor(last, l))) else { continue };
            let child = child_slot(ancestor(last, l - 1));
            if changed {
                slot.node.children[child] = DIRTY;
            }
            let behind = &mut slot.node.children[child + 1..];
            changed |= behind.iter().any(|c| *c != ZERO);
            behind.fill(ZERO);
            slot.dirty |= changed;
        }
        changed
    }

    fn count_dirty(&mut self) {
        let segments = self.segments.values().filter(|s| s.dirty).count();
        let nodes = self.nodes.values().filter(|n| n.dirty).count();
        self.dirty_blocks = segments + nodes;
    }

    /// Hashes all dirty blocks up to the top for a commit; returns their images and the top hash.
    /// Afterwards the hashes stand in the parents: [`Self::remark`] undoes that if the commit
    /// fails.
    pub fn hash_tree(&mut self, generation: u64) -> Result<(Vec<TreeImage>, Top), StoreError> {
        if level_of(groups(self.size)) != self.top()?.level {
            self.trim_tree(groups(self.size))?;
        }
        let level = self.top()?.level;
        let mut images = Vec::with_capacity(self.dirty_blocks);
        if self.dirty_blocks > 0 {
            self.hash_segments(generation, level, &mut images)?;
            for l in 1..=level {
                self.hash_nodes(l, level, &mut images)?;
            }
        }
        Ok((images, self.top()?))
    }

    fn hash_segments(
        &mut self,
        generation: u64,
        top: u32,
        images: &mut Vec<TreeImage>,
    ) -> Result<(), StoreError> {
        let count = groups(self.size);
        let mut hashes = Vec::new();
        for (number, seg) in self.segments.iter_mut().filter(|(_, s)| s.dirty) {
            seg.block.generation = generation;
            let mut bytes = Box::new([0; BLOCK]);
            seg.block.encode(&mut bytes);
            let group = number - 1;
            hashes.push((group, self.keys.current()?.block_hash(0, group, &bytes)));
            // A write that failed before it grew the file leaves an empty block behind the end.
            if group < count {
                images.push(TreeImage { offset: self.ctx.layout.tag_block_offset(group), bytes });
            }
        }
        hashes.into_iter().try_for_each(|(g, hash)| self.set_child_hash(0, g, top, hash))
    }

    fn hash_nodes(
        &mut self,
        level: u32,
        top: u32,
        images: &mut Vec<TreeImage>,
    ) -> Result<(), StoreError> {
        let mut hashes = Vec::new();
        for (&(_, index), slot) in self.nodes.iter().filter(|((l, _), s)| *l == level && s.dirty) {
            let mut bytes = Box::new([0; BLOCK]);
            slot.node.encode(&mut bytes);
            hashes.push((index, self.keys.current()?.block_hash(level, index, &bytes)));
            images.push(TreeImage { offset: self.ctx.layout.node_offset(level, index), bytes });
        }
        hashes.into_iter().try_for_each(|(i, hash)| self.set_child_hash(level, i, top, hash))
    }

    fn set_child_hash(
        &mut self,
        level: u32,
        index: u64,
        top: u32,
        hash: [u8; 32],
    ) -> Result<(), StoreError> {
        if level == top {
            self.top = Some(Top { level: top, hash });
            return Ok(());
        }
        let parent = (level + 1, index >> FANOUT_LOG2);
        let bad = StoreError::Tree { level: parent.0, index: parent.1 };
        let slot = self.nodes.get_mut(&parent).ok_or(bad)?;
        slot.node.children[child_slot(index)] = hash;
        Ok(())
    }

    /// Puts the marks of dirty blocks back after a commit that failed.
    pub fn remark(&mut self) {
        let Some(top) = self.top else { return };
        let segments = self.segments.iter().filter(|(_, s)| s.dirty).map(|(n, _)| (0, n - 1));
        let nodes = self.nodes.iter().filter(|(_, n)| n.dirty).map(|(at, _)| *at);
        let dirty: Vec<(u32, u64)> = segments.chain(nodes).collect();
        for (level, index) in dirty {
            // Every dirty block has its parent loaded, so this cannot miss.
            let _ = self.set_child_hash(level, index, top.level, DIRTY);
        }
    }

    /// Everything dirty in the tree is committed now. Emptied tag blocks lost their segment on
    /// disk.
    pub fn tree_is_clean(&mut self) {
        for seg in self.segments.values_mut().filter(|s| s.dirty) {
            seg.dirty = false;
            seg.freed = 0;
            seg.committed = seg.present();
            if seg.committed == 0 {
                seg.key = None;
                seg.block.segment = Default::default();
            }
        }
        self.nodes.values_mut().for_each(|n| n.dirty = false);
        self.dirty_blocks = 0;
    }

    /// First group ≥ `from` whose tag block is not empty, skipping empty subtrees.
    pub fn next_group(&mut self, from: u64) -> Result<Option<u64>, StoreError> {
        let top = self.top()?;
        if top.hash == ZERO || from >= groups(self.size) {
            return Ok(None);
        }
        self.next_below(top.level, 0, from)
    }

    fn next_below(&mut self, level: u32, index: u64, from: u64) -> Result<Option<u64>, StoreError> {
        if level == 0 {
            let empty = self.segments.get(&(index + 1)).is_some_and(|s| s.present() == 0);
            return Ok((index >= from && !empty).then_some(index));
        }
        if !self.load_node((level, index))? {
            return Ok(None);
        }
        for child in self.filled_children(level, index) {
            let last = ((child + 1) << (FANOUT_LOG2 * (level - 1))) - 1;
            if last < from {
                continue;
            }
            if let Some(group) = self.next_below(level - 1, child, from)? {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// Children of a loaded node that are not empty, by index within their level.
    pub fn filled_children(&self, level: u32, index: u64) -> Vec<u64> {
        let Some(slot) = self.nodes.get(&(level, index)) else { return Vec::new() };
        let filled = |(i, hash): (usize, &[u8; 32])| {
            (*hash != ZERO).then_some((index << FANOUT_LOG2) + i as u64)
        };
        slot.node.children.iter().enumerate().filter_map(filled).collect()
    }

    /// Loads one node for a walk that reports damage by itself; false when it is empty.
    pub fn visit_node(&mut self, level: u32, index: u64) -> Result<bool, StoreError> {
        self.load_node((level, index))
    }
}
