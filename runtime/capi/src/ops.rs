//! The ops that ship, a struct each: what `plan_create` takes by names, with the compiler's help.
//!
//! A new op works through `plan_create` at once. To give it a struct: declare it here with its `Descriptor`, and add its line to the table's
//! end (`api.rs`).

use std::ffi::c_char;

use ropeway_core::op::Signature;
use ropeway_core::{Error, Result};
use serde_json::Value;

use crate::device::ropeway_device;
use crate::plan::{Planned, number, ropeway_plan, ropeway_plan_options};
use crate::sized::{self, SizedStruct, sized_structs};
use crate::status::{create, flag, optional_text, ropeway_status};
use crate::tensor::{ROPEWAY_DTYPE_DEFAULT, dtype, ropeway_dtype, ropeway_tensor};

/// What is applied to each element before it is rounded to the output dtype.
pub type ropeway_activation = u32;
/// Nothing.
pub const ROPEWAY_ACTIVATION_NONE: ropeway_activation = 0;
/// max(x, 0); NaN stays NaN.
pub const ROPEWAY_ACTIVATION_RELU: ropeway_activation = 1;
/// By the error function.
pub const ROPEWAY_ACTIVATION_GELU: ropeway_activation = 2;
/// By the tanh approximation.
pub const ROPEWAY_ACTIVATION_GELU_TANH: ropeway_activation = 3;
/// x * sigmoid(x).
pub const ROPEWAY_ACTIVATION_SILU: ropeway_activation = 4;
/// silu(gate) * up: columns 0 .. n/2 are the gate, n/2 .. n the value; the output has n/2 columns.
pub const ROPEWAY_ACTIVATION_SWIGLU: ropeway_activation = 5;

/// How a router's logits become scores.
pub type ropeway_score = u32;
/// Softmax over all experts.
pub const ROPEWAY_SCORE_SOFTMAX: ropeway_score = 0;
/// Sigmoid of each logit.
pub const ROPEWAY_SCORE_SIGMOID: ropeway_score = 1;

/// `d = activation(alpha * op(a) op(b) + beta * c + bias)`, over leading dimensions that broadcast. Operands: a, b, c, bias, d.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_gemm {
    /// sizeof(ropeway_gemm)
    pub struct_size: usize,
    /// [..., m, k], or [..., k, m] with trans_a.
    pub a: *const ropeway_tensor,
    /// [..., k, n], or [..., n, k] with trans_b; with b_format U8 [..., n, bytes of a row].
    pub b: *const ropeway_tensor,
    /// Broadcasts to [..., m, n]; has a's dtype (I8: I32). NULL: none.
    pub c: *const ropeway_tensor,
    /// [n], of a's dtype (I8: I32). NULL: none.
    pub bias: *const ropeway_tensor,
    /// F32 [m, k / 128] beside an 8-bit float a. NULL: none.
    pub a_scale: *const ropeway_tensor,
    /// F32 [n / 128, k / 128] beside an 8-bit float b. NULL: none.
    pub b_scale: *const ropeway_tensor,
    /// NULL: 1. At 0 neither a nor b is read.
    pub alpha: *const f32,
    /// NULL: 1 if c is given, else 0. At 0 c is not read.
    pub beta: *const f32,
    /// 1 if a is stored transposed.
    pub trans_a: u32,
    /// 1 if b is stored transposed.
    pub trans_b: u32,
    /// The epilogue.
    pub activation: ropeway_activation,
    /// The dtype of d; by default a's (I8: I32).
    pub out_dtype: ropeway_dtype,
    /// GGML blocks that b holds ("q4_0", "q8_0"). NULL: none.
    pub b_format: *const c_char,
}

/// One product for each expert over contiguous rows. Operands: a, b, expert_offsets, d.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_grouped_gemm {
    /// sizeof(ropeway_grouped_gemm)
    pub struct_size: usize,
    /// [rows, k].
    pub a: *const ropeway_tensor,
    /// [experts, n, k]; with b_format U8 [experts, n, bytes of a row].
    pub b: *const ropeway_tensor,
    /// I32 [experts + 1], on the device: first 0, never descending, last <= rows.
    pub expert_offsets: *const ropeway_tensor,
    /// F32 [rows, k / 128] beside an 8-bit float a. NULL: none.
    pub a_scale: *const ropeway_tensor,
    /// F32 [experts, n / 128, k / 128] beside an 8-bit float b. NULL: none.
    pub b_scale: *const ropeway_tensor,
    /// GGML blocks that b holds. NULL: none.
    pub b_format: *const c_char,
    /// NONE or SWIGLU.
    pub activation: ropeway_activation,
    /// The dtype of d; by default a's.
    pub out_dtype: ropeway_dtype,
}

/// One product for each expert over a fixed capacity of rows, of which the first counts[e] hold something. Operands: a, b, counts, d.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_grouped_gemm_masked {
    /// sizeof(ropeway_grouped_gemm_masked)
    pub struct_size: usize,
    /// [experts, capacity, k].
    pub a: *const ropeway_tensor,
    /// [experts, n, k]; with b_format U8 [experts, n, bytes of a row].
    pub b: *const ropeway_tensor,
    /// I32 [experts], on the device: 0 to capacity.
    pub counts: *const ropeway_tensor,
    /// F32 [experts, capacity, k / 128] beside an 8-bit float a. NULL: none.
    pub a_scale: *const ropeway_tensor,
    /// F32 [experts, n / 128, k / 128] beside an 8-bit float b. NULL: none.
    pub b_scale: *const ropeway_tensor,
    /// GGML blocks that b holds. NULL: none.
    pub b_format: *const c_char,
    /// NONE or SWIGLU.
    pub activation: ropeway_activation,
    /// The dtype of d; by default a's.
    pub out_dtype: ropeway_dtype,
}

/// `softmax(scale * q k^T + mask) v` in one pass. Operands: q, k, v, mask, kv_lens, sinks, alibi_slopes, o, lse.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_attention {
    /// sizeof(ropeway_attention)
    pub struct_size: usize,
    /// [batch, heads, q_len, d].
    pub q: *const ropeway_tensor,
    /// [batch, kv_heads, kv_len, d]; heads is a multiple of kv_heads.
    pub k: *const ropeway_tensor,
    /// [batch, kv_heads, kv_len, dv].
    pub v: *const ropeway_tensor,
    /// F32, broadcasts to [batch, heads, q_len, kv_len]; added to the scores. NULL: none.
    pub mask: *const ropeway_tensor,
    /// I32 [batch], on the device: keys of each sequence, 0 to kv_len. NULL: kv_len.
    pub kv_lens: *const ropeway_tensor,
    /// F32 [heads]: one more score of each head, with value zero. NULL: none.
    pub sinks: *const ropeway_tensor,
    /// F32 [heads]. NULL: none.
    pub alibi_slopes: *const ropeway_tensor,
    /// NULL: 1 / sqrt(d).
    pub scale: *const f32,
    /// Scores become softcap * tanh(score / softcap). NULL or 0: they stay.
    pub softcap: *const f32,
    /// With causal: a query sees its last `window` keys. 0: all.
    pub window: u64,
    /// 1: the last query sees the last key, the one before sees one less, and so on.
    pub causal: u32,
    /// 1: there is an output lse [batch, heads, q_len], the logarithm of the sum of exponentials.
    pub return_lse: u32,
}

/// Attention over sequences of different lengths, one after the other. Operands: q, k, v, cu_q, cu_kv, sinks, alibi_slopes, o, lse.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_attention_varlen {
    /// sizeof(ropeway_attention_varlen)
    pub struct_size: usize,
    /// [tokens, heads, d].
    pub q: *const ropeway_tensor,
    /// [kv_tokens, kv_heads, d].
    pub k: *const ropeway_tensor,
    /// [kv_tokens, kv_heads, dv].
    pub v: *const ropeway_tensor,
    /// I32 [sequences + 1], on the device: cumulative query lengths, from 0 to tokens.
    pub cu_q: *const ropeway_tensor,
    /// I32 [sequences + 1], on the device: cumulative key lengths, from 0 to kv_tokens.
    pub cu_kv: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub sinks: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub alibi_slopes: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub scale: *const f32,
    /// As in ropeway_attention.
    pub softcap: *const f32,
    /// As in ropeway_attention.
    pub window: u64,
    /// As in ropeway_attention.
    pub causal: u32,
    /// 1: there is an output lse [tokens, heads].
    pub return_lse: u32,
}

/// Attention over a paged KV cache. Operands: q, cu_q, k_cache, v_cache, block_table, kv_lens, sinks, alibi_slopes, o, lse.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_attention_paged {
    /// sizeof(ropeway_attention_paged)
    pub struct_size: usize,
    /// [tokens, heads, d].
    pub q: *const ropeway_tensor,
    /// I32 [batch + 1], on the device: cumulative query lengths, from 0 to tokens.
    pub cu_q: *const ropeway_tensor,
    /// [blocks, block_size, kv_heads, d].
    pub k_cache: *const ropeway_tensor,
    /// [blocks, block_size, kv_heads, dv].
    pub v_cache: *const ropeway_tensor,
    /// I32 [batch, max_blocks], on the device: the blocks of each sequence.
    pub block_table: *const ropeway_tensor,
    /// I32 [batch], on the device: keys of each sequence.
    pub kv_lens: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub sinks: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub alibi_slopes: *const ropeway_tensor,
    /// As in ropeway_attention.
    pub scale: *const f32,
    /// As in ropeway_attention.
    pub softcap: *const f32,
    /// As in ropeway_attention.
    pub window: u64,
    /// As in ropeway_attention.
    pub causal: u32,
    /// 1: there is an output lse [tokens, heads].
    pub return_lse: u32,
}

/// Chooses each token's experts. Operands: logits, bias, topk_ids, topk_weights.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_moe_route {
    /// sizeof(ropeway_moe_route)
    pub struct_size: usize,
    /// [tokens, experts].
    pub logits: *const ropeway_tensor,
    /// F32 [experts], added to the scores for the choice only. NULL: none.
    pub bias: *const ropeway_tensor,
    /// Factor of the weights. NULL: 1.
    pub scale: *const f32,
    /// Experts a token.
    pub topk: u64,
    /// Groups that the experts are divided into. 0: 1.
    pub groups: u64,
    /// Groups that a token may choose from. 0: 1.
    pub topk_groups: u64,
    /// How logits become scores.
    pub score: ropeway_score,
    /// 1: weights are divided by their sum.
    pub renormalize: u32,
}

/// Brings token rows into expert order. Operands: x, topk_ids, rows, expert_offsets, source.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_expert_scatter {
    /// sizeof(ropeway_expert_scatter)
    pub struct_size: usize,
    /// [tokens, hidden].
    pub x: *const ropeway_tensor,
    /// I32 [tokens, topk], on the device; -1 for no expert.
    pub topk_ids: *const ropeway_tensor,
    /// Number of experts.
    pub experts: u64,
}

/// The weighted sum of each token's rows. Operands: rows, source, topk_weights, y.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_expert_gather {
    /// sizeof(ropeway_expert_gather)
    pub struct_size: usize,
    /// [tokens * topk, hidden], in expert order.
    pub rows: *const ropeway_tensor,
    /// I32 [tokens * topk], on the device: token * topk + slot of each row.
    pub source: *const ropeway_tensor,
    /// F32 [tokens, topk].
    pub topk_weights: *const ropeway_tensor,
}

/// A whole mixture-of-experts layer on the device: route, scatter, grouped gemm with swiglu, grouped gemm, gather.
/// Operands: x, logits, bias, w_gate_up, w_down, y, topk_ids.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_moe_ffn {
    /// sizeof(ropeway_moe_ffn)
    pub struct_size: usize,
    /// [tokens, hidden].
    pub x: *const ropeway_tensor,
    /// [tokens, experts].
    pub logits: *const ropeway_tensor,
    /// F32 [experts], added to the scores for the choice only. NULL: none.
    pub bias: *const ropeway_tensor,
    /// [experts, 2 * inter, hidden].
    pub w_gate_up: *const ropeway_tensor,
    /// [experts, hidden, inter].
    pub w_down: *const ropeway_tensor,
    /// As in ropeway_moe_route.
    pub scale: *const f32,
    /// As in ropeway_moe_route.
    pub topk: u64,
    /// As in ropeway_moe_route.
    pub groups: u64,
    /// As in ropeway_moe_route.
    pub topk_groups: u64,
    /// As in ropeway_moe_route.
    pub score: ropeway_score,
    /// As in ropeway_moe_route.
    pub renormalize: u32,
}

sized_structs!(
    ropeway_gemm,
    ropeway_grouped_gemm,
    ropeway_grouped_gemm_masked,
    ropeway_attention,
    ropeway_attention_varlen,
    ropeway_attention_paged,
    ropeway_moe_route,
    ropeway_expert_scatter,
    ropeway_expert_gather,
    ropeway_moe_ffn,
);

/// An op's struct, which becomes what a request says by names.
pub(crate) trait Descriptor: SizedStruct {
    /// The op's name.
    const OP: &'static str;

    /// # Safety
    /// The struct's pointers are null or valid.
    unsafe fn fill(&self, request: &mut Request) -> Result<()>;
}

/// A signature under construction. Absent fields leave the op's defaults.
#[derive(Default)]
pub(crate) struct Request(Signature);

impl Request {
    /// # Safety
    /// The tensors are null or valid.
    unsafe fn tensors(&mut self, tensors: &[(&str, *const ropeway_tensor)]) -> Result<()> {
        for &(name, tensor) in tensors {
            if !tensor.is_null() {
                // SAFETY: the caller's promise.
                let desc = unsafe { sized::read(tensor, name) }?.desc(name)?;
                self.0.tensors.insert(name.to_owned(), desc);
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) {
        self.0.attrs.insert(name.to_owned(), value);
    }

    fn flag(&mut self, name: &str, value: u32) -> Result<()> {
        self.set(name, flag(value, name)?.into());
        Ok(())
    }

    /// A whole number, whose default 0 stands for.
    fn size(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.set(name, value.into());
        }
    }

    /// # Safety
    /// The pointer is null or valid.
    unsafe fn number(&mut self, name: &str, value: *const f32) -> Result<()> {
        // SAFETY: the caller's promise.
        if let Some(&value) = unsafe { value.as_ref() } {
            self.set(name, number(value.into(), name)?);
        }
        Ok(())
    }

    /// # Safety
    /// The string is null or valid.
    unsafe fn word(&mut self, name: &str, value: *const c_char) -> Result<()> {
        // SAFETY: the caller's promise.
        if let Some(word) = unsafe { optional_text(value, name) }? {
            self.set(name, word.into());
        }
        Ok(())
    }

    fn choice(&mut self, name: &str, value: u32, words: &[(u32, &str)]) -> Result<()> {
        let word = words.iter().find(|(number, _)| *number == value);
        let (_, word) =
            word.ok_or_else(|| Error::invalid(name, value, format!("one of {words:?}")))?;
        self.set(name, (*word).into());
        Ok(())
    }

    fn activation(&mut self, value: ropeway_activation) -> Result<()> {
        let words = [
            (ROPEWAY_ACTIVATION_NONE, "none"),
            (ROPEWAY_ACTIVATION_RELU, "relu"),
            (ROPEWAY_ACTIVATION_GELU, "gelu"),
            (ROPEWAY_ACTIVATION_GELU_TANH, "gelu_tanh"),
            (ROPEWAY_ACTIVATION_SILU, "silu"),
            (ROPEWAY_ACTIVATION_SWIGLU, "swiglu"),
        ];
        self.choice("activation", value, &words)
    }

    fn out_dtype(&mut self, value: ropeway_dtype) -> Result<()> {
        if value != ROPEWAY_DTYPE_DEFAULT {
            let dtype = dtype(value, "out_dtype")?;
            self.set("out_dtype", dtype.name().into());
        }
        Ok(())
    }

    /// What the three forms of attention share.
    ///
    /// # Safety
    /// The pointers are null or valid.
    unsafe fn softmax(
        &mut self,
        [scale, softcap]: [*const f32; 2],
        window: u64,
        [causal, return_lse]: [u32; 2],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.number("scale", scale)?;
            self.number("softcap", softcap)?;
        }
        self.size("window", window);
        self.flag("causal", causal)?;
        self.flag("return_lse", return_lse)
    }

    /// What `moe_route` and `moe_ffn` share.
    ///
    /// # Safety
    /// The pointer is null or valid.
    unsafe fn routing(
        &mut self,
        scale: *const f32,
        [topk, groups, topk_groups]: [u64; 3],
        score: ropeway_score,
        renormalize: u32,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.number("scale", scale) }?;
        self.size("topk", topk);
        self.size("groups", groups);
        self.size("topk_groups", topk_groups);
        let scores = [
            (ROPEWAY_SCORE_SOFTMAX, "softmax"),
            (ROPEWAY_SCORE_SIGMOID, "sigmoid"),
        ];
        self.choice("score", score, &scores)?;
        self.flag("renormalize", renormalize)
    }
}

impl Descriptor for ropeway_gemm {
    const OP: &'static str = "gemm";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[
                ("a", self.a),
                ("b", self.b),
                ("c", self.c),
                ("bias", self.bias),
            ])?;
            request.tensors(&[("a_scale", self.a_scale), ("b_scale", self.b_scale)])?;
            request.number("alpha", self.alpha)?;
            request.number("beta", self.beta)?;
            request.word("b_format", self.b_format)?;
        }
        request.flag("trans_a", self.trans_a)?;
        request.flag("trans_b", self.trans_b)?;
        request.activation(self.activation)?;
        request.out_dtype(self.out_dtype)
    }
}

impl Descriptor for ropeway_grouped_gemm {
    const OP: &'static str = "grouped_gemm";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[
                ("a", self.a),
                ("b", self.b),
                ("expert_offsets", self.expert_offsets),
            ])?;
            request.tensors(&[("a_scale", self.a_scale), ("b_scale", self.b_scale)])?;
            request.word("b_format", self.b_format)?;
        }
        request.activation(self.activation)?;
        request.out_dtype(self.out_dtype)
    }
}

impl Descriptor for ropeway_grouped_gemm_masked {
    const OP: &'static str = "grouped_gemm_masked";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("a", self.a), ("b", self.b), ("counts", self.counts)])?;
            request.tensors(&[("a_scale", self.a_scale), ("b_scale", self.b_scale)])?;
            request.word("b_format", self.b_format)?;
        }
        request.activation(self.activation)?;
        request.out_dtype(self.out_dtype)
    }
}

impl Descriptor for ropeway_attention {
    const OP: &'static str = "attention";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let flags = [self.causal, self.return_lse];
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("q", self.q), ("k", self.k), ("v", self.v)])?;
            request.tensors(&[("mask", self.mask), ("kv_lens", self.kv_lens)])?;
            request.tensors(&[("sinks", self.sinks), ("alibi_slopes", self.alibi_slopes)])?;
            request.softmax([self.scale, self.softcap], self.window, flags)
        }
    }
}

impl Descriptor for ropeway_attention_varlen {
    const OP: &'static str = "attention_varlen";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let flags = [self.causal, self.return_lse];
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("q", self.q), ("k", self.k), ("v", self.v)])?;
            request.tensors(&[("cu_q", self.cu_q), ("cu_kv", self.cu_kv)])?;
            request.tensors(&[("sinks", self.sinks), ("alibi_slopes", self.alibi_slopes)])?;
            request.softmax([self.scale, self.softcap], self.window, flags)
        }
    }
}

impl Descriptor for ropeway_attention_paged {
    const OP: &'static str = "attention_paged";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let flags = [self.causal, self.return_lse];
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("q", self.q), ("cu_q", self.cu_q)])?;
            request.tensors(&[("k_cache", self.k_cache), ("v_cache", self.v_cache)])?;
            request.tensors(&[("block_table", self.block_table), ("kv_lens", self.kv_lens)])?;
            request.tensors(&[("sinks", self.sinks), ("alibi_slopes", self.alibi_slopes)])?;
            request.softmax([self.scale, self.softcap], self.window, flags)
        }
    }
}

impl Descriptor for ropeway_moe_route {
    const OP: &'static str = "moe_route";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let sizes = [self.topk, self.groups, self.topk_groups];
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("logits", self.logits), ("bias", self.bias)])?;
            request.routing(self.scale, sizes, self.score, self.renormalize)
        }
    }
}

impl Descriptor for ropeway_expert_scatter {
    const OP: &'static str = "expert_scatter";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { request.tensors(&[("x", self.x), ("topk_ids", self.topk_ids)]) }?;
        request.set("experts", self.experts.into());
        Ok(())
    }
}

impl Descriptor for ropeway_expert_gather {
    const OP: &'static str = "expert_gather";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let weights = ("topk_weights", self.topk_weights);
        // SAFETY: the caller's promise.
        unsafe { request.tensors(&[("rows", self.rows), ("source", self.source), weights]) }
    }
}

impl Descriptor for ropeway_moe_ffn {
    const OP: &'static str = "moe_ffn";

    unsafe fn fill(&self, request: &mut Request) -> Result<()> {
        let sizes = [self.topk, self.groups, self.topk_groups];
        // SAFETY: the caller's promise.
        unsafe {
            request.tensors(&[("x", self.x), ("logits", self.logits), ("bias", self.bias)])?;
            request.tensors(&[("w_gate_up", self.w_gate_up), ("w_down", self.w_down)])?;
            request.routing(self.scale, sizes, self.score, self.renormalize)
        }
    }
}

/// The function of the table that plans an op by its struct.
pub(crate) unsafe extern "C" fn plan<D: Descriptor>(
    device: *const ropeway_device,
    op: *const D,
    options: *const ropeway_plan_options,
    out: *mut *mut ropeway_plan,
) -> ropeway_status {
    let make = || {
        let mut request = Request::default();
        // SAFETY: the arguments are what the header asks for.
        unsafe {
            sized::read(op, D::OP)?.fill(&mut request)?;
            Planned::plan(device, D::OP, &request.0, options)
        }
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}
