// The vector unit's conversions, comparisons, gathers and reductions.
#pragma once
#include "vector.h"

namespace AscendC {

enum class CMPMODE : uint8_t { LT, GT, EQ, LE, GE, NE };
enum class ReduceOrder { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

}  // namespace AscendC

namespace ropeway {

template <class T> constexpr bool is_bfloat = std::is_same<T, bfloat16_t>::value;
template <class T> constexpr bool is_any_float = is_float<T> || is_bfloat<T>;

// The conversions that the unit makes in one step.
template <class To, class From> constexpr bool converts() {
  if (std::is_same<To, float>::value) return is_any_float<From> || std::is_same<From, int32_t>::value || std::is_same<From, int16_t>::value || std::is_same<From, int64_t>::value;
  if (std::is_same<From, float>::value) return is_any_float<To> || std::is_same<To, int32_t>::value || std::is_same<To, int16_t>::value || std::is_same<To, int64_t>::value;
  if (std::is_same<From, half>::value) return std::is_same<To, int32_t>::value || std::is_same<To, int16_t>::value || sizeof(To) == 1;
  if (std::is_same<To, half>::value) return std::is_same<From, int16_t>::value || sizeof(From) == 1;
  if (is_bfloat<From>) return std::is_same<To, int32_t>::value;
  if (std::is_same<From, int32_t>::value) return std::is_same<To, int16_t>::value || std::is_same<To, int64_t>::value;
  return std::is_same<From, int64_t>::value && std::is_same<To, int32_t>::value;
}

// A whole number of up to 64 bits as a float: the nearest, moved by one where the mode asks for the other side.
inline float whole_to_float(int64_t value, AscendC::RoundMode mode) {
  using AscendC::RoundMode;
  float nearest = float(value);
  // Beyond 2^63 there is none but the nearest; where a float is not exact, it is whole.
  if (mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT || nearest >= 0x1p63f || int64_t(nearest) == value) return nearest;
  float lower = int64_t(nearest) > value ? std::nextafter(nearest, -INFINITY) : nearest, upper = int64_t(nearest) > value ? nearest : std::nextafter(nearest, INFINITY);
  switch (mode) {
    case RoundMode::CAST_FLOOR: return lower;
    case RoundMode::CAST_CEIL: return upper;
    case RoundMode::CAST_TRUNC: return value > 0 ? lower : upper;
    case RoundMode::CAST_ODD: return bits_as<uint32_t>(lower) & 1 ? lower : upper;
    default: return value - int64_t(lower) == int64_t(upper) - value ? (value > 0 ? upper : lower) : nearest;
  }
}

template <class To, class From> To convert(From value, AscendC::RoundMode mode) {
  if constexpr (std::is_same<To, half>::value || is_bfloat<To>) return round_float<To>(float(value), mode);
  else if constexpr (std::is_same<To, float>::value && is_any_float<From>) return std::is_same<From, float>::value ? float(round_whole(value, mode)) : float(value);
  else if constexpr (std::is_same<To, float>::value) return whole_to_float(value, mode);
  else if constexpr (is_any_float<From>) return saturate<To>(round_whole(float(value), mode));
  else return saturate<To>(double(value));
}

template <class T> bool compares(T a, T b, AscendC::CMPMODE mode) {
  switch (mode) {
    case AscendC::CMPMODE::LT: return a < b;
    case AscendC::CMPMODE::GT: return a > b;
    case AscendC::CMPMODE::EQ: return a == b;
    case AscendC::CMPMODE::LE: return a <= b;
    case AscendC::CMPMODE::GE: return a >= b;
    default: return a != b;
  }
}

// Whole repeats of 256 bytes only: the chip leaves the rest undone.
template <class T> void whole_repeats(Core &core, uint64_t count) { core.require(count * sizeof(T) % 256 == 0, "Compare of a count that is not whole repeats of 256 bytes"); }

template <class T, class Other> void compare(const char *name, At at, const Place &to, const Place &a, Other other, AscendC::CMPMODE mode, uint64_t count) {
  core().issue(PIPE_V, name, at, Work::vector(count, sizeof(T)), [=, &core = core()] {
    whole_repeats<T>(core, count);
    core.require(is_float<T> || mode == AscendC::CMPMODE::EQ, "32-bit whole numbers are compared for equality only");
    aligned(to, 32, "the destination"), aligned(a, 32, "a source");
    const T *left = reinterpret_cast<const T *>(core.read(a, 0, count * sizeof(T)));
    auto right = other(core);
    uint8_t *bits = core.write(to, 0, count / 8);
    for (uint64_t i = 0; i < count; i++) {
      bool holds = compares<T>(left[i], right(i), mode);
      bits[i / 8] = uint8_t((bits[i / 8] & ~(1 << i % 8)) | holds << i % 8);
    }
  });
}

template <class T, class Other>
void select(At at, const Place &to, const Place &mask, const Place &a, Other other, AscendC::SELMODE mode, uint64_t count) {
  core().issue(PIPE_V, "Select", at, Work::vector(count, sizeof(T)), [=, &core = core()] {
    core.require(mode != AscendC::SELMODE::VSEL_CMPMASK_SPR, "Select in mode 0 is not modelled");
    aligned(to, 32, "the destination"), aligned(mask, 32, "the mask"), aligned(a, 32, "a source");
    const uint8_t *bits = core.read(mask, 0, (count + 7) / 8);
    const T *left = reinterpret_cast<const T *>(core.read(a, 0, count * sizeof(T)));
    auto right = other(core);
    T *result = reinterpret_cast<T *>(core.write(to, 0, count * sizeof(T)));
    for (uint64_t i = 0; i < count; i++) result[i] = bits[i / 8] >> i % 8 & 1 ? left[i] : right(i);
  });
}

// The right operand of a comparison or selection: a scalar, or a tensor read when the instruction runs.
template <class T> auto always(T value) {
  return [value](Core &) { return [value](uint64_t) { return value; }; };
}
template <class T> auto from_tensor(const Place &place, uint64_t count) {
  return [place, count](Core &core) {
    aligned(place, 32, "a source");
    const T *values = reinterpret_cast<const T *>(core.read(place, 0, count * sizeof(T)));
    return [values](uint64_t i) { return values[i]; };
  };
}

// Sums as the unit does: halves of a repeat onto each other.
template <class T> T tree_sum(const T *values, uint64_t count) {
  std::vector<T> left(values, values + count);
  uint64_t size = 1;
  while (size < count) size *= 2;
  left.resize(size, T(0.0f));
  for (size /= 2; size; size /= 2)
    for (uint64_t i = 0; i < size; i++) left[i] = T(left[i] + left[i + size]);
  return left[0];
}
// The first of equal ones.
template <class T> uint64_t best_of(const T *values, uint64_t count, bool largest) {
  uint64_t best = 0;
  for (uint64_t i = 1; i < count; i++)
    if (largest ? values[i] > values[best] : values[i] < values[best]) best = i;
  return best;
}
template <class T> T index_as(uint64_t index) {
  if constexpr (sizeof(T) == 2) return bits_as<T>(uint16_t(index));
  else return bits_as<T>(uint32_t(index));
}

enum class Reduction { Sum, Max, Min };

// All of a tensor to one element (and, of an extreme, its index); `shared` must hold a result, or a value and an index, of each repeat.
template <class T> void reduce(const char *name, At at, Place to, Place from, Place shared, uint64_t count, Reduction kind, bool index) {
  static_assert(is_float<T>, "the vector unit reduces half and float");
  // The results of the repeats are reduced in their turn.
  uint64_t repeats = 0;
  for (uint64_t left = count, of_a_repeat = 256 / sizeof(T); left > 1; left = (left + of_a_repeat - 1) / of_a_repeat) repeats += (left + of_a_repeat - 1) / of_a_repeat;
  core().issue(PIPE_V, name, at, Work::repeats(repeats), [=, &core = core()] {
    constexpr uint64_t REPEAT = 256 / sizeof(T);
    aligned(from, 32, "the source"), aligned(shared, 32, "the shared buffer"), aligned(to, sizeof(T) * (kind == Reduction::Sum ? 1 : 2), "the destination");
    if (!count) return;
    const T *values = reinterpret_cast<const T *>(core.read(from, 0, count * sizeof(T)));
    T value = values[0];
    uint64_t best = 0;
    if (kind == Reduction::Sum) {
      std::vector<T> sums(values, values + count);
      while (sums.size() > 1) {
        std::vector<T> next;
        for (uint64_t i = 0; i < sums.size(); i += REPEAT) next.push_back(tree_sum(&sums[i], std::min<uint64_t>(REPEAT, sums.size() - i)));
        sums = next;
      }
      value = sums[0];
    } else {
      best = best_of(values, count, kind == Reduction::Max);
      value = values[best];
    }
    uint64_t repeats = (count + REPEAT - 1) / REPEAT, of_a_repeat = kind == Reduction::Sum ? 1 : 2;
    std::memset(core.write(shared, 0, (repeats * of_a_repeat * sizeof(T) + 31) / 32 * 32), 0xff, repeats * of_a_repeat * sizeof(T));
    T *result = reinterpret_cast<T *>(core.write(to, 0, sizeof(T) * (index ? 2 : 1)));
    result[0] = value;
    if (index) result[1] = index_as<T>(best);
  });
}

// Each repeat to one element (of an extreme: value and index, or the value alone), `to_stride` results apart.
template <class T> void reduce_repeats(const char *name, At at, Place to, Place from, uint64_t mask, uint64_t repeats, uint64_t to_stride, uint64_t block_stride,
                                       uint64_t repeat_stride, Reduction kind, bool index) {
  static_assert(is_float<T>, "the vector unit reduces half and float");
  core().issue(PIPE_V, name, at, Work::repeats(repeats), [=, &core = core()] {
    constexpr uint64_t OF_A_BLOCK = 32 / sizeof(T);
    aligned(from, 32, "the source"), aligned(to, sizeof(T) * (index ? 2 : 1), "the destination");
    core.require(repeats <= 255, "more than 255 repeats");
    core.require(mask >= 1 && mask <= 256 / sizeof(T), "the mask is not within one repeat of 256 bytes");
    for (uint64_t repeat = 0; repeat < repeats; repeat++) {
      std::vector<T> values;
      for (uint64_t e = 0; e < mask; e += OF_A_BLOCK) {
        uint64_t count = std::min(OF_A_BLOCK, mask - e);
        const T *piece = reinterpret_cast<const T *>(core.read(from, (repeat * repeat_stride + e / OF_A_BLOCK * block_stride) * 32, count * sizeof(T)));
        values.insert(values.end(), piece, piece + count);
      }
      uint64_t wide = index ? 2 : 1;
      T *result = reinterpret_cast<T *>(core.write(to, repeat * to_stride * wide * sizeof(T), wide * sizeof(T)));
      if (kind == Reduction::Sum) {
        result[0] = tree_sum(values.data(), mask);
        continue;
      }
      uint64_t best = best_of(values.data(), mask, kind == Reduction::Max);
      result[0] = values[best];
      if (index) result[1] = index_as<T>(best);
    }
  });
}

}  // namespace ropeway

namespace AscendC {

template <class To, class From> void Cast(const LocalTensor<To> &dst, const LocalTensor<From> &src, const RoundMode &mode, uint32_t count, ROPEWAY_AT) {
  static_assert(ropeway::converts<To, From>(), "the vector unit does not convert between these types in one step");
  ropeway::core().issue(PIPE_V, "Cast", at, ropeway::Work::vector(count, std::max(sizeof(To), sizeof(From))), [=, to = ropeway::operand(dst), from = ropeway::operand(src), &core = ropeway::core()] {
    ropeway::over<To, From>(core, {uint64_t(count)}, to, {from}, [&](To *to, const From *a, const From *, uint64_t n) {
      // In place, a narrower result may overtake what is still to be read.
      std::vector<From> values(a, a + n);
      for (uint64_t i = 0; i < n; i++) to[i] = ropeway::convert<To, From>(values[i], mode);
    });
  });
}

// A bit for each element, from the lowest of each byte.
template <class T, class U> void Compare(const LocalTensor<U> &dst, const LocalTensor<T> &src0, const LocalTensor<T> &src1, CMPMODE mode, uint32_t count, ROPEWAY_AT) {
  static_assert(ropeway::is_float<T> || std::is_same<T, int32_t>::value, "the vector unit does not compare this type");
  ropeway::compare<T>("Compare", at, dst.place, src0.place, ropeway::from_tensor<T>(src1.place, count), mode, count);
}
template <class T, class U> void CompareScalar(const LocalTensor<U> &dst, const LocalTensor<T> &src0, T src1, CMPMODE mode, uint32_t count, ROPEWAY_AT) {
  static_assert(ropeway::is_float<T> || std::is_same<T, int32_t>::value, "the vector unit does not compare this type");
  ropeway::compare<T>("CompareScalar", at, dst.place, src0.place, ropeway::always(src1), mode, count);
}
template <class T, class U> void Select(const LocalTensor<T> &dst, const LocalTensor<U> &mask, const LocalTensor<T> &src0, const LocalTensor<T> &src1, SELMODE mode, uint32_t count, ROPEWAY_AT) {
  static_assert(ropeway::is_float<T>, "the vector unit selects half and float");
  ropeway::select<T>(at, dst.place, mask.place, src0.place, ropeway::from_tensor<T>(src1.place, count), mode, count);
}
template <class T, class U> void Select(const LocalTensor<T> &dst, const LocalTensor<U> &mask, const LocalTensor<T> &src0, T src1, SELMODE mode, uint32_t count, ROPEWAY_AT) {
  static_assert(ropeway::is_float<T>, "the vector unit selects half and float");
  ropeway::select<T>(at, dst.place, mask.place, src0.place, ropeway::always(src1), mode, count);
}

// dst[i] = the element of src that lies base + offsets[i] bytes on.
template <class T> void Gather(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<uint32_t> &offsets, uint32_t base, uint32_t count, ROPEWAY_AT) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "the vector unit gathers 16 and 32 bits");
  ropeway::core().issue(PIPE_V, "Gather", at, ropeway::Work::gather(count), [=, to = ropeway::operand(dst), from = ropeway::operand(src), &core = ropeway::core()] {
    ropeway::over<T, uint32_t>(core, {count}, to, {ropeway::operand(offsets)}, [&](T *to, const uint32_t *offset, const uint32_t *, uint64_t n) {
      for (uint64_t i = 0; i < n; i++) {
        core.require((base + offset[i]) % sizeof(T) == 0, "misaligned: an offset of Gather that is not whole elements");
        std::memcpy(&to[i], core.read(from.place, uint64_t(base) + offset[i], sizeof(T)), sizeof(T));
      }
    });
  });
}

// Each element to a block of 32 bytes of its own: eight elements of src a repeat.
struct BrcbRepeatParams {
  ropeway::U16 dstBlkStride = 1, dstRepStride = 8;
};
template <class T> void Brcb(const LocalTensor<T> &dst, const LocalTensor<T> &src, uint8_t repeats, const BrcbRepeatParams &p, ROPEWAY_AT) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "the vector unit spreads 16 and 32 bits");
  ropeway::core().issue(PIPE_V, "Brcb", at, ropeway::Work::repeats(repeats), [=, to = ropeway::operand(dst), from = ropeway::operand(src), &core = ropeway::core()] {
    ropeway::aligned(to.place, 32, "the destination"), ropeway::aligned(from.place, 32, "the source");
    for (uint64_t i = 0; i < uint64_t(repeats) * 8; i++) {
      T value;
      std::memcpy(&value, core.read(from.place, i * sizeof(T), sizeof(T)), sizeof(T));
      T *block = reinterpret_cast<T *>(core.write(to.place, (i / 8 * p.dstRepStride + i % 8 * p.dstBlkStride) * 32, 32));
      std::fill(block, block + 32 / sizeof(T), value);
    }
  });
}

template <class T> void ReduceSum(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<T> &shared, int32_t count, ROPEWAY_AT) {
  ropeway::reduce<T>("ReduceSum", at, dst.place, src.place, shared.place, count, ropeway::Reduction::Sum, false);
}
template <class T> void ReduceMax(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<T> &shared, int32_t count, bool index = false, ROPEWAY_AT) {
  ropeway::reduce<T>("ReduceMax", at, dst.place, src.place, shared.place, count, ropeway::Reduction::Max, index);
}
template <class T> void ReduceMin(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<T> &shared, int32_t count, bool index = false, ROPEWAY_AT) {
  ropeway::reduce<T>("ReduceMin", at, dst.place, src.place, shared.place, count, ropeway::Reduction::Min, index);
}

template <class T>
void WholeReduceSum(const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t mask, int32_t repeats, int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, ROPEWAY_AT) {
  ropeway::reduce_repeats<T>("WholeReduceSum", at, dst.place, src.place, mask, repeats, dst_stride, block_stride, repeat_stride, ropeway::Reduction::Sum, false);
}

#define ROPEWAY_REDUCE(NAME, KIND)                                                                                                                   \
  template <class T>                                                                                                                                 \
  void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t mask, int32_t repeats, int32_t dst_stride, int32_t block_stride, int32_t repeat_stride, \
            ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, ROPEWAY_AT) {                                                                        \
    bool index = order == ReduceOrder::ORDER_VALUE_INDEX;                                                                                            \
    ropeway::core().require(index || order == ReduceOrder::ORDER_ONLY_VALUE, #NAME " in this order is not modelled");                                \
    ropeway::reduce_repeats<T>(#NAME, at, dst.place, src.place, mask, repeats, dst_stride, block_stride, repeat_stride, ropeway::Reduction::KIND, index); \
  }
ROPEWAY_REDUCE(WholeReduceMax, Max)
ROPEWAY_REDUCE(WholeReduceMin, Min)
#undef ROPEWAY_REDUCE

// The elements of src whose bit in the pattern is 1, side by side; how many they are is known to S when the call returns. A pattern given as a tensor, and the
// counter mode (reduce_mode) with one repeat of `mask` elements, are modelled.
struct GatherMaskParams {
  ropeway::U8 src0BlockStride = 1;
  ropeway::U16 repeatTimes = 0, src0RepeatStride = 0;
  ropeway::U8 src1RepeatStride = 0;
};
template <class T, class U>
void GatherMask(const LocalTensor<T> &dst, const LocalTensor<T> &src0, const LocalTensor<U> &pattern, bool reduce_mode, uint32_t mask, const GatherMaskParams &p,
                uint64_t &count, ROPEWAY_AT) {
  static_assert((sizeof(T) == 2 || sizeof(T) == 4) && sizeof(U) == sizeof(T) && std::is_unsigned<U>::value, "the pattern is whole numbers without a sign, as wide as the elements");
  uint64_t kept = 0;
  bool done = false;
  ropeway::core().issue(PIPE_V, "GatherMask", at, ropeway::Work::vector(mask, sizeof(T)), [=, &kept, &done, to = dst.place, from = src0.place, bits = pattern.place, &core = ropeway::core()] {
    core.require(reduce_mode && p.repeatTimes == 1 && p.src0BlockStride == 1, "GatherMask other than of one repeat in counter mode is not modelled");
    ropeway::aligned(to, 32, "the destination"), ropeway::aligned(from, 32, "the source"), ropeway::aligned(bits, 32, "the pattern");
    done = true;
    if (!mask) return;
    const uint8_t *chosen = core.read(bits, 0, (mask + 7) / 8);
    const T *values = reinterpret_cast<const T *>(core.read(from, 0, mask * sizeof(T)));
    std::vector<T> close;
    for (uint32_t i = 0; i < mask; i++)
      if (chosen[i / 8] >> i % 8 & 1) close.push_back(values[i]);
    kept = close.size();
    if (kept) std::memcpy(core.write(to, 0, kept * sizeof(T)), close.data(), kept * sizeof(T));
  });
  ropeway::core().wait_for(PIPE_V, done, "the number of elements that GatherMask keeps");
  count = kept;
}

}  // namespace AscendC
