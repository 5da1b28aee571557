/* What happens to the sums of a product before they are stored: d = act(alpha sum + beta c + bias). Included behind elements.glsl by kernels
 * whose macro INTEGER says what a sum is.
 */
#ifndef INTEGER
#define INTEGER 0
#endif
#if INTEGER
#define sum_t int
#else
#define sum_t float
#endif

/* bits of what the epilogue reads and how: EXACT is in integers */
#define HAS_C 1u
#define HAS_BIAS 2u
#define EXACT 4u

#if INTEGER
/* A whole number of 64 bits, since three of 32 may not fit in 32. */
struct Wide { uint low; int high; };

Wide add(Wide v, int x)
{
  uint carry;
  v.low = uaddCarry(v.low, uint(x), carry);
  v.high += (x >> 31) + int(carry);
  return v;
}

void store_wide(uvec2 address, Wide v, uint activation, const uint dtype)
{
  if (activation == ACTIVATION_RELU && v.high < 0) v = Wide(0, 0);
  bool fits = v.high == int(v.low) >> 31;
  int word = fits ? int(v.low) : v.high < 0 ? int(0x80000000u) : 0x7fffffff;
  if (dtype == I32) store_word(address, uint(word));
  else if (dtype == I8) store_i8(address, clamp(word, -128, 127));
  else {
    /* Both parts are exact in f32, so that their sum is rounded once. */
    int upper = int(uint(v.high) << 23 | v.low >> 9);
    store_word(address, floatBitsToUint(float(upper) * 512.0 + float(v.low & 511u)));
  }
}
#endif

/* alpha * sum + beta * c + bias at one place */
float affine(sum_t sum, float alpha, float beta, uint has, uvec2 c_at, uvec2 bias_at, const uint c_dtype)
{
  float v = alpha * float(sum);
  if ((has & HAS_C) != 0) v = beta * load_1(c_at, c_dtype) + v;
  if ((has & HAS_BIAS) != 0) v += load_1(bias_at, c_dtype);
  return v;
}

/* One element of d; `up` counts only under swiglu, and c and bias of its column are c_up and bias_up bytes further. */
void store_sum(sum_t sum, sum_t up, float alpha, float beta, uint has, uint activation, uvec2 c_at, uvec2 c_up, uvec2 bias_at, uvec2 bias_up,
               uvec2 d_at, const uint c_dtype, const uint d_dtype)
{
#if INTEGER
  if ((has & EXACT) != 0) {
    Wide v = add(Wide(0, 0), sum);
    if ((has & HAS_C) != 0) v = add(v, load_i32(c_at));
    if ((has & HAS_BIAS) != 0) v = add(v, load_i32(bias_at));
    store_wide(d_at, v, activation, d_dtype);
    return;
  }
#endif
  float v = affine(sum, alpha, beta, has, c_at, bias_at, c_dtype);
  if (activation == ACTIVATION_SWIGLU)
    v = silu(v) * affine(up, alpha, beta, has, address_add(c_at, c_up), address_add(bias_at, bias_up), c_dtype);
  else
    v = activate(v, activation);
  store_1(d_at, v, d_dtype);
}
