//! Ropeway: matrix products, attention and mixture-of-experts routing on whatever chip there is.
//!
//! Nothing is needed to build: vendor libraries are loaded at run time, and a device that is missing is a reason and a remedy
//! ([`Registry::probe`]). This is a whole program (`runtime/examples/gemm.rs`); `use ropeway::prelude::*` is all it imports:
//!
//! ```standalone_crate
#![doc = include_str!("../examples/gemm.rs")]
//! ```
//!
//! # From a problem to a result
//!
//! 1. **Open a device** by name with a [`Registry`] (`"cpu"`, `"opencl"`, `"vulkan:1"`, `"cuda"`) and make a [`Session`] on it. A
//!    session is shared between threads.
//! 2. **Describe the problem**: an op of [`kernels`], with the dtype and layout of every operand. Row counts and lengths are the *largest* that will
//!    come. A builder or `checked` names what is wrong with it, before any device is asked.
//! 3. **Plan** ([`Session::plan`]): picks a kernel and a tuned configuration, compiles, keeps both. `println!("{}", executable.plan())` shows them.
//! 4. **Enqueue** ([`Executable::enqueue`](core::plan::Executable::enqueue)) as often as you like, on your own queue, with your own buffers and
//!    workspace, with any smaller row count: this plans nothing, compiles nothing, allocates nothing and waits for nothing. Views are checked on the
//!    host; values on the device (ids, offsets, lengths) are skipped where they are out of range, and the next
//!    [`synchronize`](core::device::Queue::synchronize) reports it.
//! 5. **Read** by [`read_blocking`](core::device::Queue::read_blocking), or [`download`](core::device::Queue::download) into pinned memory beside
//!    other work.
//!
//! | op | what it does | described by |
//! |---|---|---|
//! | `gemm` | `act(alpha · op(a) op(b) + beta · c + bias)` | [`Gemm`](kernels::gemm::Gemm) |
//! | `grouped_gemm`, `grouped_gemm_masked` | a product for each expert | [`GroupedGemm`](kernels::gemm::GroupedGemm), [`MaskedGroupedGemm`](kernels::gemm::MaskedGroupedGemm) |
//! | `attention` | `softmax(scale · q kᵀ + mask) v` in one pass | [`Attention`](kernels::attention::Attention) |
//! | `attention_varlen`, `attention_paged` | the same over packed sequences, over a paged KV cache | [`VarlenAttention`](kernels::attention::VarlenAttention), [`PagedAttention`](kernels::attention::PagedAttention) |
//! | `moe_route`, `expert_scatter`, `expert_gather` | the steps of a mixture of experts | [`MoeRoute`](kernels::moe::MoeRoute), [`ExpertScatter`](kernels::moe::ExpertScatter), [`ExpertGather`](kernels::moe::ExpertGather) |
//! | `moe_ffn` | all of them with the products between | [`MoeFfn`](kernels::moe::MoeFfn) |
//!
//! # More examples
//!
//! - `runtime/examples/moe_layer.rs`: a layer as an engine has it, with weights that stay on the device;
//! - `runtime/examples/minilm`: a whole network, sentence embeddings by all-MiniLM-L6-v2;
//! - `runtime/examples/candle`: candle's matrix product replaced by a `CustomOp`.
//!
//! # Beyond one product
//!
//! - **Graphs.** [`Device::instantiate`](core::device::Device::instantiate) records bound plans,
//!   [`Queue::replay`](core::device::Queue::replay) submits them as one, [`Graph::rebind`](core::device::Graph::rebind) changes operands.
//! - **Your memory, your stream.** [`Device::import_memory`](core::device::Device::import_memory) and
//!   [`import_queue`](core::device::Device::import_queue) take in what an engine has already.
//! - **Weights in the form the kernel likes best.** [`Session::prepare`], [`PlanOptions::prepared`].
//! - **Determinism.** Each plan declares it ([`Determinism`](core::plan::Determinism)); the conformance suite verifies what is declared.
//! - **Errors.** One type, [`Error`](core::Error), whose [`kind`](core::Error::kind) says what a caller can do. Out of memory leaves the device usable.
//! - **Your own driver or op.** [`Registry::add`] takes any [`Driver`](core::device::Driver), [`Session::plan`] any [`Op`](core::op::Op).
#![deny(unsafe_code)]

mod registry;
mod session;
pub mod tuned;

pub use registry::{Probe, Registry, cache_dir};
pub use ropeway_core as core;
pub use ropeway_kernels as kernels;
pub use session::{PlanOptions, Session};
pub use tuned::{TunedEntry, TunedTable, TunedTables, data_dir};

/// What most users need.
pub mod prelude {
    pub use crate::core::device::{Device, Event, Graph, PinnedBuffer, Queue, QueueKind};
    pub use crate::core::memory::{Buffer, Layout, Slice, TensorDesc, View};
    pub use crate::core::op::{Op, OpKind};
    pub use crate::core::plan::{BoundPlan, Determinism, Executable};
    pub use crate::core::request::{HostTensor, Operands};
    pub use crate::core::{DType, Error, ErrorKind, Result};
    pub use crate::kernels::{attention, gemm, moe};
    pub use crate::{PlanOptions, Registry, Session};
}
