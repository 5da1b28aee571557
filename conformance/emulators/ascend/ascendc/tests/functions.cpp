// The vector unit's functions against plain C++: comparisons, selections, gathers, broadcasts, extremes with their places, and conversions in every mode,
// where the expected number is found among all numbers of the format rather than computed.
#include "host.h"

#include <algorithm>
#include <array>
#include <limits>

static const Library &library() {
  static Library built(ASCENDC_FOLDER "/tests/functions.asc", "");
  return built;
}

// Runs a kernel on every seed: it must pass, and `right` must hold of what it left.
template <class... Arguments> static void run(const char *kernel, Device &device, const std::function<bool()> &right, Arguments... arguments) {
  for (uint64_t seed = 0; seed < 3; seed++) {
    int code = library().run(device, kernel, 1, seed, arguments...);
    CHECK(code == 0 && right(), "%s, seed %d: code %d %s", kernel, int(seed), code, device.reported.c_str());
  }
}

template <class T> static bool holds(int mode, T a, T b) {
  return mode == 0 ? a < b : mode == 1 ? a > b : mode == 2 ? a == b : mode == 3 ? a <= b : mode == 4 ? a >= b : a != b;
}

static void comparisons() {
  Device device;
  std::vector<float> x = whole_numbers<float>(256, 1), y = whole_numbers<float>(256, 2);
  x[5] = y[5] = x[9] = NAN, x[77] = INFINITY, y[78] = -INFINITY, x[79] = -0.0f, y[79] = 0.0f;
  uint64_t dx = device.upload(x), dy = device.upload(y), dd = device.allocate(12 * 32);
  auto bits_right = [&] {
    auto bits = device.download<uint8_t>(dd);
    bool right = true;
    for (int mode = 0; mode < 6; mode++)
      for (int i = 0; i < 256; i++) {
        right &= (bits[mode * 32 + i / 8] >> i % 8 & 1) == holds(mode, x[i], y[i]);
        right &= (bits[(6 + mode) * 32 + i / 8] >> i % 8 & 1) == holds(mode, x[i], 1.0f);
      }
    return right;
  };
  run("compare_floats", device, bits_right, dx, dy, dd, 1.0f);

  auto a = whole_numbers<int32_t>(256, 3), b = whole_numbers<int32_t>(256, 4);
  a[0] = b[0] = 0x7fffffff;
  uint64_t da = device.upload(a), db = device.upload(b), de = device.allocate(64);
  auto equal_right = [&] {
    auto bits = device.download<uint8_t>(de);
    bool right = true;
    for (int i = 0; i < 256; i++) right &= (bits[i / 8] >> i % 8 & 1) == (a[i] == b[i]) && (bits[32 + i / 8] >> i % 8 & 1) == (a[i] == 2);
    return right;
  };
  run("compare_whole", device, equal_right, da, db, de, int32_t(2), 2u);
  // The chip compares 32-bit whole numbers for equality only.
  int code = library().run(device, "compare_whole", 1, 0, da, db, de, int32_t(2), 0u);
  CHECK(code == 507035 && device.reported.find("equality only") != std::string::npos, "whole numbers for order: code %d %s", code, device.reported.c_str());
}

static void selections() {
  Device device;
  constexpr uint32_t N = 200;
  auto x = whole_numbers<float>(N, 5), y = whole_numbers<float>(N, 6);
  std::vector<uint8_t> mask(32);
  for (size_t i = 0; i < mask.size(); i++) mask[i] = uint8_t(37 * i + 11);
  uint64_t dm = device.upload(mask), dx = device.upload(x), dy = device.upload(y), dd = device.allocate(2 * N * 4);
  auto right = [&] {
    auto d = device.download<float>(dd);
    bool right = true;
    for (uint32_t i = 0; i < N; i++) {
      bool set = mask[i / 8] >> i % 8 & 1;
      right &= d[i] == (set ? x[i] : y[i]) && d[N + i] == (set ? x[i] : 7.5f);
    }
    return right;
  };
  run("selections", device, right, dm, dx, dy, dd, 7.5f, N);
}

template <class T> static void gathers(const char *kernel) {
  Device device;
  constexpr uint32_t N = 96, BASE = 8 * sizeof(T);
  auto x = whole_numbers<T>(N, 7, 60);
  std::vector<uint32_t> offsets(N);
  for (uint32_t i = 0; i < N; i++) offsets[i] = i * 29 % (N - 8) * sizeof(T);
  uint64_t dx = device.upload(x), doff = device.upload(offsets), dd = device.allocate(N * sizeof(T));
  auto right = [&] {
    auto d = device.download<T>(dd);
    bool right = true;
    for (uint32_t i = 0; i < N; i++) right &= float(d[i]) == float(x[8 + i * 29 % (N - 8)]);
    return right;
  };
  run(kernel, device, right, dx, doff, dd, BASE, N);
  offsets[3] = 1;
  uint64_t odd = device.upload(offsets);
  CHECK(library().run(device, kernel, 1, 0, dx, odd, dd, BASE, N) == 507035 && device.reported.find("misaligned") != std::string::npos, "%s at half an element: %s", kernel,
        device.reported.c_str());
  offsets[3] = N * sizeof(T);
  uint64_t past = device.upload(offsets);
  CHECK(library().run(device, kernel, 1, 0, dx, past, dd, BASE, N) == 507035, "%s past the end", kernel);
}

template <class T> static void broadcasts(const char *kernel) {
  Device device;
  constexpr uint32_t REPEATS = 3, N = REPEATS * 8, OF_A_BLOCK = 32 / sizeof(T);
  auto x = whole_numbers<T>(N, 9);
  uint64_t dx = device.upload(x), dd = device.allocate(N * 32);
  auto right = [&] {
    auto d = device.download<T>(dd);
    bool right = true;
    for (uint32_t i = 0; i < N * OF_A_BLOCK; i++) right &= float(d[i]) == float(x[i / OF_A_BLOCK]);
    return right;
  };
  run(kernel, device, right, dx, dd, REPEATS);
}

static void extremes() {
  Device device;
  constexpr uint32_t REPEATS = 5;
  auto x = whole_numbers<float>(REPEATS * 64, 10);  // small, so that the greatest comes more than once: the first counts
  uint64_t dx = device.upload(x), dd = device.allocate(REPEATS * 16);
  for (uint32_t mask : {64u, 63u, 1u, 9u}) {
    auto right = [&] {
      auto d = device.download<float>(dd);
      bool right = true;
      for (uint32_t i = 0; i < REPEATS; i++) {
        const float *row = &x[i * 64], *most = std::max_element(row, row + mask), *least = std::min_element(row, row + mask);
        right &= d[2 * i] == *most && ropeway::bits_as<uint32_t>(d[2 * i + 1]) == uint32_t(most - row);
        right &= d[2 * (REPEATS + i)] == *least && ropeway::bits_as<uint32_t>(d[2 * (REPEATS + i) + 1]) == uint32_t(least - row);
      }
      return right;
    };
    run("extremes", device, right, dx, dd, mask, REPEATS);
  }
}

static void scalars() {
  Device device;
  constexpr uint32_t N = 104;
  auto x = whole_numbers<float>(N, 11), y = whole_numbers<float>(N, 12);
  x[3] = 1.0f + 0x1p-12f, y[3] = -1.0f;  // a fused product: 2^-11 + 2^-24 remains of its square
  uint64_t dx = device.upload(x), dy = device.upload(y), dd = device.allocate(3 * N * 4);
  for (float scalar : {2.0f, 1.0f + 0x1p-12f, -3.0f}) {
    auto right = [&] {
      auto d = device.download<float>(dd);
      bool right = true;
      for (uint32_t i = 0; i < N; i++) right &= d[i] == float(double(x[i]) * scalar + y[i]) && d[N + i] == std::max(x[i], scalar) && d[2 * N + i] == std::min(x[i], scalar);
      return right;
    };
    run("scalars", device, right, dx, dy, dd, scalar, N);
  }
}

enum Mode { NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD };

// Of `lower` and `upper`, the neighbours of value in a format: the one that a mode takes. `even` and `odd` tell of their last bits.
template <class T> static T taken(double value, T lower, T upper, bool lower_is_even, Mode mode) {
  double below = value - double(lower), above = double(upper) - value;
  if (double(lower) == value) return lower;
  switch (mode) {
    case FLOOR: return lower;
    case CEIL: return upper;
    case TRUNC: return value > 0 ? lower : upper;
    case ODD: return lower_is_even ? upper : lower;
    case ROUND: return below != above ? (below < above ? lower : upper) : value > 0 ? upper : lower;
    default: return below != above ? (below < above ? lower : upper) : lower_is_even ? lower : upper;
  }
}

// The neighbours are looked for among all finite numbers of the format.
template <class T> static T in_format(float value, Mode mode) {
  T lower, upper;
  lower.bits = upper.bits = 0;
  double best_below = -INFINITY, best_above = INFINITY;
  for (uint32_t bits = 0; bits < 65536; bits++) {
    T each;
    each.bits = uint16_t(bits);
    double number = float(each);
    if (!std::isfinite(number) || bits == 0x8000) continue;
    if (number <= value && number > best_below) best_below = number, lower = each;
    if (number >= value && number < best_above) best_above = number, upper = each;
  }
  return taken<T>(value, lower, upper, !(lower.bits & 1), mode);
}

template <class From> static std::vector<From> padded(std::vector<From> values) {
  values.resize((values.size() + 31) / 32 * 32, From(0));
  return values;
}

template <class To, class From> static void casts(const char *kernel, const std::vector<From> &given, const std::function<To(From, Mode)> &expected, std::vector<Mode> modes) {
  Device device;
  std::vector<From> x = padded(given);
  uint64_t dx = device.upload(x), dd = device.allocate(7 * x.size() * sizeof(To));
  std::string wrong;
  auto right = [&] {
    auto d = device.download<To>(dd);
    wrong.clear();
    for (Mode mode : modes)
      for (size_t i = 0; i < x.size(); i++) {
        To want = expected(x[i], mode), got = d[mode * x.size() + i];
        bool same = double(want) == double(got) || (std::isnan(double(want)) && std::isnan(double(got)));
        if (!same) wrong = "mode " + std::to_string(mode) + " of " + std::to_string(double(x[i])) + ": " + std::to_string(double(got)) + ", not " + std::to_string(double(want));
      }
    return wrong.empty();
  };
  run(kernel, device, right, dx, dd, uint32_t(x.size()));
  CHECK(wrong.empty(), "%s: %s", kernel, wrong.c_str());
}

template <class T> static T to_whole(double value, Mode mode) {
  double lowest = double(std::numeric_limits<T>::lowest()), most = double(std::numeric_limits<T>::max());
  if (std::isnan(value)) return 0;
  if (value <= lowest) return std::numeric_limits<T>::lowest();
  if (value >= most) return std::numeric_limits<T>::max();
  double below = std::floor(value);
  double result = taken<double>(value, below, below + 1, std::fmod(below, 2) == 0, mode);
  return T(std::min(most, std::max(lowest, result)));
}

static void conversions() {
  const std::vector<Mode> whole = {RINT, FLOOR, CEIL, ROUND, TRUNC}, all = {NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD};
  std::vector<float> fine = {0.0f, 1.0f, -1.0f, 0.1f, -0.1f, 2049, -2049, 2051, -2051, 257, 259, -257, -259, 1.0f / 3, 65504, -65504, 3.14159265f, 0x1p-25f, -0x1p-25f, 0x1.8p-25f, 0x1p-14f, 0x1.ffep-15f, 12345.678f};
  casts<half, float>("cast_f32_f16", fine, [](float x, Mode mode) { return in_format<half>(x, mode); }, all);
  casts<bfloat16_t, float>("cast_f32_bf16", fine, [](float x, Mode mode) { return in_format<bfloat16_t>(x, mode); }, all);
  // What is no number stays none; infinities and what is beyond the format become infinite.
  casts<half, float>("cast_f32_f16", {NAN, INFINITY, -INFINITY, 65520, 1e30f, -1e30f}, [](float x, Mode) { return half(x); }, {NONE, RINT});
  casts<bfloat16_t, float>("cast_f32_bf16", {NAN, INFINITY, -INFINITY, 3.4e38f}, [](float x, Mode) { return bfloat16_t(x); }, {NONE, RINT});

  std::vector<float> halves = {0, 0.5f, -0.5f, 1.5f, -1.5f, 2.5f, -2.5f, 0.49999997f, -0.49999997f, 1e-20f, -1e-20f, 126.5f, 127.5f, -128.5f, 254.5f, 255.5f, 8388607.5f, 3e9f, -3e9f, 32767.5f, -32768.5f, 40000, -40000, INFINITY, -INFINITY};
  casts<float, float>("cast_f32_f32", halves, [](float x, Mode mode) { return std::isinf(x) ? x : float(std::copysign(taken<double>(x, std::floor(x), std::floor(x) + 1, std::fmod(std::floor(x), 2.0) == 0, mode), x)); }, whole);
  halves.push_back(NAN);
  casts<int32_t, float>("cast_f32_i32", halves, [](float x, Mode mode) { return to_whole<int32_t>(x, mode); }, whole);
  casts<int16_t, float>("cast_f32_i16", halves, [](float x, Mode mode) { return to_whole<int16_t>(x, mode); }, whole);
  std::vector<half> small;
  for (float x : halves) small.push_back(half(x));
  casts<int8_t, half>("cast_f16_i8", small, [](half x, Mode mode) { return to_whole<int8_t>(float(x), mode); }, whole);
  casts<uint8_t, half>("cast_f16_u8", small, [](half x, Mode mode) { return to_whole<uint8_t>(float(x), mode); }, whole);
  casts<float, half>("cast_f16_f32", small, [](half x, Mode) { return float(x); }, {NONE});

  std::vector<int32_t> large = {0, 1, -1, 16777216, 16777217, 16777219, -16777217, -16777219, 33554434, 33554435, 33554437, -33554435, 2147483647, -2147483647 - 1, 32767, 32768, -32768, -32769};
  auto to_float = [](int32_t x, Mode mode) {
    float near = float(x), lower = double(near) > x ? std::nextafter(near, -INFINITY) : near, upper = double(near) >= x ? near : std::nextafter(near, INFINITY);
    return taken<float>(x, lower, upper, !(ropeway::bits_as<uint32_t>(lower) & 1), mode);
  };
  casts<float, int32_t>("cast_i32_f32", large, to_float, whole);
  casts<int16_t, int32_t>("cast_i32_i16", large, [](int32_t x, Mode) { return to_whole<int16_t>(x, NONE); }, {NONE});
}

int main() {
  comparisons();
  selections();
  gathers<float>("gather_4");
  gathers<half>("gather_2");
  broadcasts<float>("brcb_4");
  broadcasts<half>("brcb_2");
  extremes();
  scalars();
  conversions();
  std::printf(failures ? "%d failures\n" : "all tests passed\n", failures);
  return failures != 0;
}
