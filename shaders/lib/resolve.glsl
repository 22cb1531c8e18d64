/* Halting: what resolve and group do when an expert they need has no slot.
 * Before inclusion: buffers `mail` (mailbox) and `args` (dispatch arguments) and a workgroup of WG lanes. */
#ifndef LIB_RESOLVE_GLSL
#define LIB_RESOLVE_GLSL

#include "shared/step.h"

shared uint missing_bits[MAX_EXPERTS / 32];

void missing_clear()
{
    for (uint i = gl_LocalInvocationIndex; i < MAX_EXPERTS / 32; i += WG)
        missing_bits[i] = 0u;
}

void missing_add(uint expert)
{
    atomicOr(missing_bits[expert / 32u], 1u << (expert % 32u));
}

uint missing_count()
{
    uint n = 0u;
    for (uint i = 0u; i < MAX_EXPERTS / 32; i++)
        n += bitCount(missing_bits[i]);
    return n;
}

/* Tells the host which experts `layer` lacks, and empties dispatch `next` and all behind it. All lanes
 * call it. */
void halt(uint layer, uint next, uint n_missing)
{
    uint lane = gl_LocalInvocationIndex;
    if (lane == 0u) {
        mail.data[MAIL_LAYER] = layer;
        mail.data[MAIL_N_MISSING] = n_missing;
    }
    for (uint i = lane; i < MAX_EXPERTS / 32; i += WG)
        mail.data[MAIL_MISSING + i] = missing_bits[i];
    uint end = args.data.length() / 3u * 3u;
    for (uint i = next * 3u + lane; i < end; i += WG)
        args.data[i] = 0u;
}

#endif
