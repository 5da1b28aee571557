// kernels/lines.asc on the model: lines of every dtype, side by side, apart and repeated, at any place, of lengths that fill buffers and that do not.
#include "host.h"

template <class T> static T rounded(float value) {
  if constexpr (sizeof(T) == 1) return T(std::min(127.0f, std::max(-128.0f, std::nearbyintf(value))));
  else return T(value);
}

template <class From, class To> std::string convert(const Library &library, uint64_t seed, uint64_t x_stride, uint64_t d_stride, uint32_t count) {
  constexpr uint32_t ROWS = 3;
  Device device;
  uint64_t x_step = count * (x_stride ? x_stride : 1), d_step = count * d_stride, x_at = seed % 5, d_at = seed % 3;
  auto x = whole_numbers<From>(x_at + ROWS * x_step + 1, uint32_t(seed), sizeof(From) == 1 || sizeof(To) == 1 ? 127 : 2000);
  uint64_t dx = device.upload(x), dd = device.allocate((d_at + ROWS * d_step + 1) * sizeof(To));
  int code = library.run(device, "convert", 2, seed, dx, dd, x_at, d_at, x_stride, d_stride, count, ROWS);
  if (code) return device.reported.empty() ? "no report" : device.reported;
  auto d = device.download<To>(dd);
  std::vector<uint8_t> expected(d.size() * sizeof(To), 0xff);
  for (uint32_t row = 0; row < ROWS; row++)
    for (uint32_t i = 0; i < count; i++) {
      To value;
      if constexpr (std::is_same<From, int32_t>::value) value = x[x_at + row * x_step + i * x_stride];
      else value = rounded<To>(float(x[x_at + row * x_step + i * x_stride]));
      std::memcpy(&expected[(d_at + row * d_step + i * d_stride) * sizeof(To)], &value, sizeof value);
    }
  return std::memcmp(d.data(), expected.data(), expected.size()) ? "wrong" : "";
}

template <class From, class To> void all(const std::string &path, int from, int to) {
  std::string defines = "-DX_DTYPE=" + std::to_string(from) + " -DD_DTYPE=" + std::to_string(to);
  Library library(path, defines);
  for (uint64_t x_stride : {1, 3, 0})
    for (uint64_t d_stride : {1, 2})
      for (uint32_t count : {0u, 1u, 2u, 31u, 512u, 513u, 4100u})
        for (uint64_t seed = 1; seed < 4; seed++) {
          std::string got = convert<From, To>(library, seed, x_stride, d_stride, count);
          CHECK(got.empty(), "%s, strides %d %d, %u elements, seed %d: %s", defines.c_str(), int(x_stride), int(d_stride), count, int(seed), got.c_str());
        }
}

int main() {
  std::string path = std::string(std::getenv("ROPEWAY_TEST_FOLDER")) + "/convert.asc";
  std::ofstream(path) << contents(KERNELS "/lines.asc") << contents(ASCENDC_FOLDER "/tests/convert.asc");
  all<float, float>(path, 0, 0);
  all<half, bfloat16_t>(path, 1, 2);
  all<bfloat16_t, half>(path, 2, 1);
  all<int8_t, float>(path, 3, 0);
  all<float, int8_t>(path, 0, 3);
  all<int32_t, int32_t>(path, 4, 4);
  std::printf("lines: %d failures\n", failures);
  return failures != 0;
}
