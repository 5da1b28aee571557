// Tensors: an element type and a place in a memory. Nothing here reads memory but GetValue and SetValue, which the scalar unit does.
#pragma once
#include "numbers.h"
#include "core.h"

#define __global__
#define __aicore__
#define __gm__
#define GM_ADDR __gm__ uint8_t *
#define ROPEWAY_AT ropeway::At at = {__builtin_LINE(), __builtin_FILE()}

namespace ropeway {

// A field of an instruction, which holds no more than the chip's own: what does not fit is a fault, where the chip would drop bits.
template <class T, int64_t LOW, int64_t HIGH> class Field {
  T value;

 public:
  Field() = default;
  template <class I, class = std::enable_if_t<std::is_integral<I>::value>> Field(I given) : value(T(given)) {
    if (given != I(value) || int64_t(given) < LOW || int64_t(given) > HIGH) unfit(int64_t(given), LOW, HIGH);
  }
  operator T() const { return value; }
};
using U8 = Field<uint8_t, 0, 255>;
using U16 = Field<uint16_t, 0, 65535>;
using Count4095 = Field<uint16_t, 0, 4095>;

}  // namespace ropeway

namespace AscendC {

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM = VECCALC, TSCM };
using QuePosition = TPosition;

constexpr ropeway::Memory memory_of(TPosition position) {
  switch (position) {
    case TPosition::A1: case TPosition::B1: case TPosition::C1: case TPosition::TSCM: return ropeway::L1;
    case TPosition::A2: return ropeway::L0A;
    case TPosition::B2: return ropeway::L0B;
    case TPosition::C2: return ropeway::BT;
    case TPosition::CO1: return ropeway::L0C;
    case TPosition::VECIN: case TPosition::VECOUT: case TPosition::VECCALC: return ropeway::UB;
    default: return ropeway::GM;
  }
}

template <class T> class LocalTensor {
 public:
  using PrimType = T;
  ropeway::Place place;
  TPosition position = TPosition::VECCALC;
  int buffer = -1;  // of the queue that it came from

  LocalTensor() = default;
  LocalTensor(ropeway::Place place, TPosition position, int buffer = -1) : place(place), position(position), buffer(buffer) {}

  LocalTensor operator[](uint32_t offset) const {
    LocalTensor moved = *this;
    moved.place.address += uint64_t(offset) * sizeof(T);
    return moved;
  }
  template <class U> LocalTensor<U> ReinterpretCast() const { return {place, position, buffer}; }
  uint32_t GetSize() const { return uint32_t((place.limit - place.address) / sizeof(T)); }
  TPosition GetPosition() const { return position; }

  T GetValue(uint32_t index, ROPEWAY_AT) const {
    T value{};
    ropeway::core().get_value(at, place, uint64_t(index) * sizeof(T), &value, sizeof(T));
    return value;
  }
  void SetValue(uint32_t index, T value, ROPEWAY_AT) const {
    ropeway::core().set_value(at, place, uint64_t(index) * sizeof(T), &value, sizeof(T));
  }
};

template <class T> class GlobalTensor {
 public:
  using PrimType = T;
  ropeway::Place place;

  // Without a size (in elements), only the allocation bounds it.
  void SetGlobalBuffer(__gm__ T *buffer, uint64_t size = 0) {
    uint64_t address = reinterpret_cast<uint64_t>(buffer);
    place = {ropeway::GM, address, size ? address + size * sizeof(T) : ~0ull};
  }
  GlobalTensor operator[](uint64_t offset) const {
    GlobalTensor moved = *this;
    moved.place.address += offset * sizeof(T);
    return moved;
  }
  __gm__ T *GetPhyAddr(uint64_t offset = 0) const { return reinterpret_cast<__gm__ T *>(place.address + offset * sizeof(T)); }
  uint64_t GetSize() const { return (place.limit - place.address) / sizeof(T); }

  T GetValue(uint64_t index, ROPEWAY_AT) const {
    T value{};
    ropeway::core().get_value(at, place, uint64_t(index) * sizeof(T), &value, sizeof(T));
    return value;
  }
  void SetValue(uint64_t index, T value, ROPEWAY_AT) const {
    ropeway::core().set_value(at, place, uint64_t(index) * sizeof(T), &value, sizeof(T));
  }
};

}  // namespace AscendC

namespace ropeway {

template <class T> void in(const AscendC::LocalTensor<T> &tensor, Memory memory, const char *what) { in(tensor.place, memory, what); }

}  // namespace ropeway
