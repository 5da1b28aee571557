// softmax: d[r, c] = exp(s[c] - m) / (sum exp(s[c] - m) + exp(sink - m)),  s[c] = scale x[r, c] + slope mask[r, c],  m = max(s, sink)
//
//   row  | 0 .. VECTOR | .. | ..      work-item i of GROUP takes vectors i, i + GROUP, ..
//   pass 1 the maximum, pass 2 the sum, pass 3 the result: exp is computed twice, nothing is kept
//
// A row that sees nothing (-inf everywhere, no sink) gives zeros. NaN makes its row NaN. The mask is repeated along rows, heads and batch.
// Slopes (ALiBi): 2^(exponent (h + 1)) for the first heads, 2^(second_exponent (2 (h - first_heads) + 1)) for the others.
// d may be x: pass 3 reads an element before it writes it.
//
// Constants (the planner's): X_DTYPE, M_DTYPE (of the mask), D_DTYPE  0 f32, 1 f16, 2 bf16
// Tunables: GROUP, VECTOR see layer.cl; BLOCK (the planner's, sizes rows_each)

#ifndef X_DTYPE
#define X_DTYPE F32
#endif
#ifndef M_DTYPE
#define M_DTYPE F32
#endif
#ifndef D_DTYPE
#define D_DTYPE X_DTYPE
#endif

typedef struct {
  __global const void *x, *mask;
  ulong x_row, x0, m_row, m0;
  float scale, slope;
  uint n0;
} scores;

// Scores from column c on; those past the end are -inf. A mask of -inf hides even a NaN or an infinity.
inline floats scores_at(const scores* s, uint c)
{
  const uint live = s->n0 - c;
  floats v = s->scale * load_vector(s->x, s->x_row + c * s->x0, s->x0, live, 0.0f, X_DTYPE);
  if (s->mask) {
    const floats mask = load_vector(s->mask, s->m_row + c * s->m0, s->m0, live, -INFINITY, M_DTYPE);
    v = select(v + s->slope * mask, (floats)-INFINITY, mask == -INFINITY);
  }
  if (live < VECTOR) {
    float e[VECTOR];
    STORE(v, 0, e);
    for (uint i = live; i < VECTOR; i++) e[i] = -INFINITY;
    v = LOAD(0, e);
  }
  return v;
}

// NaN is never the greater.
inline floats greater_of(floats a, floats b) { return select(a, b, b > a); }

inline float max_of(floats v)
{
#if VECTOR >= 16
  v = greater_of(v, PARTNERS(v, 8));
#endif
#if VECTOR >= 8
  v = greater_of(v, PARTNERS(v, 4));
#endif
  v = greater_of(v, PARTNERS(v, 2));
  return v.s1 > v.s0 ? v.s1 : v.s0;
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1)))
void softmax(__global const void* x, ulong x_offset, __global const void* mask, ulong mask_offset,
             __global const float* sinks, ulong sinks_offset, __global void* d, ulong d_offset, uint n0, uint n1, uint n2, uint n3,
             ulong x0, ulong x1, ulong x2, ulong x3, uint m_n1, uint m_n2, uint m_n3, ulong m0, ulong m1, ulong m2, ulong m3,
             ulong sinks0, ulong d0, ulong d1, ulong d2, ulong d3, float scale, float exponent, float second_exponent,
             uint first_heads, uint rows_each)
{
#if GROUP > 1
  __local float shared[GROUP];
#endif
  const uint lane = get_local_id(0), first = group_number() * rows_each, last = min(first + rows_each, n1 * n2 * n3);
  for (uint row = first; row < last; row++) {
    const place r = place_of(row, n1, n2);
    const ulong d_row = d_offset + r.i1 * d1 + r.i2 * d2 + r.i3 * d3;
    const float power = r.i2 < first_heads ? exponent * (r.i2 + 1) : second_exponent * (2 * (r.i2 - first_heads) + 1);
    scores s;
    s.x = x, s.mask = mask, s.x0 = x0, s.m0 = m0, s.scale = scale, s.slope = exp2(power), s.n0 = n0;
    s.x_row = x_offset + r.i1 * x1 + r.i2 * x2 + r.i3 * x3;
    s.m_row = mask_offset + wrapped(r.i1, m_n1) * m1 + wrapped(r.i2, m_n2) * m2 + wrapped(r.i3, m_n3) * m3;
    const float sink = sinks ? sinks[sinks_offset + r.i2 * sinks0] : -INFINITY;
    floats most = -INFINITY;
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR) {
      const floats v = scores_at(&s, c);
      most = greater_of(most, v);
    }
    float top = group_max(max_of(most), shared);
    top = sink > top ? sink : top;
    // Where nothing is seen, exp(-inf - 0) is 0 for all.
    const float subtracted = top == -INFINITY ? 0.0f : top;
    floats sum = 0.0f;
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR) sum += exp(scores_at(&s, c) - subtracted);
    const float total = group_sum(sum_of(sum), shared) + exp(sink - subtracted);
    const float factor = total == 0.0f ? 0.0f : 1.0f / total;
    for (uint c = lane * VECTOR; c < n0; c += GROUP * VECTOR)
      store_vector(d, d_row + c * d0, d0, n0 - c, exp(scores_at(&s, c) - subtracted) * factor, D_DTYPE);
  }
}
