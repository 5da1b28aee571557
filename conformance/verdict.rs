//! What came of a case.

/// What is said of a case that passed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pass {
    /// The kernels that ran; empty for device tests.
    pub plan: String,
    /// The greatest error ÷ bound of all elements; at most 1.
    pub worst_ratio: f64,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Everything held.
    Passed(Pass),
    /// What did not hold.
    Failed(Vec<String>),
    /// It cannot be run here, for this reason.
    Skipped(String),
}
