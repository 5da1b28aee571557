//! Which operands a plan binds, and the arguments that kernels are given for them.

use std::ops::Range;

use ropeway_core::dtype::DType;
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{
    Arg, Determinism, Expr, Extent, Form, OperandRule, Plan, StrideRule, Symbol,
};

use super::super::{Attention, PagedAttention, VarlenAttention};
use super::{Division, Problem, flag};

/// Adds an operand to a plan and gives its index.
fn bind(plan: &mut Plan, name: &'static str, dtype: DType, shape: &[Extent], unit: bool) -> usize {
    let mut strides = vec![StrideRule::Any; shape.len()];
    if unit && let Some(last) = strides.last_mut() {
        *last = StrideRule::Exactly(1);
    }
    plan.operands.push(OperandRule {
        name,
        dtype,
        write: matches!(name, "o" | "lse"),
        shape: shape.to_vec(),
        strides,
        offset_multiple: 1,
        form: Form::Plain,
    });
    plan.operands.len() - 1
}

fn varies(symbol: usize, plus: u64) -> Extent {
    Extent::Varies {
        symbol,
        times: 1,
        plus,
    }
}

pub(super) fn int(value: impl Into<Expr>) -> Arg {
    Arg::I32(value.into())
}

pub(super) fn long(value: impl Into<Expr>) -> Arg {
    Arg::I64(value.into())
}

/// A plan without operands yet.
fn plan_with<const N: usize>(problem: &Problem, symbols: [(&'static str, u64); N]) -> Plan {
    let mut plan = Plan::new(problem.name, Determinism::BatchInvariant);
    let symbols = symbols.map(|(name, max)| Symbol { name, max });
    plan.symbols.extend(symbols);
    plan
}

/// Binds o and lse, whose axes but o's columns are `rows`.
fn outputs(
    plan: &mut Plan,
    o: TensorDesc,
    lse: Option<TensorDesc>,
    rows: &[Extent],
    dv: u64,
) -> (usize, Option<usize>) {
    let shape = [rows, &[Extent::Exactly(dv)]].concat();
    let o = bind(plan, "o", o.dtype, &shape, false);
    let lse = lse.map(|_| bind(plan, "lse", DType::F32, rows, false));
    (o, lse)
}

/// What a planner has found out about its op's operands; `None` for those that are not there.
pub(super) struct Operands {
    pub(super) q: usize,
    pub(super) k: usize,
    pub(super) v: usize,
    pub(super) mask: Option<usize>,
    pub(super) kv_lens: Option<usize>,
    pub(super) cu_q: Option<usize>,
    pub(super) cu_kv: Option<usize>,
    pub(super) block_table: Option<usize>,
    pub(super) sinks: Option<usize>,
    pub(super) alibi_slopes: Option<usize>,
    pub(super) o: usize,
    pub(super) lse: Option<usize>,
    /// Mask strides: batch, head, row, key.
    pub(super) mask_strides: [Expr; 4],
}

/// Numbers of work-groups and the lengths that kernels are told.
pub(super) struct Sizes {
    pub(super) sequences: Expr,
    pub(super) q_len: Expr,
    pub(super) kv_len: Expr,
    pub(super) blocks: Expr,
    pub(super) block_size: u64,
}

/// Strides in the order batch, head, row, column of an operand whose axes these are; 0 for an axis that it lacks.
pub(super) fn strides(operand: usize, axes: [Option<usize>; 4]) -> impl Iterator<Item = Arg> {
    axes.into_iter()
        .map(move |axis| long(axis.map_or(Expr::Const(0), |axis| Expr::stride(operand, axis))))
}

/// The axes batch, head, row, column of q and o.
pub(super) fn query_axes(problem: &Problem) -> [Option<usize>; 4] {
    match problem.layout {
        0 => [Some(0), Some(1), Some(2), Some(3)],
        _ => [None, Some(1), Some(0), Some(2)],
    }
}

/// The axes batch (or block), head, row, column of k and v.
pub(super) fn key_axes(problem: &Problem) -> [Option<usize>; 4] {
    match problem.layout {
        0 => [Some(0), Some(1), Some(2), Some(3)],
        1 => [None, Some(1), Some(0), Some(2)],
        _ => [Some(0), Some(2), Some(1), Some(3)],
    }
}

/// The bits of `flags`.
pub(super) fn flags(problem: &Problem, operands: &Operands) -> i64 {
    let mut flags = 0;
    for (set, bit) in [
        (problem.softmax.causal, flag::CAUSAL),
        (problem.softmax.softcap > 0.0, flag::SOFTCAP),
        (operands.mask.is_some(), flag::MASK),
        (operands.alibi_slopes.is_some(), flag::ALIBI),
        (operands.sinks.is_some(), flag::SINKS),
        (operands.lse.is_some(), flag::LSE),
        (operands.kv_lens.is_some(), flag::KV_LENS),
    ] {
        flags |= if set { bit } else { 0 };
    }
    flags
}

/// The arguments of every kernel, in the order of `OPERANDS` in `attention.cl`.
pub(super) fn arguments(
    problem: &Problem,
    operands: &Operands,
    sizes: &Sizes,
    division: &Division,
    partial: Option<&Range<u64>>,
) -> Vec<Arg> {
    let optional = |operand: Option<usize>| operand.map_or(Arg::Absent, Arg::operand);
    let stride = |operand: Option<usize>, axis: usize| {
        long(operand.map_or(Expr::Const(0), |operand| Expr::stride(operand, axis)))
    };
    let mut args = vec![
        Arg::operand(operands.q),
        Arg::operand(operands.k),
        Arg::operand(operands.v),
    ];
    args.extend(
        [
            operands.mask,
            operands.kv_lens,
            operands.cu_q,
            operands.cu_kv,
            operands.block_table,
            operands.sinks,
            operands.alibi_slopes,
            Some(operands.o),
            operands.lse,
        ]
        .map(optional),
    );
    args.push(partial.map_or(Arg::Absent, |range| Arg::Workspace {
        range: range.clone(),
        dtype: DType::F32,
        write: true,
    }));
    args.push(Arg::Status);
    args.extend([
        int(sizes.sequences.clone()),
        int(problem.heads),
        int(problem.kv_heads),
        int(sizes.q_len.clone()),
        int(sizes.kv_len.clone()),
        int(problem.d),
        int(problem.dv),
    ]);
    args.extend(strides(operands.q, query_axes(problem)));
    args.extend(strides(operands.k, key_axes(problem)));
    args.extend(strides(operands.v, key_axes(problem)));
    args.extend(strides(operands.o, query_axes(problem)));
    let [batch, head, row, _] = query_axes(problem);
    for axis in [batch, head, row] {
        args.push(long(match (operands.lse, axis) {
            (Some(lse), Some(axis)) => Expr::stride(lse, axis),
            _ => Expr::Const(0),
        }));
    }
    args.extend(operands.mask_strides.iter().cloned().map(long));
    args.extend([
        int(sizes.blocks.clone()),
        int(sizes.block_size),
        stride(operands.block_table, 0),
        stride(operands.block_table, 1),
        stride(operands.kv_lens, 0),
        stride(operands.cu_q, 0),
        stride(operands.cu_kv, 0),
        stride(operands.sinks, 0),
        stride(operands.alibi_slopes, 0),
        int(division.few_rows),
        int(division.split_rows),
        int(division.slots.clone()),
        Arg::F32(problem.softmax.scale),
        Arg::F32(problem.softmax.softcap),
        int(problem.softmax.window),
        int(flags(problem, operands)),
    ]);
    args
}

/// Binds the operands of `attention`.
pub(super) fn dense(problem: &Problem, op: &Attention) -> (Plan, Operands, Sizes) {
    let symbols = [
        ("batch", op.batch()),
        ("q_len", op.q_len()),
        ("kv_len", op.kv_len()),
    ];
    let mut plan = plan_with(problem, symbols);
    let [batch, q_len, kv_len] = [0, 1, 2].map(|symbol| varies(symbol, 0));
    let exactly = Extent::Exactly;
    let (heads, kv_heads) = (exactly(op.heads()), exactly(op.kv_heads()));
    let q = bind(
        &mut plan,
        "q",
        op.q.dtype,
        &[batch, heads, q_len, exactly(op.d())],
        false,
    );
    let k_shape = [batch, kv_heads, kv_len, exactly(op.d())];
    let k = bind(&mut plan, "k", op.k.dtype, &k_shape, problem.unit);
    let v_shape = [batch, kv_heads, kv_len, exactly(op.dv())];
    let v = bind(&mut plan, "v", op.v.dtype, &v_shape, problem.unit);
    let mut mask_strides = [0, 0, 0, 0].map(Expr::Const);
    let mask = op.mask.as_ref().map(|mask| {
        let full = [batch, heads, q_len, kv_len];
        let lead = full.len() - mask.shape().len();
        let mut shape = Vec::new();
        for (axis, &extent) in mask.shape().iter().enumerate() {
            shape.push(if extent == 1 {
                exactly(1)
            } else {
                full[lead + axis]
            });
        }
        let index = bind(&mut plan, "mask", DType::F32, &shape, false);
        for (axis, &extent) in mask.shape().iter().enumerate() {
            if extent != 1 {
                mask_strides[lead + axis] = Expr::stride(index, axis);
            }
        }
        index
    });
    let kv_lens = op
        .kv_lens
        .map(|_| bind(&mut plan, "kv_lens", DType::I32, &[batch], false));
    let (sinks, alibi_slopes) = per_head(&mut plan, op.sinks, op.alibi_slopes, op.heads());
    let (o, lse) = outputs(&mut plan, op.o, op.lse, &[batch, heads, q_len], op.dv());
    let operands = Operands {
        q,
        k,
        v,
        mask,
        kv_lens,
        cu_q: None,
        cu_kv: None,
        block_table: None,
        sinks,
        alibi_slopes,
        o,
        lse,
        mask_strides,
    };
    let sizes = Sizes {
        sequences: Expr::extent(q, 0),
        q_len: Expr::extent(q, 2),
        kv_len: Expr::extent(k, 2),
        blocks: Expr::Const(0),
        block_size: 1,
    };
    (plan, operands, sizes)
}

/// Binds the operands of `attention_varlen`.
pub(super) fn varlen(problem: &Problem, op: &VarlenAttention) -> (Plan, Operands, Sizes) {
    let symbols = [
        ("tokens", op.tokens()),
        ("kv_tokens", op.kv_tokens()),
        ("batch", op.batch()),
    ];
    let mut plan = plan_with(problem, symbols);
    let [tokens, kv_tokens] = [0, 1].map(|symbol| varies(symbol, 0));
    let exactly = Extent::Exactly;
    let (heads, kv_heads) = (exactly(op.heads()), exactly(op.kv_heads()));
    let q = bind(
        &mut plan,
        "q",
        op.q.dtype,
        &[tokens, heads, exactly(op.d())],
        false,
    );
    let k_shape = [kv_tokens, kv_heads, exactly(op.d())];
    let k = bind(&mut plan, "k", op.k.dtype, &k_shape, problem.unit);
    let v_shape = [kv_tokens, kv_heads, exactly(op.dv())];
    let v = bind(&mut plan, "v", op.v.dtype, &v_shape, problem.unit);
    let cu_q = bind(&mut plan, "cu_q", DType::I32, &[varies(2, 1)], false);
    let cu_kv = bind(&mut plan, "cu_kv", DType::I32, &[varies(2, 1)], false);
    let (sinks, alibi_slopes) = per_head(&mut plan, op.sinks, op.alibi_slopes, op.heads());
    let (o, lse) = outputs(&mut plan, op.o, op.lse, &[tokens, heads], op.dv());
    let operands = Operands {
        q,
        k,
        v,
        mask: None,
        kv_lens: None,
        cu_q: Some(cu_q),
        cu_kv: Some(cu_kv),
        block_table: None,
        sinks,
        alibi_slopes,
        o,
        lse,
        mask_strides: [0, 0, 0, 0].map(Expr::Const),
    };
    let sizes = Sizes {
        sequences: Expr::extent(cu_q, 0) - 1,
        q_len: Expr::extent(q, 0),
        kv_len: Expr::extent(k, 0),
        blocks: Expr::Const(0),
        block_size: 1,
    };
    (plan, operands, sizes)
}

/// Binds the operands of `attention_paged`.
pub(super) fn paged(problem: &Problem, op: &PagedAttention) -> (Plan, Operands, Sizes) {
    let symbols = [
        ("tokens", op.tokens()),
        ("batch", op.batch()),
        ("blocks", op.blocks()),
        ("max_blocks", op.max_blocks()),
    ];
    let mut plan = plan_with(problem, symbols);
    let [tokens, batch, blocks, max_blocks] = [0, 1, 2, 3].map(|symbol| varies(symbol, 0));
    let exactly = Extent::Exactly;
    let (heads, kv_heads) = (exactly(op.heads()), exactly(op.kv_heads()));
    let block_size = exactly(op.block_size());
    let q = bind(
        &mut plan,
        "q",
        op.q.dtype,
        &[tokens, heads, exactly(op.d())],
        false,
    );
    let cu_q = bind(&mut plan, "cu_q", DType::I32, &[varies(1, 1)], false);
    let k_shape = [blocks, block_size, kv_heads, exactly(op.d())];
    let k = bind(
        &mut plan,
        "k_cache",
        op.k_cache.dtype,
        &k_shape,
        problem.unit,
    );
    let v_shape = [blocks, block_size, kv_heads, exactly(op.dv())];
    let v = bind(
        &mut plan,
        "v_cache",
        op.v_cache.dtype,
        &v_shape,
        problem.unit,
    );
    let block_table = bind(
        &mut plan,
        "block_table",
        DType::I32,
        &[batch, max_blocks],
        false,
    );
    let kv_lens = bind(&mut plan, "kv_lens", DType::I32, &[batch], false);
    let (sinks, alibi_slopes) = per_head(&mut plan, op.sinks, op.alibi_slopes, op.heads());
    let (o, lse) = outputs(&mut plan, op.o, op.lse, &[tokens, heads], op.dv());
    let operands = Operands {
        q,
        k,
        v,
        mask: None,
        kv_lens: Some(kv_lens),
        cu_q: Some(cu_q),
        cu_kv: None,
        block_table: Some(block_table),
        sinks,
        alibi_slopes,
        o,
        lse,
        mask_strides: [0, 0, 0, 0].map(Expr::Const),
    };
    let sizes = Sizes {
        sequences: Expr::extent(kv_lens, 0),
        q_len: Expr::extent(q, 0),
        // A cache without blocks holds no keys, whatever the table and the lengths say.
        kv_len: Expr::extent(k, 0).min(1) * Expr::extent(block_table, 1) * op.block_size(),
        blocks: Expr::extent(k, 0),
        block_size: op.block_size().max(1),
    };
    (plan, operands, sizes)
}

fn per_head(
    plan: &mut Plan,
    sinks: Option<TensorDesc>,
    alibi_slopes: Option<TensorDesc>,
    heads: u64,
) -> (Option<usize>, Option<usize>) {
    let shape = [Extent::Exactly(heads)];
    let sinks = sinks.map(|_| bind(plan, "sinks", DType::F32, &shape, false));
    let slopes = alibi_slopes.map(|_| bind(plan, "alibi_slopes", DType::F32, &shape, false));
    (sinks, slopes)
}
