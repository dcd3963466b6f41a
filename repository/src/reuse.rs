//! Which packs of its parent a new backup takes over from. Old packs must die by themselves, since
//! nothing is ever repacked (rule 25), and what is damaged is not inherited (rule 24).

use std::collections::HashSet;

use crate::{PackUse, layout::ObjectName};

/// A pack is taken over from only while at least one part in so many of it is used.
const LEAST_USED_PART: u64 = 3;

/// Of the packs that are taken over from, at most one part in so many is not used. Without this bound,
/// packs that all decay alike would keep nearly twice the live bytes alive before the first third is
/// reached.
const MOST_WASTED_PART: u64 = 5;

/// To come below that bound, a backup stores at most one part in so many of its parent's bytes anew, or
/// one pack: a change that hits everything is paid for over several backups, and what the kept backups
/// still need of the old packs does not pile up. (Tried out by the sixty days of rule 25: at worst 1.44
/// times the live bytes are stored, and 4 % of the database are written for 2 % of change. A bound
/// of a quarter stores 1.49 times for 3.6 %, one of a sixth 1.43 times for 4.4 %.)
const MOST_REWRITTEN_PART: u64 = 24;

/// A pack of less than one part in so many of a full one is small.
const SMALL_PACK_PART: u64 = 8;

/// More small packs than this are merged, by not taking them over: frequent backups of little would
/// otherwise need ever more requests to restore.
const MOST_SMALL_PACKS: usize = 32;

/// The packs, out of those that are there whole and undamaged, from which chunks are taken over.
pub(crate) fn packs_to_take_over(sound: &[PackUse], full_pack_bytes: u64) -> HashSet<ObjectName> {
    let mut kept: Vec<&PackUse> = sound
        .iter()
        .filter(|pack| pack.used.saturating_mul(LEAST_USED_PART) >= pack.bytes)
        .collect();
    let is_small = |pack: &PackUse| pack.bytes < full_pack_bytes / SMALL_PACK_PART;
    if kept.iter().filter(|pack| is_small(pack)).count() > MOST_SMALL_PACKS {
        kept.retain(|pack| !is_small(pack));
    }
    // The least used last. Products of sizes below 64 MiB do not overflow.
    kept.sort_by(|one, other| {
        (other.used * one.bytes)
            .cmp(&(one.used * other.bytes))
            .then(one.name.cmp(&other.name))
    });
    let mut bytes: u64 = kept.iter().map(|pack| pack.bytes).sum();
    let mut used: u64 = kept.iter().map(|pack| pack.used).sum();
    let before = kept.len();
    let mut may_rewrite = used / MOST_REWRITTEN_PART;
    while let Some(worst) = kept.last() {
        let wasted = bytes.saturating_sub(used);
        let is_first = kept.len() == before;
        if wasted * MOST_WASTED_PART <= bytes || (worst.used > may_rewrite && !is_first) {
            break;
        }
        may_rewrite = may_rewrite.saturating_sub(worst.used);
        bytes -= worst.bytes;
        used -= worst.used;
        kept.pop();
    }
    kept.into_iter().map(|pack| pack.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u64, bytes: u64, used: u64) -> PackUse {
        PackUse {
            name: ObjectName::number(number),
            bytes,
            used,
        }
    }

    #[test]
    fn rule_25_a_pack_that_is_used_by_less_than_a_third_is_not_taken_over() {
        let packs = [pack(1, 300, 300), pack(2, 300, 99), pack(3, 300, 300)];
        let kept = packs_to_take_over(&packs, 300);
        assert_eq!(kept.len(), 2);
        assert!(!kept.contains(&ObjectName::number(2)));
    }

    #[test]
    fn rule_25_packs_that_decay_alike_are_renewed_little_by_little() {
        let packs: Vec<_> = (0..64).map(|n| pack(n, 1000, 700)).collect();
        let kept = packs_to_take_over(&packs, 1000);
        assert_eq!(kept.len(), 64 - 2);
        let few = packs_to_take_over(&packs[..3], 1000);
        assert_eq!(few.len(), 2);
    }

    #[test]
    fn packs_that_are_used_well_are_all_taken_over() {
        let packs: Vec<_> = (0..64).map(|n| pack(n, 1000, 900)).collect();
        assert_eq!(packs_to_take_over(&packs, 1000).len(), 64);
    }

    #[test]
    fn many_small_packs_are_merged() {
        let packs: Vec<_> = (0..=MOST_SMALL_PACKS as u64)
            .map(|n| pack(n, 10, 10))
            .collect();
        assert!(packs_to_take_over(&packs, 1000).is_empty());
        assert_eq!(
            packs_to_take_over(&packs[1..], 1000).len(),
            MOST_SMALL_PACKS
        );
    }
}
