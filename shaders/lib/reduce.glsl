/* Sums and maxima over a workgroup, the same value in every lane, in an order fixed for a device.
 * Base: a tree in shared memory. USE_SUBGROUP: one operation per subgroup, then the subgroups in turn;
 * subgroups of any size. Calls must be in uniform control flow. Before inclusion: WG, any size. */
#ifndef LIB_REDUCE_GLSL
#define LIB_REDUCE_GLSL

shared vec4 reduce_buf[WG];

#ifdef USE_SUBGROUP
#define REDUCE_BODY(type, swizzle, subgroup_op, combine)                    \
    v = subgroup_op(v);                                                     \
    if (gl_NumSubgroups == 1u)                                              \
        return v;                                                           \
    barrier(); /* readers of an earlier result are done */                  \
    if (subgroupElect())                                                    \
        reduce_buf[gl_SubgroupID].swizzle = v;                              \
    barrier();                                                              \
    type all = reduce_buf[0].swizzle;                                       \
    for (uint i = 1u; i < gl_NumSubgroups; i++)                             \
        all = combine(all, reduce_buf[i].swizzle);                          \
    return all;
#else
/* Smallest power of two that doubled reaches WG. */
uint reduce_half()
{
    return WG > 1u ? 1u << findMSB(WG - 1u) : 0u;
}

#define REDUCE_BODY(type, swizzle, subgroup_op, combine)                                                   \
    uint lane = gl_LocalInvocationIndex;                                                                   \
    barrier(); /* readers of an earlier result are done */                                                 \
    reduce_buf[lane].swizzle = v;                                                                          \
    for (uint s = reduce_half(); s > 0u; s >>= 1) {                                                        \
        barrier();                                                                                         \
        if (lane < s && lane + s < WG)                                                                     \
            reduce_buf[lane].swizzle = combine(reduce_buf[lane].swizzle, reduce_buf[lane + s].swizzle);    \
    }                                                                                                      \
    barrier();                                                                                             \
    return reduce_buf[0].swizzle;
#endif

#define REDUCE_SUM(a, b) ((a) + (b))

vec4 reduce_add4(vec4 v)
{
    REDUCE_BODY(vec4, xyzw, subgroupAdd, REDUCE_SUM)
}

float reduce_add(float v)
{
    REDUCE_BODY(float, x, subgroupAdd, REDUCE_SUM)
}

float reduce_max(float v)
{
    REDUCE_BODY(float, x, subgroupMax, max)
}

#endif
