//! candle with its matrix product replaced: a `CustomOp2` that runs on a device of Ropeway's, with strides and gradients, compared with
//! candle's own product.
//!
//! ```text
//! cd runtime/examples/candle && cargo run --release -- opencl
//! ```
//!
//! candle's tensors stay in host memory here, so each product copies its operands; an engine that keeps weights on the device plans and binds them once,
//! as the example `moe_layer` does.

mod matmul;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use matmul::MatMul;

/// Holds a product to candle's own, element by element. Both may be wrong by what rounding can do to sums of k products in f32 (Higham, Accuracy
/// and Stability of Numerical Algorithms, 3.1), and ours besides by its rounding to the dtype of its result.
fn compare(name: &str, found: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let unit_roundoff = match found.dtype() {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    };
    if found.dtype() != a.dtype() {
        bail!("{name} is {:?}", found.dtype());
    }
    // In f32, since candle's own product takes no bf16 on a cpu; contiguous, since it takes no strides of zero.
    let in_f32 = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
    let (a, b, found) = (in_f32(a)?, in_f32(b)?, in_f32(found)?);
    let expected = a.matmul(&b)?;
    if found.dims() != expected.dims() {
        bail!("{name} has shape {:?}", found.dims());
    }
    let sums = 2.0 * (a.dim(candle_core::D::Minus1)? + 3) as f64 * 2f64.powi(-24);
    let bound = ((a.abs()?.matmul(&b.abs()?)? * sums)? + (expected.abs()? * unit_roundoff)?)?;
    let difference = (found - &expected)?.abs()?;
    let pairs = difference
        .flatten_all()?
        .to_vec1::<f32>()?
        .into_iter()
        .zip(bound.flatten_all()?.to_vec1::<f32>()?);
    let mut worst = 0f32;
    for (difference, bound) in pairs {
        if difference.is_nan() || difference > bound {
            bail!("{name} differs from candle's by {difference:e}, where {bound:e} is the bound");
        }
        if difference > 0.0 {
            worst = worst.max(difference / bound);
        }
    }
    println!(
        "{name:<20} {:?} · {:?}: error ÷ bound {worst:.2}",
        a.dims(),
        b.dims()
    );
    Ok(())
}

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned());
    let matmul = MatMul::on(&device).map_err(candle_core::Error::wrap)?;
    println!("products on {}", matmul.device_name());
    let cpu = Device::Cpu;
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &cpu);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &cpu);

    let (a, b) = (random(&[65, 96])?, random(&[96, 40])?);
    let row = random(&[1, 96])?;
    let narrow = random(&[80, 200])?.narrow(1, 7, 96)?;
    let transposed = random(&[60, 96])?.t()?;
    let batch = (random(&[3, 4, 17, 32])?, random(&[3, 4, 24, 32])?.t()?);
    let heads = random(&[17, 12, 32])?.transpose(0, 1)?;
    let spread = random(&[32, 24])?.broadcast_as((12, 32, 24))?;
    let cases = [
        ("contiguous", &a, &b),
        ("one row", &row, &b),
        ("narrow × transposed", &narrow, &transposed),
        ("batched", &batch.0, &batch.1),
        ("heads × broadcast", &heads, &spread),
        ("no rows", &zeros(&[0, 96])?, &b),
        ("nothing to sum", &zeros(&[5, 0])?, &zeros(&[0, 7])?),
    ];
    for (name, a, b) in cases {
        compare(name, &a.apply_op2(b, matmul.clone())?, a, b)?;
    }
    for (name, dtype) in [("f16", DType::F16), ("bf16", DType::BF16)] {
        let (a, b) = (narrow.to_dtype(dtype)?, transposed.to_dtype(dtype)?.t()?);
        let b = b.contiguous()?.t()?;
        compare(name, &a.apply_op2(&b, matmul.clone())?, &a, &b)?;
    }

    // Of sum(weight · (a · b)): the gradients are products with the weight, of b transposed and of a transposed.
    for (a, b) in [(a, b), batch] {
        let (a, b) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
        let product = a.apply_op2(&b, matmul.clone())?;
        let weight = random(product.dims())?;
        let gradients = (product * &weight)?.sum_all()?.backward()?;
        let (Some(grad_a), Some(grad_b)) = (gradients.get(&a), gradients.get(&b)) else {
            bail!("a gradient is missing");
        };
        compare("gradient of a", grad_a, &weight, &b.t()?)?;
        compare("gradient of b", grad_b, &a.t()?, &weight)?;
    }

    // What it does not take is an error.
    let f64s = Tensor::zeros((4, 4), DType::F64, &cpu)?;
    for (name, a, b) in [
        ("inner sizes", zeros(&[2, 3])?, zeros(&[4, 5])?),
        ("batch sizes", zeros(&[2, 2, 3])?, zeros(&[3, 3, 5])?),
        ("ranks", zeros(&[2, 2, 3])?, zeros(&[3, 5])?),
        ("vectors", zeros(&[3])?, zeros(&[3])?),
        ("f64", f64s.clone(), f64s),
        (
            "two dtypes",
            zeros(&[2, 3])?,
            zeros(&[3, 5])?.to_dtype(DType::F16)?,
        ),
    ] {
        match a.apply_op2(&b, matmul.clone()) {
            Ok(_) => bail!("{name} went through"),
            Err(error) => {
                // Backtraces, where they are on, come after the message.
                let error = error.to_string();
                println!(
                    "{name:<20} refused: {}",
                    error.lines().next().unwrap_or_default()
                );
            }
        }
    }
    Ok(())
}
