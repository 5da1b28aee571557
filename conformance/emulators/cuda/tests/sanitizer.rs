//! Kernels with one thing wrong, each caught by the detector that should; the same kernels unchanged, in many orders, by none.

mod harness;

use std::collections::BTreeSet;

use harness::{Argument, HEADER, Shape, bf16, bytes_of, floats, launch, noise};
use ropeway_emulated_cuda::interpret::{Detector, Report};

const VECTOR_ADD: &str = include_str!("kernels/vector_add.ptx");
const SGEMM: &str = include_str!("kernels/sgemm.ptx");
const GEMM_BF16: &str = include_str!("kernels/gemm_bf16.ptx");
const SCATTER: &str = include_str!("kernels/scatter.ptx");
const HANDOVER: &str = include_str!("kernels/handover.ptx");

/// Replaces the n-th occurrence.
fn mutate(text: &str, from: &str, n: usize, to: &str) -> String {
    let (at, _) = text
        .match_indices(from)
        .nth(n)
        .unwrap_or_else(|| panic!("no {from} of number {n}"));
    format!("{}{to}{}", &text[..at], &text[at + from.len()..])
}

type Outcome = Result<(), Box<Report>>;

fn sgemm(text: &str, seed: u64) -> Outcome {
    let (m, n, k) = (32, 32, 48);
    let mut shape = Shape::new(1, 1).seed(seed);
    (shape.grid, shape.block) = ([2, 2, 1], [16, 16, 1]);
    let (mut a, mut b) = (
        bytes_of(&noise(m * k, 1), f32::to_le_bytes),
        bytes_of(&noise(k * n, 2), f32::to_le_bytes),
    );
    let mut c = vec![0; m * n * 4];
    let dimensions = [m, n, k].map(|extent| extent as u32);
    let [m, n, k] = dimensions.map(Argument::from);
    launch(
        text,
        shape,
        &mut [
            Argument::Memory(&mut a),
            Argument::Memory(&mut b),
            Argument::Memory(&mut c),
            m,
            n,
            k,
        ],
    )
    .map(|_| ())
}

/// Runs the bf16 GEMM; says whether its result is right.
fn gemm_bf16(text: &str, seed: u64) -> Result<bool, Box<Report>> {
    let (m, n, k) = (64, 64, 96);
    let (a, b): (Vec<_>, Vec<_>) = (
        noise(m * k, 5).into_iter().map(bf16).collect(),
        noise(k * n, 6).into_iter().map(bf16).collect(),
    );
    let mut shape = Shape::new(1, 128).seed(seed);
    shape.shared = 2 * 2 * (64 * 40 + 32 * 72);
    let mut c = vec![0; m * n * 4];
    launch(
        text,
        shape,
        &mut [
            Argument::Memory(&mut bytes_of(&a, u16::to_le_bytes)),
            Argument::Memory(&mut bytes_of(&b, u16::to_le_bytes)),
            Argument::Memory(&mut c),
            (n as u32).into(),
            (k as u32).into(),
        ],
    )?;
    let wide = |value: u16| f64::from(f32::from_bits(u32::from(value) << 16));
    Ok(floats(&c).into_iter().enumerate().all(|(index, found)| {
        let (row, column) = (index / n, index % n);
        let products = (0..k).map(|i| wide(a[row * k + i]) * wide(b[i * n + column]));
        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        (f64::from(found) - sum).abs() <= k as f64 * 2f64.powi(-24) * size
    }))
}

fn vector_add(text: &str, n: u32) -> Outcome {
    let mut vector = bytes_of(&noise(n as usize, 1), f32::to_le_bytes);
    let (mut other, mut sum) = (vector.clone(), vector.clone());
    let vectors = [
        Argument::Memory(&mut vector),
        Argument::Memory(&mut other),
        Argument::Memory(&mut sum),
    ];
    let mut arguments: Vec<_> = vectors.into_iter().chain([n.into()]).collect();
    launch(text, Shape::new(2, 128), &mut arguments).map(|_| ())
}

fn scatter(text: &str, seed: u64) -> Outcome {
    let (tokens, experts) = (230_usize, 11_usize);
    let ids: Vec<i32> = (0..tokens)
        .map(|token| (token * token % 17) as i32 % experts as i32)
        .collect();
    let (mut positions, mut offsets) = (vec![0; tokens * 4], vec![0; experts * 4]);
    launch(
        text,
        Shape::new(1, 256).seed(seed),
        &mut [
            Argument::Memory(&mut bytes_of(&ids, i32::to_le_bytes)),
            Argument::Memory(&mut positions),
            Argument::Memory(&mut offsets),
            (tokens as u32).into(),
            (experts as u32).into(),
        ],
    )?;
    let positions: Vec<_> = positions
        .chunks(4)
        .map(|raw| i32::from_le_bytes(raw.try_into().unwrap()) as usize)
        .collect();
    let mut order: Vec<_> = (0..tokens).collect();
    order.sort_by_key(|&token| ids[token]);
    assert!(
        order
            .iter()
            .enumerate()
            .all(|(place, &token)| positions[token] == place)
    );
    Ok(())
}

fn handover(text: &str, seed: u64) -> Outcome {
    let from: Vec<i32> = (0..32).collect();
    let mut to = vec![0; 128];
    let mut shape = Shape::new(1, 64).seed(seed);
    shape.options.steps = 1 << 22;
    launch(
        text,
        shape,
        &mut [
            Argument::Memory(&mut bytes_of(&from, i32::to_le_bytes)),
            Argument::Memory(&mut to),
        ],
    )?;
    assert_eq!(
        to,
        bytes_of(
            &from.iter().map(|i| (31 - i) * 2).collect::<Vec<_>>(),
            i32::to_le_bytes
        )
    );
    Ok(())
}

/// What is found in several orders; nothing found counts too.
fn found(run: impl Fn(u64) -> Outcome) -> BTreeSet<String> {
    (0..8)
        .map(|seed| {
            run(seed).map_or_else(|report| report.detector.to_string(), |()| "nothing".into())
        })
        .collect()
}

fn only(detectors: &[Detector]) -> BTreeSet<String> {
    detectors.iter().map(Detector::to_string).collect()
}

#[test]
fn kernels_that_are_right_are_never_reported() {
    for seed in 0..24 {
        sgemm(SGEMM, seed).unwrap_or_else(|report| panic!("{report}"));
        assert!(gemm_bf16(GEMM_BF16, seed).unwrap_or_else(|report| panic!("{report}")));
        scatter(SCATTER, seed).unwrap_or_else(|report| panic!("{report}"));
        handover(HANDOVER, seed).unwrap_or_else(|report| panic!("{report}"));
    }
    vector_add(VECTOR_ADD, 200).unwrap();
}

#[test]
fn dropped_barriers_are_races() {
    // Before the reads: tiles are read before they are written, for the first time or again.
    let kinds = found(|seed| sgemm(&mutate(SGEMM, "bar.sync \t0;", 0, ""), seed));
    assert!(
        kinds.is_subset(&only(&[Detector::Race, Detector::Uninitialised])),
        "{kinds:?}"
    );
    // After them: tiles are written while they are read.
    assert_eq!(
        found(|seed| sgemm(&mutate(SGEMM, "bar.sync \t0;", 1, ""), seed)),
        only(&[Detector::Race])
    );
    let kinds =
        found(|seed| gemm_bf16(&mutate(GEMM_BF16, "bar.sync \t0;", 0, ""), seed).map(|_| ()));
    assert!(
        kinds.is_subset(&only(&[
            Detector::Race,
            Detector::AsyncCopy,
            Detector::Uninitialised
        ])),
        "{kinds:?}"
    );
}

#[test]
fn races_in_the_scan_of_a_scatter() {
    // Zeroes, counts, and both barriers of the scan.
    for barrier in 0..4 {
        let mutant = mutate(SCATTER, "bar.sync \t0;", barrier, "");
        assert_eq!(
            found(|seed| scatter(&mutant, seed)),
            only(&[Detector::Race]),
            "barrier {barrier}"
        );
    }
}

#[test]
fn copies_that_are_not_waited_for() {
    for (wait, weaker) in [
        ("cp.async.wait_group 1;", ""),
        ("cp.async.wait_group 0;", ""),
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    ] {
        let mutant = mutate(GEMM_BF16, wait, 0, weaker);
        assert_eq!(
            found(|seed| gemm_bf16(&mutant, seed).map(|_| ())),
            only(&[Detector::AsyncCopy]),
            "{wait} as {weaker}"
        );
    }
}

#[test]
fn wrong_fragments_give_wrong_results() {
    assert!(!gemm_bf16(&mutate(GEMM_BF16, "{%r82, %r83}", 0, "{%r83, %r82}"), 0).unwrap());
    assert!(
        !gemm_bf16(
            &mutate(
                GEMM_BF16,
                "{%r70, %r71, %r72, %r73}",
                0,
                "{%r70, %r72, %r71, %r73}"
            ),
            0
        )
        .unwrap()
    );
    assert!(!gemm_bf16(&mutate(GEMM_BF16, ".x2.trans", 0, ".x2"), 0).unwrap());
    assert!(!gemm_bf16(&mutate(GEMM_BF16, ".x4.shared", 0, ".x4.trans.shared"), 0).unwrap());
}

#[test]
fn a_guard_that_is_off_by_one() {
    let report = vector_add(&mutate(VECTOR_ADD, "setp.ge.u32", 0, "setp.gt.u32"), 200).unwrap_err();
    assert_eq!(report.detector, Detector::OutOfBounds);
    assert_eq!(
        (report.kernel.as_str(), report.block, report.thread),
        ("vector_add", [1, 0, 0], [72, 0, 0])
    );
    let load = VECTOR_ADD
        .lines()
        .position(|line| line.contains("ld.global"))
        .unwrap()
        + 1;
    assert_eq!(report.line as usize, load, "{report}");
    assert!(
        report
            .to_string()
            .starts_with("emulated: out of bounds: kernel vector_add, PTX line"),
        "{report}"
    );
}

#[test]
fn missing_fences() {
    // The producer's, then the consumer's.
    for fence in 0..2 {
        let mutant = mutate(HANDOVER, "membar.cta;", fence, "");
        assert_eq!(
            found(|seed| handover(&mutant, seed)),
            only(&[Detector::Race]),
            "fence {fence}"
        );
    }
}

/// A kernel without parameters, of so many threads.
fn body(threads: u32, body: &str) -> Outcome {
    let text = format!(
        "{HEADER}.visible .entry k() {{ .reg .pred p, q; .reg .b32 t, s, v, w; .reg .b64 x; .shared .align 16 .b8 m[256]; .local .align 4 .b8 l[16];
        mov.u32 t, %tid.x; shl.b32 s, t, 2; mov.u32 v, m; add.u32 s, s, v;\n{body}\nret; }}"
    );
    let mut shape = Shape::new(1, threads);
    shape.options.steps = 1 << 20;
    launch(&text, shape, &mut []).map(|_| ())
}

fn detector(threads: u32, text: &str) -> (Detector, u32) {
    let report = body(threads, text).unwrap_err();
    (report.detector, report.line)
}

#[test]
fn shared_memory_that_nobody_wrote() {
    assert_eq!(
        detector(32, "st.shared.u16 [s], 1;\nld.shared.u32 v, [s];"),
        (Detector::Uninitialised, 7)
    );
    body(
        32,
        "st.shared.u16 [s], 1;\nst.shared.u16 [s+2], 1;\nld.shared.u32 v, [s];",
    )
    .unwrap();
}

#[test]
fn bounds_and_alignment() {
    assert_eq!(
        detector(65, "st.shared.u32 [s], t;"),
        (Detector::OutOfBounds, 6)
    );
    assert_eq!(
        detector(1, "st.shared.u32 [s+2], t;"),
        (Detector::Misaligned, 6)
    );
    assert_eq!(
        detector(1, "st.shared.v4.u32 [s+8], {t, t, t, t};"),
        (Detector::Misaligned, 6)
    );
    assert_eq!(
        detector(1, "st.local.u32 [l+16], t;"),
        (Detector::OutOfBounds, 6)
    );
    assert_eq!(
        detector(1, "mov.u64 x, 64; ld.global.u32 v, [x];"),
        (Detector::OutOfBounds, 6)
    );
    assert_eq!(detector(1, "st.param.u32 [s], t;"), (Detector::ReadOnly, 6));
}

#[test]
fn warps_need_a_barrier_of_their_own() {
    let exchange = |barrier: &str| {
        format!("st.shared.u32 [s], t;\n{barrier}\nxor.b32 s, s, 4;\nld.shared.u32 v, [s];")
    };
    assert_eq!(detector(32, &exchange("")), (Detector::Race, 9));
    // A shuffle orders no memory.
    assert_eq!(
        detector(32, &exchange("shfl.sync.idx.b32 v, t, 0, 31, -1;")),
        (Detector::Race, 9)
    );
    body(32, &exchange("bar.warp.sync -1;")).unwrap();
    // Between warps it is not enough.
    let across =
        "st.shared.u32 [s], t;\nbar.warp.sync -1;\nxor.b32 s, s, 128;\nld.shared.u32 v, [s];";
    assert!([Detector::Race, Detector::Uninitialised].contains(&detector(64, across).0));
}

#[test]
fn barriers_that_not_all_threads_reach() {
    let some = "setp.lt.u32 p, t, 40;\n@p bar.sync 0;";
    assert_eq!(detector(64, some).0, Detector::BarrierDivergence);
    let leave = "setp.lt.u32 p, t, 40;\n@p bra STAY;\nret;\nSTAY: bar.sync 0;";
    assert_eq!(detector(64, leave).0, Detector::BarrierDivergence);
    let branches =
        "setp.lt.u32 p, t, 32;\n@p bra ONE;\nbar.sync 0;\nbra END;\nONE: bar.sync 0;\nEND:";
    assert_eq!(detector(64, branches).0, Detector::BarrierDivergence);
    let lanes = "setp.lt.u32 p, t, 16;\n@p bra ONE;\nbar.sync 0;\nbra END;\nONE: bar.sync 0;\nEND:";
    assert_eq!(detector(32, lanes).0, Detector::BarrierDivergence);
}

#[test]
fn deadlock() {
    // A barrier for 96 threads of a block of 64.
    assert_eq!(detector(64, "bar.sync 1, 96;").0, Detector::Deadlock);
    // One lane waits for another warp, the other lanes for it.
    let apart = "setp.ne.u32 p, t, 0;\n@p bra JOIN;\nbarrier.sync 1, 64;\nJOIN: bar.warp.sync -1;";
    assert_eq!(detector(32, apart).0, Detector::Deadlock);
    // Warps wait at different barriers.
    let crossed = "setp.lt.u32 p, t, 32;\nselp.b32 v, 1, 2, p;\nbar.sync v, 64;";
    assert_eq!(detector(64, crossed).0, Detector::BarrierDivergence);
    assert_eq!(detector(32, "TOP: bra TOP;").0, Detector::StepLimit);
}

#[test]
fn lanes_that_must_act_together() {
    let outside = "setp.lt.u32 p, t, 16;\n@p shfl.sync.idx.b32 v, t, 0, 31, 0xff;";
    assert_eq!(detector(32, outside), (Detector::WarpDivergence, 7));
    let never = "setp.lt.u32 p, t, 16;\n@p bra ONE;\nshfl.sync.idx.b32 v, t, 0, 31, -1;\nbra END;\nONE: shfl.sync.idx.b32 v, t, 1, 31, -1;\nEND:";
    assert_eq!(detector(32, never).0, Detector::WarpDivergence);
    let half = "mov.u32 v, m;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {w}, [v];";
    assert_eq!(detector(24, half), (Detector::WarpDivergence, 7));
}

#[test]
fn traps_are_reported_with_their_thread() {
    let report = body(64, "setp.eq.u32 p, t, 37;\n@p trap;").unwrap_err();
    assert_eq!(
        (report.detector, report.line, report.thread),
        (Detector::Trap, 7, [37, 0, 0])
    );
}
