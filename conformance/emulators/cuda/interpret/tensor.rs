//! Tensor maps: what `cuTensorMapEncodeTiled` describes, and the bytes of a box of it.

/// Bytes of an encoded map.
pub const ENCODED: usize = 128;
/// Marks what was encoded here; a GPU's own form is not public.
const MARK: u32 = 0x5250_574D;
/// Most dimensions.
pub const MOST_DIMENSIONS: usize = 5;

/// A tensor in global memory, and the box that a copy takes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorMap {
    /// Where it begins.
    pub address: u64,
    /// Bytes of an element.
    pub element: u8,
    /// Dimensions in use.
    pub rank: u8,
    /// Bytes after which the swizzle of a box's rows repeats: 0 (none), 32, 64, 128.
    pub swizzle: u8,
    /// What stands for elements outside the tensor, as bits of an element: zero, or NaN.
    pub fill: u32,
    /// Extents in elements, innermost first.
    pub extents: [u32; MOST_DIMENSIONS],
    /// Bytes from one index to the next, of each dimension but the innermost.
    pub strides: [u64; MOST_DIMENSIONS - 1],
    /// Extents of the box.
    pub tile: [u16; MOST_DIMENSIONS],
}

impl TensorMap {
    /// The map as it crosses the interface.
    pub fn encode(&self) -> [u8; ENCODED] {
        let mut bytes = Vec::with_capacity(ENCODED);
        bytes.extend(MARK.to_le_bytes());
        bytes.extend([self.element, self.rank, self.swizzle, 0]);
        bytes.extend(self.address.to_le_bytes());
        bytes.extend(self.fill.to_le_bytes());
        bytes.extend(self.extents.iter().flat_map(|extent| extent.to_le_bytes()));
        bytes.extend(self.strides.iter().flat_map(|stride| stride.to_le_bytes()));
        bytes.extend(self.tile.iter().flat_map(|extent| extent.to_le_bytes()));
        bytes.resize(ENCODED, 0);
        bytes.try_into().expect("as long as that")
    }

    /// The map that these bytes hold, if they hold one.
    pub fn decode(bytes: &[u8]) -> Option<TensorMap> {
        let mut rest = bytes.get(..ENCODED)?;
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            let mut value = [0; 8];
            value[..count].copy_from_slice(taken);
            u64::from_le_bytes(value)
        };
        if take(4) != u64::from(MARK) {
            return None;
        }
        let mut map = TensorMap {
            element: take(1) as u8,
            rank: take(1) as u8,
            swizzle: take(1) as u8,
            ..TensorMap::default()
        };
        take(1);
        map.address = take(8);
        map.fill = take(4) as u32;
        map.extents = std::array::from_fn(|_| take(4) as u32);
        map.strides = std::array::from_fn(|_| take(8));
        map.tile = std::array::from_fn(|_| take(2) as u16);
        Some(map)
    }

    /// Bytes of the box in shared memory.
    pub fn tile_bytes(&self) -> usize {
        let elements: usize = self
            .dimensions()
            .map(|axis| usize::from(self.tile[axis]))
            .product();
        elements * usize::from(self.element)
    }

    fn dimensions(&self) -> std::ops::Range<usize> {
        0..usize::from(self.rank)
    }

    /// Where the swizzle puts what would lie at an address of shared memory: chunks of 16 bytes are exclusive-ored by the 128 bytes they lie in.
    pub fn swizzled(&self, address: u64) -> u64 {
        swizzled(self.swizzle, address)
    }

    /// Runs over the chunks of 16 bytes of a box at these coordinates: where a chunk lies in the box before the swizzle, where in global memory, and
    /// which of its elements, from the first on, are outside the tensor on the left and inside it.
    pub fn chunks(&self, coordinates: &[i64], mut f: impl FnMut(Chunk)) {
        let element = u64::from(self.element);
        let row = u64::from(self.tile[0]) * element;
        let rows: u64 = self
            .dimensions()
            .skip(1)
            .map(|axis| u64::from(self.tile[axis]))
            .product();
        for number in 0..rows {
            let mut left = number;
            let mut inside = true;
            let mut address = self.address as i64;
            for axis in self.dimensions().skip(1) {
                let at = coordinates[axis] + (left % u64::from(self.tile[axis])) as i64;
                left /= u64::from(self.tile[axis]);
                inside &= (0..i64::from(self.extents[axis])).contains(&at);
                address = address.wrapping_add(at.wrapping_mul(self.strides[axis - 1] as i64));
            }
            for at in (0..row).step_by(16) {
                let count = (row - at).min(16) / element;
                let first = coordinates[0] + (at / element) as i64;
                let begin = (-first).clamp(0, count as i64);
                let end = (i64::from(self.extents[0]) - first).clamp(begin, count as i64);
                f(Chunk {
                    offset: number * row + at,
                    bytes: (count * element) as u8,
                    address: address.wrapping_add(first.wrapping_mul(element as i64)) as u64,
                    inside: match inside {
                        true => begin as u8..end as u8,
                        false => 0..0,
                    },
                });
            }
        }
    }
}

/// See [`TensorMap::swizzled`].
pub fn swizzled(swizzle: u8, address: u64) -> u64 {
    let bits = match swizzle {
        32 => 1,
        64 => 3,
        128 => 7,
        _ => 0,
    };
    address ^ (address >> 7 & bits) << 4
}

/// A chunk of a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes from the beginning of the box, before the swizzle.
    pub offset: u64,
    /// Its size: 16, or less at the end of a row.
    pub bytes: u8,
    /// Where its first element lies, or would lie.
    pub address: u64,
    /// The elements that are inside the tensor.
    pub inside: std::ops::Range<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_encoding() {
        let map = TensorMap {
            address: 0x7000_0000_1230,
            element: 2,
            rank: 3,
            swizzle: 128,
            fill: 0x7FFF,
            extents: [100, 7, u32::MAX, 1, 1],
            strides: [208, 1 << 39, 16, 16],
            tile: [64, 5, 2, 1, 1],
        };
        assert_eq!(TensorMap::decode(&map.encode()), Some(map));
        assert_eq!(TensorMap::decode(&[0; ENCODED]), None);
        assert_eq!(map.tile_bytes(), 64 * 5 * 2 * 2);
    }

    #[test]
    fn boxes_reach_over_the_edges() {
        let map = TensorMap {
            address: 1 << 20,
            element: 4,
            rank: 2,
            extents: [6, 3, 0, 0, 0],
            strides: [32, 0, 0, 0],
            tile: [4, 2, 0, 0, 0],
            ..TensorMap::default()
        };
        let at = |x, y| {
            let mut found = Vec::new();
            map.chunks(&[x, y], |chunk| {
                found.push((
                    chunk.offset,
                    chunk.address.wrapping_sub(1 << 20) as i64,
                    chunk.inside,
                ));
            });
            found
        };
        assert_eq!(at(0, 0), [(0, 0, 0..4), (16, 32, 0..4)]);
        assert_eq!(at(4, 2), [(0, 80, 0..2), (16, 112, 0..0)]);
        assert_eq!(at(-3, -1), [(0, -44, 0..0), (16, -12, 3..4)]);
        assert_eq!(at(6, 0), [(0, 24, 0..0), (16, 56, 0..0)]);
    }

    #[test]
    fn a_swizzle_permutes_chunks_of_a_row() {
        let map = TensorMap {
            swizzle: 128,
            ..TensorMap::default()
        };
        assert_eq!(map.swizzled(3 * 128 + 2 * 16 + 5), 3 * 128 + 16 + 5);
        assert_eq!(map.swizzled(9 * 128), 9 * 128 + 16);
        let narrow = TensorMap {
            swizzle: 64,
            ..TensorMap::default()
        };
        // Rows of 64 bytes: two rows share an exclusive-or.
        assert_eq!(narrow.swizzled(128 + 64), 128 + 64 + 16);
    }
}
