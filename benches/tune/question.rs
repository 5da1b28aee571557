//! What a planner asks the tuned tables.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ropeway_core::Result;
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Kernel;
use ropeway_core::op::{Op, PlanRequest, TuneKey, Tuned, Tuning};

/// What a planner asked its tuned look-up.
#[derive(Clone, Debug)]
pub struct Question {
    /// The op.
    pub op: String,
    /// Dtypes and layout.
    pub variant: String,
    /// The sizes.
    pub sizes: Vec<(&'static str, u64)>,
    /// The kernels that can run it, in the planner's order.
    pub candidates: Vec<&'static Kernel>,
}

impl Question {
    /// Whether this is the question that an entry of these words answers at its very sizes.
    pub fn is(&self, op: &str, variant: &str, sizes: &BTreeMap<String, u64>) -> bool {
        self.op == op
            && self.variant == variant
            && self.sizes.len() == sizes.len()
            && self
                .sizes
                .iter()
                .all(|(name, size)| sizes.get(*name) == Some(size))
    }

    /// As a look-up takes it.
    pub fn key(&self) -> TuneKey<'_> {
        TuneKey {
            op: &self.op,
            variant: &self.variant,
            sizes: &self.sizes,
        }
    }
}

/// Knows nothing, and remembers what it was asked.
#[derive(Default)]
struct Listener(Mutex<Vec<Question>>);

impl Tuned for Listener {
    fn config(
        &self,
        key: &TuneKey<'_>,
        _: &DeviceInfo,
        candidates: &[&'static Kernel],
    ) -> Option<Tuning> {
        if let Ok(mut heard) = self.0.lock() {
            heard.push(Question {
                op: key.op.into(),
                variant: key.variant.into(),
                sizes: key.sizes.to_vec(),
                candidates: candidates.to_vec(),
            });
        }
        None
    }
}

/// What the planner of an op asks on a device. An op of several steps asks several times.
///
/// # Errors
/// `Unsupported` if the device cannot run it.
pub fn questions(op: &dyn Op, info: &DeviceInfo) -> Result<Vec<Question>> {
    let listener = Listener::default();
    op.plan(&PlanRequest {
        tuned: &listener,
        ..PlanRequest::new(info)
    })?;
    Ok(listener.0.into_inner().unwrap_or_default())
}
