//! Tensor maps.

use crate::driver::abi::{In, Out};
use crate::driver::state::Driver;
use crate::driver::status::{self, INVALID_VALUE, Result};
use crate::interpret::tensor::{ENCODED, MOST_DIMENSIONS, TensorMap};

/// Bytes of an element, by the number of `CUtensorMapDataType`; 0 for what is not a number of bytes. With whether it is a float.
const ELEMENTS: [(u8, bool); 13] = [
    (1, false),
    (2, false),
    (4, false),
    (4, false),
    (8, false),
    (8, false),
    (2, true),
    (4, true),
    (8, true),
    (2, true),
    (4, true),
    (4, true),
    (4, true),
];

/// `CU_TENSOR_MAP_DATA_TYPE_FLOAT64`.
const FLOAT64: u32 = 8;

exported! {
    fn cuTensorMapEncodeTiled(
        map: Out<[u8; ENCODED]>, element: u32, rank: u32, address: u64, extents: In<u64>, strides: In<u64>, tile: In<u32>,
        element_strides: In<u32>, interleave: u32, swizzle: u32, _promotion: u32, fill: u32,
    ) |driver| {
        let described = Described { element, rank, address, extents, strides, tile, element_strides, interleave, swizzle, fill };
        map.put(described.encoded(driver)?.encode())
    }
}

/// What `cuTensorMapEncodeTiled` is given.
struct Described {
    element: u32,
    rank: u32,
    address: u64,
    extents: In<u64>,
    strides: In<u64>,
    tile: In<u32>,
    element_strides: In<u32>,
    interleave: u32,
    swizzle: u32,
    fill: u32,
}

impl Described {
    /// The map, if it keeps to what `cuda.h` says of each argument; else a report says to what it does not.
    fn encoded(&self, driver: &Driver) -> Result<TensorMap> {
        if driver.settings.architecture < (9, 0) {
            return Err(status::NOT_SUPPORTED);
        }
        let refuse = |why: String| {
            driver
                .faults
                .report(&format!("emulated: cuTensorMapEncodeTiled: {why}"));
            INVALID_VALUE
        };
        let known = ELEMENTS.get(self.element as usize);
        let (bytes, is_float) =
            *known.ok_or_else(|| refuse(format!("data type {}", self.element)))?;
        let rank = self.rank as usize;
        if !(1..=MOST_DIMENSIONS).contains(&rank) {
            return Err(refuse(format!("{rank} dimensions")));
        }
        if self.interleave != 0 {
            driver
                .faults
                .report("emulated: interleaved tensor maps are not interpreted");
            return Err(status::NOT_SUPPORTED);
        }
        if self.address == 0 || !self.address.is_multiple_of(16) {
            return Err(refuse(format!(
                "address {:#x} is no multiple of 16",
                self.address
            )));
        }
        let swizzle = match self.swizzle {
            0 => 0,
            1 => 32,
            2 => 64,
            3 => 128,
            other => return Err(refuse(format!("swizzle {other}"))),
        };
        let mut map = TensorMap {
            address: self.address,
            element: bytes,
            rank: rank as u8,
            swizzle,
            fill: match (self.fill, is_float) {
                (0, _) => 0,
                (1, true) if self.element != FLOAT64 => u32::MAX >> (32 - 8 * u32::from(bytes)),
                _ => return Err(refuse("NaN is for floats of up to 32 bits".into())),
            },
            ..TensorMap::default()
        };
        for axis in 0..rank {
            let extent = self.extents.at(axis)?;
            if !(1..=1 << 32).contains(&extent) {
                return Err(refuse(format!("extent {extent} of dimension {axis}")));
            }
            map.extents[axis] = u32::try_from(extent).unwrap_or(u32::MAX);
            let tile = self.tile.at(axis)?;
            if !(1..=256).contains(&tile) {
                return Err(refuse(format!(
                    "{tile} elements of the box along dimension {axis}"
                )));
            }
            map.tile[axis] = tile as u16;
            if self.element_strides.at(axis)? != 1 {
                driver
                    .faults
                    .report("emulated: tensor maps that leave elements out are not interpreted");
                return Err(status::NOT_SUPPORTED);
            }
            if axis + 1 < rank {
                let stride = self.strides.at(axis)?;
                if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                    return Err(refuse(format!("stride {stride} of dimension {}", axis + 1)));
                }
                map.strides[axis] = stride;
            }
        }
        let row = u32::from(map.tile[0]) * u32::from(bytes);
        if !row.is_multiple_of(16) || swizzle != 0 && row > u32::from(swizzle) {
            return Err(refuse(format!(
                "rows of the box of {row} bytes, swizzled by {swizzle}"
            )));
        }
        Ok(map)
    }
}
