//! `wgmma` against plain loops: operands laid out by the canonical layouts of the ISA ("Strides", "Matrix Descriptor Format"; CUTLASS draws them in
//! `cute/arch/mma_sm90_desc.hpp`), fragments by its figures. Of small integers every sum is exact.

mod harness;

use std::fmt::Write;

use harness::{Argument, HEADER_90A, Shape, launch};
use ropeway_emulated_cuda::interpret::{Detector, Report};
use ropeway_emulated_cuda::ptx::Module;

/// How an operand lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Elements of one k lie together if `false`, else those of one line (a row of A, a column of B).
    Shared { across: bool, swizzle: usize },
    /// Of A only.
    Registers,
}
use Layout::{Registers, Shared};

const fn along(swizzle: usize) -> Layout {
    Shared {
        across: false,
        swizzle,
    }
}

const fn across(swizzle: usize) -> Layout {
    Shared {
        across: true,
        swizzle,
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    n: usize,
    d: &'static str,
    a: &'static str,
    b: &'static str,
    a_layout: Layout,
    b_layout: Layout,
    steps: usize,
    accumulates: bool,
    negate: [bool; 2],
    saturate: bool,
    /// Whether each step is a group of its own, of which one stays in flight.
    in_flight: bool,
}

impl Case {
    fn new(n: usize, d: &'static str, a: &'static str, b: &'static str) -> Case {
        Case {
            n,
            d,
            a,
            b,
            a_layout: along(128),
            b_layout: along(128),
            steps: 1,
            accumulates: true,
            negate: [false; 2],
            saturate: false,
            in_flight: false,
        }
    }
}

fn bytes_of(element: &str) -> usize {
    match element {
        "tf32" => 4,
        "f16" | "bf16" => 2,
        _ => 1,
    }
}

fn is_whole(element: &str) -> bool {
    matches!(element, "s8" | "u8")
}

/// A number's bits. Floats here are integers from -3 to 3.
fn encoded(element: &str, value: i64) -> u64 {
    let sign = u64::from(value < 0);
    let magnitude = value.unsigned_abs() as usize;
    match element {
        "s8" | "u8" => value as u8 as u64,
        "f16" => sign << 15 | [0, 0x3C00, 0x4000, 0x4200][magnitude],
        "bf16" => sign << 15 | [0, 0x3F80, 0x4000, 0x4040][magnitude],
        "tf32" => u64::from((value as f32).to_bits()),
        "e4m3" => sign << 7 | [0, 0x38, 0x40, 0x44][magnitude],
        "e5m2" => sign << 7 | [0, 0x3C, 0x40, 0x42][magnitude],
        other => panic!("{other}"),
    }
}

struct Numbers(u64);

impl Numbers {
    fn draw(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn element(&mut self, element: &str) -> i64 {
        match element {
            "s8" => self.draw() as i64 % 256 - 128,
            "u8" => self.draw() as i64 % 256,
            _ => self.draw() as i64 % 7 - 3,
        }
    }
}

/// Where 16 bytes in a line of an atom come to lie: chunks are exclusive-ored by the line, as often as lines fill 128 bytes.
fn permuted(swizzle: usize, line: usize, byte: usize) -> usize {
    let with = match swizzle {
        128 => line % 8,
        64 => line / 2 % 4,
        32 => line / 4 % 2,
        _ => 0,
    };
    ((byte / 16) ^ with) * 16 + byte % 16
}

/// An operand of so many lines and k in shared memory: where an element lies; leading and stride; where a step of k begins; all bytes.
struct Image {
    across: bool,
    swizzle: usize,
    element: usize,
    lines: usize,
    k: usize,
}

impl Image {
    fn bytes(&self) -> usize {
        let panel = if self.across { self.lines } else { self.k } * self.element;
        let other = if self.across { self.k } else { self.lines };
        panel.next_multiple_of(self.swizzle.max(16)) * other
    }

    fn offset(&self, line: usize, k: usize) -> usize {
        let (leading, stride) = self.strides();
        let (w, byte_k, byte_line) = (self.swizzle, k * self.element, line * self.element);
        match (self.across, w) {
            (false, 0) => line / 8 * stride + byte_k / 16 * leading + line % 8 * 16 + byte_k % 16,
            // Panels as wide as the swizzle, one after another.
            (false, _) => {
                byte_k / w * (self.lines * w)
                    + line / 8 * stride
                    + line % 8 * w
                    + permuted(w, line % 8, byte_k % w)
            }
            (true, 0) => byte_line / 16 * stride + k / 8 * leading + k % 8 * 16 + byte_line % 16,
            (true, _) => {
                byte_line / w * leading
                    + k / 8 * stride
                    + k % 8 * w
                    + permuted(w, k % 8, byte_line % w)
            }
        }
    }

    /// Leading and stride byte offsets.
    fn strides(&self) -> (usize, usize) {
        let w = self.swizzle;
        match (self.across, w) {
            (false, 0) => (self.lines * 16, 128),
            (false, _) => (16, 8 * w),
            (true, 0) => (128, self.k * 16),
            (true, _) => (self.k * w, 8 * w),
        }
    }

    fn step(&self, first: usize) -> usize {
        if self.across || self.swizzle == 0 {
            self.offset(0, first)
        } else {
            let byte = first * self.element;
            byte / self.swizzle * (self.lines * self.swizzle) + byte % self.swizzle
        }
    }

    fn descriptor(&self) -> u64 {
        let (leading, stride) = self.strides();
        let swizzle = match self.swizzle {
            0 => 0,
            128 => 1_u64,
            64 => 2,
            _ => 3,
        };
        (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | swizzle << 62
    }
}

fn image_of(layout: Layout, element: &str, lines: usize, k: usize) -> Option<Image> {
    let Shared { across, swizzle } = layout else {
        return None;
    };
    Some(Image {
        across,
        swizzle,
        element: bytes_of(element),
        lines,
        k,
    })
}

fn kernel(case: &Case, a: Option<&Image>, b: &Image, b_at: usize, bytes: usize) -> String {
    let sums = case.n / if case.d == "f16" { 4 } else { 2 };
    let k = 32 / bytes_of(case.a);
    let list = |letter: char, from: usize, count: usize| {
        let names: Vec<_> = (from..from + count)
            .map(|i| format!("{letter}{i}"))
            .collect();
        names.join(", ")
    };
    let mut text = format!(
        "{HEADER_90A}.extern .shared .align 1024 .b8 mem[];
.visible .entry product(.param .u64 image, .param .u64 fragments, .param .u64 sums, .param .u32 first) {{
.reg .b64 %i, %f, %d, %w, da, db; .reg .b32 %t, %s, %x, v<4>, a<{}>, d<{sums}>; .reg .pred p, q;
ld.param.u64 %i, [image]; ld.param.u64 %f, [fragments]; ld.param.u64 %d, [sums]; ld.param.u32 %x, [first]; setp.ne.b32 q, %x, 0;
mov.u32 %t, %tid.x; mov.u32 %s, mem; shl.b32 %x, %t, 4; add.u32 %s, %s, %x; mul.wide.u32 %w, %t, 16; add.u64 %i, %i, %w;
MORE: setp.ge.u32 p, %x, {bytes}; @p bra DONE;
ld.global.v4.b32 {{v0, v1, v2, v3}}, [%i]; st.shared.v4.b32 [%s], {{v0, v1, v2, v3}};
add.u64 %i, %i, 2048; add.u32 %s, %s, 2048; add.u32 %x, %x, 2048; bra MORE;
DONE: fence.proxy.async; bar.sync 0;
mul.wide.u32 %w, %t, {}; add.u64 %f, %f, %w; mul.wide.u32 %w, %t, {}; add.u64 %d, %d, %w;
",
        4 * case.steps,
        16 * case.steps,
        4 * sums
    );
    for i in 0..sums {
        let _ = writeln!(text, "ld.global.b32 d{i}, [%d+{}];", 4 * i);
    }
    for i in 0..4 * case.steps {
        let _ = writeln!(text, "ld.global.b32 a{i}, [%f+{}];", 4 * i);
    }
    text += "wgmma.fence.sync.aligned;\n";
    for step in 0..case.steps {
        let mut describe = |name: &str, image: &Image, at: usize| {
            let at = at + image.step(step * k);
            let _ = writeln!(
                text,
                "mov.u32 %s, mem; add.u32 %s, %s, {at}; shr.u32 %s, %s, 4; and.b32 %s, %s, 0x3fff; cvt.u64.u32 {name}, %s; or.b64 {name}, {name}, {:#x};",
                image.descriptor()
            );
        };
        describe("db", b, b_at);
        let first = match a {
            Some(image) => {
                describe("da", image, 0);
                "da".to_owned()
            }
            None => format!("{{{}}}", list('a', 4 * step, 4)),
        };
        let mut tail = String::new();
        if !is_whole(case.a) {
            for negate in case.negate {
                tail += if negate { ", -1" } else { ", 1" };
            }
        }
        if bytes_of(case.a) == 2 {
            if let Some(a) = a {
                let _ = write!(tail, ", {}", u8::from(a.across));
            }
            let _ = write!(tail, ", {}", u8::from(b.across));
        }
        let saturate = if case.saturate { ".satfinite" } else { "" };
        let (n, d, a, b) = (case.n, case.d, case.a, case.b);
        let _ = writeln!(
            text,
            "wgmma.mma_async.sync.aligned.m64n{n}k{k}{saturate}.{d}.{a}.{b} {{{}}}, {first}, db, {}{tail};",
            list('d', 0, sums),
            if step == 0 { "q" } else { "1" }
        );
        if case.in_flight {
            text += "wgmma.commit_group.sync.aligned;\n";
            if step > 0 {
                text += "wgmma.wait_group.sync.aligned 1;\n";
            }
        }
    }
    if !case.in_flight {
        text += "wgmma.commit_group.sync.aligned;\n";
    }
    text += "wgmma.wait_group.sync.aligned 0;\n";
    for i in 0..sums {
        let _ = writeln!(text, "st.global.b32 [%d+{}], d{i};", 4 * i);
    }
    text + "ret; }\n"
}

/// Thread and element of the sums' fragment (ISA, "Matrix fragments for wgmma.mma_async.m64nNk16"): row and column.
fn place_of_sum(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (
        16 * warp + lane / 4 + 8 * (i / 2 % 2),
        8 * (i / 4) + 2 * (lane % 4) + i % 2,
    )
}

/// Thread and element of the fragment of A: row and k. Registers hold 32 bits of one row.
fn place_of_factor(element: &str, thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane, each) = (thread / 32, thread % 32, 4 / bytes_of(element));
    let (register, part) = (i / each, i % each);
    (
        16 * warp + lane / 4 + 8 * (register % 2),
        each * (lane % 4) + part + 4 * each * (register / 2),
    )
}

fn run(case: Case, seed: u64) -> Result<(), Box<Report>> {
    let (n, k) = (case.n, case.steps * 32 / bytes_of(case.a));
    let mut numbers = Numbers(seed ^ n as u64);
    let a: Vec<i64> = (0..64 * k).map(|_| numbers.element(case.a)).collect();
    let b: Vec<i64> = (0..n * k).map(|_| numbers.element(case.b)).collect();
    let a_image = image_of(case.a_layout, case.a, 64, k);
    let b_image = image_of(case.b_layout, case.b, n, k).unwrap();
    let b_at = a_image
        .as_ref()
        .map_or(0, |image| image.bytes().next_multiple_of(1024));
    let mut image = vec![0xEE; (b_at + b_image.bytes()).next_multiple_of(16)];
    let mut lay = |of: &Image, values: &[i64], element: &str, at: usize| {
        for line in 0..of.lines {
            for i in 0..k {
                let bits = encoded(element, values[line * k + i]).to_le_bytes();
                image[at + of.offset(line, i)..][..of.element].copy_from_slice(&bits[..of.element]);
            }
        }
    };
    if let Some(of) = &a_image {
        lay(of, &a, case.a, 0);
    }
    lay(&b_image, &b, case.b, b_at);
    let mut fragments = Vec::new();
    let step = 32 / bytes_of(case.a);
    for thread in 0..128 {
        for i in 0..case.steps * 16 / bytes_of(case.a) {
            let each = 16 / bytes_of(case.a);
            let (row, within) = place_of_factor(case.a, thread, i % each);
            let bits = encoded(case.a, a[row * k + i / each * step + within]).to_le_bytes();
            fragments.extend(&bits[..bytes_of(case.a)]);
        }
    }
    // Integers that saturate begin near the ends.
    let c = |row: usize, column: usize| -> i64 {
        let small = ((row * 7 + column * 3) % 41) as i64 - 20;
        match (case.d, case.saturate) {
            ("s32", true) if row.is_multiple_of(2) => i64::from(i32::MAX) - small.abs(),
            ("s32", true) => i64::from(i32::MIN) + small.abs(),
            _ => small,
        }
    };
    let half = |value: i64| half_bits(value as f32);
    let each = n / 2;
    let mut sums = Vec::new();
    for thread in 0..128 {
        for i in 0..each {
            let (row, column) = place_of_sum(thread, i);
            let value = c(row, column);
            match case.d {
                "f16" => sums.extend(half(value).to_le_bytes()),
                "f32" => sums.extend((value as f32).to_le_bytes()),
                _ => sums.extend((value as i32).to_le_bytes()),
            }
        }
    }
    let text = kernel(&case, a_image.as_ref(), &b_image, b_at, image.len());
    let mut shape = Shape::new(1, 128).seed(seed);
    shape.shared = image.len() as u32;
    launch(
        &text,
        shape,
        &mut [
            Argument::Memory(&mut image),
            Argument::Memory(&mut fragments),
            Argument::Memory(&mut sums),
            u32::from(case.accumulates).into(),
        ],
    )?;
    let sign = if case.negate[0] != case.negate[1] {
        -1
    } else {
        1
    };
    let width = if case.d == "f16" { 2 } else { 4 };
    for thread in 0..128 {
        for i in 0..each {
            let (row, column) = place_of_sum(thread, i);
            let product: i64 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
            let begin = if case.accumulates { c(row, column) } else { 0 };
            let expected = begin + sign * product;
            let expected = match case.d {
                "f16" => u32::from(half(expected)),
                "f32" => (expected as f32).to_bits(),
                _ if case.saturate => {
                    expected.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                }
                _ => expected as u32,
            };
            let mut found = [0; 4];
            found[..width].copy_from_slice(&sums[(thread * each + i) * width..][..width]);
            assert_eq!(
                u32::from_le_bytes(found),
                expected,
                "{case:?}: row {row}, column {column}"
            );
        }
    }
    Ok(())
}

/// Bits of an integer below 2048 in f16.
fn half_bits(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    assert!(value.abs() < 2048.0);
    let bits = value.to_bits();
    (bits >> 16 & 0x8000) as u16 | ((bits >> 13 & 0x3_FFFF) as u16).wrapping_sub(112 << 10) & 0x7FFF
}

fn check(case: Case) {
    run(case, 1).unwrap_or_else(|report| panic!("{case:?}: {report}"));
}

const TYPES: [(&str, &str, &str); 13] = [
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "bf16", "bf16"),
    ("f32", "tf32", "tf32"),
    ("f32", "e4m3", "e4m3"),
    ("f32", "e4m3", "e5m2"),
    ("f32", "e5m2", "e4m3"),
    ("f16", "e5m2", "e5m2"),
    ("f16", "e4m3", "e4m3"),
    ("s32", "s8", "s8"),
    ("s32", "s8", "u8"),
    ("s32", "u8", "s8"),
    ("s32", "u8", "u8"),
];

#[test]
fn every_type_in_every_width() {
    for (number, (d, a, b)) in TYPES.into_iter().enumerate() {
        for n in (8..=256).step_by(8) {
            if is_whole(a) && n > 32 && n % 16 != 0 {
                continue;
            }
            // All widths of one type, and some of each.
            if number == 0 || n % 64 == 8 * number % 64 || n == 256 || n == 8 {
                check(Case::new(n, d, a, b));
            }
        }
    }
}

#[test]
fn factors_in_registers() {
    for (d, a, b) in TYPES {
        for n in [8, 48, 96] {
            let case = Case {
                a_layout: Registers,
                steps: 3,
                ..Case::new(n, d, a, b)
            };
            check(case);
        }
    }
    let case = Case {
        a_layout: Registers,
        b_layout: across(128),
        steps: 2,
        ..Case::new(64, "f32", "bf16", "bf16")
    };
    check(case);
}

#[test]
fn every_swizzle_along_k() {
    for (d, a, b) in TYPES {
        for swizzle in [0, 32, 64, 128] {
            for other in [0, 32, 64, 128] {
                let case = Case {
                    a_layout: along(swizzle),
                    b_layout: along(other),
                    steps: 5,
                    ..Case::new(40 + 8 * usize::from(is_whole(a)), d, a, b)
                };
                check(case);
            }
        }
    }
}

#[test]
fn every_swizzle_across_k() {
    for element in ["f16", "bf16"] {
        for swizzle in [0, 32, 64, 128] {
            for other in [0, 32, 64, 128] {
                for (a_layout, b_layout) in [
                    (across(swizzle), across(other)),
                    (across(swizzle), along(other)),
                    (along(swizzle), across(other)),
                ] {
                    let case = Case {
                        a_layout,
                        b_layout,
                        steps: 3,
                        ..Case::new(192, "f32", element, element)
                    };
                    check(case);
                }
            }
        }
    }
    // Narrower than the swizzle.
    let case = Case {
        b_layout: across(128),
        ..Case::new(24, "f32", "f16", "f16")
    };
    check(case);
}

#[test]
fn sums_that_begin_anew_and_factors_that_are_negated() {
    for (d, a, b) in TYPES {
        for accumulates in [false, true] {
            for negate in [[false, false], [true, false], [false, true], [true, true]] {
                if is_whole(a) && negate != [false; 2] {
                    continue;
                }
                let case = Case {
                    accumulates,
                    negate,
                    steps: 2,
                    ..Case::new(16, d, a, b)
                };
                check(case);
            }
        }
    }
}

#[test]
fn integers_that_saturate_and_that_wrap() {
    for (d, a, b) in TYPES.into_iter().filter(|(_, a, _)| is_whole(a)) {
        for saturate in [false, true] {
            let case = Case {
                saturate,
                ..Case::new(32, d, a, b)
            };
            check(case);
        }
    }
}

#[test]
fn sums_chained_through_products_in_flight() {
    for (d, a, b) in TYPES {
        for a_layout in [along(128), Registers] {
            let case = Case {
                a_layout,
                steps: 6,
                in_flight: true,
                ..Case::new(64, d, a, b)
            };
            check(case);
        }
    }
}

/// Runs a body for a warpgroup behind an ordinary product of 64 x 8 by `d`, whose operands are all zeros.
fn body(text: &str) -> Result<(), Box<Report>> {
    let text = format!(
        "{HEADER_90A}.visible .entry k() {{ .shared .align 1024 .b8 mem[4096]; .reg .b64 da, db; .reg .b32 t, s, v, a<4>, d<4>, e<4>; .reg .pred p;
mov.u32 t, %tid.x; mov.u32 s, mem; mad.lo.u32 s, t, 16, s; mov.b32 v, 0;
st.shared.v4.b32 [s], {{v, v, v, v}}; st.shared.v4.b32 [s+2048], {{v, v, v, v}};
mov.u32 v, mem; shr.u32 v, v, 4; cvt.u64.u32 da, v; or.b64 da, da, 0xC000001000010000; mov.b64 db, da;
mov.b32 d0, 0; mov.b32 d1, 0; mov.b32 d2, 0; mov.b32 d3, 0; mov.b32 a0, 0; mov.b32 a1, 0; mov.b32 a2, 0; mov.b32 a3, 0;
mov.b32 e0, 0; mov.b32 e1, 0; mov.b32 e2, 0; mov.b32 e3, 0;
{text}
ret; }}"
    );
    let text = text
        .replace("PRODUCT;", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {d0, d1, d2, d3}, da, db, 1, 1, 1, 0, 0;")
        .replace("REGISTERS;", "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {d0, d1, d2, d3}, {a0, a1, a2, a3}, db, 1, 1, 1, 0;")
        .replace("READY;", "fence.proxy.async; bar.sync 0;")
        .replace("FENCE;", "wgmma.fence.sync.aligned;")
        .replace("COMMIT;", "wgmma.commit_group.sync.aligned;")
        .replace("WAIT", "wgmma.wait_group.sync.aligned");
    launch(&text, Shape::new(1, 128), &mut []).map(|_| ())
}

#[test]
fn what_products_in_flight_forbid() {
    use Detector::{Engine, Proxy, Race, WarpDivergence};
    for right in [
        "READY; FENCE; PRODUCT; COMMIT; WAIT 0;",
        // Further products of one shape into the same sums need no fence.
        "READY; FENCE; PRODUCT; COMMIT; PRODUCT; COMMIT; WAIT 1; PRODUCT; COMMIT; WAIT 0; add.f32 d0, d0, d1;",
        "READY; FENCE; REGISTERS; COMMIT; WAIT 0; mov.b32 a0, 1; FENCE; REGISTERS; COMMIT; WAIT 0;",
        // What compilers make of operands that are read and written.
        "READY; FENCE; PRODUCT; COMMIT; mov.b32 e0, d0; mov.b32 d0, e0; WAIT 0; add.f32 d0, d0, e0;",
        "READY; FENCE; PRODUCT; COMMIT; WAIT 0; bar.sync 0; st.shared.b32 [s], v;",
    ] {
        body(right).unwrap_or_else(|report| panic!("{right}: {report}"));
    }
    for (wrong, expected) in [
        ("READY; PRODUCT; COMMIT; WAIT 0;", Engine),
        (
            "READY; FENCE; PRODUCT; COMMIT; WAIT 0; PRODUCT; COMMIT; WAIT 0;",
            Engine,
        ),
        (
            "READY; FENCE; PRODUCT; COMMIT; add.f32 d0, d0, d1; WAIT 0;",
            Engine,
        ),
        (
            "READY; FENCE; PRODUCT; COMMIT; mov.b32 e0, d0; add.f32 e0, e0, e0; WAIT 0;",
            Engine,
        ),
        (
            "READY; FENCE; PRODUCT; COMMIT; PRODUCT; COMMIT; WAIT 1; add.f32 d0, d0, d1; WAIT 0;",
            Engine,
        ),
        (
            "READY; FENCE; REGISTERS; COMMIT; add.u32 a1, t, 1; WAIT 0;",
            Engine,
        ),
        (
            "READY; FENCE; PRODUCT; COMMIT; st.shared.b32 [s], t; WAIT 0;",
            Engine,
        ),
        ("READY; FENCE; PRODUCT; WAIT 0;", Engine),
        ("READY; FENCE; PRODUCT; COMMIT;", Engine),
        ("READY; FENCE; PRODUCT;", Engine),
        ("bar.sync 0; FENCE; PRODUCT; COMMIT; WAIT 0;", Proxy),
        ("fence.proxy.async; FENCE; PRODUCT; COMMIT; WAIT 0;", Race),
        // The fence orders what its own thread wrote.
        (
            "bar.sync 0; setp.eq.u32 p, t, 0; @p fence.proxy.async; bar.sync 0; FENCE; PRODUCT; COMMIT; WAIT 0;",
            Proxy,
        ),
        (
            "READY; FENCE; setp.lt.u32 p, t, 5; @p PRODUCT; COMMIT; WAIT 0;",
            WarpDivergence,
        ),
    ] {
        let report = body(wrong).expect_err(wrong);
        // What nothing orders may also not have been written yet.
        let found = match report.detector {
            Detector::Uninitialised => Race,
            found => found,
        };
        assert_eq!(found, expected, "{wrong}: {report}");
    }
}

fn refusal(header: &str, instruction: &str) -> Option<String> {
    let text = format!(
        "{header}.visible .entry k() {{ .reg .b64 da, db; .reg .b32 a<4>, d<128>; .reg .b16 h; .reg .pred p;
{instruction}
ret; }}"
    );
    Module::parse(&text).err().map(|error| error.to_string())
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    let sums = |count: usize| {
        let names: Vec<_> = (0..count).map(|i| format!("d{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let product = |shape: &str, types: &str, sums_: usize, rest: &str| {
        format!(
            "wgmma.mma_async.sync.aligned.{shape}.{types} {}, {rest};",
            sums(sums_)
        )
    };
    let halves = "da, db, p, 1, 1, 0, 0";
    let bytes = "da, db, p";
    let right = product("m64n8k16", "f32.f16.f16", 4, halves);
    assert_eq!(refusal(HEADER_90A, &right), None);
    assert_eq!(
        refusal(HEADER_90A, "setmaxnreg.inc.sync.aligned.u32 240;"),
        None
    );
    for wrong in [
        product("m64n12k16", "f32.f16.f16", 6, halves),
        product("m64n264k16", "f32.f16.f16", 132, halves),
        product("m64n8k8", "f32.f16.f16", 4, halves),
        product("m64n8k16", "f32.f16.bf16", 4, halves),
        product("m64n8k16", "f16.bf16.bf16", 2, halves),
        product("m64n8k16", "f16.f16.f16", 4, halves),
        product("m64n8k16", "f32.f16.f16", 4, "da, db, p, 2, 1, 0, 0"),
        product("m64n8k16", "f32.f16.f16", 4, "da, db, p, 1, 1, 0, 2"),
        product("m64n8k16", "f32.f16.f16", 4, "da, db, p, 1, 1"),
        product(
            "m64n8k16",
            "f32.f16.f16",
            4,
            "{a0, a1, a2, a3}, db, p, 1, 1, 0, 0",
        ),
        product("m64n8k16", "f32.f16.f16", 4, "{a0, a1}, db, p, 1, 1, 0"),
        product("m64n8k8", "f32.tf32.tf32", 4, "da, db, p, 1, 1, 0, 0"),
        product("m64n8k32", "f32.e4m3.f16", 4, bytes),
        product("m64n40k32", "s32.s8.s8", 20, bytes),
        product("m64n8k32", "s32.s8.s8", 4, "da, db, p, 1, 1"),
        product("m64n8k16.satfinite", "f32.f16.f16", 4, halves),
        "wgmma.fence.sync;".into(),
        "wgmma.wait_group.sync.aligned d0;".into(),
        "wgmma.wait_group.sync.aligned 8;".into(),
        "setmaxnreg.inc.sync.aligned.u32 20;".into(),
        "setmaxnreg.dec.sync.aligned.u32 100;".into(),
        "setmaxnreg.dec.sync.aligned.u32 264;".into(),
        "setmaxnreg.dec.sync.aligned.u32 d0;".into(),
        "setmaxnreg.sync.aligned.u32 64;".into(),
    ] {
        assert!(refusal(HEADER_90A, &wrong).is_some(), "{wrong} is accepted");
    }
    // They are of sm_90a alone.
    for target in ["sm_80", "sm_90", "sm_100a"] {
        let header = HEADER_90A.replace("sm_90a", target);
        for wrong in [&right[..], "wgmma.fence.sync.aligned;"] {
            assert!(
                refusal(&header, wrong).is_some(),
                "{wrong} is accepted for {target}"
            );
        }
    }
    for wrong in ["setmaxnreg.inc.sync.aligned.u32 240;"] {
        for target in ["sm_80", "sm_90"] {
            let header = HEADER_90A.replace("sm_90a", target);
            assert!(
                refusal(&header, wrong).is_some(),
                "{wrong} is accepted for {target}"
            );
        }
    }
    // Copies and mbarriers came with sm_90.
    let header = HEADER_90A.replace("sm_90a", "sm_80");
    for wrong in [
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [a0], [da], a1, [a2];",
        "cp.async.bulk.commit_group;",
        "mbarrier.try_wait.parity.shared::cta.b64 p, [a0], a1;",
        "barrier.cluster.arrive.aligned;",
        "fence.proxy.async;",
        "mapa.shared::cluster.u32 a0, a1, a2;",
        "griddepcontrol.wait;",
    ] {
        assert_eq!(refusal(HEADER_90A, wrong), None);
        assert!(
            refusal(&header, wrong).is_some(),
            "{wrong} is accepted for sm_80"
        );
    }
}
