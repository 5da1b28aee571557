//! What lanes and threads do together: shuffles, votes, barriers, branches.

mod harness;

use harness::{Argument, HEADER, Shape, launch, rows};

/// Runs a body for 32 lanes, each with its number in `a`.
fn lanes(registers: &str, body: &str) -> Vec<[u64; 2]> {
    let input: Vec<_> = (0..32).map(|lane| vec![lane]).collect();
    rows(registers, body, &input).unwrap_or_else(|report| panic!("{body}: {report}"))
}

const R: &str = ".b32 a, b, c, d, e";

#[test]
fn shuffles() {
    let shuffle = |instruction: &str| lanes(R, &format!("{instruction} selp.b32 e, 1, 0, p;"));
    for (lane, [d, e]) in shuffle("shfl.sync.bfly.b32 d|p, a, 5, 0x1f, -1;")
        .into_iter()
        .enumerate()
    {
        assert_eq!((d, e), (lane as u64 ^ 5, 1));
    }
    for (lane, [d, e]) in shuffle("shfl.sync.up.b32 d|p, a, 3, 0, -1;")
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            (d, e),
            if lane >= 3 {
                (lane as u64 - 3, 1)
            } else {
                (lane as u64, 0)
            }
        );
    }
    // Segments of 8: mask 0x18 << 8, clamp 7.
    for (lane, [d, e]) in shuffle("shfl.sync.down.b32 d|p, a, 2, 0x1807, -1;")
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            (d, e),
            if lane % 8 < 6 {
                (lane as u64 + 2, 1)
            } else {
                (lane as u64, 0)
            }
        );
    }
    for (lane, [d, e]) in shuffle("shfl.sync.idx.b32 d|p, a, 10, 0x181f, -1;")
        .into_iter()
        .enumerate()
    {
        assert_eq!((d, e), (lane as u64 / 8 * 8 + 2, 1), "{lane}");
    }
}

#[test]
fn votes_and_matches() {
    let all = |body: &str| lanes(R, body)[7][0];
    assert_eq!(
        all("setp.lt.u32 p, a, 5; vote.sync.ballot.b32 d, p, -1;"),
        0x1F
    );
    assert_eq!(
        all("setp.lt.u32 p, a, 32; vote.sync.all.pred q, p, -1; selp.b32 d, 1, 0, q;"),
        1
    );
    assert_eq!(
        all("setp.lt.u32 p, a, 31; vote.sync.all.pred q, p, -1; selp.b32 d, 1, 0, q;"),
        0
    );
    assert_eq!(
        all("setp.eq.u32 p, a, 31; vote.sync.any.pred q, p, -1; selp.b32 d, 1, 0, q;"),
        1
    );
    assert_eq!(
        all("setp.eq.u32 p, a, 31; vote.sync.uni.pred q, !p, -1; selp.b32 d, 1, 0, q;"),
        0
    );
    let masks = lanes(R, "and.b32 b, a, 3; match.any.sync.b32 d, b, -1;");
    assert_eq!(masks[6][0], 0x4444_4444);
    assert_eq!(
        all("mov.b32 b, 9; match.all.sync.b32 d|p, b, -1;"),
        0xFFFF_FFFF
    );
    assert_eq!(all("match.all.sync.b32 d|p, a, -1;"), 0);
    assert_eq!(all("redux.sync.add.u32 d, a, -1;"), 496);
    assert_eq!(
        all("sub.s32 b, 3, a; redux.sync.min.s32 d, b, -1;"),
        0xFFFF_FFE4
    );
    let elected = lanes(R, "elect.sync d|p, -1; selp.b32 e, 1, 0, p;");
    assert_eq!(elected[0], [0, 1]);
    assert_eq!(elected[1], [0, 0]);
}

#[test]
fn tiles_of_a_warp_shuffle_by_masks_of_their_own() {
    let found = lanes(
        R,
        "shr.u32 b, a, 3; mul.lo.u32 b, b, 8; shl.b32 c, 0xff, b; shfl.sync.bfly.b32 d, a, 1, 0x1f, c;",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(lane, [d, _])| *d == lane as u64 ^ 1)
    );
}

#[test]
fn branches_part_and_meet() {
    let found = lanes(
        R,
        "mov.b32 d, 0; setp.lt.u32 p, a, 10; @p bra LOW;
        add.u32 d, d, 100; bra MEET;
        LOW: add.u32 d, d, 1;
        MEET: activemask.b32 e; shfl.sync.idx.b32 d, d, 0, 0x1f, -1;",
    );
    assert!(
        found.iter().all(|&row| row == [1, 0xFFFF_FFFF]),
        "{found:x?}"
    );
}

#[test]
fn loops_of_different_lengths() {
    let found = lanes(
        R,
        "mov.b32 d, 0; mov.b32 b, 0; TOP: add.u32 d, d, b; add.u32 b, b, 1; setp.le.u32 p, b, a; @p bra TOP;",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(lane, [d, _])| *d == (lane * (lane + 1) / 2) as u64)
    );
}

#[test]
fn lanes_that_wait_for_lanes_of_their_warp() {
    // Lane 0 stores what the others spin for; on a warp that ran the first group only this would hang.
    let text = format!(
        "{HEADER}.visible .entry spin(.param .u64 flag) {{
        .reg .pred p; .reg .b32 r, t; .reg .b64 x;
        ld.param.u64 x, [flag]; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; @p bra SET;
        SPIN: ld.volatile.global.u32 r, [x]; setp.eq.u32 p, r, 0; @p bra SPIN; bra END;
        SET: st.volatile.global.u32 [x], 1;
        END: ret; }}"
    );
    launch(
        &text,
        Shape::new(1, 32),
        &mut [Argument::Memory(&mut [0; 4])],
    )
    .unwrap();
}

#[test]
fn indexed_branches() {
    let found = lanes(
        R,
        "and.b32 b, a, 3; mov.b32 d, 9; TABLE: .branchtargets A, B, C, A; brx.idx b, TABLE;
        A: mov.b32 d, 1; bra E; B: mov.b32 d, 2; bra E; C: mov.b32 d, 3; E:",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(lane, [d, _])| *d == [1, 2, 3, 1][lane % 4])
    );
}

#[test]
fn barriers_that_count() {
    let text = format!(
        "{HEADER}.visible .entry count(.param .u64 out) {{
        .reg .pred p, q, r; .reg .b32 t, n, v; .reg .b64 x, y;
        ld.param.u64 x, [out]; mov.u32 t, %tid.x; setp.lt.u32 p, t, 70;
        bar.red.popc.u32 n, 0, p;
        bar.red.and.pred q, 0, p;
        barrier.cta.red.or.aligned.pred r, 0, p;
        selp.b32 v, 1000, 0, q; add.u32 n, n, v; selp.b32 v, 2000, 0, r; add.u32 n, n, v;
        mul.wide.u32 y, t, 4; add.s64 x, x, y; st.global.u32 [x], n; ret; }}"
    );
    for block in [96, 100, 70] {
        let mut out = vec![0; block as usize * 4];
        launch(
            &text,
            Shape::new(1, block),
            &mut [Argument::Memory(&mut out)],
        )
        .unwrap();
        let expected = 70 + 2000 + if block == 70 { 1000 } else { 0 };
        assert!(
            out.chunks(4).all(|n| n == u32::to_le_bytes(expected)),
            "{block}: {:?}",
            &out[..8]
        );
    }
}

#[test]
fn producers_arrive_and_consumers_wait_at_a_named_barrier() {
    let text = format!(
        "{HEADER}.visible .entry pipe(.param .u64 out) {{
        .reg .pred p; .reg .b32 t, v, s; .reg .b64 x, y; .shared .align 4 .b8 buffer[128];
        ld.param.u64 x, [out]; mov.u32 t, %tid.x; mov.u32 s, buffer;
        setp.ge.u32 p, t, 32; @p bra CONSUME;
        mad.lo.u32 s, t, 4, s; mul.lo.u32 v, t, 3; st.shared.u32 [s], v; bar.arrive 1, 64; ret;
        CONSUME: bar.sync 1, 64; sub.u32 t, t, 32; mad.lo.u32 s, t, 4, s; ld.shared.u32 v, [s];
        mul.wide.u32 y, t, 4; add.s64 x, x, y; st.global.u32 [x], v; ret; }}"
    );
    for seed in 0..8 {
        let mut out = vec![0; 128];
        launch(
            &text,
            Shape::new(1, 64).seed(seed),
            &mut [Argument::Memory(&mut out)],
        )
        .unwrap();
        assert!(
            out.chunks(4)
                .enumerate()
                .all(|(i, v)| v == u32::to_le_bytes(3 * i as u32))
        );
    }
}
