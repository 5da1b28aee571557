//! Integers that are computed from the bound operands: the grids and scalars of a plan.

use std::fmt;
use std::ops::{Add, Mul, Sub};

use crate::memory::View;

/// A 64-bit integer computed from the bound operands at each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// A number.
    Const(i64),
    /// Extent of an operand's axis.
    Extent {
        /// Index into [`Plan::operands`](crate::plan::Plan::operands).
        operand: usize,
        /// Axis, outermost 0.
        axis: usize,
    },
    /// Stride in elements of an operand's axis.
    Stride {
        /// Index into [`Plan::operands`](crate::plan::Plan::operands).
        operand: usize,
        /// Axis, outermost 0.
        axis: usize,
    },
    /// Sum.
    Add(Box<(Expr, Expr)>),
    /// Difference.
    Sub(Box<(Expr, Expr)>),
    /// Product.
    Mul(Box<(Expr, Expr)>),
    /// Quotient, rounded up.
    DivCeil(Box<(Expr, Expr)>),
    /// The smaller.
    Min(Box<(Expr, Expr)>),
    /// The larger.
    Max(Box<(Expr, Expr)>),
}

impl Expr {
    /// Extent of an operand's axis.
    pub fn extent(operand: usize, axis: usize) -> Expr {
        Expr::Extent { operand, axis }
    }

    /// Stride of an operand's axis, in elements.
    pub fn stride(operand: usize, axis: usize) -> Expr {
        Expr::Stride { operand, axis }
    }

    /// This divided by `divisor`, rounded up.
    #[must_use]
    pub fn div_ceil(self, divisor: impl Into<Expr>) -> Expr {
        Expr::DivCeil(Box::new((self, divisor.into())))
    }

    /// The smaller of the two.
    #[must_use]
    pub fn min(self, other: impl Into<Expr>) -> Expr {
        Expr::Min(Box::new((self, other.into())))
    }

    /// The larger of the two.
    #[must_use]
    pub fn max(self, other: impl Into<Expr>) -> Expr {
        Expr::Max(Box::new((self, other.into())))
    }

    /// Its value for these operands. Saturates; allocates nothing.
    pub fn evaluate(&self, operands: &[View]) -> i64 {
        let both = |pair: &(Expr, Expr)| (pair.0.evaluate(operands), pair.1.evaluate(operands));
        match self {
            Expr::Const(value) => *value,
            Expr::Extent { operand, axis } => saturate(operands[*operand].layout().shape()[*axis]),
            Expr::Stride { operand, axis } => {
                saturate(operands[*operand].layout().strides()[*axis])
            }
            Expr::Add(pair) => {
                let (a, b) = both(pair);
                a.saturating_add(b)
            }
            Expr::Sub(pair) => {
                let (a, b) = both(pair);
                a.saturating_sub(b)
            }
            Expr::Mul(pair) => {
                let (a, b) = both(pair);
                a.saturating_mul(b)
            }
            Expr::DivCeil(pair) => {
                let (a, b) = both(pair);
                let b = b.max(1);
                a / b + i64::from(a % b > 0)
            }
            Expr::Min(pair) => {
                let (a, b) = both(pair);
                a.min(b)
            }
            Expr::Max(pair) => {
                let (a, b) = both(pair);
                a.max(b)
            }
        }
    }
}

fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl From<i64> for Expr {
    fn from(value: i64) -> Expr {
        Expr::Const(value)
    }
}

impl From<u64> for Expr {
    fn from(value: u64) -> Expr {
        Expr::Const(saturate(value))
    }
}

impl From<i32> for Expr {
    fn from(value: i32) -> Expr {
        Expr::Const(value.into())
    }
}

impl<T: Into<Expr>> Add<T> for Expr {
    type Output = Expr;
    fn add(self, other: T) -> Expr {
        Expr::Add(Box::new((self, other.into())))
    }
}

impl<T: Into<Expr>> Sub<T> for Expr {
    type Output = Expr;
    fn sub(self, other: T) -> Expr {
        Expr::Sub(Box::new((self, other.into())))
    }
}

impl<T: Into<Expr>> Mul<T> for Expr {
    type Output = Expr;
    fn mul(self, other: T) -> Expr {
        Expr::Mul(Box::new((self, other.into())))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Const(value) => write!(f, "{value}"),
            Expr::Extent { operand, axis } => write!(f, "extent({operand}.{axis})"),
            Expr::Stride { operand, axis } => write!(f, "stride({operand}.{axis})"),
            Expr::Add(pair) => write!(f, "({} + {})", pair.0, pair.1),
            Expr::Sub(pair) => write!(f, "({} - {})", pair.0, pair.1),
            Expr::Mul(pair) => write!(f, "({} * {})", pair.0, pair.1),
            Expr::DivCeil(pair) => write!(f, "ceil({} / {})", pair.0, pair.1),
            Expr::Min(pair) => write!(f, "min({}, {})", pair.0, pair.1),
            Expr::Max(pair) => write!(f, "max({}, {})", pair.0, pair.1),
        }
    }
}
