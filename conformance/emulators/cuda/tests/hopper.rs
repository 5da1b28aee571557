//! A whole kernel for Hopper, right in many orders; and with one thing wrong, each caught by the detector that should.

mod harness;

use std::collections::BTreeMap;

use harness::{Argument, Shape, bf16, bytes_of, launch};
use ropeway_emulated_cuda::interpret::tensor::TensorMap;
use ropeway_emulated_cuda::interpret::{
    Detector::{self, *},
    Report,
};

const HOPPER: &str = include_str!("kernels/hopper.ptx");
const SEEDS: u64 = 20;

/// Runs the kernel; says whether its result is right.
fn gemm(text: &str, seed: u64) -> Result<bool, Box<Report>> {
    let (m, n, k) = (256_usize, 128_usize, 320_usize);
    let small = |count: usize, step: usize| -> Vec<i32> {
        (0..count)
            .map(|i| (i * step % 1009 % 5) as i32 - 2)
            .collect()
    };
    let (a, b) = (small(m * k, 7), small(n * k, 11));
    let bits = |values: &[i32]| {
        let values: Vec<_> = values.iter().map(|&value| bf16(value as f32)).collect();
        bytes_of(&values, u16::to_le_bytes)
    };
    let map = |rows: usize, columns: usize, tile: u16| TensorMap {
        element: 2,
        rank: 2,
        swizzle: 128,
        extents: [columns as u32, rows as u32, 0, 0, 0],
        strides: [2 * columns as u64, 0, 0, 0],
        tile: [64, tile, 0, 0, 0],
        ..TensorMap::default()
    };
    let mut shape = Shape::new(4, 256).seed(seed);
    shape.cluster = [2, 1, 1];
    shape.options.steps = 1 << 24;
    let mut c = vec![0xEE; m * n * 2];
    // The kernel takes maps only: memory stands behind them.
    let text = text.replacen(
        "\t.param .u32 hopper_param_3",
        "\t.param .u64 memory_a,\n\t.param .u64 memory_b,\n\t.param .u64 memory_c,\n\t.param .u32 hopper_param_3",
        1,
    );
    let tiles = [m / 64, n / 64, k / 64].map(|count| Argument::from(count as u32));
    let [m_tiles, n_tiles, steps] = tiles;
    launch(
        &text,
        shape,
        &mut [
            Argument::Map(3, 0, map(m, k, 64)),
            Argument::Map(4, 0, map(n, k, 32)),
            Argument::Map(5, 0, map(m, n, 64)),
            Argument::Memory(&mut bits(&a)),
            Argument::Memory(&mut bits(&b)),
            Argument::Memory(&mut c),
            m_tiles,
            n_tiles,
            steps,
        ],
    )?;
    Ok(c.chunks(2).enumerate().all(|(index, found)| {
        let (row, column) = (index / n, index % n);
        let sum: i32 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
        found == bf16(sum as f32).to_le_bytes()
    }))
}

/// The n-th line with these words in it, rewritten.
fn rewrite(n: usize, words: &str, with: impl Fn(&str) -> String) -> String {
    let mut left = n + 1;
    let lines: Vec<_> = HOPPER
        .lines()
        .map(|line| {
            left -= usize::from(left > 0 && line.contains(words));
            if left == 0 && line.contains(words) {
                left = usize::MAX;
                return with(line);
            }
            line.to_owned()
        })
        .collect();
    assert_eq!(left >> 32, usize::MAX >> 32, "no {words} of number {n}");
    lines.join("\n")
}

fn dropped(n: usize, words: &str) -> String {
    rewrite(n, words, |line| {
        let (guard, _) = line.split_once(words).unwrap();
        // A label or a brace before it stays, and what is behind it on its line.
        let behind = line.rsplit_once(';').map_or("", |(_, behind)| behind);
        format!(
            "{}{behind}",
            guard.rsplit_once(';').map_or("", |(before, _)| before)
        )
    })
}

/// The last operand of the n-th such instruction, replaced.
fn last_operand(n: usize, words: &str, with: &str) -> String {
    rewrite(n, words, |line| {
        let (first, _) = line.rsplit_once(',').unwrap();
        format!("{first}, {with};")
    })
}

/// The wait for a phase with the other parity.
fn other_parity(n: usize) -> String {
    rewrite(n, "mbarrier.try_wait", |line| {
        let (first, parity) = line.rsplit_once(", ").unwrap();
        let parity = parity.trim_end_matches(';');
        format!(".reg .b32 other; xor.b32 other, {parity}, 1;\n{first}, other;")
    })
}

/// Holds every outcome to what may be found, and something has to be.
fn check(what: &str, text: &str, expected: &[Detector]) {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let outcome = match gemm(text, seed) {
            Ok(true) => "nothing".into(),
            Ok(false) => "wrong".into(),
            Err(report) => {
                assert!(expected.contains(&report.detector), "{what}: {report}");
                report.detector.to_string()
            }
        };
        *found.entry(outcome).or_default() += 1;
    }
    println!("{what}: {found:?}");
    assert_eq!(found.get("nothing"), None, "{what}: {found:?}");
    if !expected.is_empty() {
        assert_eq!(found.get("wrong"), None, "{what}: {found:?}");
    }
}

#[test]
fn the_kernel_is_right_and_never_reported() {
    for seed in 0..24 {
        assert!(gemm(HOPPER, seed).unwrap_or_else(|report| panic!("seed {seed}: {report}")));
    }
}

#[test]
fn products_that_are_not_waited_for() {
    check(
        "no wait before a stage is handed back",
        &dropped(0, "wgmma.wait_group.sync.aligned 1"),
        &[Engine],
    );
    check(
        "a stage handed back too early",
        &last_operand_of_wait(),
        &[Engine],
    );
    check(
        "no wait before sums are read",
        &dropped(0, "wgmma.wait_group.sync.aligned 0"),
        &[Engine],
    );
    check(
        "no fence before products",
        &dropped(0, "wgmma.fence"),
        &[Engine],
    );
}

/// Two products in flight where a stage is handed back behind one.
fn last_operand_of_wait() -> String {
    rewrite(0, "wgmma.wait_group.sync.aligned 1", |_| {
        "wgmma.wait_group.sync.aligned 2;".into()
    })
}

#[test]
fn engines_that_do_not_see_what_threads_wrote() {
    check(
        "no fence before the store",
        &dropped(0, "fence.proxy.async"),
        &[Proxy],
    );
    check(
        "no fence behind the mbarriers",
        &dropped(0, "fence.mbarrier_init"),
        &[Proxy],
    );
}

#[test]
fn phases_that_are_waited_for_wrongly() {
    check("parity of an empty stage", &other_parity(0), &[Deadlock]);
    check(
        "parity of a full stage",
        &other_parity(1),
        &[AsyncCopy, Uninitialised, Race, Engine, Deadlock],
    );
    let expect = "mbarrier.arrive.expect_tx";
    check(
        "too few bytes",
        &last_operand(0, expect, "8192"),
        &[AsyncCopy, Uninitialised, Deadlock, Race],
    );
    check(
        "too many bytes",
        &last_operand(0, expect, "16400"),
        &[Deadlock],
    );
    check(
        "a stage that is not handed back",
        &rewrite(0, "mapa.shared::cluster.u32", |_| String::new()),
        &[Deadlock],
    );
    check(
        "a tile for one block only",
        &rewrite(0, "multicast::cluster", |line| {
            let (first, _) = line.rsplit_once(',').unwrap();
            format!(".reg .b16 one; mov.b16 one, 1;\n{first}, one;")
        }),
        &[Deadlock],
    );
}

#[test]
fn blocks_that_begin_and_end_without_each_other() {
    let without = |n: usize| {
        let first = dropped(n, "barrier.cluster.arrive");
        let second = dropped(n, "barrier.cluster.wait");
        let lines = first.lines().zip(second.lines());
        let both: Vec<_> = lines
            .map(|(a, b)| if a.len() < b.len() { a } else { b })
            .collect();
        both.join("\n")
    };
    check(
        "no barrier at the start",
        &without(0),
        &[Phase, Race, Uninitialised],
    );
    check(
        "no barrier at the end",
        &without(1),
        &[Race, UseAfterFree, AsyncCopy],
    );
}

#[test]
fn stores_that_are_not_waited_for() {
    check(
        "before the next results",
        &dropped(0, "cp.async.bulk.wait_group.read 0"),
        &[Engine],
    );
    check(
        "before the end",
        &dropped(0, "cp.async.bulk.wait_group 0"),
        &[Engine],
    );
    check(
        "no barrier before the results",
        &dropped(0, "bar.sync"),
        &[Engine, Race],
    );
    check(
        "no barrier behind the results",
        &dropped(1, "bar.sync"),
        &[Engine, Race, Proxy, Uninitialised],
    );
}

#[test]
fn what_is_laid_out_wrongly() {
    check(
        "a tile at no multiple of 1024",
        &rewrite(0, "cp.async.bulk.tensor.2d.shared", |line| {
            line.replacen("], [", "+512], [", 1)
        }),
        &[Misaligned],
    );
    // Of 64 bytes: bits 62 and 63 of each descriptor.
    let mut other = HOPPER.to_owned();
    for descriptor in [
        0x4000_0040_0001_0000_u64,
        0x4000_0040_0001_0002,
        0x4000_0040_0001_0004,
        0x4000_0040_0001_0006,
    ] {
        assert!(HOPPER.contains(&format!("{descriptor};")));
        other = other.replace(
            &format!("{descriptor};"),
            &format!("{:#x};", descriptor ^ 3 << 62),
        );
    }
    check("another swizzle", &other, &[]);
}
