//! `get_rows` and `set_rows`: rows out of and into a table, by ids that lie on the device.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::{HostTensor, Operands};
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{FLOATS, Problem, check_result, check_tensor, extents, operand, output_dtype, plan};
use crate::operand::output;

/// `d[.., i, :] = x[.., ids[.., i], :]`
#[derive(Clone, Debug, PartialEq)]
pub struct GetRows {
    /// The table, [.., rows, n] of two to four dimensions: F32, F16 or BF16.
    pub x: TensorDesc,
    /// I32 [.., m]: of one dimension less than `x`, with its leading extents.
    pub ids: TensorDesc,
    /// [.., m, n]. The row of an id that is out of range is zero.
    pub d: TensorDesc,
}

impl GetRows {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<GetRows> {
        check_tensor("x", &self.x, FLOATS)?;
        check_tensor("ids", &self.ids, &[DType::I32])?;
        check_result("d", &self.d, &GetRows::shape(&self.x, &self.ids)?, FLOATS)?;
        numbered("x", extents(&self.x)[1])?;
        Ok(self)
    }

    fn shape(x: &TensorDesc, ids: &TensorDesc) -> Result<Vec<u64>> {
        let rank = x.shape().len();
        if rank < 2 {
            let found = format!("shape {:?}", x.shape());
            return Err(Error::invalid("x", found, "two to four dimensions"));
        }
        let lead = rank - 2;
        if ids.shape().len() != rank - 1 || ids.shape()[..lead] != x.shape()[..lead] {
            let found = format!("shape {:?}", ids.shape());
            let expected = format!(
                "the leading extents {:?} of x, and one more",
                &x.shape()[..lead]
            );
            return Err(Error::invalid("ids", found, expected));
        }
        let mut shape = ids.shape().to_vec();
        shape.push(x.shape()[rank - 1]);
        Ok(shape)
    }
}

/// Rows are numbered by ids.
fn numbered(name: &str, rows: u64) -> Result<()> {
    if rows <= i32::MAX as u64 {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("{rows} rows"),
        "as many as I32 can number",
    ))
}

impl Problem for GetRows {
    fn parse(signature: &Signature) -> Result<GetRows> {
        let [x, ids] = ["x", "ids"].map(|name| signature.required(name));
        let (x, ids) = (x?, ids?);
        let mut attrs = signature.attrs();
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, &GetRows::shape(&x, &ids)?)?;
        GetRows { x, ids, d }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![
            operand("x", self.x, false),
            operand("ids", self.ids, false),
            operand("d", self.d, true),
        ]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::get_rows(self, request)
    }

    fn operations(&self) -> f64 {
        0.0
    }

    /// Every id a row of the table.
    fn values(&self, inputs: &Operands) -> Result<()> {
        let rows = extents(&self.x)[1];
        for (place, id) in ids_of(inputs)?.to_i32()?.into_iter().enumerate() {
            if u64::try_from(id).map_or(true, |id| id >= rows) {
                let expected = format!("a row of the {rows}");
                return Err(Error::invalid(&format!("ids[{place}]"), id, expected));
            }
        }
        Ok(())
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        super::reference::get_rows(self, inputs)
    }
}

/// `d = data`, but `d[.., ids[.., i], :] = x[.., i, :]`
#[derive(Clone, Debug, PartialEq)]
pub struct SetRows {
    /// The rows, [.., m, n] of two to four dimensions: F32, F16 or BF16.
    pub x: TensorDesc,
    /// I32 [.., m], of one dimension less than `x`; its leading extents divide those of `x`, and are repeated. Or, with one more axis of
    /// extent 2, the halves of 64-bit ids, low half first. No id may come twice.
    pub ids: TensorDesc,
    /// What `d` holds before, as F32, F16 or BF16 [.., rows, n]; without it, `d` keeps what it holds in rows that no id names.
    pub data: Option<TensorDesc>,
    /// [.., rows, n]. An id that is out of range sets no row.
    pub d: TensorDesc,
}

impl SetRows {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<SetRows> {
        check_tensor("x", &self.x, FLOATS)?;
        check_tensor("ids", &self.ids, &[DType::I32])?;
        let rank = self.x.shape().len();
        if rank < 2 {
            let found = format!("shape {:?}", self.x.shape());
            return Err(Error::invalid("x", found, "two to four dimensions"));
        }
        let rows = extents(&self.d)[1];
        numbered("d", rows)?;
        check_result("d", &self.d, &SetRows::shape(&self.x, rows), FLOATS)?;
        if let Some(data) = &self.data {
            crate::operand::expect("data", data, self.d.dtype, self.d.shape())?;
        }
        let ids = self.ids.shape();
        let expected = "[.., m] as the rows of x, or [.., m, 2]";
        let fail = || Err(Error::invalid("ids", format!("shape {ids:?}"), expected));
        let ids = match ids {
            _ if ids.len() == rank - 1 => ids,
            [ids @ .., 2] if ids.len() == rank - 1 => ids,
            _ => return fail(),
        };
        let divides = |(&part, &whole): (&u64, &u64)| match part {
            0 => whole == 0,
            part => whole.is_multiple_of(part),
        };
        let fits = ids[rank - 2] == self.x.shape()[rank - 2]
            && ids[..rank - 2].iter().zip(self.x.shape()).all(divides);
        if fits { Ok(self) } else { fail() }
    }

    /// Whether each id has two halves.
    pub(super) fn is_wide(&self) -> bool {
        self.ids.shape().len() == self.x.shape().len()
    }

    fn shape(x: &TensorDesc, rows: u64) -> Vec<u64> {
        let mut shape = x.shape().to_vec();
        if let [.., m, _] = &mut shape[..] {
            *m = rows;
        }
        shape
    }

    /// The ids, in row-major order.
    pub(super) fn ids(&self, inputs: &Operands) -> Result<Vec<i64>> {
        let ids = ids_of(inputs)?.to_i32()?;
        if !self.is_wide() {
            return Ok(ids.into_iter().map(i64::from).collect());
        }
        let wide =
            |halves: &[i32]| i64::from(halves[1]) << 32 | i64::from(halves[0].cast_unsigned());
        Ok(ids.chunks_exact(2).map(wide).collect())
    }
}

fn ids_of(inputs: &Operands) -> Result<&HostTensor> {
    inputs
        .get("ids")
        .ok_or_else(|| Error::invalid("ids", "nothing", "a tensor"))
}

impl Problem for SetRows {
    fn parse(signature: &Signature) -> Result<SetRows> {
        let [x, ids] = ["x", "ids"].map(|name| signature.required(name));
        let (x, ids) = (x?, ids?);
        let data = signature.optional("data");
        let mut attrs = signature.attrs();
        let (rows, dtype) = match &data {
            Some(data) => (extents(data)[1], data.dtype),
            None => (
                attrs.required_size("rows")?,
                output_dtype(&mut attrs, x.dtype, FLOATS)?,
            ),
        };
        attrs.finish()?;
        let d = output("d", dtype, &SetRows::shape(&x, rows))?;
        SetRows { x, ids, data, d }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        let mut tensors = vec![operand("x", self.x, false), operand("ids", self.ids, false)];
        tensors.extend(self.data.map(|data| operand("data", data, false)));
        tensors.push(operand("d", self.d, true));
        tensors
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::set_rows(self, request)
    }

    fn operations(&self) -> f64 {
        0.0
    }

    /// Every id a row of `d`, and no row twice.
    fn values(&self, inputs: &Operands) -> Result<()> {
        let rows = extents(&self.d)[1];
        let m = extents(&self.x)[1].max(1) as usize;
        for (list, ids) in self.ids(inputs)?.chunks(m).enumerate() {
            let mut seen = std::collections::HashSet::new();
            for (place, &id) in ids.iter().enumerate() {
                let element = || format!("ids[{}]", list * m + place);
                if u64::try_from(id).map_or(true, |id| id >= rows) {
                    let expected = format!("a row of the {rows}");
                    return Err(Error::invalid(&element(), id, expected));
                }
                if !seen.insert(id) {
                    return Err(Error::invalid(&element(), id, "each row at most once"));
                }
            }
        }
        Ok(())
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        super::reference::set_rows(self, inputs)
    }
}
