//! `attention_paged`: prefill and decode over a paged cache of keys and values.

use std::any::Any;

use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Cost, Op, OpKind, Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::Operands;
use ropeway_core::{DType, Error, Result};

use super::{
    Softmax, bytes, check_heads, check_lengths, check_offsets, check_output, check_per_head,
    described, dims, expect, float_operands, output, plan, present, tensor,
};

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
    /// I32 `[batch]`, on the device.
    pub kv_lens: TensorDesc,
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

impl PagedAttention {
    /// Plain attention with contiguous outputs; what else a problem has is filled in and then
    /// [checked](PagedAttention::checked), as for [`Attention`](super::Attention::new).
    ///
    /// # Errors
    /// `InvalidArgument` if `q` has not three or `v_cache` not four dimensions.
    pub fn new(
        q: TensorDesc,
        cu_q: TensorDesc,
        k_cache: TensorDesc,
        v_cache: TensorDesc,
        block_table: TensorDesc,
        kv_lens: TensorDesc,
    ) -> Result<PagedAttention> {
        let [tokens, heads, d] = dims("q", &q, "[tokens, heads, d]")?;
        let [_, _, _, dv] = dims("v_cache", &v_cache, "[blocks, block_size, kv_heads, dv]")?;
        Ok(PagedAttention {
            q,
            cu_q,
            k_cache,
            v_cache,
            block_table,
            kv_lens,
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
    pub fn with_lse(mut self) -> Result<PagedAttention> {
        let [tokens, heads, _] = dims("q", &self.q, "[tokens, heads, d]")?;
        self.lse = Some(output("lse", DType::F32, &[tokens, heads])?);
        Ok(self)
    }

    /// The problem, if it is one. A window of `max_blocks` · `block_size` keys or more becomes none.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute, `Unsupported` for F8 operands and for caches in F8 or I8.
    pub fn checked(mut self) -> Result<PagedAttention> {
        let axes = "[blocks, block_size, kv_heads, d]";
        let [tokens, heads, d] = dims("q", &self.q, "[tokens, heads, d]")?;
        let [blocks, block_size, kv_heads, _] = dims("k_cache", &self.k_cache, axes)?;
        let [_, _, _, dv] = dims("v_cache", &self.v_cache, axes)?;
        let mut lack = float_operands(&[("q", self.q)])?;
        let cache = self.k_cache.dtype;
        if matches!(cache, DType::F8E4M3 | DType::F8E5M2 | DType::I8) && cache != self.q.dtype {
            let reason = format!("a cache of keys and values in {cache}: that of q's dtype is");
            lack = Some(Error::unsupported(reason));
        } else if cache != self.q.dtype {
            return Err(Error::invalid("k_cache", cache, self.q.dtype));
        }
        check_heads(heads, kv_heads, d)?;
        if block_size == 0 {
            let expected = "blocks of at least 1 key";
            return Err(Error::invalid("k_cache", "block_size 0", expected));
        }
        let keys = [blocks, block_size, kv_heads, d];
        let values = [blocks, block_size, kv_heads, dv];
        expect("k_cache", &self.k_cache, cache, &keys)?;
        expect("v_cache", &self.v_cache, cache, &values)?;
        let [batch, max_blocks] = dims("block_table", &self.block_table, "[batch, max_blocks]")?;
        expect(
            "block_table",
            &self.block_table,
            DType::I32,
            &[batch, max_blocks],
        )?;
        let Some(kv_len) = max_blocks.checked_mul(block_size) else {
            let found = format!("{max_blocks} blocks of {block_size} keys");
            let expected = "a number of keys that fits 64 bits";
            return Err(Error::invalid("block_table", found, expected));
        };
        let Some(offsets) = batch.checked_add(1) else {
            let expected = "a batch that fits 64 bits";
            return Err(Error::invalid("block_table", batch, expected));
        };
        expect("kv_lens", &self.kv_lens, DType::I32, &[batch])?;
        expect("cu_q", &self.cu_q, DType::I32, &[offsets])?;
        check_per_head(heads, &self.sinks, &self.alibi_slopes)?;
        self.softmax = self.softmax.checked(kv_len)?;
        check_output("o", &self.o, self.q.dtype, &[tokens, heads, dv])?;
        if let Some(lse) = &self.lse {
            check_output("lse", lse, DType::F32, &[tokens, heads])?;
        }
        lack.map_or(Ok(self), Err)
    }

    fn parse(signature: &Signature) -> Result<PagedAttention> {
        signature.only(PagedAttentionKind.inputs())?;
        let [q, cu_q, k_cache, v_cache, block_table, kv_lens] =
            ["q", "cu_q", "k_cache", "v_cache", "block_table", "kv_lens"]
                .map(|name| signature.required(name));
        let mut op = PagedAttention {
            sinks: signature.optional("sinks"),
            alibi_slopes: signature.optional("alibi_slopes"),
            ..PagedAttention::new(q?, cu_q?, k_cache?, v_cache?, block_table?, kv_lens?)?
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

    /// Sequences, empty ones among them.
    pub fn batch(&self) -> u64 {
        self.block_table.shape()[0]
    }

    /// Query heads.
    pub fn heads(&self) -> u64 {
        self.q.shape()[1]
    }

    /// Key and value heads; `heads` is a multiple of them (both may be 0).
    pub fn kv_heads(&self) -> u64 {
        self.k_cache.shape()[2]
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> u64 {
        self.k_cache.shape()[0]
    }

    /// Keys a block; at least 1.
    pub fn block_size(&self) -> u64 {
        self.k_cache.shape()[1]
    }

    /// Blocks that a sequence can have.
    pub fn max_blocks(&self) -> u64 {
        self.block_table.shape()[1]
    }

    /// Keys that a sequence can have: `max_blocks` · `block_size`.
    pub fn max_kv_len(&self) -> u64 {
        self.max_blocks() * self.block_size()
    }

    /// Size of a query and a key; at least 1.
    pub fn d(&self) -> u64 {
        self.q.shape()[2]
    }

    /// Size of a value; may be 0.
    pub fn dv(&self) -> u64 {
        self.v_cache.shape()[3]
    }

    /// Work if every sequence has as many queries as the others and all the keys it can have, since only the device
    /// knows their lengths.
    fn work(&self) -> Cost {
        let sequences = self.batch().max(1);
        let q_len = self.tokens().div_ceil(sequences);
        let keys = self.softmax.visible_keys(q_len, self.max_kv_len()) as f64;
        let size = self.k_cache.dtype.size().unwrap_or(1) as f64;
        let row = self.kv_heads() as f64 * (self.d() + self.dv()) as f64 * size;
        let rest = [
            Some(self.q),
            Some(self.cu_q),
            Some(self.block_table),
            Some(self.kv_lens),
            self.sinks,
            self.alibi_slopes,
            Some(self.o),
            self.lse,
        ];
        Cost {
            flops: self.softmax.flops(
                sequences,
                self.heads(),
                q_len,
                self.max_kv_len(),
                self.d(),
                self.dv(),
            ),
            bytes: sequences as f64 * keys * row + rest.iter().flatten().map(bytes).sum::<f64>(),
        }
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

    /// `cu_q` goes from 0 to `tokens` and never descends, `kv_lens` within the blocks there are, and every entry of
    /// `block_table` that `kv_lens` reaches is the number of a block.
    fn check_values(&self, op: &dyn Op, inputs: &Operands) -> Result<()> {
        let op: &PagedAttention = described(op)?;
        let (blocks, block_size) = (op.blocks(), op.block_size());
        check_offsets(inputs, "cu_q", op.tokens())?;
        check_lengths(inputs, op.max_blocks().saturating_mul(block_size))?;
        let table = tensor(inputs, "block_table", 2)?;
        let lengths = tensor(inputs, "kv_lens", 1)?.to_i32()?;
        for (sequence, &len) in (0..op.batch()).zip(&lengths) {
            for entry in 0..(len as u64).div_ceil(block_size.max(1)) {
                let block = table.at(&[sequence, entry]);
                if !(0.0..blocks as f64).contains(&block) {
                    let element = format!("block_table[{sequence}, {entry}]");
                    let expected = format!("a block from 0 to {}", blocks as i64 - 1);
                    let expected = format!("{expected}, as kv_lens[{sequence}] is {len}");
                    return Err(Error::invalid(&element, block, expected));
                }
            }
        }
        Ok(())
    }

    fn kernels(&self) -> &'static [&'static Kernel] {
        super::manifest::KERNELS
    }

    #[cfg(feature = "spec")]
    fn spec(&self) -> &'static dyn ropeway_core::spec::OpSpec {
        &super::reference::PagedAttentionSpec
    }
}
