// The products of kernels/gemm/gemm_cube.asc on the model: against a plain product, at sizes that fill tiles and that do not, and with each flag dropped.
#include "host.h"

struct Size {
  uint32_t m, n, k, batches = 1, pad = 0;  // pad: elements between the lines of each matrix
};

// The kernel as it is compiled: after what it stands on.
static std::string product_source() {
  std::string path = std::string(std::getenv("ROPEWAY_TEST_FOLDER")) + "/gemm.asc";
  std::ofstream(path) << contents(KERNELS "/lines.asc") << contents(KERNELS "/gemm/routing.asc") << contents(KERNELS "/gemm/gemm_cube.asc");
  return path;
}

// Whole numbers sum exactly, so that d must agree to the last bit after its one rounding.
template <class T, class Sum, class Out>
std::string gemm(const Library &library, uint64_t seed, Size s, bool a_across, bool b_across, uint32_t blocks) {
  Device device;
  uint64_t a_line = (a_across ? s.m : s.k) + s.pad, b_line = (b_across ? s.n : s.k) + s.pad, d_line = s.n + s.pad;
  uint64_t a_batch = (a_across ? s.k : s.m) * a_line, b_batch = (b_across ? s.k : s.n) * b_line, d_batch = s.m * d_line;
  auto a = whole_numbers<T>(a_batch * s.batches, 6), b = whole_numbers<T>(b_batch * s.batches, 7);
  uint64_t da = device.upload(a), db = device.upload(b), dd = device.allocate(d_batch * s.batches * sizeof(Out));
  const uint64_t none = 0;
  int code = library.run(device, "gemm_cube", blocks, seed, da, none, db, none, dd, none, s.m, s.n, s.k, 1u, s.batches, s.k, a_line, none, a_batch, b_line, none, b_batch,
                         d_line, none, d_batch, none);
  if (code) return device.reported.empty() ? "no report" : device.reported;
  auto d = device.download<Out>(dd);
  std::vector<uint8_t> poison(sizeof(Out), 0xff);
  for (uint32_t batch = 0; batch < s.batches; batch++)
    for (uint32_t i = 0; i < s.m; i++)
      for (uint32_t j = 0; j < d_line; j++) {
        const Out &got = d[batch * d_batch + i * d_line + j];
        if (j >= s.n) {
          if (std::memcmp(&got, poison.data(), sizeof(Out))) return "written between the lines of d";
          continue;
        }
        Sum sum = 0;
        for (uint32_t e = 0; e < s.k; e++)
          sum += Sum(float(a[batch * a_batch + (a_across ? e * a_line + i : i * a_line + e)])) * Sum(float(b[batch * b_batch + (b_across ? e * b_line + j : j * b_line + e)]));
        if (!(float(got) == float(Out(sum)))) return "wrong at batch " + std::to_string(batch) + ", row " + std::to_string(i) + ", column " + std::to_string(j);
      }
  return "";
}

template <class T, class Sum, class Out> void sizes(const std::string &what, const std::string &defines, bool a_across, bool b_across, const std::vector<Size> &all) {
  Library library(product_source(), defines + " -DA_ACROSS=" + std::to_string(a_across) + " -DB_ACROSS=" + std::to_string(b_across));
  for (Size s : all)
    for (uint64_t seed = 0; seed < 4; seed++) {
      std::string got = gemm<T, Sum, Out>(library, seed, s, a_across, b_across, 3);
      CHECK(got.empty(), "%s m %u n %u k %u, seed %d: %s", what.c_str(), s.m, s.n, s.k, int(seed), got.c_str());
    }
}

int main() {
  std::string small = " -DBLOCK_M=32 -DBLOCK_N=48 -DBLOCK_K=16 -DSTEPS=2";
  std::vector<Size> ragged = {{32, 48, 32}, {96, 96, 64}, {1, 1, 1}, {1, 50, 77}, {33, 49, 17}, {65, 97, 100, 2, 3}, {31, 5, 130}};
  for (bool a_across : {false, true})
    for (bool b_across : {false, true}) sizes<half, float, float>("f16 to f32", "-DCUBE_DTYPE=1 -DOUT_DTYPE=0" + small, a_across, b_across, ragged);
  sizes<bfloat16_t, float, bfloat16_t>("bf16", "-DCUBE_DTYPE=2 -DOUT_DTYPE=2" + small, false, true, ragged);
  sizes<float, float, float>("f32", "-DCUBE_DTYPE=0" + small, false, false, ragged);
  sizes<int8_t, int32_t, int32_t>("i8", "-DCUBE_DTYPE=3 -DOUT_DTYPE=4" + small, false, false, ragged);
  sizes<half, float, half>("f16, default tiles", "-DCUBE_DTYPE=1 -DOUT_DTYPE=1", false, true, {{128, 256, 64}, {256, 256, 512}, {300, 270, 333}, {1, 513, 1030}});
  // Lines longer than the copy's parameter holds.
  sizes<half, float, float>("f16, long lines", "-DCUBE_DTYPE=1 -DOUT_DTYPE=0" + small, false, false, {{33, 5, 40, 1, 70000}});

  // With two blocks and several tiles, stages and steps, each flag and barrier has work to do.
  Library library(product_source(), "-DCUBE_DTYPE=1 -DOUT_DTYPE=0" + small);
  std::vector<int> lines = library.synchronising("class Cube", "");
  CHECK(lines.size() == 23, "%zu lines set, wait or are barriers", lines.size());
  for (int line : lines) {
    Dropped dropped(std::to_string(line));
    for (uint64_t seed = 0; seed < 8; seed++) {
      std::string got = gemm<half, float, float>(library, seed, {96, 96, 100}, false, false, 2);
      bool reported = got.find("hazard") != got.npos || got.find("deadlock") != got.npos || got.find("SetFlag") != got.npos;
      CHECK(reported, "without line %d, seed %d: %s", line, int(seed), got.c_str());
      if (seed == 0 && std::getenv("ROPEWAY_TEST_VERBOSE")) std::printf("  without line %d\n    %s\n", line, got.c_str());
    }
  }
  std::printf(failures ? "%d failures\n" : "all tests passed\n", failures);
  return failures != 0;
}
