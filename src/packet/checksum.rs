//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

/// A one's-complement sum of 16-bit words in network order, not yet folded.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Of bytes that begin at an even offset. An odd last byte is padded with zero.
    pub fn of(bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(4);
        let mut sum = 0u64;
        for word in &mut words {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        let rest = words.remainder();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        // Folding commutes with swapping bytes (RFC 1071 section 2), so the order is mended once, at the end.
        Self(u16::from_be(fold(sum)).into())
    }

    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 + u64::from(fold(other.0)))
    }

    pub fn address(self, address: IpAddr) -> Self {
        self.and(match address {
            IpAddr::V4(a) => Self::of(&a.octets()),
            IpAddr::V6(a) => Self::of(&a.octets()),
        })
    }

    /// Of the pseudo-header (RFC 768, RFC 8200 section 8.1).
    pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> Self {
        let length = Self((u64::from(length) >> 16) + (u64::from(length) & 0xffff));
        Self::default().address(source).address(destination).and(length).word(protocol.into())
    }

    /// The sum itself: what a field holds whose checksum is left to the kernel.
    pub fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The checksum: the sum's complement.
    pub fn checksum(self) -> u16 {
        !fold(self.0)
    }

    /// A checksum after words that summed to `old` became words that sum to `new`: HC' = ~(~HC + ~m + m').
    pub fn updated(checksum: u16, old: Self, new: Self) -> u16 {
        !fold(u64::from(!checksum) + u64::from(!fold(old.0)) + u64::from(fold(new.0)))
    }

    /// A partial sum after the same change.
    pub fn updated_partial(sum: u16, old: Self, new: Self) -> u16 {
        fold(u64::from(sum) + u64::from(!fold(old.0)) + u64::from(fold(new.0)))
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn sums_as_the_rfc_says(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::of(&bytes).folded() % 0xffff, slow(&bytes) % 0xffff);
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 8..60), new in any::<[u8; 4]>()) {
            bytes.truncate(bytes.len() & !1);
            let before = Sum::of(&bytes).checksum();
            let updated = Sum::updated(before, Sum::of(&bytes[4..8]), Sum::of(&new));
            bytes[4..8].copy_from_slice(&new);
            prop_assert_eq!(updated % 0xffff, Sum::of(&bytes).checksum() % 0xffff);
        }
    }
}
