//! candle with its matrix product replaced: a `CustomOp2` that runs on a device of Ropeway's, with strides and gradients.
//!
//! ```text
//! cd runtime/examples/candle && cargo run --release -- opencl
//! ```
//!
//! candle's tensors stay in host memory here, so each product copies its operands; an engine that keeps weights on the device plans and binds them once,
//! as the example `moe_layer` does.

use std::sync::Arc;

use bytemuck::{Pod, cast_slice, cast_slice_mut, zeroed_vec};
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, Var, bail};
use ropeway::prelude as rw;

/// `a [..., m, k] · b [..., k, n]` in F32, F16 or BF16, whatever the operands' strides.
#[derive(Clone)]
struct MatMul(Arc<rw::Session>);

impl MatMul {
    fn on(device: &str) -> rw::Result<MatMul> {
        let device = rw::Registry::default().open(device)?;
        Ok(MatMul(Arc::new(rw::Session::new(device)?)))
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

fn in_f32(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(candle_core::DType::F32)
}

/// The largest difference between two tensors.
fn difference(found: &Tensor, expected: &Tensor) -> Result<f32> {
    let difference = (in_f32(found)? - in_f32(expected)?)?.abs()?;
    difference.flatten_all()?.max(0)?.to_scalar()
}

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned());
    let matmul = MatMul::on(&device).map_err(candle_core::Error::wrap)?;
    println!("products on {}", matmul.0.device().info().name);
    let cpu = Device::Cpu;
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &cpu);

    let (a, b) = (random(&[65, 96])?, random(&[96, 40])?);
    let narrow = [
        random(&[80, 200])?.narrow(1, 7, 96)?,
        random(&[60, 96])?.t()?,
    ];
    let batch = [random(&[3, 4, 17, 32])?, random(&[3, 4, 24, 32])?.t()?];
    let mut cases = vec![
        ("contiguous", a.clone(), b.clone(), 5e-4),
        (
            "narrow × transposed",
            narrow[0].clone(),
            narrow[1].clone(),
            5e-4,
        ),
        ("batched", batch[0].clone(), batch[1].clone(), 5e-4),
    ];
    for (name, dtype, bound) in [
        // Half a unit in the last place of results below 64.
        ("f16", candle_core::DType::F16, 1.6e-2),
        ("bf16", candle_core::DType::BF16, 1.26e-1),
    ] {
        cases.push((name, a.to_dtype(dtype)?, b.to_dtype(dtype)?, bound));
    }
    for (name, a, b, bound) in &cases {
        let found = a.apply_op2(b, matmul.clone())?;
        // In f32, since candle's own product takes no bf16 on a cpu.
        let expected = in_f32(a)?.matmul(&in_f32(b)?)?;
        let worst = difference(&found, &expected)?;
        println!(
            "{name:<20} {:?} · {:?}: differs by {worst:e}",
            a.dims(),
            b.dims()
        );
        if found.dtype() != a.dtype() || worst.is_nan() || worst > *bound {
            bail!("{name} is not what candle computes");
        }
    }

    // The gradient of sum((a · b)²) by both.
    let (a, b) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
    let ours = a.apply_op2(&b, matmul)?.sqr()?.sum_all()?.backward()?;
    let candles = a.matmul(&b)?.sqr()?.sum_all()?.backward()?;
    for (name, var) in [("gradient of a", &a), ("gradient of b", &b)] {
        let gradients = [ours.get(var), candles.get(var)];
        let [Some(found), Some(expected)] = gradients else {
            bail!("no {name}");
        };
        let worst = difference(found, expected)?;
        println!("{name:<20} differs by {worst:e}");
        if worst.is_nan() || worst > 1e-2 {
            bail!("{name} is not what candle computes");
        }
    }
    Ok(())
}
