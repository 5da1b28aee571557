//! What instructions do, with their operands.

use super::instruction::{
    Address, AtomicOp, AtomicType, BarrierKind, Boolean, Carry, Compared, Element, Float, Float1,
    Float2, Integer, Integer1, Integer2, Integer3, Mode, Order, Pred, Predicate, Property, Reg,
    Scalar, ShuffleMode, Space, Test, VoteMode,
};

/// `mma.sync.m16n8k…`: D = A B + C, A row-major, B column-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mma {
    /// The reduction length.
    pub k: u8,
    /// Element type of A.
    pub a_type: Element,
    /// Element type of B.
    pub b_type: Element,
    /// Element type of C.
    pub c_type: Element,
    /// Element type of D.
    pub d_type: Element,
    /// `.satfinite`: integer sums clamp.
    pub saturate: bool,
    /// Registers of the fragments.
    pub d: Box<[Reg]>,
    /// Registers of A.
    pub a: Box<[Reg]>,
    /// Registers of B.
    pub b: Box<[Reg]>,
    /// Registers of C.
    pub c: Box<[Reg]>,
}

/// `wgmma.mma_async.m64n…`: D (64 x n, a warpgroup's) = A B, or D + A B.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wgmma {
    /// Columns of D.
    pub n: u16,
    /// The reduction length: 32 bytes of A.
    pub k: u8,
    /// Element type of A.
    pub a_type: Element,
    /// Element type of B.
    pub b_type: Element,
    /// Element type of D: f32, f16 or s32.
    pub d_type: Element,
    /// `.satfinite`: integer sums clamp.
    pub saturate: bool,
    /// Registers of D.
    pub d: Box<[Reg]>,
    /// A in registers, or its descriptor.
    pub a: Factor,
    /// The descriptor of B.
    pub b: Reg,
    /// Whether D is added to.
    pub accumulate: Predicate,
    /// Whether A and B are negated.
    pub negate: [bool; 2],
    /// Whether A and B lie across k.
    pub across: [bool; 2],
}

/// The first factor of `wgmma`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Factor {
    /// Four registers of a fragment.
    Registers(Box<[Reg]>),
    /// A descriptor of shared memory.
    Shared(Reg),
}

/// The memory beyond a block that `cp.async.bulk` copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// A box of a tensor: where its map lies, and its coordinates, innermost first.
    Tensor {
        /// The generic address of the map.
        map: Address,
        /// The coordinates.
        coordinates: Box<[Reg]>,
    },
    /// So many bytes in a row.
    Bytes {
        /// Where they begin.
        address: Address,
        /// How many.
        bytes: Reg,
    },
}

/// Which phase of an mbarrier a thread asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// By its parity.
    Parity(Reg),
    /// By what an arrival gave.
    Token(Reg),
}

/// What an instruction does. `d` is where the result goes, `a`, `b`, `c` are sources.
#[allow(
    missing_docs,
    reason = "fields are named as in the PTX ISA's own syntax"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `mov` of up to 64 bits
    Move {
        d: Reg,
        a: Reg,
    },
    /// `mov` of `%clock`, `%clock64`, `%globaltimer`, in a register of so many bits
    Clock {
        d: Reg,
        bits: u8,
    },
    /// `mov` of parts, each of so many bits, into one register
    Pack {
        d: Reg,
        parts: Box<[Reg]>,
        bits: u8,
    },
    /// `mov` of one register into parts
    Unpack {
        d: Box<[Option<Reg>]>,
        a: Reg,
        bits: u8,
    },
    /// `mov.pred`, `not.pred`
    MovePredicate {
        d: Pred,
        a: Predicate,
    },
    /// `and.pred`, `or.pred`, `xor.pred`
    Logic {
        op: Boolean,
        d: Pred,
        a: Predicate,
        b: Predicate,
    },
    Integer1 {
        op: Integer1,
        ty: Integer,
        d: Reg,
        a: Reg,
    },
    Integer2 {
        op: Integer2,
        ty: Integer,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Integer3 {
        op: Integer3,
        ty: Integer,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    /// `bfi`
    Insert {
        wide: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        position: Reg,
        length: Reg,
    },
    Carry {
        op: Carry,
        ty: Integer,
        reads: bool,
        writes: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Float1 {
        op: Float1,
        ty: Float,
        mode: Mode,
        d: Reg,
        a: Reg,
    },
    Float2 {
        op: Float2,
        ty: Float,
        mode: Mode,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Fma {
        ty: Float,
        mode: Mode,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    TestProperty {
        property: Property,
        ty: Float,
        d: Pred,
        a: Reg,
    },
    /// `cvt` of one value; results of integer types are extended to `width` bits
    Convert {
        to: Scalar,
        from: Scalar,
        integral: bool,
        mode: Mode,
        width: u8,
        d: Reg,
        a: Reg,
    },
    /// `cvt` of two values into a packed pair, `a` above `b`
    ConvertPair {
        to: Scalar,
        mode: Mode,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    /// `cvt` of a packed pair of 8-bit floats into f16x2
    WidenPair {
        from: Scalar,
        relu: bool,
        d: Reg,
        a: Reg,
    },
    /// `setp`; `combine` is applied with `c` to the result and, for `q`, to its complement
    SetPredicate {
        ty: Compared,
        test: Test,
        flush: bool,
        combine: Option<(Boolean, Predicate)>,
        p: Option<Pred>,
        q: Option<Pred>,
        a: Reg,
        b: Reg,
    },
    /// `set`; true is `truth`
    Set {
        ty: Compared,
        test: Test,
        flush: bool,
        combine: Option<(Boolean, Predicate)>,
        truth: u64,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    /// `selp`
    Select {
        d: Reg,
        a: Reg,
        b: Reg,
        p: Predicate,
    },
    /// `slct`: `a` where `c` is not negative
    SelectSign {
        float: bool,
        flush: bool,
        d: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    /// `cvta` and `cvta.to`
    ConvertAddress {
        space: Space,
        to: bool,
        d: Reg,
        a: Reg,
    },
    /// `isspacep`
    IsSpace {
        space: Space,
        d: Pred,
        a: Reg,
    },
    /// `ld`; each element of `bytes` bytes, sign-extended to `signed` bits where that is not 0
    Load {
        space: Space,
        bytes: u8,
        signed: u8,
        order: Order,
        d: Box<[Option<Reg>]>,
        address: Address,
    },
    /// `st`
    Store {
        space: Space,
        bytes: u8,
        order: Order,
        address: Address,
        values: Box<[Reg]>,
    },
    /// `atom` and `red`
    Atomic {
        space: Space,
        op: AtomicOp,
        ty: AtomicType,
        order: Order,
        d: Option<Reg>,
        address: Address,
        b: Reg,
        c: Reg,
    },
    /// `shfl.sync`
    Shuffle {
        mode: ShuffleMode,
        d: Reg,
        p: Option<Pred>,
        a: Reg,
        b: Reg,
        c: Reg,
        members: Reg,
    },
    /// `vote.sync`; `d` for a ballot, else `p`
    Vote {
        mode: VoteMode,
        d: Reg,
        p: Pred,
        a: Predicate,
        members: Reg,
    },
    /// `match.sync`
    Match {
        all: bool,
        d: Reg,
        p: Option<Pred>,
        a: Reg,
        members: Reg,
    },
    /// `redux.sync`
    Reduce {
        op: AtomicOp,
        ty: Integer,
        d: Reg,
        a: Reg,
        members: Reg,
    },
    /// `elect.sync`
    Elect {
        d: Option<Reg>,
        p: Pred,
        members: Reg,
    },
    /// `activemask`
    ActiveMask {
        d: Reg,
    },
    /// `bar` and `barrier`; `count` in threads
    Barrier {
        kind: BarrierKind,
        aligned: bool,
        id: Reg,
        count: Option<Reg>,
    },
    /// `bar.warp.sync`
    WarpBarrier {
        members: Reg,
    },
    /// `membar` and `fence`
    Fence,
    /// `ldmatrix` of 1, 2 or 4 matrices
    LoadMatrix {
        transposed: bool,
        d: Box<[Reg]>,
        address: Address,
    },
    /// `stmatrix`
    StoreMatrix {
        transposed: bool,
        address: Address,
        values: Box<[Reg]>,
    },
    Mma(Box<Mma>),
    /// `cp.async`; bytes of the source beyond `source_bytes` are zeros
    CopyAsync {
        bytes: u8,
        source_bytes: Option<Reg>,
        ignore: Option<Predicate>,
        to: Address,
        from: Address,
    },
    /// `cp.async.commit_group`
    CopyCommit,
    /// `cp.async.wait_group` with the groups that may be left, `cp.async.wait_all` without
    CopyWait {
        left: Option<u32>,
    },
    /// `mapa`: the address in another block of the cluster
    MapAddress {
        d: Reg,
        a: Reg,
        rank: Reg,
    },
    /// `mbarrier.init`
    PhaseInit {
        address: Address,
        count: Reg,
    },
    /// `mbarrier.inval`
    PhaseInvalidate {
        address: Address,
    },
    /// `mbarrier.arrive`, with `expect` for `.expect_tx`; `drop` for `arrive_drop`
    PhaseArrive {
        d: Option<Reg>,
        address: Address,
        count: Option<Reg>,
        expect: Option<Reg>,
        drop: bool,
    },
    /// `mbarrier.expect_tx` and, `complete`, `mbarrier.complete_tx`
    PhaseExpect {
        complete: bool,
        address: Address,
        bytes: Reg,
    },
    /// `mbarrier.test_wait` and, `waits`, `try_wait`
    PhaseTest {
        waits: bool,
        p: Option<Pred>,
        address: Address,
        phase: Phase,
    },
    /// `cp.async.mbarrier.arrive`; `counted`: with `.noinc` the arrival is one of those that are expected
    CopiesArrive {
        counted: bool,
        address: Address,
    },
    /// `cp.async.bulk` to shared memory of one block, or those of a mask
    BulkLoad {
        to: Address,
        from: Remote,
        barrier: Address,
        multicast: Option<Reg>,
    },
    /// `cp.async.bulk` out of shared memory
    BulkStore {
        to: Remote,
        from: Address,
    },
    /// `cp.async.bulk.commit_group`
    BulkCommit,
    /// `cp.async.bulk.wait_group`
    BulkWait {
        left: u32,
    },
    /// `fence.proxy.async`
    ProxyFence,
    /// `fence.mbarrier_init`
    PhaseInitFence,
    Wgmma(Box<Wgmma>),
    /// `wgmma.fence`
    WgmmaFence,
    /// `wgmma.commit_group`
    WgmmaCommit,
    /// `wgmma.wait_group`
    WgmmaWait {
        left: u32,
    },
    /// `setmaxnreg`
    SetRegisters {
        count: u32,
    },
    /// `barrier.cluster.arrive`
    ClusterArrive,
    /// `barrier.cluster.wait`
    ClusterWait,
    /// `griddepcontrol.wait`
    DependencyWait,
    /// `bra`
    Branch {
        target: u32,
    },
    /// `brx.idx`
    BranchIndexed {
        index: Reg,
        targets: Box<[u32]>,
    },
    /// `ret`, `exit`
    Exit,
    /// `trap`
    Trap,
    /// Hints: `prefetch`, `nanosleep`, …
    Nothing,
}

/// An instruction: guard and operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// The lanes that execute it.
    pub guard: Predicate,
    /// What it does.
    pub op: Op,
    /// Its line in the text.
    pub line: u32,
}

impl Op {
    /// Its name and the target it needs, where that is more than the interpreter asks for in general: `sm_90a` alone, or `sm_90` and later.
    pub(super) fn needs(&self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait { .. } => {
                ("wgmma", "sm_90a")
            }
            Op::SetRegisters { .. } => ("setmaxnreg", "sm_90a"),
            Op::BulkLoad { .. } | Op::BulkStore { .. } => ("cp.async.bulk", "sm_90"),
            Op::BulkCommit | Op::BulkWait { .. } => ("cp.async.bulk", "sm_90"),
            Op::PhaseExpect { .. } => ("mbarrier.expect_tx", "sm_90"),
            Op::PhaseArrive {
                expect: Some(_), ..
            } => ("mbarrier.arrive.expect_tx", "sm_90"),
            Op::PhaseTest { waits: true, .. } => ("mbarrier.try_wait", "sm_90"),
            Op::PhaseInitFence => ("fence.mbarrier_init", "sm_90"),
            Op::ProxyFence => ("fence.proxy.async", "sm_90"),
            Op::MapAddress { .. } => ("mapa", "sm_90"),
            Op::ClusterArrive | Op::ClusterWait => ("barrier.cluster", "sm_90"),
            Op::DependencyWait => ("griddepcontrol", "sm_90"),
            _ => return None,
        })
    }
}
