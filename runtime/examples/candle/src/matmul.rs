//! The op: products that candle's tensors are handed to, and their gradients.

use std::sync::Arc;

use bytemuck::{Pod, cast_slice, cast_slice_mut, zeroed_vec};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use ropeway::prelude as rw;

/// `a [..., m, k] · b [..., k, n]` in F32, F16 or BF16, whatever the operands' strides.
#[derive(Clone)]
pub struct MatMul(Arc<rw::Session>);

impl MatMul {
    /// Products on a device of Ropeway's.
    pub fn on(device: &str) -> rw::Result<MatMul> {
        let device = rw::Registry::default().open(device)?;
        Ok(MatMul(Arc::new(rw::Session::new(device)?)))
    }

    /// What the device calls itself.
    pub fn device_name(&self) -> &str {
        &self.0.device().info().name
    }

    fn run<T: Pod>(
        &self,
        dtype: rw::DType,
        (a, a_layout): (&[T], &Layout),
        (b, b_layout): (&[T], &Layout),
    ) -> rw::Result<(Vec<T>, Vec<usize>)> {
        let queue = self.0.queue();
        let operand = |data: &[T], layout: &Layout| {
            let numbers = |list: &[usize]| list.iter().map(|&n| n as u64).collect::<Vec<_>>();
            let layout_there =
                rw::Layout::strided(&numbers(layout.dims()), &numbers(layout.stride()))?;
            let desc = rw::TensorDesc {
                dtype,
                layout: layout_there,
            };
            // A narrowed tensor is a small window into a storage that may be large.
            let begin = layout.start_offset();
            let window = &data[begin..begin + desc.layout.span() as usize];
            let buffer = self.0.device().alloc(size_of_val(window) as u64)?;
            queue.upload(&buffer.all(), cast_slice(window))?;
            buffer.view(desc, 0)
        };
        let (a, b) = (operand(a, a_layout)?, operand(b, b_layout)?);
        let product = rw::gemm::Gemm::builder(*a.desc(), *b.desc()).build()?;
        // Known products are not planned again.
        let plan = self.0.plan(&product)?;
        let d = self.0.device().alloc(product.d.span_bytes()?)?;
        let operands = [a, b, d.view(product.d, 0)?];
        plan.enqueue(&**queue, &operands, self.0.workspace(&plan)?.as_ref())?;
        let mut result = zeroed_vec(product.d.layout.elements() as usize);
        queue.read_blocking(&d.all(), cast_slice_mut(&mut result))?;
        let shape = product.d.shape().iter().map(|&n| n as usize).collect();
        Ok((result, shape))
    }
}

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        "ropeway-matmul"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use CpuStorage::{BF16, F16, F32};
        // Ropeway would spread one matrix over a batch; the gradient below, like candle's own product, would not.
        let batch = |layout: &Layout| {
            let dims = layout.dims();
            dims.len().checked_sub(2).map(|rank| dims[..rank].to_vec())
        };
        if batch(a_layout).is_none() || batch(a_layout) != batch(b_layout) {
            bail!(
                "ropeway-matmul takes two matrices or batches of one shape, not {:?} · {:?}",
                a_layout.dims(),
                b_layout.dims()
            );
        }
        let (storage, shape) = match (a, b) {
            (F32(a), F32(b)) => self
                .run(rw::DType::F32, (a, a_layout), (b, b_layout))
                .map(|(d, shape)| (F32(d), shape)),
            (F16(a), F16(b)) => self
                .run(rw::DType::F16, (a, a_layout), (b, b_layout))
                .map(|(d, shape)| (F16(d), shape)),
            (BF16(a), BF16(b)) => self
                .run(rw::DType::BF16, (a, a_layout), (b, b_layout))
                .map(|(d, shape)| (BF16(d), shape)),
            _ => bail!("ropeway-matmul takes two tensors of F32, F16 or BF16"),
        }
        .map_err(candle_core::Error::wrap)?;
        Ok((storage, shape.into()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_a = grad.apply_op2(&b.t()?, self.clone())?;
        let grad_b = a.t()?.apply_op2(grad, self.clone())?;
        Ok((Some(grad_a), Some(grad_b)))
    }
}
