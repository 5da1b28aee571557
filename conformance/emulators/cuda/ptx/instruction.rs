//! Instructions as the interpreter takes them: operands are register numbers, every type and modifier is settled.
//!
//! Immediates, special registers and addresses of variables are registers too, which are filled when a warp starts
//! ([`Constant`]), so that each source operand is read in one way.

pub use super::operation::{Factor, Instruction, Mma, Op, Phase, Remote, Wgmma};

/// A register. It holds 64 bits a lane, zero beyond the width of what was written.
pub type Reg = u32;
/// A predicate register: a bit a lane. Number 0 is always true.
pub type Pred = u32;

/// The predicate that is always true.
pub const TRUE: Pred = 0;

/// A predicate operand, or a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// Which.
    pub register: Pred,
    /// Whether `!` stands before it.
    pub negated: bool,
}

impl Predicate {
    /// Always true.
    pub const ALWAYS: Predicate = Predicate {
        register: TRUE,
        negated: false,
    };
}

/// The value of a register that holds a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// An immediate.
    Value(u64),
    /// A special register that does not change while a thread runs.
    Special(Special),
    /// An address in shared memory.
    Shared(u32),
    /// Where dynamic shared memory begins.
    DynamicShared,
    /// An address in local memory.
    Local(u32),
    /// An address in the parameter buffer.
    Parameter(u32),
    /// The address of a module's variable, and an offset.
    Variable(usize, i64),
}

/// Special registers. The axes are 0 x, 1 y, 2 z.
#[allow(missing_docs, reason = "each is the special register of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
}

/// Integer types; untyped bits are unsigned.
#[allow(missing_docs, reason = "each is the PTX type of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integer {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

/// Float types of arithmetic.
#[allow(missing_docs, reason = "each is the PTX type of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

/// Types of values in registers that conversions know.
#[allow(missing_docs, reason = "each is the PTX type of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
    Tf32,
    E4m3,
    E5m2,
}

/// Directions of rounding.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    #[default]
    NearestEven,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Modifiers of float instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Direction of rounding.
    pub rounding: Rounding,
    /// `.ftz`: subnormal inputs and results become zero of their sign.
    pub flush: bool,
    /// `.sat`: clamps to [0, 1], NaN to 0.
    pub saturate: bool,
    /// `.relu`: clamps negative results to 0.
    pub relu: bool,
    /// `.NaN` of min and max: a NaN operand makes the result NaN.
    pub nan: bool,
    /// `.xorsign.abs` of min and max.
    pub xorsign: bool,
    /// `.satfinite` of conversions: overflow gives the largest finite value.
    pub finite: bool,
}

/// Integer instructions of one source.
#[allow(missing_docs, reason = "each is the PTX instruction of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integer1 {
    Not,
    Cnot,
    Abs,
    Neg,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
}

/// Integer instructions of two sources.
#[allow(missing_docs, reason = "each is the PTX instruction of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integer2 {
    Add,
    AddSaturate,
    Sub,
    SubSaturate,
    MulLow,
    MulHigh,
    MulWide,
    Mul24Low,
    Mul24High,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    BmskClamp,
    BmskWrap,
    SzextClamp,
    SzextWrap,
}

/// Integer instructions of three sources or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integer3 {
    /// `mad.lo`
    MadLow,
    /// `mad.hi`
    MadHigh,
    /// `mad.hi.sat.s32`
    MadHighSaturate,
    /// `mad.wide`
    MadWide,
    /// `mad24.lo`
    Mad24Low,
    /// `mad24.hi`
    Mad24High,
    /// `sad`
    Sad,
    /// `bfe`
    Bfe,
    /// `lop3`, with its table
    Lop3(u8),
    /// `prmt`, with its mode
    Permute(PermuteMode),
    /// `shf.l`, clamped or wrapped
    FunnelLeft {
        /// `.clamp`
        clamp: bool,
    },
    /// `shf.r`, clamped or wrapped
    FunnelRight {
        /// `.clamp`
        clamp: bool,
    },
    /// `dp4a`, with the signedness of `a` and `b`
    Dp4a(bool, bool),
    /// `dp2a`, with the signedness of `a` and `b`, and whether the high half of `b` is taken
    Dp2a(bool, bool, bool),
}

/// Modes of `prmt`.
#[allow(missing_docs, reason = "each is the PTX mode of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermuteMode {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// Additions with the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// `add.cc`, `addc`, `addc.cc`
    Add,
    /// `sub.cc`, `subc`, `subc.cc`
    Sub,
    /// `mad.lo.cc`, `madc.lo`
    MadLow,
    /// `mad.hi.cc`, `madc.hi`
    MadHigh,
}

/// Float instructions of one source.
#[allow(missing_docs, reason = "each is the PTX instruction of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float1 {
    Abs,
    Neg,
    Sqrt,
    Reciprocal,
    SqrtApprox,
    ReciprocalApprox,
    ReciprocalSqrtApprox,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

/// Float instructions of two sources.
#[allow(missing_docs, reason = "each is the PTX instruction of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    DivApprox,
    DivFull,
    Min,
    Max,
    CopySign,
}

/// What `testp` asks.
#[allow(missing_docs, reason = "each is the PTX property of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// What a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Integers.
    Integer(Integer),
    /// Floats.
    Float(Float),
}

/// Comparisons. Ordered ones are false where an operand is NaN; unordered ones true.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    EqualUnordered,
    NotEqualUnordered,
    LessUnordered,
    LessEqualUnordered,
    GreaterUnordered,
    GreaterEqualUnordered,
    Numbers,
    NotNumbers,
}

/// Boolean operations.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boolean {
    And,
    Or,
    Xor,
}

/// State spaces of memory instructions.
#[allow(missing_docs, reason = "each is the PTX state space of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
    Constant,
}

/// An address: register and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The register.
    pub base: Reg,
    /// Bytes beyond it.
    pub offset: i64,
}

/// The order that a memory instruction asks for.
#[allow(missing_docs, reason = "each is the PTX modifier of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Weak,
    /// `.volatile`, `.relaxed`, `.mmio`
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

/// Operations of `atom` and `red`.
#[allow(missing_docs, reason = "each is the PTX operation of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Add,
    Increment,
    Decrement,
    Min,
    Max,
}

/// What an atomic operation, or `redux.sync`, works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicType {
    /// Integers and untyped bits.
    Integer(Integer),
    /// Floats.
    Float(Float),
}

/// Modes of `shfl.sync`.
#[allow(missing_docs, reason = "each is the PTX mode of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Modes of `vote.sync`.
#[allow(missing_docs, reason = "each is the PTX mode of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What `barrier.red` gives.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierReduction {
    PopulationCount(Reg),
    And(Pred),
    Or(Pred),
}

/// What a barrier instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierKind {
    /// Arrives and waits.
    Sync,
    /// Arrives only.
    Arrive,
    /// Arrives, waits, and reduces a predicate over the threads.
    Reduce(BarrierReduction, Predicate),
}

/// Element types of matrix instructions.
#[allow(missing_docs, reason = "each is the PTX type of that name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    F32,
    S32,
}
