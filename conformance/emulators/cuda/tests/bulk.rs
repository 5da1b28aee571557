//! Bulk copies by tensor maps and without, against plain indexing: a box's elements in their order, those outside the tensor filled, chunks of 16 bytes
//! permuted as `CU_TENSOR_MAP_SWIZZLE_*` says (ISA, "Tensor copies", "Swizzling modes").

mod harness;

use harness::{Argument, HEADER_90A, Shape, launch};
use ropeway_emulated_cuda::interpret::tensor::TensorMap;
use ropeway_emulated_cuda::interpret::{Detector, Report};

/// Where the byte that is number `at` of a box comes to lie: 16-byte chunks are exclusive-ored by the number of their 128 bytes.
fn permuted(swizzle: u8, at: usize) -> usize {
    let (line, chunk, byte) = (at / 128, at / 16 % 8, at % 16);
    let with = match swizzle {
        128 => line % 8,
        64 => line % 4,
        32 => line % 2,
        _ => 0,
    };
    128 * line + 16 * (chunk ^ with) + byte
}

#[derive(Clone, Copy, Debug)]
struct Case {
    element: u8,
    rank: u8,
    swizzle: u8,
    fill: u32,
    extents: [u32; 5],
    tile: [u16; 5],
    at: [i32; 5],
}

impl Case {
    fn strides(&self) -> [u64; 4] {
        let mut strides = [0; 4];
        let mut bytes = u64::from(self.extents[0]) * u64::from(self.element);
        for axis in 1..usize::from(self.rank) {
            // One chunk more than is needed, so that rows have gaps.
            bytes = bytes.next_multiple_of(16) + 16;
            strides[axis - 1] = bytes;
            bytes *= u64::from(self.extents[axis]);
        }
        strides
    }

    fn map(&self) -> TensorMap {
        let used = |axis: usize, value: u32| if axis < self.rank.into() { value } else { 0 };
        TensorMap {
            address: 0,
            element: self.element,
            rank: self.rank,
            swizzle: self.swizzle,
            fill: self.fill,
            extents: std::array::from_fn(|axis| used(axis, self.extents[axis])),
            strides: self.strides(),
            tile: std::array::from_fn(|axis| used(axis, self.tile[axis].into()) as u16),
        }
    }

    /// Each element of the box in order: where it lies in the tensor's memory, if it is inside.
    fn elements(&self) -> Vec<Option<usize>> {
        let rank = usize::from(self.rank);
        let count: usize = self.tile[..rank]
            .iter()
            .map(|&extent| usize::from(extent))
            .product();
        let strides = self.strides();
        (0..count)
            .map(|mut number| {
                let mut address = 0;
                for axis in 0..rank {
                    let within = number % usize::from(self.tile[axis]);
                    number /= usize::from(self.tile[axis]);
                    let at = i64::from(self.at[axis]) + within as i64;
                    if !(0..i64::from(self.extents[axis])).contains(&at) {
                        return None;
                    }
                    let stride = if axis == 0 {
                        u64::from(self.element)
                    } else {
                        strides[axis - 1]
                    };
                    address += at as usize * stride as usize;
                }
                Some(address)
            })
            .collect()
    }

    fn tensor_bytes(&self) -> usize {
        let rank = usize::from(self.rank);
        match rank {
            1 => self.extents[0] as usize * usize::from(self.element),
            _ => self.strides()[rank - 2] as usize * self.extents[rank - 1] as usize,
        }
    }

    fn bytes(&self) -> usize {
        self.elements().len() * usize::from(self.element)
    }

    fn coordinates(&self) -> String {
        let all: Vec<_> = self.at[..self.rank.into()]
            .iter()
            .map(ToString::to_string)
            .collect();
        all.join(", ")
    }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at * 37 + at / 251 * 11) as u8)
        .collect()
}

/// Loads the box and gives shared memory as it then is.
fn load(case: &Case, seed: u64) -> Result<Vec<u8>, Box<Report>> {
    let (rank, bytes, at) = (case.rank, case.bytes(), case.coordinates());
    let text = format!(
        "{HEADER_90A}.extern .shared .align 1024 .b8 mem[];
.visible .entry load(.param .align 64 .b8 map[128], .param .u64 tensor, .param .u64 out) {{
.reg .b64 %m, %o, %w; .reg .b32 %t, %s, %b, v; .reg .pred p, done; .shared .align 8 .b8 full[8];
mov.b64 %m, map; cvta.param.u64 %m, %m; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %s, mem; mov.u32 %b, full;
setp.ne.u32 p, %t, 0; @p bra ALL;
mbarrier.init.shared::cta.b64 [%b], 1; fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%b], {bytes};
cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%s], [%m, {{{at}}}], [%b];
ALL: bar.sync 0;
WAIT: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%b], 0; @!done bra WAIT;
mul.wide.u32 %w, %t, 4; add.u64 %o, %o, %w; mad.lo.u32 %s, %t, 4, %s; shl.b32 %t, %t, 2;
MORE: setp.ge.u32 p, %t, {bytes}; @p bra END;
ld.shared.b32 v, [%s]; st.global.b32 [%o], v; add.u64 %o, %o, 256; add.u32 %s, %s, 256; add.u32 %t, %t, 256; bra MORE;
END: ret; }}"
    );
    let mut shape = Shape::new(1, 64).seed(seed);
    shape.shared = bytes as u32;
    let mut out = vec![0xCC; bytes];
    launch(
        &text,
        shape,
        &mut [
            Argument::Map(1, 0, case.map()),
            Argument::Memory(&mut content(case.tensor_bytes())),
            Argument::Memory(&mut out),
        ],
    )?;
    Ok(out)
}

fn check_load(case: Case) {
    let found = load(&case, 1).unwrap_or_else(|report| panic!("{case:?}: {report}"));
    let (width, tensor) = (usize::from(case.element), content(case.tensor_bytes()));
    for (number, place) in case.elements().into_iter().enumerate() {
        let to = permuted(case.swizzle, number * width);
        let expected = match place {
            Some(at) => tensor[at..at + width].to_vec(),
            None if case.fill == 0 => vec![0; width],
            None => case.fill.to_le_bytes()[..width].to_vec(),
        };
        assert_eq!(
            found[to..to + width],
            expected,
            "{case:?}: element {number}"
        );
    }
}

/// Stores the box out of shared memory that counts, and gives the tensor's memory.
fn store(case: &Case, seed: u64) -> Result<Vec<u8>, Box<Report>> {
    let (rank, bytes, at) = (case.rank, case.bytes(), case.coordinates());
    let text = format!(
        "{HEADER_90A}.extern .shared .align 1024 .b8 mem[];
.visible .entry store(.param .align 64 .b8 map[128], .param .u64 tensor, .param .u64 from) {{
.reg .b64 %m, %f, %w; .reg .b32 %t, %s, %u, v; .reg .pred p;
mov.b64 %m, map; cvta.param.u64 %m, %m; ld.param.u64 %f, [from]; mov.u32 %t, %tid.x; mov.u32 %s, mem;
mul.wide.u32 %w, %t, 4; add.u64 %f, %f, %w; mad.lo.u32 %u, %t, 4, %s; shl.b32 %t, %t, 2;
MORE: setp.ge.u32 p, %t, {bytes}; @p bra END;
ld.global.b32 v, [%f]; st.shared.b32 [%u], v; add.u64 %f, %f, 256; add.u32 %u, %u, 256; add.u32 %t, %t, 256; bra MORE;
END: fence.proxy.async.shared::cta; bar.sync 0; mov.u32 %t, %tid.x; setp.ne.u32 p, %t, 0; @p ret;
cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%m, {{{at}}}], [%s];
cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; ret; }}"
    );
    let mut shape = Shape::new(1, 64).seed(seed);
    shape.shared = bytes as u32;
    let mut tensor = vec![0xCC; case.tensor_bytes()];
    launch(
        &text,
        shape,
        &mut [
            Argument::Map(1, 0, case.map()),
            Argument::Memory(&mut tensor),
            Argument::Memory(&mut content(bytes)),
        ],
    )?;
    Ok(tensor)
}

fn check_store(case: Case) {
    let found = store(&case, 1).unwrap_or_else(|report| panic!("{case:?}: {report}"));
    let (width, held) = (usize::from(case.element), content(case.bytes()));
    let mut expected = vec![0xCC; case.tensor_bytes()];
    for (number, place) in case.elements().into_iter().enumerate() {
        if let Some(at) = place {
            let from = permuted(case.swizzle, number * width);
            expected[at..at + width].copy_from_slice(&held[from..from + width]);
        }
    }
    assert_eq!(found, expected, "{case:?}");
}

/// Boxes of all ranks and element sizes, inside and over every edge.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for element in [1_u8, 2, 4, 8] {
        for swizzle in [0_u8, 32, 64, 128] {
            let row = if swizzle == 0 { 48 } else { u16::from(swizzle) } / u16::from(element);
            let extents = [u32::from(row) + 5, 9, 4, 3, 3];
            let tile = [row, 6, 2, 2, 2];
            for rank in 1..=5 {
                if rank == 1 && swizzle > 0 {
                    continue;
                }
                let case = Case {
                    element,
                    rank,
                    swizzle,
                    fill: 0,
                    extents,
                    tile,
                    at: [0; 5],
                };
                cases.push(case);
                cases.push(Case {
                    at: [3, 2, 1, 1, 0],
                    ..case
                });
                for axis in 0..usize::from(rank) {
                    for at in [
                        -3,
                        -(i32::from(tile[axis])),
                        extents[axis] as i32 - 1,
                        extents[axis] as i32,
                        1 << 30,
                    ] {
                        let mut case = case;
                        case.at[axis] = at;
                        cases.push(case);
                    }
                }
                cases.push(Case {
                    at: [-1; 5],
                    ..case
                });
            }
        }
    }
    cases
}

#[test]
fn boxes_are_loaded_in_order_and_filled_beyond_the_edges() {
    cases().into_iter().for_each(check_load);
}

#[test]
fn what_is_outside_can_be_nan() {
    for (element, fill) in [(2, 0x7FFF), (2, 0xFFFF), (4, 0x7FFF_FFFF), (4, u32::MAX)] {
        for case in cases()
            .into_iter()
            .filter(|case| case.element == element && case.rank < 4)
        {
            check_load(Case { fill, ..case });
        }
    }
}

#[test]
fn boxes_are_stored_where_they_are_inside() {
    cases().into_iter().for_each(check_store);
}

/// A kernel of one warp with the tensor's map, a bulk of bytes, and a buffer of 2048 bytes; `full` is an mbarrier of one arrival.
fn body(text: &str) -> Result<Vec<u8>, Box<Report>> {
    let text = format!(
        "{HEADER_90A}.visible .entry k(.param .align 64 .b8 map[128], .param .u64 from, .param .u64 to) {{
.reg .b64 %m, %f, %o; .reg .b32 %t, %s, %b, v; .reg .pred p, first, done; .shared .align 1024 .b8 mem[2048]; .shared .align 8 .b8 full[8];
mov.b64 %m, map; cvta.param.u64 %m, %m; ld.param.u64 %f, [from]; ld.param.u64 %o, [to]; mov.u32 %t, %tid.x; mov.u32 %s, mem; mov.u32 %b, full;
setp.eq.u32 first, %t, 0; mov.b32 v, 0;
@first mbarrier.init.shared::cta.b64 [%b], 1; @first fence.mbarrier_init.release.cluster; bar.warp.sync -1;
{text}
ret; }}"
    );
    let text = text
        .replace("EXPECT", "@first mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%b],")
        .replace("LOAD", "@first cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes")
        .replace("TENSOR", "@first cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes")
        .replace("STORE", "@first cp.async.bulk.global.shared::cta.bulk_group")
        .replace("DONE;", "@first cp.async.bulk.commit_group; @first cp.async.bulk.wait_group 0;")
        .replace("WAIT;", "W: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%b], 0; @!done bra W;");
    let map = TensorMap {
        element: 1,
        rank: 2,
        swizzle: 128,
        extents: [128, 8, 0, 0, 0],
        strides: [128, 0, 0, 0],
        tile: [128, 8, 0, 0, 0],
        ..TensorMap::default()
    };
    let mut to = vec![0; 2048];
    launch(
        &text,
        Shape::new(1, 32),
        &mut [
            Argument::Map(1, 0, map),
            Argument::Memory(&mut content(1024)),
            Argument::Memory(&mut to),
        ],
    )?;
    Ok(to)
}

#[test]
fn bytes_go_in_and_out() {
    let there_and_back =
        "EXPECT 1024; LOAD [%s+16], [%f], 512, [%b]; LOAD [%s+1024], [%f+512], 512, [%b]; WAIT;
STORE [%o+32], [%s+16], 512; STORE [%o+1024], [%s+1024], 512; DONE;";
    let found = body(there_and_back).unwrap_or_else(|report| panic!("{report}"));
    let mut expected = vec![0; 2048];
    expected[32..544].copy_from_slice(&content(1024)[..512]);
    expected[1024..1536].copy_from_slice(&content(1024)[512..]);
    assert_eq!(found, expected);
}

#[test]
fn what_bulk_copies_forbid() {
    use Detector::{AsyncCopy, Engine, Misaligned, OutOfBounds, Phase, Proxy};
    for right in [
        "EXPECT 512; LOAD [%s], [%f], 512, [%b]; WAIT; ld.shared.b32 v, [%s];",
        "EXPECT 1024; TENSOR [%s], [%m, {0, 0}], [%b]; WAIT; ld.shared.b32 v, [%s];",
        // Bytes may come before they are announced.
        "LOAD [%s], [%f], 512, [%b]; EXPECT 512; WAIT; ld.shared.b32 v, [%s];",
        "@first st.shared.b32 [%s], v; @first fence.proxy.async; @first st.shared.b32 [%s+16], v; ret;",
    ] {
        body(right).unwrap_or_else(|report| panic!("{right}: {report}"));
    }
    for (wrong, expected) in [
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; ld.shared.b32 v, [%s];",
            AsyncCopy,
        ),
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; st.shared.b32 [%s], v;",
            AsyncCopy,
        ),
        ("EXPECT 512; LOAD [%s], [%f], 512, [%b];", AsyncCopy),
        ("EXPECT 512; LOAD [%s], [%f], 500, [%b];", Misaligned),
        ("EXPECT 512; LOAD [%s+8], [%f], 512, [%b];", Misaligned),
        ("EXPECT 512; LOAD [%s], [%f+8], 512, [%b];", Misaligned),
        (
            "EXPECT 1024; TENSOR [%s+128], [%m, {0, 0}], [%b];",
            Misaligned,
        ),
        ("EXPECT 512; LOAD [%s+1792], [%f], 512, [%b];", OutOfBounds),
        (
            "EXPECT 512; LOAD [%s], [%f+768], 512, [%b]; WAIT;",
            OutOfBounds,
        ),
        ("LOAD [%s], [%f], 512, [%s+512];", Phase),
        (
            "@first st.shared.v4.b32 [%s], {v, v, v, v}; STORE [%o], [%s], 16; DONE;",
            Proxy,
        ),
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; WAIT; STORE [%o], [%s], 512; st.shared.b32 [%s], v; DONE;",
            Engine,
        ),
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; WAIT; STORE [%o], [%s], 512;",
            Engine,
        ),
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; WAIT; STORE [%o], [%s+8], 16; DONE;",
            Misaligned,
        ),
        (
            "EXPECT 512; LOAD [%s], [%f], 512, [%b]; WAIT; STORE [%o+1792], [%s], 512; DONE;",
            OutOfBounds,
        ),
    ] {
        let report = body(wrong).map(|_| ()).expect_err(wrong);
        assert_eq!(report.detector, expected, "{wrong}: {report}");
    }
}
