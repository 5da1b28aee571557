// The cost model (cost.h) on kernels so small that their cycles are worked out by hand here. S takes 4 cycles to issue an instruction, a flag takes 1.
#include "host.h"

static std::string estimates;  // the file

// What the last estimate says of `key`.
static std::string said(const std::string &key) {
  std::string text = contents(estimates);
  size_t at = text.rfind("\"" + key + "\": ");
  if (at == text.npos) return "nothing";
  at += key.size() + 4;
  if (text[at] == '"') return text.substr(at + 1, text.find('"', at + 1) - at - 1);
  return text.substr(at, text.find_first_of(",}", at) - at);
}

template <class... Arguments>
static void expect(const char *what, const Library &library, const char *kernel, uint32_t blocks, const std::string &cycles, const std::string &bound, Arguments... arguments) {
  // Whatever order a seed takes, modelled time is the same.
  for (uint64_t seed = 0; seed < 4; seed++) {
    Device device;
    int code = library.run(device, kernel, blocks, seed, arguments...);
    CHECK(code == 0, "%s: %s", what, device.reported.c_str());
    CHECK(said("cycles") == cycles && said("bound") == bound, "%s, seed %d: %s cycles, not %s; bound by %s, not %s", what, int(seed), said("cycles").c_str(), cycles.c_str(),
          said("bound").c_str(), bound.c_str());
    CHECK(said("unpriced") == "{", "%s: without a cost: %s", what, said("unpriced").c_str());
  }
}

int main() {
  estimates = std::string(std::getenv("ROPEWAY_TEST_FOLDER")) + "/estimates";
  setenv("ROPEWAY_EMULATED_CANN_COST", estimates.c_str(), 1);
  setenv("ROPEWAY_EMULATED_CANN_COST_ONLY", "1", 1);
  Library library(ASCENDC_FOLDER "/tests/cost.asc", "");
  const uint64_t x = 0x120000000000;

  // Issued at 4; 28 to start, 4096 bytes from HBM at 32 a cycle: busy until 160, there 300 later.
  expect("a copy", library, "copies", 1, "460", "vector core's MTE2", x, 1u, 1024u);
  CHECK(said("MTE2") == "156" && said("bytes_read") == "4096" && said("bytes_touched") == "4096", "a copy: busy %s, %s bytes", said("MTE2").c_str(), said("bytes_read").c_str());
  // The same bytes again come from level 2 cache: 28 + 4096 / 110 rounded up, from 160 on.
  expect("a copy, twice", library, "copies", 1, "526", "vector core's MTE2", x, 2u, 0u);
  // As many as fill UB, on all 40 cores: 48 x 156 + 304 cycles each, but HBM moves 1.6e12 / 1.8e9 bytes a cycle.
  expect("copies on all cores", library, "copies", 40, "8847", "HBM", x, 48u, 1024u);
  CHECK(said("core_cycles") == "7792" && said("cores") == "40", "copies on all cores: %s on %s cores", said("core_cycles").c_str(), said("cores").c_str());

  // 8 x 16 x 4 fractals' products, issued at 4; ragged sizes fill whole fractals.
  expect("an Mmad", library, "one_product", 1, "516", "cube core's M", 128u, 256u, 64u);
  CHECK(said("macs") == "2097152", "an Mmad: %s", said("macs").c_str());
  expect("a ragged Mmad", library, "one_product", 1, "516", "cube core's M", 113u, 241u, 49u);
  // 41 blocks on 20 cores: one core takes three.
  expect("41 blocks", library, "one_product", 41, "1548", "cube core's M", 128u, 256u, 64u);
  setenv("ROPEWAY_EMULATED_CANN_COST_CHIP", "910B1", 1);
  expect("41 blocks on 24 cores", library, "one_product", 41, "1032", "cube core's M", 128u, 256u, 64u);
  setenv("ROPEWAY_EMULATED_CANN_COST_FIGURES", "profile", 1);
  // 512 x 1.015 rounded up.
  expect("an Mmad as profiled", library, "one_product", 1, "524", "cube core's M", 128u, 256u, 64u);
  unsetenv("ROPEWAY_EMULATED_CANN_COST_CHIP");
  unsetenv("ROPEWAY_EMULATED_CANN_COST_FIGURES");
  // 4 + 28 + 4096 / 256, then 28 + 4096 / 128.
  expect("loads", library, "loads", 1, "108", "cube core's MTE1");

  // Copies follow each other: at 4, 161, 318 and 475, a flag after each. An Exp, 16 repeats of 4 cycles, starts when its piece is there: the last at
  // 475 + 156 + 300 = 931; its result is there at 931 + 64 + 20.
  expect("two pipes that overlap", library, "two_pipes", 1, "1015", "vector core's MTE2", x, 0u);
  // One after the other: 4 + 4 (156 + 300 + 64 + 20).
  expect("two pipes in turn", library, "two_pipes", 1, "2164", "vector core's MTE2", x, 1u);
  // Two buffers in turn: the third copy waits for the first Exp (there at 544), the fourth for the second (701, and a flag): 702 + 156 + 300 + 64 + 20.
  expect("two pipes and a queue", library, "queued", 1, "1242", "vector core's MTE2", x);

  // 16 cycles each, one behind the other: from 4 to 36, there at 56; the flag is waited for, a read of UB 20 cycles.
  expect("vector instructions", library, "dependent", 1, "77", "vector core's S", 0u);
  CHECK(said("values_taken_as_zero") == "1", "a value that is not computed");
  // The second waits for the first's result: it starts at 40.
  expect("dependent vector instructions", library, "dependent", 1, "97", "vector core's S", 1u);
  // 516, flags 1 + 1, S issues at 521: 16 + 20.
  expect("cores together", library, "together", 1, "558", "cube core's M", 128u, 256u, 64u);

  // With the computing, the estimate is the same.
  unsetenv("ROPEWAY_EMULATED_CANN_COST_ONLY");
  for (uint64_t seed = 0; seed < 4; seed++) {
    Device device;
    uint64_t at = device.upload(std::vector<float>(4096, 1.0f));
    CHECK(library.run(device, "two_pipes", 1, seed, at, 0u) == 0 && said("cycles") == "1015", "computed too: %s, %s", said("cycles").c_str(), device.reported.c_str());
  }
  std::printf(failures ? "%d failures\n" : "all tests passed\n", failures);
  return failures != 0;
}
