//! Changes packed into blocks, as the state on disk keeps them: one entry of its tree for many changes. Pure.
//!
//! A record in a block: its revision, its length, its bytes. Records are in the order of their revisions; a block is found by
//! the revision of its first. Large values have blocks of their own, so that a member that starts need not read them.

use bytes::Bytes;
use wire::mvccpb::{Event, KeyValue};

use crate::mvcc::record::{self, REVISION_BYTES};
use crate::mvcc::{LARGE_BYTES, Revision};

/// Bytes at which a block is full. Reading one old value reads its block.
const BLOCK_BYTES: usize = 8 << 10;
const HEAD_BYTES: usize = REVISION_BYTES + 4;

/// A block and the revision of its first record.
pub type Block = (Revision, Vec<u8>);

/// Stands before the size of a large value that is elsewhere, where else the kind of the change stands.
const ELSEWHERE: u8 = 255;

/// The large value of a change, if it has one.
pub fn large(event: &Event) -> Option<&Bytes> {
    event.kv.as_ref().map(|kv| &kv.value).filter(|value| value.len() >= LARGE_BYTES)
}

/// The record of a change, without its value if that is large.
pub fn write(event: &Event, out: &mut Vec<u8>) {
    let Some((kv, value)) = event.kv.as_ref().zip(large(event)) else {
        return record::encode(event, out);
    };
    out.push(ELSEWHERE);
    // A request's size bounds it far below this.
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    let kv = KeyValue { key: kv.key.clone(), value: Bytes::new(), ..*kv };
    record::encode(&Event { r#type: event.r#type, kv: Some(kv), prev_kv: None }, out);
}

/// Reads what [`write`] wrote, with the size of the value. Whoever keeps it does not keep the block.
pub fn read(record: &[u8]) -> Option<(Event, u32)> {
    if let Some((head, rest)) = record.split_first_chunk::<5>().filter(|(h, _)| h[0] == ELSEWHERE) {
        let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        return Some((record::decode(Bytes::copy_from_slice(rest))?, size));
    }
    let event = record::decode(Bytes::copy_from_slice(record))?;
    let size = event.kv.as_ref().map_or(0, |kv| kv.value.len());
    Some((event, u32::try_from(size).ok()?))
}

/// Packs records into blocks.
#[derive(Debug, Default)]
pub struct Packer {
    first: Option<Revision>,
    bytes: Vec<u8>,
}

impl Packer {
    /// Adds a record that is newer than all before. Returns the block if that made it full.
    pub fn add(&mut self, at: Revision, write: impl FnOnce(&mut Vec<u8>)) -> Option<Block> {
        self.first.get_or_insert(at);
        let head = self.bytes.len();
        self.bytes.extend_from_slice(&record::encode_revision(at));
        self.bytes.extend_from_slice(&[0; 4]);
        write(&mut self.bytes);
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
    use super::*;

    fn at(main: i64) -> Revision {
        Revision { main, sub: 0 }
    }

    fn event(value_bytes: u32) -> Event {
        let kv = KeyValue {
            key: "k".into(),
            value: vec![7; value_bytes as usize].into(),
            ..Default::default()
        };
        Event { kv: Some(kv), ..Default::default() }
    }

    fn pack(sizes: &[u32]) -> Vec<Block> {
        let mut packer = Packer::default();
        let mut blocks: Vec<Block> = (1..)
            .zip(sizes)
            .filter_map(|(main, size)| packer.add(at(main), |out| write(&event(*size), out)))
            .collect();
        blocks.extend(packer.take());
        blocks
    }

    #[test]
    fn what_was_packed_comes_back_in_order() {
        let sizes: Vec<u32> = (0..40).map(|n| n * 30).collect();
        let blocks = pack(&sizes);
        assert!(blocks.len() > 2, "{}", blocks.len());
        let mut found = Vec::new();
        for (first, block) in &blocks {
            assert_eq!(records(block).next().map(|(at, _)| at), Some(*first));
            for (at, bytes) in records(block) {
                let (event, size) = read(bytes).unwrap();
                let there = event.kv.unwrap().value.len();
                assert_eq!(there, if size < 1024 { size as usize } else { 0 });
                found.push((at.main, size));
            }
        }
        assert_eq!(found, (1..).zip(sizes).collect::<Vec<_>>());
    }

    #[test]
    fn a_large_value_is_elsewhere() {
        for (size, is_large) in [(0, false), (1023, false), (1024, true), (9000, true)] {
            let event = event(size);
            assert_eq!(large(&event).map(Bytes::len), is_large.then_some(size as usize));
            let mut bytes = Vec::new();
            write(&event, &mut bytes);
            assert_eq!(bytes.len() < 100, is_large || size == 0, "{size}");
            for cut in 0..bytes.len().min(6) {
                assert!(read(&bytes[..cut]).is_none_or(|(_, found)| found == 0), "{size} {cut}");
            }
        }
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
