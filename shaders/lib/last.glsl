/* Which workgroup of a dispatch finishes last: it alone goes on with what needs the results of all, so that
 * no further dispatch and barrier are paid for. A counter per group of workgroups is 0 before and after.
 * Results must be written to buffers that are `coherent` before the call, by any lane, and are read from them
 * after it. Before inclusion: LAST_COUNTER(i), counter i in a coherent buffer. */
#ifndef LIB_LAST_GLSL
#define LIB_LAST_GLSL

shared uint last_before; /* workgroups that came earlier */

/* All lanes call it, in uniform control flow. True in one of the n_groups workgroups that share counter i. */
bool last_of(uint i, uint n_groups)
{
    memoryBarrierBuffer();
    barrier();
    if (gl_LocalInvocationIndex == 0u)
        last_before = atomicAdd(LAST_COUNTER(i), 1u);
    barrier();
    if (last_before != n_groups - 1u)
        return false;
    if (gl_LocalInvocationIndex == 0u)
        LAST_COUNTER(i) = 0u;
    memoryBarrierBuffer();
    return true;
}

#endif
