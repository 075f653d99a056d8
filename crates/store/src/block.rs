//! Changes packed into blocks, as the state on disk keeps them: one entry of its tree for many changes. Pure.
//!
//! A record in a block: its revision, the length of the change, the change. Records are in the order of their revisions; a
//! block is found by the revision of its first.

use wire::mvccpb::Event;

use crate::mvcc::Revision;
use crate::mvcc::record::{self, REVISION_BYTES};

/// Bytes at which a block is full. Reading one old value reads its block.
const BLOCK_BYTES: usize = 16 << 10;
const HEAD_BYTES: usize = REVISION_BYTES + 4;

/// A block and the revision of its first record.
pub type Block = (Revision, Vec<u8>);

/// Packs changes into blocks.
#[derive(Debug, Default)]
pub struct Packer {
    first: Option<Revision>,
    bytes: Vec<u8>,
}

impl Packer {
    /// Adds a change that is newer than all before. Returns the block if that made it full.
    pub fn add(&mut self, at: Revision, event: &Event) -> Option<Block> {
        self.first.get_or_insert(at);
        let head = self.bytes.len();
        self.bytes.extend_from_slice(&record::encode_revision(at));
        self.bytes.extend_from_slice(&[0; 4]);
        record::encode(event, &mut self.bytes);
        let len = u32::try_from(self.bytes.len() - head - HEAD_BYTES).unwrap_or(u32::MAX);
        self.bytes[head + REVISION_BYTES..head + HEAD_BYTES].copy_from_slice(&len.to_be_bytes());
        if self.bytes.len() < BLOCK_BYTES { None } else { self.take() }
    }

    /// The block begun, if there is one.
    pub fn take(&mut self) -> Option<Block> {
        Some((self.first.take()?, std::mem::take(&mut self.bytes)))
    }
}

/// The records of a block, up to the first that is damaged.
pub fn records(block: &[u8]) -> impl Iterator<Item = (Revision, &[u8])> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let (head, body) = rest.split_at_checked(HEAD_BYTES)?;
        let len = u32::from_be_bytes(head[REVISION_BYTES..].try_into().ok()?);
        let (record, after) = body.split_at_checked(usize::try_from(len).ok()?)?;
        rest = after;
        Some((record::decode_revision(head)?, record))
    })
}

/// What is left of a block without the revisions that `gone` names; nothing if that is nothing.
pub fn without(block: &[u8], gone: impl Fn(Revision) -> bool) -> Option<Block> {
    let mut left: Option<Block> = None;
    for (at, record) in records(block).filter(|(at, _)| !gone(*at)) {
        let (_, bytes) = left.get_or_insert_with(|| (at, Vec::with_capacity(block.len())));
        bytes.extend_from_slice(&record::encode_revision(at));
        bytes.extend_from_slice(&u32::try_from(record.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(record);
    }
    left
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wire::mvccpb::KeyValue;

    use super::*;

    fn at(main: i64) -> Revision {
        Revision { main, sub: 0 }
    }

    fn event(value_bytes: usize) -> Event {
        let kv =
            KeyValue { key: "k".into(), value: vec![7; value_bytes].into(), ..Default::default() };
        Event { kv: Some(kv), ..Default::default() }
    }

    fn pack(sizes: &[usize]) -> Vec<Block> {
        let mut packer = Packer::default();
        let mut blocks: Vec<Block> = (1..)
            .zip(sizes)
            .filter_map(|(main, size)| packer.add(at(main), &event(*size)))
            .collect();
        blocks.extend(packer.take());
        blocks
    }

    #[test]
    fn what_was_packed_comes_back_in_order() {
        let sizes = [0, 1, 300, 20_000, 5000, 5000, 5000, 5000, 1];
        let blocks = pack(&sizes);
        assert_eq!(blocks.len(), 3);
        let mut found = Vec::new();
        for (first, block) in &blocks {
            assert_eq!(records(block).next().map(|(at, _)| at), Some(*first));
            for (at, bytes) in records(block) {
                let event = record::decode(Bytes::copy_from_slice(bytes)).unwrap();
                found.push((at.main, event.kv.unwrap().value.len()));
            }
        }
        assert_eq!(found, (1..).zip(sizes).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_without_its_first_record_begins_with_the_second() {
        let blocks = pack(&[1, 2, 3]);
        let (first, left) = without(&blocks[0].1, |at| at.main == 1).unwrap();
        assert_eq!(first, at(2));
        assert_eq!(records(&left).map(|(at, _)| at.main).collect::<Vec<_>>(), [2, 3]);
        assert!(without(&left, |_| true).is_none());
    }

    #[test]
    fn a_cut_block_gives_what_is_whole() {
        let (_, block) = pack(&[100, 100]).remove(0);
        for cut in 0..block.len() {
            let whole = records(&block[..cut]).count();
            assert_eq!(whole, cut / (block.len() / 2));
        }
    }
}
