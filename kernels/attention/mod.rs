//! `softmax(scale · Q Kᵀ + mask) V`: `attention`, `attention_varlen` and `attention_paged`.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::{Error, Result};

#[cfg(feature = "spec")]
mod cases;
mod manifest;
mod native;
mod plan;
#[cfg(feature = "spec")]
mod reference;

/// The ops of this folder.
pub const OPS: &[&dyn OpKind] = &[&AttentionKind, &VarlenAttentionKind, &PagedAttentionKind];

/// What all attention ops share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Factor of q · k; 1/√d by default.
    pub scale: f32,
    /// A query sees no key past its own position; the last query sees the last key.
    pub causal: bool,
    /// With `causal`: how many keys a query sees, its own position included; 0 for all.
    pub window: u64,
    /// Scores become softcap · tanh(score / softcap); 0 for none.
    pub softcap: f32,
}

/// Attention over a rectangular batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// [batch, heads, q_len, d].
    pub q: TensorDesc,
    /// [batch, kv_heads, kv_len, d].
    pub k: TensorDesc,
    /// [batch, kv_heads, kv_len, dv].
    pub v: TensorDesc,
    /// F32, broadcasts to [batch, heads, q_len, kv_len]; added to the scores.
    pub mask: Option<TensorDesc>,
    /// I32 [batch], on the device.
    pub kv_lens: Option<TensorDesc>,
    /// F32 [heads].
    pub sinks: Option<TensorDesc>,
    /// F32 [heads].
    pub alibi_slopes: Option<TensorDesc>,
    /// [batch, heads, q_len, dv].
    pub o: TensorDesc,
    /// F32 [batch, heads, q_len].
    pub lse: Option<TensorDesc>,
    /// Scale, causality, window, cap.
    pub softmax: Softmax,
}

impl Attention {
    fn parse(signature: &Signature) -> Result<Attention> {
        let _ = signature;
        Err(Error::unsupported("attention is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("q", Some(self.q), false),
            present("k", Some(self.k), false),
            present("v", Some(self.v), false),
            present("mask", self.mask, false),
            present("kv_lens", self.kv_lens, false),
            present("sinks", self.sinks, false),
            present("alibi_slopes", self.alibi_slopes, false),
            present("o", Some(self.o), true),
            present("lse", self.lse, true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::attention_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::attention(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `attention` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionKind;

impl OpKind for AttentionKind {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["q", "k", "v", "mask", "kv_lens", "sinks", "alibi_slopes"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(Attention::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::AttentionSpec
    }
}

/// Attention over sequences of different lengths, laid end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct VarlenAttention {
    /// [tokens, heads, d].
    pub q: TensorDesc,
    /// [kv_tokens, kv_heads, d].
    pub k: TensorDesc,
    /// [kv_tokens, kv_heads, dv].
    pub v: TensorDesc,
    /// I32 [batch + 1], on the device.
    pub cu_q: TensorDesc,
    /// I32 [batch + 1], on the device.
    pub cu_kv: TensorDesc,
    /// F32 [heads].
    pub sinks: Option<TensorDesc>,
    /// F32 [heads].
    pub alibi_slopes: Option<TensorDesc>,
    /// [tokens, heads, dv].
    pub o: TensorDesc,
    /// F32 [tokens, heads].
    pub lse: Option<TensorDesc>,
    /// Scale, causality, window, cap.
    pub softmax: Softmax,
}

impl VarlenAttention {
    fn parse(signature: &Signature) -> Result<VarlenAttention> {
        let _ = signature;
        Err(Error::unsupported("attention_varlen is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for VarlenAttention {
    fn name(&self) -> &'static str {
        "attention_varlen"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("q", Some(self.q), false),
            present("k", Some(self.k), false),
            present("v", Some(self.v), false),
            present("cu_q", Some(self.cu_q), false),
            present("cu_kv", Some(self.cu_kv), false),
            present("sinks", self.sinks, false),
            present("alibi_slopes", self.alibi_slopes, false),
            present("o", Some(self.o), true),
            present("lse", self.lse, true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::attention_varlen_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::attention_varlen(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `attention_varlen` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct VarlenAttentionKind;

impl OpKind for VarlenAttentionKind {
    fn name(&self) -> &'static str {
        "attention_varlen"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &["q", "k", "v", "cu_q", "cu_kv", "sinks", "alibi_slopes"]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(VarlenAttention::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::VarlenAttentionSpec
    }
}

/// Attention over a paged cache of keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct PagedAttention {
    /// [tokens, heads, d].
    pub q: TensorDesc,
    /// I32 [batch + 1], on the device.
    pub cu_q: TensorDesc,
    /// [blocks, block_size, kv_heads, d].
    pub k_cache: TensorDesc,
    /// [blocks, block_size, kv_heads, dv].
    pub v_cache: TensorDesc,
    /// I32 [batch, max_blocks], on the device.
    pub block_table: TensorDesc,
    /// I32 [batch], on the device.
    pub kv_lens: TensorDesc,
    /// F32 [heads].
    pub sinks: Option<TensorDesc>,
    /// F32 [heads].
    pub alibi_slopes: Option<TensorDesc>,
    /// [tokens, heads, dv].
    pub o: TensorDesc,
    /// F32 [tokens, heads].
    pub lse: Option<TensorDesc>,
    /// Scale, causality, window, cap.
    pub softmax: Softmax,
}

impl PagedAttention {
    fn parse(signature: &Signature) -> Result<PagedAttention> {
        let _ = signature;
        Err(Error::unsupported("attention_paged is not written yet"))
    }

    fn work(&self) -> Cost {
        Cost::default()
    }
}

impl Op for PagedAttention {
    fn name(&self) -> &'static str {
        "attention_paged"
    }

    fn operands(&self) -> Vec<Operand> {
        [
            present("q", Some(self.q), false),
            present("cu_q", Some(self.cu_q), false),
            present("k_cache", Some(self.k_cache), false),
            present("v_cache", Some(self.v_cache), false),
            present("block_table", Some(self.block_table), false),
            present("kv_lens", Some(self.kv_lens), false),
            present("sinks", self.sinks, false),
            present("alibi_slopes", self.alibi_slopes, false),
            present("o", Some(self.o), true),
            present("lse", self.lse, true),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn candidates(&self, info: &DeviceInfo) -> Result<Vec<&'static Kernel>> {
        plan::attention_paged_candidates(self, info)
    }

    fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::attention_paged(self, request)
    }

    fn cost(&self) -> Cost {
        self.work()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The op `attention_paged` as request files name it.
#[derive(Clone, Copy, Debug)]
pub struct PagedAttentionKind;

impl OpKind for PagedAttentionKind {
    fn name(&self) -> &'static str {
        "attention_paged"
    }

    fn inputs(&self) -> &'static [&'static str] {
        &[
            "q",
            "cu_q",
            "k_cache",
            "v_cache",
            "block_table",
            "kv_lens",
            "sinks",
            "alibi_slopes",
        ]
    }

    fn parse(&self, signature: &Signature) -> Result<Box<dyn Op>> {
        Ok(Box::new(PagedAttention::parse(signature)?))
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::PagedAttentionSpec
    }
}

fn present(name: &'static str, desc: Option<TensorDesc>, output: bool) -> Option<Operand> {
    desc.map(|desc| Operand { name, desc, output })
}
