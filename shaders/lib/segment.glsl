/* Where an expert's weights stand. With SEG_ARRAY all segments of the pool are bound as an array, indexed by
 * a value that is uniform in the workgroup; else one segment is bound, and other slots are left to their own
 * dispatch.
 * Before inclusion: the push block as `p` (push_expert), SEG_BINDING, and the constants of SPEC_EXPERT. */
#ifndef LIB_SEGMENT_GLSL
#define LIB_SEGMENT_GLSL

#include "shared/step.h"

#define WEIGHTS_BINDING SEG_BINDING
#ifdef SEG_ARRAY
#define WEIGHTS_ARRAY N_SEGS
#endif
#include "lib/weights.glsl"

bool is_shared(uint slot)
{
    return SHARED != 0u && slot == SLOT_SHARED;
}

/* Makes the segment of `slot` the one LOAD_WORD reads and sets base to the byte where the slot starts.
 * False: nothing to do here (no slot, or the slot of another dispatch). */
bool segment_open(uint slot, out uint base)
{
    bool none = slot == NONE;

#ifdef SEG_ARRAY
    if (is_shared(slot)) {
        base = 0u;
        segment_index = N_SEGS - 1u;
        return true;
    }
#endif

    /* Drivers may compute addresses in lanes that have left: the index must name a segment always. */
    slot = none ? 0u : slot;
    base = slot % SLOTS_PER_SEG * SLOT_STRIDE;
#ifdef SEG_ARRAY
    segment_index = slot / SLOTS_PER_SEG;
    return !none;
#else
    return !none && slot / SLOTS_PER_SEG == p.seg;
#endif
}

#endif
