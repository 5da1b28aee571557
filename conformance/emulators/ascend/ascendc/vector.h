// The vector unit: element by element, on pipe V, in UB. Each function takes either the first `count` elements, or `repeats` of 256 bytes in which
// the first `mask` elements take part and whose blocks of 32 bytes lie strides apart.
//
// The unit has no bfloat16_t arithmetic on this chip: it is a compile error here; Cast to float first. Transcendental functions are computed in f32
// by the host and rounded to the type; the chip's own error, which it does not publish for all, is not modelled.
#pragma once
#include "tensor.h"

namespace AscendC {

struct BinaryRepeatParams {
  ropeway::U8 dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};
struct UnaryRepeatParams {
  ropeway::U16 dstBlkStride = 1, srcBlkStride = 1;
  ropeway::U8 dstRepStride = 8, srcRepStride = 8;
};

}  // namespace AscendC

namespace ropeway {

template <class T> constexpr bool computes = std::is_same<T, half>::value || std::is_same<T, float>::value || std::is_same<T, int16_t>::value || std::is_same<T, int32_t>::value;
template <class T> constexpr bool is_float = std::is_same<T, half>::value || std::is_same<T, float>::value;

// An operand: where it lies, and how far apart its blocks and repeats are, in blocks.
struct Operand {
  Place place;
  uint64_t block_stride = 1, repeat_stride = 8;
};

template <class T> Operand operand(const AscendC::LocalTensor<T> &tensor, uint64_t block_stride = 1, uint64_t repeat_stride = 8) {
  in(tensor, UB, "an operand of the vector unit");
  return {tensor.place, block_stride, repeat_stride};
}

// Calls `compute(dst, sources..., count)` over pieces that lie together: all at once for a count, block by block for repeats.
struct Span {
  uint64_t count = 0, mask = 0, repeats = 0;  // repeats of 0: `count` elements that lie together
};

template <class D, class S, class Compute> void over(Core &core, const Span &span, const Operand &to, const std::vector<Operand> &from, Compute compute) {
  aligned(to.place, 32, "the destination");
  for (const Operand &source : from) aligned(source.place, 32, "a source");
  const uint8_t *pointers[3] = {};
  auto piece = [&](uint64_t repeat, uint64_t block, uint64_t count) {
    for (size_t i = 0; i < from.size(); i++)
      pointers[i] = core.read(from[i].place, (repeat * from[i].repeat_stride + block * from[i].block_stride) * 32, count * sizeof(S));
    uint8_t *result = core.write(to.place, (repeat * to.repeat_stride + block * to.block_stride) * 32, count * sizeof(D));
    compute(reinterpret_cast<D *>(result), reinterpret_cast<const S *>(pointers[0]), reinterpret_cast<const S *>(pointers[1]), count);
  };
  if (!span.repeats) return span.count ? piece(0, 0, span.count) : void();
  constexpr uint64_t OF_A_BLOCK = 32 / sizeof(D);
  core.require(span.mask >= 1 && span.mask <= 256 / sizeof(D), "the mask is not within one repeat of 256 bytes");
  core.require(span.repeats <= 255, "more than 255 repeats");
  for (uint64_t repeat = 0; repeat < span.repeats; repeat++)
    for (uint64_t e = 0; e < span.mask; e += OF_A_BLOCK) piece(repeat, e / OF_A_BLOCK, std::min(OF_A_BLOCK, span.mask - e));
}

// For the cost: repeats of a span, its elements as wide as the widest type that takes part.
inline Work work_of(const char *name, const Span &span, uint64_t element_bytes) {
  return span.repeats ? Work::repeats(span.repeats, Work::slow(name)) : Work::vector(span.count, element_bytes, Work::slow(name));
}

template <class T, class Compute> void binary(const char *name, At at, const Span &span, Operand to, Operand a, Operand b, Compute compute) {
  core().issue(PIPE_V, name, at, work_of(name, span, sizeof(T)), [=, &core = core()] {
    over<T, T>(core, span, to, {a, b}, [&](T *to, const T *a, const T *b, uint64_t count) {
      for (uint64_t i = 0; i < count; i++) to[i] = T(compute(a[i], b[i]));
    });
  });
}
template <class T, class Compute> void unary(const char *name, At at, const Span &span, Operand to, Operand a, Compute compute) {
  core().issue(PIPE_V, name, at, work_of(name, span, sizeof(T)), [=, &core = core()] {
    over<T, T>(core, span, to, {a}, [&](T *to, const T *a, const T *, uint64_t count) {
      for (uint64_t i = 0; i < count; i++) to[i] = T(compute(a[i]));
    });
  });
}

}  // namespace ropeway

namespace AscendC {

#define ROPEWAY_BINARY(NAME, TYPES, EXPRESSION)                                                                                                      \
  template <class T> void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src0, const LocalTensor<T> &src1, int32_t count, ROPEWAY_AT) {       \
    static_assert(ropeway::TYPES<T>, "the vector unit does not compute " #NAME " of this type");                                                     \
    ropeway::binary<T>(#NAME, at, {uint64_t(count)}, ropeway::operand(dst), ropeway::operand(src0), ropeway::operand(src1), [](T a, T b) { return EXPRESSION; }); \
  }                                                                                                                                                  \
  template <class T>                                                                                                                                 \
  void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src0, const LocalTensor<T> &src1, uint64_t mask, uint8_t repeats, const BinaryRepeatParams &p, ROPEWAY_AT) { \
    static_assert(ropeway::TYPES<T>, "the vector unit does not compute " #NAME " of this type");                                                     \
    if (repeats)                                                                                                                                     \
      ropeway::binary<T>(#NAME, at, {0, mask, repeats}, ropeway::operand(dst, p.dstBlkStride, p.dstRepStride),                                       \
                         ropeway::operand(src0, p.src0BlkStride, p.src0RepStride), ropeway::operand(src1, p.src1BlkStride, p.src1RepStride),         \
                         [](T a, T b) { return EXPRESSION; });                                                                                       \
  }
ROPEWAY_BINARY(Add, computes, a + b)
ROPEWAY_BINARY(Sub, computes, a - b)
ROPEWAY_BINARY(Mul, computes, a * b)
ROPEWAY_BINARY(Div, is_float, a / b)
ROPEWAY_BINARY(Max, computes, a > b ? a : b)
ROPEWAY_BINARY(Min, computes, a < b ? a : b)
#undef ROPEWAY_BINARY

#define ROPEWAY_UNARY(NAME, TYPES, EXPRESSION)                                                                                                       \
  template <class T> void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t count, ROPEWAY_AT) {                                    \
    static_assert(ropeway::TYPES<T>, "the vector unit does not compute " #NAME " of this type");                                                     \
    ropeway::unary<T>(#NAME, at, {uint64_t(count)}, ropeway::operand(dst), ropeway::operand(src), [](T a) { return EXPRESSION; });                   \
  }                                                                                                                                                  \
  template <class T> void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, uint64_t mask, uint8_t repeats, const UnaryRepeatParams &p, ROPEWAY_AT) { \
    static_assert(ropeway::TYPES<T>, "the vector unit does not compute " #NAME " of this type");                                                     \
    if (repeats)                                                                                                                                     \
      ropeway::unary<T>(#NAME, at, {0, mask, repeats}, ropeway::operand(dst, p.dstBlkStride, p.dstRepStride),                                        \
                        ropeway::operand(src, p.srcBlkStride, p.srcRepStride), [](T a) { return EXPRESSION; });                                      \
  }
ROPEWAY_UNARY(Exp, is_float, std::exp(float(a)))
ROPEWAY_UNARY(Ln, is_float, std::log(float(a)))
ROPEWAY_UNARY(Sqrt, is_float, std::sqrt(float(a)))
ROPEWAY_UNARY(Rsqrt, is_float, 1.0f / std::sqrt(float(a)))
ROPEWAY_UNARY(Reciprocal, is_float, 1.0f / float(a))
ROPEWAY_UNARY(Abs, is_float, std::fabs(float(a)))
ROPEWAY_UNARY(Relu, computes, a > T(0) ? a : T(0))
#undef ROPEWAY_UNARY

#define ROPEWAY_SCALAR(NAME, EXPRESSION)                                                                                                             \
  template <class T> void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar, int32_t count, ROPEWAY_AT) {                    \
    static_assert(ropeway::computes<T>, "the vector unit does not compute " #NAME " of this type");                                                  \
    ropeway::unary<T>(#NAME, at, {uint64_t(count)}, ropeway::operand(dst), ropeway::operand(src), [b = scalar](T a) { return EXPRESSION; });         \
  }                                                                                                                                                  \
  template <class T>                                                                                                                                 \
  void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar, uint64_t mask, uint8_t repeats, const UnaryRepeatParams &p, ROPEWAY_AT) { \
    static_assert(ropeway::computes<T>, "the vector unit does not compute " #NAME " of this type");                                                  \
    if (repeats)                                                                                                                                     \
      ropeway::unary<T>(#NAME, at, {0, mask, repeats}, ropeway::operand(dst, p.dstBlkStride, p.dstRepStride),                                        \
                        ropeway::operand(src, p.srcBlkStride, p.srcRepStride), [b = scalar](T a) { return EXPRESSION; });                            \
  }
ROPEWAY_SCALAR(Adds, a + b)
ROPEWAY_SCALAR(Muls, a * b)
ROPEWAY_SCALAR(Maxs, a > b ? a : b)
ROPEWAY_SCALAR(Mins, a < b ? a : b)
#undef ROPEWAY_SCALAR

// dst += src * scalar
template <class T> void Axpy(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar, int32_t count, ROPEWAY_AT) {
  static_assert(ropeway::is_float<T>, "the vector unit does not compute Axpy of this type");
  ropeway::binary<T>("Axpy", at, {uint64_t(count)}, ropeway::operand(dst), ropeway::operand(src), ropeway::operand(dst),
                     [b = scalar](T a, T sum) { return std::fma(float(a), float(b), float(sum)); });
}

template <class T> void Duplicate(const LocalTensor<T> &dst, const T &scalar, int32_t count, ROPEWAY_AT) {
  ropeway::core().issue(PIPE_V, "Duplicate", at, ropeway::Work::vector(count, sizeof(T)), [=, to = ropeway::operand(dst), &core = ropeway::core()] {
    ropeway::over<T, T>(core, {uint64_t(count)}, to, {}, [&](T *to, const T *, const T *, uint64_t n) { std::fill(to, to + n, scalar); });
  });
}

// first, first + step, first + 2 step, ...
template <class T> void CreateVecIndex(const LocalTensor<T> &dst, const T &first, uint32_t count, ROPEWAY_AT) {
  ropeway::core().issue(PIPE_V, "CreateVecIndex", at, ropeway::Work::vector(count, sizeof(T)), [=, to = ropeway::operand(dst), &core = ropeway::core()] {
    ropeway::over<T, T>(core, {uint64_t(count)}, to, {}, [&](T *to, const T *, const T *, uint64_t n) {
      for (uint64_t i = 0; i < n; i++) to[i] = T(first + T(float(i)));
    });
  });
}

}  // namespace AscendC
