//! exp in the vectors of the processor at hand, and what activations are made of it.

/// exp of x within 3 + 2|x| units in the last place, for every x: 0 below the least normal result, infinity above the greatest. NaN stays
/// NaN. It holds no table and no branch, so that loops over it become vectors.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    let t = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = t - 12_582_912.0;
    // ln 2 in two parts, of which the first times n is exact.
    let f = x - n * 0.693_145_75 - n * 1.428_606_8e-6;
    let mut y = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        y = y * f + coefficient;
    }
    let y = y * (f * f) + (f + 1.0);
    // 2^n in two factors, since 2^128 is no f32.
    let n = t.to_bits().wrapping_sub(0x4b40_0000).cast_signed();
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(n.wrapping_add(127).wrapping_shl(23).cast_unsigned());
    let value = y * power(half) * power(n.wrapping_sub(half));
    if x < -87.33 {
        0.0
    } else if x > 88.722_84 {
        f32::INFINITY
    } else {
        value
    }
}

/// x / (1 + exp(-x))
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `to[i] = silu(gate[i]) * up[i]`
///
/// # Panics
/// If the lengths differ.
pub(crate) fn swiglu(gate: &[f32], up: &[f32], to: &mut [f32]) {
    assert!(gate.len() == to.len() && up.len() == to.len());
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((to, gate), up) in to.iter_mut().zip(gate).zip(up) {
                *to = silu(*gate) * up;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every f32 whose upper 20 bits differ: all exponents, both signs.
    #[test]
    fn exp_stays_within_its_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for bits in (0..=u32::MAX).step_by(4093) {
            let x = f32::from_bits(bits);
            let (found, exact) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(found.is_nan());
            } else if exact >= f64::from(f32::MAX) {
                assert!(found >= f32::MAX, "exp({x}) = {found}");
            } else if exact < f64::from(f32::MIN_POSITIVE) * 1.01 {
                assert!(f64::from(found) <= exact * 1.01, "exp({x}) = {found}");
            } else {
                let unit = exact * 2f64.powi(-24);
                let error = (f64::from(found) - exact).abs() / unit;
                let allowed = 3.0 + 2.0 * f64::from(x.abs());
                worst = worst.max(error / allowed);
                assert!(error <= allowed, "exp({x}) = {found}, {exact} exactly");
            }
        }
        assert!(worst > 0.01, "nothing was compared");
    }

    #[test]
    fn swiglu_ends_where_its_formula_does() {
        let gate = [0.0, 1.0, -1.0, 200.0, -200.0, f32::INFINITY, f32::NAN];
        let mut to = [9.0; 7];
        swiglu(&gate, &[2.0; 7], &mut to);
        assert_eq!(to[0], 0.0);
        assert!((to[1] - 2.0 * 0.731_058_6).abs() < 1e-6);
        assert!((to[2] + 2.0 * 0.268_941_43).abs() < 1e-6);
        assert_eq!(to[3..6], [400.0, 0.0, f32::INFINITY]);
        assert!(to[6].is_nan());
    }
}
