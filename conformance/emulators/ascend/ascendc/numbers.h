// half and bfloat16_t as the chip holds them: sixteen bits that become a float on reading and are rounded to nearest, ties to even, on writing.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace ropeway {

template <class To, class From> To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float half_to_float(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00) return bits_as<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // The exponent's bias differs by 112; the product also makes subnormal halves normal.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {
  uint32_t bits = bits_as<uint32_t>(value), rest = bits & 0x7fffffffu;
  uint16_t sign = bits >> 16 & 0x8000u;
  if (rest > 0x7f800000u) return sign | 0x7e00;
  if (rest >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
  if (rest < 0x38800000u) return sign | uint16_t(std::nearbyint(bits_as<float>(rest) * 0x1p24f));
  rest += 0xfff + (rest >> 13 & 1);
  return sign | uint16_t((rest - 0x38000000u) >> 13);
}

inline float bfloat_to_float(uint16_t bfloat) { return bits_as<float>(uint32_t(bfloat) << 16); }

inline uint16_t float_to_bfloat(float value) {
  uint32_t bits = bits_as<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace ropeway

struct half {
  uint16_t bits;
  half() = default;
  half(float value) : bits(ropeway::float_to_half(value)) {}
  operator float() const { return ropeway::half_to_float(bits); }
};

struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  bfloat16_t(float value) : bits(ropeway::float_to_bfloat(value)) {}
  operator float() const { return ropeway::bfloat_to_float(bits); }
};

namespace AscendC {

enum class RoundMode { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

}  // namespace AscendC

namespace ropeway {

// The neighbour of a sixteen-bit float in the direction of `up`, by its bits: they count magnitudes.
template <class T> T neighbour(T of, bool up) {
  T to = of;
  if ((of.bits & 0x7fff) == 0) to.bits = up ? 1 : 0x8001;
  else to.bits += ((of.bits & 0x8000) != 0) == up ? -1 : 1;
  return to;
}

// A float rounded to a sixteen-bit format in any of the modes: the nearest, moved by one where the mode asks for the other side.
template <class T> T round_float(float value, AscendC::RoundMode mode) {
  using AscendC::RoundMode;
  T nearest = value;
  float got = nearest;
  if (mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT || got == value || std::isnan(value) || std::isinf(value)) return nearest;
  bool above = got > value;
  T lower = above ? neighbour(nearest, false) : nearest, upper = above ? nearest : neighbour(nearest, true);
  switch (mode) {
    case RoundMode::CAST_FLOOR: return lower;
    case RoundMode::CAST_CEIL: return upper;
    case RoundMode::CAST_TRUNC: return value > 0 ? lower : upper;
    case RoundMode::CAST_ODD: return lower.bits & 1 ? lower : upper;
    default: {  // CAST_ROUND: ties go away from zero
      float to_lower = value - float(lower), to_upper = float(upper) - value;
      return to_lower == to_upper ? (value > 0 ? upper : lower) : nearest;
    }
  }
}

// A float rounded to a whole number in one of the modes.
inline double round_whole(double value, AscendC::RoundMode mode) {
  using AscendC::RoundMode;
  switch (mode) {
    case RoundMode::CAST_FLOOR: return std::floor(value);
    case RoundMode::CAST_CEIL: return std::ceil(value);
    case RoundMode::CAST_TRUNC: return std::trunc(value);
    case RoundMode::CAST_ROUND: return std::round(value);
    default: return std::nearbyint(value);
  }
}

// Whole numbers saturate, as the chip's conversions do; not-a-number becomes zero.
template <class T> T saturate(double value) {
  if (std::isnan(value)) return 0;
  double low = std::is_signed<T>::value ? -std::ldexp(1.0, 8 * sizeof(T) - 1) : 0.0;
  double high = std::ldexp(1.0, int(8 * sizeof(T)) - std::is_signed<T>::value);
  if (value <= low) return T(low);
  return value >= high ? T(high - 1) : T(value);
}

}  // namespace ropeway
