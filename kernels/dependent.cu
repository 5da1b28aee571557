/* Launches that may begin before the launch before them has ended: programmatic dependent launch, from sm_90 on (CUDA C++ Programming Guide, "Programmatic
 * Dependent Launch and Synchronization").
 *
 *   launch n      | blocks ...         | last blocks |
 *   launch n + 1                         | begins | waits | blocks ...
 *
 * Macro             default  meaning
 * DEPENDENT_LAUNCH  0        1: the device launches the kernel so; the planner's
 */
#ifndef DEPENDENT_LAUNCH
#define DEPENDENT_LAUNCH 0
#endif

/* Before it no thread touches device memory. The next launch may come as soon as all blocks are here: it waits, in its turn, until this one has ended and
 * all it wrote can be seen. */
__device__ __forceinline__ void wait_for_previous_launch()
{
#if DEPENDENT_LAUNCH
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
