//! A matrix product, on the device that is named: `cargo run --release --example gemm -- opencl`.
use ropeway::prelude::*;

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned());
    let session = Session::new(Registry::default().open(&device)?)?;

    // The problem: d [2, 2] = a [2, 3] · b [3, 2].
    let a = HostTensor::from_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    let b = HostTensor::from_f32(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
    let product = gemm::Gemm::builder(a.desc, b.desc).build()?;

    // Planned and compiled once, for any number of rows up to a's, and run as often as one likes.
    let plan = session.plan(&product)?;
    let inputs = [("a".to_owned(), a), ("b".to_owned(), b)].into();
    let bound = session.bind(&product, &plan, &inputs)?;
    bound.enqueue(&**session.queue())?;

    let d = session.read(&bound.operands[2])?;
    assert_eq!(d.to_f64(), [4.0, 5.0, 10.0, 11.0]);
    println!("{:?} on {}", d.to_f64(), session.device().info().name);
    Ok(())
}
