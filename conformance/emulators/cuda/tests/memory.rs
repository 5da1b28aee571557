//! Loads, stores, atomic operations, state spaces and matrix instructions.

mod harness;

use harness::{Argument, HEADER, Shape, check, launch};

#[test]
fn loads_extend_by_their_type() {
    let check = |ty: &str, d: &str, expected: u64| {
        let body = format!(
            "{{ .shared .align 8 .b8 s[512]; .reg .b32 %s; mad.lo.u32 %s, %lane, 8, s; st.shared.u64 [%s], a; ld.shared.{ty} d, [%s]; }}"
        );
        check(
            &format!(".b64 a; .b{d} d"),
            &body,
            &[(&[0x8899_AABB_CCDD_EEFF], expected)],
        );
    };
    check("u8", "16", 0xFF);
    check("s8", "16", 0xFFFF);
    check("s8", "32", 0xFFFF_FFFF);
    check("u16", "32", 0xEEFF);
    check("s16", "32", 0xFFFF_EEFF);
    check("s32", "64", 0xFFFF_FFFF_CCDD_EEFF);
    check("u32", "64", 0xCCDD_EEFF);
}

#[test]
fn every_state_space_by_generic_addresses() {
    let body = "{ .shared .align 16 .b8 s[32]; .local .align 16 .b8 depot[32]; .reg .b64 %g; .reg .b32 %x, %y;
        cvt.u32.u64 %x, a; mov.b64 %g, s; cvta.shared.u64 %g, %g; st.u32 [%g+4], %x;
        mov.b64 %g, depot; cvta.local.u64 %g, %g; st.u32 [%g+8], 5; ld.u32 %y, [%g+8];
        isspacep.local p, %g; isspacep.shared q, %g;
        mov.b64 %g, s; cvta.shared.u64 %g, %g; ld.u32 %x, [%g+4]; cvta.to.shared.u64 %g, %g; @p ld.shared.u32 %x, [%g+4];
        @q mov.u32 %y, 0; add.u32 %x, %x, %y; cvt.u64.u32 d, %x; }";
    check(".b64 a, d", body, &[(&[37], 42)]);
}

#[test]
fn vectors() {
    let text = format!(
        "{HEADER}.visible .entry v(.param .u64 p) {{ .reg .b64 x; .reg .f32 a, b, c, d; .reg .b16 h, i;
        ld.param.u64 x, [p]; ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {{a, b, c, d}}, [x];
        st.global.v4.f32 [x+16], {{d, c, b, a}}; ld.global.v2.u16 {{h, i}}, [x]; st.global.v2.u16 [x+32], {{i, h}}; ret; }}"
    );
    let mut data: Vec<u8> = (0..36).collect();
    launch(&text, Shape::new(1, 1), &mut [Argument::Memory(&mut data)]).unwrap();
    assert_eq!(
        data[16..],
        [
            12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3, 2, 3, 0, 1
        ]
    );
}

#[test]
fn atomic_operations() {
    let atom = |instruction: &str, initial: u64, b: u64, c: u64| {
        let text = format!(
            "{HEADER}.visible .entry t(.param .u64 p, .param .u64 pb, .param .u64 pc) {{ .reg .b64 x, b, c, d; .reg .b32 b32, c32, d32;
            .reg .f32 f; .reg .b16 h;
            ld.param.u64 x, [p]; ld.param.u64 b, [pb]; ld.param.u64 c, [pc]; cvt.u32.u64 b32, b; cvt.u32.u64 c32, c; mov.b32 f, b32;
            cvt.u16.u32 h, b32; {instruction} ret; }}"
        );
        let mut data = initial.to_le_bytes();
        launch(
            &text,
            Shape::new(1, 1),
            &mut [Argument::Memory(&mut data), b.into(), c.into()],
        )
        .unwrap();
        u64::from_le_bytes(data)
    };
    assert_eq!(atom("atom.global.add.u32 d32, [x], b32;", 5, 7, 0), 12);
    assert_eq!(atom("red.global.add.u64 [x], b;", 5, u64::MAX, 0), 4);
    assert_eq!(atom("atom.global.exch.b32 d32, [x], b32;", 5, 7, 0), 7);
    assert_eq!(atom("atom.global.cas.b32 d32, [x], b32, c32;", 5, 5, 9), 9);
    assert_eq!(atom("atom.global.cas.b32 d32, [x], b32, c32;", 5, 6, 9), 5);
    assert_eq!(atom("atom.global.inc.u32 d32, [x], b32;", 7, 7, 0), 0);
    assert_eq!(atom("atom.global.inc.u32 d32, [x], b32;", 6, 7, 0), 7);
    assert_eq!(atom("atom.global.dec.u32 d32, [x], b32;", 0, 7, 0), 7);
    assert_eq!(atom("atom.global.dec.u32 d32, [x], b32;", 9, 7, 0), 7);
    assert_eq!(
        atom("atom.global.min.s32 d32, [x], b32;", 3, 0xFFFF_FFFF, 0),
        0xFFFF_FFFF
    );
    assert_eq!(
        atom("atom.global.max.u32 d32, [x], b32;", 3, 0xFFFF_FFFF, 0),
        0xFFFF_FFFF
    );
    assert_eq!(atom("red.global.or.b32 [x], b32;", 3, 8, 0), 11);
    assert_eq!(atom("red.global.and.b64 [x], b;", 7, 12, 0), 4);
    assert_eq!(atom("red.global.xor.b32 [x], b32;", 7, 12, 0), 11);
    assert_eq!(
        atom(
            "red.relaxed.gpu.global.add.f32 [x], f;",
            u64::from(1f32.to_bits()),
            u64::from(2f32.to_bits()),
            0
        ),
        u64::from(3f32.to_bits())
    );
    assert_eq!(
        atom(
            "red.global.add.noftz.f16x2 [x], b32;",
            0x3C00_4000,
            0x3C00_3C00,
            0
        ),
        0x4000_4200
    );
    assert_eq!(atom("atom.global.cas.b16 h, [x], h, h;", 5, 5, 0), 5);
}

#[test]
fn atomics_of_many_blocks_lose_nothing() {
    let text = format!(
        "{HEADER}.visible .entry t(.param .u64 p) {{ .reg .b64 x; ld.param.u64 x, [p]; red.global.add.u32 [x], 1; ret; }}"
    );
    let mut count = [0; 4];
    let mut shape = Shape::new(64, 96);
    shape.options.threads = 4;
    launch(&text, shape, &mut [Argument::Memory(&mut count)]).unwrap();
    assert_eq!(u32::from_le_bytes(count), 64 * 96);
}

#[test]
fn variables_of_the_module() {
    let text = format!(
        "{HEADER}.const .align 4 .b8 table[8] = {{1, 0, 0, 0, 7, 0, 0, 0}}; .global .align 4 .u32 counter = 35;
        .visible .entry t(.param .u64 p) {{ .reg .b64 x; .reg .b32 a, b; ld.param.u64 x, [p]; ld.const.u32 a, [table+4];
        ld.global.u32 b, [counter]; add.u32 a, a, b; st.global.u32 [x], a; ret; }}"
    );
    let mut out = [0; 4];
    launch(&text, Shape::new(1, 1), &mut [Argument::Memory(&mut out)]).unwrap();
    assert_eq!(u32::from_le_bytes(out), 42);
}

/// Matrix i of four has elements 100 i + 8 row + column.
fn four_matrices(load: &str, registers: usize) -> Vec<Vec<u32>> {
    let names: Vec<_> = (0..registers).map(|i| format!("r{i}")).collect();
    let stores: String = (0..registers)
        .map(|i| format!("st.global.u32 [o+{}], r{i};", 4 * i))
        .collect();
    let text = format!(
        "{HEADER}.visible .entry t(.param .u64 p, .param .u64 q) {{ .reg .b64 x, y, o; .reg .b32 t, s, a, b, c, d, r<4>; .shared .align 16 .b8 m[512];
        ld.param.u64 x, [p]; ld.param.u64 o, [q]; mov.u32 t, %tid.x; mul.wide.u32 y, t, 16; add.s64 x, x, y; add.s64 o, o, y;
        mad.lo.u32 s, t, 16, m; ld.global.v4.u32 {{a, b, c, d}}, [x]; st.shared.v4.u32 [s], {{a, b, c, d}}; bar.sync 0;
        {load} {{{}}}, [s]; {stores} ret; }}",
        names.join(", ")
    );
    let elements: Vec<u8> = (0..256_u16)
        .flat_map(|i| (i / 64 * 100 + i % 64).to_le_bytes())
        .collect();
    let mut out = vec![0; 512];
    launch(
        &text,
        Shape::new(1, 32),
        &mut [
            Argument::Memory(&mut elements.clone()),
            Argument::Memory(&mut out),
        ],
    )
    .unwrap();
    out.chunks(16)
        .map(|lane| {
            lane.chunks(4)
                .map(|raw| u32::from_le_bytes(raw.try_into().unwrap()))
                .collect()
        })
        .collect()
}

#[test]
fn ldmatrix_gives_each_lane_two_elements_of_a_row() {
    let found = four_matrices("ldmatrix.sync.aligned.m8n8.x4.shared.b16", 4);
    for (lane, registers) in found.iter().enumerate() {
        let (row, column) = (lane / 4, lane % 4 * 2);
        for (matrix, register) in registers.iter().enumerate() {
            let first = (100 * matrix + 8 * row + column) as u32;
            assert_eq!(*register, first | (first + 1) << 16, "lane {lane}");
        }
    }
}

#[test]
fn ldmatrix_trans_gives_each_lane_two_elements_of_a_column() {
    let found = four_matrices("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", 2);
    for (lane, registers) in found.iter().enumerate() {
        let (column, row) = (lane / 4, lane % 4 * 2);
        for (matrix, register) in registers.iter().enumerate().take(2) {
            let first = (100 * matrix + 8 * row + column) as u32;
            assert_eq!(*register, first | (first + 8) << 16, "lane {lane}");
        }
    }
}

#[test]
fn stmatrix_is_the_inverse_of_ldmatrix() {
    for trans in ["", ".trans"] {
        let text = format!(
            "{HEADER}.visible .entry t(.param .u64 q) {{ .reg .b64 y, o; .reg .b32 t, s, v, r<4>; .shared .align 16 .b8 m[512];
            ld.param.u64 o, [q]; mov.u32 t, %tid.x; mul.wide.u32 y, t, 16; add.s64 o, o, y; mad.lo.u32 s, t, 16, m;
            shl.b32 v, t, 8; add.u32 r0, v, 1; add.u32 r1, v, 2; add.u32 r2, v, 3; add.u32 r3, v, 4;
            stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [s], {{r0, r1, r2, r3}}; bar.sync 0;
            ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{r0, r1, r2, r3}}, [s];
            st.global.v4.u32 [o], {{r0, r1, r2, r3}}; ret; }}"
        );
        let mut out = vec![0; 512];
        launch(&text, Shape::new(1, 32), &mut [Argument::Memory(&mut out)]).unwrap();
        for (index, raw) in out.chunks(4).enumerate() {
            let expected = ((index as u32 / 4) << 8) + index as u32 % 4 + 1;
            assert_eq!(u32::from_le_bytes(raw.try_into().unwrap()), expected);
        }
    }
}

/// One `mma` on registers that the lanes get from memory: `a`, `b`, `c` registers of each lane.
fn mma(
    name: &str,
    (a, b, c, d): (usize, usize, usize, usize),
    fill: impl Fn(usize, char, usize) -> u32,
) -> Vec<Vec<u32>> {
    let list = |letter: char, count: usize| {
        (0..count)
            .map(|i| format!("{letter}{i}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let load = |letter: char, count: usize, from: usize| {
        (0..count)
            .map(|i| format!("ld.global.u32 {letter}{i}, [x+{}];", 4 * (from + i)))
            .collect::<String>()
    };
    let stores: String = (0..d)
        .map(|i| format!("st.global.u32 [o+{}], d{i};", 4 * i))
        .collect();
    let text = format!(
        "{HEADER}.visible .entry t(.param .u64 p, .param .u64 q) {{ .reg .b64 x, y, o; .reg .b32 t, a<4>, b<2>, c<4>, d<4>;
        ld.param.u64 x, [p]; ld.param.u64 o, [q]; mov.u32 t, %tid.x; mul.wide.u32 y, t, 48; add.s64 x, x, y;
        mul.wide.u32 y, t, 16; add.s64 o, o, y; {} {} {}
        mma.sync.aligned.{name} {{{}}}, {{{}}}, {{{}}}, {{{}}}; {stores} ret; }}",
        load('a', a, 0), load('b', b, 4), load('c', c, 8), list('d', d), list('a', a), list('b', b), list('c', c)
    );
    let mut input = vec![0; 32 * 48];
    for lane in 0..32 {
        for (letter, count, from) in [('a', a, 0), ('b', b, 4), ('c', c, 8)] {
            for i in 0..count {
                input[lane * 48 + 4 * (from + i)..][..4]
                    .copy_from_slice(&fill(lane, letter, i).to_le_bytes());
            }
        }
    }
    let mut out = vec![0; 512];
    launch(
        &text,
        Shape::new(1, 32),
        &mut [Argument::Memory(&mut input), Argument::Memory(&mut out)],
    )
    .unwrap();
    out.chunks(16)
        .map(|lane| {
            lane.chunks(4)
                .map(|raw| u32::from_le_bytes(raw.try_into().unwrap()))
                .collect()
        })
        .collect()
}

/// Small integers, different at every place: products and sums are exact.
fn element(letter: char, row: usize, column: usize) -> i32 {
    match letter {
        'a' => (3 * row as i32 + 5 * column as i32) % 7 - 3,
        'b' => (2 * row as i32 + 7 * column as i32) % 5 - 2,
        _ => row as i32 - 3 * column as i32,
    }
}

fn product(row: usize, column: usize, k: usize) -> i32 {
    element('c', row, column)
        + (0..k)
            .map(|i| element('a', row, i) * element('b', i, column))
            .sum::<i32>()
}

/// The element that lane, register and part of a fragment of 16-bit elements hold, by the ISA's tables for m16n8k16.
fn place16(lane: usize, letter: char, register: usize, part: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let i = 2 * register + part;
    match letter {
        'a' => {
            let row = if i < 2 || (4..6).contains(&i) {
                group
            } else {
                group + 8
            };
            (row, thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
        }
        'b' => (thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group),
        _ => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
    }
}

/// The same for 8-bit elements and m16n8k32.
fn place8(lane: usize, letter: char, register: usize, part: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let i = 4 * register + part;
    match letter {
        'a' => {
            let row = if i < 4 || (8..12).contains(&i) {
                group
            } else {
                group + 8
            };
            (row, thread * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
        _ => (thread * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, group),
    }
}

fn half(value: i32) -> u32 {
    // Integers up to 2048 are exact.
    if value == 0 {
        return 0;
    }
    let exponent = 31 - value.unsigned_abs().leading_zeros();
    let fraction = (value.unsigned_abs() << (10 - exponent)) & 0x3FF;
    u32::from(value < 0) << 15 | (exponent + 15) << 10 | fraction
}

#[test]
fn mma_of_16_bits() {
    for (ty, k, a, b) in [
        ("f16", 16, 4, 2),
        ("bf16", 16, 4, 2),
        ("f16", 8, 2, 1),
        ("bf16", 8, 2, 1),
    ] {
        let narrow = |value: i32| {
            if ty == "f16" {
                half(value)
            } else {
                (value as f32).to_bits() >> 16
            }
        };
        let found = mma(
            &format!("m16n8k{k}.row.col.f32.{ty}.{ty}.f32"),
            (a, b, 4, 4),
            |lane, letter, register| {
                if letter == 'c' {
                    let (row, column) = place16(lane, 'c', register / 2, register % 2);
                    return (element('c', row, column) as f32).to_bits();
                }
                let part = |part| {
                    let (row, column) = place16(lane, letter, register, part);
                    narrow(element(letter, row, column))
                };
                part(0) | part(1) << 16
            },
        );
        for (lane, registers) in found.iter().enumerate() {
            for (i, &bits) in registers.iter().enumerate() {
                let (row, column) = place16(lane, 'c', i / 2, i % 2);
                assert_eq!(
                    f32::from_bits(bits),
                    product(row, column, k) as f32,
                    "{ty} k {k}, lane {lane}, {i}"
                );
            }
        }
    }
}

#[test]
fn mma_with_half_precision_sums() {
    let found = mma(
        "m16n8k16.row.col.f16.f16.f16.f16",
        (4, 2, 2, 2),
        |lane, letter, register| {
            let part = |part| {
                let (row, column) = place16(lane, letter, register, part);
                half(element(letter, row, column))
            };
            part(0) | part(1) << 16
        },
    );
    for (lane, registers) in found.iter().enumerate() {
        for i in 0..4 {
            let (row, column) = place16(lane, 'c', i / 2, i % 2);
            assert_eq!(
                registers[i / 2] >> (16 * (i % 2)) & 0xFFFF,
                half(product(row, column, 16))
            );
        }
    }
}

#[test]
fn mma_of_8_bits() {
    for (k, a, b) in [(32, 4, 2), (16, 2, 1)] {
        let found = mma(
            &format!("m16n8k{k}.row.col.s32.s8.s8.s32"),
            (a, b, 4, 4),
            |lane, letter, register| {
                if letter == 'c' {
                    let (row, column) = place16(lane, 'c', register / 2, register % 2);
                    return element('c', row, column) as u32;
                }
                (0..4).fold(0, |word, part| {
                    let (row, column) = place8(lane, letter, register, part);
                    word | u32::from(element(letter, row, column) as i8 as u8) << (8 * part)
                })
            },
        );
        for (lane, registers) in found.iter().enumerate() {
            for (i, &bits) in registers.iter().enumerate() {
                let (row, column) = place16(lane, 'c', i / 2, i % 2);
                assert_eq!(
                    bits as i32,
                    product(row, column, k),
                    "k {k}, lane {lane}, {i}"
                );
            }
        }
    }
}

#[test]
fn mma_of_tf32() {
    let place = |lane: usize, letter: char, register: usize| {
        let (group, thread) = (lane / 4, lane % 4);
        match letter {
            'a' => (group + 8 * (register % 2), thread + 4 * (register / 2)),
            'b' => (thread + 4 * register, group),
            _ => place16(lane, 'c', register / 2, register % 2),
        }
    };
    let found = mma(
        "m16n8k8.row.col.f32.tf32.tf32.f32",
        (4, 2, 4, 4),
        |lane, letter, register| {
            let (row, column) = place(lane, letter, register);
            (element(letter, row, column) as f32).to_bits()
        },
    );
    for (lane, registers) in found.iter().enumerate() {
        for (i, &bits) in registers.iter().enumerate() {
            let (row, column) = place(lane, 'c', i);
            assert_eq!(f32::from_bits(bits), product(row, column, 8) as f32);
        }
    }
}

#[test]
fn asynchronous_copies_fill_up_with_zeros() {
    let text = format!(
        "{HEADER}.visible .entry t(.param .u64 p, .param .u64 q) {{ .reg .b64 x, o; .reg .b32 a, b, c, d; .shared .align 16 .b8 m[16];
        ld.param.u64 x, [p]; ld.param.u64 o, [q]; mov.u32 a, 6; cp.async.cg.shared.global.L2::128B [m], [x], 16, a; cp.async.commit_group;
        cp.async.wait_group 0; ld.shared.v4.u32 {{a, b, c, d}}, [m]; st.global.v4.u32 [o], {{a, b, c, d}}; ret; }}"
    );
    // Six bytes are all that the source has.
    let mut out = vec![0xAA; 16];
    launch(
        &text,
        Shape::new(1, 1),
        &mut [
            Argument::Memory(&mut [1, 2, 3, 4, 5, 6]),
            Argument::Memory(&mut out),
        ],
    )
    .unwrap();
    assert_eq!(out, [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_is_not_accepted_is_named_with_its_line() {
    let refuse = |body: &str| {
        let text = format!("{HEADER}.visible .entry t() {{\n.reg .b32 a;\n{body}\nret; }}");
        ropeway_emulated_cuda::ptx::Module::parse(&text)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refuse("add.wrong.s32 a, a, a;"),
        "PTX line 6: add.wrong.s32: modifier .wrong is not accepted"
    );
    assert!(refuse("tex.2d.v4.f32.f32 a, a;").contains("PTX line 6: tex.2d"));
    assert!(refuse("add.s32 a, a, missing;").contains("no register missing"));
    assert!(refuse("bra NOWHERE;").contains("no label NOWHERE"));
    assert!(refuse("wgmma.fence.sync.aligned;").contains("wgmma"));
}
