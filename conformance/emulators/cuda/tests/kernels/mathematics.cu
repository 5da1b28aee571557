// CUDA's own library functions, whose errors its documentation states: what hundreds of instructions must do together.
extern "C" __global__ void singles(const float* x, const float* y, float* out, int n) {
    int i = threadIdx.x;
    float a = x[i], b = y[i];
    out[i] = expf(a);
    out[n + i] = logf(fabsf(a));
    out[2 * n + i] = sinf(a * 1000.0f);
    out[3 * n + i] = cosf(a);
    out[4 * n + i] = tanhf(a);
    out[5 * n + i] = powf(fabsf(a), b);
    out[6 * n + i] = cbrtf(a);
    out[7 * n + i] = log1pf(fabsf(a));
    out[8 * n + i] = expm1f(a);
    out[9 * n + i] = sqrtf(fabsf(a));
    out[10 * n + i] = a / b;
    out[11 * n + i] = fmodf(a, b);
    out[12 * n + i] = atan2f(a, b);
}

extern "C" __global__ void doubles(const double* x, const double* y, double* out, int n) {
    int i = threadIdx.x;
    double a = x[i], b = y[i];
    out[i] = exp(a);
    out[n + i] = log(fabs(a));
    out[2 * n + i] = tanh(a);
    out[3 * n + i] = a / b;
    out[4 * n + i] = sqrt(fabs(a));
}

extern "C" __global__ void integers(const long long* x, const long long* y, long long* out, int n) {
    int i = threadIdx.x;
    long long a = x[i], b = y[i];
    out[i] = a / b;
    out[n + i] = a % b;
    out[2 * n + i] = (unsigned long long)a / (unsigned long long)b;
    out[3 * n + i] = (int)a / ((int)b | 1);
    out[4 * n + i] = (unsigned)a % ((unsigned)b | 1);
    out[5 * n + i] = __umul64hi(a, b);
    out[6 * n + i] = (a * b) >> (b & 63);
}
