//! One change as bytes, for the archive and snapshots; and the state rebuilt from them.

use bytes::Bytes;
use prost::Message;
use wire::mvccpb::event::EventType;
use wire::mvccpb::{Event, KeyValue};

use super::index::{Revision, Version};
use super::range::Cold;
use super::{Archive, Mvcc};

const PUT: u8 = 0;
const TOMBSTONE: u8 = 1;
/// Records whose cold values are read from the archive together.
const READ_TOGETHER: usize = 128;
/// Bytes of an encoded revision.
pub const REVISION_BYTES: usize = 12;

/// A revision as bytes that sort as revisions do.
#[must_use]
pub fn encode_revision(at: Revision) -> [u8; REVISION_BYTES] {
    let mut bytes = [0; REVISION_BYTES];
    bytes[..8].copy_from_slice(&at.main.to_be_bytes());
    bytes[8..].copy_from_slice(&at.sub.to_be_bytes());
    bytes
}

/// Reads what [`encode_revision`] wrote.
#[must_use]
pub fn decode_revision(bytes: &[u8]) -> Option<Revision> {
    let main = i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    let sub = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
    Some(Revision { main, sub })
}

/// A change as bytes: one for its kind, then the pair.
pub fn encode(event: &Event, out: &mut Vec<u8>) {
    let Some(kv) = &event.kv else { return };
    let put = event.r#type == i32::from(EventType::Put);
    out.push(if put { PUT } else { TOMBSTONE });
    kv.encode_raw(out);
}

/// Reads what [`encode`] wrote.
#[must_use]
pub fn decode(mut bytes: Bytes) -> Option<Event> {
    if bytes.is_empty() {
        return None;
    }
    let kind = match bytes.split_to(1)[0] {
        PUT => EventType::Put,
        TOMBSTONE => EventType::Delete,
        _ => return None,
    };
    let kv = KeyValue::decode(bytes).ok()?;
    Some(Event { r#type: kind.into(), kv: Some(kv), prev_kv: None })
}

/// What the state is beside its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The newest revision.
    pub revision: i64,
    /// The last compaction.
    pub compacted: i64,
    /// Leases with their lives in seconds.
    pub leases: Vec<(i64, i64)>,
    /// Alarms by member.
    pub alarms: Vec<(u64, i32)>,
}

impl Summary {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |n: i64| out.extend_from_slice(&n.to_le_bytes());
        put(self.revision);
        put(self.compacted);
        put(i64::try_from(self.leases.len()).unwrap_or(0));
        for (id, ttl_s) in &self.leases {
            put(*id);
            put(*ttl_s);
        }
        put(i64::try_from(self.alarms.len()).unwrap_or(0));
        for (member, kind) in &self.alarms {
            put(member.cast_signed());
            put(i64::from(*kind));
        }
        out
    }

    /// Reads what [`Summary::encode`] wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(8).map(|c| c.try_into().map_or(0, i64::from_le_bytes));
        let (revision, compacted) = (numbers.next()?, numbers.next()?);
        let mut leases = Vec::new();
        for _ in 0..numbers.next()? {
            leases.push((numbers.next()?, numbers.next()?));
        }
        let mut alarms = Vec::new();
        for _ in 0..numbers.next()? {
            let member = numbers.next()?.cast_unsigned();
            alarms.push((member, i32::try_from(numbers.next()?).ok()?));
        }
        Some(Self { revision, compacted, leases, alarms })
    }
}

impl Mvcc {
    /// The state beside its keys.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            revision: self.revision,
            compacted: self.compacted,
            leases: self.leases.iter().map(|(id, lease)| (id, lease.ttl_s)).collect(),
            alarms: self.alarms.iter().copied().collect(),
        }
    }

    /// Begins a state that is filled by [`Mvcc::load`].
    #[must_use]
    pub fn begin(summary: &Summary) -> Self {
        let mut mvcc = Self {
            revision: summary.revision,
            compacted: summary.compacted,
            alarms: summary.alarms.iter().copied().collect(),
            ..Self::default()
        };
        for (id, ttl_s) in &summary.leases {
            // Ids are unique in a summary, so this cannot be refused.
            let _granted = mvcc.leases.grant(*id, *ttl_s);
        }
        mvcc
    }

    /// Adds a change from a snapshot, in the order of revisions.
    pub fn load(&mut self, at: Revision, event: &Event) {
        let Some(kv) = &event.kv else { return };
        let size = u32::try_from(kv.value.len()).unwrap_or(u32::MAX);
        self.add(at, event, kv, size);
    }

    /// Adds a change from the archive, in the order of revisions. A large value may be missing: it is cold, as are those
    /// that the change makes old.
    pub fn load_archived(&mut self, at: Revision, event: &Event, size: u32) {
        let Some(kv) = &event.kv else { return };
        self.add(at, event, kv, size);
        self.index.cool(&kv.key, at);
    }

    fn add(&mut self, at: Revision, event: &Event, kv: &KeyValue, size: u32) {
        let key = self.index.key(&kv.key);
        let put = event.r#type == i32::from(EventType::Put);
        let old = self.index.history(&key).and_then(|h| h.at(i64::MAX)).map_or(0, |v| v.lease);
        let version = if put {
            Version {
                at,
                create: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                size,
                value: Some(Bytes::copy_from_slice(&kv.value)),
            }
        } else {
            Version::tombstone(at)
        };
        let lease = version.lease;
        self.push(&key, version);
        self.leases.attach(&key, old, lease);
        if !put {
            // Compaction must look at it even if nothing replaces it.
            self.stale.push_back((at.main, key.clone()));
        }
    }

    /// Every change that is not compacted, in the order of revisions, values included.
    ///
    /// # Errors
    /// When the archive lost a value.
    pub fn records(
        &self,
        archive: &dyn Archive,
        mut each: impl FnMut(Revision, &Event) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut all: Vec<(Revision, &Bytes, &Version)> = self
            .index
            .iter()
            .flat_map(|(key, h)| h.versions.iter().map(move |v| (v.at, key, v)))
            .collect();
        all.sort_unstable_by_key(|(at, _, _)| *at);
        for part in all.chunks(READ_TOGETHER) {
            let (mut kvs, mut cold) = (Vec::with_capacity(part.len()), Cold::default());
            for (place, (_, key, version)) in part.iter().enumerate() {
                let mut kv = version.bare(key);
                match &version.value {
                    Some(value) => kv.value = value.clone(),
                    None => cold.push(place, version),
                }
                kvs.push(kv);
            }
            cold.fill(&mut kvs, archive).map_err(std::io::Error::other)?;
            for ((at, _, version), kv) in part.iter().zip(kvs) {
                let kind = if version.is_tombstone() { EventType::Delete } else { EventType::Put };
                each(*at, &Event { r#type: kind.into(), kv: Some(kv), prev_kv: None })?;
            }
        }
        Ok(())
    }
}
