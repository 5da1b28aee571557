//! Integer instructions over the lanes of a warp.

use super::{LANES, Lanes, map1, map2, map3};
use crate::ptx::instruction::{
    AtomicOp, Carry, Integer, Integer1, Integer2, Integer3, PermuteMode, Test,
};

/// An integer type of PTX, as it lies in a register.
trait Int: Copy + Ord {
    const BITS: u32;
    const SIGNED: bool;
    fn of(register: u64) -> Self;
    fn register(self) -> u64;
    fn wide(self) -> i128;
    /// The low bits of a wide value.
    fn low(value: i128) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
}

macro_rules! int {
    ($($ty:ty as $unsigned:ty, $signed:expr;)*) => {$(
        impl Int for $ty {
            const BITS: u32 = <$ty>::BITS;
            const SIGNED: bool = $signed;
            #[inline]
            fn of(register: u64) -> Self {
                register as $ty
            }
            #[inline]
            fn register(self) -> u64 {
                u64::from(self as $unsigned)
            }
            #[inline]
            fn wide(self) -> i128 {
                i128::from(self)
            }
            #[inline]
            fn low(value: i128) -> Self {
                value as $ty
            }
            #[inline]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
        }
    )*};
}

int! {
    u16 as u16, false; i16 as u16, true;
    u32 as u32, false; i32 as u32, true;
    u64 as u64, false; i64 as u64, true;
}

macro_rules! by_type {
    ($ty:expr, $function:ident, $($argument:expr),*) => {
        match $ty {
            Integer::U16 => $function::<u16>($($argument),*),
            Integer::S16 => $function::<i16>($($argument),*),
            Integer::U32 => $function::<u32>($($argument),*),
            Integer::S32 => $function::<i32>($($argument),*),
            Integer::U64 => $function::<u64>($($argument),*),
            Integer::S64 => $function::<i64>($($argument),*),
        }
    };
}

/// Instructions of one source.
pub fn one(op: Integer1, ty: Integer, a: &Lanes) -> Lanes {
    by_type!(ty, one_of, op, a)
}

/// Instructions of two sources.
pub fn two(op: Integer2, ty: Integer, a: &Lanes, b: &Lanes) -> Lanes {
    by_type!(ty, two_of, op, a, b)
}

/// Instructions of three sources.
pub fn three(op: Integer3, ty: Integer, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    by_type!(ty, three_of, op, a, b, c)
}

/// Comparisons: a bit a lane.
pub fn compare(test: Test, ty: Integer, a: &Lanes, b: &Lanes) -> u32 {
    by_type!(ty, compare_of, test, a, b)
}

/// One step of a reduction, or of an atomic operation (`old` with `b`, and `c` to compare and swap).
pub fn combine(op: AtomicOp, ty: Integer, old: u64, b: u64, c: u64) -> u64 {
    by_type!(ty, combine_of, op, old, b, c)
}

fn one_of<T: Int>(op: Integer1, a: &Lanes) -> Lanes {
    let unsigned = |value: u64| value & (u64::MAX >> (64 - T::BITS));
    match op {
        Integer1::Not => map1(a, |a| unsigned(!a)),
        Integer1::Cnot => map1(a, |a| u64::from(unsigned(a) == 0)),
        Integer1::Abs => map1(a, |a| T::low(T::of(a).wide().abs()).register()),
        Integer1::Neg => map1(a, |a| T::low(-T::of(a).wide()).register()),
        Integer1::Popc => map1(a, |a| u64::from(unsigned(a).count_ones())),
        Integer1::Clz => map1(a, |a| {
            u64::from(unsigned(a).leading_zeros() - (64 - T::BITS))
        }),
        Integer1::Brev => map1(a, |a| unsigned(a).reverse_bits() >> (64 - T::BITS)),
        Integer1::Bfind | Integer1::BfindShift => map1(a, |a| {
            // The highest bit that is not the sign; of unsigned values the highest bit set.
            let value = T::of(a).wide();
            let bits = if value < 0 { unsigned(!a) } else { unsigned(a) };
            if bits == 0 {
                return u64::from(u32::MAX);
            }
            let position = 63 - bits.leading_zeros();
            u64::from(if op == Integer1::BfindShift {
                T::BITS - 1 - position
            } else {
                position
            })
        }),
    }
}

fn two_of<T: Int>(op: Integer2, a: &Lanes, b: &Lanes) -> Lanes {
    let both = |f: fn(T, T) -> T| map2(a, b, |a, b| f(T::of(a), T::of(b)).register());
    let clamp = |value: i128| {
        let (least, most) = if T::SIGNED {
            (-(1_i128 << (T::BITS - 1)), (1_i128 << (T::BITS - 1)) - 1)
        } else {
            (0, (1 << T::BITS) - 1)
        };
        T::low(value.clamp(least, most)).register()
    };
    match op {
        Integer2::Add => both(T::add),
        Integer2::Sub => both(T::sub),
        Integer2::MulLow => both(T::mul),
        Integer2::AddSaturate => map2(a, b, |a, b| clamp(T::of(a).wide() + T::of(b).wide())),
        Integer2::SubSaturate => map2(a, b, |a, b| clamp(T::of(a).wide() - T::of(b).wide())),
        Integer2::MulHigh => map2(a, b, |a, b| {
            T::low(product::<T>(a, b) >> T::BITS).register()
        }),
        Integer2::MulWide if T::BITS == 32 => map2(a, b, |a, b| {
            if T::SIGNED {
                (i64::from(a as i32) * i64::from(b as i32)) as u64
            } else {
                u64::from(a as u32) * u64::from(b as u32)
            }
        }),
        Integer2::MulWide => map2(a, b, |a, b| {
            (product::<T>(a, b) as u64) & (u64::MAX >> (64 - (2 * T::BITS).min(64)))
        }),
        Integer2::Mul24Low => map2(a, b, |a, b| product24::<T>(a, b) as u32 as u64),
        Integer2::Mul24High => map2(a, b, |a, b| u64::from((product24::<T>(a, b) >> 16) as u32)),
        // Division by zero gives all ones on GPUs; the ISA leaves it open.
        Integer2::Div => map2(a, b, |a, b| match T::of(b).wide() {
            0 => T::low(-1).register(),
            b => T::low(T::of(a).wide() / b).register(),
        }),
        Integer2::Rem => map2(a, b, |a, b| match T::of(b).wide() {
            0 => T::of(a).register(),
            b => T::low(T::of(a).wide() % b).register(),
        }),
        Integer2::Min => both(T::min),
        Integer2::Max => both(T::max),
        Integer2::And => map2(a, b, |a, b| a & b),
        Integer2::Or => map2(a, b, |a, b| T::of(a | b).register()),
        Integer2::Xor => map2(a, b, |a, b| T::of(a ^ b).register()),
        // Counts beyond the width shift everything out.
        Integer2::Shl => map2(a, b, |a, b| {
            if b as u32 >= T::BITS {
                0
            } else {
                T::of(a << b as u32).register()
            }
        }),
        Integer2::Shr => map2(a, b, |a, b| {
            T::low(T::of(a).wide() >> (b as u32).min(T::BITS)).register()
        }),
        Integer2::BmskClamp | Integer2::BmskWrap => map2(a, b, |a, b| {
            let (start, length) = match op {
                Integer2::BmskWrap => (a as u32 & 31, b as u32 & 31),
                _ => (a as u32, (b as u32).min(32)),
            };
            let mask = ((1_u64 << length) - 1).checked_shl(start).unwrap_or(0);
            u64::from(mask as u32)
        }),
        Integer2::SzextClamp | Integer2::SzextWrap => map2(a, b, |a, b| {
            let bits = match op {
                Integer2::SzextWrap => b as u32 & 31,
                _ => (b as u32).min(32),
            };
            if bits == 0 {
                return 0;
            }
            let shift = 32 - bits;
            let value = (a as u32) << shift;
            u64::from(if T::SIGNED {
                (value as i32 >> shift) as u32
            } else {
                value >> shift
            })
        }),
    }
}

/// The full product; of 64-bit unsigned values as the 128 bits it has.
fn product<T: Int>(a: u64, b: u64) -> i128 {
    if T::SIGNED {
        T::of(a).wide() * T::of(b).wide()
    } else {
        (T::of(a).wide() as u128 * T::of(b).wide() as u128) as i128
    }
}

/// The product of the low 24 bits.
fn product24<T: Int>(a: u64, b: u64) -> i64 {
    let low = |value: u64| {
        if T::SIGNED {
            i64::from((value as i32) << 8 >> 8)
        } else {
            (value & 0xFF_FFFF) as i64
        }
    };
    low(a) * low(b)
}

fn three_of<T: Int>(op: Integer3, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    match op {
        Integer3::MadLow => map3(a, b, c, |a, b, c| {
            T::of(a).mul(T::of(b)).add(T::of(c)).register()
        }),
        Integer3::MadHigh => map3(a, b, c, |a, b, c| {
            T::low(product::<T>(a, b) >> T::BITS)
                .add(T::of(c))
                .register()
        }),
        Integer3::MadHighSaturate => map3(a, b, c, |a, b, c| {
            let sum = (product::<T>(a, b) >> T::BITS) + T::of(c).wide();
            let limit = 1_i128 << (T::BITS - 1);
            T::low(sum.clamp(-limit, limit - 1)).register()
        }),
        Integer3::MadWide => map3(a, b, c, |a, b, c| {
            (product::<T>(a, b) as u64).wrapping_add(c) & (u64::MAX >> (64 - (2 * T::BITS).min(64)))
        }),
        Integer3::Mad24Low => map3(a, b, c, |a, b, c| {
            u64::from((product24::<T>(a, b) as u32).wrapping_add(c as u32))
        }),
        Integer3::Mad24High => map3(a, b, c, |a, b, c| {
            u64::from(((product24::<T>(a, b) >> 16) as u32).wrapping_add(c as u32))
        }),
        Integer3::Sad => map3(a, b, c, |a, b, c| {
            let difference = (T::of(a).wide() - T::of(b).wide()).abs();
            T::low(difference).add(T::of(c)).register()
        }),
        Integer3::Bfe => map3(a, b, c, |a, b, c| extract::<T>(a, b, c)),
        Integer3::Lop3(table) => map3(a, b, c, |a, b, c| {
            u64::from(lop3(table, a as u32, b as u32, c as u32))
        }),
        Integer3::Permute(mode) => map3(a, b, c, |a, b, c| {
            u64::from(permute(mode, a as u32, b as u32, c as u32))
        }),
        Integer3::FunnelLeft { clamp } => map3(a, b, c, |a, b, c| {
            let both = b << 32 | a & 0xFFFF_FFFF;
            (both << funnel(clamp, c)) >> 32
        }),
        Integer3::FunnelRight { clamp } => map3(a, b, c, |a, b, c| {
            let both = b << 32 | a & 0xFFFF_FFFF;
            (both >> funnel(clamp, c)) & 0xFFFF_FFFF
        }),
        Integer3::Dp4a(signed_a, signed_b) => map3(a, b, c, |a, b, c| {
            let sum = (0..4)
                .map(|i| byte(a, i, signed_a) * byte(b, i, signed_b))
                .sum::<i32>();
            u64::from((c as u32).wrapping_add(sum as u32))
        }),
        Integer3::Dp2a(signed_a, signed_b, high) => map3(a, b, c, |a, b, c| {
            let half = |i: u32| {
                let half = (a >> (16 * i)) as u16;
                if signed_a {
                    i64::from(half as i16)
                } else {
                    i64::from(half)
                }
            };
            let first = if high { 2 } else { 0 };
            let sum = half(0) * i64::from(byte(b, first, signed_b))
                + half(1) * i64::from(byte(b, first + 1, signed_b));
            u64::from((c as u32).wrapping_add(sum as u32))
        }),
    }
}

fn byte(value: u64, index: u32, signed: bool) -> i32 {
    let byte = (value >> (8 * index)) as u8;
    if signed {
        i32::from(byte as i8)
    } else {
        i32::from(byte)
    }
}

fn funnel(clamp: bool, count: u64) -> u32 {
    if clamp {
        (count as u32).min(32)
    } else {
        count as u32 & 31
    }
}

fn extract<T: Int>(a: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position as u32 & 0xFF, length as u32 & 0xFF);
    let top = T::BITS - 1;
    let bits = |i: u32| a >> i & 1;
    let sign = if !T::SIGNED || length == 0 {
        0
    } else {
        bits((position + length - 1).min(top))
    };
    let mut value = if sign == 1 { u64::MAX } else { 0 };
    for i in 0..length.min(T::BITS) {
        if position + i <= top {
            value = value & !(1 << i) | bits(position + i) << i;
        }
    }
    T::of(value).register()
}

fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut result = 0;
    for row in 0..8_u32 {
        if table >> row & 1 == 1 {
            let pick = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
            result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    result
}

fn permute(mode: PermuteMode, a: u32, b: u32, c: u32) -> u32 {
    let both = u64::from(b) << 32 | u64::from(a);
    let at = |index: u32| (both >> (8 * (index & 7))) as u8;
    let n = c & 3;
    let pick: [u32; 4] = match mode {
        PermuteMode::Index => {
            let mut result = 0;
            for i in 0..4 {
                let selector = c >> (4 * i) & 0xF;
                let byte = at(selector & 7);
                let byte = if selector & 8 != 0 {
                    (byte as i8 >> 7) as u8
                } else {
                    byte
                };
                result |= u32::from(byte) << (8 * i);
            }
            return result;
        }
        PermuteMode::F4e => [n, n + 1, n + 2, n + 3],
        PermuteMode::B4e => [n, n + 7, n + 6, n + 5],
        PermuteMode::Rc8 => [n; 4],
        PermuteMode::Ecl => [0, n.max(1), n.max(2), 3],
        PermuteMode::Ecr => [0, n.min(1), n.min(2), n],
        PermuteMode::Rc16 => {
            let half = 2 * (n & 1);
            [half, half + 1, half, half + 1]
        }
    };
    u32::from_le_bytes(pick.map(at))
}

/// `bfi`: the low `length` bits of `a` put into `b` at a position.
pub fn insert(wide: bool, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let width = if wide { 64 } else { 32 };
    let (position, length) = (position as u32 & 0xFF, length as u32 & 0xFF);
    let mut value = b;
    for i in 0..length {
        if position + i >= width {
            break;
        }
        value = value & !(1 << (position + i)) | (a >> i.min(63) & 1) << (position + i);
    }
    value
}

/// Additions with carry: results, and the lanes that carry out.
pub fn carry(op: Carry, ty: Integer, carry_in: u32, sources: [&Lanes; 3]) -> (Lanes, u32) {
    let bits = if matches!(ty, Integer::U64 | Integer::S64) {
        64
    } else {
        32
    };
    let signed = matches!(ty, Integer::S32 | Integer::S64);
    let mask = (1_u128 << bits) - 1;
    let [a, b, c] = sources;
    let mut result = [0; LANES];
    let mut carry_out = 0;
    for lane in 0..LANES {
        let incoming = u128::from(carry_in >> lane & 1);
        let (a, b, c) = (
            u128::from(a[lane]) & mask,
            u128::from(b[lane]) & mask,
            u128::from(c[lane]) & mask,
        );
        let product = if signed {
            let signed = |value: u128| (value << (128 - bits)) as i128 >> (128 - bits);
            (signed(a) * signed(b)) as u128
        } else {
            a * b
        };
        let sum = match op {
            Carry::Add => a + b + incoming,
            // The flag of a subtraction is its borrow.
            Carry::Sub => a.wrapping_sub(b).wrapping_sub(incoming) & (mask << 1 | 1),
            Carry::MadLow => (product & mask) + c + incoming,
            Carry::MadHigh => (product >> bits & mask) + c + incoming,
        };
        result[lane] = (sum & mask) as u64;
        carry_out |= u32::from(sum >> bits & 1 == 1) << lane;
    }
    (result, carry_out)
}

fn compare_of<T: Int>(test: Test, a: &Lanes, b: &Lanes) -> u32 {
    let lanes = |f: fn(&T, &T) -> bool| {
        (0..LANES).fold(0, |bits, lane| {
            bits | u32::from(f(&T::of(a[lane]), &T::of(b[lane]))) << lane
        })
    };
    match test {
        Test::Equal | Test::EqualUnordered => lanes(T::eq),
        Test::NotEqual | Test::NotEqualUnordered => lanes(T::ne),
        Test::Less | Test::LessUnordered => lanes(T::lt),
        Test::LessEqual | Test::LessEqualUnordered => lanes(T::le),
        Test::Greater | Test::GreaterUnordered => lanes(T::gt),
        Test::GreaterEqual | Test::GreaterEqualUnordered => lanes(T::ge),
        Test::Numbers => u32::MAX,
        Test::NotNumbers => 0,
    }
}

fn combine_of<T: Int>(op: AtomicOp, old: u64, b: u64, c: u64) -> u64 {
    let (a, x) = (T::of(old), T::of(b));
    match op {
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::Exchange => b,
        AtomicOp::CompareSwap => {
            if a == x {
                c
            } else {
                old
            }
        }
        AtomicOp::Add => a.add(x).register(),
        AtomicOp::Increment => {
            if a >= x {
                0
            } else {
                a.add(T::low(1)).register()
            }
        }
        AtomicOp::Decrement => {
            if a.register() == 0 || a > x {
                b
            } else {
                a.sub(T::low(1)).register()
            }
        }
        AtomicOp::Min => a.min(x).register(),
        AtomicOp::Max => a.max(x).register(),
    }
}
