/* What router_one and group share: which experts are absent, and halting.
 * Before inclusion: buffers `state`, `table`, `mail`, `args`, push constants `p` with layer and next, and a
 * workgroup of WG lanes. */
#ifndef LIB_RESOLVE_GLSL
#define LIB_RESOLVE_GLSL

#include "shared/step.h"

#define MISSING_WORDS ((N_EXPERTS + 31u) / 32u)
shared uint missing_bits[MAX_EXPERTS / 32];

void missing_clear()
{
    for (uint i = gl_LocalInvocationIndex; i < MISSING_WORDS; i += WG)
        missing_bits[i] = 0u;
}

void missing_add(uint expert)
{
    atomicOr(missing_bits[expert / 32u], 1u << (expert % 32u));
}

uint missing_count()
{
    uint n = 0u;
    for (uint i = 0u; i < MISSING_WORDS; i++)
        n += bitCount(missing_bits[i]);
    return n;
}

/* An earlier submit has done this expert's work for the step in hand. */
bool is_done(uint expert)
{
    return state.data[STEP_DONE_LAYER] == p.layer &&
           (state.data[STEP_DONE + expert / 32u] >> (expert % 32u) & 1u) != 0u;
}

/* The expert's slot where this submit is to run it. Absent experts are noted and have none. */
uint slot_to_run(uint expert)
{
    if (is_done(expert))
        return NONE;
    uint slot = table.data[p.layer * N_EXPERTS + expert];
    if (slot == NONE)
        missing_add(expert);
    return slot;
}

/* Empties dispatch `first` and all behind it. All lanes call it. */
void stop_at(uint first)
{
    uint end = args.data.length() / 3u * 3u;
    for (uint i = first * 3u + gl_LocalInvocationIndex; i < end; i += WG)
        args.data[i] = 0u;
}

/* Tells the host which experts the layer lacks, and ends the submit before its experts. All lanes call it. */
void halt(uint n_missing)
{
    uint lane = gl_LocalInvocationIndex;
    if (lane == 0u) {
        mail.data[MAIL_LAYER] = p.layer;
        mail.data[MAIL_N_MISSING] = n_missing;
    }
    for (uint i = lane; i < MISSING_WORDS; i += WG) /* publish cleared the rest */
        mail.data[MAIL_MISSING + i] = missing_bits[i];
    stop_at(p.next);
}

#endif
