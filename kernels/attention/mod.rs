//! `softmax(scale · Q Kᵀ + mask) V`: `attention`, `attention_varlen` and `attention_paged`.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::{AttrReader, HostTensor, Operands};
use ropeway_core::{DType, Error, Layout, Result};

use crate::operand::{check_output, dims, expect, output};

#[cfg(feature = "spec")]
mod cases;
mod manifest;
mod native;
mod paged;
mod plan;
#[cfg(feature = "spec")]
mod reference;
mod spirv;
#[cfg(all(test, feature = "spec"))]
mod tests;
mod varlen;

pub use paged::{PagedAttention, PagedAttentionKind};
pub use varlen::{VarlenAttention, VarlenAttentionKind};

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

impl Softmax {
    /// Plain attention over heads of size `d`: scale 1/√d, every query sees every key, no cap.
    pub fn new(d: u64) -> Softmax {
        Softmax {
            scale: (1.0 / (d as f64).sqrt()) as f32,
            causal: false,
            window: 0,
            softcap: 0.0,
        }
    }

    fn read(attrs: &mut AttrReader<'_>, d: u64) -> Result<Softmax> {
        Ok(Softmax {
            scale: attrs.float("scale", Softmax::new(d.max(1)).scale)?,
            causal: attrs.bool("causal", false)?,
            window: attrs.size("window", 0)?,
            softcap: attrs.float("softcap", 0.0)?,
        })
    }

    /// Checks it, and turns a window that hides nothing of `kv_len` keys into none.
    fn checked(mut self, kv_len: u64) -> Result<Softmax> {
        if !self.scale.is_finite() {
            return Err(Error::invalid("scale", self.scale, "a finite number"));
        }
        if !self.softcap.is_finite() || self.softcap < 0.0 {
            return Err(Error::invalid(
                "softcap",
                self.softcap,
                "0 (none) or a positive finite number",
            ));
        }
        if self.window > 0 && !self.causal {
            return Err(Error::invalid(
                "window",
                format!("{} without causal", self.window),
                "0, or causal as well",
            ));
        }
        if self.window >= kv_len {
            self.window = 0;
        }
        Ok(self)
    }

    /// How many pairs of query and key see each other, masks aside.
    fn visible_pairs(&self, q_len: u64, kv_len: u64) -> f64 {
        let (queries, keys) = (q_len as f64, kv_len as f64);
        if !self.causal {
            return queries * keys;
        }
        // The last `seeing` queries see keys − seeing + 1, …, keys keys, each at most the window.
        let seeing = queries.min(keys);
        let first = keys - seeing + 1.0;
        let window = if self.window == 0 {
            keys
        } else {
            self.window as f64
        };
        let growing = (window.min(keys) - first + 1.0).max(0.0);
        growing * (2.0 * first + growing - 1.0) / 2.0 + (seeing - growing) * window
    }

    /// How many of the keys any query sees, masks aside.
    fn visible_keys(&self, q_len: u64, kv_len: u64) -> u64 {
        match (q_len, self.window) {
            (0, _) => 0,
            (_, 0) => kv_len,
            (_, window) => kv_len.min((q_len - 1).saturating_add(window)),
        }
    }

    /// Work of `sequences` sequences of this size: two operations for each multiply-add of q · k and p · v.
    fn flops(&self, sequences: u64, heads: u64, q_len: u64, kv_len: u64, d: u64, dv: u64) -> f64 {
        let pairs = self.visible_pairs(q_len, kv_len);
        2.0 * (d as f64 + dv as f64) * pairs * sequences as f64 * heads as f64
    }
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
    /// I32 `[batch]`, on the device.
    pub kv_lens: Option<TensorDesc>,
    /// F32 `[heads]`.
    pub sinks: Option<TensorDesc>,
    /// F32 `[heads]`.
    pub alibi_slopes: Option<TensorDesc>,
    /// [batch, heads, q_len, dv].
    pub o: TensorDesc,
    /// F32 [batch, heads, q_len].
    pub lse: Option<TensorDesc>,
    /// Scale, causality, window, cap.
    pub softmax: Softmax,
}

impl Attention {
    /// Plain attention with contiguous outputs. What else a problem has is filled in and then [checked](Attention::checked):
    ///
    /// ```
    /// # use ropeway_core::{DType, Result, memory::TensorDesc};
    /// # use ropeway_kernels::attention::{Attention, Softmax};
    /// # fn main() -> Result<()> {
    /// let q = TensorDesc::contiguous(DType::F16, &[1, 32, 1, 128])?;
    /// let kv = TensorDesc::contiguous(DType::F16, &[1, 8, 4096, 128])?;
    /// let op = Attention {
    ///     kv_lens: Some(TensorDesc::contiguous(DType::I32, &[1])?),
    ///     softmax: Softmax { causal: true, ..Softmax::new(128) },
    ///     ..Attention::new(q, kv, kv)?
    /// }
    /// .checked()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` if `q` or `v` have not four dimensions.
    pub fn new(q: TensorDesc, k: TensorDesc, v: TensorDesc) -> Result<Attention> {
        let [batch, heads, q_len, d] = dims("q", &q, "[batch, heads, q_len, d]")?;
        let [_, _, _, dv] = dims("v", &v, "[batch, kv_heads, kv_len, dv]")?;
        Ok(Attention {
            q,
            k,
            v,
            mask: None,
            kv_lens: None,
            sinks: None,
            alibi_slopes: None,
            o: output("o", q.dtype, &[batch, heads, q_len, dv])?,
            lse: None,
            softmax: Softmax::new(d.max(1)),
        })
    }

    /// The same with a contiguous `lse`.
    ///
    /// # Errors
    /// `InvalidArgument` if its size overflows.
    pub fn with_lse(mut self) -> Result<Attention> {
        let [batch, heads, q_len, _] = dims("q", &self.q, "[batch, heads, q_len, d]")?;
        self.lse = Some(output("lse", DType::F32, &[batch, heads, q_len])?);
        Ok(self)
    }

    /// The problem, if it is one. A window of `kv_len` keys or more becomes none.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 operands.
    pub fn checked(mut self) -> Result<Attention> {
        let [batch, heads, q_len, d] = dims("q", &self.q, "[batch, heads, q_len, d]")?;
        let [_, kv_heads, kv_len, _] = dims("k", &self.k, "[batch, kv_heads, kv_len, d]")?;
        let [_, _, _, dv] = dims("v", &self.v, "[batch, kv_heads, kv_len, dv]")?;
        let lack = float_operands(&[("q", self.q), ("k", self.k), ("v", self.v)])?;
        check_heads(heads, kv_heads, d)?;
        expect("k", &self.k, self.q.dtype, &[batch, kv_heads, kv_len, d])?;
        expect("v", &self.v, self.q.dtype, &[batch, kv_heads, kv_len, dv])?;
        if let Some(mask) = &self.mask {
            let scores = [batch, heads, q_len, kv_len];
            expect("mask", mask, DType::F32, mask.shape())?;
            mask.layout.broadcast_to(&scores).map_err(|_| {
                let expected = format!("a shape that broadcasts to {scores:?}");
                Error::invalid("mask", format!("shape {:?}", mask.shape()), expected)
            })?;
        }
        if let Some(kv_lens) = &self.kv_lens {
            expect("kv_lens", kv_lens, DType::I32, &[batch])?;
        }
        check_per_head(heads, &self.sinks, &self.alibi_slopes)?;
        self.softmax = self.softmax.checked(kv_len)?;
        check_output("o", &self.o, self.q.dtype, &[batch, heads, q_len, dv])?;
        if let Some(lse) = &self.lse {
            check_output("lse", lse, DType::F32, &[batch, heads, q_len])?;
        }
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<Attention> {
        signature.only(AttentionKind.inputs())?;
        let [q, k, v] = ["q", "k", "v"].map(|name| signature.required(name));
        let mut op = Attention {
            mask: signature.optional("mask"),
            kv_lens: signature.optional("kv_lens"),
            sinks: signature.optional("sinks"),
            alibi_slopes: signature.optional("alibi_slopes"),
            ..Attention::new(q?, k?, v?)?
        };
        let mut attrs = signature.attrs();
        op.softmax = Softmax::read(&mut attrs, op.d())?;
        if attrs.bool("return_lse", false)? {
            op = op.with_lse()?;
        }
        attrs.finish()?;
        op.checked()
    }

    /// Sequences in the batch.
    pub fn batch(&self) -> u64 {
        self.q.shape()[0]
    }

    /// Query heads.
    pub fn heads(&self) -> u64 {
        self.q.shape()[1]
    }

    /// Key and value heads; `heads` is a multiple of them (both may be 0).
    pub fn kv_heads(&self) -> u64 {
        self.k.shape()[1]
    }

    /// Queries a sequence.
    pub fn q_len(&self) -> u64 {
        self.q.shape()[2]
    }

    /// Keys a sequence, present or not.
    pub fn kv_len(&self) -> u64 {
        self.k.shape()[2]
    }

    /// Size of a query and a key; at least 1.
    pub fn d(&self) -> u64 {
        self.q.shape()[3]
    }

    /// Size of a value; may be 0.
    pub fn dv(&self) -> u64 {
        self.v.shape()[3]
    }

    /// The mask seen as [batch, heads, q_len, kv_len], with stride 0 where it broadcasts.
    pub fn mask_layout(&self) -> Option<Layout> {
        let scores = [self.batch(), self.heads(), self.q_len(), self.kv_len()];
        let broadcast = |mask: &TensorDesc| mask.layout.broadcast_to(&scores);
        self.mask
            .as_ref()
            .map(|mask| broadcast(mask).expect("a checked mask broadcasts"))
    }

    fn work(&self) -> Cost {
        let (q_len, kv_len) = (self.q_len(), self.kv_len());
        let keys = self.softmax.visible_keys(q_len, kv_len) as f64 / kv_len.max(1) as f64;
        let rest = [
            Some(self.q),
            self.mask,
            self.kv_lens,
            self.sinks,
            self.alibi_slopes,
            Some(self.o),
            self.lse,
        ];
        Cost {
            flops: self.softmax.flops(
                self.batch(),
                self.heads(),
                q_len,
                kv_len,
                self.d(),
                self.dv(),
            ),
            bytes: keys * (bytes(&self.k) + bytes(&self.v))
                + rest.iter().flatten().map(bytes).sum::<f64>(),
        }
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

    /// `kv_lens` within 0 … kv_len.
    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op: &Attention = described(op)?;
        match op.kv_lens {
            Some(_) => check_lengths(inputs, op.kv_len()),
            None => Ok(()),
        }
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &reference::AttentionSpec
    }
}

fn present(name: &'static str, desc: Option<TensorDesc>, output: bool) -> Option<Operand> {
    desc.map(|desc| Operand { name, desc, output })
}

/// The op that a kind is asked about.
fn described<T: Op>(op: &dyn Op) -> Result<&T> {
    op.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("op", op.name(), "an op of the kind that is asked"))
}

/// Checks that operands are of one float dtype. The answer is what keeps a sound problem from running, if anything does.
fn float_operands(operands: &[(&str, TensorDesc)]) -> Result<Option<Error>> {
    let dtype = operands[0].1.dtype;
    for (name, desc) in operands {
        match desc.dtype {
            found if found != dtype => return Err(Error::invalid(name, found, dtype)),
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => {}
            other => return Err(Error::invalid(name, other, "F32, F16 or BF16")),
        }
        desc.span_bytes().map_err(|e| e.within(name))?;
    }
    let eight_bits = matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
    let lack = || Error::unsupported(format!("attention in {dtype}: F32, F16 and BF16 are"));
    Ok(eight_bits.then(lack))
}

fn check_heads(heads: u64, kv_heads: u64, d: u64) -> Result<()> {
    if d == 0 {
        return Err(Error::invalid("q", "d = 0", "d of at least 1"));
    }
    if heads.checked_rem(kv_heads).unwrap_or(heads) != 0 {
        let found = format!("{heads} heads");
        let expected = format!("a multiple of the {kv_heads} key and value heads");
        return Err(Error::invalid("q", found, expected));
    }
    Ok(())
}

fn check_per_head(
    heads: u64,
    sinks: &Option<TensorDesc>,
    alibi_slopes: &Option<TensorDesc>,
) -> Result<()> {
    for (name, operand) in [("sinks", sinks), ("alibi_slopes", alibi_slopes)] {
        if let Some(desc) = operand {
            expect(name, desc, DType::F32, &[heads])?;
        }
    }
    Ok(())
}

/// Bytes of the different elements of an operand (an axis of stride 0 counts once).
fn bytes(desc: &TensorDesc) -> f64 {
    let extents = desc.shape().iter().zip(desc.layout.strides());
    let different = extents.map(|(&extent, &stride)| match stride {
        0 => extent.min(1) as f64,
        _ => extent as f64,
    });
    different.product::<f64>() * desc.dtype.size().unwrap_or(1) as f64
}

/// An input of `rank` dimensions.
fn tensor<'a>(inputs: &'a Operands, name: &str, rank: usize) -> Result<&'a HostTensor> {
    match inputs.get(name) {
        None => Err(Error::invalid(name, "nothing", "a tensor")),
        Some(tensor) if tensor.shape().len() == rank => Ok(tensor),
        Some(tensor) => {
            let found = format!("shape {:?}", tensor.shape());
            Err(Error::invalid(name, found, format!("{rank} dimensions")))
        }
    }
}

/// Checks that `kv_lens` lies within 0 … `kv_len`.
fn check_lengths(inputs: &Operands, kv_len: u64) -> Result<()> {
    for (sequence, &len) in tensor(inputs, "kv_lens", 1)?.to_i32()?.iter().enumerate() {
        if u64::try_from(len).map_or(true, |len| len > kv_len) {
            let element = format!("kv_lens[{sequence}]");
            return Err(Error::invalid(&element, len, format!("0 to {kv_len}")));
        }
    }
    Ok(())
}

/// Checks that offsets go from 0 to `tokens` and never descend.
fn check_offsets(inputs: &Operands, name: &str, tokens: u64) -> Result<()> {
    let offsets = tensor(inputs, name, 1)?.to_i32()?;
    let mut least = 0;
    for (position, &offset) in offsets.iter().enumerate() {
        let (first, last) = (position == 0, position + 1 == offsets.len());
        let expected = match () {
            () if first && offset != 0 => "0".to_string(),
            () if offset < least => format!("at least the {least} before it"),
            () if last && offset as u64 != tokens => format!("the {tokens} tokens there are"),
            () => {
                least = offset;
                continue;
            }
        };
        let element = format!("{name}[{position}]");
        return Err(Error::invalid(&element, offset, expected));
    }
    Ok(())
}
