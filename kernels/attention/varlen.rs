//! `attention_varlen`: sequences of different lengths, laid end to end.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::Operands;
use ropeway_core::{DType, Error, Result};

use super::{
    Softmax, bytes, check_heads, check_offsets, check_output, check_per_head, described, dims,
    expect, float_operands, output, plan, present,
};

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
    /// F32 `[heads]`.
    pub sinks: Option<TensorDesc>,
    /// F32 `[heads]`.
    pub alibi_slopes: Option<TensorDesc>,
    /// [tokens, heads, dv].
    pub o: TensorDesc,
    /// F32 [tokens, heads].
    pub lse: Option<TensorDesc>,
    /// Scale, causality, window, cap.
    pub softmax: Softmax,
}

impl VarlenAttention {
    /// Plain attention with contiguous outputs; what else a problem has is filled in and then
    /// [checked](VarlenAttention::checked), as for [`Attention`](super::Attention::new).
    ///
    /// # Errors
    /// `InvalidArgument` if `q` or `v` have not three dimensions.
    pub fn new(
        q: TensorDesc,
        k: TensorDesc,
        v: TensorDesc,
        cu_q: TensorDesc,
        cu_kv: TensorDesc,
    ) -> Result<VarlenAttention> {
        let [tokens, heads, d] = dims("q", &q, "[tokens, heads, d]")?;
        let [_, _, dv] = dims("v", &v, "[kv_tokens, kv_heads, dv]")?;
        Ok(VarlenAttention {
            q,
            k,
            v,
            cu_q,
            cu_kv,
            sinks: None,
            alibi_slopes: None,
            o: output("o", q.dtype, &[tokens, heads, dv])?,
            lse: None,
            softmax: Softmax::new(d.max(1)),
        })
    }

    /// The same with a contiguous `lse`.
    ///
    /// # Errors
    /// `InvalidArgument` if its size overflows.
    pub fn with_lse(mut self) -> Result<VarlenAttention> {
        let [tokens, heads, _] = dims("q", &self.q, "[tokens, heads, d]")?;
        self.lse = Some(output("lse", DType::F32, &[tokens, heads])?);
        Ok(self)
    }

    /// The problem, if it is one. A window of `kv_tokens` keys or more becomes none.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 operands.
    pub fn checked(mut self) -> Result<VarlenAttention> {
        let [tokens, heads, d] = dims("q", &self.q, "[tokens, heads, d]")?;
        let [kv_tokens, kv_heads, _] = dims("k", &self.k, "[kv_tokens, kv_heads, d]")?;
        let [_, _, dv] = dims("v", &self.v, "[kv_tokens, kv_heads, dv]")?;
        let lack = float_operands(&[("q", self.q), ("k", self.k), ("v", self.v)])?;
        check_heads(heads, kv_heads, d)?;
        expect("k", &self.k, self.q.dtype, &[kv_tokens, kv_heads, d])?;
        expect("v", &self.v, self.q.dtype, &[kv_tokens, kv_heads, dv])?;
        let [offsets] = dims("cu_q", &self.cu_q, "[n + 1]")?;
        if offsets == 0 {
            return Err(Error::invalid("cu_q", "shape [0]", "[n + 1]"));
        }
        expect("cu_q", &self.cu_q, DType::I32, &[offsets])?;
        expect("cu_kv", &self.cu_kv, DType::I32, &[offsets])?;
        check_per_head(heads, &self.sinks, &self.alibi_slopes)?;
        self.softmax = self.softmax.checked(kv_tokens)?;
        check_output("o", &self.o, self.q.dtype, &[tokens, heads, dv])?;
        if let Some(lse) = &self.lse {
            check_output("lse", lse, DType::F32, &[tokens, heads])?;
        }
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<VarlenAttention> {
        signature.only(VarlenAttentionKind.inputs())?;
        let [q, k, v, cu_q, cu_kv] =
            ["q", "k", "v", "cu_q", "cu_kv"].map(|name| signature.required(name));
        let mut op = VarlenAttention {
            sinks: signature.optional("sinks"),
            alibi_slopes: signature.optional("alibi_slopes"),
            ..VarlenAttention::new(q?, k?, v?, cu_q?, cu_kv?)?
        };
        let mut attrs = signature.attrs();
        op.softmax = Softmax::read(&mut attrs, op.d())?;
        if attrs.bool("return_lse", false)? {
            op = op.with_lse()?;
        }
        attrs.finish()?;
        op.checked()
    }

    /// Queries of all sequences.
    pub fn tokens(&self) -> u64 {
        self.q.shape()[0]
    }

    /// Keys of all sequences.
    pub fn kv_tokens(&self) -> u64 {
        self.k.shape()[0]
    }

    /// Sequences, empty ones among them.
    pub fn batch(&self) -> u64 {
        self.cu_q.shape()[0] - 1
    }

    /// Query heads.
    pub fn heads(&self) -> u64 {
        self.q.shape()[1]
    }

    /// Key and value heads; `heads` is a multiple of them (both may be 0).
    pub fn kv_heads(&self) -> u64 {
        self.k.shape()[1]
    }

    /// Size of a query and a key; at least 1.
    pub fn d(&self) -> u64 {
        self.q.shape()[2]
    }

    /// Size of a value; may be 0.
    pub fn dv(&self) -> u64 {
        self.v.shape()[2]
    }

    /// Work if the sequences are of one length, since only the device knows their lengths.
    fn work(&self) -> Cost {
        let sequences = self.batch().max(1);
        let q_len = self.tokens().div_ceil(sequences);
        let kv_len = self.kv_tokens().div_ceil(sequences);
        let keys = self.softmax.visible_keys(q_len, kv_len) as f64 / kv_len.max(1) as f64;
        let rest = [
            Some(self.q),
            Some(self.cu_q),
            Some(self.cu_kv),
            self.sinks,
            self.alibi_slopes,
            Some(self.o),
            self.lse,
        ];
        Cost {
            flops: self
                .softmax
                .flops(sequences, self.heads(), q_len, kv_len, self.d(), self.dv()),
            bytes: keys * (bytes(&self.k) + bytes(&self.v))
                + rest.iter().flatten().map(bytes).sum::<f64>(),
        }
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

    /// `cu_q` and `cu_kv` go from 0 to `tokens` and `kv_tokens` and never descend.
    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op: &VarlenAttention = described(op)?;
        check_offsets(inputs, "cu_q", op.tokens())?;
        check_offsets(inputs, "cu_kv", op.kv_tokens())
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::VarlenAttentionSpec
    }
}
