//! F8_E4M3: values to bytes and back.

use ropeway_core::DType;
use ropeway_core::request::HostTensor;

fn bytes(values: &[f64]) -> Vec<u8> {
    HostTensor::from_f64(DType::F8E4M3, &[values.len() as u64], values)
        .unwrap()
        .to_bytes()
}

/// Every byte but the second NaN comes back.
#[test]
fn numbers_are_what_they_were() {
    let all: Vec<u8> = (0..=255).collect();
    let tensor = HostTensor::new(DType::F8E4M3, &[256], all.clone()).unwrap();
    let values = tensor.to_f64();
    let again = bytes(&values);
    for (byte, (again, value)) in all.iter().zip(again.iter().zip(&values)) {
        match byte & 0x7f {
            0x7f => assert!(value.is_nan() && *again == 0x7f),
            _ => assert_eq!(byte, again, "{value}"),
        }
    }
}

/// OCP 8-bit Floating Point Specification, table 2: the largest number, the smallest normal and subnormal ones.
#[test]
fn published_values() {
    let found = bytes(&[448.0, 2f64.powi(-6), 2f64.powi(-9), 0.0, -0.0, 1.0]);
    assert_eq!(found, [0x7e, 0x08, 0x01, 0x00, 0x80, 0x38]);
}

#[test]
fn ties_go_to_even_and_what_is_too_large_saturates() {
    // 17 lies between 16 and 18, 19 between 18 and 20.
    assert_eq!(bytes(&[17.0, 19.0]), bytes(&[16.0, 20.0]));
    // Half the smallest number, and one and a half of it.
    let least = 2f64.powi(-9);
    assert_eq!(bytes(&[0.5 * least, 1.5 * least]), [0x00, 0x02]);
    // The largest subnormal number rounds up to the smallest normal one.
    assert_eq!(bytes(&[7.5 * least]), [0x08]);
    assert_eq!(bytes(&[1e9, f64::INFINITY, -1e9]), [0x7e, 0x7e, 0xfe]);
}
