//! The slots of a cluster: which of them a key is in, and sets of them.

use std::fmt;

use crc::{CRC_16_XMODEM, Crc};

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16384;

/// The sum that keys are spread by (Redis Cluster specification, "Key distribution model").
const SUM: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a key: a hash of what stands between its first `{` and the next `}`, where that is something, else of all
/// of it.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let tag = key
        .iter()
        .position(|byte| *byte == b'{')
        .map(|at| &key[at + 1..])
        .and_then(|rest| {
            let length = rest.iter().position(|byte| *byte == b'}')?;
            (length > 0).then(|| &rest[..length])
        });
    SUM.checksum(tag.unwrap_or(key)) % SLOTS
}

/// A short text in this slot, to stand between braces in a name.
pub(crate) fn tag_of(slot: u16) -> String {
    (0u32..)
        .map(|number| number.to_string())
        .find(|text| slot_of(text.as_bytes()) == slot)
        .expect("numbers fall into every slot")
}

/// Slots, as ranges in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotSet(Vec<(u16, u16)>);

impl SlotSet {
    /// These ranges, whose ends belong to them, in any order. Nothing where they overlap or end beyond the last slot.
    pub(crate) fn of(mut ranges: Vec<(u16, u16)>) -> Option<Self> {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            if first > last || last >= SLOTS {
                return None;
            }
            match joined.last_mut() {
                Some((_, before)) if *before >= first => return None,
                Some((_, before)) if *before + 1 == first => *before = last,
                _ => joined.push((first, last)),
            }
        }
        Some(Self(joined))
    }

    /// Reads `0-5460` or `7`.
    pub(crate) fn range(word: &str) -> Option<(u16, u16)> {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    }

    /// Whether a slot is among them.
    pub(crate) fn has(&self, slot: u16) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= slot);
        after > 0 && self.0[after - 1].1 >= slot
    }

    /// Each range.
    pub(crate) fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Those that are not among them.
    pub(crate) fn others(&self) -> Self {
        let mut others = Vec::new();
        let mut next = 0;
        for (first, last) in &self.0 {
            if next < *first {
                others.push((next, first - 1));
            }
            next = last + 1;
        }
        if next < SLOTS {
            others.push((next, SLOTS - 1));
        }
        Self(others)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            if first == last {
                write!(f, "{space}{first}")?;
            } else {
                write!(f, "{space}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_slot_is_what_the_server_says() {
        // `CLUSTER KEYSLOT` of Redis 7.0.
        for (key, slot) in [
            ("", 0),
            ("foo", 12182),
            ("bar", 5061),
            ("123456789", 12739),
            ("{user1000}.following", 3443),
            ("{user1000}.followers", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn there_is_a_tag_for_every_slot() {
        for slot in (0..SLOTS).step_by(97).chain([SLOTS - 1]) {
            let name = format!("a}}b{{{}}}c", tag_of(slot));
            assert_eq!(slot_of(name.as_bytes()), slot, "{name}");
        }
    }

    #[test]
    fn ranges_are_joined_and_overlaps_are_refused() {
        let set = SlotSet::of(vec![(5, 9), (0, 0), (10, 12), (16383, 16383)]).unwrap();
        assert_eq!(set.to_string(), "0 5-12 16383");
        assert!(set.has(0) && set.has(5) && set.has(12) && set.has(16383));
        assert!(!set.has(1) && !set.has(4) && !set.has(13) && !set.has(16382));
        assert_eq!(set.others().to_string(), "1-4 13-16382");
        assert_eq!(set.others().others(), set);
        assert!(SlotSet::default().is_empty());
        assert_eq!(SlotSet::default().others().to_string(), "0-16383");
        assert!(SlotSet::of(vec![(0, 16383)]).unwrap().others().is_empty());
        assert_eq!(SlotSet::of(vec![(0, 5), (5, 6)]), None);
        assert_eq!(SlotSet::of(vec![(6, 5)]), None);
        assert_eq!(SlotSet::of(vec![(0, 16384)]), None);
        assert_eq!(SlotSet::range("0-5460"), Some((0, 5460)));
        assert_eq!(SlotSet::range("7"), Some((7, 7)));
        assert_eq!(SlotSet::range("[7->-ab]"), None);
    }
}
