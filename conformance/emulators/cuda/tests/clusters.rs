//! mbarriers and clusters, by the ISA's text ("mbarrier", "barrier.cluster", "mapa", "griddepcontrol"): each kernel leaves what it saw.

mod harness;

use harness::{Argument, HEADER_90A, Shape, launch};
use ropeway_emulated_cuda::interpret::{Detector, Report};

/// Runs a body for blocks in clusters, with an mbarrier of `count` at `%b` and 64 words at `%s`; each thread leaves `v` of `%g` in all.
fn run(shape: Shape, count: u32, text: &str) -> Result<Vec<u32>, Box<Report>> {
    let kernel = format!(
        "{HEADER_90A}.visible .entry k(.param .u64 from, .param .u64 out) {{
.reg .b64 %f, %o, %w, token; .reg .b32 %t, %s, %b, %g, %n, v, w, r, rank; .reg .pred p, q, first, done; .shared .align 16 .b8 mem[256]; .shared .align 8 .b8 full[8];
ld.param.u64 %f, [from]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %s, mem; mov.u32 %b, full; mov.u32 rank, %cluster_ctarank;
setp.eq.u32 first, %t, 0; mov.b32 v, 77;
@first mbarrier.init.shared::cta.b64 [%b], {count}; @first fence.mbarrier_init.release.cluster; CLUSTER;
{text}
mov.u32 %g, %ctaid.x; mov.u32 %n, %ntid.x; mad.lo.u32 %g, %g, %n, %t; mul.wide.u32 %w, %g, 4; add.u64 %o, %o, %w; st.global.b32 [%o], v;
ret; }}"
    );
    let kernel = kernel
        .replace(
            "CLUSTER;",
            "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        )
        .replace(
            "ARRIVE;",
            "mbarrier.arrive.release.cta.shared::cta.b64 _, [%b];",
        )
        .replace(
            "IS_OVER",
            "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 q, [%b],",
        );
    // W0, W1, ... wait for the phase of a parity, by labels of their own.
    let mut text = String::new();
    for (number, part) in kernel.split("WAIT ").enumerate() {
        if number > 0 {
            let (parity, rest) = part.split_once(';').unwrap();
            text += &format!(
                "W{number}: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%b], {parity}; @!done bra W{number};{rest}"
            );
        } else {
            text += part;
        }
    }
    let threads = (shape.grid[0] * shape.block[0]) as usize;
    let mut out = vec![0; threads * 4];
    let mut from: Vec<u8> = (0..64_u32)
        .flat_map(|value| (100 + value).to_le_bytes())
        .collect();
    launch(
        &text,
        shape,
        &mut [Argument::Memory(&mut from), Argument::Memory(&mut out)],
    )?;
    let word = |raw: &[u8]| u32::from_le_bytes(raw.try_into().unwrap());
    Ok(out.chunks(4).map(word).collect())
}

fn one(threads: u32, count: u32, text: &str) -> Vec<u32> {
    let mut seen: Option<Vec<u32>> = None;
    for seed in 0..8 {
        let found = run(Shape::new(1, threads).seed(seed), count, text);
        let found = found.unwrap_or_else(|report| panic!("{text}: {report}"));
        assert_eq!(*seen.get_or_insert(found.clone()), found, "{text}");
    }
    seen.unwrap()
}

fn cluster(blocks: u32, threads: u32, seed: u64) -> Shape {
    let mut shape = Shape::new(2 * blocks, threads).seed(seed);
    shape.cluster = [blocks, 1, 1];
    shape
}

fn clustered(blocks: u32, threads: u32, count: u32, text: &str) -> Vec<u32> {
    let mut seen: Option<Vec<u32>> = None;
    for seed in 0..8 {
        let found = run(cluster(blocks, threads, seed), count, text);
        let found = found.unwrap_or_else(|report| panic!("{text}: {report}"));
        assert_eq!(*seen.get_or_insert(found.clone()), found, "{text}");
    }
    seen.unwrap()
}

fn detector(shape: Shape, count: u32, text: &str) -> Detector {
    run(shape, count, text).expect_err(text).detector
}

#[test]
fn phases_complete_with_their_arrivals() {
    // The phase before the first has parity 1 and is over; the first is not.
    assert_eq!(one(1, 1, "IS_OVER 1; selp.u32 v, 1, 0, q;"), [1]);
    assert_eq!(one(1, 1, "IS_OVER 0; selp.u32 v, 1, 0, q;"), [0]);
    assert_eq!(one(1, 2, "ARRIVE; IS_OVER 0; selp.u32 v, 1, 0, q;"), [0]);
    assert_eq!(
        one(1, 2, "ARRIVE; ARRIVE; IS_OVER 0; selp.u32 v, 1, 0, q;"),
        [1]
    );
    // A count of arrivals at once.
    assert_eq!(
        one(
            1,
            5,
            "mbarrier.arrive.shared::cta.b64 _, [%b], 5; IS_OVER 0; selp.u32 v, 1, 0, q;"
        ),
        [1]
    );
    // Phases alternate.
    assert_eq!(
        one(
            1,
            1,
            "ARRIVE; IS_OVER 1; selp.u32 v, 10, 20, q; ARRIVE; IS_OVER 1; selp.u32 w, 1, 2, q; add.u32 v, v, w; ARRIVE; WAIT 0;"
        ),
        [21]
    );
    // A token is the phase it came from.
    assert_eq!(
        one(1, 2, "mbarrier.arrive.shared::cta.b64 token, [%b]; mbarrier.test_wait.shared::cta.b64 p, [%b], token; ARRIVE;
mbarrier.test_wait.shared::cta.b64 q, [%b], token; selp.u32 v, 1, 0, p; selp.u32 w, 2, 0, q; add.u32 v, v, w;"),
        [2]
    );
}

#[test]
fn arrivals_order_what_was_written() {
    let exchange = |arrive: &str| {
        format!(
            "mad.lo.u32 w, %t, 4, %s; st.shared.b32 [w], %t; {arrive} WAIT 0; xor.b32 w, %t, 32; mad.lo.u32 w, w, 4, %s; ld.shared.b32 v, [w];"
        )
    };
    let expected: Vec<_> = (0..64).map(|thread| thread ^ 32).collect();
    assert_eq!(one(64, 64, &exchange("ARRIVE;")), expected);
    // Without anybody's arrival behind the write nothing is ordered.
    let early = "ARRIVE; mad.lo.u32 w, %t, 4, %s; st.shared.b32 [w], %t; WAIT 0; xor.b32 w, %t, 32; mad.lo.u32 w, w, 4, %s; ld.shared.b32 v, [w];";
    for seed in 0..8 {
        let found = detector(Shape::new(1, 64).seed(seed), 64, early);
        assert!(
            matches!(found, Detector::Race | Detector::Uninitialised),
            "{found}"
        );
    }
}

#[test]
fn bytes_count_in_a_phase() {
    let bytes = "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%b], 16;";
    let come = "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%b], 16;";
    for (order, expected) in [
        (format!("{bytes} ARRIVE; IS_OVER 0;"), 0),
        (format!("{bytes} ARRIVE; {come} IS_OVER 0;"), 1),
        (format!("{bytes} {come} ARRIVE; IS_OVER 0;"), 1),
        (format!("{come} {bytes} ARRIVE; IS_OVER 0;"), 1),
        (format!("{come} ARRIVE; IS_OVER 0;"), 0),
        (format!("{bytes} {come} IS_OVER 0;"), 0),
        (
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 16; IS_OVER 0;".to_owned(),
            0,
        ),
    ] {
        assert_eq!(
            one(1, 1, &format!("{order} selp.u32 v, 1, 0, q;")),
            [expected],
            "{order}"
        );
    }
}

#[test]
fn who_drops_out_is_not_waited_for_again() {
    let drop = "mbarrier.arrive_drop.shared::cta.b64 _, [%b];";
    // Both arrive in the first phase; of the second one is left.
    let text = format!(
        "{drop} ARRIVE; IS_OVER 0; selp.u32 v, 1, 0, q; ARRIVE; IS_OVER 1; selp.u32 w, 2, 0, q; add.u32 v, v, w;"
    );
    assert_eq!(one(1, 2, &text), [3]);
}

#[test]
fn copies_of_threads_arrive_when_they_are_done() {
    let copy = "mad.lo.u32 w, %t, 4, %s; mul.wide.u32 %w, %t, 4; add.u64 %f, %f, %w; cp.async.ca.shared.global [w], [%f], 4;";
    let read = "WAIT 0; xor.b32 w, %t, 33; mad.lo.u32 w, w, 4, %s; ld.shared.b32 v, [w];";
    let expected: Vec<_> = (0..64).map(|thread| 100 + (thread ^ 33)).collect();
    // Of the expected arrivals if they do not count themselves in.
    let counted = format!("{copy} cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%b]; {read}");
    assert_eq!(one(64, 64, &counted), expected);
    let besides = format!("{copy} cp.async.mbarrier.arrive.shared::cta.b64 [%b]; ARRIVE; {read}");
    assert_eq!(one(64, 64, &besides), expected);
    let missing = format!("{copy} ARRIVE; {read}");
    for seed in 0..8 {
        assert_eq!(
            detector(Shape::new(1, 64).seed(seed), 64, &missing),
            Detector::AsyncCopy
        );
    }
}

#[test]
fn what_mbarriers_forbid() {
    use Detector::{Deadlock, Phase};
    let shape = || Shape::new(1, 1);
    assert_eq!(detector(shape(), 1, "WAIT 0;"), Deadlock);
    assert_eq!(
        detector(shape(), 1, "mbarrier.init.shared::cta.b64 [%b], 1;"),
        Phase
    );
    assert_eq!(
        detector(shape(), 1, "mbarrier.arrive.shared::cta.b64 _, [%b], 2;"),
        Phase
    );
    assert_eq!(
        detector(shape(), 1, "mbarrier.arrive.shared::cta.b64 _, [%s];"),
        Phase
    );
    assert_eq!(detector(shape(), 0, ""), Phase);
    assert_eq!(
        detector(shape(), 1, "mbarrier.inval.shared::cta.b64 [%b]; ARRIVE;"),
        Phase
    );
    assert_eq!(
        one(
            1,
            1,
            "mbarrier.inval.shared::cta.b64 [%b]; mbarrier.init.shared::cta.b64 [%b], 2; ARRIVE; IS_OVER 0; selp.u32 v, 1, 0, q;"
        ),
        [0]
    );
}

#[test]
fn blocks_know_their_cluster() {
    for (register, expected) in [
        ("%cluster_ctarank", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("%cluster_nctarank", [4; 8]),
        ("%cluster_ctaid.x", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("%cluster_nctaid.x", [4; 8]),
        ("%cluster_nctaid.y", [1; 8]),
        ("%clusterid.x", [0, 0, 0, 0, 1, 1, 1, 1]),
        ("%nclusterid.x", [2; 8]),
        ("%ctaid.x", [0, 1, 2, 3, 4, 5, 6, 7]),
    ] {
        assert_eq!(
            clustered(4, 1, 1, &format!("mov.u32 v, {register};")),
            expected,
            "{register}"
        );
    }
    // Along two axes x runs first.
    let mut shape = Shape::new(4, 1);
    shape.grid = [4, 4, 1];
    shape.cluster = [2, 4, 1];
    let text = "mov.u32 v, %cluster_ctaid.y; mul.lo.u32 v, v, 2; mov.u32 w, %cluster_ctaid.x; add.u32 v, v, w; setp.ne.u32 p, v, rank; @p trap;";
    run(shape, 1, text).unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn blocks_reach_each_others_memory() {
    let next = "add.u32 r, rank, 1; and.b32 r, r, 3; mapa.shared::cluster.u32 w, %s, r;";
    // A store there, a load here, with the cluster's barrier between; and the other way round.
    let store = format!(
        "{next} add.u32 v, rank, 10; st.shared::cluster.b32 [w], v; CLUSTER; ld.shared.b32 v, [%s];"
    );
    assert_eq!(clustered(4, 1, 1, &store), [13, 10, 11, 12, 13, 10, 11, 12]);
    let load = format!(
        "{next} add.u32 v, rank, 10; st.shared.b32 [%s], v; CLUSTER; ld.shared::cluster.b32 v, [w]; CLUSTER;"
    );
    assert_eq!(clustered(4, 1, 1, &load), [11, 12, 13, 10, 11, 12, 13, 10]);
    // Arrivals from elsewhere.
    let arrive = "mov.b32 r, 0; mapa.shared::cluster.u32 w, %b, r; add.u32 v, rank, 10; setp.ne.u32 p, rank, 0;
mapa.shared::cluster.u32 r, %s, 0; mad.lo.u32 r, rank, 4, r; st.shared::cluster.b32 [r], v;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [w]; @p bra OUT; WAIT 0;
ld.shared.b32 v, [%s+4]; ld.shared.b32 w, [%s+12]; add.u32 v, v, w; OUT: CLUSTER;";
    assert_eq!(clustered(4, 1, 4, arrive), [24, 11, 12, 13, 24, 11, 12, 13]);
}

#[test]
fn what_clusters_forbid() {
    use Detector::{Deadlock, OutOfBounds, Race, Uninitialised, UseAfterFree};
    let found = |text: &str| -> Vec<_> {
        (0..16)
            .map(|seed| run(cluster(2, 1, seed), 1, text).map_err(|report| report.detector))
            .collect()
    };
    let next = "xor.b32 r, rank, 1; mapa.shared::cluster.u32 w, %s, r;";
    // No barrier between the store and the load.
    for outcome in found(&format!(
        "{next} st.shared::cluster.b32 [w], rank; ld.shared.b32 v, [%s]; CLUSTER;"
    )) {
        assert!(matches!(outcome, Err(Race | Uninitialised)), "{outcome:?}");
    }
    // Who reads elsewhere keeps the block there from ending.
    for outcome in found(&format!(
        "st.shared.b32 [%s], rank; CLUSTER; {next} ld.shared::cluster.b32 v, [w];"
    )) {
        assert!(matches!(outcome, Err(Race | UseAfterFree)), "{outcome:?}");
    }
    for outcome in
        found("mapa.shared::cluster.u32 w, %s, 2; st.shared::cluster.b32 [w], rank; CLUSTER;")
    {
        assert_eq!(outcome, Err(OutOfBounds));
    }
    for outcome in found("setp.eq.u32 p, rank, 0; @p bra OUT; WAIT 0; OUT:") {
        assert_eq!(outcome, Err(Deadlock));
    }
}

#[test]
fn what_a_launch_depends_on_is_waited_for() {
    let mut shape = Shape::new(1, 1);
    shape.programmatic = true;
    run(
        shape,
        1,
        "griddepcontrol.launch_dependents; griddepcontrol.wait; ld.global.b32 v, [%f];",
    )
    .unwrap();
    assert_eq!(
        detector(shape, 1, "ld.global.b32 v, [%f]; griddepcontrol.wait;"),
        Detector::Dependency
    );
    assert_eq!(detector(shape, 1, ""), Detector::Dependency);
    assert_eq!(
        detector(
            shape,
            1,
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 16; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%f], 16, [%b]; WAIT 0;"
        ),
        Detector::Dependency
    );
}

#[test]
fn clusters_that_kernels_are_compiled_for_and_alignment_of_dynamic_memory() {
    let text = format!(
        "{HEADER_90A}.extern .shared .align 1024 .b8 mem[];
.visible .entry k(.param .u64 out) .explicitcluster .reqnctapercluster 2, 1, 1 {{ .reg .b64 %o; .reg .b32 a; .shared .align 4 .b8 few[20];
ld.param.u64 %o, [out]; mov.u32 a, few; st.shared.b32 [a], a; mov.u32 a, mem; and.b32 a, a, 1023; st.global.b32 [%o], a; mov.u32 a, mem; st.shared.b32 [a+2044], a; ret; }}"
    );
    let module = ropeway_emulated_cuda::ptx::Module::parse(&text).unwrap();
    assert_eq!(module.functions[0].cluster, Some([2, 1, 1]));
    let mut shape = Shape::new(2, 1);
    (shape.cluster, shape.shared) = ([2, 1, 1], 2048);
    let mut out = vec![1; 4];
    launch(&text, shape, &mut [Argument::Memory(&mut out)]).unwrap();
    assert_eq!(out, [0; 4]);
}
