//! `argsort`: the order of each row's elements.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
#[cfg(feature = "spec")]
use ropeway_core::request::Operands;
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{FLOATS, Problem, check_result, check_tensor, extents, operand, plan};
use crate::operand::output;

/// Which elements come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The least.
    Ascending,
    /// The greatest.
    Descending,
}

/// The indices of each row's elements in order, or of its first `k`. Equal elements (0 and −0 too) come in the order of their indices, NaN
/// comes last.
#[derive(Clone, Debug, PartialEq)]
pub struct Argsort {
    /// [.., n]: F32, F16 or BF16.
    pub x: TensorDesc,
    /// I32 [.., k]
    pub d: TensorDesc,
    /// Which come first.
    pub order: Order,
}

impl Argsort {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<Argsort> {
        check_tensor("x", &self.x, FLOATS)?;
        check_tensor("d", &self.d, &[DType::I32])?;
        let (n, k) = (extents(&self.x)[0], extents(&self.d)[0]);
        if n > i32::MAX as u64 {
            return Err(Error::invalid(
                "x",
                format!("{n} columns"),
                "as many as I32 can number",
            ));
        }
        if k > n {
            return Err(Error::invalid("k", k, format!("at most the {n} columns")));
        }
        check_result("d", &self.d, &Argsort::shape(&self.x, k), &[DType::I32])?;
        Ok(self)
    }

    /// Elements of a row that are asked for.
    pub fn k(&self) -> u64 {
        extents(&self.d)[0]
    }

    fn shape(x: &TensorDesc, k: u64) -> Vec<u64> {
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = k;
        }
        shape
    }
}

impl Problem for Argsort {
    fn parse(signature: &Signature) -> Result<Argsort> {
        let x = signature.required("x")?;
        let mut attrs = signature.attrs();
        let orders = [("asc", Order::Ascending), ("desc", Order::Descending)];
        let order = attrs.choice("order", Order::Ascending, &orders)?;
        let k = attrs.size("k", extents(&x)[0])?;
        attrs.finish()?;
        let d = output("d", DType::I32, &Argsort::shape(&x, k))?;
        Argsort { x, d, order }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![operand("x", self.x, false), operand("d", self.d, true)]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::argsort(self, request)
    }

    fn operations(&self) -> f64 {
        (extents(&self.x)[0].max(2) as f64).log2()
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        super::reference::argsort(self, inputs)
    }
}
