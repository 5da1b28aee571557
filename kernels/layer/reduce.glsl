/* Reductions over a group's invocations, in all of them, by `partial` in shared memory. Every invocation comes here. */

float group_sum(float v, uint lane)
{
  barrier();
  partial[lane] = v;
  for (uint step = GROUP / 2; step > 0; step /= 2) {
    barrier();
    if (lane < step) partial[lane] += partial[lane + step];
  }
  barrier();
  return partial[0];
}

float group_max(float v, uint lane)
{
  barrier();
  partial[lane] = v;
  for (uint step = GROUP / 2; step > 0; step /= 2) {
    barrier();
    if (lane < step && partial[lane + step] > partial[lane]) partial[lane] = partial[lane + step];
  }
  barrier();
  return partial[0];
}
