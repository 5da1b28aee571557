//! A mixture-of-experts layer as an engine has it: weights that stay on the device, one plan for every number of tokens, buffers, workspace
//! and queue of its own.
//!
//! ```text
//! cargo run --release --example moe_layer -- opencl
//! ```

use std::sync::Arc;

use ropeway::prelude::*;

const MAX_TOKENS: u64 = 64;
const HIDDEN: u64 = 128;
const INTER: u64 = 96;
const EXPERTS: u64 = 16;
const TOPK: u64 = 4;

/// The layer of one model, ready to run: `y = Σ weight · down(silu(gate(x)) · up(x))` over each token's best experts.
struct MoeLayer {
    plan: Arc<Executable>,
    workspace: Option<Slice>,
    w_gate_up: View,
    w_down: View,
    /// Activations for the most tokens.
    x: Buffer,
    logits: Buffer,
    y: Buffer,
    topk_ids: Buffer,
}

fn f32s(shape: &[u64]) -> Result<TensorDesc> {
    TensorDesc::contiguous(DType::F32, shape)
}

impl MoeLayer {
    fn new(session: &Session) -> Result<MoeLayer> {
        let routing = moe::Routing {
            renormalize: true,
            ..moe::Routing::new(TOPK)
        };
        let (x, logits) = (f32s(&[MAX_TOKENS, HIDDEN])?, f32s(&[MAX_TOKENS, EXPERTS])?);
        let w_gate_up = f32s(&[EXPERTS, 2 * INTER, HIDDEN])?;
        let w_down = f32s(&[EXPERTS, HIDDEN, INTER])?;
        let layer = moe::MoeFfn::new(x, logits, w_gate_up, w_down, routing)?.checked()?;

        let plan = session.plan(&layer)?;
        let alloc = |desc: &TensorDesc| session.device().alloc(desc.span_bytes()?);
        let weight = |desc: TensorDesc, seed| {
            let buffer = alloc(&desc)?;
            let values = values(desc.layout.elements(), seed);
            session.queue().upload(&buffer.all(), &values)?;
            buffer.view(desc, 0)
        };
        Ok(MoeLayer {
            workspace: session.workspace(&plan)?,
            w_gate_up: weight(w_gate_up, 1)?,
            w_down: weight(w_down, 2)?,
            x: alloc(&layer.x)?,
            logits: alloc(&layer.logits)?,
            y: alloc(&layer.y)?,
            topk_ids: alloc(&layer.topk_ids)?,
            plan,
        })
    }

    /// Enqueues the layer for as many tokens; plans, compiles and allocates nothing.
    fn enqueue(&self, queue: &dyn Queue, tokens: u64) -> Result<View> {
        let y = self.y.view(f32s(&[tokens, HIDDEN])?, 0)?;
        let ids = TensorDesc::contiguous(DType::I32, &[tokens, TOPK])?;
        let operands = [
            self.x.view(f32s(&[tokens, HIDDEN])?, 0)?,
            self.logits.view(f32s(&[tokens, EXPERTS])?, 0)?,
            self.w_gate_up.clone(),
            self.w_down.clone(),
            y.clone(),
            self.topk_ids.view(ids, 0)?,
        ];
        self.plan
            .enqueue(queue, &operands, self.workspace.as_ref())?;
        Ok(y)
    }
}

fn main() -> Result<()> {
    let device = std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned());
    let session = Session::new(Registry::default().open(&device)?)?;
    let layer = MoeLayer::new(&session)?;
    println!("{}", layer.plan.plan());

    let queue = session.queue();
    queue.upload(&layer.x.all(), &values(MAX_TOKENS * HIDDEN, 3))?;
    queue.upload(&layer.logits.all(), &values(MAX_TOKENS * EXPERTS, 4))?;
    // The same plan for a prompt of 64 tokens and for the first 3 of them.
    let prompt = session
        .read(&layer.enqueue(&**queue, MAX_TOKENS)?)?
        .to_f64();
    let begin = session.read(&layer.enqueue(&**queue, 3)?)?.to_f64();
    queue.synchronize(None)?;

    let differences = prompt.iter().zip(&begin).map(|(a, b)| (a - b).abs());
    let (largest, difference) = (
        begin.iter().fold(0.0, |m: f64, y| m.max(y.abs())),
        differences.fold(0.0, f64::max),
    );
    println!("largest output {largest:.3}, largest difference between the batches {difference:e}");
    // f32 through two products, in whatever order each batch adds up; none where the plan says so.
    let bound = match layer.plan.plan().determinism {
        Determinism::BatchInvariant => 0.0,
        _ => 1e-5 * largest,
    };
    if !(largest > 0.0 && difference <= bound) {
        return Err(Error::new(ErrorKind::Driver, "the batches disagree"));
    }
    Ok(())
}

/// Bytes of f32 values between -1/2 and 1/2, different for each seed.
fn values(count: u64, seed: u64) -> Vec<u8> {
    let value = |index: u64| {
        let bits = (index + (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        bits as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count)
        .flat_map(|index| f32::to_le_bytes(value(index)))
        .collect()
}
