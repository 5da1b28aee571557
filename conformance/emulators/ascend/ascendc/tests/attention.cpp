// The launches of kernels/attention/*.asc on the model, four one after the other and the fused one: against a plain softmax, and with each flag and barrier
// dropped.
#include "host.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

enum { CAUSAL = 1, SOFTCAP = 2, MASK = 4, ALIBI = 8, SINKS = 16, LSE = 32 };

constexpr int32_t BLOCKS = 3;

struct Shape {
  int32_t heads, kv_heads, q_len, kv_len, d, dv, flags, window = 0;
};

static Library build(const char *name, std::vector<const char *> files, const std::string &defines) {
  std::string path = std::string(std::getenv("ROPEWAY_TEST_FOLDER")) + "/" + name;
  std::ofstream all(path);
  for (const char *file : files) all << contents(std::string(KERNELS) + "/" + file);
  all.close();
  return Library(path, defines);
}

template <class T> struct Attention {
  Library cube, vector, fused;
  explicit Attention(const std::string &dtype)
      : cube(build("attention_cube.asc", {"attention/attention.asc", "attention/attention_products.asc", "attention/attention_cube.asc"}, "-DLAYOUT=0 -DDTYPE=" + dtype)),
        vector(build("attention_vector.asc", {"lines.asc", "attention/attention.asc", "attention/attention_softmax.asc", "attention/attention_vector.asc"}, "-DLAYOUT=0 -DDTYPE=" + dtype)),
        fused(build("attention_fused.asc", {"lines.asc", "attention/attention.asc", "attention/attention_products.asc", "attention/attention_softmax.asc", "attention/attention_fused.asc"},
                    "-DLAYOUT=0 -DDTYPE=" + dtype)) {}

  // What is wrong, or nothing. A library may be run with lines of its source dropped.
  std::string run(uint64_t seed, Shape s, bool as_one, const Library *faulty = nullptr, const std::string &drop = "") const {
    Device device;
    const int32_t group = s.heads / s.kv_heads, tile_rows = 16, segments = (s.kv_len + 511) / 512;
    const int32_t slots = (s.q_len * group + tile_rows - 1) / tile_rows * s.kv_heads, pairs = std::max(slots, 2 * BLOCKS) * segments;
    auto q = whole_numbers<T>(s.heads * s.q_len * s.d, 1, 2), k = whole_numbers<T>(s.kv_heads * s.kv_len * s.d, 2, 2), v = whole_numbers<T>(s.kv_heads * s.kv_len * s.dv, 3);
    auto mask = whole_numbers<float>(s.q_len * s.kv_len, 4), sinks = whole_numbers<float>(s.heads, 5), slopes = whole_numbers<float>(s.heads, 6, 2);
    for (size_t i = 0; i < mask.size(); i += 7) mask[i] = -std::numeric_limits<float>::infinity();
    for (float &slope : slopes) slope *= 1.0f / 256;
    const uint64_t none = 0, one = 1;
    const uint64_t dq = device.upload(q), dk = device.upload(k), dv = device.upload(v), dm = device.upload(mask), ds = device.upload(sinks), da = device.upload(slopes);
    const uint64_t d_o = device.allocate(q.size() / s.d * s.dv * sizeof(T)), dl = device.allocate(q.size() / s.d * 4), dst = device.upload(std::vector<uint32_t>(1, 0));
    const uint64_t scores = device.allocate(uint64_t(pairs) * tile_rows * 2048), partial = device.allocate(uint64_t(pairs) * tile_rows * ((s.dv + 7) / 8 * 32));
    const uint64_t state = device.allocate(uint64_t(pairs) * tile_rows * 8);
    const float scale = 0.25f, softcap = s.flags & SOFTCAP ? 5.0f : 0.0f;
    auto step = [&](const Library &library, const char *kernel, uint32_t blocks) {
      std::unique_ptr<Dropped> dropped(&library == faulty ? new Dropped(drop) : nullptr);
      return library.run(device, kernel, blocks, seed, dq, none, dk, none, dv, none, dm, none, none, none, none, none, none, none, none, none, ds, none, da, none, d_o, none,
                         dl, none, scores, none, partial, none, state, none, dst, none, 1, s.heads, s.kv_heads, s.q_len, s.kv_len, s.d, s.dv, none,
                         uint64_t(s.q_len) * s.d, uint64_t(s.d), one, none, uint64_t(s.kv_len) * s.d, uint64_t(s.d), one, none, uint64_t(s.kv_len) * s.dv, uint64_t(s.dv), one,
                         none, uint64_t(s.q_len) * s.dv, uint64_t(s.dv), one, none, uint64_t(s.q_len), one, none, none, uint64_t(s.kv_len), one, 0, 1, none, none, none, none,
                         none, one, one, tile_rows, segments, 0, slots, scale, softcap, s.window, s.flags);
    };
    if (as_one ? step(fused, "attention_fused", std::min(slots, BLOCKS))
               : step(cube, "attention_scores", 3) || step(vector, "attention_softmax", 5) || step(cube, "attention_values", 3) || step(vector, "attention_finish", 5))
      return device.reported.empty() ? "no report" : device.reported;
    auto o = device.download<T>(d_o);
    auto lse = device.download<float>(dl);
    for (int32_t head = 0; head < s.heads; head++)
      for (int32_t query = 0; query < s.q_len; query++) {
        const int32_t position = s.kv_len - s.q_len + query;
        std::vector<double> weights;
        double total = s.flags & SINKS ? std::exp(double(sinks[head])) : 0;
        for (int32_t key = 0; key < s.kv_len; key++) {
          double score = 0;
          for (int32_t e = 0; e < s.d; e++) score += double(float(q[(head * s.q_len + query) * s.d + e])) * float(k[(head / group * s.kv_len + key) * s.d + e]);
          score *= scale;
          if (s.flags & SOFTCAP) score = softcap * std::tanh(score / softcap);
          if (s.flags & ALIBI) score += slopes[head] * (key - position);
          if (s.flags & MASK) score += mask[query * s.kv_len + key];
          bool hidden = s.flags & CAUSAL && (key > position || (s.window && key <= position - s.window));
          weights.push_back(hidden ? 0 : std::exp(score));
          total += weights.back();
        }
        const double bound = 1.0 / (sizeof(T) == 2 ? 256 : 65536);
        if (s.flags & LSE && !(std::fabs(lse[head * s.q_len + query] - std::log(total)) < 1e-4)) return "wrong log-sum-exp";
        for (int32_t c = 0; c < s.dv; c++) {
          double sum = 0;
          for (int32_t key = 0; key < s.kv_len; key++) sum += weights[key] * float(v[(head / group * s.kv_len + key) * s.dv + c]);
          double got = float(o[(head * s.q_len + query) * s.dv + c]), wanted = total > 0 ? sum / total : 0;
          if (!(std::fabs(got - wanted) < 8 * bound)) return "wrong: head " + std::to_string(head) + ", query " + std::to_string(query) + ", column " + std::to_string(c) + ": " + std::to_string(got) + " for " + std::to_string(wanted);
        }
      }
    return "";
  }
};

template <class T> void shapes(const char *what, const std::string &dtype) {
  Attention<T> attention(dtype);
  const Shape all[] = {{2, 1, 5, 40, 16, 16, 0},  {4, 2, 9, 700, 40, 24, CAUSAL | LSE},  {2, 2, 19, 33, 8, 300, CAUSAL | SINKS | LSE, 5},
                       {4, 1, 6, 1030, 70, 9, CAUSAL | SOFTCAP | MASK | ALIBI | SINKS | LSE}, {1, 1, 1, 1, 1, 1, LSE}};
  for (bool as_one : {false, true})
    for (const Shape &s : all)
      for (uint64_t seed = 0; seed < 3; seed++) {
        std::string got = attention.run(seed, s, as_one);
        CHECK(got.empty(), "%s%s, %d keys, seed %d: %s", as_one ? "fused, " : "", what, s.kv_len, int(seed), got.c_str());
      }
  // The first has every option; where there is none, nothing stands between the others' steps. The last gives a block items of several segments and of one.
  const Shape dropped[] = {{4, 1, 5, 530, 70, 20, CAUSAL | SOFTCAP | MASK | ALIBI | SINKS | LSE, 525}, {2, 1, 2, 512, 16, 16, 0}, {2, 1, 2, 512, 16, 16, ALIBI},
                           {4, 4, 20, 1030, 16, 16, 0}, {8, 8, 20, 30, 16, 16, 0}};
  for (const Library *library : {&attention.cube, &attention.vector, &attention.fused}) {
    bool as_one = library == &attention.fused, all_of_cube = library != &attention.vector;
    std::vector<int> lines = library->synchronising(all_of_cube ? "class Products" : "class Rows", as_one ? "" : "extern");
    CHECK(lines.size() > 15, "only %zu lines to drop", lines.size());
    for (int line : lines) {
      std::string drop = std::to_string(line), reported;
      for (const Shape &s : dropped)
        for (uint64_t seed = 0; seed < 3 && reported.empty(); seed++) reported = attention.run(seed, s, as_one, library, drop);
      const char *name = as_one ? "fused" : all_of_cube ? "cube" : "vector";
      CHECK(!reported.empty() && reported.find("wrong") != 0, "%s without line %d of attention_%s.asc: %s", what, line, name, reported.empty() ? "nothing reported" : reported.c_str());
      if (std::getenv("ROPEWAY_TEST_VERBOSE")) std::printf("%s, %s, line %d: %s\n", what, name, line, reported.c_str());
    }
  }
}

int main() {
  shapes<half>("f16", "1");
  shapes<float>("f32", "0");
  std::printf(failures ? "%d failures\n" : "all tests passed\n", failures);
  return failures != 0;
}
